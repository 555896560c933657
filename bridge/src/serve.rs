//! The HTTP face: the webhook, the upgrade, the health of the process, and a clean end.
//!
//! The listener, the dialler, the clock on the wall and the signal to stop come from outside, so production and
//! simulation differ in those and in nothing else. Connections are served and bounded by [`crate::connections`] until
//! they become calls.

use crate::call::Control;
use crate::call::event::{CallEvent, EndReason};
use crate::config::Config;
use crate::connections::{self, Counts, HEADER_TIMEOUT, Limits, Peer};
use crate::dial::Dial;
use crate::door::{self, Door, NoAnswer, Refusal, Showing};
use crate::driver::{self, Host, News, Parts};
use crate::journal::{Beginning, Journal, Tape};
use crate::leg::{CALLER_MESSAGE_MAX, CALLER_WRITE_MAX, READ_BUFFER};
use crate::meter::Traffic;
use crate::operator;
use crate::registry::{CallKey, Registry};
use crate::rest::Carrier;
use crate::seldom::Seldom;
use crate::signature::{self, Body, Signed};
use crate::tls::Certificate;
use crate::tools::Tools;
use crate::twiml;
use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use hyper::body::Body as _;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument, Span, field::Empty};

/// Longest body of a request, bytes: what Twilio asks is a thousand or two.
const BODY_MAX: usize = 16 * 1024;
/// Most parameters of a form or a query: Twilio's have some thirty. A signature is over all of them, sorted, so that
/// reading many of them costs much before it is known whose they are.
const PARAMETERS_MAX: usize = 200;
/// How often it is measured how late the process comes to its tasks.
const LAG_EVERY: Duration = Duration::from_millis(100);
/// Streams that have not shown a token yet, at once. Twilio shows it within a tenth of a second; one more closes the oldest.
const UNADMITTED_MAX: usize = 256;
/// Wishes that wait for one call: it is asked to go, to be done by some time, to hang up.
const CONTROLS_MAX: usize = 8;
/// After the end of the drain time calls say their last words and close: what a call may take for that at most
/// (30 s of lead, the notice, its mark) is well below this. Whatever is left then is cut.
const DRAIN_GRACE: Duration = Duration::from_secs(90);

/// Is told what happens on every call. Called in the call's own task: whoever is slow here slows that call, so whoever
/// has to wait for something takes a note and leaves, and counts what finds no room.
///
/// For each call: `begins`, then events and traffic, then `gone`, whatever became of it. Several observers are one as
/// a pair, and one that may be missing is an `Option`.
pub trait Observe: Clone + Send + Sync + 'static {
    /// A caller's WebSocket was opened at `now`, which is `unix` on the wall clock, in seconds.
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        let _ = (call, now, unix);
    }

    /// `event` happened on `call` at `now`.
    fn event(&self, call: CallKey, now: Instant, event: &CallEvent);

    /// So much went through since the last time. About once a second, and once more behind [`CallEvent::Ended`].
    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        let _ = (call, now, traffic);
    }

    /// Nothing of the call is left. Without [`CallEvent::Ended`] before it, the call panicked or was cut.
    fn gone(&self, call: CallKey) {
        let _ = call;
    }
}

impl<A: Observe, B: Observe> Observe for (A, B) {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        self.0.begins(call, now, unix);
        self.1.begins(call, now, unix);
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        self.0.event(call, now, event);
        self.1.event(call, now, event);
    }

    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        self.0.traffic(call, now, traffic);
        self.1.traffic(call, now, traffic);
    }

    fn gone(&self, call: CallKey) {
        self.0.gone(call);
        self.1.gone(call);
    }
}

impl<O: Observe> Observe for Option<O> {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        self.iter().for_each(|observe| observe.begins(call, now, unix));
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        self.iter().for_each(|observe| observe.event(call, now, event));
    }

    fn traffic(&self, call: CallKey, now: Instant, traffic: &Traffic) {
        self.iter().for_each(|observe| observe.traffic(call, now, traffic));
    }

    fn gone(&self, call: CallKey) {
        self.iter().for_each(|observe| observe.gone(call));
    }
}

/// Sees to it that an observer hears of a call's going, whatever ends it.
struct Watch<O: Observe>(O, CallKey);

impl<O: Observe> Drop for Watch<O> {
    fn drop(&mut self) {
        self.0.gone(self.1);
    }
}

/// Observes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observe for Unobserved {
    fn event(&self, _call: CallKey, _now: Instant, _event: &CallEvent) {}
}

/// What a server did, once it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Calls carried.
    pub calls: u64,
    /// Calls and connections that ended in a panic: each one is a bug.
    pub panicked: u64,
    /// Upgrades refused because the server was full or draining.
    pub refused: u64,
    /// Calls that did not end in time after the drain and were cut.
    pub active_at_end: usize,
}

