//! Plays generated scenarios, seed after seed, until something breaks or the time is up.
//!
//! A seed is a lottery ticket: what it found is written to a file at once, and the file is what gets shrunk and kept.

use crate::base::output::say;
use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle::milestones;
use crate::report::{self, Folder, Outcome, Report, RunView};
use crate::search::generate::generate_for;
use crate::sim::choice::Backends;
use crate::sim::trace::Trace;
use crate::sim::{self, process_cpu};
use anyhow::{Context as _, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where the scenarios of failures are written, from the folder of the command.
pub const FOUND: &str = "target/scn";
/// How often the progress is told.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// A report draws this many failures; more are counted.
const DRAWN_MAX: usize = 200;

/// What to explore, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seeds from A up to, but without, B: `1..200`; `A..+500` are the five hundred from A on. `1..` has no end and
    /// needs `--for`. A may be a commit hash.
    #[arg(long, value_name = "A..B", required_unless_present = "time")]
    seeds: Option<Seeds>,
    /// Begin no run after this long: `90s`, `10m`, `2h`.
    #[arg(long = "for", value_name = "TIME")]
    time: Option<Span>,
    /// Where to play.
    #[arg(long, value_enum, default_value_t = Backends::Memory)]
    backend: Backends,
    /// Only every n-th seed, beginning with the i-th: for n machines.
    #[arg(long, value_name = "i/n", default_value = "1/1")]
    shard: Shard,
    /// How many are played at one time; as many as there are processors when absent.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Go on after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Play each twice, on two threads, and demand the same bytes.
    #[arg(long)]
    twice: bool,
    /// Worlds that may break a rule before the command fails: known failures, to be mended. Bytes that differ between
    /// two plays always fail.
    #[arg(long, value_name = "N", default_value_t = 0)]
    allow_failures: usize,
    /// Write one JSON object for each run to this file, and one with the sums and the processor time behind them.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page of the runs that failed, with JUnit XML, JSON and the audio of both ends, into this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Write JUnit XML to this file: the runs that failed, and how many did not.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

impl Options {
    /// The command that plays the same seeds.
    fn command(&self, seeds: Seeds) -> String {
        let to = seeds.to.map(|to| to.to_string()).unwrap_or_default();
        format!("scn explore --seeds {}..{to} --backend {}", seeds.from, self.backend.name())
    }
}

/// A range of seeds, without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seeds {
    from: u64,
    to: Option<u64>,
}

impl Seeds {
    /// Every seed of the range, or `None` when it has no end.
    pub(crate) fn all(self) -> Option<impl Iterator<Item = Seed>> {
        self.to.map(|to| (self.from..to).map(Seed))
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no range of seeds: write `1..200`, `HASH..+200`, or `1..` together with --for"
            )
        };
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<Seed>().map(|seed| seed.0).map_err(|_| wrong());
        let from = number(from)?;
        let to = match to.strip_prefix('+') {
            Some(count) => {
                // A number may have a sign of its own; one is enough here.
                let count = Some(count).filter(|count| !count.starts_with('+')).ok_or_else(wrong)?;
                let count = count.parse::<u64>().map_err(|_| wrong())?;
                let past = || format!("`{text}` goes past the last seed, {}", Seed(u64::MAX));
                Some(from.checked_add(count).ok_or_else(past)?)
            }
            None if to.is_empty() => None,
            None => Some(number(to)?),
        };
        match to {
            Some(to) if to <= from => {
                Err(format!("`{text}` is empty: it ends before {to} and begins with {from}"))
            }
            Some(_) | None => Ok(Self { from, to }),
        }
    }
}

/// A length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no time: write `90s`, `10m` or `2h`");
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            _ => return Err(wrong()),
        };
        let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        count.checked_mul(seconds).map(|all| Self(Duration::from_secs(all))).ok_or_else(wrong)
    }
}

/// One of several machines that share the seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shard {
    /// Counted from 0.
    index: u64,
    of: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no shard: write `1/4` to `4/4` for four machines");
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let (index, of): (u64, u64) = (index.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
        if index == 0 || index > of {
            return Err(wrong());
        }
        Ok(Self { index: index - 1, of })
    }
}

/// Plays and judges the scenario of one seed, as `scn explore` does.
pub fn play(seed: Seed, kind: Backend) -> Outcome {
    play_traced(seed, kind).0
}

fn play_traced(seed: Seed, kind: Backend) -> (Outcome, Trace) {
    let (trace, cpu) = sim::play_timed(kind, &generate_for(seed, kind), seed);
    (Outcome::of(&trace, &found_at(seed).display().to_string(), cpu), trace)
}

