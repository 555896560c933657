//! `scn conform`: judges any bridge, in any language, by the rules our own is judged by.
//!
//! The suite is played over real sockets, in real time, against a process: see `sim::attach` for how, `offer` for what
//! the bridge is found to offer, [`suite`] for which scenarios it is played, [`verdict`] for what a play says about it,
//! and [`table`] for how that is told. `docs/dev/conformance.md` is written for people who have never seen this tree.
//!
//! A bridge is not blamed for what a busy machine did: what fails among others is played once more alone, and a play in
//! which our own timers were late says nothing.

mod capabilities;
pub mod document;
mod process;
pub mod suite;
pub mod table;
pub mod verdict;

pub use capabilities::{Capabilities, Function};

use self::process::{Output, Process};
use self::suite::{Demands, Fit, Part};
use self::table::{Row, Table};
use self::verdict::{Judged, Measure, Verdict};
use crate::base::output::{put, say};
use crate::base::parallel::in_parallel;
use crate::model::catalogue;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle;
use crate::report::Files;
use crate::report::{Folder, Report};
use crate::sim::attach::{Bridge, Played, Target};
use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use mocks::net::{Roots, Throwaway, Url};
use mocks::realtime::Dialect;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

/// Failures that are played once more: who fails more often than that has been seen to fail alone often enough.
const RETRIES_MAX: usize = 40;
/// A rule that most plays break, and that was broken alone as often as this, is broken: no play is made again for it.
const CONFIRMED: usize = 3;
/// How often a play is made anew because this machine was busy.
const BUSY_MAX: usize = 3;
/// How often a bridge's process is started again.
const RESTARTS_MAX: usize = 12;
/// How long the end of a process stands before it is started again: every play that is going on sees it.
const RESTART_DELAY: Duration = Duration::from_millis(500);

/// How to judge a bridge.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 nothing failed, 1 something failed, 2 it could not run.

Examples:
  scn conform --bridge ws://127.0.0.1:5050/media-stream
  scn conform --bridge ws://127.0.0.1:5050/media-stream --spawn 'node server.js' --report target/conform
  scn conform --start-url http://127.0.0.1:5050/incoming-call --signature-token $TWILIO_AUTH_TOKEN \\
              --public-url https://voice.example.com
  scn conform barge_in --bridge ws://127.0.0.1:5050/media-stream --skip-rule format_confirmed

The bridge's OpenAI URL must point to where the model is served: ws://127.0.0.1:9100/v1/realtime.")]
pub struct Options {
    /// Part of a scenario's name, or a pattern with `*`; the whole catalogue when absent.
    pattern: Option<String>,
    /// The WebSocket of the bridge that Twilio would connect to; with --start-url, only where it really is.
    #[arg(long, value_name = "URL", required_unless_present = "start_url")]
    bridge: Option<Url>,
    /// Ask this webhook for TwiML before each call, and follow it.
    #[arg(long, value_name = "URL")]
    start_url: Option<Url>,
    /// Scheme and host by which Twilio would know the bridge; this is what is signed.
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// Sign the webhook and the upgrade with this auth token.
    #[arg(long, value_name = "TOKEN", env = "TWILIO_AUTH_TOKEN", hide_env_values = true)]
    signature_token: Option<String>,
    /// Where the model is served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
    serve_openai: SocketAddr,
    /// Serve the model with TLS, and write the certificate that the bridge has to believe into this file.
    #[arg(long, value_name = "FILE")]
    openai_certificate: Option<PathBuf>,
    /// Believe the certificates in this PEM file when the bridge is called with TLS.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The audio the bridge is to have with the model; what it asks for when absent.
    #[arg(long, value_enum, default_value_t = Audio::Auto)]
    format: Audio,
    /// Start the bridge with this command, and end it afterwards.
    #[arg(long, value_name = "COMMAND")]
    spawn: Option<String>,
    /// How many scenarios are played at one time.
    #[arg(long, default_value = "12")]
    jobs: NonZeroUsize,
    /// The longest call that is played, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    max_call_seconds: u64,
    /// Ask for what neither vendor has been seen to do, too.
    #[arg(long)]
    strict: bool,
    /// Leave this rule out; may be given several times. `scn list --oracles` names them.
    #[arg(long, value_name = "RULE")]
    skip_rule: Vec<String>,
    /// Decimal, 0x hexadecimal, or a commit hash: ids, noise and jitter.
    #[arg(long, default_value = "1")]
    seed: Seed,
    #[command(flatten)]
    files: Files,
}