/// What a server is doing now. A handle: clones see the same server.
#[derive(Clone, Default)]
pub struct Stats(Arc<Shared>);

#[derive(Default)]
struct Shared {
    active: AtomicUsize,
    calls: AtomicU64,
    refused: AtomicU64,
    panicked: AtomicU64,
    unsigned: AtomicU64,
    /// Streams that were closed before they were admitted, and webhooks of calls that are over.
    rejected: AtomicU64,
    replayed: AtomicU64,
    /// WebSockets whose stream was not admitted yet.
    unadmitted: AtomicUsize,
    /// How late the process comes to its tasks, microseconds.
    lag_us: AtomicU64,
    draining: AtomicBool,
    /// Connections of every listener that are no calls.
    connections: Counts,
    unsigned_line: Seldom,
    rejected_line: Seldom,
    refused_line: Seldom,
    /// A call, or an upgrade on its way to one, has ended.
    freed: Notify,
    rooms: Mutex<Rooms>,
}

#[derive(Default)]
struct Rooms {
    registry: Registry,
    /// Which call carries which stream.
    streams: BTreeMap<String, CallKey>,
    controls: BTreeMap<CallKey, mpsc::Sender<Control>>,
    /// Streams that were not admitted yet, oldest first.
    unadmitted: BTreeMap<CallKey, AbortHandle>,
}

impl Stats {
    /// Calls now, and upgrades on their way to one.
    pub fn active(&self) -> usize {
        self.0.active.load(SeqCst)
    }

    /// Phone calls with an owner: callSids in the registry.
    pub fn registered(&self) -> usize {
        self.rooms().registry.len()
    }

    /// Calls carried so far.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(SeqCst)
    }

    /// Upgrades refused so far.
    pub fn refused(&self) -> u64 {
        self.0.refused.load(SeqCst)
    }

    /// Requests refused because Twilio had not signed them.
    pub fn unsigned(&self) -> u64 {
        self.0.unsigned.load(SeqCst)
    }

    /// Connections now, of every listener, that are no calls.
    pub fn connections_open(&self) -> usize {
        self.0.connections.open.load(SeqCst)
    }

    /// Connections closed because too many came behind them, or as they came because none was idle.
    pub fn connections_evicted(&self) -> u64 {
        self.0.connections.evicted.load(SeqCst) + self.0.connections.turned_away.load(SeqCst)
    }

    /// Connections closed because their answers were not read.
    pub fn connections_unread(&self) -> u64 {
        self.0.connections.unread.load(SeqCst)
    }

    /// Connections that could not be taken, for want of descriptors mostly.
    pub fn connections_unaccepted(&self) -> u64 {
        self.0.connections.unaccepted.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> &Counts {
        &self.0.connections
    }

    /// Streams closed before they were admitted: without their token, without `start`, or to make room for another.
    pub fn rejected(&self) -> u64 {
        self.0.rejected.load(SeqCst)
    }

    /// Webhooks refused because they had been answered before and their call was over.
    pub fn replayed(&self) -> u64 {
        self.0.replayed.load(SeqCst)
    }

    /// How late the process comes to its tasks, by its worst of the last second or so.
    pub fn loop_lag(&self) -> Duration {
        Duration::from_micros(self.0.lag_us.load(SeqCst))
    }

    /// Panics so far.
    pub fn panicked(&self) -> u64 {
        self.0.panicked.load(SeqCst)
    }

    /// No new calls are taken any more.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(SeqCst)
    }

    /// Ends a call politely. Returns whether there was one.
    pub fn hang_up(&self, call: CallKey) -> bool {
        self.tell(call, Control::HangUp)
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        // Nothing can panic while this is locked; and if it did, the maps would still be whole.
        self.0.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that has eight wishes unanswered is on its way out already.
    fn tell(&self, call: CallKey, control: Control) -> bool {
        self.rooms().controls.get(&call).is_some_and(|to| to.try_send(control).is_ok())
    }

    /// Twilio says that this stream has ended; what it was about may be over already, or be somebody else's.
    fn stream_over(&self, stream_sid: &str, failed: bool) {
        let call = self.rooms().streams.get(stream_sid).copied();
        if let Some(call) = call {
            self.tell(call, Control::StreamOver { failed });
        }
    }

    /// Why no further call would be taken now, if none would.
    fn no_room(&self, config: &Config) -> Option<&'static str> {
        let late =
            config.loop_lag_ms_max > 0 && self.loop_lag() > Duration::from_millis(config.loop_lag_ms_max);
        match () {
            () if self.is_draining() => Some("shutting down: no new calls"),
            () if self.active() >= config.max_calls => Some("all lines are busy"),
            () if late => Some("this machine is too busy for one more call"),
            () => None,
        }
    }

    /// Takes a place for a call, if there is one.
    fn admit(&self, config: &Config) -> Result<Place, &'static str> {
        if let Some(why) = self.no_room(config) {
            return Err(why);
        }
        self.line(config)
    }

    /// The same for a call whose webhook was answered already.
    fn line(&self, config: &Config) -> Result<Place, &'static str> {
        let more = |active| (active < config.max_calls).then_some(active + 1);
        match self.0.active.fetch_update(SeqCst, SeqCst, more) {
            Ok(_) => Ok(Place(self.clone())),
            Err(_) => Err("all lines are busy"),
        }
    }

    fn refuse(&self, why: &str) {
        self.0.refused.fetch_add(1, SeqCst);
        if let Some(left_out) = self.0.refused_line.may() {
            tracing::warn!(
                active = self.active(),
                lag_ms = self.loop_lag().as_millis() as u64,
                why,
                left_out,
                "a call was refused"
            );
        }
    }

    /// Counts a stream or a webhook that got nothing. Not every one is logged: whoever has one signature can have many.
    fn reject(&self, counter: impl Fn(&Shared) -> &AtomicU64, why: &str) {
        counter(&self.0).fetch_add(1, SeqCst);
        if let Some(left_out) = self.0.rejected_line.may() {
            tracing::warn!(why, left_out, "signed, but rejected");
        }
    }

    /// Measures for ever how late the process comes to a task that is due.
    async fn measure_lag(self) {
        driver::lateness(LAG_EVERY, |late| {
            let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
            // A stall is remembered for about a second: what caused it is seldom over with it.
            let faded = self.0.lag_us.load(SeqCst) / 4 * 3;
            self.0.lag_us.store(late.max(faded), SeqCst);
        })
        .await;
    }

    pub(crate) fn count_panic(&self, error: &JoinError) {
        if error.is_panic() {
            self.0.panicked.fetch_add(1, SeqCst);
            // The error itself would repeat the panic's words.
            tracing::error!("a task panicked; the others go on");
        }
    }
}

