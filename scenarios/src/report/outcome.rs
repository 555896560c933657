//! What became of one scenario on one backend, told for a terminal.

use crate::audio::golden_audio;
use crate::model::backend::Backend;
use crate::model::seed::Seed;
use crate::oracle::audio::{Answer, Figures};
use crate::oracle::explain;
use crate::oracle::milestones;
use crate::oracle::{self, Oracle, Violation};
use crate::sim::thread_cpu;
use crate::sim::trace::Trace;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

/// Violations of one oracle told in full; the rest is counted.
const TOLD: usize = 3;

/// What became of one scenario on one backend.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The scenario: its name, or the file it came from.
    pub scenario: String,
    /// Where it was played.
    pub backend: Backend,
    /// With which seed.
    pub seed: Seed,
    /// Simulated milliseconds of all its calls.
    pub call_ms: u64,
    /// Processor time of playing and judging it, where the system tells.
    pub cpu: Option<Duration>,
    /// Every broken rule, already told: the violation and the lines around it.
    pub problems: Vec<(String, String)>,
    /// The violations among the problems, with their places.
    pub violations: Vec<Violation>,
    /// How many oracles found something.
    pub violated: usize,
    /// The fault in the bridge, if there was one: see [`crate::faults::injection`].
    pub sabotage: Option<&'static str>,
    /// The command that replayed it, if it is a recorded call.
    pub replayed: Option<String>,
    /// What was said then beside what is said now, call by call, if it is a recorded call: as JSON.
    pub compared: Vec<serde_json::Value>,
    /// The command that judges a foreign bridge by it, if it was one.
    pub attached: Option<String>,
    /// What it reached.
    pub reached: BTreeSet<&'static str>,
    /// What it measured.
    pub figures: Figures,
    /// From each taking of the floor to the agent's last sample that was played, ms.
    pub drains: Vec<f64>,
    /// [`Trace::hash`], when it was asked for.
    pub hash: Option<String>,
}

impl Outcome {
    /// Judges a trace; `cpu` is what playing it took.
    pub fn of(trace: &Trace, shown_as: &str, cpu: Option<Duration>) -> Self {
        let before = thread_cpu();
        let mut outcome = oracle::judging(trace, || Self::judged(trace, shown_as, cpu));
        let judging = thread_cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
        outcome.cpu = cpu.zip(judging).map(|(playing, judging)| playing + judging);
        outcome
    }

    fn judged(trace: &Trace, shown_as: &str, cpu: Option<Duration>) -> Self {
        let mut outcome = Self::unjudged(trace, shown_as, cpu);
        for oracle in oracle::ALL {
            outcome.blame(trace, oracle, &(oracle.check)(trace));
        }
        for wanted in &trace.scenario.milestones {
            if !outcome.reached.contains(wanted.as_str()) {
                let words =
                    format!("the milestone `{wanted}`, which this scenario was written for, was not reached");
                outcome.problems.push((words, String::new()));
            }
        }
        outcome
    }

    /// What a trace reached and measured, before any oracle judges it.
    pub(crate) fn unjudged(trace: &Trace, shown_as: &str, cpu: Option<Duration>) -> Self {
        Self {
            scenario: shown_as.to_owned(),
            backend: trace.backend,
            seed: trace.seed,
            call_ms: trace.call_ms(),
            cpu,
            problems: Vec::new(),
            violations: Vec::new(),
            violated: 0,
            sabotage: None,
            replayed: None,
            attached: None,
            compared: Vec::new(),
            reached: milestones::reached(trace).into_iter().collect(),
            figures: oracle::audio::figures(trace),
            drains: (0..trace.calls.len())
                .flat_map(|call| golden_audio::drains(trace, call))
                .map(|drain| drain.total)
                .collect(),
            hash: None,
        }
    }

    /// Adds what one oracle found in this trace.
    pub(crate) fn blame(&mut self, trace: &Trace, oracle: &Oracle, found: &[Violation]) {
        self.violated += usize::from(!found.is_empty());
        for violation in found.iter().take(TOLD) {
            self.problems.push((said(violation), explain::around(trace, violation)));
            self.violations.push(violation.clone());
        }
        if found.len() > TOLD {
            self.problems
                .push((format!("{}: {} more of these", oracle.name, found.len() - TOLD), String::new()));
        }
    }

    /// Nothing was wrong.
    pub fn passed(&self) -> bool {
        self.problems.is_empty()
    }

