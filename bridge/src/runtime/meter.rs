//! What goes through a call's two legs, measured where it passes: in the call's own loop, from the moment a frame was
//! read to the moment its answer was with the operating system.
//!
//! Numbers are gathered and handed out about once a second, so that to be measured costs a call next to nothing.

use crate::call::{Leg, Transmit, Waiting};
use crate::wire::realtime::ClientEvent;
use crate::wire::twilio::ToTwilio;
use std::time::{Duration, Instant};

/// How often a call says what went through it, while anything does.
const EVERY: Duration = Duration::from_secs(1);
/// Latencies kept until then. Both ways together carry some hundred frames a second.
const LATENCIES_MAX: usize = 512;

/// What went through one leg since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LegTraffic {
    /// Messages read.
    pub received: u64,
    /// Bytes read, without what WebSocket, TLS and TCP add.
    pub received_bytes: u64,
    /// Messages written, or waiting to be.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Messages that wait to be written now.
    pub queued: usize,
}

/// What went through a call since the last time, and what waits in it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Towards Twilio.
    pub caller: LegTraffic,
    /// Towards the model.
    pub model: LegTraffic,
    /// How long each frame of the caller that went on at once was inside the bridge.
    pub uplink: Vec<Duration>,
    /// The same for audio of the model, without what waits for playback to come that far.
    pub downlink: Vec<Duration>,
    /// What the call holds now.
    pub waiting: Waiting,
}

/// Gathers the traffic of a call.
#[derive(Debug)]
pub(crate) struct Meter {
    traffic: Traffic,
    since: Instant,
    /// What is being answered, and when it was read.
    cause: Option<(Leg, Instant)>,
}

impl Meter {
    pub(crate) fn new(now: Instant) -> Self {
        Self { traffic: Traffic::default(), since: now, cause: None }
    }

    fn leg(&mut self, leg: Leg) -> &mut LegTraffic {
        match leg {
            Leg::Caller => &mut self.traffic.caller,
            Leg::Model => &mut self.traffic.model,
        }
    }

    /// A text frame was read; what is transmitted until [`Meter::answered`] answers it.
    pub(crate) fn received(&mut self, leg: Leg, len: usize, now: Instant) {
        let traffic = self.leg(leg);
        traffic.received += 1;
        traffic.received_bytes += len as u64;
        self.cause = Some((leg, now));
    }

    /// Everything that the last frame led to was transmitted.
    pub(crate) const fn answered(&mut self) {
        self.cause = None;
    }

    /// A text frame is transmitted. Returns since when its audio is inside the bridge, if it passes through at once.
    pub(crate) fn sends(&mut self, transmit: &Transmit, leg: Leg, len: usize) -> Option<Instant> {
        let traffic = self.leg(leg);
        traffic.sent += 1;
        traffic.sent_bytes += len as u64;
        let (from, since) = self.cause?;
        let passes = match (from, transmit) {
            (Leg::Caller, Transmit::Model(ClientEvent::AppendAudio { .. })) => true,
            (Leg::Model, Transmit::Caller { message: ToTwilio::Media { .. }, .. }) => true,
            (Leg::Caller | Leg::Model, _) => false,
        };
        passes.then_some(since)
    }

    /// Frames were written to a leg this long after what they answer was read.
    pub(crate) fn wrote(&mut self, leg: Leg, took: &mut Vec<Duration>) {
        let latencies = match leg {
            Leg::Caller => &mut self.traffic.downlink,
            Leg::Model => &mut self.traffic.uplink,
        };
        let room = LATENCIES_MAX.saturating_sub(latencies.len());
        latencies.extend(took.drain(..).take(room));
    }

    /// It is time to hand out what was gathered.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= EVERY
    }

    /// Hands it out.
    pub(crate) fn take(&mut self, waiting: Waiting, queued: [usize; 2], now: Instant) -> Traffic {
        self.since = now;
        let mut traffic = std::mem::take(&mut self.traffic);
        [traffic.caller.queued, traffic.model.queued] = queued;
        traffic.waiting = waiting;
        traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media() -> Transmit {
        Transmit::Caller { stream_sid: "MZ1".into(), message: ToTwilio::Media { audio: vec![0; 160] } }
    }

    #[test]
    fn only_audio_that_passes_through_at_once_is_timed() {
        let now = crate::base::clock::now();
        let mut meter = Meter::new(now);
        let append = Transmit::Model(ClientEvent::AppendAudio { audio: vec![0; 960] });
        assert_eq!(meter.sends(&media(), Leg::Caller, 300), None, "paced: nothing was read for it");
        meter.received(Leg::Caller, 300, now);
        assert_eq!(meter.sends(&append, Leg::Model, 1_300), Some(now));
        assert_eq!(
            meter.sends(&media(), Leg::Caller, 300),
            None,
            "the caller's own frame does not lead to it"
        );
        meter.answered();
        assert_eq!(meter.sends(&append, Leg::Model, 1_300), None);
        meter.received(Leg::Model, 9_000, now);
        assert_eq!(meter.sends(&media(), Leg::Caller, 300), Some(now));
    }

    #[test]
    fn what_is_handed_out_is_counted_once() {
        let now = crate::base::clock::now();
        let mut meter = Meter::new(now);
        meter.received(Leg::Caller, 300, now);
        meter.sends(&media(), Leg::Caller, 200);
        meter.wrote(Leg::Caller, &mut vec![Duration::from_millis(3); LATENCIES_MAX + 1]);
        assert!(!meter.is_due(now) && meter.is_due(now + EVERY));
        let waiting = Waiting { uplink_bytes: 160, downlink_bytes: 320 };
        let traffic = meter.take(waiting, [7, 8], now + EVERY);
        let caller = LegTraffic { received: 1, received_bytes: 300, sent: 1, sent_bytes: 200, queued: 7 };
        assert_eq!((traffic.caller, traffic.model.queued, traffic.waiting), (caller, 8, waiting));
        assert_eq!(traffic.downlink.len(), LATENCIES_MAX, "bounded");
        assert_eq!(meter.take(Waiting::default(), [0, 0], now), Traffic::default());
    }
}