/// One of `max_calls`, given back when dropped.
struct Place(Stats);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.active.fetch_sub(1, SeqCst);
        self.0.0.freed.notify_one();
    }
}

/// A WebSocket whose stream was not admitted yet; counted until it is, or is gone.
struct Unadmitted(Stats);

impl Unadmitted {
    fn new(stats: &Stats) -> Self {
        stats.0.unadmitted.fetch_add(1, SeqCst);
        Self(stats.clone())
    }
}

impl Drop for Unadmitted {
    fn drop(&mut self) {
        self.0.0.unadmitted.fetch_sub(1, SeqCst);
        self.0.0.freed.notify_one();
    }
}

/// What an upgrade came in with.
#[expect(dead_code, reason = "what they hold is counted until it is dropped")]
enum Ticket {
    /// Nothing: its stream has to show a token first.
    None(Unadmitted),
    /// A line: streams show nothing here.
    Line(Place),
}

/// A call's name on the door: in the registry and for whoever wants to tell it something.
struct Seat {
    stats: Stats,
    key: CallKey,
    ticket: Option<Ticket>,
    /// The call's and the stream's names, once they are known to be true.
    names: Option<(String, String)>,
}

impl Seat {
    /// The stream was admitted and has this line.
    fn admitted(&mut self, line: Place) {
        self.stats.rooms().unadmitted.remove(&self.key);
        self.ticket = Some(Ticket::Line(line));
    }

    fn is_admitted(&self) -> bool {
        matches!(self.ticket, Some(Ticket::Line(_)))
    }

    /// Says which phone call this is; an older stream of the same one has to go.
    fn claim(&mut self, call_sid: &str, stream_sid: &str) {
        let stats = &self.stats;
        let mut rooms = stats.rooms();
        let predecessor = rooms.registry.claim(call_sid, self.key);
        rooms.streams.insert(stream_sid.to_owned(), self.key);
        drop(rooms);
        if let Some(predecessor) = predecessor {
            stats.tell(predecessor, Control::Replaced);
        }
        self.names = Some((call_sid.to_owned(), stream_sid.to_owned()));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut rooms = self.stats.rooms();
        rooms.controls.remove(&self.key);
        rooms.unadmitted.remove(&self.key);
        if let Some((call_sid, stream_sid)) = &self.names {
            rooms.registry.release(call_sid, self.key);
            if rooms.streams.get(stream_sid) == Some(&self.key) {
                rooms.streams.remove(stream_sid);
            }
        }
        drop(rooms);
        if !self.is_admitted() {
            self.stats.reject(|shared| &shared.rejected, "a stream was closed that was not admitted");
        }
        if std::thread::panicking() {
            tracing::error!("the call panicked and is cut");
        }
    }
}

