//! A call of the field against today's bridge: what it said then beside what it says now.
//!
//! The two ends are rebuilt with the recorded timing: the person acts by the clock, the model takes as long as it took.
//! They still *react*: a model that went on speaking after today's bridge cancelled it would break rules that today's
//! bridge keeps, and an oracle would blame the wrong side. Audio that was not recorded is replaced by speech of the
//! same length in the same places; what a `full` journal recorded is said again, byte for byte.
//!
//! What is compared is two journals, line by line: both are of the same kind, and neither end is asked.

use super::import::{Timing, import};
use super::{Recorded, load, read};
use crate::base::output::say;
use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle;
use crate::oracle::explain;
use crate::report::Files;
use crate::report::{Outcome, Report};
use crate::search::explore;
use crate::sim::choice::{OneBackend, backend_of};
use crate::sim::in_memory_journal::InMemoryJournal;
use crate::sim::trace::Trace;
use crate::sim::{self, memory, pipes, simulated};
use anyhow::{Context as _, bail};
use bridge::call::settings::CallConfig;
use bridge::export::journal::Content;
use bridge::export::journal::lines::{Event, Side, What};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Numbers that differ by less than this are alike, ms: the network is known to a few milliseconds only.
const ALIKE_MS: u64 = 120;
/// Width of the left column.
const COLUMN: usize = 52;
/// Lines of agreement that are shown around a difference.
const CONTEXT: usize = 3;
/// Most lines of one call that are compared.
const LINES_MAX: usize = 4_000;

/// What to replay.
#[derive(Debug, clap::Args)]
pub(crate) struct ReplayOptions {
    /// The journal; several when their calls met.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Settings that take the place of the recorded ones: a configuration file of the bridge; only what it names.
    #[arg(long, value_name = "FILE")]
    bridge_config: Option<PathBuf>,
    /// Where to play.
    #[arg(long, value_enum, default_value_t = OneBackend::Simulated)]
    backend: OneBackend,
    /// Decimal, 0x hexadecimal, or a commit hash.
    #[arg(long, default_value = "1")]
    seed: Seed,
    /// Show everything the bridge said, not only what is around a difference.
    #[arg(long)]
    all: bool,
    /// Make speech up even where a `full` journal recorded it.
    #[arg(long)]
    no_audio: bool,
    #[command(flatten)]
    report: Files,
}

impl ReplayOptions {
    /// The command that replays this again.
    fn command(&self) -> String {
        let mut words = vec!["scn replay".to_owned()];
        words.extend(self.files.iter().map(|file| file.display().to_string()));
        if let Some(config) = &self.bridge_config {
            words.push(format!("--bridge-config {}", config.display()));
        }
        words.push(format!("--backend {} --seed {}", Backend::from(self.backend), self.seed));
        words.extend(self.no_audio.then(|| "--no-audio".to_owned()));
        words.join(" ")
    }
}

/// What to import, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportOptions {
    /// The journal; several when their calls met.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the scenario is written.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// The caller acts by the clock, as recorded, instead of upon what is heard.
    #[arg(long)]
    recorded: bool,
    /// Make speech up even where a `full` journal recorded it, so that no person's voice is in the file.
    #[arg(long)]
    no_audio: bool,
    /// Settings that take the place of the recorded ones: a configuration file of the bridge; only what it names.
    #[arg(long, value_name = "FILE")]
    bridge_config: Option<PathBuf>,
}

/// Which calls to journal, and where to.
#[derive(Debug, clap::Args)]
pub(crate) struct JournalOptions {
    /// Name, or file ending in .toml.
    pub(crate) name: String,
    /// The folder, one file for each call.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Audio and words themselves, as with `journal.content = "full"`.
    #[arg(long)]
    full: bool,
    /// Where to play; on the first backend it names when absent.
    #[arg(long, value_enum)]
    backend: Option<OneBackend>,
    /// Decimal, 0x hexadecimal, or a commit hash.
    #[arg(long, default_value = "1")]
    seed: Seed,
}

/// Plays a scenario and writes the journals its calls leave.
pub(crate) fn run_journal(options: &JournalOptions, scenario: &Scenario) -> anyhow::Result<bool> {
    let kind = backend_of(scenario, options.backend.map(Backend::from))?;
    let journals = InMemoryJournal::new(if options.full { Content::Full } else { Content::Hashes });
    play(kind, scenario, options.seed, &journals);
    let cannot = || format!("cannot write into {}", options.out.display());
    std::fs::create_dir_all(&options.out).with_context(cannot)?;
    for (n, text) in journals.texts().iter().enumerate() {
        let path = options.out.join(format!("call-{n}.ndjson"));
        std::fs::write(&path, text).with_context(cannot)?;
        say(&format!("written    {}\n", path.display()));
    }
    Ok(true)
}

