//! What follows the calls: logs, metrics, traces, transcripts, the live page.

use crate::call::event::CallEvent;
use crate::runtime::meter::Traffic;
use crate::runtime::registry::CallKey;
use std::time::Instant;

/// Observes every call. Its methods run in the call's own task, and one that is slow slows that call: an observer that has
/// to wait for something queues a note and returns, and counts the notes that find no room.
///
/// For each call: `begins`, then events and traffic, then `gone`, whatever became of it. Several observers are one as
/// a pair, and one that may be missing is an `Option`.
pub trait Observe: Clone + Send + Sync + 'static {
    /// A caller's WebSocket was opened at `now`, which is `unix` on the wall clock, in seconds.
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        let _ = (call, now, unix);
    }

    /// `event` happened on `call` at `now`.
    fn event(&self, call: CallKey, now: Instant, event: &CallEvent);

    /// So much went through since the last time. About once a second, and once more behind [`CallEvent::Ended`].
    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        let _ = (call, now, traffic);
    }

    /// Nothing of the call is left. Without [`CallEvent::Ended`] before it, the call panicked or was cut.
    fn gone(&self, call: CallKey) {
        let _ = call;
    }
}

impl<A: Observe, B: Observe> Observe for (A, B) {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        self.0.begins(call, now, unix);
        self.1.begins(call, now, unix);
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        self.0.event(call, now, event);
        self.1.event(call, now, event);
    }

    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        self.0.traffic(call, now, traffic);
        self.1.traffic(call, now, traffic);
    }

    fn gone(&self, call: CallKey) {
        self.0.gone(call);
        self.1.gone(call);
    }
}

impl<O: Observe> Observe for Option<O> {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        self.iter().for_each(|observe| observe.begins(call, now, unix));
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        self.iter().for_each(|observe| observe.event(call, now, event));
    }

    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        self.iter().for_each(|observe| observe.traffic(call, now, traffic));
    }

    fn gone(&self, call: CallKey) {
        self.iter().for_each(|observe| observe.gone(call));
    }
}

/// Observes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observe for Unobserved {
    fn event(&self, _call: CallKey, _now: Instant, _event: &CallEvent) {}
}
