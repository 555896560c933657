//! The judges: what must be true of every call, whatever the scenario and whichever bridge.
//!
//! An oracle sees one [`Trace`]: what the two ends saw, heard and were told. It never asks the bridge how it did,
//! except where the ends cannot know: the name of an end, the final transcript, the memory held. It knows the
//! scenario's network, so its tolerances are computed, named, and tight when the network is ideal.
//!
//! Every oracle is judged itself: [`crate::faults::injection`] holds a spoiled bridge that it must catch.
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
//! * [`tolerance`][]: what the scenario grants: network, settings, slack; [`real_time`][]: what real time grants.

pub mod audio;
pub mod audio_attribution;
pub mod barge_in;
pub(crate) mod case;
pub mod explain;
pub mod greet;
pub mod keypad;
pub mod leaving;
pub mod lifecycle;
pub mod limits;
pub mod milestones;
pub mod protocol;
pub mod real_time;
pub mod renewal;
pub(crate) mod sessions;
mod speech;
pub mod tolerance;

pub use audio_attribution::judging;
pub use case::{Oracle, Violation};

use crate::sim::trace::Trace;

/// Every oracle, in the order of a report: the ear first, then the protocol, then the life of the call.
pub const ALL: &[Oracle] = &[
    barge_in::CLEAR_ON_BARGE_IN,
    barge_in::NO_STALE_AUDIO,
    barge_in::TRUNCATION_POSITION,
    audio::DOWNLINK_INTACT,
    audio::UPLINK_INTACT,
    audio::PACING,
    audio::RESPONSE_LATENCY,
    audio::NO_DEAD_AIR,
    greet::GREETING_GUARD,
    keypad::DTMF_DELIVERED,
    protocol::PROTOCOL_VALID,
    protocol::SINGLE_RESPONSE,
    protocol::FORMAT_CONFIRMED,
    protocol::MARKS_UNIQUE,
    protocol::TOOL_CALLS_ANSWERED,
    protocol::OPENING_ORDER,
    lifecycle::TEARDOWN,
    lifecycle::SURVIVES_MODEL_ERROR,
    lifecycle::SURVIVES_BAD_INPUT,
    lifecycle::ONE_STREAM_PER_CALL,
    leaving::STREAM_AUTH,
    leaving::FAREWELL_HEARD,
    renewal::SESSION_RENEWAL,
    lifecycle::TRANSCRIPT,
    lifecycle::SCENARIO_EXPECTATIONS,
    limits::MEMORY_BOUNDED,
];

/// The oracle of this name.
pub fn named(name: &str) -> Option<&'static Oracle> {
    ALL.iter().find(|oracle| oracle.name == name)
}

/// Holds a trace against every rule.
pub fn judge(trace: &Trace) -> Vec<Violation> {
    judging(trace, || ALL.iter().flat_map(|oracle| (oracle.check)(trace)).collect())
}

#[cfg(test)]
pub(crate) mod bench;
