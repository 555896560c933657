//! What the two backends over the production shell share: everything but the network, its clock and how time goes on.
//!
//! [`bridge::server::serve::Server`] is played as it ships, between mocks that speak through real WebSockets. A [`Net`] gives
//! it a listener and connections; the rest, who is dialled, what each end saw and what became of the server, is the
//! same whatever the bytes travel through.

use super::common::thread_cpu;
use super::common::{AUTH_TOKEN, EPOCH_UNIX, STREAM_URL, UPGRADE_PATIENCE_MS, WEBHOOK_URL};
use crate::model::backend::Backend;
use crate::model::scenario::{PlannedCall, Scenario, ToolScript};
use crate::model::seed::Seed;
use crate::sim::in_memory_journal::InMemoryJournal;
use crate::sim::trace::{CallTrace, Network, Trace};
use anyhow::bail;
use bridge::app::config::Config;
use bridge::call::event::CallEvent;
use bridge::runtime::journal::Journal;
use bridge::runtime::observe::Observe;
use bridge::runtime::registry::CallKey;
use bridge::server::serve::{Served, Server};
use bridge::server::stats::Stats;
use bridge::wire::twiml::TOKEN_PARAMETER;
use mocks::attach::attach;
use mocks::cork::Cork;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{Dial, Model, ModelIdentity};
use mocks::record::CallerObservation;
use mocks::twilio::{Caller, Connect};
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

pub(super) const BRIDGE: &str = "bridge";
pub(super) const BRIDGE_PORT: u16 = 8084;
const OPENAI_URL: &str = "ws://openai:80/v1/realtime";
/// How long the world goes on after its last call, ms beyond the drain time: the server gives calls that say their
/// last words 90 s more before it cuts them.
const WIND_DOWN_MS: u64 = 95_000;
/// What the mocks' WebSockets read at once; the library zeroes this much on each read.
const READ_BUFFER: usize = 8 * 1024;

/// One connection of the bridge to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Dialled {
    /// Which call dialled.
    pub(super) call: usize,
    /// Counts the connections of that call.
    pub(super) n: usize,
}

/// A network, with its clock.
pub(super) trait Net: Clone + Send + Sync + Unpin + 'static {
    /// One end of a connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Scenario time, on whichever host runs.
    fn now(&self) -> At;
    /// Connects the bridge to the model's server, which plays [`model`] at the other end.
    fn dial_model(&self, dialled: Dialled) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Connects the bridge to where no process listens.
    fn dial_closed_port(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Connects a caller's end to the bridge.
    fn dial_bridge(&self, call: usize) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Where the model is, in the bridge's settings.
    fn openai_url(&self) -> String {
        OPENAI_URL.to_owned()
    }

    /// How a caller's end is to ask for its upgrade, in time for the dial that follows.
    fn invite(&self, _call: usize) -> impl Future<Output = io::Result<Invited>> + Send {
        let url = format!("ws://{BRIDGE}:{BRIDGE_PORT}/twilio");
        std::future::ready(Ok(Invited { url, host: format!("{BRIDGE}:{BRIDGE_PORT}"), ..Invited::default() }))
    }
}

/// What is known of the bridge when its WebSocket is dialled.
#[derive(Clone, Debug, Default)]
pub(super) struct Invited {
    /// The address that is asked for.
    pub(super) url: String,
    /// The host it is asked of.
    pub(super) host: String,
    /// Further headers.
    pub(super) headers: Vec<(String, String)>,
    /// What `start` is to carry beside what the script says.
    pub(super) parameters: BTreeMap<String, String>,
}

/// Whether this program was built so that schedules are seeded.
///
/// # Errors
/// When it was built without `--cfg tokio_unstable`: then schedules are not seeded and a panic in a task is
/// swallowed. The message says what to do.
pub(super) fn seeded() -> anyhow::Result<()> {
    if cfg!(tokio_unstable) {
        return Ok(());
    }
    bail!(
        "the backends over the production shell need `--cfg tokio_unstable`, or panics are swallowed and seeds mean \
         nothing. .cargo/config.toml sets it, but an exported RUSTFLAGS takes its place: run `unset RUSTFLAGS`, or \
         add `--cfg tokio_unstable` to it, and build again"
    )
}

