//! `scn`, the command line.

pub mod bugs;
mod renamed;
mod shrink;

use crate::audio::diff_svg;
use crate::audio::golden_audio::{self, Standing};
use crate::audio::quality;
use crate::base::output::say;
use crate::base::parallel::{in_parallel, threads};
use crate::conform;
use crate::contract;
use crate::faults::injection::{self, Fault};
use crate::faults::known_bugs;
use crate::field::replay;
use crate::model::backend::Backend;
use crate::model::catalogue;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle;
use crate::oracle::explain;
use crate::report::{self, Files, Outcome, Report, RunView};
use crate::search::explore;
use crate::search::generate::generate_for;
use crate::search::regressions;
use crate::sim;
use crate::sim::choice::{Backends, OneBackend, backend_of};
use crate::sim::trace::Trace;
use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Plays scenarios of phone calls against the bridge, and judges what both ends really heard.
#[derive(Debug, Parser)]
#[command(
    name = "scn",
    version,
    max_term_width = 110,
    after_help = "\
Exit status: 0 all passed, 1 something failed, 2 it could not run.

Examples:
  cargo scn list
  cargo scn run                                  the whole catalogue on every backend
  cargo scn run barge_in --backend simulated     every scenario with `barge_in` in its name
  cargo scn run my_call.toml --seed 42           a file of your own
  cargo scn run --report target/report           the same, as a page to look at
  cargo scn explain barge_in/mid_answer          the call, line by line
  cargo scn explore --seeds 1..200               generated calls, one for each seed
  cargo scn shrink 42                            the smallest call with the violation of seed 42
  cargo scn replay call-20260101T000000Z-1f2e3d4c-000001-CA1.ndjson
                                                 a call of the field against today's bridge
  cargo scn audio check barge_in                 whether recorded calls still sound the same"
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Lists the scenarios of the catalogue, or the oracles.
    List {
        /// The oracles and what each demands.
        #[arg(long)]
        oracles: bool,
        /// Write the oracles and the scenarios into docs/dev/conformance.md.
        #[arg(long, hide = true, requires = "oracles")]
        write: bool,
    },
    /// Shows a scenario as a file.
    Show {
        /// Name, pattern with `*`, or file ending in .toml.
        name: String,
    },
    /// Plays scenarios and judges them.
    Run {
        #[command(flatten)]
        what: What,
        /// How many are played at one time; as many as there are processors when absent.
        #[arg(long)]
        jobs: Option<NonZeroUsize>,
        /// Play each twice, on parallel threads, and demand the same bytes.
        #[arg(long)]
        twice: bool,
        /// Play each in a second process, too, and demand the same bytes.
        #[arg(long)]
        processes: bool,
        #[command(flatten)]
        files: Files,
        /// Inject this fault into the bridge, to see what a failure looks like: a name of `scn faults`.
        #[arg(long, hide = true, value_parser = injection::named, conflicts_with_all = ["twice", "processes"])]
        fault: Option<Fault>,
    },
    /// Tells a call line by line: the caller on the left, the model on the right.
    Explain {
        /// Name, or file ending in .toml.
        name: String,
        /// Where to play it; on the first backend it names when absent.
        #[arg(long, value_enum)]
        backend: Option<OneBackend>,
        /// Decimal, 0x hexadecimal, or a commit hash.
        #[arg(long, default_value = "1")]
        seed: Seed,
        /// Which call of the scenario, counted from 0; all of them when absent.
        #[arg(long)]
        call: Option<usize>,
        /// Every message, as the hash of the trace sees it.
        #[arg(long)]
        raw: bool,
        /// Plays it with this known bug in the bridge, in memory: a name of `scn bugs`.
        #[arg(long)]
        bug: Option<String>,
        /// With this fault injected, as in `scn run --fault`.
        #[arg(long, hide = true, value_parser = injection::named, conflicts_with = "bug")]
        fault: Option<Fault>,
    },
    /// Plays generated scenarios, seed after seed.
    Explore(explore::Options),
    /// Finds the smallest scenario that breaks the same rule.
    Shrink(shrink::Options),
    /// Keeps shrunk scenarios as regressions, which are played for ever.
    #[command(subcommand)]
    Regress(Regress),
    /// Plants known bugs of other bridges around ours: which oracle catches each, after how many seeds.
    Bugs(bugs::Options),
    /// Injects every fault and checks that its oracle catches it.
    Faults,
    /// Measures the audio path, and compares recorded calls with `golden/calls`.
    #[command(subcommand)]
    Audio(Audio),
    /// Writes the journals that the bridge leaves of a scenario's calls.
    Journal(replay::JournalOptions),
    /// Plays a recorded call against today's bridge: its messages of then beside those of now.
    Replay(replay::ReplayOptions),
    /// Makes a scenario of a recorded call, to be shrunk and kept.
    Import(replay::ImportOptions),
    /// Judges any bridge, in any language, over real sockets and in real time.
    Conform(Box<conform::Options>),
    /// Compares the mock model with the real service, a clone, or a recording of one.
    Contract(Box<contract::Options>),
    /// Prints `scenario backend seed hash` for each run, for comparing two processes.
    #[command(hide = true)]
    Hash {
        #[command(flatten)]
        what: What,
        /// The worlds of these seeds instead of the catalogue: `1..201`, `HASH..+200`.
        #[arg(long, value_name = "A..B", conflicts_with_all = ["pattern", "seed"])]
        seeds: Option<explore::Seeds>,
    },
}