/// The audio a bridge has with the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Audio {
    /// What it asks for.
    Auto,
    /// G.711 mu-law at 8 kHz.
    Pcmu,
    /// G.711 A-law at 8 kHz.
    Pcma,
    /// 16-bit linear at 24 kHz.
    #[value(name = "pcm24k")]
    Pcm24k,
}

impl Audio {
    const fn wire(self) -> Option<&'static str> {
        match self {
            Self::Auto => None,
            Self::Pcmu => Some("audio/pcmu"),
            Self::Pcma => Some("audio/pcma"),
            Self::Pcm24k => Some("audio/pcm"),
        }
    }
}

/// Judges a bridge. True when nothing failed.
///
/// # Errors
/// When it could not be judged: an address that cannot be had, a bridge that does not come up or carries no call.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let scenarios = chosen(options)?;
    let folder = options.files.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (table, output) = runtime.block_on(judge(options, scenarios))?;
    // What a bridge has left open holds nothing up.
    runtime.shutdown_background();
    say(&table.text());
    say(&format!("\n{}", table.failures()));
    write(&options.files, &table, folder.as_ref(), &output)?;
    say(&table.summary());
    ensure!(
        !table.says_nothing(),
        "this machine was too busy to judge the bridge: try again when nothing else runs, or with fewer --jobs"
    );
    Ok(table.passed())
}

fn chosen(options: &Options) -> anyhow::Result<Vec<Scenario>> {
    for name in &options.skip_rule {
        ensure!(oracle::named(name).is_some(), "there is no rule `{name}`; `scn list --oracles` names them");
    }
    catalogue::check()?;
    let found = options.pattern.as_deref().map_or_else(catalogue::all, catalogue::find);
    if found.is_empty() {
        let pattern = options.pattern.as_deref().unwrap_or_default();
        bail!("no scenario is named like `{pattern}`; `scn list` shows them all");
    }
    Ok(found)
}

fn write(files: &Files, table: &Table, folder: Option<&Folder>, output: &Output) -> anyhow::Result<()> {
    if let Some(path) = &files.junit {
        put(path, table.junit()?)?;
    }
    if let Some(path) = &files.json {
        put(path, table.json())?;
    }
    if let (Some(folder), Some(path)) = (folder, &files.report) {
        let mut report = Report::new(format!("scn conform --bridge {}", table.bridge));
        for judged in table.rows.iter().filter_map(|row| row.judged.clone()) {
            report.put(judged.outcome, judged.view);
        }
        report.write(folder)?;
        put(&path.join("junit.xml"), table.junit()?)?;
        put(&path.join("conformance.json"), table.json())?;
        put(&path.join("conformance.html"), table.html())?;
        put(&path.join("bridge.log"), output.last(usize::MAX).join("\n") + "\n")?;
        say(&format!("report     {}\n", path.join("conformance.html").display()));
    }
    Ok(())
}

/// The bridge under test, with its process if we started it.
#[derive(Clone)]
struct Bench {
    bridge: Bridge,
    process: Arc<Mutex<Option<Process>>>,
    seed: Seed,
    measure: Measure,
}

async fn judge(options: &Options, scenarios: Vec<Scenario>) -> anyhow::Result<(Table, Output)> {
    let output = Output::default();
    let bench = Bench::open(options, output.clone()).await?;
    let watch = tokio::spawn(bench.clone().watch());
    let mut term = signal(SignalKind::terminate())?;
    let judged = tokio::select! {
        biased;
        judged = bench.judge(options, scenarios) => judged,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = term.recv() => Err(anyhow::anyhow!("told to stop")),
    };
    watch.abort();
    if let Some(process) = &mut *bench.process.lock().await {
        process.stop().await;
    }
    let last: String = output.last(20).iter().map(|line| format!("\n  {line}")).collect();
    let rows = judged.with_context(|| match last.is_empty() {
        true => "the bridge could not be judged".to_owned(),
        false => format!("the bridge could not be judged; the last it printed:{last}\n"),
    })?;
    Ok((rows, output))
}