/// Whom the driver of a call works for: who may come in, what is kept, and who is told.
struct Carried<O: Observe> {
    seat: Seat,
    watch: Option<Watch<O>>,
    observe: O,
    config: Arc<Config>,
    door: Arc<Door>,
    journal: Option<Arc<dyn Journal>>,
    /// When the WebSocket was opened: on the call's clock, on the wall's, and since the server began.
    began: Instant,
    unix: i64,
    up: Duration,
    /// The call whose token was shown, and how it ended.
    call_sid: Option<String>,
    ended: Option<EndReason>,
}

impl<O: Observe> Carried<O> {
    /// The clock on the wall, as it goes on from the call's beginning.
    fn unix_now(&self) -> i64 {
        let passed = driver::now().saturating_duration_since(self.began).as_secs();
        self.unix.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

impl<O: Observe> Host for Carried<O> {
    fn admit(&mut self, showing: &Showing) -> Result<(), Refusal> {
        // The line comes first: a token that finds none is still good for the next try.
        let line = self.seat.stats.line(&self.config).map_err(|why| {
            self.seat.stats.refuse(why);
            Refusal::Busy
        })?;
        self.door.admit(showing, self.unix_now()).inspect_err(|refusal| {
            tracing::debug!(call_sid = showing.call_sid, %refusal, "a stream was turned away");
        })?;
        self.call_sid = Some(showing.call_sid.clone());
        self.seat.admitted(line);
        Ok(())
    }

    fn begins(&mut self) -> Option<Box<dyn Tape>> {
        let key = self.seat.key;
        self.seat.stats.0.calls.fetch_add(1, SeqCst);
        self.observe.begins(key, self.began, self.unix);
        self.watch = Some(Watch(self.observe.clone(), key));
        let beginning =
            || Beginning { key: key.0, unix: self.unix, up: self.up, config: self.config.clone() };
        self.journal.as_ref().map(|journal| journal.begin(beginning()))
    }

    fn tell(&mut self, news: News<'_>, now: Instant) {
        let key = self.seat.key;
        match news {
            News::Event(event) => {
                if let CallEvent::Started { call_sid, stream_sid } = event {
                    Span::current().record("call_sid", call_sid).record("stream_sid", stream_sid);
                    self.seat.claim(call_sid, stream_sid);
                } else if let CallEvent::Session { id } = event {
                    Span::current().record("session_id", id);
                } else if let CallEvent::Ended { reason, .. } = event {
                    self.ended = Some(*reason);
                }
                self.observe.event(key, now, event);
            }
            News::Traffic(traffic) => self.observe.traffic(key, now, traffic),
        }
    }
}

impl<O: Observe> Drop for Carried<O> {
    fn drop(&mut self) {
        if let Some(call_sid) = &self.call_sid {
            self.door.left(call_sid, self.ended, self.unix_now());
        }
    }
}

/// What the webhook and the upgrade need to know.
#[derive(Clone)]
struct Desk {
    stats: Stats,
    config: Arc<Config>,
    door: Arc<Door>,
    unix_now: WallClock,
    upgraded: mpsc::UnboundedSender<(WebSocket, Ticket)>,
}

/// Tells Unix seconds.
type WallClock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// A bridge, with everything it needs from the world but the listener and the signal to stop.
pub struct Server<D, T, O> {
    dial: D,
    tools: T,
    observe: O,
    config: Arc<Config>,
    stats: Stats,
    unix_now: WallClock,
    process: u64,
    journal: Option<Arc<dyn Journal>>,
    carrier: Option<Arc<dyn Carrier>>,
    tls: Option<TlsAcceptor>,
    more: Router,
}

/// Serves calls with the system's clock on the wall until `shutdown` and the drain after it are over.
pub async fn serve<L, D, T, O>(
    listener: L,
    dial: D,
    tools: T,
    observe: O,
    config: Arc<Config>,
    shutdown: impl Future<Output = ()>,
) -> Served
where
    L: Listener<Addr: Peer>,
    D: Dial,
    T: Tools,
    O: Observe,
{
    Server::new(dial, tools, observe, config).run(listener, shutdown).await
}

impl<D: Dial, T: Tools, O: Observe> Server<D, T, O> {
    /// A server that looks at the system's clock on the wall.
    pub fn new(dial: D, tools: T, observe: O, config: Arc<Config>) -> Self {
        Self::with_stats(Stats::default(), dial, tools, observe, config)
    }

    /// The same, counting in `stats`: for whoever has to know them before there is a server.
    pub fn with_stats(stats: Stats, dial: D, tools: T, observe: O, config: Arc<Config>) -> Self {
        let unix_now = Arc::new(unix_now);
        Self {
            dial,
            tools,
            observe,
            config,
            stats,
            unix_now,
            process: process_id(),
            journal: None,
            carrier: None,
            tls: None,
            more: Router::new(),
        }
    }

    /// Looks at another clock on the wall, in Unix seconds. It places a session's `expires_at`, and ends tokens.
    #[must_use]
    pub fn with_wall_clock(mut self, unix_now: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.unix_now = Arc::new(unix_now);
        self
    }

    /// Makes tokens that differ from those of every other process by this number, instead of a random one.
    #[must_use]
    pub const fn with_process(mut self, process: u64) -> Self {
        self.process = process;
        self
    }

    /// Journals every call.
    #[must_use]
    pub fn with_journal(mut self, journal: Option<Arc<dyn Journal>>) -> Self {
        self.journal = journal;
        self
    }

    /// Asks this carrier for what an operator wants. Without one, or without a token of theirs, nobody may want.
    #[must_use]
    pub fn with_carrier(mut self, carrier: Option<Arc<dyn Carrier>>) -> Self {
        self.carrier = carrier;
        self
    }

    /// Speaks TLS with this certificate on what the listener accepts.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn with_certificate(mut self, certificate: Option<&Certificate>) -> anyhow::Result<Self> {
        self.tls = certificate.map(Certificate::acceptor).transpose()?;
        Ok(self)
    }

    /// Serves these pages, too.
    #[must_use]
    pub fn with_routes(mut self, more: Router) -> Self {
        self.more = more;
        self
    }

    /// What the server is doing.
    pub fn stats(&self) -> Stats {
        self.stats.clone()
    }

    /// Serves calls until `shutdown`, then waits for the calls that run, for the drain time and their last words at
    /// most. The listener's `accept` must lose nothing when its future is dropped and asked anew.
    pub async fn run<L: Listener<Addr: Peer>>(
        self,
        listener: L,
        shutdown: impl Future<Output = ()>,
    ) -> Served {
        let (upgraded, mut arriving) = mpsc::unbounded_channel(); // bounded by the places
        let door = Arc::new(Door::new(self.config.clone(), self.process));
        let desk = Desk {
            stats: self.stats.clone(),
            config: self.config.clone(),
            door: door.clone(),
            unix_now: self.unix_now.clone(),
            upgraded,
        };
        let operators = operator::router(&self.config.operator.token, self.carrier.clone());
        let mut lag = JoinSet::new(); // ends with this function
        if self.config.loop_lag_ms_max > 0 {
            lag.spawn(self.stats.clone().measure_lag());
        }
        let pages = router(desk).merge(operators).merge(self.more.clone());
        let limits = Limits::from(&self.config.connections);
        let mut connections =
            pin!(connections::serve(listener, self.tls.clone(), pages, limits, self.stats.clone()));
        let mut calls = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let mut give_up = pin!(tokio::time::sleep(Duration::ZERO));
        let mut drain_by: Option<Instant> = None;
        let mut next_key = 0;
        let began = driver::now();

        let unadmitted = || self.stats.0.unadmitted.load(SeqCst);
        while drain_by.is_none() || self.stats.active() > 0 || unadmitted() > 0 || !calls.is_empty() {
            tokio::select! {
                biased;
                () = &mut shutdown, if drain_by.is_none() => {
                    let by = driver::now() + Duration::from_millis(self.config.drain_ms);
                    drain_by = Some(by);
                    give_up.as_mut().reset(tokio::time::Instant::from_std(by + DRAIN_GRACE));
                    self.stats.0.draining.store(true, SeqCst);
                    for to in self.stats.rooms().controls.values() {
                        let _ = to.try_send(Control::Drain { by }); // full: it is being told to go already
                    }
                    tracing::info!(active = self.stats.active(), drain_ms = self.config.drain_ms, "draining");
                }
                () = give_up.as_mut(), if drain_by.is_some() => break,
                Some(ended) = calls.join_next() => {
                    let _ = ended.inspect_err(|error| self.stats.count_panic(error));
                }
                Some((socket, ticket)) = arriving.recv() => {
                    next_key += 1;
                    self.begin(CallKey(next_key), socket, ticket, &door, began, drain_by, &mut calls);
                }
                () = self.stats.0.freed.notified(), if drain_by.is_some() => {}
                never = connections.as_mut() => match never {},
            }
        }

        let active_at_end = calls.len();
        calls.abort_all();
        while let Some(ended) = calls.join_next().await {
            let _ = ended.inspect_err(|error| self.stats.count_panic(error));
        }
        let stats = &self.stats;
        Served { calls: stats.calls(), panicked: stats.panicked(), refused: stats.refused(), active_at_end }
    }

    /// Starts a call in a task of its own.
    #[expect(clippy::too_many_arguments, reason = "what a call begins with, and where it goes")]
    fn begin(
        &self,
        key: CallKey,
        socket: WebSocket,
        ticket: Ticket,
        door: &Arc<Door>,
        began: Instant,
        drain_by: Option<Instant>,
        calls: &mut JoinSet<()>,
    ) {
        let (control, wishes) = mpsc::channel(CONTROLS_MAX);
        if let Some(by) = drain_by {
            let _ = control.try_send(Control::Drain { by }); // the queue is empty
        }
        self.stats.rooms().controls.insert(key, control);
        let waits = matches!(ticket, Ticket::None(_));
        let unix_now = (self.unix_now)();
        let now = driver::now();
        let parts = Parts {
            config: self.config.clone(),
            dial: self.dial.clone(),
            tools: self.tools.clone(),
            guarded: waits,
            control: wishes,
            unix_now,
        };
        let mut host = Carried {
            seat: Seat { stats: self.stats.clone(), key, ticket: Some(ticket), names: None },
            watch: None,
            observe: self.observe.clone(),
            config: self.config.clone(),
            door: door.clone(),
            journal: self.journal.clone(),
            began: now,
            unix: unix_now,
            up: now.saturating_duration_since(began),
            call_sid: None,
            ended: None,
        };
        let carry = async move { driver::drive(socket, parts, &mut host).await };
        let (call_sid, stream_sid, session_id) = (Empty, Empty, Empty);
        let span = tracing::error_span!("call", key = key.0, call_sid, stream_sid, session_id);
        let task = calls.spawn(carry.instrument(span));
        if waits {
            let mut rooms = self.stats.rooms();
            rooms.unadmitted.insert(key, task);
            let oldest = (rooms.unadmitted.len() > UNADMITTED_MAX).then(|| rooms.unadmitted.pop_first());
            drop(rooms);
            // Its socket goes with its task.
            oldest.flatten().inspect(|(_, task)| task.abort());
        }
    }
}

/// A number no other process has.
fn process_id() -> u64 {
    let mut bytes = [0; 8];
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        // No randomness from the system: the process's own number and time tell it from its neighbours.
        return (u64::from(std::process::id()) << 32) ^ unix_now().unsigned_abs();
    }
    u64::from_le_bytes(bytes)
}

