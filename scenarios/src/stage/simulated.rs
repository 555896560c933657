//! The production server in a simulated network: listener and dialler are simulated, everything between is what
//! ships.
//!
//! Three hosts: `bridge` runs [`bridge::serve::Server`], `openai` accepts its dials, `callers` holds every caller. Each has
//! a runtime of its own with a clock of its own, all of them stepped by the world, so no real time passes and the
//! same seed gives the same bytes. Each play runs on a fresh thread: nothing leaks from one seed into the next.
//!
//! What this network cannot do: it resends nothing (so outages are held back, never lost), it has no bandwidth, and
//! one write is one read. Times are seen in steps of [`crate::scenario::WorldKnobs::tick_us`] at the worst.

use super::{API_KEY, EPOCH_UNIX, Stage, StageKind, thread_cpu};
use crate::scenario::{PlannedCall, Scenario, ToolScript};
use crate::seed::Seed;
use crate::trace::{CallTrace, Trace};
use crate::weather::LegWeather;
use anyhow::bail;
use bridge::call::event::CallEvent;
use bridge::config::{Config, Secret};
use bridge::registry::CallKey;
use bridge::serve::{Observe, Served, Server, Stats};
use mocks::attach::attach;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{Dial, Model, ModelIdentity};
use mocks::record::CallerSight;
use mocks::twilio::Caller;
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use turmoil::net::{TcpListener, TcpStream};
use turmoil::{Builder, Sim};

const BRIDGE: &str = "bridge";
const OPENAI: &str = "openai";
const CALLERS: &str = "callers";
const BRIDGE_PORT: u16 = 8084;
const OPENAI_PORT: u16 = 80;
const OPENAI_URL: &str = "ws://openai:80/v1/realtime";
/// Nobody listens here.
const CLOSED_PORT: u16 = 9;
/// How long the world goes on after its last call, ms beyond the drain time: the server gives calls that say their
/// last words 90 s more before it cuts them.
const WIND_DOWN_MS: u64 = 95_000;
/// What the mocks' WebSockets read at once; the library zeroes this much on each read.
const READ_BUFFER: usize = 8 * 1024;

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

/// Whether this program was built so that the stage can be trusted.
///
/// # Errors
/// When it was built without `--cfg tokio_unstable`: then schedules are not seeded and a panic in a task is
/// swallowed. The message says what to do.
pub fn ready() -> anyhow::Result<()> {
    if cfg!(tokio_unstable) {
        return Ok(());
    }
    bail!(
        "the simulated stage needs `--cfg tokio_unstable`, or panics are swallowed and seeds mean nothing. \
         .cargo/config.toml sets it, but an exported RUSTFLAGS takes its place: run `unset RUSTFLAGS`, or add \
         `--cfg tokio_unstable` to it, and build again"
    )
}

