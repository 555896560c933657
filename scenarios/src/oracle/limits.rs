//! Everything has a limit.

use super::case::{Oracle, Violation, each};
use crate::sim::trace::Trace;
use bridge::call::event::CallEvent;

/// What a call may hold beyond its configured limits: one message of each leg and one second of audio in pieces.
const PIECES_MS: u64 = 1_000;
/// Bytes of a millisecond of 16-bit audio at 24 kHz.
const PCM_BYTES_PER_MS: u64 = 48;
/// Bytes of a millisecond of G.711.
const G711_BYTES_PER_MS: u64 = 8;

/// See [`Oracle::about`].
pub const MEMORY_BOUNDED: Oracle = Oracle {
    name: "memory_bounded",
    about: "A call holds no more audio than its limits say, whatever it is sent, because a thousand calls share one \
            machine.",
    check: bound,
};

fn bound(trace: &Trace) -> Vec<Violation> {
    each(trace, MEMORY_BOUNDED.name, |case, violations| {
        let limits = &case.tolerance.config.limits;
        let per_ms = if case.tolerance.wanted_format() == Some("audio/pcm") {
            PCM_BYTES_PER_MS
        } else {
            G711_BYTES_PER_MS
        };
        let most = (limits.max_buffered_ms + PIECES_MS) * per_ms + (limits.backlog_ms + PIECES_MS) * per_ms;
        for (at, event) in &case.call.bridge {
            if let CallEvent::Ended { counts, .. } = event
                && counts.peak_held_bytes > most
            {
                let held = counts.peak_held_bytes;
                violations.push(*at, format!("{held} bytes were held at one time; the limits allow {most}"));
            }
        }
        let room = case.tolerance.ear_limit();
        let fullest = case
            .attribution
            .arrivals
            .iter()
            .map(|a| (case.attribution.queued(a.at), a.at))
            .max_by_key(|(queued, at)| (*queued, u64::MAX - at.0));
        if let Some((queued, at)) = fullest.filter(|(queued, _)| *queued > room) {
            violations.push(at, format!("{queued} bytes were queued at the ear, which holds {room}"));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::bench::Bench;
    use super::*;

    #[test]
    fn holding_too_much_is_found() {
        let trace = Bench::answered(1_500).transcript(1.0).held(1_000_000).trace();
        assert_eq!(bound(&trace), []);
        let found = bound(&Bench::answered(1_500).transcript(1.0).held(40_000_000).trace());
        assert!(found.iter().any(|v| v.what.contains("40000000 bytes")), "{found:?}");
    }
}