fn play(kind: Backend, scenario: &Scenario, seed: Seed, journals: &InMemoryJournal) -> Trace {
    match kind {
        Backend::Memory => memory::play_journalled(scenario, seed, None, journals),
        Backend::Simulated => simulated::play_journalled(scenario, seed, journals),
        Backend::Pipes => pipes::play_journalled(scenario, seed, journals),
        Backend::Loopback | Backend::Attach => panic!("a recorded call is not played in real time"),
    }
}

/// Writes the scenario of a journal.
pub(crate) fn run_import(options: &ImportOptions) -> anyhow::Result<bool> {
    let journals = journals(&options.files, options.bridge_config.as_deref(), options.no_audio)?;
    let timing = if options.recorded { Timing::Recorded } else { Timing::Heard };
    let imported = import(&journals, timing);
    let left_out = imported.left_out;
    explore::write(&options.out, &imported.scenario, Seed(1))?;
    left_out.iter().for_each(|words| say(&format!("note       {words}\n")));
    let out = options.out.display();
    say(&format!(
        "{}\nwritten    {out}\nplay       cargo scn run {out}\nshrink     cargo scn shrink {out}\n",
        imported.scenario.purpose
    ));
    Ok(true)
}

/// Replays a journal; true when no rule is broken.
pub(crate) fn run(options: &ReplayOptions) -> anyhow::Result<bool> {
    let kind = Backend::from(options.backend);
    sim::ready(kind)?;
    let folder = options.report.check()?;
    let then = journals(&options.files, options.bridge_config.as_deref(), options.no_audio)?;
    let replayed = replay(&then, kind, options.seed)?;
    for (n, journal) in then.iter().enumerate() {
        let header = &journal.header;
        say(&format!(
            "{}\n  bridge {} then, {} now; content {}; {} lines\n",
            options.files[n].display(),
            header.bridge,
            env!("CARGO_PKG_VERSION"),
            if header.content == Content::Full { "full" } else { "hashes" },
            journal.records.len() + 1,
        ));
    }
    for words in &replayed.left_out {
        say(&format!("  note: {words}\n"));
    }
    for (n, compared) in replayed.compared.iter().enumerate() {
        say(&format!("\ncall {n}\n{}", compared.shown(options.all)));
    }
    say(&replayed.verdicts());
    if options.report.wanted() {
        options.report.write(replayed.report(&options.command()), folder.as_ref())?;
    }
    Ok(replayed.objections.is_empty())
}

/// Reads journals and lays other settings over theirs.
fn journals(
    files: &[PathBuf],
    bridge_config: Option<&Path>,
    no_audio: bool,
) -> anyhow::Result<Vec<Recorded>> {
    let mut journals = files.iter().map(|path| load(path)).collect::<anyhow::Result<Vec<_>>>()?;
    if no_audio {
        journals.iter_mut().for_each(Recorded::forget_audio);
    }
    if let Some(path) = bridge_config {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for journal in &mut journals {
            let call = overridden(&journal.header.call, &text)
                .with_context(|| format!("{} holds no settings of a call", path.display()))?;
            if call.format != journal.header.call.format && journal.header.content == Content::Full {
                say("note       call.format is another one now: recorded audio is made up\n");
                journal.forget_audio();
            }
            journal.header.call = call;
        }
    }
    Ok(journals)
}

/// These settings with what the `[call]` section of a configuration names in their place.
///
/// # Errors
/// When the text is not TOML, has no `[call]`, or names what does not exist.
pub fn overridden(recorded: &CallConfig, config: &str) -> anyhow::Result<CallConfig> {
    let file: toml::Table = config.parse()?;
    let Some(toml::Value::Table(call)) = file.get("call") else {
        bail!("there is no [call] section: write what is to be changed below [call]");
    };
    let mut table = toml::Table::try_from(recorded)?;
    lay_over(&mut table, call);
    Ok(table.try_into()?)
}

fn lay_over(table: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(over)) => lay_over(inner, over),
            (_, value) => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