/// Plays a scenario, and says how much processor time that took.
///
/// # Panics
/// When the stage is not [`ready`].
pub(super) fn play_timed(scenario: &Scenario, seed: Seed) -> (Trace, Option<Duration>) {
    if let Err(error) = ready() {
        panic!("{error}");
    }
    let played = std::thread::scope(|scope| {
        let world = scope.spawn(|| {
            let trace = World::new(scenario, seed).run();
            (trace, thread_cpu())
        });
        world.join()
    });
    played.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Scenario time, on whichever host runs.
fn now() -> At {
    let elapsed = turmoil::sim_elapsed().unwrap_or_default();
    At(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
}

/// The wall clock of the world, Unix seconds.
fn unix_now() -> i64 {
    EPOCH_UNIX + i64::try_from(now().0 / 1_000_000).unwrap_or(i64::MAX)
}

/// A mock that can be read while it is played, and after its connection is gone.
struct Kept<P>(Arc<Mutex<P>>);

impl<P> Kept<P> {
    fn new(peer: P) -> Self {
        Self(Arc::new(Mutex::new(peer)))
    }

    fn get(&self) -> MutexGuard<'_, P> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> Clone for Kept<P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<P: Peer> Peer for Kept<P> {
    fn opened(&mut self, now: At) {
        self.get().opened(now);
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.get().handle(frame, now);
    }

    fn gone(&mut self, why: &str, now: At) {
        self.get().gone(why, now);
    }

    fn handle_timeout(&mut self, now: At) {
        self.get().handle_timeout(now);
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.get().poll_transmit()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.get().poll_timeout()
    }

    fn is_finished(&self) -> bool {
        self.get().is_finished()
    }
}

/// What the hosts and the world share. One thread runs them all; the lock is never contended.
#[derive(Default)]
struct Shared {
    /// Connections to the model, by call.
    models: Vec<Vec<Kept<Model>>>,
    /// What the bridge said happened, by call of the server.
    events: BTreeMap<CallKey, Vec<(At, CallEvent)>>,
    /// Which call of the scenario a call of the server is, once its stream is known.
    keys: BTreeMap<CallKey, usize>,
    /// Calls that are about to dial, in order.
    dialing: VecDeque<usize>,
    /// Which connection a dial from this port of the bridge belongs to.
    dialled: BTreeMap<u16, (usize, usize)>,
    /// What the server is doing.
    stats: Option<Stats>,
    /// What became of it.
    served: Option<Served>,
}

#[derive(Clone)]
struct Play {
    scenario: Arc<Scenario>,
    seed: Seed,
    planned: Arc<[PlannedCall]>,
    callers: Arc<[Kept<Caller>]>,
    shared: Arc<Mutex<Shared>>,
}

impl Play {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// ------------------------------------------------------------------------------------------- the bridge

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

impl Observe for Play {
    fn event(&self, call: CallKey, _now: Instant, event: &CallEvent) {
        let mut shared = self.shared();
        if let CallEvent::Started { stream_sid, .. } = event
            && let Some(planned) =
                self.planned.iter().find(|planned| planned.identity.stream_sid == *stream_sid)
        {
            shared.keys.insert(call, planned.index);
        }
        // The dial follows in the same turn of the call's loop, so the order of these is the order of the dials.
        if let CallEvent::Dialing = event
            && let Some(index) = shared.keys.get(&call).copied()
        {
            shared.dialing.push_back(index);
        }
        shared.events.entry(call).or_default().push((now(), event.clone()));
    }
}

impl bridge::dial::Dial for Play {
    type Stream = TcpStream;

    async fn dial(&self) -> io::Result<TcpStream> {
        let (index, n, model) = {
            let mut shared = self.shared();
            let index =
                shared.dialing.pop_front().ok_or_else(|| io::Error::other("a dial without a call"))?;
            let n = shared.models[index].len();
            let planned = &self.planned[index];
            let identity = ModelIdentity {
                call_sid: planned.identity.call_sid.clone(),
                index: (index + n * self.planned.len()) as u64,
                epoch_unix: EPOCH_UNIX,
            };
            let script = self.scenario.calls[planned.plan].model.clone();
            let model =
                Kept::new(Model::new(script, identity, self.seed.number(&format!("model/{index}/{n}"))));
            shared.models[index].push(model.clone());
            (index, n, model)
        };
        let (dial, dial_ms) = {
            let model = model.get();
            (model.script().dial.clone(), model.script().dial_ms)
        };
        let mut attempt = Attempt { model: model.clone(), made: false };
        tokio::time::sleep(Duration::from_millis(dial_ms)).await;
        match dial {
            Dial::Hangs => {
                model.get().refused("the connection is never made", now());
                pending().await
            }
            Dial::Refuses => {
                model.get().refused("the connection is refused", now());
                TcpStream::connect((OPENAI, CLOSED_PORT)).await
            }
            Dial::Accepts | Dial::HangsInUpgrade | Dial::AnswersHttp(_) => {
                let stream = TcpStream::connect((OPENAI, OPENAI_PORT)).await?;
                self.shared().dialled.insert(stream.local_addr()?.port(), (index, n));
                attempt.made = true;
                Ok(stream)
            }
        }
    }
}

/// A connection that is being made. Dropped before it is, it never was.
struct Attempt {
    model: Kept<Model>,
    made: bool,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut model = self.model.get();
        if !self.made && !model.is_finished() {
            model.refused("the bridge gave up dialling", now());
        }
    }
}

impl bridge::tools::Tools for Play {
    async fn run(&self, _call_sid: &str, name: &str, _arguments: &str) -> Result<String, String> {
        let Some(script) = self.scenario.tools.iter().find(|tool| tool.name == name) else {
            return Err("unknown function".into());
        };
        let ToolScript { after_ms, output, error, never, .. } = script;
        if *never {
            return pending().await;
        }
        tokio::time::sleep(Duration::from_millis(*after_ms)).await;
        match output {
            Some(output) => Ok(output.clone()),
            None => Err(error.clone().unwrap_or_default()),
        }
    }
}

fn config(scenario: &Scenario) -> Config {
    let mut config = Config::default();
    config.openai.api_key = Secret::new(API_KEY);
    config.openai.url = OPENAI_URL.parse().expect("the constant is a URL");
    config.max_calls = scenario.server.max_calls;
    config.drain_ms = scenario.server.drain_ms;
    config.call = scenario.bridge.clone();
    config
}

async fn bridge(play: Play, shutdown: oneshot::Receiver<()>) -> turmoil::Result {
    let listener = Listener(TcpListener::bind(("0.0.0.0", BRIDGE_PORT)).await?);
    let config = Arc::new(config(&play.scenario));
    let server = Server::new(play.clone(), play.clone(), play.clone(), config).with_wall_clock(unix_now);
    play.shared().stats = Some(server.stats());
    let shutdown = async {
        // The world drops the sender only when it is over.
        let _either_way = shutdown.await;
    };
    let served = server.run(listener, shutdown).await;
    play.shared().served = Some(served);
    // A host that ends is not stepped any more; what the server left behind would not be seen.
    pending().await
}

// ---------------------------------------------------------------------------------------- the far ends

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER)
}

