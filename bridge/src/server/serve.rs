//! The HTTP face: the webhook, the upgrade, the health of the process, and a clean end.
//!
//! The listener, the dialler, the clock on the wall and the signal to stop come from outside, so production and
//! simulation differ in those and in nothing else. Connections are served and bounded by [`crate::server::connections`] until
//! they become calls.

use crate::auth::signature::{self, Body, Signed};
use crate::auth::stream_auth::{self, NoAnswer, Refusal, StreamAuth};
use crate::base::clock::{self, unix_now};
use crate::base::random;
use crate::call::event::{CallEvent, EndReason};
use crate::call::{Control, StreamCredentials};
use crate::net::dial::Dial;
use crate::net::tls::Certificate;
use crate::net::tools::Tools;
use crate::net::twilio_rest::Carrier;
use crate::runtime::driver::{self, DriverEvent, Host, Parts};
use crate::runtime::journal::{Journal, JournalWriter};
use crate::runtime::leg::{CALLER_MESSAGE_MAX, CALLER_WRITE_MAX, READ_BUFFER};
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use crate::server::connections::{self, Limits, Peer};
use crate::server::operator;
use crate::server::request::{read_body, shortened};
use crate::server::settings::Settings;
use crate::server::stats::{CallPermit, Stats, Unadmitted};
use crate::wire::twiml;
use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument, Span, field::Empty};

/// Most parameters of a form or a query: Twilio's have some thirty. A signature is over all of them, sorted, so that
/// reading many of them costs much before it is known whose they are.
const PARAMETERS_MAX: usize = 200;
/// Streams that have not shown a token yet, at once. Twilio shows it within a tenth of a second; one more closes the oldest.
const UNADMITTED_MAX: usize = 256;
/// Wishes that wait for one call: it is asked to go, to be done by some time, to hang up.
const CONTROLS_MAX: usize = 8;
/// After the end of the drain time calls say their last words and close: what a call may take for that at most
/// (30 s of lead, the notice, its mark) is well below this. Whatever is left then is cut.
const DRAIN_GRACE: Duration = Duration::from_secs(90);

/// Sees to it that an observer hears of a call's going, whatever ends it.
struct Watch<O: Observe>(O, CallKey);

impl<O: Observe> Drop for Watch<O> {
    fn drop(&mut self) {
        self.0.gone(self.1);
    }
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

/// What an upgrade came in with.
#[expect(dead_code, reason = "what they hold is counted until it is dropped")]
enum Ticket {
    /// Nothing: its stream has to show a token first.
    None(Unadmitted),
    /// A line: streams show nothing here.
    Line(CallPermit),
}

/// A call in the registry, where control messages find it.
struct CallRegistration {
    stats: Stats,
    key: CallKey,
    ticket: Option<Ticket>,
    /// The call's and the stream's names, once they are known to be true.
    names: Option<(String, String)>,
}

impl CallRegistration {
    /// The stream was admitted and has this line.
    fn admitted(&mut self, line: CallPermit) {
        self.stats.sessions().unadmitted.remove(&self.key);
        self.ticket = Some(Ticket::Line(line));
    }

    fn is_admitted(&self) -> bool {
        matches!(self.ticket, Some(Ticket::Line(_)))
    }

