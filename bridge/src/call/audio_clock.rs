//! When was that said? The server counts the caller's audio in milliseconds from the session's first; this says at which
//! moment so much of it had been sent.

use super::settings::ms;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Moments remembered: more than two seconds of frames. What is older is reckoned back from the oldest.
const MOMENTS_MAX: usize = 128;

/// The clock of one session's caller audio.
#[derive(Debug, Default)]
pub(crate) struct AudioClock {
    /// Audio sent, and when.
    moments: VecDeque<(Duration, Instant)>,
    sent: Duration,
}

impl AudioClock {
    /// So much more audio was sent. It ends at this moment: what waited before it waited for as long as it lasts.
    pub(crate) fn sent(&mut self, audio: Duration, now: Instant) {
        self.sent += audio;
        match self.moments.back_mut() {
            Some((end, at)) if *at == now => *end = self.sent,
            _ => {
                if self.moments.len() >= MOMENTS_MAX {
                    self.moments.pop_front();
                }
                self.moments.push_back((self.sent, now));
            }
        }
    }

    /// When this position was spoken; `None` when it was not sent yet, or there is no such moment.
    pub(crate) fn when(&self, position_ms: u64) -> Option<Instant> {
        let position = ms(position_ms);
        let (end, at) = self.moments.iter().find(|(end, _)| *end >= position)?;
        at.checked_sub(*end - position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn zero() -> Instant {
        Instant::now() + Duration::from_secs(3_600)
    }

    #[test]
    fn a_position_was_spoken_when_its_frame_was() {
        let (zero, mut t) = (zero(), AudioClock::default());
        for frame in 1..=50 {
            t.sent(ms(20), zero + ms(frame * 20 + 7));
        }
        assert_eq!(t.when(500), Some(zero + ms(507)));
        assert_eq!(t.when(490), Some(zero + ms(497)));
        assert_eq!((t.when(1_000), t.when(1_001)), (Some(zero + ms(1_007)), None));
    }

    #[test]
    fn what_waited_was_spoken_while_it_waited() {
        let (zero, mut t) = (zero(), AudioClock::default());
        t.sent(ms(1_000), zero);
        t.sent(ms(800), zero);
        assert_eq!(t.when(300), zero.checked_sub(ms(1_500)));
    }

    #[test]
    fn what_is_forgotten_is_reckoned_back() {
        let (zero, mut t) = (zero(), AudioClock::default());
        for frame in 1..=500 {
            t.sent(ms(20), zero + ms(frame * 20));
        }
        assert_eq!(t.moments.len(), MOMENTS_MAX);
        assert_eq!(t.when(100), Some(zero + ms(100)));
    }

    #[test]
    fn silence_that_was_supplied_at_once_takes_no_time() {
        let (zero, mut t) = (zero(), AudioClock::default());
        for frame in 1..=50 {
            t.sent(ms(20), zero + ms(frame * 20));
        }
        t.sent(ms(1_000), zero + ms(1_750));
        assert_eq!(t.when(1_000), Some(zero + ms(1_000)));
    }
}