/// Plays a mock until its connection ends or the weather resets it.
async fn converse<S, P>(socket: WebSocketStream<S>, peer: Kept<P>, cut_at_ms: Option<u64>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: Peer,
{
    let cut = async {
        match cut_at_ms.map(At::ms).filter(|cut| *cut > now()) {
            Some(cut) => tokio::time::sleep(Duration::from_micros(cut.since(now()))).await,
            None => pending().await,
        }
    };
    let reset = {
        let attached = pin!(attach(socket, peer.clone(), now));
        let cut = pin!(cut);
        tokio::select! {
            biased;
            () = cut => true,
            _same = attached => false,
        }
        // The socket goes with the block: nobody said goodbye.
    };
    if reset {
        peer.get().gone("connection reset by peer", now());
    }
    // What it still wanted to say has nowhere to go, and it is not finished before that was asked for.
    let mut peer = peer.get();
    while peer.poll_transmit().is_some() {}
}

async fn openai(play: Play) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", OPENAI_PORT)).await?;
    loop {
        let (stream, from) = listener.accept().await?;
        tokio::spawn(model(play.clone(), stream, from));
    }
}

#[expect(clippy::result_large_err, reason = "the handshake's callback has this type")]
async fn model(play: Play, mut stream: TcpStream, from: SocketAddr) {
    // The request comes at least one way later than the connection; by then the dialler has said whose it is.
    if stream.peek(&mut [0]).await.is_err() {
        return;
    }
    let model = {
        let shared = play.shared();
        let Some((index, n)) = shared.dialled.get(&from.port()).copied() else { return };
        shared.models[index][n].clone()
    };
    let dial = model.get().script().dial.clone();
    let mut request = None;
    let opened = tokio_tungstenite::accept_hdr_async_with_config(
        Line::new(stream),
        |asked: &Request, answer: Response| {
            request = Some(asked.clone());
            match dial {
                Dial::AnswersHttp(status) => {
                    let status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::BAD_GATEWAY);
                    let mut refusal = ErrorResponse::new(None);
                    *refusal.status_mut() = status;
                    Err(refusal)
                }
                Dial::Accepts | Dial::Refuses | Dial::Hangs | Dial::HangsInUpgrade => Ok(answer),
            }
        },
        Some(websocket_config()),
    );
    let opened = if dial == Dial::HangsInUpgrade {
        model.get().refused("the upgrade is never answered", now());
        // Held until the bridge gives up.
        let _stream = opened;
        return pending().await;
    } else {
        opened.await
    };
    if let Some(request) = request {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let headers =
            request.headers().iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let mut model = model.get();
        model.set_query(&target);
        model.set_headers(headers);
    }
    match opened {
        Ok(mut socket) => {
            let dark = model.get().script().goes_dark_after_ms;
            socket.get_mut().mute_at = dark.map(|ms| now().plus_ms(ms));
            converse(socket, model, play.scenario.weather.model.cut_at_ms).await;
        }
        Err(WebSocketError::Http(answer)) => {
            model.get().refused(&format!("the upgrade is answered with {}", answer.status().as_u16()), now());
        }
        Err(_) => model.get().refused("the bridge gave up dialling", now()),
    }
}