    /// Says which phone call this is; an older stream of the same one has to go.
    fn claim(&mut self, call_sid: &str, stream_sid: &str) {
        let stats = &self.stats;
        let mut sessions = stats.sessions();
        let predecessor = sessions.registry.claim(call_sid, self.key);
        sessions.streams.insert(stream_sid.to_owned(), self.key);
        drop(sessions);
        if let Some(predecessor) = predecessor {
            stats.tell(predecessor, Control::Replaced);
        }
        self.names = Some((call_sid.to_owned(), stream_sid.to_owned()));
    }
}

impl Drop for CallRegistration {
    fn drop(&mut self) {
        let mut sessions = self.stats.sessions();
        sessions.controls.remove(&self.key);
        sessions.unadmitted.remove(&self.key);
        if let Some((call_sid, stream_sid)) = &self.names {
            sessions.registry.release(call_sid, self.key);
            if sessions.streams.get(stream_sid) == Some(&self.key) {
                sessions.streams.remove(stream_sid);
            }
        }
        drop(sessions);
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
    registration: CallRegistration,
    watch: Option<Watch<O>>,
    observe: O,
    settings: Arc<Settings>,
    auth: Arc<StreamAuth>,
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
        let passed = clock::now().saturating_duration_since(self.began).as_secs();
        self.unix.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

impl<O: Observe> Host for Carried<O> {
    fn admit(&mut self, credentials: &StreamCredentials) -> Result<(), &'static str> {
        // The line comes first: a token that finds none is still good for the next try.
        let line = self.registration.stats.line(self.settings.limits).map_err(|why| {
            self.registration.stats.refuse(why);
            Refusal::Busy.why()
        })?;
        self.auth.admit(credentials, self.unix_now()).map_err(|refusal| {
            tracing::debug!(call_sid = credentials.call_sid, %refusal, "a stream was turned away");
            refusal.why()
        })?;
        self.call_sid = Some(credentials.call_sid.clone());
        self.registration.admitted(line);
        Ok(())
    }

    fn begins(&mut self) -> Option<Box<dyn JournalWriter>> {
        let key = self.registration.key;
        self.registration.stats.0.calls.fetch_add(1, SeqCst);
        self.observe.begins(key, self.began, self.unix);
        self.watch = Some(Watch(self.observe.clone(), key));
        let beginning = || self.settings.beginning(key.0, self.unix, self.up);
        self.journal.as_ref().map(|journal| journal.begin(beginning()))
    }

    fn on_event(&mut self, driver_event: DriverEvent<'_>, now: Instant) {
        let key = self.registration.key;
        match driver_event {
            DriverEvent::Event(event) => {
                if let CallEvent::Started { call_sid, stream_sid } = event {
                    Span::current().record("call_sid", call_sid).record("stream_sid", stream_sid);
                    self.registration.claim(call_sid, stream_sid);
                } else if let CallEvent::Session { id } = event {
                    Span::current().record("session_id", id);
                } else if let CallEvent::Ended { reason, .. } = event {
                    self.ended = Some(*reason);
                }
                self.observe.event(key, now, event);
            }
            DriverEvent::Traffic(traffic) => self.observe.traffic(key, now, traffic),
        }
    }
}

impl<O: Observe> Drop for Carried<O> {
    fn drop(&mut self) {
        if let Some(call_sid) = &self.call_sid {
            self.auth.left(call_sid, self.ended, self.unix_now());
        }
    }
}

/// What the webhook and the upgrade need to know.
#[derive(Clone)]
struct AppState {
    stats: Stats,
    settings: Arc<Settings>,
    auth: Arc<StreamAuth>,
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
    settings: Arc<Settings>,
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
    settings: Arc<Settings>,
    shutdown: impl Future<Output = ()>,
) -> Served
where
    L: Listener<Addr: Peer>,
    D: Dial,
    T: Tools,
    O: Observe,
{
    Server::new(dial, tools, observe, settings).run(listener, shutdown).await
}

impl<D: Dial, T: Tools, O: Observe> Server<D, T, O> {
    /// A server that looks at the system's clock on the wall.
    pub fn new(dial: D, tools: T, observe: O, settings: Arc<Settings>) -> Self {
        Self::with_stats(Stats::default(), dial, tools, observe, settings)
    }