impl Bench {
    async fn open(options: &Options, output: Output) -> anyhow::Result<Self> {
        let roots = match &options.ca {
            Some(file) => {
                let pem = std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                Roots::of_pem(&pem).with_context(|| format!("{} cannot be believed", file.display()))?
            }
            None => Roots::public(),
        };
        let target = Target {
            bridge: options.bridge.clone(),
            start_url: options.start_url.clone(),
            public: options.public_url.clone(),
            token: options.signature_token.clone(),
            roots,
        };
        let place = target.place()?.clone();
        let host = options.serve_openai.ip().to_string();
        let tls = match &options.openai_certificate {
            Some(file) => {
                let tls = Throwaway::new(&["localhost", &host])?;
                std::fs::write(file, tls.pem())
                    .with_context(|| format!("cannot write {}", file.display()))?;
                Some(tls)
            }
            None => None,
        };
        let scheme = if tls.is_some() { "wss" } else { "ws" };
        let bridge = Bridge::attach(target, options.serve_openai, tls).await?;
        eprintln!("the model is served at {scheme}://{}/v1/realtime", bridge.openai());
        let process = match &options.spawn {
            Some(command) => Some(Process::start(command, &place, output).await?),
            None => None,
        };
        Ok(Self {
            bridge,
            process: Arc::new(Mutex::new(process)),
            seed: options.seed,
            measure: Measure { except: options.skip_rule.iter().cloned().collect(), strict: options.strict },
        })
    }

    /// Notices the end of the process, lets every play see it, and starts it again.
    async fn watch(self) {
        let mut restarts = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut slot = self.process.lock().await;
            let Some(how) = slot.as_mut().and_then(Process::ended) else { continue };
            self.bridge.set_ended(Some(how));
            tokio::time::sleep(RESTART_DELAY).await;
            let Some(process) = slot.take() else { continue };
            restarts += 1;
            if restarts > RESTARTS_MAX {
                self.bridge.set_ended(Some(format!("it ended {restarts} times and is not started again")));
                return;
            }
            let Ok(place) = self.bridge.target().place() else { return };
            match process.again(place).await {
                Ok(process) => {
                    *slot = Some(process);
                    self.bridge.set_ended(None);
                }
                Err(error) => {
                    self.bridge.set_ended(Some(format!("it cannot be started again: {error:#}")));
                    return;
                }
            }
        }
    }

    /// Until the process is up, or is known never to be again.
    async fn up(&self) {
        // A restart holds the slot; who gets it finds the process up, or gone for good.
        while self.bridge.ended().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if self.process.lock().await.is_none() {
                return;
            }
        }
    }

    async fn play(&self, scenario: &Scenario) -> anyhow::Result<Played> {
        let mut tries = 0;
        loop {
            self.up().await;
            let played = self.bridge.play(scenario, self.seed).await?;
            tries += 1;
            // A call placed while the process was started again has seen nothing of the bridge.
            if !(played.unanswered && played.felled) || tries > BUSY_MAX {
                return Ok(played);
            }
        }
    }

    /// The plain call that shows what is offered.
    async fn probe(&self, audio: Audio) -> anyhow::Result<Capabilities> {
        let mut played = self.play(&capabilities::probe(Dialect::Ga)).await?;
        if Capabilities::speaks_beta(&played) {
            played = self.play(&capabilities::probe(Dialect::Beta)).await?;
        }
        let mut offer = Capabilities::of(&played)?;
        offer.names_its_calls = self.bridge.names_its_calls();
        if let Some(wire) = audio.wire() {
            offer.formats = (wire.to_owned(), wire.to_owned());
        }
        Ok(offer)
    }

    async fn judge(&self, options: &Options, scenarios: Vec<Scenario>) -> anyhow::Result<Table> {
        let offer = self.probe(options.format).await?;
        eprintln!("what it offers\n{offer}");
        let demands =
            Demands { longest_ms: options.max_call_seconds.saturating_mul(1_000), strict: options.strict };
        let jobs = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let fits = in_parallel(&scenarios, jobs, |scenario| suite::fit(scenario, &offer, demands));
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        for (scenario, fit) in scenarios.iter().zip(fits) {
            let name = scenario.name.clone();
            let (verdict, why) = match fit {
                Fit::Play(part) => {
                    parts.insert(name, *part);
                    continue;
                }
                Fit::NotOffered(what) => (Verdict::NotOffered, what),
                Fit::LeftOut(why) => (Verdict::LeftOut, why),
            };
            rows.insert(name.clone(), Row { name, verdict, why, judged: None });
        }
        let played = self.play_all(parts.iter().collect(), options.jobs.get()).await?;
        // Judging takes the processors from running plays, so it begins when all is played.
        let played: Vec<_> = played.into_iter().collect();
        let mut judged: BTreeMap<String, Judged> =
            in_parallel(&played, jobs, |(name, played)| (name.clone(), self.judged(played, name, options)))
                .into_iter()
                .collect();
        let mut doubts = Doubts::of(&judged);
        let endless = doubts.endless(&judged);
        if !endless.is_empty() {
            eprintln!("{} plays in which something never ended are made once more", endless.len());
        }
        let endless = parts.iter().filter(|(name, _)| endless.contains(name.as_str())).collect();
        for (name, played) in self.play_all(endless, options.jobs.get()).await? {
            let second = tokio::task::block_in_place(|| self.judged(&played, &name, options));
            if second.busy || !second.endless {
                doubts.names.push_back(name);
            } else if let Some(first) = judged.remove(&name) {
                rows.insert(name.clone(), weigh(&name, first, second, 1));
            }
        }
        if doubts.open() > 0 {
            eprintln!("up to {} plays are made once more, each alone", doubts.open());
        }
        while let Some(name) = doubts.next(&judged) {
            let (Some(part), Some(first)) = (parts.get(&name), judged.remove(&name)) else { continue };
            let (second, tries) = self.play_alone(&name, part, options).await?;
            eprintln!("again   {name}");
            doubts.settle(&second);
            let row = weigh(&name, first, second, tries);
            rows.insert(name, row);
        }
        rows.extend(judged.into_iter().map(|(name, judged)| (name.clone(), only_once(name, judged))));
        acquit(&mut rows);
        let bridge = self.bridge.target().place()?.to_string();
        Ok(Table { bridge, offer, except: self.measure.except.clone(), rows: rows.into_values().collect() })
    }

    fn judged(&self, played: &Played, name: &str, options: &Options) -> Judged {
        let mut judged = verdict::judge(played, name, &self.measure);
        judged.outcome.attached = Some(options.command(name));
        judged
    }

    /// Plays a scenario with no other beside it, and again while this machine is busy with something else.
    async fn play_alone(
        &self,
        name: &str,
        part: &Part,
        options: &Options,
    ) -> anyhow::Result<(Judged, usize)> {
        let mut tries = 0;
        loop {
            let played = self.play(&part.scenario).await?;
            let judged = tokio::task::block_in_place(|| self.judged(&played, name, options));
            tries += 1;
            if !judged.busy || judged.broken.is_empty() || tries > BUSY_MAX {
                return Ok((judged, tries));
            }
        }
    }

    async fn play_all(
        &self,
        mut order: Vec<(&String, &Part)>,
        jobs: usize,
    ) -> anyhow::Result<BTreeMap<String, Played>> {
        // Long ones first, so that none is left to be waited for at the end; then those that want to be alone.
        order.sort_by_key(|(_, part)| (part.alone, std::cmp::Reverse(part.takes_ms)));
        let places = Arc::new(Semaphore::new(jobs));
        let mut plays = JoinSet::new();
        let total = order.len();
        for (name, part) in order {
            let many = if part.alone { u32::try_from(jobs).unwrap_or(1) } else { 1 };
            let (bench, name, scenario) = (self.clone(), name.clone(), part.scenario.clone());
            let place = places.clone().acquire_many_owned(many).await?;
            plays.spawn(async move {
                let played = bench.play(&scenario).await;
                drop(place);
                eprintln!("played  {name}");
                played.map(|played| (name, played))
            });
        }
        eprintln!("all {total} plays have begun");
        let mut done = BTreeMap::new();
        while let Some(ended) = plays.join_next().await {
            let (name, played) = ended.context("the harness itself failed")??;
            done.insert(name, played);
        }
        Ok(done)
    }
}