#[derive(Debug, Subcommand)]
enum Regress {
    /// Adds a shrunk scenario to the regressions.
    Add(regressions::Options),
}

#[derive(Debug, Subcommand)]
enum Audio {
    /// Measures the audio path against its goals, and compares recorded calls sample for sample.
    Check {
        /// Part of a scenario's name: compares these recorded calls alone. Without it: all, and the goals.
        pattern: Option<String>,
        /// Also write speech before and after each way through the bridge, as WAV files, into this folder.
        #[arg(long, value_name = "DIR", conflicts_with = "pattern")]
        save: Option<PathBuf>,
    },
    /// Writes recorded calls that differ: the audio of today is right.
    Accept {
        /// Part of a scenario's name; every recorded call when absent.
        pattern: Option<String>,
    },
}

/// Which runs.
#[derive(Clone, Debug, clap::Args)]
struct What {
    /// Part of a name, pattern with `*`, or file ending in .toml; the whole catalogue when absent.
    pattern: Option<String>,
    /// Where to play; each scenario on every backend it names when absent.
    #[arg(long, value_enum, default_value_t = Backends::All)]
    backend: Backends,
    /// Decimal, 0x hexadecimal, or a commit hash.
    #[arg(long, default_value = "1")]
    seed: Seed,
}