/// Plays a scenario on a thread of its own, so that nothing leaks from one seed into the next, and says how much
/// processor time that took.
///
/// # Panics
/// When schedules are not [`seeded`], and when `play` does.
pub(super) fn on_a_fresh_thread(play: impl FnOnce() -> Trace + Send) -> (Trace, Option<Duration>) {
    if let Err(error) = seeded() {
        panic!("{error}");
    }
    let played = std::thread::scope(|scope| {
        let world = scope.spawn(|| {
            let trace = play();
            (trace, thread_cpu())
        });
        world.join()
    });
    played.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The wall clock of the world, Unix seconds.
fn unix_now(now: At) -> i64 {
    EPOCH_UNIX + i64::try_from(now.0 / 1_000_000).unwrap_or(i64::MAX)
}

/// A mock that can be read while it is played, and after its connection is gone.
pub(super) struct Kept<P>(Arc<Mutex<P>>);

impl<P> Kept<P> {
    pub(super) fn new(peer: P) -> Self {
        Self(Arc::new(Mutex::new(peer)))
    }

    pub(super) fn get(&self) -> MutexGuard<'_, P> {
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
pub(super) struct Shared {
    /// Connections to the model, by call.
    models: Vec<Vec<Kept<Model>>>,
    /// What the bridge said happened, by call of the server.
    events: BTreeMap<CallKey, Vec<(At, CallEvent)>>,
    /// Which call of the scenario a call of the server is, once its stream is known.
    keys: BTreeMap<CallKey, usize>,
    /// What the answers of their webhooks gave the calls.
    tokens: BTreeMap<usize, String>,
    /// Calls that are about to dial, in order.
    dialing: VecDeque<usize>,
    /// What the server is doing.
    stats: Option<Stats>,
    /// What became of it.
    pub(super) served: Option<Served>,
}

/// One scenario while it is played; clones see the same play.
#[derive(Clone)]
pub(super) struct Play<N> {
    pub(super) net: N,
    pub(super) scenario: Arc<Scenario>,
    seed: Seed,
    pub(super) planned: Arc<[PlannedCall]>,
    callers: Arc<[Kept<Caller>]>,
    shared: Arc<Mutex<Shared>>,
    /// Where the calls' journals go, if they are kept.
    journals: Option<InMemoryJournal>,
}

/// How a world ended.
pub(super) struct Ending {
    /// When.
    pub(super) at: At,
    /// When every end was done, if they ever were.
    pub(super) finished: Option<At>,
    /// The time limit ended it.
    pub(super) cut: bool,
    /// What broke it.
    pub(super) broken: Vec<String>,
}

impl<N: Net> Play<N> {
    /// Every end in place, nothing begun. From now on panics of this thread are noted.
    pub(super) fn new(net: N, scenario: &Scenario, seed: Seed, journals: Option<&InMemoryJournal>) -> Self {
        super::common::watch_panics();
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
        Self {
            net,
            scenario: Arc::new(scenario.clone()),
            seed,
            planned,
            callers: people,
            shared: Arc::new(Mutex::new(shared)),
            journals: journals.cloned(),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the world goes on once every end is done, for the server to stop, ms.
    pub(super) fn patience_ms(&self) -> u64 {
        self.scenario.server.drain_ms + WIND_DOWN_MS
    }

    /// A model for the next connection of this call, and how many it had before.
    pub(super) fn place_model(&self, index: usize) -> (usize, Kept<Model>) {
        let mut shared = self.shared();
        let n = shared.models[index].len();
        let planned = &self.planned[index];
        let identity = ModelIdentity {
            call_sid: planned.identity.call_sid.clone(),
            index: (index + n * self.planned.len()) as u64,
            epoch_unix: EPOCH_UNIX,
        };
        let script = self.scenario.calls[planned.plan].model.of_connection(n);
        let mut model = Model::new(script, identity, self.seed.number(&format!("model/{index}/{n}")));
        if let Some(before) = shared.models[index].last() {
            model.goes_on(before.get().progress());
        }
        let model = Kept::new(model);
        shared.models[index].push(model.clone());
        (n, model)
    }

    /// The caller's end of this call.
    pub(super) fn caller(&self, index: usize) -> &Kept<Caller> {
        &self.callers[index]
    }

    /// The model's ends of this call, one for each connection so far.
    pub(super) fn models(&self, index: usize) -> Vec<Kept<Model>> {
        self.shared().models[index].clone()
    }

    /// Every caller's end is done.
    pub(super) fn callers_done(&self) -> bool {
        self.callers.iter().all(|caller| caller.get().is_finished())
    }

    /// No end has anything left to do.
    pub(super) fn all_done(&self, now: At) -> bool {
        let shared = self.shared();
        let carrying = shared.stats.as_ref().is_none_or(|stats| stats.active() > 0);
        if carrying || !self.callers_done() {
            return false;
        }
        let dark = !self.scenario.network.model.passes(now);
        shared.models.iter().flatten().all(|model| {
            let mut model = model.get();
            // In the dark the model is not told that the call is over; its end of it proves nothing any more.
            if dark && !model.is_finished() {
                model.gone("the connection timed out", now);
            }
            model.is_finished()
        })
    }

    /// What came of it. `take_down` ends every task of the world.
    pub(super) fn trace(&self, backend: Backend, ending: Ending, take_down: impl FnOnce()) -> Trace {
        let Ending { at: ended_at, finished, cut, broken } = ending;
        let shared = self.shared();
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
        // What panics while the world goes is noted like the rest.
        if catch_unwind(AssertUnwindSafe(take_down)).is_err() {
            leftovers.push("a host of the world could not be taken down".to_owned());
        }
        let mut shared = self.shared();
        let mut panics = super::common::panics_seen();
        if panics.is_empty() {
            panics.extend(broken);
        }
        if let Some(served) = shared.served
            && served.panicked > panics.len() as u64
        {
            panics.push(format!("{} calls panicked, as the server counts", served.panicked));
        }
        let events = attribute(self, &mut shared);
        let calls = events.into_iter().enumerate().map(|(index, bridge)| CallTrace {
            index,
            caller: self.callers[index].get().record().clone(),
            models: shared.models[index].iter().map(|model| model.get().record().clone()).collect(),
            bridge,
        });
        Trace {
            calls: calls.collect(),
            scenario: self.scenario.clone(),
            backend,
            seed: self.seed,
            ended_at,
            leftovers,
            panics,
            cut,
            network: Network::default(),
            lag_us: 0,
        }
    }
}

// ------------------------------------------------------------------------------------------- the bridge

impl<N: Net> Observe for Play<N> {
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
        // What grows is said again at the end, and is no trace's business before.
        if matches!(event, CallEvent::Said(_)) {
            return;
        }
        shared.events.entry(call).or_default().push((self.net.now(), event.clone()));
    }
}

impl<N: Net> bridge::net::dial::Dial for Play<N> {
    type Stream = N::Stream;

    async fn dial(&self) -> io::Result<N::Stream> {
        let next = self.shared().dialing.pop_front();
        let index = next.ok_or_else(|| io::Error::other("a dial without a call"))?;
        let (n, model) = self.place_model(index);
        let (dial, dial_ms) = {
            let model = model.get();
            (model.script().dial.clone(), model.script().dial_ms)
        };
        let mut attempt = Attempt { net: self.net.clone(), model: model.clone(), made: false };
        tokio::time::sleep(Duration::from_millis(dial_ms)).await;
        match dial {
            Dial::Hangs => {
                model.get().refused("the connection is never made", self.net.now());
                pending().await
            }
            Dial::Refuses => {
                model.get().refused("the connection is refused", self.net.now());
                self.net.dial_closed_port().await
            }
            Dial::Accepts | Dial::HangsInUpgrade | Dial::AnswersHttp(_) => {
                let stream = self.net.dial_model(Dialled { call: index, n }).await?;
                attempt.made = true;
                Ok(stream)
            }
        }
    }
}

/// A connection that is being made. Dropped before it is, it never was.
struct Attempt<N: Net> {
    net: N,
    model: Kept<Model>,
    made: bool,
}

impl<N: Net> Drop for Attempt<N> {
    fn drop(&mut self) {
        let now = self.net.now();
        let mut model = self.model.get();
        if !self.made && !model.is_finished() {
            model.refused("the bridge gave up dialling", now);
        }
    }
}

impl<N: Net> bridge::net::tools::Tools for Play<N> {
    async fn run(
        &self,
        call_sid: &str,
        _call_id: &str,
        name: &str,
        _arguments: &str,
    ) -> Result<String, String> {
        let ToolScript { after_ms, output, error, never, .. } = super::common::function(&self.scenario, name);
        if never {
            return pending().await;
        }
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        let Some(output) = output else { return Err(error.unwrap_or_default()) };
        if super::common::takes_away(name) {
            // Its socket hears of it when it next has something to do, a frame later at most.
            let streams = self.planned.iter().filter(|planned| planned.identity.call_sid == call_sid);
            streams.for_each(|planned| self.callers[planned.index].get().taken_away(self.net.now()));
        }
        Ok(output)
    }
}

fn config(scenario: &Scenario, openai_url: &str) -> Config {
    let mut config = super::common::settings(scenario);
    config.openai.url = openai_url.parse().expect("a backend knows where its model is");
    config
}

/// The production server behind `listener`, until it is told to shut down and has.
pub(super) async fn serve<N, L>(play: Play<N>, listener: L, shutdown: oneshot::Receiver<()>)
where
    N: Net,
    L: axum::serve::Listener<Addr: bridge::server::connections::Peer>,
{
    let net = play.net.clone();
    let settings = Arc::new(config(&play.scenario, &net.openai_url()).server());
    let journals = play.journals.clone().map(|journals| Arc::new(journals) as Arc<dyn Journal>);
    let server = Server::new(play.clone(), play.clone(), play.clone(), settings)
        .with_wall_clock(move || unix_now(net.now()))
        .with_process(1)
        .with_journal(journals);
    play.shared().stats = Some(server.stats());
    let shutdown = async {
        // The world drops the sender only when it is over.
        let _either_way = shutdown.await;
    };
    let served = server.run(listener, shutdown).await;
    play.shared().served = Some(served);
}

// ---------------------------------------------------------------------------------------- the far ends

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER)
}

/// Plays a mock until its connection ends or the network resets it.
async fn converse<N, S, P>(net: N, socket: WebSocketStream<S>, peer: Kept<P>, cut_at_ms: Option<u64>)
where
    N: Net,
    S: AsyncRead + AsyncWrite + Unpin,
    P: Peer,
{
    let clock = {
        let net = net.clone();
        move || net.now()
    };
    let cut = async {
        match cut_at_ms.map(At::ms).filter(|cut| *cut > net.now()) {
            Some(cut) => tokio::time::sleep(Duration::from_micros(cut.since(net.now()))).await,
            None => pending().await,
        }
    };
    let reset = {
        let attached = pin!(attach(socket, peer.clone(), clock));
        let cut = pin!(cut);
        tokio::select! {
            biased;
            () = cut => true,
            _same = attached => false,
        }
        // The socket goes with the block, without a goodbye.
    };
    if reset {
        peer.get().gone("connection reset by peer", net.now());
    }
    // What it still wanted to say has nowhere to go, and it is not finished before that was asked for.
    let mut peer = peer.get();
    while peer.poll_transmit().is_some() {}
}

#[expect(clippy::result_large_err, reason = "the handshake's callback has this type")]
/// The model's end of a connection.
pub(super) async fn model<N: Net>(play: Play<N>, stream: N::Stream, dialled: Dialled) {
    let net = play.net.clone();
    let model = play.shared().models[dialled.call][dialled.n].clone();
    let dial = model.get().script().dial.clone();
    let mut request = None;
    let opened = tokio_tungstenite::accept_hdr_async_with_config(
        corked(Line::new(net.clone(), stream), &dial),
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
        model.get().refused("the upgrade is never answered", net.now());
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
            socket.get_mut().get_mut().mute_at = dark.map(|ms| net.now().plus_ms(ms));
            socket.get_mut().draw();
            converse(net, socket, model, play.scenario.network.model.cut_at_ms).await;
        }
        Err(WebSocketError::Http(answer)) => {
            model
                .get()
                .refused(&format!("the upgrade is answered with {}", answer.status().as_u16()), net.now());
        }
        Err(_) => model.get().refused("the bridge gave up dialling", net.now()),
    }
}