/// Plays a scenario on two threads at one time, judges it, and demands the same bytes of both. Where they differ is
/// told as a problem of its own, and both traces are written to files.
pub(crate) fn play_twice(kind: Backend, scenario: &Scenario, seed: Seed, shown_as: &str) -> (Outcome, Trace) {
    same_twice(&|| sim::play_timed(kind, scenario, seed), shown_as, Path::new(FOUND))
}

/// What a difference between two plays begins with. No such problem is ever tolerated.
const UNLIKE: &str = "determinism: ";

fn same_twice(
    play: &(dyn Fn() -> (Trace, Option<Duration>) + Sync),
    shown_as: &str,
    folder: &Path,
) -> (Outcome, Trace) {
    let ((trace, cpu), other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| play().0);
        (play(), other.join())
    });
    let mut outcome = Outcome::of(&trace, shown_as, cpu);
    let hash = trace.hash();
    match other {
        Ok(other) if other.hash() == hash => {}
        Ok(other) => outcome.problems.push(first_difference(&trace, &other, folder)),
        Err(_) => outcome.problems.push((format!("{UNLIKE}the second of two plays panicked"), String::new())),
    }
    outcome.hash = Some(hash);
    (outcome, trace)
}

/// Where two traces of the same seed part, and the lines there. Both are written to files in this folder.
fn first_difference(one: &Trace, other: &Trace, folder: &Path) -> (String, String) {
    let (ones, others) = (one.lines(), other.lines());
    let same = ones.iter().zip(&others).take_while(|(one, other)| one == other).count();
    let line = |lines: &[String]| lines.get(same).map_or("(nothing more)".to_owned(), Clone::clone);
    let mut around = format!("  one        {}\n  the other  {}\n", line(&ones), line(&others));
    let stem = one.scenario.name.replace('/', "__");
    for (nth, lines) in [(1, &ones), (2, &others)] {
        let path = folder.join(format!("{stem}.{}.{}.{nth}.trace", one.seed, one.backend));
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, lines.join("\n") + "\n"));
        around += &match written {
            Ok(()) => format!("  written    {}\n", path.display()),
            Err(error) => format!("  not written to {}: {error}\n", path.display()),
        };
    }
    let what = format!(
        "{UNLIKE}two plays of the same seed differ from line {} on, of {} and {} lines",
        same + 1,
        ones.len(),
        others.len()
    );
    (what, around)
}

/// Where the scenario of a seed is written when it fails.
pub fn found_at(seed: Seed) -> PathBuf {
    Path::new(FOUND).join(format!("{seed}.toml"))
}

/// A scenario as a file that says with which seed it is played.
pub fn with_seed(scenario: &Scenario, seed: Seed) -> String {
    format!("# seed {seed}\n{}", scenario.to_toml())
}

/// The seed a file of [`with_seed`] names in its first line.
pub fn seed_in(text: &str) -> Option<Seed> {
    text.lines().next()?.strip_prefix("# seed ")?.trim().parse().ok()
}

/// Writes a scenario with its seed, and makes the folder if there is none.
///
/// # Errors
/// When the file cannot be written; the message names it.
pub fn write(path: &Path, scenario: &Scenario, seed: Seed) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    fs::write(path, with_seed(scenario, seed)).with_context(|| format!("cannot write {}", path.display()))
}

/// What has been seen so far.
#[derive(Default)]
struct Tally {
    runs: u64,
    call_ms: u64,
    failed: BTreeSet<(Seed, Backend)>,
    violations: u64,
    /// Some world was not the same twice.
    unlike: bool,
    reached: BTreeSet<&'static str>,
    /// What can be reached where it is played.
    possible: Vec<&'static str>,
    told: Duration,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.call_ms += outcome.call_ms;
        self.violations += outcome.violated as u64;
        if !outcome.passed() {
            self.failed.insert((outcome.seed, outcome.backend));
        }
        self.unlike |= outcome.problems.iter().any(|(what, _)| what.starts_with(UNLIKE));
        self.reached.extend(&outcome.reached);
    }

    /// `cpu` is what the whole process took.
    fn line(&self, cpu: Option<Duration>) -> String {
        format!(
            "{} runs, {}; {} failed, {} oracles violated; milestones {} of {}",
            self.runs,
            report::speed(self.call_ms, cpu),
            self.failed.len(),
            self.violations,
            self.reached.len(),
            self.possible.len(),
        )
    }

    /// The last line of the JSON.
    fn as_json(&self, cpu: Option<Duration>) -> serde_json::Value {
        serde_json::json!({
            "runs": self.runs,
            "failed": self.failed.len(),
            "call_ms": self.call_ms,
            "cpu_ms": cpu.map(|cpu| cpu.as_millis() as u64),
            "call_seconds_per_cpu_second": cpu.and_then(|cpu| report::call_seconds_per_cpu_second(self.call_ms, cpu)),
        })
    }
}

