//! What the stages in real time share: a clock that runs by itself and knows how late it is, and the weather that a
//! real socket has, which is none.

use crate::scenario::Scenario;
use crate::weather::{LegWeather, Weather};
use mocks::peer::At;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// How often the clock looks how late it is.
const TICK: Duration = Duration::from_millis(5);

/// Scenario time that passes by itself. Clones show the same.
#[derive(Clone)]
pub(super) struct Clock {
    began: Instant,
}

impl Clock {
    /// Begins at zero, now.
    #[expect(clippy::disallowed_methods, reason = "a stage owns its clock, and this one is real")]
    pub(super) fn start() -> Self {
        Self { began: Instant::now() }
    }

    pub(super) fn now(&self) -> At {
        At(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// How late this machine wakes those who wait. Oracles grant it, because nobody can be faster than his machine.
#[derive(Clone, Default)]
pub(super) struct Lag(Arc<AtomicU64>);

impl Lag {
    /// Watches for ever.
    pub(super) async fn watch(self) {
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
    pub(super) fn worst_us(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a scenario needs a network that can be told what to do, if it does.
pub(crate) fn needs_a_made_network(scenario: &Scenario) -> Option<&'static str> {
    let weather = &scenario.weather;
    let usual = Weather::default();
    let timed = |leg: &LegWeather| {
        !leg.stalls.is_empty()
            || leg.jitter_ms > 0
            || leg.cut_at_ms.is_some()
            || leg.dark_at_ms.is_some()
            || leg.reads_bytes_per_s.is_some()
            || leg.only_on_pipes().is_some()
    };
    if timed(&weather.caller) || timed(&weather.model) {
        Some("outages, narrow lines and resets that are made to order")
    } else if weather != &usual {
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
    scenario.weather.caller.latency_ms = 0;
    scenario.weather.model.latency_ms = 0;
    scenario
}