impl What {
    /// The command that plays these runs.
    fn command(&self) -> String {
        let pattern = self.pattern.as_ref().map(|pattern| format!(" {pattern}")).unwrap_or_default();
        let usual = self.backend == Backends::All;
        let backend = if usual { String::new() } else { format!(" --backend {}", self.backend.name()) };
        format!("scn run{pattern}{backend} --seed {}", self.seed)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let (words, warnings) = renamed::modern(std::env::args_os().collect());
    for warning in warnings {
        eprintln!("scn: {warning}; the old word goes with the next release");
    }
    match perform(Cli::parse_from(words)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("scn: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Says whether a command line is one.
///
/// # Errors
/// What is wrong with it, in the words the command would use.
pub fn check(words: &[&str]) -> Result<(), String> {
    Cli::try_parse_from(words).map(drop).map_err(|error| error.to_string())
}

fn perform(cli: Cli) -> anyhow::Result<bool> {
    match cli.command {
        Task::List { oracles: false, .. } => list().map(|()| true),
        Task::List { oracles: true, write: true } => {
            let cannot = || format!("cannot write {}", conform::document::FILE);
            let text = std::fs::read_to_string(conform::document::FILE).with_context(cannot)?;
            std::fs::write(conform::document::FILE, conform::document::rewritten(&text)?)
                .with_context(cannot)?;
            Ok(true)
        }
        Task::List { oracles: true, write: false } => {
            let width = oracle::ALL.iter().map(|oracle| oracle.name.len()).max().unwrap_or(0);
            for oracle in oracle::ALL {
                say(&format!("{:<width$}  {}\n", oracle.name, oracle.about));
            }
            Ok(true)
        }
        Task::Show { name } => {
            for scenario in chosen(Some(&name))? {
                say(&format!("# {}\n{}\n", scenario.name, scenario.to_toml()));
            }
            Ok(true)
        }
        Task::Run { what, jobs, twice, processes, files, fault: None } => {
            run(&what, jobs, twice, processes, &files)
        }
        Task::Run { what, jobs, files, fault: Some(fault), .. } => spoil(&fault, &what, jobs, &files),
        Task::Explain { name, backend, seed, call, raw, bug, fault } => {
            let scenario = match &fault {
                Some(fault) => one_of(spoilt(fault, Some(&name))?, &name)?,
                None => only(&name)?,
            };
            let bug = bug.as_deref().map(known_bugs::wanted).transpose()?;
            let spoiled = bug.is_some() || fault.is_some();
            let asked = backend.map(Backend::from).or(spoiled.then_some(Backend::Memory));
            if spoiled && asked != Some(Backend::Memory) {
                bail!("{SABOTAGE_IN_MEMORY}");
            }
            let kind = backend_of(&scenario, asked)?;
            let trace = match (bug, &fault) {
                (Some(bug), _) => bug.play(&scenario, seed),
                (None, Some(fault)) => injection::play(fault, &scenario, seed),
                (None, None) => sim::play(kind, &scenario, seed),
            };
            explain(&scenario, &trace, call, raw)
        }
        Task::Explore(options) => explore::run(&options),
        Task::Shrink(options) => shrink::run(&options),
        Task::Regress(Regress::Add(options)) => regressions::run(&options),
        Task::Bugs(options) => bugs::run(&options),
        Task::Faults => Ok(try_saboteurs()),
        Task::Audio(Audio::Check { pattern, save }) => {
            let met = pattern.is_some() || measure_audio(save.as_deref())?;
            Ok(compare_recordings(pattern.as_deref(), false)? && met)
        }
        Task::Audio(Audio::Accept { pattern }) => compare_recordings(pattern.as_deref(), true),
        Task::Journal(options) => replay::run_journal(&options, &only(&options.name)?),
        Task::Replay(options) => replay::run(&options),
        Task::Import(options) => replay::run_import(&options),
        Task::Conform(options) => conform::run(&options),
        Task::Contract(options) => contract::run(&options),
        Task::Hash { what, seeds } => {
            let plays = match seeds {
                Some(seeds) => generated(seeds, what.backend)?,
                None => plays(&what)?.into_iter().map(|(one, kind)| (one, kind, what.seed)).collect(),
            };
            say(&hashes(&plays));
            Ok(true)
        }
    }
}

/// The scenarios a pattern or a file names.
fn chosen(pattern: Option<&str>) -> anyhow::Result<Vec<Scenario>> {
    let Some(pattern) = pattern else { return Ok(catalogue::check()?) };
    if Path::new(pattern).extension().is_some_and(|ending| ending == "toml") {
        return Ok(vec![catalogue::load(Path::new(pattern))?]);
    }
    catalogue::check()?;
    let found = catalogue::find(pattern);
    if found.is_empty() {
        bail!("no scenario is named like `{pattern}`; `cargo scn list` shows them all");
    }
    Ok(found)
}

/// The one scenario a name or a file names.
fn only(name: &str) -> anyhow::Result<Scenario> {
    one_of(chosen(Some(name))?, name)
}

fn one_of(mut found: Vec<Scenario>, name: &str) -> anyhow::Result<Scenario> {
    if found.len() > 1 {
        let names: Vec<_> = found.iter().map(|scenario| scenario.name.as_str()).collect();
        bail!("`{name}` names {} scenarios; choose one of: {}", names.len(), names.join(", "));
    }
    found.pop().with_context(|| format!("`{name}` names no scenario"))
}

fn list() -> anyhow::Result<()> {
    let all = catalogue::check()?;
    let width = all.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    for scenario in &all {
        let backends: Vec<_> = scenario.backends.iter().map(|backend| backend.name()).collect();
        say(&format!("{:<width$}  {:<22}  {}\n", scenario.name, backends.join(" "), scenario.purpose));
    }
    Ok(())
}

/// Every run that was asked for.
fn plays(what: &What) -> anyhow::Result<Vec<(Scenario, Backend)>> {
    let scenarios = chosen(what.pattern.as_deref())?;
    let plays: Vec<_> = scenarios
        .iter()
        .flat_map(|scenario| scenario.backends.iter().map(move |kind| (scenario.clone(), *kind)))
        .filter(|(_, kind)| what.backend.has(*kind))
        .collect();
    if plays.is_empty() {
        bail!("none of these scenarios is played on backend {}", what.backend.name());
    }
    plays.iter().try_for_each(|(_, kind)| sim::ready(*kind))?;
    Ok(plays)
}

fn run(
    what: &What,
    jobs: Option<NonZeroUsize>,
    twice: bool,
    processes: bool,
    files: &Files,
) -> anyhow::Result<bool> {
    let folder = files.check()?;
    let plays = plays(what)?;
    let file = what.pattern.as_deref().filter(|pattern| is_file(pattern));
    let progress = Progress::new(plays.len());
    let played = in_parallel(&plays, threads(jobs), |(scenario, kind)| {
        let shown_as = file.unwrap_or(&scenario.name);
        let (mut outcome, trace) = if twice {
            explore::play_twice(*kind, scenario, what.seed, shown_as)
        } else {
            let (trace, cpu) = sim::play_timed(*kind, scenario, what.seed);
            (Outcome::of(&trace, shown_as, cpu), trace)
        };
        if processes {
            outcome.hash = Some(trace.hash());
        }
        outcome.figures.answers.shrink_to_fit();
        progress.done(&outcome);
        (outcome, files.wanted().then(|| RunView::of(&trace)))
    });
    progress.end();
    let (mut outcomes, views): (Vec<_>, Vec<_>) = played.into_iter().unzip();
    if processes {
        compare_processes(what, &plays, &mut outcomes)?;
    }
    let whole = what.pattern.is_none() && what.backend == Backends::All;
    tell(&outcomes, whole);
    if files.wanted() {
        let mut report = Report::new(what.command());
        for (outcome, view) in outcomes.iter().zip(views) {
            view.into_iter().for_each(|view| report.put(outcome.clone(), view));
        }
        files.write(report, folder.as_ref())?;
    }
    // A suite that never reached the interesting thing proves little.
    let reached = !whole || report::missed(&outcomes).is_empty();
    Ok(reached && outcomes.iter().all(Outcome::passed))
}

/// The table, every failure and the figures, on standard output.
fn tell(outcomes: &[Outcome], whole: bool) {
    say(&format!("{}\n", report::table(outcomes)));
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        say(&format!("{}\n", report::failure(outcome)));
    }
    say(&report::summary(outcomes, whole));
    let call_ms = outcomes.iter().map(|outcome| outcome.call_ms).sum();
    say(&format!("whole process: {}\n", report::speed(call_ms, sim::process_cpu())));
}

fn is_file(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|ending| ending == "toml")
}

const SABOTAGE_IN_MEMORY: &str = "faults are injected in memory only; leave `--backend` away";

/// Plays scenarios with a fault at work: the one it was made for when no other is named.
fn spoil(sabotage: &Fault, what: &What, jobs: Option<NonZeroUsize>, files: &Files) -> anyhow::Result<bool> {
    if !what.backend.has(Backend::Memory) {
        bail!("{SABOTAGE_IN_MEMORY}");
    }
    let folder = files.check()?;
    let file = what.pattern.as_deref().filter(|pattern| is_file(pattern));
    let played = in_parallel(&spoilt(sabotage, what.pattern.as_deref())?, threads(jobs), |scenario| {
        let trace = injection::play(sabotage, scenario, what.seed);
        let mut outcome = Outcome::of(&trace, file.unwrap_or(&scenario.name), None);
        outcome.sabotage = Some(sabotage.name);
        (outcome, RunView::of(&trace))
    });
    let (outcomes, views): (Vec<_>, Vec<_>) = played.into_iter().unzip();
    tell(&outcomes, false);
    let passed = outcomes.iter().all(Outcome::passed);
    let mut report =
        Report::new(format!("{} --fault {}", what.command(), crate::base::output::word(sabotage.name)));
    outcomes.into_iter().zip(views).for_each(|(outcome, view)| report.put(outcome, view));
    files.write(report, folder.as_ref())?;
    Ok(passed)
}

/// The scenarios a fault is tried in.
fn spoilt(sabotage: &Fault, pattern: Option<&str>) -> anyhow::Result<Vec<Scenario>> {
    let ground = injection::ground(sabotage.scenario).context("a fault names a scenario")?;
    match pattern {
        Some(pattern) if pattern != ground.name => chosen(Some(pattern)),
        Some(_) | None => Ok(vec![ground]),
    }
}

/// Plays everything again in another process and compares.
fn compare_processes(
    what: &What,
    plays: &[(Scenario, Backend)],
    outcomes: &mut [Outcome],
) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find my own program")?;
    let mut command = Command::new(program);
    command.arg("hash").args(&what.pattern).args([
        "--backend",
        what.backend.name(),
        "--seed",
        &what.seed.to_string(),
    ]);
    let output = command.output().context("cannot start a second process")?;
    if !output.status.success() {
        bail!("the second process failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let theirs = String::from_utf8_lossy(&output.stdout);
    let mut theirs = theirs.lines();
    for (outcome, (scenario, kind)) in outcomes.iter_mut().zip(plays) {
        let hash = outcome.hash.as_deref().unwrap_or_default();
        let ours = format!("{} {kind} {} {hash}", scenario.name, what.seed);
        if theirs.next() != Some(&ours) {
            let words = "determinism: two processes with the same seed differ";
            outcome.problems.push((words.to_owned(), String::new()));
        }
    }
    Ok(())
}

/// The worlds of these seeds, on each backend that was asked for.
fn generated(seeds: explore::Seeds, backends: Backends) -> anyhow::Result<Vec<(Scenario, Backend, Seed)>> {
    let Some(seeds) = seeds.all() else { bail!("`--seeds` needs an end here: write `1..201` or `1..+200`") };
    let kinds: Vec<_> = Backend::ALL.into_iter().filter(|kind| backends.has(*kind)).collect();
    kinds.iter().try_for_each(|kind| sim::ready(*kind))?;
    Ok(seeds
        .flat_map(|seed| kinds.iter().map(move |kind| (generate_for(seed, *kind), *kind, seed)))
        .collect())
}

/// A line for each run: name, backend, seed and hash.
fn hashes(plays: &[(Scenario, Backend, Seed)]) -> String {
    in_parallel(plays, threads(None), |(scenario, kind, seed)| {
        let hash = sim::play(*kind, scenario, *seed).hash();
        format!("{} {kind} {seed} {hash}\n", scenario.name)
    })
    .concat()
}

/// A bar for people, lines for logs; both on standard error.
enum Progress {
    Bar(ProgressBar),
    Lines,
}

impl Progress {
    fn new(runs: usize) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines;
        }
        let bar = ProgressBar::new(runs as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} {wide_msg}") {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    fn done(&self, outcome: &Outcome) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(outcome.scenario.clone());
                bar.inc(1);
                if !outcome.passed() {
                    bar.println(outcome.line());
                }
            }
            Self::Lines => eprintln!("{}", outcome.line()),
        }
    }

    fn end(&self) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines => {}
        }
    }
}