impl Options {
    /// The command that plays one scenario again. The token is not among its words: it may be a real one.
    fn command(&self, name: &str) -> String {
        let mut words = vec![format!("scn conform {name}")];
        let mut flag = |flag: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("--{flag} {value}")));
        };
        let file = |file: &Option<PathBuf>| file.as_ref().map(|file| file.display().to_string());
        let audio = self.format.to_possible_value().filter(|_| self.format != Audio::Auto);
        flag("bridge", self.bridge.as_ref().map(Url::to_string));
        flag("start-url", self.start_url.as_ref().map(Url::to_string));
        flag("public-url", self.public_url.as_ref().map(Url::to_string));
        flag("serve-openai", Some(self.serve_openai.to_string()));
        flag("openai-certificate", file(&self.openai_certificate));
        flag("ca", file(&self.ca));
        flag("format", audio.map(|audio| audio.get_name().to_owned()));
        flag("spawn", self.spawn.as_ref().map(|command| format!("'{}'", command.replace('\'', "'\\''"))));
        words.extend(self.strict.then(|| "--strict".to_owned()));
        words.join(" ")
    }
}

/// Plays that broke a rule among others, which this machine may have done: each is made again, alone, until it is
/// known well enough which rules the bridge breaks by itself.
struct Doubts {
    /// Who is to be played again, the busiest first: of them nothing is known otherwise.
    names: VecDeque<String>,
    /// Rules that most plays broke, with how often each was broken alone.
    everywhere: BTreeMap<&'static str, usize>,
    left: usize,
}

