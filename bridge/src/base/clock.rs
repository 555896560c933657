//! The two clocks: a call's, which a simulation sets, and the one on the wall. Nothing else reads either.

use std::time::{Duration, Instant};

/// The time of a call.
#[expect(clippy::disallowed_methods, reason = "the one place where a call's clock is read")]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Tells for ever, once every `every`, how late the event loop comes to a task that is due: every call is late by as
/// much.
pub(crate) async fn lateness(every: Duration, mut tell: impl FnMut(Duration)) {
    loop {
        let due = now() + every;
        tokio::time::sleep_until(due.into()).await;
        tell(now().saturating_duration_since(due));
    }
}

/// The clock on the wall, Unix seconds.
#[expect(clippy::disallowed_methods, reason = "the wall clock of production enters here")]
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