async fn callers(play: Play) -> turmoil::Result {
    for planned in play.planned.iter().cloned() {
        tokio::spawn(caller(play.clone(), planned));
    }
    pending().await
}

async fn caller(play: Play, planned: PlannedCall) {
    let caller = play.callers[planned.index].clone();
    tokio::time::sleep(Duration::from_micros(At::ms(planned.at_ms).since(now()))).await;
    let mut request = http::Request::get(format!("ws://{BRIDGE}:{BRIDGE_PORT}/twilio"))
        .header("Host", format!("{BRIDGE}:{BRIDGE_PORT}"));
    for (name, value) in caller.get().upgrade_headers() {
        request = request.header(name, value);
    }
    let weather = &play.scenario.weather.caller;
    let rate = weather.reads_bytes_per_s;
    let pongs = play.scenario.calls[planned.plan].caller.pong;
    let dialled = async {
        let request = request.body(()).map_err(|_| 0_u16)?;
        let stream = TcpStream::connect((BRIDGE, BRIDGE_PORT)).await.map_err(|_| 0_u16)?;
        let line = Line { rate, pongs, ..Line::new(stream) };
        match tokio_tungstenite::client_async_with_config(request, line, Some(websocket_config())).await {
            Ok((socket, _answer)) => Ok(socket),
            Err(WebSocketError::Http(answer)) => Err(answer.status().as_u16()),
            Err(_) => Err(0),
        }
    };
    let patience = Duration::from_millis(super::UPGRADE_PATIENCE_MS);
    match tokio::time::timeout(patience, dialled).await.unwrap_or(Err(0)) {
        Ok(socket) => converse(socket, caller, weather.cut_at_ms).await,
        Err(status) => caller.get().refused(status, now()),
    }
}

/// The far end's side of a connection, with what a WebSocket library cannot be told: to read slowly, to say nothing
/// any more, not to answer pings.
struct Line {
    stream: TcpStream,
    /// Bytes read per second at most.
    rate: Option<u64>,
    /// What was read takes its time until then.
    busy_until: At,
    rest: Option<Pin<Box<tokio::time::Sleep>>>,
    /// What is written from then on goes nowhere.
    mute_at: Option<At>,
    /// Pongs are written.
    pongs: bool,
    /// Taken, but not written yet.
    stash: Vec<u8>,
}

impl Line {
    const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            rate: None,
            busy_until: At(0),
            rest: None,
            mute_at: None,
            pongs: true,
            stash: Vec::new(),
        }
    }

    /// Writes what was taken before.
    fn poll_stash(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.stash.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.stash))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.stash.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