/// Explores; true when nothing failed.
pub(crate) fn run(options: &Options) -> anyhow::Result<bool> {
    let seeds = options.seeds.unwrap_or(Seeds { from: 1, to: None });
    if seeds.to.is_none() && options.time.is_none() {
        bail!("`--seeds {}..` has no end: add one, or `--for 10m`", seeds.from);
    }
    let kinds: Vec<_> = Backend::ALL.into_iter().filter(|kind| options.backend.has(*kind)).collect();
    kinds.iter().try_for_each(|kind| sim::ready(*kind))?;
    let mut json = None;
    if let Some(path) = &options.json {
        json = Some(File::create(path).with_context(|| format!("cannot write {}", path.display()))?);
    }
    let json = Mutex::new(json);
    let folder = options.report.as_deref().map(Folder::take).transpose()?;
    let wanted = folder.is_some() || options.junit.is_some();
    let told = Mutex::new(BTreeMap::new());
    let report = Mutex::new(Report::new(options.command(seeds)));
    let clock = Clock::start();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let tally = Mutex::new(Tally { possible: milestones::possible(&kinds), ..Tally::default() });
    let trouble = Mutex::new(None);
    let work = || -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) && options.time.is_none_or(|time| clock.shows() < time.0) {
            let nth = next.fetch_add(1, Ordering::Relaxed) * options.shard.of + options.shard.index;
            let Some(seed) = seeds.from.checked_add(nth).filter(|s| seeds.to.is_none_or(|to| *s < to)) else {
                return Ok(());
            };
            for kind in &kinds {
                let (outcome, trace) = if options.twice {
                    let shown_as = found_at(Seed(seed)).display().to_string();
                    play_twice(*kind, &generate_for(Seed(seed), *kind), Seed(seed), &shown_as)
                } else {
                    play_traced(Seed(seed), *kind)
                };
                if let Some(file) = &mut *locked(&json) {
                    writeln!(file, "{}", as_json(&outcome)).context("cannot write the JSON lines")?;
                }
                let mut tally = locked(&tally);
                tally.add(&outcome);
                if clock.shows() >= tally.told + TOLD_EVERY {
                    tally.told = clock.shows();
                    eprintln!("{}", tally.line(process_cpu()));
                }
                if wanted {
                    if outcome.passed() {
                        locked(&report).count(&outcome);
                    } else {
                        let view = RunView::of(&trace);
                        let mut told = locked(&told);
                        told.insert((outcome.seed, outcome.backend), (outcome.clone(), view));
                        // The first seeds stay, whichever thread was first.
                        if told.len() > DRAWN_MAX
                            && let Some((_, (beyond, _))) = told.pop_last()
                        {
                            locked(&report).count(&beyond);
                        }
                    }
                }
                if !outcome.passed() {
                    let scenario = generate_for(outcome.seed, outcome.backend);
                    write(&found_at(outcome.seed), &scenario, outcome.seed)?;
                    say(&format!("{}\n", failure(&outcome)));
                    let enough = tally.unlike || tally.failed.len() > options.allow_failures;
                    stop.fetch_or(enough && !options.keep_going, Ordering::Relaxed);
                }
            }
        }
        Ok(())
    };
    let jobs =
        options.jobs.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                if let Err(error) = work() {
                    stop.store(true, Ordering::Relaxed);
                    *locked(&trouble) = Some(error);
                }
            });
        }
    });
    if let Some(error) = trouble.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    if tally.runs == 0 {
        bail!(
            "not one seed was played: the range is smaller than the number of shards, or the time too short"
        );
    }
    let cpu = process_cpu();
    say(&format!("{}\n", tally.line(cpu)));
    if let Some(file) = &mut *locked(&json) {
        writeln!(file, "{}", tally.as_json(cpu)).context("cannot write the JSON lines")?;
    }
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (outcome, view) in told.into_inner().unwrap_or_else(PoisonError::into_inner).into_values() {
        report.put(outcome, view);
    }
    if let Some(path) = &options.junit {
        fs::write(path, report.junit()?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(folder) = &folder {
        say(&format!("report: {}\n", report.write(folder)?.display()));
    }
    for missed in tally.possible.iter().filter(|name| !tally.reached.contains(*name)) {
        say(&format!("not reached: {missed}\n"));
    }
    if !tally.failed.is_empty() {
        let failed: Vec<_> = tally.failed.iter().map(|(seed, kind)| format!("{seed} ({kind})")).collect();
        say(&format!("failed: {}\n", failed.join(", ")));
    }
    Ok(!tally.unlike && tally.failed.len() <= options.allow_failures)
}

/// The report of a run, and how to go on from it.
fn failure(outcome: &Outcome) -> String {
    let Outcome { seed, backend, .. } = outcome;
    let mut told = report::failure(outcome);
    if outcome.violated > 0 {
        told += &format!("  smaller    cargo scn shrink {seed} --backend {backend}\n");
    }
    if outcome.problems.iter().any(|(what, _)| what.starts_with(UNLIKE)) {
        told += &format!("  twice      cargo scn explore --seeds {seed}..+1 --backend {backend} --twice\n");
    }
    told
}

fn as_json(outcome: &Outcome) -> serde_json::Value {
    let problems: Vec<_> = outcome.problems.iter().map(|(what, _)| what).collect();
    serde_json::json!({
        "seed": outcome.seed.to_string(),
        "backend": outcome.backend.name(),
        "passed": outcome.passed(),
        "call_ms": outcome.call_ms,
        "problems": problems,
        "milestones": outcome.reached,
    })
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time of the person who waits. No run depends on it, only how many there are.
struct Clock(Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "how long to explore is a matter of real time")]
    fn start() -> Self {
        Self(Instant::now())
    }

    fn shows(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_times_and_shards_are_read_or_refused_with_an_example() {
        assert_eq!("1..200".parse(), Ok(Seeds { from: 1, to: Some(200) }));
        assert_eq!("0x10..".parse(), Ok(Seeds { from: 16, to: None }));
        assert_eq!("10m".parse(), Ok(Span(Duration::from_secs(600))));
        assert_eq!("2/3".parse(), Ok(Shard { index: 1, of: 3 }));
        let commit = "3f9a2c1e5d7b8a90aabbccddeeff001122334455";
        let from = 0x3f9a_2c1e_5d7b_8a90;
        assert_eq!(format!("{commit}..+500").parse(), Ok(Seeds { from, to: Some(from + 500) }));
        assert!("0xffffffffffffffff..+2".parse::<Seeds>().unwrap_err().contains("past the last seed"));
        for wrong in ["200", "2..1", "a..b", "..5", "1..+0", "1..+", "1..+x", "1..++2", "..+5"] {
            assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
        }
        for wrong in ["", "10", "m", "1d", "-1s", "9999999999999999999h"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        for wrong in ["0/3", "4/3", "1", "1/0"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_file_names_its_seed() {
        let scenario = generate_for(Seed(7), Backend::Memory);
        let text = with_seed(&scenario, Seed(7));
        assert_eq!(seed_in(&text), Some(Seed(7)));
        let mut again = Scenario::from_toml("generated/7", &text).unwrap();
        again.name.clone_from(&scenario.name);
        assert_eq!(again, scenario);
        assert_eq!(seed_in("purpose = \"x.\""), None);
    }

    #[test]
    fn a_failure_says_how_to_go_on() {
        let mut outcome = play(Seed(1), Backend::Memory);
        outcome.problems.push(("heard: something".into(), String::new()));
        outcome.violated = 1;
        let text = failure(&outcome);
        assert!(!text.contains("--twice"), "{text}");
        assert!(text.contains("cargo scn run target/scn/1.toml --backend memory --seed 1"), "{text}");
        assert!(text.contains("cargo scn shrink 1 --backend memory"), "{text}");
        assert_eq!(as_json(&outcome)["passed"], false);
    }

    #[test]
    fn two_plays_with_the_same_bytes_pass_and_two_with_others_do_not() {
        let scenario = generate_for(Seed(1), Backend::Memory);
        assert!(play_twice(Backend::Memory, &scenario, Seed(1), "x").0.passed());
        // The second play gets another seed.
        let seeds = AtomicU64::new(1);
        let differs = || {
            let seed = Seed(seeds.fetch_add(1, Ordering::Relaxed));
            sim::play_timed(Backend::Memory, &scenario, seed)
        };
        let folder = tempfile::TempDir::new().expect("a folder for the traces");
        let (outcome, _) = same_twice(&differs, "x", folder.path());
        let traces = fs::read_dir(folder.path()).expect("its entries").count();
        assert_eq!(traces, 2);
        let (what, around) = outcome.problems.first().expect("a difference is a problem");
        assert!(what.starts_with("determinism: two plays of the same seed differ from line "), "{what}");
        assert!(around.contains("  one        ") && around.contains("  the other  "), "{around}");
        let text = failure(&outcome);
        assert!(text.contains("--twice") && !text.contains("scn shrink"), "{text}");
        let mut tally = Tally::default();
        tally.add(&outcome);
        assert!(tally.unlike);
    }
}
