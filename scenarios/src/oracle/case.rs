//! One rule, one call before its judge, and what was found.

use super::tolerance::Tolerance;
use crate::oracle::audio_attribution::Attribution;
use crate::sim::trace::{CallTrace, Trace};
use mocks::peer::At;
use std::fmt;

/// One rule, and the function that holds traces against it.
#[derive(Clone, Copy)]
pub struct Oracle {
    /// The name used in reports, on the command line and by the faults.
    pub name: &'static str,
    /// What must be true, and why it matters, in one sentence.
    pub about: &'static str,
    /// Every way in which this trace breaks the rule.
    pub check: fn(&Trace) -> Vec<Violation>,
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
pub(crate) struct CallUnderTest<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) index: usize,
    pub(crate) call: &'a CallTrace,
    pub(crate) attribution: &'a Attribution,
    pub(crate) tolerance: Tolerance<'a>,
}

/// What a judge has to say about one call.
pub(crate) struct Violations {
    oracle: &'static str,
    call: usize,
    found: Vec<Violation>,
}

impl Violations {
    pub(crate) fn push(&mut self, at: At, what: impl Into<String>) {
        self.found.push(Violation { oracle: self.oracle, call: self.call, at, what: what.into() });
    }
}

/// Judges every call of a trace by itself.
pub(crate) fn each(
    trace: &Trace,
    oracle: &'static str,
    check: impl Fn(&CallUnderTest<'_>, &mut Violations),
) -> Vec<Violation> {
    let attribution = Attribution::of_all(trace);
    let mut all = Vec::new();
    for (index, (call, attribution)) in trace.calls.iter().zip(attribution.iter()).enumerate() {
        let case = CallUnderTest { trace, index, call, attribution, tolerance: Tolerance::of(trace, index) };
        let mut violations = Violations { oracle, call: index, found: Vec::new() };
        check(&case, &mut violations);
        all.append(&mut violations.found);
    }
    all
}

/// Microseconds as milliseconds, for reading.
pub(crate) fn in_ms(us: u64) -> f64 {
    us as f64 / 1_000.0
}