    /// The same, counting in `stats`, for code that needs them before there is a server.
    pub fn with_stats(stats: Stats, dial: D, tools: T, observe: O, settings: Arc<Settings>) -> Self {
        let unix_now = Arc::new(unix_now);
        Self {
            dial,
            tools,
            observe,
            settings,
            stats,
            unix_now,
            process: u64::from_le_bytes(random::bytes()),
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

    /// Sends an operator's orders to this carrier. Without a carrier or an operator's token, none are accepted.
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
        let auth = Arc::new(StreamAuth::new(
            self.settings.twilio.clone(),
            self.settings.public_url.clone(),
            self.process,
        ));
        let state = AppState {
            stats: self.stats.clone(),
            settings: self.settings.clone(),
            auth: auth.clone(),
            unix_now: self.unix_now.clone(),
            upgraded,
        };
        let operators = operator::router(&self.settings.operator_token, self.carrier.clone());
        let mut lag = JoinSet::new(); // ends with this function
        if self.settings.limits.loop_lag_ms_max > 0 {
            lag.spawn(self.stats.clone().measure_lag());
        }
        let pages = router(state).merge(operators).merge(self.more.clone());
        let limits = Limits::from(&self.settings.connections);
        let mut connections =
            pin!(connections::serve(listener, self.tls.clone(), pages, limits, self.stats.clone()));
        let mut calls = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let mut give_up = pin!(tokio::time::sleep(Duration::ZERO));
        let mut drain_by: Option<Instant> = None;
        let mut next_key = 0;
        let began = clock::now();

        let unadmitted = || self.stats.0.unadmitted.load(SeqCst);
        while drain_by.is_none() || self.stats.active() > 0 || unadmitted() > 0 || !calls.is_empty() {
            tokio::select! {
                biased;
                () = &mut shutdown, if drain_by.is_none() => {
                    let by = clock::now() + Duration::from_millis(self.settings.drain_ms);
                    drain_by = Some(by);
                    give_up.as_mut().reset(tokio::time::Instant::from_std(by + DRAIN_GRACE));
                    self.stats.0.draining.store(true, SeqCst);
                    for to in self.stats.sessions().controls.values() {
                        let _ = to.try_send(Control::Drain { by }); // full: it is being told to go already
                    }
                    tracing::info!(active = self.stats.active(), drain_ms = self.settings.drain_ms, "draining");
                }
                () = give_up.as_mut(), if drain_by.is_some() => break,
                Some(ended) = calls.join_next() => {
                    let _ = ended.inspect_err(|error| self.stats.count_panic(error));
                }
                Some((socket, ticket)) = arriving.recv() => {
                    next_key += 1;
                    self.begin(CallKey(next_key), socket, ticket, &auth, began, drain_by, &mut calls);
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
        auth: &Arc<StreamAuth>,
        began: Instant,
        drain_by: Option<Instant>,
        calls: &mut JoinSet<()>,
    ) {
        let (control, receiver) = mpsc::channel(CONTROLS_MAX);
        if let Some(by) = drain_by {
            let _ = control.try_send(Control::Drain { by }); // the queue is empty
        }
        self.stats.sessions().controls.insert(key, control);
        let waits = matches!(ticket, Ticket::None(_));
        let unix_now = (self.unix_now)();
        let now = clock::now();
        let parts = Parts {
            call: self.settings.call.clone(),
            notice: self.settings.notice.clone(),
            model: self.settings.model.clone(),
            dial: self.dial.clone(),
            tools: self.tools.clone(),
            requires_auth: waits,
            control: receiver,
            unix_now,
        };
        let mut host = Carried {
            registration: CallRegistration {
                stats: self.stats.clone(),
                key,
                ticket: Some(ticket),
                names: None,
            },
            watch: None,
            observe: self.observe.clone(),
            settings: self.settings.clone(),
            auth: auth.clone(),
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
            let mut sessions = self.stats.sessions();
            sessions.unadmitted.insert(key, task);
            let oldest =
                (sessions.unadmitted.len() > UNADMITTED_MAX).then(|| sessions.unadmitted.pop_first());
            drop(sessions);
            // Its socket goes with its task.
            oldest.flatten().inspect(|(_, task)| task.abort());
        }
    }
}

fn router(state: AppState) -> Router {
    Router::new()
        .route(stream_auth::STREAM, get(twilio))
        .route(stream_auth::VOICE, get(voice).post(voice))
        .route(stream_auth::STREAM_STATUS, get(stream_status).post(stream_status))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                "nothing here: this bridge serves /voice, /twilio, /healthz and /readyz\n",
            )
        })
        .with_state(state)
}

/// Twilio opens its WebSocket. No subprotocol is offered, and none is chosen.
async fn twilio(
    State(state): State<AppState>,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    if let Err(why) =
        state.auth.verify_request(stream_auth::STREAM, uri.query(), signed(&headers), Body::None)
    {
        return state.forbidden(stream_auth::STREAM, why);
    }
    // Twilio's is no browser. Where nothing is signed, any page that a browser of this machine shows could come in.
    if !state.auth.requires_auth() && is_foreign_page(&headers) {
        return state.foreign(stream_auth::STREAM);
    }
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(refusal) => return no_upgrade(&refusal.body_text()),
    };
    let ticket = match state.auth.requires_auth() {
        // A line is taken once the stream has shown its token: the upgrade's signature is always the same one.
        true => state
            .stats
            .no_room(state.settings.limits)
            .map_or_else(|| Ok(Ticket::None(Unadmitted::new(&state.stats))), Err),
        false => state.stats.admit(state.settings.limits).map(Ticket::Line),
    };
    let ticket = match ticket {
        Ok(ticket) => ticket,
        Err(why) => {
            state.stats.refuse(why);
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
            let _ = state.upgraded.send((socket, ticket)); // fails only when the server is gone
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
async fn voice(State(state): State<AppState>, request: Request) -> Response {
    let asked = match Asked::read(&state, stream_auth::VOICE, request).await {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    // Said now, while it costs nothing: the stream would be refused, and the caller hear an error.
    if let Some(why) = state.stats.no_room(state.settings.limits) {
        state.stats.refuse(why);
        return xml(twiml::busy());
    }
    let signed = Signed { signature: asked.signature.as_deref(), settings: None };
    match state.auth.answer(&asked.form, asked.host.as_deref(), signed, (state.unix_now)()) {
        Ok(twiml) => xml(twiml),
        Err(NoAnswer::Replayed(why)) => {
            state.stats.reject(|shared| &shared.replayed, &why.to_string());
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
async fn stream_status(State(state): State<AppState>, request: Request) -> Response {
    let asked = match Asked::read(&state, stream_auth::STREAM_STATUS, request).await {
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
            state.stats.stream_over(stream_sid, true);
        }
        "stream-stopped" => state.stats.stream_over(stream_sid, false),
        _ => tracing::debug!(stream_sid, event = shortened(event), "a stream's status"),
    }
    StatusCode::NO_CONTENT.into_response()
}

/// A request of Twilio's: signed, whole, of bounded size, within bounded time.
struct Asked {
    form: Vec<(String, String)>,
    host: Option<String>,
    signature: Option<String>,
}

impl Asked {
    async fn read(state: &AppState, path: &str, request: Request) -> Result<Self, Response> {
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
        let form = stream_auth::form(text);
        let body = match (head.method == Method::POST, is_form) {
            (true, true) => Body::Form(&form),
            (true, false) => Body::Raw(&bytes),
            (false, _) => Body::None,
        };
        state
            .auth
            .verify_request(path, query, signed(&head.headers), body)
            .map_err(|why| state.forbidden(path, why))?;
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        let signature = signed(&head.headers).signature.map(str::to_owned);
        Ok(Self { form, host, signature })
    }

    fn value(&self, name: &str) -> &str {
        self.form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

fn signed(headers: &HeaderMap) -> Signed<'_> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Signed { signature: text(signature::SIGNATURE), settings: text(signature::SETTINGS) }
}

impl AppState {
    /// What is said to another site's page.
    fn foreign(&self, path: &str) -> Response {
        self.stats.0.unsigned.fetch_add(1, SeqCst);
        if let Some(left_out) = self.stats.0.unsigned_line.may() {
            tracing::warn!(path, left_out, "a page of another site was refused");
        }
        (StatusCode::FORBIDDEN, "this was asked for by another site's page\n").into_response()
    }

    /// The answer to a client that is not Twilio. The reason stays in the log: it would only help to guess.
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
async fn readyz(State(state): State<AppState>) -> Response {
    match state.stats.no_room(state.settings.limits) {
        None => (StatusCode::OK, "ready\n").into_response(),
        Some(why) => busy(why),
    }
}

/// For load balancers and people.
async fn healthz(State(state): State<AppState>) -> Response {
    let draining = state.stats.is_draining();
    let (status, word) =
        if draining { (StatusCode::SERVICE_UNAVAILABLE, "draining") } else { (StatusCode::OK, "ok") };
    (status, format!("{word}\nactive calls: {}\n", state.stats.active())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Control;
    use crate::server::stats::CallLimits;

    const fn lines(max_calls: usize) -> CallLimits {
        CallLimits { max_calls, loop_lag_ms_max: 250 }
    }

    fn place(stats: &Stats) -> CallPermit {
        stats.admit(lines(9)).unwrap_or_else(|why| panic!("no place: {why}"))
    }

    #[test]
    fn places_are_limited_and_given_back() {
        let stats = Stats::default();
        let first = place(&stats);
        assert_eq!(stats.admit(lines(1)).err(), Some("all lines are busy"));
        drop(first);
        assert_eq!(stats.active(), 0);
        assert!(stats.admit(lines(1)).is_ok());
        stats.0.draining.store(true, SeqCst);
        assert_eq!(stats.admit(lines(1)).err(), Some("shutting down: no new calls"));
    }

    #[test]
    fn a_machine_that_comes_too_late_to_its_tasks_takes_no_further_call() {
        let stats = Stats::default();
        stats.0.lag_us.store(251_000, SeqCst);
        assert_eq!(stats.no_room(lines(9)), Some("this machine is too busy for one more call"));
        assert_eq!(stats.no_room(CallLimits { loop_lag_ms_max: 0, ..lines(9) }), None, "not asked for");
        stats.0.lag_us.store(250_000, SeqCst);
        assert_eq!(stats.no_room(lines(9)), None);
    }

    #[test]
    fn a_successor_tells_its_predecessor_to_go_and_keeps_its_name() {
        let stats = Stats::default();
        let mut registrations = Vec::new();
        let mut receivers = Vec::new();
        for key in [CallKey(1), CallKey(2)] {
            let (control, receiver) = mpsc::channel(CONTROLS_MAX);
            stats.sessions().controls.insert(key, control);
            let ticket = Some(Ticket::Line(place(&stats)));
            let mut registration = CallRegistration { stats: stats.clone(), key, ticket, names: None };
            registration.claim("CA1", &format!("MZ{}", key.0));
            registrations.push(registration);
            receivers.push(receiver);
        }
        assert_eq!(receivers[0].try_recv(), Ok(Control::Replaced));
        assert!(receivers[1].try_recv().is_err(), "the newest is left alone");
        drop(registrations.remove(0));
        assert_eq!((stats.registered(), stats.active()), (1, 1));
        assert!(stats.hang_up(CallKey(2)) && !stats.hang_up(CallKey(1)));
        stats.stream_over("MZ1", true);
        stats.stream_over("MZ2", true);
        assert!(receivers[0].try_recv().is_err(), "gone");
        assert_eq!(receivers[1].try_recv(), Ok(Control::HangUp));
        assert_eq!(receivers[1].try_recv(), Ok(Control::StreamOver { failed: true }));
        drop(registrations);
        assert!(stats.sessions().streams.is_empty());
        assert_eq!((stats.registered(), stats.active()), (0, 0));
    }
}
