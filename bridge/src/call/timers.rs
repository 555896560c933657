//! Every reason a call has to wake up, by name, and the table of when.

use std::fmt;
use std::time::Instant;

/// A named timer of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// `start` is due.
    Start,
    /// The first `media` is due.
    FirstMedia,
    /// The model's WebSocket is due.
    Dial,
    /// `session.created` is due.
    SessionCreated,
    /// `session.updated` is due.
    SessionUpdated,
    /// More agent audio may be sent.
    Pace,
    /// A mark is overdue.
    Mark,
    /// The first audio of a response is due.
    FirstAudio,
    /// A failed response is asked for again.
    Retry,
    /// The keypad entry is complete.
    Keypad,
    /// The caller's media paused in mid-speech.
    MediaPause,
    /// Nothing at all came from Twilio.
    CallerSilent,
    /// The caller leg's writer stayed full.
    CallerClogged,
    /// The model leg's writer stayed full.
    ModelClogged,
    /// The next ping on the caller leg.
    CallerPing,
    /// The next ping on the model leg.
    ModelPing,
    /// A pong on the caller leg is due.
    CallerPong,
    /// A pong on the model leg is due.
    ModelPong,
    /// A function call takes too long.
    Tool,
    /// The caller has been waiting for a function for so long that they should hear of it.
    Filler,
    /// The caller has been waiting in silence for as long as may be.
    DeadAir,
    /// The caller should have heard the farewell.
    Farewell,
    /// The protected window is at its longest.
    Protection,
    /// The session nears its maximum duration.
    Expiry,
    /// The session may be renewed from now on, or both have been quiet for long enough to do it.
    Quiet,
    /// A try to renew the session is due to begin, or takes too long.
    Renewal,
    /// The longest call.
    CallLimit,
    /// The drain time is over.
    Drain,
    /// The last words are taking too long.
    Notice,
    /// The words of a caller who is gone are waited for no longer.
    LastWords,
    /// The other side does not answer our close.
    Closing,
}

impl Timer {
    const ALL: [Self; 31] = [
        Self::Start,
        Self::FirstMedia,
        Self::Dial,
        Self::SessionCreated,
        Self::SessionUpdated,
        Self::Pace,
        Self::Mark,
        Self::FirstAudio,
        Self::Retry,
        Self::Keypad,
        Self::MediaPause,
        Self::CallerSilent,
        Self::CallerClogged,
        Self::ModelClogged,
        Self::CallerPing,
        Self::ModelPing,
        Self::CallerPong,
        Self::ModelPong,
        Self::Tool,
        Self::Filler,
        Self::DeadAir,
        Self::Farewell,
        Self::Protection,
        Self::Expiry,
        Self::Quiet,
        Self::Renewal,
        Self::CallLimit,
        Self::Drain,
        Self::Notice,
        Self::LastWords,
        Self::Closing,
    ];

    /// The word used in logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::FirstMedia => "first_media",
            Self::Dial => "dial",
            Self::SessionCreated => "session_created",
            Self::SessionUpdated => "session_updated",
            Self::Pace => "pace",
            Self::Mark => "mark",
            Self::FirstAudio => "first_audio",
            Self::Retry => "retry",
            Self::Keypad => "keypad",
            Self::MediaPause => "media_pause",
            Self::CallerSilent => "caller_silent",
            Self::CallerClogged => "caller_clogged",
            Self::ModelClogged => "model_clogged",
            Self::CallerPing => "caller_ping",
            Self::ModelPing => "model_ping",
            Self::CallerPong => "caller_pong",
            Self::ModelPong => "model_pong",
            Self::Tool => "tool",
            Self::Filler => "filler",
            Self::DeadAir => "dead_air",
            Self::Farewell => "farewell",
            Self::Protection => "protection",
            Self::Expiry => "expiry",
            Self::Quiet => "quiet",
            Self::Renewal => "renewal",
            Self::CallLimit => "call_limit",
            Self::Drain => "drain",
            Self::Notice => "notice",
            Self::LastWords => "last_words",
            Self::Closing => "closing",
        }
    }
}

impl fmt::Display for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When each timer fires, if it is set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timers {
    at: [Option<Instant>; Timer::ALL.len()],
    /// The earliest of them: it is asked for after every message, and most messages move another.
    next: Option<(Instant, Timer)>,
}

impl Timers {
    pub(crate) fn set(&mut self, timer: Timer, at: Instant) {
        self.at[timer as usize] = Some(at);
        match self.next {
            Some((_, next)) if next == timer => self.next = self.earliest(),
            Some(next) if next < (at, timer) => {}
            Some(_) | None => self.next = Some((at, timer)),
        }
    }

    /// Sets the timer unless it is set already: the first deadline stands.
    pub(crate) fn set_if_unset(&mut self, timer: Timer, at: Instant) {
        if !self.is_set(timer) {
            self.set(timer, at);
        }
    }

    pub(crate) fn stop(&mut self, timer: Timer) {
        self.at[timer as usize] = None;
        if self.next.is_some_and(|(_, next)| next == timer) {
            self.next = self.earliest();
        }
    }

    pub(crate) fn stop_all(&mut self) {
        *self = Self::default();
    }

    /// Stops everything about the model and the conversation; the caller is still there.
    pub(crate) fn stop_conversation(&mut self) {
        for timer in Timer::ALL {
            let keeps = matches!(
                timer,
                Timer::CallerSilent | Timer::CallerClogged | Timer::CallerPing | Timer::CallerPong
            );
            if !keeps {
                self.stop(timer);
            }
        }
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.at[timer as usize].is_some()
    }

    /// The next deadline and its reason; ties go to the order of the enum.
    pub(crate) const fn next(&self) -> Option<(Instant, Timer)> {
        self.next
    }

    fn earliest(&self) -> Option<(Instant, Timer)> {
        Timer::ALL.iter().filter_map(|&t| self.at[t as usize].map(|at| (at, t))).min()
    }

    /// Takes one timer that is due at `now`, in order of deadline.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = self.next()?;
        (at <= now).then(|| {
            self.stop(timer);
            timer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_place_for_every_timer() {
        for (i, timer) in Timer::ALL.iter().enumerate() {
            assert_eq!(i, *timer as usize, "{timer} stands out of order");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn the_next_timer_is_the_earliest_whatever_was_set_and_stopped() {
        use std::time::Duration;
        let (mut timers, begin) = (Timers::default(), Instant::now());
        let mut draw = 1_u32;
        for _ in 0..10_000 {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let timer = Timer::ALL[(draw >> 8) as usize % Timer::ALL.len()];
            let at = begin + Duration::from_millis(u64::from(draw >> 16) % 50);
            match draw >> 29 {
                0 => timers.stop(timer),
                1 => drop(timers.take_due(at)),
                2 => timers.set_if_unset(timer, at),
                _ => timers.set(timer, at),
            }
            assert_eq!(timers.next(), timers.earliest());
        }
        timers.stop_conversation();
        assert_eq!(timers.next(), timers.earliest());
        timers.stop_all();
        assert_eq!(timers.next(), None);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn when_the_conversation_is_over_only_the_caller_is_watched() {
        let mut timers = Timers::default();
        let now = Instant::now();
        Timer::ALL.iter().for_each(|timer| timers.set(*timer, now));
        timers.stop_conversation();
        let mut left = Vec::new();
        while let Some(timer) = timers.take_due(now) {
            left.push(timer);
        }
        assert_eq!(left, [Timer::CallerSilent, Timer::CallerClogged, Timer::CallerPing, Timer::CallerPong]);
    }
}