/// The clock on the wall, Unix seconds.
#[expect(clippy::disallowed_methods, reason = "the wall clock of production enters here")]
pub fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn router(desk: Desk) -> Router {
    Router::new()
        .route(door::STREAM, get(twilio))
        .route(door::VOICE, get(voice).post(voice))
        .route(door::STREAM_STATUS, get(stream_status).post(stream_status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "nothing here: this bridge serves /voice, /twilio, /healthz and /readyz\n",
            )
        })
        .with_state(desk)
}

/// Twilio opens its WebSocket. No subprotocol is offered, and none is chosen.
async fn twilio(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if let Err(why) = desk.door.knows(door::STREAM, uri.query(), signed(&headers), Body::None) {
        return desk.forbidden(door::STREAM, why);
    }
    // Twilio's is no browser. Where nothing is signed, any page that a browser of this machine shows could come in.
    if !desk.door.is_guarded() && is_foreign_page(&headers) {
        return desk.foreign(door::STREAM);
    }
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(refusal) => return no_upgrade(&refusal.body_text()),
    };
    let ticket = match desk.door.is_guarded() {
        // A line is taken once the stream has shown its token: the upgrade's signature is always the same one.
        true => desk
            .stats
            .no_room(&desk.config)
            .map_or_else(|| Ok(Ticket::None(Unadmitted::new(&desk.stats))), Err),
        false => desk.stats.admit(&desk.config).map(Ticket::Line),
    };
    let ticket = match ticket {
        Ok(ticket) => ticket,
        Err(why) => {
            desk.stats.refuse(why);
            return busy(why);
        }
    };
    upgrade
        .read_buffer_size(READ_BUFFER)
        .max_write_buffer_size(CALLER_WRITE_MAX)
        .max_message_size(CALLER_MESSAGE_MAX)
        .max_frame_size(CALLER_MESSAGE_MAX)
        .on_failed_upgrade(|error| tracing::debug!(%error, "an upgrade failed"))
        // Handed to the server's own loop: axum would forget the task, and with it a panic.
        .on_upgrade(|socket| async move {
            let _ = desk.upgraded.send((socket, ticket)); // fails only when the server is gone
        })
}

