//! One line for many failures.

use std::time::{Duration, Instant};

/// Lets a line be written at once, and then one every so often with the number of what happened since the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Throttle {
    every: Duration,
    last: Option<Instant>,
    since: u64,
}

impl Throttle {
    pub(crate) const fn new(every: Duration) -> Self {
        Self { every, last: None, since: 0 }
    }

    /// Counts `times`. Returns all that happened since the last line when it is time for one.
    pub(crate) fn count(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.since += times;
        let is_due = self.last.is_none_or(|last| now.saturating_duration_since(last) >= self.every);
        if !is_due || self.since == 0 {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_logged_at_once_and_the_rest_in_one_line_a_minute() {
        let mut throttle = Throttle::new(Duration::from_secs(60));
        let now = crate::base::clock::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(throttle.count(1, now), Some(1));
        assert_eq!(throttle.count(3, now), None);
        assert_eq!(throttle.count(2, after(59)), None);
        assert_eq!(throttle.count(1, after(60)), Some(6));
        assert_eq!(throttle.count(0, after(200)), None, "nothing happened");
    }
}