fn explain(scenario: &Scenario, trace: &Trace, call: Option<usize>, raw: bool) -> anyhow::Result<bool> {
    if let Some(call) = call
        && call >= trace.calls.len()
    {
        bail!("{} has {} calls, counted from 0; there is no call {call}", scenario.name, trace.calls.len());
    }
    if raw {
        say(&(trace.lines().join("\n") + "\n"));
        return Ok(true);
    }
    let Trace { backend, seed, .. } = trace;
    say(&format!("{}    backend {backend}    seed {seed}\n{}\n", scenario.name, scenario.purpose));
    for index in (0..trace.calls.len()).filter(|index| call.is_none_or(|call| call == *index)) {
        say(&format!("\ncall {index}\n{}", explain::timeline(trace, index)));
    }
    let violations = oracle::judge(trace);
    for violation in &violations {
        say(&format!("\n{violation}"));
    }
    say(if violations.is_empty() { "\nno oracle objects\n" } else { "\n" });
    Ok(true)
}

/// Prints the goals of the audio path beside what was measured; true when all are met. Into `save` go WAV files.
fn measure_audio(save: Option<&Path>) -> anyhow::Result<bool> {
    if let Some(folder) = save {
        let cannot = || format!("cannot write into {}", folder.display());
        std::fs::create_dir_all(folder).with_context(cannot)?;
        for speech in quality::speech() {
            let path = folder.join(format!("{}.wav", speech.name));
            std::fs::write(path, speech.to_wav()).with_context(cannot)?;
        }
    }
    let goals = quality::measure();
    say(&quality::table(&goals));
    Ok(quality::all_met(&goals))
}