/// Whether a browser says that a page of another site is behind this, or of this one under a name that was made to lead
/// here.
fn is_foreign_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let Some(origin) = text(header::ORIGIN) else { return false };
    let own = text(header::HOST).unwrap_or_default();
    let here = own.parse::<Authority>().is_ok_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    !here || origin.split_once("://").is_none_or(|(_, site)| site != own)
}

fn no_upgrade(why: &str) -> Response {
    let text = format!(
        "{why}\nThis is where Twilio Media Streams opens its WebSocket; point your number at /voice\n"
    );
    let headers: [(HeaderName, &str); 2] = [(header::UPGRADE, "websocket"), (header::CONNECTION, "Upgrade")];
    (StatusCode::UPGRADE_REQUIRED, headers, text).into_response()
}

fn busy(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
}

/// Twilio asks what to do with a call.
async fn voice(State(desk): State<Desk>, request: Request) -> Response {
    let asked = match Asked::read(&desk, door::VOICE, request).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    // Said now, while it costs nothing: the stream would be refused, and the caller hear an error.
    if let Some(why) = desk.stats.no_room(&desk.config) {
        desk.stats.refuse(why);
        return xml(twiml::busy());
    }
    let signed = Signed { signature: asked.signature.as_deref(), settings: None };
    match desk.door.answer(&asked.form, asked.host.as_deref(), signed, (desk.unix_now)()) {
        Ok(twiml) => xml(twiml),
        Err(NoAnswer::Replayed(why)) => {
            desk.stats.reject(|shared| &shared.replayed, &why.to_string());
            (StatusCode::FORBIDDEN, "this webhook was answered before, and its call is over\n")
                .into_response()
        }
        Err(why) => (StatusCode::BAD_REQUEST, format!("{why}\n")).into_response(),
    }
}

