//! The calls of this moment, for people: a page, its figures as JSON, and every change of them as it happens.
//!
//! It has a listener of its own, on a loopback address unless there is a token to show. So a proxy that leads the
//! public to the webhook does not lead it here. What a browser is talked into by another site is refused: a foreign
//! name in `Host`, a foreign `Origin`, a button pressed without the page's own header.
//!
//! Nothing here can slow a call. A call writes what happened into a view of its own and goes on; no task is woken. A
//! watcher comes by ten times a second, takes what has changed, and gets the newest state however slow it reads. All of
//! it is bounded: lines of a call, calls that are over, watchers.

use crate::base::clock;
use crate::base::log_limit::LogLimit;
use crate::base::secret::Secret;
use crate::call::event::{CallEvent, Floor, Line, RenewalOutcome, Said, Speaker};
use crate::net::twilio_rest::{Carrier, Problem};
use crate::runtime::meter::Traffic;
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use crate::server::connections::{self, Limits, Tcp};
use crate::server::operator;
use crate::server::request::{read_body, shortened};
use crate::server::settings as server;
use crate::server::stats::Stats;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;

/// How often a watcher looks for what has changed.
const EVERY: Duration = Duration::from_millis(100);
/// Watchers at once; when one more comes, the one that came first has to ask again.
const WATCHERS_MAX: usize = 32;
/// Connections at once.
pub(crate) const CONNECTIONS_MAX: usize = 128;
/// Lines of a call that are kept; the oldest go first.
const LINES_MAX: usize = 200;
/// Longest line, bytes.
const LINE_MAX: usize = 8 * 1024;
/// Calls that are over and still shown; the oldest go first.
const OVER_MAX: usize = 20;
/// The header a button of the page sends: another site's page cannot, unless it is let.
const BUTTON: &str = "x-bridge-live";

const PAGE: &str = include_str!("live/page.html");
const STYLE: &str = include_str!("live/page.css");
const SCRIPT: &str = include_str!("live/page.js");

/// Where the page is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// There is a page.
    pub enabled: bool,
    /// Its address. Beyond loopback it needs the operator's token.
    pub listen: SocketAddr,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8085)) }
    }
}

impl Settings {
    /// What is wrong with them.
    pub(crate) fn check(&self, token: &Secret, refuse: &mut impl FnMut(String)) {
        if self.enabled && !self.listen.ip().is_loopback() && token.is_empty() {
            refuse(format!(
                "live.listen = {} can be reached from outside: set BRIDGE_OPERATOR_TOKEN, or listen on 127.0.0.1",
                self.listen
            ));
        }
    }
}

/// The calls of this moment. A handle: clones see the same calls. It observes calls.
#[derive(Clone, Default)]
pub struct Live(Arc<LiveState>);

#[derive(Default)]
struct LiveState {
    views: Mutex<CallViews>,
    /// Goes up with every change.
    version: AtomicU64,
    /// Those who watch, the oldest first, each by what ends it.
    watchers: Mutex<VecDeque<Arc<Notify>>>,
}

#[derive(Default)]
struct CallViews {
    calls: BTreeMap<CallKey, Arc<Mutex<CallView>>>,
    over: VecDeque<CallKey>,
}

/// A line of the transcript.
struct Spoken {
    place: u64,
    speaker: Speaker,
    text: String,
    cut: bool,
    whole: bool,
    version: u64,
}

/// One call.
struct CallView {
    version: u64,
    began: Instant,
    began_unix: i64,
    ended: Option<Instant>,
    call_sid: String,
    state: &'static str,
    floor: Floor,
    latencies: Vec<Duration>,
    inside: Option<Duration>,
    barge_ins: u64,
    silenced: Option<Duration>,
    functions: Vec<(String, String)>,
    errors: u64,
    end: Option<&'static str>,
    lines: BTreeMap<String, Spoken>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing can panic while one is locked; and if it did, what is shown would still be whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    fn change(&self, call: CallKey, change: impl FnOnce(&mut CallView, u64)) {
        let Some(view) = locked(&self.0.views).calls.get(&call).cloned() else { return };
        let mut view = locked(&view);
        // Counted while it is locked: a watcher that has seen a number has seen all that bears it.
        let version = self.0.version.fetch_add(1, SeqCst) + 1;
        view.version = version;
        change(&mut view, version);
    }