/// Compares each recorded call with its files; true when all are the same, or were made the same.
fn compare_recordings(pattern: Option<&str>, accept: bool) -> anyhow::Result<bool> {
    let chosen = golden_audio::chosen(pattern)?;
    if chosen.is_empty() {
        let names: Vec<_> = golden_audio::CHOSEN.iter().map(|chosen| chosen.scenario).collect();
        bail!(
            "no recorded call is named like `{}`; there are {}",
            pattern.unwrap_or_default(),
            names.join(", ")
        );
    }
    let (mut same, mut unlike) = (0, 0);
    for (chosen, scenario) in chosen {
        let played = golden_audio::play(chosen, &scenario)?;
        for recording in &played.recordings {
            let file = recording.file();
            match recording.standing(&played.drains)? {
                Standing::Same => {
                    same += 1;
                    continue;
                }
                Standing::New => say(&format!("{file} is not there yet\n")),
                Standing::Changed { before, difference } => {
                    let picture = diff_svg::save(&before, recording, &difference)?;
                    say(&format!("{file} differs\n{difference}\n  picture    {picture}\n"));
                }
            }
            unlike += 1;
            if accept {
                recording.save()?;
                say("  accepted   and written\n");
            }
        }
        for drain in &played.drains {
            say(&format!("{}: {drain}\n", scenario.name));
        }
    }
    // What one pattern leaves out is not astray.
    for stray in if pattern.is_none() { golden_audio::strays()? } else { Vec::new() } {
        unlike += 1;
        say(&format!("{} belongs to no recorded call\n", stray.display()));
        if accept {
            golden_audio::remove(&stray)?;
            say("  accepted   and removed\n");
        }
    }
    say(&format!("{same} recordings are the same, {unlike} differ\n"));
    if unlike > 0 && !accept {
        let pattern = pattern.map(|pattern| format!(" {pattern}")).unwrap_or_default();
        say(&format!("when today's audio is right: cargo scn audio accept{pattern}\n"));
    }
    Ok(unlike == 0 || accept)
}