/// What a replay came to.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// What the rebuilt ends leave out, and why.
    pub left_out: Vec<String>,
    /// What the bridge said then and now, call by call.
    pub compared: Vec<Compared>,
    /// Every rule that is broken now, with the lines around it.
    pub objections: Vec<(String, String)>,
    /// What both ends saw.
    pub trace: Trace,
}

impl Replayed {
    /// The replay as a report, `command` being what played it; each call with what was said then beside it.
    pub fn report(&self, command: &str) -> Report {
        let mut outcome = Outcome::of(&self.trace, "replay", None);
        outcome.replayed = Some(command.to_owned());
        outcome.compared = self.compared.iter().map(Compared::told).collect();
        let mut report = Report::new(command);
        report.add(&self.trace, &outcome);
        report
    }

    fn verdicts(&self) -> String {
        if self.objections.is_empty() {
            return format!("\n{} oracles, and none objects to today's bridge\n", oracle::ALL.len());
        }
        let mut text = String::new();
        for (words, around) in &self.objections {
            let _infallible = write!(text, "\n{words}\n{around}\n");
        }
        text
    }
}

/// Plays the two ends of recorded calls against today's bridge.
///
/// # Errors
/// When today's bridge leaves fewer journals than were recorded: it refused a call, or the backend has a bug.
pub fn replay(then: &[Recorded], kind: Backend, seed: Seed) -> anyhow::Result<Replayed> {
    let mut imported = import(then, Timing::Recorded);
    imported.scenario.name = "replay".into();
    let journals = InMemoryJournal::default();
    let trace = play(kind, &imported.scenario, seed, &journals);
    let now = journals.texts().iter().map(|text| read(text.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    if now.len() < then.len() {
        bail!(
            "{} calls were recorded, and today's bridge took {} of them on the backend {kind}: play `scn import` of the \
             files with `scn run` to see who was refused",
            then.len(),
            now.len()
        );
    }
    let compared = then.iter().zip(&now).map(|(then, now)| Compared::of(then, now)).collect();
    let objections = oracle::judge(&trace)
        .iter()
        .map(|violation| (violation.to_string(), explain::around(&trace, violation)))
        .collect();
    Ok(Replayed { left_out: imported.left_out, compared, objections, trace })
}

// ------------------------------------------------------------------------------------------- what was said

/// Something the bridge said or did, in words that do not depend on ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// When, microseconds of its journal.
    pub us: u64,
    /// What.
    pub what: String,
    /// How much of it, ms.
    pub ms: Option<u64>,
}

impl Said {
    fn is_like(&self, other: &Self) -> bool {
        self.what == other.what
    }

    fn differs(&self, other: &Self) -> bool {
        match (self.ms, other.ms) {
            (Some(this), Some(that)) => this.abs_diff(that) > ALIKE_MS,
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        }
    }

    fn shown(&self) -> String {
        let ms = self.ms.map(|ms| format!(" {ms} ms")).unwrap_or_default();
        format!("{:>9.3} s  {}{ms}", self.us as f64 / 1_000_000.0, self.what)
    }
}

/// Everything the bridge said in a call that does not just happen fifty times a second.
pub fn said(journal: &Recorded) -> Vec<Said> {
    let mut names = Names::default();
    let mut all: Vec<Said> = Vec::new();
    for record in &journal.records {
        let us = record.us;
        if let What::SentMedia { audio } = &record.what {
            let ms = audio.len as u64 / 8;
            match all.last_mut().filter(|last| last.what == "speaks") {
                Some(last) => last.ms = last.ms.map(|so_far| so_far + ms),
                None => all.push(Said { us, what: "speaks".into(), ms: Some(ms) }),
            }
            continue;
        }
        let mut push = |what: String, ms: Option<u64>| all.push(Said { us, what, ms });
        #[expect(clippy::wildcard_enum_match_arm, reason = "a reader picks the lines it needs")]
        match &record.what {
            What::Model(event) => names.meet(event),
            What::SentClear => push("clears".into(), None),
            What::SentModel(event) => {
                if let Some((what, ms)) = to_model(event, &mut names) {
                    push(what, ms);
                }
            }
            What::Bridge { does, leg, code, .. } if does == "close" || does == "dial" => {
                let code = code.map(|code| format!(" with {code}")).unwrap_or_default();
                push(format!("{does}s the {} leg{code}", side(*leg)), None);
            }
            What::RunTool { name, .. } => push(format!("runs {name}"), None),
            What::CancelTool { .. } => push("stops a function".into(), None),
            What::Event { name, more } => {
                let word = |key: &str| more.get(key).and_then(|value| value.as_str()).unwrap_or_default();
                let ms = |key: &str| more.get(key).and_then(serde_json::Value::as_u64);
                match name.as_str() {
                    "barge_in" => push("barge-in, heard".into(), ms("heard_ms")),
                    "unprotected" => {
                        push(format!("protects no longer ({}), silenced", word("why")), ms("silenced_ms"));
                    }
                    "notice" => push(format!("tells the caller that it ends: {}", word("reason")), None),
                    "timer_fired" => push(format!("timer {}", word("timer")), None),
                    "tolerated" => push(format!("tolerates {}", word("what")), None),
                    "ended" => push(format!("is over: {}", word("reason")), None),
                    _routine => {}
                }
            }
            _ => {}
        }
    }
    all
}

fn to_model(event: &Event, names: &mut Names) -> Option<(String, Option<u64>)> {
    let item = |names: &mut Names| names.of("item", event.item.as_deref());
    Some(match event.kind.as_str() {
        "input_audio_buffer.append" => return None,
        "conversation.item.truncate" => (format!("truncates {} at", item(names)), event.end_ms),
        "response.cancel" => (format!("cancels {}", names.of("response", event.response.as_deref())), None),
        "conversation.item.create" => {
            (format!("adds a {}", event.item_type.as_deref().unwrap_or("thing").replace('_', " ")), None)
        }
        other => (format!("sends {other}"), None),
    })
}

const fn side(leg: Side) -> &'static str {
    match leg {
        Side::Caller => "caller",
        Side::Model => "model",
    }
}