impl Doubts {
    fn of(judged: &BTreeMap<String, Judged>) -> Self {
        let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
        for rule in judged.values().flat_map(|judged| &judged.broken) {
            *counts.entry(rule).or_default() += 1;
        }
        let common = |count: usize| judged.len() >= 4 && count * 2 > judged.len();
        let everywhere = counts.into_iter().filter(|(_, count)| common(*count)).map(|(rule, _)| (rule, 0));
        let mut names: Vec<_> = judged.iter().filter(|(_, judged)| !judged.broken.is_empty()).collect();
        names.sort_by_key(|(_, judged)| !judged.busy);
        Self {
            names: names.into_iter().map(|(name, _)| name.clone()).collect(),
            everywhere: everywhere.collect(),
            left: RETRIES_MAX,
        }
    }

    fn open(&self) -> usize {
        self.names.len().min(self.left)
    }

    /// Takes out those in which something never ended. To wait for an end that does not come keeps no processor busy,
    /// so they can be made again beside each other; one by one they would take an hour.
    fn endless(&mut self, judged: &BTreeMap<String, Judged>) -> BTreeSet<String> {
        let ended = |name: &String| judged.get(name).is_none_or(|first| first.busy || !first.endless);
        let (names, endless): (VecDeque<_>, VecDeque<_>) = self.names.drain(..).partition(ended);
        self.names = names;
        endless.into_iter().collect()
    }

    /// Who is played again next.
    fn next(&mut self, judged: &BTreeMap<String, Judged>) -> Option<String> {
        self.left = self.left.checked_sub(1)?;
        let known = |rule: &&'static str| self.everywhere.get(rule).is_some_and(|alone| *alone >= CONFIRMED);
        loop {
            let name = self.names.pop_front()?;
            let doubtful = |first: &Judged| first.busy || !first.broken.iter().all(known);
            if judged.get(&name).is_some_and(doubtful) {
                return Some(name);
            }
        }
    }

    /// What a play alone has shown.
    fn settle(&mut self, alone: &Judged) {
        for rule in alone.broken.iter().filter(|_| !alone.busy) {
            self.everywhere.entry(rule).and_modify(|count| *count += 1);
        }
    }
}

/// What a play says that was not made again. While this machine was busy it can only have kept the rules.
fn only_once(name: String, judged: Judged) -> Row {
    if judged.broken.is_empty() {
        return Row { name, verdict: Verdict::Passed, why: String::new(), judged: Some(judged) };
    }
    if judged.busy {
        let why = "this machine was busy with something else, and it was not played again".to_owned();
        return Row { name, verdict: Verdict::NotJudged, why, judged: None };
    }
    Row { name, verdict: Verdict::Failed, why: String::new(), judged: Some(judged) }
}

/// Why a play that kept every rule alone is not steady.
const FELLED: &str =
    "the bridge's process ended in the middle of it, among other calls, and never when one was alone";

/// Those who were on the line when another call ended the process are blamed for nothing, once it is known which did.
fn acquit(rows: &mut BTreeMap<String, Row>) {
    let felled = |row: &Row| row.judged.as_ref().is_some_and(|judged| judged.felled);
    if rows.values().any(|row| row.verdict == Verdict::Failed && felled(row)) {
        for row in rows.values_mut().filter(|row| row.why == FELLED) {
            row.verdict = Verdict::Passed;
            row.why.clear();
        }
    }
}