/// Whether every fault was caught and no oracle objected without one.
fn try_saboteurs() -> bool {
    let all = injection::all();
    let width = all.iter().map(|sabotage| sabotage.name.len()).max().unwrap_or(0);
    let caught = in_parallel(&all, threads(None), |one| injection::run(one).into_iter().next());
    let mut free = 0;
    for (sabotage, violation) in all.iter().zip(&caught) {
        let verdict = match violation {
            Some(violation) => format!("caught: {}", violation.what),
            None => "NOT CAUGHT".to_owned(),
        };
        free += usize::from(violation.is_none());
        say(&format!("{:<10} {:<width$}  {verdict}\n", sabotage.oracle, sabotage.name));
    }
    let mut accused = 0;
    for ground in injection::grounds().filter_map(injection::ground) {
        for violation in oracle::judge(&sim::play(Backend::Memory, &ground, injection::SEED)) {
            accused += 1;
            say(&format!("ACCUSED WITHOUT CAUSE in {}: {violation}\n", ground.name));
        }
    }
    say(&format!("\n{} faults, {free} not caught; {accused} accusations without cause\n", all.len()));
    free == 0 && accused == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_parse_or_say_what_is_wrong() {
        for good in [
            &["scn", "list"][..],
            &[
                "scn",
                "run",
                "barge_in",
                "--backend",
                "both",
                "--seed",
                "0x5eed",
                "--jobs",
                "2",
                "--twice",
                "--processes",
            ],
            &["scn", "run", "--report", "target/report", "--junit", "junit.xml", "--json", "runs.json"],
            &["scn", "run", "--fault", "drops the clear", "--report", "target/report"],
            &["scn", "explain", "sabotage/barge_in", "--fault", "drops-the-clear"],
            &["scn", "explore", "--seeds", "1..9", "--report", "target/report", "--junit", "junit.xml"],
            &["scn", "explain", "turns/one", "--backend", "simulated", "--seed", "3f9a2c1e5d7b8a90"],
            &["scn", "run", "--backend", "all"],
            &["scn", "explain", "turns/one", "--backend", "pipes"],
            &["scn", "audio", "accept", "barge_in"],
            &["scn", "audio", "check", "--save", "target/wavs"],
            &["scn", "explore", "--for", "10m", "--shard", "1/4", "--backend", "pipes", "--keep-going"],
            &["scn", "shrink", "7", "--backend", "simulated", "--oracle", "truncation_position"],
            &[
                "scn",
                "regress",
                "add",
                "target/scn/7-small.toml",
                "late_mark",
                "--purpose",
                "Marks may be late.",
            ],
            &["scn", "bugs", "no_clear", "--seeds", "10", "--jobs", "1"],
            &["scn", "shrink", "7", "--bug", "no_clear"],
            &["scn", "explain", "turns/one", "--bug", "no_clear"],
            &["scn", "explore", "--seeds", "3f9a2c1e5d7b8a90aabb..+500", "--twice", "--allow-failures", "3"],
            &[
                "scn",
                "replay",
                "call.ndjson",
                "--report",
                "target/report",
                "--junit",
                "junit.xml",
                "--no-audio",
            ],
            &["scn", "import", "call.ndjson", "-o", "call.toml", "--no-audio"],
            &["scn", "regress", "add", "small.toml", "late_mark", "--dir", "kept"],
            &["scn", "journal", "turns/one", "--full", "--out", "journals"],
            &["scn", "conform", "--bridge", "ws://127.0.0.1:5050/media-stream", "--spawn", "node server.js"],
            &[
                "scn",
                "conform",
                "barge_in",
                "--start-url",
                "http://127.0.0.1:5050/voice",
                "--skip-rule",
                "format_confirmed",
            ],
            &["scn", "contract"],
            &[
                "scn",
                "contract",
                "turn",
                "--url",
                "wss://example.com",
                "--key-file",
                "key",
                "--auth",
                "api-key",
            ],
            &["scn", "contract", "--against", "golden/wire/own", "--json", "contract.json", "--tolerated"],
            &["scn", "hash"],
            &["scn", "hash", "--seeds", "1..201", "--backend", "memory"],
        ] {
            check(good).unwrap();
        }
        assert!(check(&["scn", "run", "--seed", "soon"]).unwrap_err().contains("soon"));
        assert!(check(&["scn", "hash", "--seeds", "1..201", "--seed", "2"]).unwrap_err().contains("--seed"));
        assert!(check(&["scn", "sing"]).is_err());
        assert!(check(&["scn", "contract", "--key-file", "key"]).unwrap_err().contains("--url"));
        assert!(check(&["scn", "contract", "--url", "ftp://a"]).unwrap_err().contains("wss://"));
        let unknown = check(&["scn", "run", "--fault", "sings"]).unwrap_err();
        assert!(unknown.contains("drops-the-clear"), "{unknown}");
    }
}
