//! What the backends in real time share: a clock that runs by itself and knows how late it is, and the network that a
//! real socket has, which is none.

use crate::model::network::{LegConditions, NetworkConditions};
use crate::model::scenario::Scenario;
use mocks::peer::At;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often the clock looks how late it is.
const TICK: Duration = Duration::from_millis(5);

/// How often the crowd of those who want to run is counted.
const CROWD_TICK: Duration = Duration::from_millis(100);

/// Scenario time that passes by itself. Clones show the same.
#[derive(Clone)]
pub(crate) struct Clock {
    began: Instant,
}

impl Clock {
    /// Begins at zero, now.
    #[expect(clippy::disallowed_methods, reason = "a backend owns its clock, and this one is real")]
    pub(crate) fn start() -> Self {
        Self { began: Instant::now() }
    }

    pub(crate) fn now(&self) -> At {
        At(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// How late this machine wakes those who wait. Oracles grant it, because no bridge can be faster than its machine.
#[derive(Clone, Default)]
pub(crate) struct Lag(Arc<AtomicU64>);

impl Lag {
    /// Watches for ever.
    pub(crate) async fn watch(self) {
        let clock = Clock::start();
        loop {
            let due = clock.now().0 + TICK.as_micros() as u64;
            tokio::time::sleep(TICK).await;
            // Timers have steps of a millisecond, which is not lateness.
            let late = clock.now().0.saturating_sub(due + 1_000);
            self.0.fetch_max(late, Ordering::Relaxed);
        }
    }

    /// The worst so far, microseconds.
    pub(crate) fn worst_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many threads of this machine want to run. Ours may be served in time while the bridge, which needs the
/// processors for longer, waits its turn behind a compiler.
#[derive(Clone, Default)]
pub(super) struct Crowd {
    wanted: Arc<AtomicU64>,
    looks: Arc<AtomicU64>,
}

impl Crowd {
    /// Watches for ever, where the system says how many they are.
    pub(super) async fn watch(self) {
        while let Some(wanted) = runnable() {
            self.look(wanted);
            tokio::time::sleep(CROWD_TICK).await;
        }
    }

    fn look(&self, wanted: u64) {
        self.wanted.fetch_add(wanted, Ordering::Relaxed);
        self.looks.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether on the average more than one had to wait.
    pub(super) fn is_dense(&self, processors: u64) -> bool {
        self.wanted.load(Ordering::Relaxed) > self.looks.load(Ordering::Relaxed) * (processors + 1)
    }
}

/// Threads that run or could.
fn runnable() -> Option<u64> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    load.split_whitespace().nth(3)?.split('/').next()?.parse().ok()
}

/// The processors that these threads have: all of the machine, however few of them are ours.
pub(super) fn processors() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let is_one = |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| !rest.starts_with(' '));
    stat.lines().filter(is_one).count().max(1) as u64
}

/// Why a scenario needs a network that can be told what to do, if it does.
pub(crate) fn needs_a_made_network(scenario: &Scenario) -> Option<&'static str> {
    let network = &scenario.network;
    let usual = NetworkConditions::default();
    let timed = |leg: &LegConditions| {
        !leg.stalls.is_empty()
            || leg.jitter_ms > 0
            || leg.cut_at_ms.is_some()
            || leg.blackhole_at_ms.is_some()
            || leg.reads_bytes_per_s.is_some()
            || leg.only_on_pipes().is_some()
    };
    if timed(&network.caller) || timed(&network.model) {
        Some("outages, narrow lines and resets that are made to order")
    } else if network != &usual {
        Some("a network with a latency that is made to order")
    } else if scenario.world.tcp_capacity != Scenario::default().world.tcp_capacity {
        Some("connections that hold few messages")
    } else {
        None
    }
}

/// The same scenario where the network takes no time.
pub(super) fn on_this_machine(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.network.caller.latency_ms = 0;
    scenario.network.model.latency_ms = 0;
    scenario
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_dense_when_more_than_one_waits_on_the_average() {
        let crowd = Crowd::default();
        assert!(!crowd.is_dense(2), "nothing was counted");
        crowd.look(3);
        assert!(!crowd.is_dense(2));
        crowd.look(4);
        assert!(crowd.is_dense(2) && !crowd.is_dense(3));
        assert!(processors() >= 1);
    }
}
