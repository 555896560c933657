//! The clock of a world over pipes.

use mocks::peer::At;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Scenario time. Clones show the same.
#[derive(Clone)]
pub(super) struct Clock {
    began: Instant,
    /// What it shows for ever, once the world has ended and its runtime with it.
    stopped: Arc<AtomicU64>,
}

impl Clock {
    /// Begins at zero, now.
    #[expect(clippy::disallowed_methods, reason = "a backend owns its clock")]
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), stopped: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    #[expect(clippy::disallowed_methods, reason = "a backend owns its clock")]
    pub(super) fn now(&self) -> At {
        match self.stopped.load(Ordering::Relaxed) {
            u64::MAX => {
                At(u64::try_from(Instant::now().duration_since(self.began).as_micros()).unwrap_or(u64::MAX))
            }
            stopped => At(stopped),
        }
    }

    pub(super) fn instant(&self, at: At) -> Instant {
        self.began + Duration::from_micros(at.0)
    }

    pub(super) fn stop(&self) {
        self.stopped.store(self.now().0, Ordering::Relaxed);
    }
}
