//! The judges: what must be true of every call, whatever the scenario and whichever bridge.
//!
//! An oracle sees one [`Trace`]: what the two ends saw, heard and were told. It never asks the bridge how it did,
//! except where the ends cannot know: the name of an end, the final transcript, the memory held. It knows the
//! scenario's weather, so its tolerances are computed, named, and tight when the weather is calm.
//!
//! Every oracle is judged itself: [`crate::sabotage`] holds a spoiled bridge that it must catch.
//!
//! * [`barge_in`][]: clear, fence, heard.
//! * [`audio`][]: bytes out, bytes in, pace, latency, audible.
//! * [`greet`][]: greet.
//! * [`keypad`][]: keys.
//! * [`protocol`][]: legal, one, format, mark, tool, start.
//! * [`lifecycle`][]: tear, go on, robust, owner, text, expect.
//! * [`leaving`][]: auth, bye.
//! * [`renewal`][]: renew.
//! * [`limits`][]: bound.
//! * [`terms`][]: what the scenario grants: weather, settings, slack; [`slack`][]: what real time grants.

pub mod audio;
pub mod barge_in;
pub mod greet;
pub mod keypad;
pub mod leaving;
pub mod lifecycle;
pub mod limits;
pub mod protocol;
pub mod renewal;
pub mod slack;
pub mod terms;

use crate::listen::Hearing;
use crate::trace::{CallTrace, Trace};
use mocks::peer::At;
use std::fmt;
use terms::Terms;

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

/// Every oracle, in the order of a report: the ear first, then the protocol, then the life of the call.
pub const ALL: &[Oracle] = &[
    barge_in::CLEAR,
    barge_in::FENCE,
    barge_in::HEARD,
    audio::BYTES_OUT,
    audio::BYTES_IN,
    audio::PACE,
    audio::LATENCY,
    audio::AUDIBLE,
    greet::GREET,
    keypad::KEYS,
    protocol::LEGAL,
    protocol::ONE,
    protocol::FORMAT,
    protocol::MARK,
    protocol::TOOL,
    protocol::START,
    lifecycle::TEAR,
    lifecycle::GOON,
    lifecycle::ROBUST,
    lifecycle::OWNER,
    leaving::AUTH,
    leaving::BYE,
    renewal::RENEW,
    lifecycle::TEXT,
    lifecycle::EXPECT,
    limits::BOUND,
];

/// The oracle of this name.
pub fn named(name: &str) -> Option<&'static Oracle> {
    ALL.iter().find(|oracle| oracle.name == name)
}

/// Holds a trace against every rule.
pub fn judge(trace: &Trace) -> Vec<Violation> {
    ALL.iter().flat_map(|oracle| (oracle.judge)(trace)).collect()
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

#[cfg(test)]
pub(crate) mod bench;