    fn verdict(&self) -> &'static str {
        if self.passed() { "passed" } else { "FAILED" }
    }

    /// What follows `scn run` or `scn explain` to play it again, if it is no recorded call.
    fn how(&self) -> String {
        let Self { scenario, backend, seed, sabotage, .. } = self;
        let spoiled =
            sabotage.map(|name| format!(" --fault {}", crate::base::output::word(name))).unwrap_or_default();
        format!("{scenario} --backend {backend} --seed {seed}{spoiled}")
    }

    /// The command that plays it again.
    pub fn again(&self) -> String {
        match (&self.replayed, &self.attached) {
            (Some(command), _) => format!("cargo {command}"),
            (None, Some(command)) => command.clone(),
            (None, None) => format!("cargo scn run {}", self.how()),
        }
    }

    /// The command that tells it line by line.
    pub fn explains(&self) -> String {
        match (&self.replayed, &self.attached) {
            (Some(command), _) => format!("cargo {command} --all"),
            (None, Some(command)) => command.clone(),
            (None, None) => format!("cargo scn explain {}", self.how()),
        }
    }

    /// One line: the verdict, and of what.
    pub fn line(&self) -> String {
        format!("{}  {}  {}", self.verdict(), self.backend, self.scenario)
    }
}

pub(super) fn said(violation: &Violation) -> String {
    let seconds = violation.at.0 as f64 / 1e6;
    format!("{}: {}     (call {}, {seconds:+.3} s)", violation.oracle, violation.what, violation.call)
}

/// One row for each outcome.
pub fn table(outcomes: &[Outcome]) -> String {
    let width =
        outcomes.iter().map(|outcome| outcome.scenario.len()).max().unwrap_or(0).max("scenario".len());
    let mut text = format!(
        "{:<width$}  {:<9}  {:<7}  {:>10}  {:>6}  {:>8}\n",
        "scenario", "backend", "verdict", "simulated", "judged", "violated"
    );
    for outcome in outcomes {
        let _infallible = writeln!(
            text,
            "{:<width$}  {:<9}  {:<7}  {:>8.1} s  {:>6}  {:>8}",
            outcome.scenario,
            outcome.backend,
            outcome.verdict(),
            outcome.call_ms as f64 / 1e3,
            oracle::ALL.len(),
            outcome.violated,
        );
    }
    text
}

/// A failure: what was wrong, what led to it, and the next command.
pub fn failure(outcome: &Outcome) -> String {
    let Outcome { scenario, backend, seed, .. } = outcome;
    let mut text = format!("FAILED  {scenario}    backend {backend}    seed {seed}\n");
    for (what, around) in &outcome.problems {
        let _infallible = write!(text, "\n  {what}\n");
        if !around.is_empty() {
            let _infallible = write!(text, "\n{around}");
        }
    }
    let (again, explains) = (outcome.again(), outcome.explains());
    let _infallible = writeln!(text, "\n  again      {again}");
    // What was played against a foreign process cannot be told again without it.
    if explains != again {
        let _infallible = writeln!(text, "  the call   {explains}");
    }
    text
}

/// How many call-seconds these are for a second of processor time, if any was counted.
pub fn call_seconds_per_cpu_second(call_ms: u64, cpu: Duration) -> Option<f64> {
    (!cpu.is_zero()).then(|| call_ms as f64 / 1e3 / cpu.as_secs_f64())
}

/// What was played, and how fast: playing and judging.
pub fn speed(call_ms: u64, cpu: Option<Duration>) -> String {
    let seconds = call_ms as f64 / 1e3;
    match cpu.and_then(|cpu| Some((cpu, call_seconds_per_cpu_second(call_ms, cpu)?))) {
        Some((cpu, speed)) => format!(
            "{seconds:.1} call-seconds in {:.2} s of processor time: {speed:.0} call-seconds a second",
            cpu.as_secs_f64()
        ),
        None => format!("{seconds:.1} call-seconds (this system does not tell processor time)"),
    }
}

/// Speed, figures and milestones of the whole run. `whole` when the whole catalogue was played on every backend.
pub fn summary(outcomes: &[Outcome], whole: bool) -> String {
    let passed = outcomes.iter().filter(|outcome| outcome.passed()).count();
    let mut text = format!("{} runs: {passed} passed, {} failed\n", outcomes.len(), outcomes.len() - passed);
    for backend in Backend::ALL {
        let of_backend: Vec<_> = outcomes.iter().filter(|outcome| outcome.backend == backend).collect();
        if of_backend.is_empty() {
            continue;
        }
        let call_ms = of_backend.iter().map(|outcome| outcome.call_ms).sum();
        let cpu = of_backend.iter().map(|outcome| outcome.cpu).sum();
        let _infallible = writeln!(text, "{backend:<10} {}", speed(call_ms, cpu));
    }
    for backend in Backend::ALL {
        let of_backend: Vec<_> = outcomes.iter().filter(|outcome| outcome.backend == backend).collect();
        if !of_backend.is_empty() {
            text.push_str(&figures(backend, &of_backend));
        }
    }
    let reached: BTreeSet<_> = outcomes.iter().flat_map(|outcome| outcome.reached.iter().copied()).collect();
    let possible = possible(outcomes).len();
    let _infallible = writeln!(text, "milestones {} of {possible} reached", reached.len());
    if whole {
        for missed in missed(outcomes) {
            let _infallible = writeln!(text, "           not reached: {missed}");
        }
    }
    text
}

