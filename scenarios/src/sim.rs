//! Where a scenario is played. Each backend makes a [`Trace`] of it, and a reader of the trace cannot tell which.
//!
//! * [`memory`]: the call as a value between two pure mocks, on one heap of timed messages. No network.
//! * [`simulated`]: the production server, driver and WebSockets included, in a simulated network.
//! * [`pipes`]: the same over byte pipes of our own, which can do to bytes what that network cannot.
//!
//! And in real time, over real sockets, where no two plays are quite the same:
//! * [`loopback`]: the production server in this process, over TCP, with and without TLS.
//! * [`attach`]: a foreign bridge in its own process.

mod adapter;
pub mod attach;
pub(crate) mod choice;
mod common;
pub mod in_memory_journal;
pub mod loopback;
pub mod memory;
pub mod pipes;
pub(crate) mod real;
mod shell;
pub mod simulated;
pub mod trace;

pub use adapter::{Act, BridgeOut, Defect, OutputFault, Told};
pub(crate) use common::{API_KEY, CARRIER_MS};
pub use common::{EPOCH_UNIX, ScenarioRunner};

use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::sim::trace::Trace;
pub(crate) use common::{process_cpu, thread_cpu};
use std::time::Duration;

/// Whether this program was built so that the backend can be trusted.
///
/// # Errors
/// When it was not. The message says what to do.
pub fn ready(kind: Backend) -> anyhow::Result<()> {
    match kind {
        Backend::Memory => Ok(()),
        Backend::Simulated | Backend::Pipes | Backend::Loopback => shell::seeded(),
        Backend::Attach => {
            anyhow::bail!("a foreign bridge is judged by `scn conform`; docs/dev/conformance.md tells how")
        }
    }
}

/// Plays a scenario on a backend.
///
/// # Panics
/// When the backend is not [`ready`].
pub fn play(kind: Backend, scenario: &Scenario, seed: Seed) -> Trace {
    match kind {
        Backend::Memory => memory::Memory.play(scenario, seed),
        Backend::Simulated => simulated::Simulated.play(scenario, seed),
        Backend::Pipes => pipes::Pipes.play(scenario, seed),
        Backend::Loopback => loopback::Loopback::default().play(scenario, seed),
        Backend::Attach => panic!("a foreign bridge is played by `attach::Bridge`"),
    }
}

/// Plays a scenario on a backend, and says how much processor time its thread took, where the system tells.
///
/// # Panics
/// When the backend is not [`ready`].
pub fn play_timed(kind: Backend, scenario: &Scenario, seed: Seed) -> (Trace, Option<Duration>) {
    match kind {
        Backend::Memory => {
            let before = thread_cpu();
            let trace = memory::Memory.play(scenario, seed);
            let cpu = thread_cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
            (trace, cpu)
        }
        Backend::Simulated => simulated::play_timed(scenario, seed),
        Backend::Pipes => pipes::play_timed(scenario, seed),
        Backend::Loopback | Backend::Attach => (play(kind, scenario, seed), None),
    }
}