fn xml(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/xml")], text).into_response()
}

/// Twilio tells what became of a stream. It is the only word there is of a stream that broke on the other side.
async fn stream_status(State(desk): State<Desk>, request: Request) -> Response {
    let asked = match Asked::read(&desk, door::STREAM_STATUS, request).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let (stream_sid, event) = (asked.value("StreamSid"), asked.value("StreamEvent"));
    match event {
        "stream-error" => {
            tracing::warn!(
                call_sid = asked.value("CallSid"),
                stream_sid,
                error = shortened(asked.value("StreamError")),
                "Twilio reports that a stream failed"
            );
            desk.stats.stream_over(stream_sid, true);
        }
        "stream-stopped" => desk.stats.stream_over(stream_sid, false),
        _ => tracing::debug!(stream_sid, event = shortened(event), "a stream's status"),
    }
    StatusCode::NO_CONTENT.into_response()
}

/// So much of what somebody else wrote as a log line should hold.
pub(crate) fn shortened(text: &str) -> &str {
    text.char_indices().nth(200).map_or(text, |(at, _)| &text[..at])
}

/// A request of Twilio's: signed, whole, of bounded size, within bounded time.
struct Asked {
    form: Vec<(String, String)>,
    host: Option<String>,
    signature: Option<String>,
}

impl Asked {
    async fn read(desk: &Desk, path: &str, request: Request) -> Result<Self, Response> {
        let (head, body) = request.into_parts();
        let bytes = read_body(body).await?;
        let query = head.uri.query();
        let is_form = head.headers.get(header::CONTENT_TYPE).is_none_or(|kind| {
            kind.as_bytes().to_ascii_lowercase().starts_with(b"application/x-www-form-urlencoded")
        });
        let text = match (head.method == Method::POST, is_form) {
            (true, true) => &bytes[..],
            (true, false) => &[],
            (false, _) => query.unwrap_or_default().as_bytes(),
        };
        if text.split(|byte| *byte == b'&').count() > PARAMETERS_MAX {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, "too many parameters\n").into_response());
        }
        let form = door::form(text);
        let body = match (head.method == Method::POST, is_form) {
            (true, true) => Body::Form(&form),
            (true, false) => Body::Raw(&bytes),
            (false, _) => Body::None,
        };
        desk.door.knows(path, query, signed(&head.headers), body).map_err(|why| desk.forbidden(path, why))?;
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        let signature = signed(&head.headers).signature.map(str::to_owned);
        Ok(Self { form, host, signature })
    }

    fn value(&self, name: &str) -> &str {
        self.form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Reads the body of a request, of [`BODY_MAX`] bytes and for [`HEADER_TIMEOUT`] at most.
pub(crate) async fn read_body(body: axum::body::Body) -> Result<axum::body::Bytes, Response> {
    let too_long = || (StatusCode::PAYLOAD_TOO_LARGE, "the body is too long, or broke off\n").into_response();
    // One that says how long it is need not come first.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_long());
    }
    match tokio::time::timeout(HEADER_TIMEOUT, axum::body::to_bytes(body, BODY_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(too_long()),
        Err(_late) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response()),
    }
}