    /// What has changed behind version `seen`, and the version that this is.
    fn since(&self, seen: u64, now: Instant) -> (u64, Vec<Value>, Vec<u64>) {
        let version = self.0.version.load(SeqCst);
        let views: Vec<_> =
            locked(&self.0.views).calls.iter().map(|(key, view)| (key.0, view.clone())).collect();
        let present = views.iter().map(|(key, _)| *key).collect();
        let mut calls = Vec::new();
        for (key, view) in views {
            let view = locked(&view);
            if view.version > seen {
                calls.push(view.shown(key, seen, now));
            }
        }
        (version, calls, present)
    }

    /// How many are watching.
    pub fn watchers(&self) -> usize {
        locked(&self.0.watchers).len()
    }

    fn call_sid(&self, call: CallKey) -> Option<String> {
        let view = locked(&self.0.views).calls.get(&call).cloned()?;
        let view = locked(&view);
        view.ended.is_none().then(|| view.call_sid.clone())
    }
}

impl Observe for Live {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        let version = self.0.version.fetch_add(1, SeqCst) + 1;
        let view = CallView {
            version,
            began: now,
            began_unix: unix,
            ended: None,
            call_sid: String::new(),
            state: "connecting",
            floor: Floor::default(),
            latencies: Vec::new(),
            inside: None,
            barge_ins: 0,
            silenced: None,
            functions: Vec::new(),
            errors: 0,
            end: None,
            lines: BTreeMap::new(),
        };
        locked(&self.0.views).calls.insert(call, Arc::new(Mutex::new(view)));
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        self.change(call, |view, version| view.heard(now, event, version));
    }

    fn traffic(&self, call: CallKey, _now: Instant, traffic: &Traffic) {
        let mut all: Vec<_> = traffic.uplink.iter().chain(&traffic.downlink).copied().collect();
        if all.is_empty() {
            return;
        }
        let middle = all.len() / 2;
        let (_, median, _) = all.select_nth_unstable(middle);
        let median = *median;
        self.change(call, |view, _| view.inside = Some(median));
    }

    fn gone(&self, call: CallKey) {
        self.change(call, |view, _| {
            if view.ended.is_none() {
                (view.ended, view.state, view.end) = (Some(clock::now()), "over", Some("cut"));
                view.floor = Floor::default();
            }
        });
        let mut views = locked(&self.0.views);
        views.over.push_back(call);
        while views.over.len() > OVER_MAX {
            if let Some(oldest) = views.over.pop_front() {
                views.calls.remove(&oldest);
            }
        }
    }
}

impl CallView {
    fn heard(&mut self, now: Instant, event: &CallEvent, version: u64) {
        match event {
            CallEvent::Started { call_sid, .. } => self.call_sid.clone_from(call_sid),
            CallEvent::Dialing if self.state == "renewing" => {}
            CallEvent::Dialing => self.state = "dialing",
            CallEvent::Renewing => self.state = "renewing",
            CallEvent::Live { .. } | CallEvent::Renewal { outcome: RenewalOutcome::Renewed, .. } => {
                self.state = "live"
            }
            CallEvent::BargeIn { .. } => self.barge_ins += 1,
            CallEvent::Silenced { after } => self.silenced = Some(*after),
            CallEvent::Said(said) => self.said(said, version),
            CallEvent::Floor(floor) => self.floor = *floor,
            CallEvent::Speaking { after: Some(after), .. } => {
                if self.latencies.len() >= LINES_MAX {
                    self.latencies.remove(0);
                }
                self.latencies.push(*after);
            }
            CallEvent::ToolCalled { call_id, name, .. } => {
                self.functions.push((call_id.clone(), name.clone()));
            }
            CallEvent::ToolAnswered { call_id, .. } => self.functions.retain(|(id, _)| id != call_id),
            CallEvent::ModelError { .. } => self.errors += 1,
            CallEvent::Notice { .. } => self.state = "ending",
            CallEvent::Ended { reason, .. } => {
                (self.ended, self.state, self.end) = (Some(now), "over", Some(reason.name()));
                self.floor = Floor::default();
                self.functions.clear();
            }
            CallEvent::Dialed { .. }
            | CallEvent::Session { .. }
            | CallEvent::Unprotected { .. }
            | CallEvent::SpeechStarted
            | CallEvent::SpeechStopped
            | CallEvent::Speaking { after: None, .. }
            | CallEvent::ResponseDone { .. }
            | CallEvent::Keypad { .. }
            | CallEvent::Tolerated { .. }
            | CallEvent::TimerFired(_)
            | CallEvent::Renewal { .. }
            | CallEvent::ToolLoop { .. }
            | CallEvent::ExpiringSoon => {}
        }
    }

