//! The production server in a simulated network: listener and dialler are simulated, everything between is what
//! ships.
//!
//! Three hosts: `bridge` runs [`bridge::server::serve::Server`], `openai` accepts its dials, `callers` holds every caller. Each has
//! a runtime of its own with a clock of its own, all of them stepped by the world, so no real time passes and the
//! same seed gives the same bytes. Each play runs on a fresh thread: nothing leaks from one seed into the next.
//!
//! What this network cannot do: it resends nothing (so outages are held back, never lost), it has no bandwidth, and
//! one write is one read. Times are seen in steps of [`crate::model::scenario::WorldKnobs::tick_us`] at the worst.

use super::common::{EPOCH_UNIX, ScenarioRunner};
use super::shell::{self, BRIDGE, BRIDGE_PORT, Dialled, Ending, Net, Play};
use crate::model::backend::Backend;
use crate::model::network::LegConditions;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::sim::in_memory_journal::InMemoryJournal;
use crate::sim::trace::Trace;
use mocks::peer::At;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::oneshot;
use turmoil::net::{TcpListener, TcpStream};
use turmoil::{Builder, Sim};

const OPENAI: &str = "openai";
const CALLERS: &str = "callers";
const OPENAI_PORT: u16 = 80;
/// No process listens here.
const CLOSED_PORT: u16 = 9;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulated;

impl ScenarioRunner for Simulated {
    fn kind(&self) -> Backend {
        Backend::Simulated
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
    shell::on_a_fresh_thread(|| World::new(scenario, seed, None).run())
}

/// Plays a scenario and keeps the journals its calls leave.
///
/// # Panics
/// When schedules are not seeded, see `shell::seeded`.
pub fn play_journalled(scenario: &Scenario, seed: Seed, journals: &InMemoryJournal) -> Trace {
    shell::on_a_fresh_thread(|| World::new(scenario, seed, Some(journals)).run()).0
}

/// The simulated network. Clones see the same one.
#[derive(Clone, Default)]
struct Network {
    /// Which connection a dial from this port of the bridge belongs to.
    dialled: Arc<Mutex<BTreeMap<u16, Dialled>>>,
}

impl Net for Network {
    type Stream = TcpStream;

    fn now(&self) -> At {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        At(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    async fn dial_model(&self, dialled: Dialled) -> io::Result<TcpStream> {
        let stream = TcpStream::connect((OPENAI, OPENAI_PORT)).await?;
        let port = stream.local_addr()?.port();
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner).insert(port, dialled);
        Ok(stream)
    }

    async fn dial_closed_port(&self) -> io::Result<TcpStream> {
        TcpStream::connect((OPENAI, CLOSED_PORT)).await
    }

    async fn dial_bridge(&self, _call: usize) -> io::Result<TcpStream> {
        TcpStream::connect((BRIDGE, BRIDGE_PORT)).await
    }
}

/// A simulated listener for the production server.
struct Listener(TcpListener);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = self.0.accept().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

// ------------------------------------------------------------------------------------------- the hosts

async fn bridge(play: Play<Network>, shutdown: oneshot::Receiver<()>) -> turmoil::Result {
    let listener = Listener(TcpListener::bind(("0.0.0.0", BRIDGE_PORT)).await?);
    shell::serve(play, listener, shutdown).await;
    // A host that ends is not stepped any more; what the server left behind would not be seen.
    pending().await
}

async fn openai(play: Play<Network>) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", OPENAI_PORT)).await?;
    loop {
        let (stream, from) = listener.accept().await?;
        tokio::spawn(model(play.clone(), stream, from));
    }
}

async fn model(play: Play<Network>, mut stream: TcpStream, from: SocketAddr) {
    // The request comes at least one way later than the connection; by then the dialler has said whose it is.
    if stream.peek(&mut [0]).await.is_err() {
        return;
    }
    let whose = play.net.dialled.lock().unwrap_or_else(PoisonError::into_inner).get(&from.port()).copied();
    if let Some(dialled) = whose {
        shell::model(play, stream, dialled).await;
    }
}

async fn callers(play: Play<Network>) -> turmoil::Result {
    for planned in play.planned.iter().cloned() {
        tokio::spawn(shell::caller(play.clone(), planned));
    }
    pending().await
}

// -------------------------------------------------------------------------------------------- the world

struct World<'a> {
    sim: Sim<'a>,
    play: Play<Network>,
    shutdown: Option<oneshot::Sender<()>>,
    /// Links that are held now.
    held: [bool; 2],
}