/// An answer that lets the bridge in leaves with the first frame, if that is there at once.
fn corked<S>(line: S, dial: &Dial) -> Cork<S> {
    match dial {
        Dial::Accepts => Cork::new(line),
        Dial::Refuses | Dial::Hangs | Dial::HangsInUpgrade | Dial::AnswersHttp(_) => Cork::open(line),
    }
}

/// Twilio asks the bridge what to do with a call: the stream gets its token, or there is no stream.
async fn webhook<N: Net>(play: &Play<N>, planned: &PlannedCall) -> Result<(), u16> {
    let credentials = play.scenario.calls[planned.plan].caller.credentials;
    let before = play.planned[..planned.index].iter().map(|planned| &planned.identity);
    let form = super::common::webhook_form(&planned.identity, credentials, before);
    let body: Vec<String> =
        form.iter().map(|(name, value)| format!("{name}={}", value.replace('+', "%2B"))).collect();
    let body = body.join("&");
    let signature = credentials.of_webhook(AUTH_TOKEN, WEBHOOK_URL, &form);
    let signed = signature.map(|value| format!("X-Twilio-Signature: {value}\r\n")).unwrap_or_default();
    let request = format!(
        "POST /voice HTTP/1.1\r\nHost: {BRIDGE}:{BRIDGE_PORT}\r\nConnection: close\r\n{signed}\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = play.net.dial_bridge(planned.index).await.map_err(|_| 0_u16)?;
    stream.write_all(request.as_bytes()).await.map_err(|_| 0_u16)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|_| 0_u16)?;
    let answer = String::from_utf8_lossy(&answer);
    let status: u16 = answer.get(9..12).and_then(|status| status.parse().ok()).ok_or(0_u16)?;
    if status != 200 {
        return Err(status);
    }
    // TwiML without a stream: Twilio opens none.
    let connect = Connect::read(&answer).ok_or(503_u16)?;
    let token = connect.parameter(TOKEN_PARAMETER).map(str::to_owned);
    let mut shared = play.shared();
    let before = planned.index.checked_sub(1).and_then(|before| shared.tokens.get(&before).cloned());
    shared.tokens.extend(token.clone().map(|token| (planned.index, token)));
    drop(shared);
    let shown = credentials.token(token, before).map(|token| (TOKEN_PARAMETER.to_owned(), token));
    play.callers[planned.index].get().carries(shown);
    Ok(())
}