    fn said(&mut self, said: &Said, version: u64) {
        match said {
            Said::More { item, speaker, words } => {
                let line = self.lines.entry(item.clone()).or_insert_with(|| Spoken {
                    place: u64::MAX,
                    speaker: *speaker,
                    text: String::new(),
                    cut: false,
                    whole: false,
                    version,
                });
                line.version = version;
                line.text.push_str(words.expose());
                shorten(&mut line.text);
            }
            Said::Line(Line { item, place, speaker, text, cut }) => {
                let mut text = text.clone();
                shorten(&mut text);
                let line = Spoken { place: *place, speaker: *speaker, text, cut: *cut, whole: true, version };
                self.lines.insert(item.clone(), line);
            }
        }
        while self.lines.len() > LINES_MAX {
            let oldest = self.lines.iter().min_by_key(|(_, line)| line.place).map(|(item, _)| item.clone());
            oldest.and_then(|item| self.lines.remove(&item));
        }
    }

    /// The call as JSON, with the lines that changed behind version `seen`.
    fn shown(&self, key: u64, seen: u64, now: Instant) -> Value {
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let lasted = self.ended.unwrap_or(now).saturating_duration_since(self.began);
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let lines: Vec<_> = self
            .lines
            .iter()
            .filter(|(_, line)| line.version > seen)
            .map(|(item, line)| {
                json!({
                    "item": item,
                    // As text: JSON's numbers end in 2^53 for a browser.
                    "place": format!("{:020}", line.place),
                    "speaker": line.speaker.name(),
                    "text": line.text,
                    "cut": line.cut,
                    "whole": line.whole,
                })
            })
            .collect();
        json!({
            "key": key,
            "callSid": self.call_sid,
            "state": self.state,
            "began": self.began_unix,
            "lastedMs": lasted.as_millis() as u64,
            "speaking": { "caller": self.floor.caller, "agent": self.floor.agent },
            "latencyMs": {
                "last": self.latencies.last().map(|after| ms(*after).round()),
                "median": sorted.get(sorted.len() / 2).map(|after| ms(*after).round()),
            },
            "insideMs": self.inside.map(|inside| (ms(inside) * 100.0).round() / 100.0),
            "bargeIns": self.barge_ins,
            "silencedMs": self.silenced.map(|after| ms(after).round()),
            "functions": self.functions.iter().map(|(_, name)| name).collect::<Vec<_>>(),
            "errors": self.errors,
            "end": self.end,
            "lines": lines,
        })
    }
}

/// Cuts a line that is too long to read.
fn shorten(text: &mut String) {
    if text.len() > LINE_MAX {
        let mut end = LINE_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// What the routes need to know.
#[derive(Clone)]
struct PageState {
    live: Live,
    stats: Stats,
    settings: Arc<server::Settings>,
    carrier: Option<Arc<dyn Carrier>>,
    /// What the page may load and run: itself.
    policy: HeaderValue,
    page: Bytes,
    /// The line about those who were refused.
    refused: Arc<LogLimit>,
}

/// Serves the page and what it asks for until the future is dropped.
///
/// # Errors
/// When the page's own policy fits no header, which no build of it does.
pub async fn serve(
    listener: TcpListener,
    live: Live,
    stats: Stats,
    settings: Arc<server::Settings>,
    carrier: Option<Arc<dyn Carrier>>,
) -> anyhow::Result<()> {
    let (policy, refused) = (HeaderValue::try_from(policy())?, Arc::default());
    let page_state =
        PageState { live, stats: stats.clone(), settings, carrier, policy, page: put_together(), refused };
    let listener = Tcp::new(listener, stats.clone());
    match connections::serve(listener, None, router(page_state), Limits::of(CONNECTIONS_MAX), stats).await {}
}

fn router(page_state: PageState) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/live/calls", get(calls))
        .route("/live/events", get(events))
        .route("/live/calls/{key}/hangup", post(hang_up))
        .route("/live/calls/{key}/transfer", post(transfer))
        .fallback(|| async { (StatusCode::NOT_FOUND, "nothing here: the live page is at /\n") })
        .layer(middleware::from_fn_with_state(page_state.clone(), let_in))
        .with_state(page_state)
}

fn policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text.as_bytes())));
    format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