/// What is left of these WebSocket frames without the pongs. What is no frame is left as it is.
fn without_pongs(mut bytes: &[u8]) -> Vec<u8> {
    const PONG: u8 = 0x8A;
    let mut kept = Vec::with_capacity(bytes.len());
    while let [first, second, rest @ ..] = bytes {
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, extra) = match (second & 0x7F, rest) {
            (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 2),
            (127, [a, b, c, d, e, f, g, h, ..]) => {
                let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
                (usize::try_from(length).unwrap_or(usize::MAX), 8)
            }
            (short, _) => (usize::from(short), 0),
        };
        let end = length.saturating_add(2 + extra + mask).min(bytes.len());
        if *first != PONG {
            kept.extend_from_slice(&bytes[..end]);
        }
        bytes = &bytes[end..];
    }
    kept.extend_from_slice(bytes);
    kept
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        let Some(rate) = self.rate else { return Pin::new(&mut self.stream).poll_read(cx, buf) };
        // A hundredth of a second at a time, so that a slow reader is slow and not merely late.
        let most = usize::try_from((rate / 100).max(64)).unwrap_or(usize::MAX).min(buf.remaining());
        let mut part = vec![0; most];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        // Counted from when it was free, or each rounding of a timer would make it slower.
        let takes = part.filled().len() as u64 * 1_000_000 / rate.max(1);
        let now = now();
        let busy_until = At(self.busy_until.max(At(now.0.saturating_sub(2_000))).0 + takes);
        self.busy_until = busy_until;
        self.rest = Some(Box::pin(tokio::time::sleep(Duration::from_micros(busy_until.since(now)))));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.mute_at.is_some_and(|at| at <= now()) {
            return Poll::Ready(Ok(buf.len()));
        }
        if self.pongs {
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        ready!(self.poll_stash(cx))?;
        // The library writes whole frames, and all of a write is taken: each one begins with a frame.
        self.stash = without_pongs(buf);
        if let Poll::Ready(Err(error)) = self.poll_stash(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stash(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_stash(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// -------------------------------------------------------------------------------------------- the world

struct World<'a> {
    sim: Sim<'a>,
    play: Play,
    shutdown: Option<oneshot::Sender<()>>,
    /// Links that are held now.
    held: [bool; 2],
}

impl World<'_> {
    fn new(scenario: &Scenario, seed: Seed) -> Self {
        super::watch_panics();
        let planned: Arc<[PlannedCall]> = scenario.planned(seed).into();
        let people = planned
            .iter()
            .map(|call| {
                let script = scenario.calls[call.plan].caller.clone();
                Kept::new(Caller::new(
                    script,
                    call.identity.clone(),
                    seed.number(&format!("caller/{}", call.index)),
                ))
            })
            .collect();
        let shared = Shared { models: vec![Vec::new(); planned.len()], ..Shared::default() };
        let play = Play {
            scenario: Arc::new(scenario.clone()),
            seed,
            planned,
            callers: people,
            shared: Arc::new(Mutex::new(shared)),
        };
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
            if finished.is_none() && self.all_done() {
                finished = Some(self.now());
                self.shut_down();
            }
            if finished.is_some() && self.play.shared().served.is_some() {
                break;
            }
            let patience = scenario.server.drain_ms + WIND_DOWN_MS;
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

    fn all_done(&self) -> bool {
        let shared = self.play.shared();
        let carrying = shared.stats.as_ref().is_none_or(|stats| stats.active() > 0);
        if carrying || !self.play.callers.iter().all(|caller| caller.get().is_finished()) {
            return false;
        }
        let dark = !self.play.scenario.weather.model.passes(self.now());
        shared.models.iter().flatten().all(|model| {
            let mut model = model.get();
            // In the dark nobody tells the model that the call is over; its end of it proves nothing any more.
            if dark && !model.is_finished() {
                model.gone("the connection timed out", self.now());
            }
            model.is_finished()
        })
    }

    fn trace(self, finished: Option<At>, cut: bool, broken: Vec<String>) -> Trace {
        let ended_at = self.now();
        let Self { sim, play, .. } = self;
        let shared = play.shared();
        let mut leftovers = Vec::new();
        if let Some(stats) = &shared.stats {
            if stats.active() > 0 {
                leftovers.push(format!("{} calls are still active", stats.active()));
            }
            if stats.registered() > 0 {
                leftovers.push(format!("{} calls are still registered", stats.registered()));
            }
        }
        if let Some(served) = shared.served
            && served.active_at_end > 0
        {
            leftovers.push(format!("{} calls outlived the drain and were cut", served.active_at_end));
        }
        if finished.is_some() && shared.served.is_none() && broken.is_empty() {
            leftovers.push("the server did not stop within its drain time".to_owned());
        }
        drop(shared);
        // Every task of the world ends here; what panics while it goes is noted like the rest.
        if catch_unwind(AssertUnwindSafe(|| drop(sim))).is_err() {
            leftovers.push("a host of the world could not be taken down".to_owned());
        }
        let mut shared = play.shared();
        let mut panics = super::panics_seen();
        if panics.is_empty() {
            panics.extend(broken);
        }
        if let Some(served) = shared.served
            && served.panicked > panics.len() as u64
        {
            panics.push(format!("{} calls panicked, as the server counts", served.panicked));
        }
        let events = attribute(&play, &mut shared);
        let calls = events.into_iter().enumerate().map(|(index, bridge)| CallTrace {
            index,
            caller: play.callers[index].get().record().clone(),
            models: shared.models[index].iter().map(|model| model.get().record().clone()).collect(),
            bridge,
        });
        Trace {
            calls: calls.collect(),
            scenario: play.scenario.clone(),
            stage: StageKind::Simulated,
            seed: play.seed,
            ended_at,
            leftovers,
            panics,
            cut,
        }
    }
}

/// The events of each call. A call whose stream never started has no name; such calls are told apart by the order
/// in which they were taken.
fn attribute(play: &Play, shared: &mut Shared) -> Vec<Vec<(At, CallEvent)>> {
    let mut opened: Vec<(At, usize)> = Vec::new();
    for (index, caller) in play.callers.iter().enumerate() {
        let caller = caller.get();
        let seen = caller.record().sightings.iter().find(|seen| matches!(seen.what, CallerSight::Opened));
        opened.extend(seen.map(|seen| (seen.at, index)));
    }
    opened.sort_unstable();
    let mut nameless: VecDeque<usize> = opened
        .into_iter()
        .map(|(_, index)| index)
        .filter(|index| shared.keys.values().all(|named| named != index))
        .collect();
    let mut by_call = vec![Vec::new(); play.planned.len()];
    for (key, events) in std::mem::take(&mut shared.events) {
        if let Some(index) = shared.keys.get(&key).copied().or_else(|| nameless.pop_front()) {
            by_call[index] = events;
        }
    }
    by_call
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
    use mocks::record::ModelSight;

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
    fn pongs_are_taken_out_and_nothing_else() {
        let frames: [&[u8]; 5] = [
            &[0x81, 0x02, b'h', b'i'],
            &[0x8A, 0x80, 1, 2, 3, 4],
            &[0x81, 0x83, 1, 2, 3, 4, 9, 9, 9],
            &[0x8A, 0x81, 1, 2, 3, 4, 9],
            &[0x88, 0x80, 1, 2, 3, 4],
        ];
        let mut long = vec![0x82, 126, 1, 0];
        long.resize(4 + 256, 0x8A);
        let bytes = [frames.concat(), long.clone()].concat();
        assert_eq!(without_pongs(&bytes), [frames[0], frames[2], frames[4], &long].concat());
        assert_eq!(without_pongs(&[0x81]), [0x81], "what is cut short is left alone");
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
