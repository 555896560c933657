//! The production server over byte pipes of our own, on a clock that jumps from one event to the next.
//!
//! Everything runs in one runtime on tokio's paused clock, so time in which nothing happens costs nothing. The pipes
//! do to bytes what the simulated network cannot: a narrow line, a bounded window, pieces, hesitations, a direction
//! closed by itself, a reset that finds a writer waiting. Each play runs on a fresh thread.
//!
//! What this network cannot do: no host crashes by itself, and all share one clock. Times are seen in whole
//! milliseconds, the steps of tokio's timers.

mod clock;
mod pipe;

use self::clock::Clock;
use self::pipe::{Dialling, Pipe, Place};
use super::common::ScenarioRunner;
use super::shell::{self, Dialled, Ending, Net, Play};
use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::sim::in_memory_journal::InMemoryJournal;
use crate::sim::trace::{Network, Trace};
use bridge::call::Leg;
use mocks::peer::At;
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How often the world looks whether the bridge and the models are done, once every caller's end is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pipes;

impl ScenarioRunner for Pipes {
    fn kind(&self) -> Backend {
        Backend::Pipes
    }

    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace {
        play_timed(scenario, seed).0
    }
}

/// Plays a scenario, and says how much processor time that took.
///
/// # Panics
/// When schedules are not seeded, see `shell::seeded`.
pub(super) fn play_timed(scenario: &Scenario, seed: Seed) -> (Trace, Option<Duration>) {
    shell::on_a_fresh_thread(|| play(scenario, seed, None))
}

/// Plays a scenario and keeps the journals its calls leave.
///
/// # Panics
/// When schedules are not seeded, see `shell::seeded`.
pub fn play_journalled(scenario: &Scenario, seed: Seed, journals: &InMemoryJournal) -> Trace {
    shell::on_a_fresh_thread(|| play(scenario, seed, Some(journals))).0
}

/// The network of one world. Clones see the same one.
#[derive(Clone)]
struct Pipework {
    clock: Clock,
    scenario: Arc<Scenario>,
    seed: Seed,
    to_bridge: mpsc::UnboundedSender<Pipe>,
    to_models: mpsc::UnboundedSender<(Pipe, Dialled)>,
    seen: Arc<Mutex<Network>>,
}

impl Pipework {
    /// Makes a connection, which takes one way. Returns the bridge's end and the far end.
    async fn connect(&self, leg: Leg, label: &str) -> (Pipe, Pipe) {
        let conditions = match leg {
            Leg::Caller => &self.scenario.network.caller,
            Leg::Model => &self.scenario.network.model,
        };
        let mut dialling = Dialling::new(&Place {
            clock: self.clock.clone(),
            leg,
            conditions: Arc::new(conditions.clone()),
            writes_max: self.scenario.world.tcp_capacity,
            seed: self.seed,
            label,
            seen: self.seen.clone(),
        });
        match dialling.made_at() {
            Some(at) => tokio::time::sleep_until(self.clock.instant(at)).await,
            None => pending().await,
        }
        let (bridge, far) = dialling.made();
        if let Some(at) = conditions.half_close_at_ms.map(At::ms).filter(|at| *at > self.clock.now()) {
            tokio::spawn(far.half_close(at));
        }
        (bridge, far)
    }
}

impl Net for Pipework {
    type Stream = Pipe;

    fn now(&self) -> At {
        self.clock.now()
    }