/// Ids as numbers, in the order in which the model first used them.
#[derive(Default)]
struct Names {
    known: BTreeMap<String, usize>,
    counts: BTreeMap<&'static str, usize>,
}

impl Names {
    fn meet(&mut self, event: &Event) {
        if event.kind == "response.created" {
            self.of("response", event.response.as_deref());
        } else if event.audio.is_some() || event.kind == "response.output_item.added" {
            self.of("item", event.item.as_deref());
        }
    }

    fn of(&mut self, what: &'static str, id: Option<&str>) -> String {
        let Some(id) = id else { return format!("the {what}") };
        let count = self.counts.entry(what).or_default();
        let number = *self.known.entry(id.to_owned()).or_insert_with(|| {
            *count += 1;
            *count
        });
        format!("{what} {number}")
    }
}

// ------------------------------------------------------------------------------------------- comparing

/// One row: what was said then, and what now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The same, but for a few milliseconds.
    Same(Said, Said),
    /// The same, but not as much of it.
    Other(Said, Said),
    /// Only then.
    Then(Said),
    /// Only now.
    Now(Said),
}

/// What the bridge said then beside what it says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// In order.
    pub rows: Vec<Row>,
}

impl Compared {
    /// Compares two journals of a call.
    pub fn of(then: &Recorded, now: &Recorded) -> Self {
        let (mut then, mut now) = (said(then), said(now));
        then.truncate(LINES_MAX);
        now.truncate(LINES_MAX);
        Self { rows: rows(&then, &now) }
    }

    /// The first row in which they part.
    pub fn first_divergence(&self) -> Option<&Row> {
        self.rows.iter().find(|row| !matches!(row, Row::Same(..)))
    }

    /// The first divergence in a sentence.
    fn sentence(&self) -> String {
        match self.first_divergence() {
            None => "it says what it said then".to_owned(),
            Some(Row::Then(then)) => format!("they part: then{}, and not now", then.shown()),
            Some(Row::Now(now)) => format!("they part: now{}, and not then", now.shown()),
            Some(Row::Other(then, now) | Row::Same(then, now)) => {
                format!("they part: then{}, now{}", then.shown(), now.shown())
            }
        }
    }