fn signed(headers: &HeaderMap) -> Signed<'_> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Signed { signature: text(signature::SIGNATURE), settings: text(signature::SETTINGS) }
}

impl Desk {
    /// What is said to another site's page.
    fn foreign(&self, path: &str) -> Response {
        self.stats.0.unsigned.fetch_add(1, SeqCst);
        if let Some(left_out) = self.stats.0.unsigned_line.may() {
            tracing::warn!(path, left_out, "a page of another site was refused");
        }
        (StatusCode::FORBIDDEN, "this was asked for by another site's page\n").into_response()
    }

    /// What is said to whoever is not Twilio. Why stays in the log: it would only help to guess.
    fn forbidden(&self, path: &str, why: signature::Refusal) -> Response {
        self.stats.0.unsigned.fetch_add(1, SeqCst);
        if let Some(left_out) = self.stats.0.unsigned_line.may() {
            tracing::warn!(path, %why, left_out, "a request was refused");
        }
        (StatusCode::FORBIDDEN, "this is for Twilio alone, and the request's signature does not show it\n")
            .into_response()
    }
}

/// For load balancers: whether one more call would be taken.
async fn readyz(State(desk): State<Desk>) -> Response {
    match desk.stats.no_room(&desk.config) {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => busy(why),
    }
}

/// For load balancers and people.
async fn healthz(State(desk): State<Desk>) -> Response {
    let draining = desk.stats.is_draining();
    let (status, word) =
        if draining { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") };
    (status, format!("{word}\nactive calls: {}\n", desk.stats.active())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(max_calls: usize) -> Config {
        Config { max_calls, ..Config::default() }
    }

    fn place(stats: &Stats) -> Place {
        stats.admit(&lines(9)).unwrap_or_else(|why| panic!("no place: {why}"))
    }

    #[test]
    fn places_are_limited_and_given_back() {
        let stats = Stats::default();
        let first = place(&stats);
        assert_eq!(stats.admit(&lines(1)).err(), Some("all lines are busy"));
        drop(first);
        assert_eq!(stats.active(), 0);
        assert!(stats.admit(&lines(1)).is_ok());
        stats.0.draining.store(true, SeqCst);
        assert_eq!(stats.admit(&lines(1)).err(), Some("shutting down: no new calls"));
    }

    #[test]
    fn a_machine_that_comes_too_late_to_its_tasks_takes_no_further_call() {
        let stats = Stats::default();
        stats.0.lag_us.store(251_000, SeqCst);
        assert_eq!(stats.no_room(&lines(9)), Some("this machine is too busy for one more call"));
        assert_eq!(stats.no_room(&Config { loop_lag_ms_max: 0, ..lines(9) }), None, "not asked for");
        stats.0.lag_us.store(250_000, SeqCst);
        assert_eq!(stats.no_room(&lines(9)), None);
    }

    #[test]
    fn a_successor_tells_its_predecessor_to_go_and_keeps_its_name() {
        let stats = Stats::default();
        let mut seats = Vec::new();
        let mut wishes = Vec::new();
        for key in [CallKey(1), CallKey(2)] {
            let (control, receiver) = mpsc::channel(CONTROLS_MAX);
            stats.rooms().controls.insert(key, control);
            let ticket = Some(Ticket::Line(place(&stats)));
            let mut seat = Seat { stats: stats.clone(), key, ticket, names: None };
            seat.claim("CA1", &format!("MZ{}", key.0));
            seats.push(seat);
            wishes.push(receiver);
        }
        assert_eq!(wishes[0].try_recv(), Ok(Control::Replaced));
        assert!(wishes[1].try_recv().is_err(), "the newest is left alone");
        drop(seats.remove(0));
        assert_eq!((stats.registered(), stats.active()), (1, 1));
        assert!(stats.hang_up(CallKey(2)) && !stats.hang_up(CallKey(1)));
        stats.stream_over("MZ1", true);
        stats.stream_over("MZ2", true);
        assert!(wishes[0].try_recv().is_err(), "gone");
        assert_eq!(wishes[1].try_recv(), Ok(Control::HangUp));
        assert_eq!(wishes[1].try_recv(), Ok(Control::StreamOver { failed: true }));
        drop(seats);
        assert!(stats.rooms().streams.is_empty());
        assert_eq!((stats.registered(), stats.active()), (0, 0));
    }
}