impl World<'_> {
    fn new(scenario: &Scenario, seed: Seed, journals: Option<&InMemoryJournal>) -> Self {
        let play = Play::new(Network::default(), scenario, seed, journals);
        let epoch = UNIX_EPOCH + Duration::from_secs(EPOCH_UNIX.unsigned_abs());
        let mut sim = Builder::new()
            .rng_seed(seed.number("network"))
            .epoch(epoch)
            .tick_duration(Duration::from_micros(scenario.world.tick_us))
            .tcp_capacity(scenario.world.tcp_capacity)
            .build();
        let (shutdown, told) = oneshot::channel();
        let told = Mutex::new(Some(told));
        {
            let play = play.clone();
            sim.host(BRIDGE, move || {
                let told = told.lock().unwrap_or_else(PoisonError::into_inner).take();
                let play = play.clone();
                async move {
                    match told {
                        Some(told) => bridge(play, told).await,
                        None => Err("the bridge is started once".into()),
                    }
                }
            });
        }
        {
            let play = play.clone();
            sim.host(OPENAI, move || openai(play.clone()));
        }
        {
            let play = play.clone();
            sim.host(CALLERS, move || callers(play.clone()));
        }
        for (host, leg) in [(CALLERS, &scenario.network.caller), (OPENAI, &scenario.network.model)] {
            let latency = Duration::from_millis(leg.latency_ms);
            sim.set_link_latency(host, BRIDGE, latency);
            sim.set_link_max_message_latency(host, BRIDGE, latency + Duration::from_millis(leg.jitter_ms));
        }
        Self { sim, play, shutdown: Some(shutdown), held: [false; 2] }
    }

    fn now(&self) -> At {
        At(u64::try_from(self.sim.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn run(mut self) -> Trace {
        let scenario = self.play.scenario.clone();
        let limit = At::ms(scenario.world.limit_ms);
        let drain_at = scenario.server.drain_at_ms.map(At::ms);
        let mut cut = false;
        let mut broken = Vec::new();
        // When every end was done; the server is shut down then, and gets its time.
        let mut finished: Option<At> = None;
        loop {
            let now = self.now();
            self.network();
            if drain_at.is_some_and(|at| now >= at) {
                self.shut_down();
            }
            match catch_unwind(AssertUnwindSafe(|| self.sim.step())) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => broken.push(format!("a host of the world ended: {error}")),
                Err(panic) => broken.push(super::common::panic_text(&*panic)),
            }
            if !broken.is_empty() {
                break;
            }
            if finished.is_none() && self.play.all_done(self.now()) {
                finished = Some(self.now());
                self.shut_down();
            }
            if finished.is_some() && self.play.shared().served.is_some() {
                break;
            }
            let patience = self.play.patience_ms();
            if finished.is_some_and(|since| self.now() > since.plus_ms(patience)) {
                break;
            }
            if finished.is_none() && self.now() > limit {
                cut = true;
                break;
            }
        }
        self.trace(finished, cut, broken)
    }

    fn shut_down(&mut self) {
        if let Some(shutdown) = self.shutdown.take() {
            // The server may be gone already; then there is nothing to shut down.
            let _received = shutdown.send(());
        }
    }

    /// Outages: a held link keeps what it is given and lets it go in one burst.
    fn network(&mut self) {
        let now = self.now();
        let scenario = self.play.scenario.clone();
        let legs = [(CALLERS, &scenario.network.caller), (OPENAI, &scenario.network.model)];
        for ((host, leg), held) in legs.into_iter().zip(&mut self.held) {
            let hold = holds(leg, now);
            if hold != *held {
                *held = hold;
                if hold {
                    self.sim.hold(host, BRIDGE);
                } else {
                    self.sim.release(host, BRIDGE);
                }
            }
        }
    }

    fn trace(self, finished: Option<At>, cut: bool, broken: Vec<String>) -> Trace {
        let ending = Ending { at: self.now(), finished, cut, broken };
        let Self { sim, play, .. } = self;
        play.trace(Backend::Simulated, ending, || drop(sim))
    }
}

fn holds(leg: &LegConditions, now: At) -> bool {
    let stalled = |stall: &crate::model::network::Stall| {
        now >= At::ms(stall.at_ms) && now < At::ms(stall.at_ms + stall.for_ms)
    };
    !leg.passes(now) || leg.stalls.iter().any(stalled)
}