/// A caller's end, from the dialling to the end of its connection.
pub(super) async fn caller<N: Net>(play: Play<N>, planned: PlannedCall) {
    let net = play.net.clone();
    let caller = play.callers[planned.index].clone();
    tokio::time::sleep(Duration::from_micros(At::ms(planned.at_ms).since(net.now()))).await;
    let Ok(invited) = net.invite(planned.index).await else {
        return caller.get().refused(0, net.now());
    };
    let mut request = http::Request::get(invited.url).header("Host", invited.host);
    for (name, value) in caller.get().upgrade_headers().into_iter().chain(invited.headers) {
        request = request.header(name, value);
    }
    caller.get().carries(invited.parameters);
    if play.scenario.server.signed {
        let webhook =
            tokio::time::timeout(Duration::from_millis(UPGRADE_PATIENCE_MS), webhook(&play, &planned));
        if let Err(status) = webhook.await.unwrap_or(Err(0)) {
            return caller.get().refused(status, net.now());
        }
        let credentials = play.scenario.calls[planned.plan].caller.credentials;
        if let Some(signature) = credentials.of_upgrade(AUTH_TOKEN, STREAM_URL) {
            request = request.header("X-Twilio-Signature", signature);
        }
    }
    let conditions = &play.scenario.network.caller;
    let rate = conditions.reads_bytes_per_s;
    let pongs = play.scenario.calls[planned.plan].caller.pong;
    let dialled = async {
        let request = request.body(()).map_err(|_| 0_u16)?;
        let stream = net.dial_bridge(planned.index).await.map_err(|_| 0_u16)?;
        let line = Line { rate, pongs, ..Line::new(net.clone(), stream) };
        match tokio_tungstenite::client_async_with_config(request, line, Some(websocket_config())).await {
            Ok((socket, _answer)) => Ok(socket),
            Err(WebSocketError::Http(answer)) => Err(answer.status().as_u16()),
            Err(_) => Err(0),
        }
    };
    let patience = Duration::from_millis(UPGRADE_PATIENCE_MS);
    match tokio::time::timeout(patience, dialled).await.unwrap_or(Err(0)) {
        Ok(socket) => converse(net, socket, caller, conditions.cut_at_ms).await,
        Err(status) => caller.get().refused(status, net.now()),
    }
}

