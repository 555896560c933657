//! Limits for log lines that a failure or a stranger could repeat without end: a flood of them fills no disk and hides
//! nothing else. What is left out is named in the next line; what happened is counted elsewhere, logged or not.

use crate::base::clock;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pace of one kind of line.
#[derive(Debug)]
pub(crate) struct LogLimit {
    /// Lines that may come in a row.
    burst: u32,
    /// How long it takes until one more may come.
    every: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lines written and not yet forgotten.
    written: u32,
    /// When one of them was last forgotten.
    since: Option<Instant>,
    /// What happened since the last line.
    pending: u64,
}

impl Default for LogLimit {
    /// For lines that strangers can cause: ten in a row, then one a second.
    fn default() -> Self {
        Self::new(10, Duration::from_secs(1))
    }
}

impl LogLimit {
    const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, state: Mutex::new(State { written: 0, since: None, pending: 0 }) }
    }

    /// For failures that last: at once, then one line a minute with their number.
    pub(crate) const fn once_a_minute() -> Self {
        Self::new(1, Duration::from_secs(60))
    }

    /// Whether a line may be written about what happens now, and if so how many were left out since the last one.
    pub(crate) fn may(&self) -> Option<u64> {
        self.count(1).map(|happened| happened - 1)
    }

    /// Counts what happens now. Returns all that happened since the last line when one may be written.
    pub(crate) fn count(&self, times: u64) -> Option<u64> {
        self.count_at(times, clock::now())
    }

    fn count_at(&self, times: u64, now: Instant) -> Option<u64> {
        // Nothing can panic while this is locked.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pending += times;
        let since = *state.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs() / self.every.as_secs();
        let forgotten = u32::try_from(passed).unwrap_or(u32::MAX);
        if forgotten > 0 {
            state.written = state.written.saturating_sub(forgotten);
            state.since = Some(now);
        }
        if state.written >= self.burst || state.pending == 0 {
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_now_and_then_with_the_number_left_out() {
        let (limit, start) = (LogLimit::default(), clock::now());
        let may = |at| limit.count_at(1, at).map(|happened| happened - 1);
        let mut said = Vec::new();
        for ms in 0..10_000 {
            said.extend(may(start + Duration::from_millis(ms)));
        }
        assert_eq!(said.len(), 10 + 9);
        assert_eq!(said[..10], [0; 10], "the first are all logged");
        assert!(said[10..].iter().all(|left_out| (980..=1_000).contains(left_out)), "{said:?}");
        let later = start + Duration::from_secs(60);
        assert_eq!(may(later), Some(999), "and the last ones with the next that comes");
        assert_eq!((1..20).filter_map(|_| may(later)).count(), 9);
    }

    #[test]
    fn a_lasting_failure_is_logged_at_once_then_in_one_line_a_minute() {
        let (limit, now) = (LogLimit::once_a_minute(), clock::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(limit.count_at(1, now), Some(1));
        assert_eq!(limit.count_at(3, now), None);
        assert_eq!(limit.count_at(2, after(59)), None);
        assert_eq!(limit.count_at(1, after(60)), Some(6));
        assert_eq!(limit.count_at(0, after(200)), None, "nothing happened");
    }
}