    async fn dial_model(&self, dialled: Dialled) -> io::Result<Pipe> {
        let Dialled { call, n } = dialled;
        let (bridge, far) = self.connect(Leg::Model, &format!("weather/model/{call}/{n}")).await;
        match self.to_models.send((far, dialled)) {
            Ok(()) => Ok(bridge),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    async fn dial_closed_port(&self) -> io::Result<Pipe> {
        // The answer of a host where no process listens takes one way here, as a connection does.
        drop(self.connect(Leg::Model, "weather/nobody").await);
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    async fn dial_bridge(&self, call: usize) -> io::Result<Pipe> {
        let (bridge, far) = self.connect(Leg::Caller, &format!("weather/caller/{call}")).await;
        match self.to_bridge.send(bridge) {
            Ok(()) => Ok(far),
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// A listener for the production server.
struct Listener(mpsc::UnboundedReceiver<Pipe>);

impl axum::serve::Listener for Listener {
    type Io = Pipe;
    type Addr = ();

    async fn accept(&mut self) -> (Pipe, ()) {
        match self.0.recv().await {
            Some(pipe) => (pipe, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A runtime of one thread whose clock stands still while a task works, and jumps when none does.
fn runtime(seed: Seed) -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    {
        let schedule = seed.number("network").to_be_bytes();
        builder
            .rng_seed(tokio::runtime::RngSeed::from_bytes(&schedule))
            .unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    }
    #[cfg(not(tokio_unstable))]
    let _unseeded = seed;
    builder.build().expect("a runtime without a driver for sockets needs nothing of the system")
}

fn play(scenario: &Scenario, seed: Seed, journals: Option<&InMemoryJournal>) -> Trace {
    let runtime = runtime(seed);
    let entered = runtime.enter();
    let clock = Clock::start();
    let (to_bridge, calling) = mpsc::unbounded_channel();
    let (to_models, dialled) = mpsc::unbounded_channel();
    let seen = Arc::new(Mutex::new(Network::default()));
    let net = Pipework {
        clock: clock.clone(),
        scenario: Arc::new(scenario.clone()),
        seed,
        to_bridge,
        to_models,
        seen: seen.clone(),
    };
    let play = Play::new(net, scenario, seed, journals);
    drop(entered);
    let world = run(play.clone(), Listener(calling), dialled);
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(world)));
    {
        let _entered = runtime.enter();
        clock.stop();
    }
    let (finished, broken) = match ended {
        Ok(finished) => (finished, Vec::new()),
        Err(panic) => (None, vec![super::common::panic_text(&*panic)]),
    };
    let cut = finished.is_none() && broken.is_empty();
    let ending = Ending { at: clock.now(), finished, cut, broken };
    let mut trace = play.trace(Backend::Pipes, ending, || drop(runtime));
    trace.network = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    trace
}

/// Plays the world to its end. Returns when every end was done; `None` when the time limit came first.
async fn run(
    play: Play<Pipework>,
    listener: Listener,
    mut dialled: mpsc::UnboundedReceiver<(Pipe, Dialled)>,
) -> Option<At> {
    let (clock, scenario) = (play.net.clock.clone(), play.scenario.clone());
    let (shutdown, told) = oneshot::channel();
    let server = tokio::spawn(shell::serve(play.clone(), listener, told));
    let models = play.clone();
    tokio::spawn(async move {
        while let Some((pipe, dialled)) = dialled.recv().await {
            tokio::spawn(shell::model(models.clone(), pipe, dialled));
        }
    });
    let mut callers: JoinSet<()> =
        play.planned.iter().map(|planned| shell::caller(play.clone(), planned.clone())).collect();

    // The server may be gone already; then there is nothing to shut down.
    let mut shutdown = Some(shutdown);
    let mut shut_down = || shutdown.take().is_some_and(|shutdown| shutdown.send(()).is_ok());
    let all_done = async {
        while callers.join_next().await.is_some() {}
        while !play.all_done(clock.now()) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let drain = async {
        match scenario.server.drain_at_ms {
            Some(ms) => tokio::time::sleep_until(clock.instant(At::ms(ms))).await,
            None => pending().await,
        }
    };
    let limit = tokio::time::sleep_until(clock.instant(At::ms(scenario.world.limit_ms)));
    let (mut all_done, mut drain, mut limit) = (pin!(all_done), pin!(drain), pin!(limit));
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = drain.as_mut(), if !draining => {
                draining = true;
                shut_down();
            }
            () = all_done.as_mut() => break,
            () = limit.as_mut() => return None,
        }
    }
    let finished = clock.now();
    shut_down();
    let patience = Duration::from_millis(play.patience_ms());
    // What became of it, also when it did not stop in time, is with the play.
    let _either_way = tokio::time::timeout(patience, server).await;
    Some(finished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalogue;

    fn of(text: &str) -> Trace {
        let text = format!("purpose = \"A test.\"\nbackends = [\"pipes\"]\n{text}");
        Pipes.play(&Scenario::from_toml("test", &text).unwrap(), Seed(1))
    }

    #[test]
    fn the_clock_jumps_over_time_in_which_nothing_happens() {
        // An hour would take a simulated network minutes; only the pings are left of it here.
        let trace = of(
            "world.limit_ms = 4000000\nbridge.timeouts.call_ms = 4000000\nbridge.dial = \"on_start\"\n\
             bridge.greeting = \"Hi\"\n[[call]]\ncaller.idle = \"dtx\"\ncaller.hang_up_after_ms = 0\n\
             caller.steps = [{ dtx = false }, { waits = 200 }, { dtx = true }, { waits = 3500000 }, \"hangs_up\"]\n\
             model.turns = [{ answers = 1000 }]",
        );
        assert!(trace.ended_at > At::ms(3_500_000) && !trace.cut, "{:?}", trace.ends());
    }

    #[test]
    fn what_the_network_did_is_part_of_the_trace() {
        let trace = Pipes.play(&catalogue::find("network/everything_in_pieces")[0], Seed(1));
        assert!(trace.network.pieces > 0 && trace.network.hesitations > 0);
        assert!(trace.lines().iter().any(|line| line.contains("- world - network ")));
        let ideal = Pipes.play(&catalogue::find("barge_in/mid_answer")[0], Seed(1));
        assert!(!ideal.lines().iter().any(|line| line.contains("- world - network ")));
    }

    #[test]
    fn a_panic_of_a_mock_ends_the_world_and_is_told() {
        let runtime = runtime(Seed(1));
        let world = async {
            tokio::spawn(async { panic!("a mock is broken") });
            pending::<()>().await;
        };
        let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(world)));
        assert!(ended.is_err(), "without the seeded scheduler this would hang");
    }

    #[test]
    fn a_stopped_clock_needs_no_runtime() {
        let runtime = runtime(Seed(1));
        let clock = runtime.block_on(async {
            let clock = Clock::start();
            tokio::time::sleep(Duration::from_millis(1_234)).await;
            clock.stop();
            clock
        });
        drop(runtime);
        assert_eq!(clock.now(), At::ms(1_234));
    }
}