    /// For programs and pages: the sentence, and every row with its sign, `=`, `~`, `-` or `+`.
    pub(crate) fn told(&self) -> serde_json::Value {
        let side = |said: &Said| said.shown().trim_start().to_owned();
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| match row {
                Row::Same(then, now) => json!({"sign": "=", "then": side(then), "now": side(now)}),
                Row::Other(then, now) => json!({"sign": "~", "then": side(then), "now": side(now)}),
                Row::Then(then) => json!({"sign": "-", "then": side(then)}),
                Row::Now(now) => json!({"sign": "+", "now": side(now)}),
            })
            .collect();
        json!({"same": self.first_divergence().is_none(), "what": self.sentence(), "rows": rows})
    }

    /// For reading: the first divergence in a sentence, then both sides.
    pub fn shown(&self, all: bool) -> String {
        let mut text = format!("  {}\n", self.sentence());
        let _infallible = write!(text, "\n    {:<COLUMN$}   now\n", "then");
        let parts: Vec<_> = self.rows.iter().map(|row| !matches!(row, Row::Same(..))).collect();
        let mut skipped = 0;
        for (n, row) in self.rows.iter().enumerate() {
            let near = parts[n.saturating_sub(CONTEXT)..(n + CONTEXT + 1).min(parts.len())].contains(&true);
            if !all && !near {
                skipped += 1;
                continue;
            }
            if skipped > 0 {
                let _infallible = writeln!(text, "      ... {skipped} the same");
                skipped = 0;
            }
            let (sign, then, now) = match row {
                Row::Same(then, now) => (' ', then.shown(), now.shown()),
                Row::Other(then, now) => ('~', then.shown(), now.shown()),
                Row::Then(then) => ('-', then.shown(), String::new()),
                Row::Now(now) => ('+', String::new(), now.shown()),
            };
            let _infallible = writeln!(text, "  {sign} {then:<COLUMN$} | {now}");
        }
        if skipped > 0 {
            let _infallible = writeln!(text, "      ... {skipped} the same");
        }
        text
    }
}

/// The longest common sequence, with what is between.
fn rows(then: &[Said], now: &[Said]) -> Vec<Row> {
    let width = now.len() + 1;
    let mut longest = vec![0_u32; (then.len() + 1) * width];
    for i in (0..then.len()).rev() {
        for j in (0..now.len()).rev() {
            longest[i * width + j] = if then[i].is_like(&now[j]) {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut rows = Vec::new();
    while i < then.len() || j < now.len() {
        match (then.get(i), now.get(j)) {
            (Some(a), Some(b)) if a.is_like(b) => {
                let row = if a.differs(b) { Row::Other } else { Row::Same };
                rows.push(row(a.clone(), b.clone()));
                (i, j) = (i + 1, j + 1);
            }
            (Some(a), Some(_)) if longest[(i + 1) * width + j] >= longest[i * width + j + 1] => {
                rows.push(Row::Then(a.clone()));
                i += 1;
            }
            (Some(a), None) => {
                rows.push(Row::Then(a.clone()));
                i += 1;
            }
            (_, Some(b)) => {
                rows.push(Row::Now(b.clone()));
                j += 1;
            }
            (None, None) => break,
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(us: u64, what: &str, ms: Option<u64>) -> Said {
        Said { us, what: what.to_owned(), ms }
    }

    #[test]
    fn what_is_missing_and_what_is_new_is_told_apart_from_what_is_more_or_less() {
        let then = [
            said(1, "speaks", Some(1_000)),
            said(2, "clears", None),
            said(3, "truncates item 1 at", Some(900)),
        ];
        let now = [
            said(1, "speaks", Some(1_050)),
            said(4, "truncates item 1 at", Some(300)),
            said(5, "is over", None),
        ];
        let rows = rows(&then, &now);
        assert!(matches!(rows.as_slice(), [Row::Same(..), Row::Then(_), Row::Other(..), Row::Now(_)]));
        let compared = Compared { rows };
        let text = compared.shown(false);
        assert!(text.contains("they part: then") && text.contains("clears, and not now"), "{text}");
        assert!(text.contains("  ~ ") && text.contains("  + ") && text.contains("  - "), "{text}");
    }

    #[test]
    fn settings_are_laid_over_the_recorded_ones_key_by_key() {
        let mut recorded = CallConfig::default();
        recorded.timeouts.dial_ms = 777;
        recorded.greeting = Some("hello".into());
        let over = overridden(
            &recorded,
            "listen = \"1.2.3.4:5\"\n[call]\nbarge_in = false\n[call.timeouts]\nmark_ms = 99\n",
        );
        let over = over.unwrap();
        assert_eq!((over.barge_in, over.timeouts.mark_ms, over.timeouts.dial_ms), (false, 99, 777));
        assert_eq!(over.greeting.as_deref(), Some("hello"));
        for (text, word) in [("x = 1", "[call]"), ("[call]\nbarge = 1", "barge"), ("=", "")] {
            let error = format!("{:#}", overridden(&recorded, text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
