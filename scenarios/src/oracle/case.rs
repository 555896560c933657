//! One rule, one call before its judge, and what was found.

use super::terms::Terms;
use crate::oracle::audio_attribution::Hearing;
use crate::sim::trace::{CallTrace, Trace};
use mocks::peer::At;
use std::fmt;

/// One rule, and the function that holds traces against it.
#[derive(Clone, Copy)]
pub struct Oracle {
    /// The name used in reports, on the command line and by the saboteurs.
    pub name: &'static str,
    /// What must be true, and why it matters, in one sentence.
    pub about: &'static str,
    /// Every way in which this trace breaks the rule.
    pub judge: fn(&Trace) -> Vec<Violation>,
}

impl fmt::Debug for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which oracle says so.
    pub oracle: &'static str,
    /// In which call.
    pub call: usize,
    /// When it showed.
    pub at: At,
    /// What was wrong, with the numbers.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (call {}, {})", self.oracle, self.what, self.call, self.at)
    }
}

/// One call before its judge.
pub(crate) struct Case<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) index: usize,
    pub(crate) call: &'a CallTrace,
    pub(crate) hearing: &'a Hearing,
    pub(crate) terms: Terms<'a>,
}

/// What a judge has to say about one call.
pub(crate) struct Findings {
    oracle: &'static str,
    call: usize,
    found: Vec<Violation>,
}

impl Findings {
    pub(crate) fn say(&mut self, at: At, what: impl Into<String>) {
        self.found.push(Violation { oracle: self.oracle, call: self.call, at, what: what.into() });
    }
}

/// Judges every call of a trace by itself.
pub(crate) fn each(
    trace: &Trace,
    oracle: &'static str,
    judge: impl Fn(&Case<'_>, &mut Findings),
) -> Vec<Violation> {
    let hearing = Hearing::of_all(trace);
    let mut all = Vec::new();
    for (index, (call, hearing)) in trace.calls.iter().zip(hearing.iter()).enumerate() {
        let case = Case { trace, index, call, hearing, terms: Terms::of(trace, index) };
        let mut findings = Findings { oracle, call: index, found: Vec::new() };
        judge(&case, &mut findings);
        all.append(&mut findings.found);
    }
    all
}

/// Microseconds as milliseconds, for reading.
pub(crate) fn in_ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}