/// What two plays of a scenario say together.
fn weigh(name: &str, first: Judged, second: Judged, tries: usize) -> Row {
    let name = name.to_owned();
    if second.busy && !second.broken.is_empty() {
        let why = format!("this machine was busy with something else in each of {} plays", tries + 1);
        return Row { name, verdict: Verdict::NotJudged, why, judged: None };
    }
    if second.broken.is_empty() {
        if first.busy {
            return Row { name, verdict: Verdict::Passed, why: String::new(), judged: Some(second) };
        }
        if first.felled {
            let why = FELLED.to_owned();
            return Row { name, verdict: Verdict::Unsteady, why, judged: Some(second) };
        }
        let why = "broken among other calls, kept alone".to_owned();
        return Row { name, verdict: Verdict::Unsteady, why, judged: Some(first) };
    }
    Row { name, verdict: Verdict::Failed, why: String::new(), judged: Some(second) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::backend::Backend;
    use crate::sim;

    /// A play that broke these rules.
    fn judged(broken: &[&'static str], busy: bool, felled: bool) -> Judged {
        let trace = sim::play(Backend::Memory, &catalogue::find("caller_hangup/before_start")[0], Seed(1));
        let played = Played::undisturbed(trace);
        let judged = verdict::judge(&played, "x", &Measure::default());
        Judged { broken: broken.iter().copied().collect(), busy, felled, ..judged }
    }

    #[test]
    fn what_never_ended_is_played_again_beside_its_like_and_no_other() {
        let endless = |busy| Judged { endless: true, ..judged(&["teardown"], busy, false) };
        let plays: BTreeMap<String, Judged> = [
            ("a", endless(false)),
            ("b", judged(&["clear_on_barge_in"], false, false)),
            ("c", endless(true)),
            ("d", endless(false)),
        ]
        .map(|(name, judged)| (name.to_owned(), judged))
        .into();
        let mut doubts = Doubts::of(&plays);
        assert_eq!(doubts.endless(&plays), BTreeSet::from(["a".to_owned(), "d".to_owned()]));
        assert_eq!([doubts.next(&plays), doubts.next(&plays)], [Some("c".into()), Some("b".into())]);
        assert_eq!(doubts.next(&plays), None);
    }

    #[test]
    fn who_broke_a_rule_is_played_again_and_the_busiest_first() {
        let mut plays: BTreeMap<String, Judged> =
            (0..8).map(|n| (format!("d{n}"), judged(&[], true, false))).collect();
        plays.insert("a".into(), judged(&["clear_on_barge_in"], false, false));
        plays.insert("b".into(), judged(&["no_stale_audio"], true, false));
        let mut doubts = Doubts::of(&plays);
        assert_eq!([doubts.next(&plays), doubts.next(&plays)], [Some("b".into()), Some("a".into())]);
        assert_eq!(doubts.next(&plays), None, "what was kept in spite of a busy machine was kept");
    }

    #[test]
    fn a_rule_that_most_plays_break_is_believed_when_it_was_broken_alone() {
        let plays: BTreeMap<String, Judged> =
            (0..9).map(|n| (format!("s{n}"), judged(&["truncation_position"], false, false))).collect();
        let mut doubts = Doubts::of(&plays);
        let mut again = 0;
        while doubts.next(&plays).is_some() {
            again += 1;
            doubts.settle(&judged(&["truncation_position"], false, false));
        }
        assert_eq!(again, CONFIRMED);

        // Among others everything was late; alone nothing is. So each is asked.
        let mut doubts = Doubts::of(&plays);
        let mut again = 0;
        while doubts.next(&plays).is_some() {
            again += 1;
            doubts.settle(&judged(&[], false, false));
        }
        assert_eq!(again, plays.len());
    }

    #[test]
    fn a_busy_play_that_is_not_made_again_says_nothing() {
        let verdict =
            |broken: &[&'static str], busy| only_once("x".into(), judged(broken, busy, false)).verdict;
        assert_eq!(verdict(&["clear_on_barge_in"], true), Verdict::NotJudged);
        assert_eq!(verdict(&["clear_on_barge_in"], false), Verdict::Failed);
        assert_eq!(verdict(&[], true), Verdict::Passed);
    }

    #[test]
    fn a_bystander_is_not_blamed_for_a_crash_once_it_is_known_whose_it_was() {
        let bystander = || {
            weigh("bystander", judged(&["scenario_expectations"], false, true), judged(&[], false, false), 1)
        };
        assert_eq!(bystander().verdict, Verdict::Unsteady);
        let mut rows = BTreeMap::from([("bystander".to_owned(), bystander())]);
        acquit(&mut rows);
        assert_eq!(rows["bystander"].verdict, Verdict::Unsteady, "the culprit is not known yet");
        let crash = || judged(&["scenario_expectations"], false, true);
        rows.insert("culprit".into(), weigh("culprit", crash(), crash(), 1));
        acquit(&mut rows);
        assert_eq!(
            [&rows["bystander"], &rows["culprit"]].map(|row| row.verdict),
            [Verdict::Passed, Verdict::Failed]
        );
    }
}
