//! The production server in a simulated network: listener and dialler are simulated, everything between is what
//! ships.
//!
//! Three hosts: `bridge` runs [`bridge::serve::Server`], `openai` accepts its dials, `callers` holds every caller. Each has
//! a runtime of its own with a clock of its own, all of them stepped by the world, so no real time passes and the
//! same seed gives the same bytes. Each play runs on a fresh thread: nothing leaks from one seed into the next.
//!
//! What this network cannot do: it resends nothing (so outages are held back, never lost), it has no bandwidth, and
//! one write is one read. Times are seen in steps of [`crate::scenario::WorldKnobs::tick_us`] at the worst.

use super::shell::{self, BRIDGE, BRIDGE_PORT, Dialled, Ending, Net, Play};
use super::{EPOCH_UNIX, Stage, StageKind};
use crate::scenario::Scenario;
use crate::seed::Seed;
use crate::trace::Trace;
use crate::weather::LegWeather;
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
/// Nobody listens here.
const CLOSED_PORT: u16 = 9;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulated;

impl Stage for Simulated {
    fn kind(&self) -> StageKind {
        StageKind::Simulated
    }

    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace {
        play_timed(scenario, seed).0
    }
}

/// Plays a scenario, and says how much processor time that took.
///
/// # Panics
/// When schedules are not seeded, see [`shell::seeded`].
pub(super) fn play_timed(scenario: &Scenario, seed: Seed) -> (Trace, Option<Duration>) {
    shell::on_a_fresh_thread(|| World::new(scenario, seed).run())
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

    async fn dial_nobody(&self) -> io::Result<TcpStream> {
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
    fn new(scenario: &Scenario, seed: Seed) -> Self {
        let play = Play::new(Network::default(), scenario, seed);
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
        for (host, leg) in [(CALLERS, &scenario.weather.caller), (OPENAI, &scenario.weather.model)] {
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
        // When everybody was done; the server is shut down then, and gets its time.
        let mut finished: Option<At> = None;
        loop {
            let now = self.now();
            self.weather();
            if drain_at.is_some_and(|at| now >= at) {
                self.shut_down();
            }
            match catch_unwind(AssertUnwindSafe(|| self.sim.step())) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => broken.push(format!("a host of the world ended: {error}")),
                Err(panic) => broken.push(super::panic_text(&*panic)),
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
    fn weather(&mut self) {
        let now = self.now();
        let scenario = self.play.scenario.clone();
        let legs = [(CALLERS, &scenario.weather.caller), (OPENAI, &scenario.weather.model)];
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
        play.trace(StageKind::Simulated, ending, || drop(sim))
    }
}

fn holds(leg: &LegWeather, now: At) -> bool {
    let stalled = |stall: &crate::weather::Stall| {
        now >= At::ms(stall.at_ms) && now < At::ms(stall.at_ms + stall.for_ms)
    };
    !leg.passes(now) || leg.stalls.iter().any(stalled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue;
    use mocks::record::{CallerSight, ModelSight};

    fn of(text: &str) -> Trace {
        let scenario = Scenario::from_toml("test", &format!("purpose = \"A test.\"\n{text}")).unwrap();
        Simulated.play(&scenario, Seed(1))
    }

    fn quiet_end(trace: &Trace, end: &str) {
        assert_eq!(trace.ends(), [Some(end.to_owned())], "{:#?}", trace.calls[0].bridge);
        let whole = trace.leftovers.is_empty() && trace.panics.is_empty() && !trace.cut;
        assert!(whole, "{:#?}", trace.lines().split_off(trace.lines().len().saturating_sub(20)));
    }

    #[test]
    fn a_call_is_greeted_and_ends() {
        let trace = Simulated.play(&catalogue::find("greeting/plain")[0], Seed(1));
        quiet_end(&trace, "stopped");
        let heard: usize = trace.calls[0].caller.played.iter().map(|stretch| stretch.len).sum();
        assert!(heard >= 1_800 * 8, "{heard} bytes");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_on_any_thread() {
        let scenario = &catalogue::find("barge_in/mid_answer")[0];
        let hashes: Vec<_> = std::thread::scope(|scope| {
            let plays: Vec<_> = (0..4)
                .map(|n| scope.spawn(move || Simulated.play(scenario, Seed(7 + n / 2)).hash()))
                .collect();
            plays.into_iter().map(|play| play.join().unwrap()).collect()
        });
        assert!(hashes[0] == hashes[1] && hashes[2] == hashes[3] && hashes[0] != hashes[2], "{hashes:?}");
    }

    #[test]
    fn every_outcome_of_a_dial_ends_the_call() {
        for dial in ["\"refuses\"", "\"hangs\"", "\"hangs_in_upgrade\"", "{ answers_http = 503 }"] {
            let trace = of(&format!("[[call]]\ncaller.steps = [\"waits_for_close\"]\nmodel.dial = {dial}"));
            quiet_end(&trace, "dial_failed");
            let seen = &trace.calls[0].models[0].sightings;
            assert!(seen.iter().any(|s| matches!(s.what, ModelSight::Refused { .. })), "{dial}: {seen:?}");
        }
    }

    #[test]
    fn a_full_server_refuses_with_503() {
        let trace = of(
            "server.max_calls = 1\n[[call]]\nrepeat = 2\nevery_ms = 100\ncaller.steps = [{ waits = 900 }]",
        );
        assert_eq!(trace.ends(), [Some("stopped".into()), None]);
        let seen = &trace.calls[1].caller.sightings;
        assert!(seen.iter().any(|s| s.what == CallerSight::Refused { status: 503 }), "{seen:?}");
    }

    #[test]
    fn the_second_stream_of_a_call_replaces_the_first() {
        let call = "[[call]]\ncall_sid = \"CA1\"\ncaller.steps = [{ waits = 3000 }]\n";
        let trace = of(&format!("{call}{call}at_ms = 1000"));
        assert_eq!(trace.ends(), [Some("replaced".into()), Some("stopped".into())]);
    }

    #[test]
    fn a_drain_ends_calls_when_its_time_is_over() {
        let trace = of(
            "server.drain_at_ms = 2000\nserver.drain_ms = 1500\n[[call]]\ncaller.steps = [\"waits_for_close\"]",
        );
        quiet_end(&trace, "drained");
    }

    #[test]
    fn a_cut_and_a_dark_leg_end_the_call() {
        let call = "[[call]]\ncaller.steps = [\"waits_for_close\"]\ncaller.hang_up_after_ms = 60000";
        quiet_end(&of(&format!("weather.model.cut_at_ms = 2000\n{call}")), "model_lost");
        quiet_end(&of(&format!("weather.caller.cut_at_ms = 2000\n{call}")), "caller_lost");
        quiet_end(&of(&format!("weather.model.dark_at_ms = 2000\n{call}")), "model_silent");
        quiet_end(&of(&format!("weather.caller.dark_at_ms = 2000\n{call}")), "caller_silent");
    }

    #[test]
    fn a_caller_who_does_not_read_is_given_up() {
        let trace = of(
            "world.tcp_capacity = 8\nbridge.timeouts.clogged_ms = 2000\nbridge.timeouts.pong_ms = 60000\n\
             bridge.greeting = \"Hi\"\n[[call]]\ncaller.steps = [\"hears_start\", \"stops_reading\", \"waits_for_close\"]\n\
             model.turns = [{ answers = 60000, speed = 20.0 }]",
        );
        quiet_end(&trace, "caller_clogged");
    }

    #[test]
    fn an_end_that_answers_no_ping_is_found() {
        let timeouts = "bridge.timeouts.ping_ms = 1000\nbridge.timeouts.pong_ms = 1500";
        let call = "[[call]]\ncaller.steps = [\"waits_for_close\"]\ncaller.hang_up_after_ms = 30000";
        quiet_end(&of(&format!("{timeouts}\n{call}\nmodel.goes_dark_after_ms = 2000")), "model_silent");
        let trace = of(&format!("{timeouts}\n{call}\ncaller.pong = false\ncaller.idle = \"dtx\""));
        quiet_end(&trace, "caller_silent");
    }

    #[test]
    fn a_dial_that_is_given_up_leaves_nothing_behind() {
        let trace = of("[[call]]\ncaller.steps = [{ waits = 400 }, \"hangs_up\"]\nmodel.dial_ms = 3000");
        quiet_end(&trace, "stopped");
        let seen = &trace.calls[0].models[0].sightings;
        assert!(
            matches!(seen.as_slice(), [only] if matches!(only.what, ModelSight::Refused { .. })),
            "{seen:?}"
        );
    }

    #[test]
    fn both_stages_tell_the_same_story() {
        for scenario in catalogue::all().iter().filter(|scenario| scenario.stages.len() == 2) {
            let ends = |kind| super::super::play(kind, scenario, Seed(1)).ends();
            assert_eq!(ends(StageKind::Memory), ends(StageKind::Simulated), "{}", scenario.name);
        }
    }
}