/// The milestones that can be reached on the backends of these outcomes.
fn possible(outcomes: &[Outcome]) -> Vec<&'static str> {
    let backends: Vec<_> = outcomes.iter().map(|outcome| outcome.backend).collect();
    milestones::possible(&backends)
}

/// The milestones no outcome reached.
pub fn missed(outcomes: &[Outcome]) -> Vec<&'static str> {
    let reached: BTreeSet<_> = outcomes.iter().flat_map(|outcome| outcome.reached.iter().copied()).collect();
    possible(outcomes).into_iter().filter(|name| !reached.contains(name)).collect()
}

fn figures(backend: Backend, outcomes: &[&Outcome]) -> String {
    let mut sum = Sum::default();
    outcomes.iter().for_each(|outcome| sum.add(outcome));
    let mut text = String::new();
    for (what, spread) in sum.spreads() {
        let _infallible = writeln!(text, "{backend:<10} {what}: {spread}");
    }
    let _infallible =
        writeln!(text, "{backend:<10} stale audio after interruptions: {} bytes", sum.stale_bytes);
    text
}

/// The figures of several runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    pub(super) truncation_errors: Vec<f64>,
    pub(super) clear_latencies: Vec<f64>,
    pub(super) drains: Vec<f64>,
    pub(super) answers: Vec<Answer>,
    pub(super) stale_bytes: usize,
}

impl Sum {
    pub(super) fn add(&mut self, outcome: &Outcome) {
        let Figures { truncation_errors, clear_latencies, stale_bytes, answers } = &outcome.figures;
        self.truncation_errors.extend(truncation_errors);
        self.clear_latencies.extend(clear_latencies);
        self.drains.extend(&outcome.drains);
        self.answers.extend(answers);
        self.stale_bytes += stale_bytes;
    }

    /// How each figure lies, those left out that nothing was measured of.
    pub(super) fn spreads(&self) -> Vec<(&'static str, Spread)> {
        let of = |part: fn(&Answer) -> f64| self.answers.iter().map(part).collect::<Vec<_>>();
        let all = [
            ("caller silent to answer heard", of(|answer| answer.mic_to_mic)),
            ("  of it the bridge", of(|answer| answer.bridge)),
            ("  of it the model", of(|answer| answer.model)),
            ("  of it turn detection", of(|answer| answer.detection)),
            ("  of it the network", of(|answer| answer.network)),
        ];
        [
            ("cut less heard", self.truncation_errors.clone()),
            ("speech_started to clear at the caller", self.clear_latencies.clone()),
            ("the floor taken to the agent's last sample", self.drains.clone()),
        ]
        .into_iter()
        .chain(all)
        .filter_map(|(what, values)| Some((what, Spread::of(values)?)))
        .collect()
    }
}

/// How values lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(super) count: usize,
    pub(super) least: f64,
    pub(super) middle: f64,
    pub(super) p95: f64,
    pub(super) most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values.get(((values.len() - 1) as f64 * share).round() as usize).copied();
        if values.is_empty() {
            return None;
        }
        Some(Self { count: values.len(), least: at(0.0)?, middle: at(0.5)?, p95: at(0.95)?, most: at(1.0)? })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, least, middle, p95, most } = self;
        write!(f, "least {least:.1}, median {middle:.1}, 95 % {p95:.1}, most {most:.1} ms (of {count})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::scenario::Scenario;
    use crate::sim;

    fn played(expect: &str) -> Outcome {
        let text = format!(
            "purpose = \"A test.\"\n[[call]]\ncaller.steps = [{{ waits = 400 }}, \"hangs_up\"]\n[expect]\n{expect}"
        );
        let scenario = Scenario::from_toml("test/report", &text).unwrap();
        Outcome::of(&sim::play(Backend::Memory, &scenario, Seed(9)), &scenario.name, None)
    }

    #[test]
    fn a_good_run_is_one_row() {
        let outcome = played("end = \"stopped\"");
        assert!(outcome.passed(), "{:?}", outcome.problems);
        let table = table(std::slice::from_ref(&outcome));
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("test/report  memory     passed"), "{table}");
    }

    #[test]
    fn a_failure_hands_out_the_next_command() {
        let outcome = played("end = \"drained\"");
        assert!(!outcome.passed());
        let text = failure(&outcome);
        assert!(text.starts_with("FAILED  test/report    backend memory    seed 9\n"), "{text}");
        assert!(text.contains("scenario_expectations: ") && text.contains('▸'), "{text}");
        assert!(text.contains("cargo scn explain test/report --backend memory --seed 9"), "{text}");
        assert!(summary(&[outcome], false).starts_with("1 runs: 0 passed, 1 failed"));
    }

    #[test]
    fn a_spread_is_read_from_sorted_values() {
        let spread = Spread::of((0..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(spread.to_string(), "least 0.0, median 50.0, 95 % 95.0, most 100.0 ms (of 101)");
        assert!(Spread::of(Vec::new()).is_none());
    }
}
