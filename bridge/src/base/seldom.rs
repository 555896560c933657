//! Lines that strangers can cause, written so seldom that a flood of them fills no disk and hides nothing else.
//!
//! The first few of a kind are written, then those that the pace allows; whatever was left out is said with the next one.
//! What happened is counted elsewhere, whether it was said or not.

use crate::base::clock;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines of one kind that may come in a row.
const IN_A_ROW: u32 = 10;
/// How long it takes until one more may come.
const EVERY: Duration = Duration::from_secs(1);

/// The pace of one kind of line.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Lines written and not yet forgotten.
    written: u32,
    /// When one of them was last forgotten.
    since: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Whether a line may be written now, and if so how many were left out since the last one.
    pub(crate) fn may(&self) -> Option<u64> {
        self.may_at(clock::now())
    }

    fn may_at(&self, now: Instant) -> Option<u64> {
        // Nothing can panic while this is locked.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *state.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs() / EVERY.as_secs();
        let forgotten = u32::try_from(passed).unwrap_or(u32::MAX);
        if forgotten > 0 {
            state.written = state.written.saturating_sub(forgotten);
            state.since = Some(now);
        }
        if state.written >= IN_A_ROW {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_said_now_and_then_with_the_number_of_those_left_out() {
        let (seldom, start) = (Seldom::default(), clock::now());
        let mut said = Vec::new();
        for ms in 0..10_000 {
            said.extend(seldom.may_at(start + Duration::from_millis(ms)));
        }
        assert_eq!(said.len(), IN_A_ROW as usize + 9);
        assert_eq!(said[..10], [0; 10], "the first are all said");
        assert!(said[10..].iter().all(|left_out| (980..=1_000).contains(left_out)), "{said:?}");
        let later = start + Duration::from_secs(60);
        assert_eq!(seldom.may_at(later), Some(999), "and the last ones with whatever comes next");
        assert_eq!((1..20).filter_map(|_| seldom.may_at(later)).count(), 9);
    }
}