/// The far end's side of a connection, with what a WebSocket library cannot be told: to read slowly, to say nothing
/// any more, not to answer pings.
struct Line<N: Net> {
    net: N,
    stream: N::Stream,
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

impl<N: Net> Line<N> {
    const fn new(net: N, stream: N::Stream) -> Self {
        Self {
            net,
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

impl<N: Net> AsyncRead for Line<N> {
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
        let now = self.net.now();
        let busy_until = At(self.busy_until.max(At(now.0.saturating_sub(2_000))).0 + takes);
        self.busy_until = busy_until;
        self.rest = Some(Box::pin(tokio::time::sleep(Duration::from_micros(busy_until.since(now)))));
        Poll::Ready(Ok(()))
    }
}

impl<N: Net> AsyncWrite for Line<N> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.mute_at.is_some_and(|at| at <= self.net.now()) {
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

/// The events of each call. A call whose stream never started has no name; such calls are told apart by the order
/// in which they were taken.
fn attribute<N: Net>(play: &Play<N>, shared: &mut Shared) -> Vec<Vec<(At, CallEvent)>> {
    let mut opened: Vec<(At, usize)> = Vec::new();
    for (index, caller) in play.callers.iter().enumerate() {
        let caller = caller.get();
        let seen =
            caller.record().observations.iter().find(|seen| matches!(seen.what, CallerObservation::Opened));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalogue;
    use crate::sim;
    use mocks::record::ModelObservation;

    /// The backends over the production shell.
    const SHELLS: [Backend; 2] = [Backend::Simulated, Backend::Pipes];

    /// The traces of a scenario on both.
    fn of(text: &str) -> [Trace; 2] {
        let scenario = Scenario::from_toml("test", &format!("purpose = \"A test.\"\n{text}")).unwrap();
        SHELLS.map(|kind| sim::play(kind, &scenario, Seed(1)))
    }

    #[track_caller]
    fn quiet_end(traces: &[Trace], end: &str) {
        for trace in traces {
            assert_eq!(
                trace.ends(),
                [Some(end.to_owned())],
                "{}: {:#?}",
                trace.backend,
                trace.calls[0].bridge
            );
            let whole = trace.leftovers.is_empty() && trace.panics.is_empty() && !trace.cut;
            let lines = trace.lines();
            assert!(whole, "{}: {:#?}", trace.backend, &lines[lines.len().saturating_sub(20)..]);
        }
    }

    #[test]
    fn a_call_is_greeted_and_ends() {
        let scenario = &catalogue::find("greeting/plain")[0];
        let traces = SHELLS.map(|kind| sim::play(kind, scenario, Seed(1)));
        quiet_end(&traces, "stopped");
        for trace in traces {
            let heard: usize = trace.calls[0].caller.played.iter().map(|stretch| stretch.len).sum();
            assert!(heard >= 1_800 * 8, "{}: {heard} bytes", trace.backend);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_on_any_thread() {
        let scenario = &catalogue::find("barge_in/mid_answer")[0];
        for kind in SHELLS {
            let hashes: Vec<_> = std::thread::scope(|scope| {
                let plays: Vec<_> = (0..4)
                    .map(|n| scope.spawn(move || sim::play(kind, scenario, Seed(7 + n / 2)).hash()))
                    .collect();
                plays.into_iter().map(|play| play.join().unwrap()).collect()
            });
            let same = hashes[0] == hashes[1] && hashes[2] == hashes[3];
            assert!(same && hashes[0] != hashes[2], "{kind}: {hashes:?}");
        }
    }

    #[test]
    fn every_outcome_of_a_dial_ends_the_call() {
        for dial in ["\"refuses\"", "\"hangs\"", "\"hangs_in_upgrade\"", "{ answers_http = 503 }"] {
            let traces = of(&format!("[[call]]\ncaller.steps = [\"waits_for_close\"]\nmodel.dial = {dial}"));
            quiet_end(&traces, "dial_failed");
            for trace in traces {
                let seen = &trace.calls[0].models[0].observations;
                assert!(
                    seen.iter().any(|s| matches!(s.what, ModelObservation::Refused { .. })),
                    "{dial}: {seen:?}"
                );
            }
        }
    }

    #[test]
    fn a_full_server_refuses_with_503() {
        let full =
            "server.max_calls = 1\n[[call]]\nrepeat = 2\nevery_ms = 100\ncaller.steps = [{ waits = 900 }]";
        for trace in of(full) {
            assert_eq!(trace.ends(), [Some("stopped".into()), None], "{}", trace.backend);
            let seen = &trace.calls[1].caller.observations;
            assert!(seen.iter().any(|s| s.what == CallerObservation::Refused { status: 503 }), "{seen:?}");
        }
    }

    #[test]
    fn the_second_stream_of_a_call_replaces_the_first() {
        let call = "[[call]]\ncall_sid = \"CA1\"\ncaller.steps = [{ waits = 3000 }]\n";
        for trace in of(&format!("{call}{call}at_ms = 1000")) {
            assert_eq!(trace.ends(), [Some("replaced".into()), Some("stopped".into())], "{}", trace.backend);
        }
    }

    #[test]
    fn a_drain_ends_calls_when_its_time_is_over() {
        let traces = of(
            "server.drain_at_ms = 2000\nserver.drain_ms = 1500\n[[call]]\ncaller.steps = [\"waits_for_close\"]",
        );
        quiet_end(&traces, "drained");
    }

    #[test]
    fn a_cut_and_a_dark_leg_end_the_call() {
        let call = "[[call]]\ncaller.steps = [\"waits_for_close\"]\ncaller.hang_up_after_ms = 60000";
        quiet_end(&of(&format!("network.model.cut_at_ms = 2000\n{call}")), "model_lost");
        quiet_end(&of(&format!("network.caller.cut_at_ms = 2000\n{call}")), "caller_lost");
        quiet_end(&of(&format!("network.model.blackhole_at_ms = 2000\n{call}")), "model_silent");
        quiet_end(&of(&format!("network.caller.blackhole_at_ms = 2000\n{call}")), "caller_silent");
    }

    #[test]
    fn a_leg_that_is_dark_from_the_beginning_never_makes_a_connection() {
        let call = "[[call]]\ncaller.steps = [\"waits_for_close\"]";
        quiet_end(&of(&format!("network.model.blackhole_at_ms = 0\n{call}")), "dial_failed");
        for trace in of(&format!("network.caller.blackhole_at_ms = 0\n{call}")) {
            let seen = &trace.calls[0].caller.observations;
            assert!(seen.iter().any(|s| s.what == CallerObservation::Refused { status: 0 }), "{seen:?}");
        }
    }

    #[test]
    fn a_caller_who_does_not_read_is_given_up() {
        let traces = of(
            "world.tcp_capacity = 8\nbridge.timeouts.clogged_ms = 2000\nbridge.timeouts.pong_ms = 60000\n\
             bridge.greeting = \"Hi\"\n[[call]]\ncaller.steps = [\"hears_start\", \"stops_reading\", \"waits_for_close\"]\n\
             model.turns = [{ answers = 60000, speed = 20.0 }]",
        );
        quiet_end(&traces, "caller_clogged");
    }

    #[test]
    fn an_end_that_answers_no_ping_is_found() {
        let timeouts = "bridge.timeouts.ping_ms = 1000\nbridge.timeouts.pong_ms = 1500";
        let call = "[[call]]\ncaller.steps = [\"waits_for_close\"]\ncaller.hang_up_after_ms = 30000";
        quiet_end(&of(&format!("{timeouts}\n{call}\nmodel.goes_dark_after_ms = 2000")), "model_silent");
        let traces = of(&format!("{timeouts}\n{call}\ncaller.pong = false\ncaller.idle = \"dtx\""));
        quiet_end(&traces, "caller_silent");
    }

    #[test]
    fn a_dial_that_is_given_up_leaves_nothing_behind() {
        let traces = of("[[call]]\ncaller.steps = [{ waits = 400 }, \"hangs_up\"]\nmodel.dial_ms = 3000");
        quiet_end(&traces, "stopped");
        for trace in traces {
            let seen = &trace.calls[0].models[0].observations;
            assert!(
                matches!(seen.as_slice(), [only] if matches!(only.what, ModelObservation::Refused { .. })),
                "{seen:?}"
            );
        }
    }

    #[test]
    fn a_world_that_does_not_end_is_cut_at_its_limit() {
        for trace in of("world.limit_ms = 3000\n[[call]]\ncaller.steps = [{ waits = 9000 }]") {
            assert!(
                trace.cut && trace.ended_at >= At::ms(3_000) && trace.ended_at < At::ms(3_010),
                "{trace:?}"
            );
        }
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
}