/// Who may come in, and with what.
async fn let_in(State(page_state): State<PageState>, request: Request, next: Next) -> Response {
    let token = &page_state.settings.operator_token;
    let headers = request.headers();
    let refusal = if token.is_empty() && !names_loopback(headers, request.uri()) {
        Some((
            StatusCode::FORBIDDEN,
            "this page is asked for by a foreign name: open it as http://localhost\n",
        ))
    } else if !token.is_empty() && !shows(headers, token) {
        Some((StatusCode::UNAUTHORIZED, "the operator's token is needed, as a bearer or as the password\n"))
    } else if is_foreign(headers) || (request.method() == Method::POST && !headers.contains_key(BUTTON)) {
        Some((StatusCode::FORBIDDEN, "this was sent by another site's page\n"))
    } else {
        None
    };
    let policy = page_state.policy.clone();
    let mut response = match refusal {
        None => next.run(request).await,
        Some((status, words)) => {
            if let Some(left_out) = page_state.refused.may() {
                // A path of a stranger's is as long as a stranger likes.
                let path = shortened(request.uri().path());
                tracing::warn!(path, status = status.as_u16(), left_out, "live page request rejected");
            }
            let mut response = (status, words).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let how = HeaderValue::from_static("Basic realm=\"bridge\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, how);
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether this machine itself is asked for by name: another name that leads here was made to.
fn names_loopback(headers: &HeaderMap, uri: &Uri) -> bool {
    let asked = text(headers, "host").or(uri.authority().map(|authority| authority.as_str()));
    let Some(Ok(authority)) = asked.map(str::parse::<axum::http::uri::Authority>) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a browser says that another site's page is behind this.
fn is_foreign(headers: &HeaderMap) -> bool {
    let own = text(headers, "host").unwrap_or_default();
    let origin = text(headers, "origin").map(|origin| origin.split_once("://").map_or("", |(_, host)| host));
    let site = text(headers, "sec-fetch-site").unwrap_or("none");
    origin.is_some_and(|origin| origin != own) || !matches!(site, "none" | "same-origin")
}

/// Whether the operator's token is shown, as a bearer or as the password of whatever name.
fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let basic = text(headers, "authorization").and_then(|value| value.split_once(' '));
    let basic = basic.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = basic.and_then(|(_, word)| BASE64.decode(word.trim()).ok()).unwrap_or_default();
    let password = decoded.iter().position(|byte| *byte == b':').map(|at| &decoded[at + 1..]);
    operator::shows(headers, token)
        || password.is_some_and(|shown| bool::from(shown.ct_eq(token.expose().as_bytes())))
}

async fn page(State(page_state): State<PageState>) -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page_state.page).into_response()
}

/// The page, put together.
fn put_together() -> Bytes {
    PAGE.replacen("/*style*/", STYLE, 1).replacen("/*script*/", SCRIPT, 1).into()
}

impl PageState {
    /// What is said to a watcher who has seen all up to a version, and the version it brings them to.
    fn news(&self, seen: u64) -> (u64, Value) {
        let (version, calls, present) = self.live.since(seen, clock::now());
        let people: Vec<_> = self.settings.call.hangup.transfer.iter().map(|person| &person.name).collect();
        let value = json!({
            "active": self.stats.active(),
            "maxCalls": self.settings.limits.max_calls,
            "total": self.stats.calls(),
            "draining": self.stats.is_draining(),
            "lagMs": self.stats.loop_lag().as_millis() as u64,
            "canTransfer": self.carrier.is_some(),
            "people": people,
            "calls": calls,
            "present": present,
        });
        (version, value)
    }
}

async fn calls(State(page_state): State<PageState>) -> Response {
    said(StatusCode::OK, &page_state.news(0).1)
}

/// One of the watchers, given back when dropped.
struct Watcher(Live, Arc<Notify>);

impl Drop for Watcher {
    fn drop(&mut self) {
        locked(&self.0.0.watchers).retain(|other| !Arc::ptr_eq(other, &self.1));
    }
}

impl Watcher {
    /// One more. A page asks again by itself when its stream ends, so the oldest has to; its browser may be gone
    /// without notice.
    fn of(live: &Live) -> Self {
        let end = Arc::new(Notify::new());
        let mut watchers = locked(&live.0.watchers);
        if watchers.len() >= WATCHERS_MAX
            && let Some(oldest) = watchers.pop_front()
        {
            oldest.notify_one();
        }
        watchers.push_back(end.clone());
        drop(watchers);
        Self(live.clone(), end)
    }
}

async fn events(State(page_state): State<PageState>) -> Response {
    let watcher = Watcher::of(&page_state.live);
    let mut response =
        Sse::new(watched(page_state, watcher)).keep_alive(KeepAlive::default()).into_response();
    // Proxies that gather answers would hold the news back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// News for one watcher, from the beginning, ten times a second at most. A watcher who is slow to read gets fewer and
/// newer ones, and one who does not read is closed by the connection.
fn watched(page_state: PageState, watcher: Watcher) -> impl Stream<Item = Result<Event, Infallible>> {
    let looked = (u64::MAX, 0, 0);
    futures_util::stream::unfold(
        (page_state, watcher, 0, looked),
        |(page_state, watcher, seen, mut looked)| async move {
            loop {
                if looked.0 != u64::MAX {
                    tokio::select! {
                        biased;
                        () = watcher.1.notified() => return None,
                        () = tokio::time::sleep(EVERY) => {}
                    }
                }
                let version = page_state.live.0.version.load(SeqCst);
                let now = (version, page_state.stats.active(), usize::from(page_state.stats.is_draining()));
                if now != looked {
                    looked = now;
                    let (seen, value) = page_state.news(seen);
                    let event = Event::default().event("calls").data(value.to_string());
                    return Some((Ok(event), (page_state, watcher, seen, looked)));
                }
            }
        },
    )
}

async fn hang_up(State(page_state): State<PageState>, Path(key): Path<u64>) -> Response {
    let call = CallKey(key);
    let Some(call_sid) = page_state.live.call_sid(call) else { return over() };
    // Twilio ends the call itself; without Twilio, or when it cannot be asked, closing the stream has to do.
    if let Some(carrier) = page_state.carrier.as_ref().filter(|_| !call_sid.is_empty()) {
        match carrier.hang_up(&call_sid).await {
            Ok(()) => {
                tracing::info!(call_sid, "an operator ended a call from the live page");
                return said(StatusCode::OK, &json!({ "status": "completed" }));
            }
            Err(problem) => {
                tracing::warn!(call_sid, %problem, "Twilio did not end a call; its stream is closed")
            }
        }
    }
    if page_state.stats.hang_up(call) {
        tracing::info!(call_sid, "an operator ended a call from the live page");
        return said(StatusCode::OK, &json!({ "status": "closing" }));
    }
    over()
}

/// Whom to put a caller through to: a listed person, or a number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    to: String,
}

async fn transfer(State(page_state): State<PageState>, Path(key): Path<u64>, request: Request) -> Response {
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let Ok(Order { to }) = serde_json::from_slice(&body) else {
        return wrong(StatusCode::BAD_REQUEST, "a JSON object with \"to\" is wanted");
    };
    let Some(call_sid) = page_state.live.call_sid(CallKey(key)).filter(|sid| !sid.is_empty()) else {
        return over();
    };
    let Some(carrier) = &page_state.carrier else {
        return wrong(
            StatusCode::CONFLICT,
            "Twilio transfers calls: set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN",
        );
    };
    let people = &page_state.settings.call.hangup.transfer;
    let number = people.iter().find(|person| person.name == to).map_or(to, |person| person.number.clone());
    match carrier.transfer(&call_sid, &number).await {
        Ok(()) => {
            tracing::info!(call_sid, "an operator transferred a call from the live page");
            said(StatusCode::OK, &json!({ "status": "transferred" }))
        }
        Err(Problem::CallEnded) => over(),
        Err(problem @ Problem::InvalidRequest(_)) => wrong(StatusCode::BAD_REQUEST, &problem.to_string()),
        Err(problem @ (Problem::Refused { .. } | Problem::Unreachable(_))) => {
            wrong(StatusCode::BAD_GATEWAY, &problem.to_string())
        }
    }
}

fn over() -> Response {
    wrong(StatusCode::CONFLICT, "the call is over")
}

fn wrong(status: StatusCode, why: &str) -> Response {
    said(status, &json!({ "error": why }))
}

fn said(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::Config;
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    const CALL: CallKey = CallKey(7);

    fn begun() -> (Live, Instant) {
        let (live, now) = (Live::default(), clock::now());
        live.begins(CALL, now, 1_700_000_000);
        let started = CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() };
        live.event(CALL, now, &started);
        (live, now)
    }

    fn line(item: &str, place: u64, text: &str) -> CallEvent {
        let (item, text) = (item.to_owned(), text.to_owned());
        CallEvent::Said(Said::Line(Line { item, place, speaker: Speaker::Agent, text, cut: false }))
    }

    #[test]
    fn a_watcher_is_told_what_has_changed_since_and_nothing_twice() {
        let (live, now) = begun();
        live.event(CALL, now, &line("a", 1, "one"));
        let (seen, calls, present) = live.since(0, now);
        assert_eq!((calls.len(), calls[0]["lines"][0]["text"].as_str()), (1, Some("one")));
        assert_eq!((calls[0]["callSid"].as_str(), present), (Some("CA1"), vec![7]));
        assert!(live.since(seen, now).1.is_empty());
        live.event(CALL, now, &line("b", 2, "two"));
        let (_, calls, _) = live.since(seen, now);
        assert_eq!(calls[0]["lines"].as_array().map(Vec::len), Some(1));
        assert_eq!(calls[0]["lines"][0]["text"], "two");
    }

    #[test]
    fn words_grow_until_their_line_is_whole() {
        let (live, now) = begun();
        for words in ["Good ", "morning"] {
            let (item, words) = ("a".to_owned(), crate::call::event::Private::new(words));
            live.event(CALL, now, &CallEvent::Said(Said::More { item, speaker: Speaker::Agent, words }));
        }
        let text = |live: &Live| live.since(0, now).1[0]["lines"][0].clone();
        assert_eq!(
            (text(&live)["text"].as_str(), text(&live)["whole"].as_bool()),
            (Some("Good morning"), Some(false))
        );
        live.event(CALL, now, &line("a", 1, "Good"));
        assert_eq!(
            (text(&live)["text"].as_str(), text(&live)["whole"].as_bool()),
            (Some("Good"), Some(true))
        );
    }

    #[test]
    fn what_is_kept_of_a_call_and_of_calls_is_bounded() {
        let (live, now) = begun();
        for n in 0..LINES_MAX as u64 + 50 {
            live.event(CALL, now, &line(&n.to_string(), n, &"é".repeat(LINE_MAX)));
        }
        let (_, calls, _) = live.since(0, now);
        let lines = calls[0]["lines"].as_array().expect("lines");
        assert_eq!(lines.len(), LINES_MAX);
        assert!(lines.iter().all(|line| line["text"].as_str().expect("text").len() <= LINE_MAX));
        for n in 100..200 {
            live.begins(CallKey(n), now, 0);
            live.gone(CallKey(n));
        }
        let (_, _, present) = live.since(0, now);
        assert_eq!(present.len(), OVER_MAX + 1);
        assert!(present.contains(&7), "who is still on the line is not forgotten");
    }

    #[test]
    fn a_call_that_was_cut_is_over_and_cannot_be_hung_up() {
        let (live, now) = begun();
        assert_eq!(live.call_sid(CALL).as_deref(), Some("CA1"));
        live.gone(CALL);
        assert_eq!(live.call_sid(CALL), None);
        assert_eq!(live.since(0, now).1[0]["end"], "cut");
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (axum::http::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
            })
            .collect()
    }

    #[test]
    fn only_this_machine_is_asked_for_by_its_own_name() {
        let uri: Uri = "/".parse().expect("a path");
        for good in ["localhost:8085", "127.0.0.1:8085", "[::1]:8085", "127.0.0.1"] {
            assert!(names_loopback(&headers(&[("host", good)]), &uri), "{good}");
        }
        for bad in ["evil.example:8085", "localhost.evil.example", "10.0.0.1:8085", "127.0.0.1.nip.io", ""] {
            assert!(!names_loopback(&headers(&[("host", bad)]), &uri), "{bad}");
        }
        assert!(!names_loopback(&HeaderMap::new(), &uri));
    }

    #[test]
    fn another_sites_page_is_known_by_what_its_browser_says() {
        let own = ("host", "localhost:8085");
        assert!(!is_foreign(&headers(&[own])));
        assert!(!is_foreign(&headers(&[
            own,
            ("origin", "http://localhost:8085"),
            ("sec-fetch-site", "same-origin")
        ])));
        for foreign in
            [("origin", "http://localhost:9"), ("origin", "null"), ("sec-fetch-site", "cross-site")]
        {
            assert!(is_foreign(&headers(&[own, foreign])), "{foreign:?}");
        }
    }

    #[test]
    fn the_token_is_shown_as_a_bearer_or_as_a_password() {
        let token = Secret::new("0123456789abcdef");
        let shown = |value: &str| shows(&headers(&[("authorization", value)]), &token);
        assert!(shown("Bearer 0123456789abcdef"));
        assert!(shown(&format!("Basic {}", BASE64.encode("operator:0123456789abcdef"))));
        assert!(!shown(&format!("Basic {}", BASE64.encode("0123456789abcdef:"))));
        assert!(!shown("Basic !") && !shown("Bearer ") && !shows(&HeaderMap::new(), &token));
    }

    #[test]
    fn the_page_runs_its_own_script_and_loads_nothing() {
        assert!(PAGE.contains("<style>/*style*/</style>") && PAGE.contains("<script>/*script*/</script>"));
        for away in ["http:", "https:", "//", "innerHTML", "url("] {
            let found = [PAGE, STYLE, SCRIPT].iter().any(|text| {
                text.lines().any(|line| line.contains(away) && !line.trim_start().starts_with("//"))
            });
            assert!(!found, "{away}");
        }
        let own = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text.as_bytes())));
        let policy = policy();
        let directives: Vec<_> = policy.split(';').map(str::trim).collect();
        assert_eq!(
            directives,
            [
                "default-src 'none'",
                &format!("script-src {}", own(SCRIPT)),
                &format!("style-src {}", own(STYLE)),
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            ]
        );
    }

    /// The page, served on a free port.
    async fn served(config: Config) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, Live::default(), Stats::default(), Arc::new(config.server()), None));
        address
    }

    /// The status and the head of what is answered to `METHOD PATH`, with these headers beside `Host`.
    async fn asked(address: SocketAddr, what: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let mut tcp = TcpStream::connect(address).await.expect("a connection");
        let mut request = format!("{what} HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n");
        let host = ("Host", format!("{address}"));
        let own = [(host.0, host.1.as_str())];
        let host = own.iter().filter(|_| !headers.iter().any(|(name, _)| *name == "Host"));
        for (name, value) in host.chain(headers) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        tcp.write_all(format!("{request}\r\n").as_bytes()).await.expect("it is sent");
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.expect("text");
        let (head, _) = answer.split_once("\r\n\r\n").expect("a head");
        (head[9..12].parse().expect("a status"), head.to_ascii_lowercase())
    }

    #[tokio::test]
    async fn every_answer_tells_the_browser_what_it_may_do_with_it() {
        let address = served(Config::default()).await;
        for (what, headers, status) in [
            ("GET /", [].as_slice(), 200),
            ("GET /live/calls", &[], 200),
            ("GET /nowhere", &[], 404),
            ("GET /", &[("Host", "evil.example")], 403),
        ] {
            let (answered, head) = asked(address, what, headers).await;
            assert_eq!(answered, status, "{what} {headers:?}");
            for line in [
                &format!("content-security-policy: {}", policy().to_ascii_lowercase()),
                "x-content-type-options: nosniff",
                "referrer-policy: no-referrer",
                "cache-control: no-store",
            ] {
                assert!(head.lines().any(|found| found == line), "{what}: no {line} in {head}");
            }
        }
    }

    #[tokio::test]
    async fn who_comes_by_another_name_or_from_another_page_is_not_let_in() {
        let address = served(Config::default()).await;
        let (hang_up, own) = ("POST /live/calls/1/hangup", format!("http://{address}"));
        let button = ("X-Bridge-Live", "1");
        for (what, headers, status) in [
            ("GET /live/calls", [].as_slice(), 200),
            ("GET /live/calls", &[("Host", "evil.example")], 403),
            ("GET /live/calls", &[("Origin", "https://evil.example")], 403),
            ("GET /live/events", &[("Sec-Fetch-Site", "cross-site")], 403),
            (hang_up, &[], 403),
            (hang_up, &[button, ("Origin", "https://evil.example")], 403),
            (hang_up, &[button, ("Sec-Fetch-Site", "same-site")], 403),
            (hang_up, &[button, ("Host", "evil.example")], 403),
            (hang_up, &[button, ("Origin", &own), ("Sec-Fetch-Site", "same-origin")], 409),
        ] {
            assert_eq!(asked(address, what, headers).await.0, status, "{what} {headers:?}");
        }
    }

    #[tokio::test]
    async fn with_a_token_no_request_is_let_in_without_it() {
        let mut config = Config::default();
        config.operator.token = Secret::new("0123456789abcdef");
        let address = served(config).await;
        let right = ("Authorization", "Bearer 0123456789abcdef");
        for what in ["GET /", "GET /live/calls", "GET /live/events", "POST /live/calls/1/hangup"] {
            let (status, head) = asked(address, what, &[("X-Bridge-Live", "1")]).await;
            assert!(status == 401 && head.contains("www-authenticate: basic"), "{what}: {head}");
            let wrong = ("Authorization", "Bearer 0123456789abcdeg");
            assert_eq!(asked(address, what, &[wrong, ("X-Bridge-Live", "1")]).await.0, 401, "{what}");
        }
        assert_eq!(asked(address, "GET /live/calls", &[right]).await.0, 200);
        let elsewhere = [right, ("Host", "calls.example.com")];
        assert_eq!(asked(address, "GET /live/calls", &elsewhere).await.0, 200, "the token is what counts");
        let foreign = [right, ("X-Bridge-Live", "1"), ("Origin", "https://evil.example")];
        assert_eq!(asked(address, "POST /live/calls/1/hangup", &foreign).await.0, 403);
    }

    #[tokio::test]
    async fn connections_that_say_nothing_lock_no_browser_out() {
        let address = served(Config::default()).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX + 10 {
            silent.push(TcpStream::connect(address).await.expect("a connection"));
        }
        assert_eq!(asked(address, "GET /live/calls", &[]).await.0, 200);
    }

    /// A page of no calls, that serves no document.
    fn page_state() -> PageState {
        PageState {
            live: Live::default(),
            stats: Stats::default(),
            settings: Arc::new(Config::default().server()),
            carrier: None,
            policy: HeaderValue::from_static("x"),
            page: Bytes::new(),
            refused: Arc::default(),
        }
    }

    #[tokio::test]
    async fn one_watcher_too_many_ends_the_oldest_and_no_watcher_is_locked_out() {
        let page_state = page_state();
        let mut watching = VecDeque::new();
        for _ in 0..WATCHERS_MAX {
            watching.push_back(events(State(page_state.clone())).await.into_body().into_data_stream());
        }
        // Not one of them reads; one more watcher is still shown what there is.
        let mut newest = events(State(page_state.clone())).await.into_body().into_data_stream();
        assert_eq!(page_state.live.watchers(), WATCHERS_MAX);
        assert!(newest.next().await.is_some_and(|first| first.is_ok()));
        let mut oldest = watching.pop_front().expect("the first one");
        assert!(oldest.next().await.is_some(), "what was ready");
        assert!(oldest.next().await.is_none(), "it may ask again");
        let mut second = watching.pop_front().expect("the second one");
        assert!(second.next().await.is_some());
        let more = tokio::time::timeout(EVERY * 3, second.next()).await;
        assert!(more.is_err(), "it goes on");
        drop((watching, newest, oldest, second));
        assert_eq!(page_state.live.watchers(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_is_told_ten_times_a_second_at_most() {
        let page_state = page_state();
        let began = clock::now();
        let mut stream = events(State(page_state.clone())).await.into_body().into_data_stream();
        for n in 0..11 {
            page_state.live.begins(CallKey(n), clock::now(), 0);
            assert!(stream.next().await.is_some());
        }
        let took = clock::now().saturating_duration_since(began);
        assert!(took >= EVERY * 10, "{took:?}");
    }

    #[test]
    fn a_page_beyond_loopback_needs_a_token() {
        let mut problems = Vec::new();
        let open = Settings { listen: "0.0.0.0:8085".parse().expect("an address"), ..Settings::default() };
        open.check(&Secret::default(), &mut |problem| problems.push(problem));
        assert!(problems[0].contains("BRIDGE_OPERATOR_TOKEN"), "{problems:?}");
        problems.clear();
        open.check(&Secret::new("0123456789abcdef"), &mut |problem| problems.push(problem));
        Settings::default().check(&Secret::default(), &mut |problem| problems.push(problem));
        assert!(problems.is_empty(), "{problems:?}");
    }
}
