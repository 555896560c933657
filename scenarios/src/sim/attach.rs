//! A foreign bridge, in a process of its own and in any language: its Twilio end is dialled, its OpenAI end is
//! served, both over real sockets and in real time.
//!
//! Several scenarios are played at one time, one dial at a time: until a bridge has dialled the model for one call, the
//! next call is not begun, because most bridges do not say which call a model connection is for. A bridge that does
//! (a header or a query with the callSid or the streamSid in it) is not held up.
//!
//! Nothing here waits for the bridge without an end: a call that is not answered is a refused call, and a play has a
//! limit.

use super::real::{Clock, Crowd, Lag, on_this_machine, processors};
use super::shell::{self, Dialled, Ending, Invited, Net, Play};
use crate::model::backend::Backend;
use crate::model::scenario::{PlannedCall, Scenario};
use crate::model::seed::Seed;
use crate::sim::trace::Trace;
use anyhow::{Context as _, bail};
use mocks::net::{self, Roots, Throwaway, Url};
use mocks::peer::{At, Peer as _};
use mocks::realtime::Dial;
use mocks::record::{self, CallerObservation};
use mocks::twilio::signature;
use mocks::webhook;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinSet;

/// How long a call keeps the turn to dial while its bridge does not dial the model, ms.
const DOOR_MS: u64 = 10_000;
/// How long the bridge may take to end its model connections once every caller is gone, ms: longer than any rule
/// allows, so that who breaks one is seen to.
const TEARDOWN_MS: u64 = 4_000;
/// How long a client that connects may take to send its request.
const HEAD: Duration = Duration::from_secs(10);
/// How long after its connections the end of a process is known at the latest.
const OBITUARY: Duration = Duration::from_millis(300);
/// How often a play looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How a bridge is reached.
#[derive(Clone, Debug)]
pub struct Target {
    /// The address of its WebSocket. With `start_url`, only where it really is: what is asked for is what TwiML says.
    pub bridge: Option<Url>,
    /// Its webhook, which is asked about each call.
    pub start_url: Option<Url>,
    /// Scheme and host under which Twilio would know it: what is signed, and the `Host` that is sent.
    pub public: Option<Url>,
    /// Signs the webhook and the upgrade.
    pub token: Option<String>,
    /// Whose certificates are believed.
    pub roots: Roots,
}

impl Target {
    /// Where its WebSocket or its webhook really is.
    ///
    /// # Errors
    /// When neither is known.
    pub fn place(&self) -> anyhow::Result<&Url> {
        self.bridge.as_ref().or(self.start_url.as_ref()).context("neither --bridge nor --start-url is given")
    }

    /// The address Twilio would ask for instead of this one.
    fn public_of(&self, url: &Url, schemes: [&str; 2]) -> anyhow::Result<Url> {
        let Some(public) = &self.public else { return Ok(url.clone()) };
        let scheme = schemes[usize::from(public.secure)];
        format!("{scheme}://{}{}", public.authority(), url.target).parse()
    }

    /// What TwiML or the command line says about the upgrade, and where it is to be asked for.
    async fn invite(&self, call: &PlannedCall) -> anyhow::Result<(Invited, Url)> {
        let (said, parameters) = match &self.start_url {
            Some(start) => {
                let public = self.public_of(start, ["http", "https"])?;
                let token = self.token.as_deref();
                let found = webhook::ask(start, &public, token, &call.identity, &self.roots).await?;
                (found.stream, found.parameters)
            }
            None => (self.public_of(self.place()?, ["ws", "wss"])?, BTreeMap::new()),
        };
        let said = said.without_query();
        let place = match &self.bridge {
            Some(bridge) => {
                let scheme = if bridge.secure { "wss" } else { "ws" };
                format!("{scheme}://{}{}", bridge.authority(), said.target).parse()?
            }
            None => said.clone(),
        };
        let signed = self.token.as_ref().map(|token| signature(token, said.as_str(), &[]));
        let headers = signed.map(|signed| (webhook::SIGNATURE.to_owned(), signed)).into_iter().collect();
        let url = format!("ws://{}{}", said.authority(), said.target);
        Ok((Invited { url, host: said.authority(), headers, parameters }, place))
    }
}

/// What came of a play.
#[derive(Clone, Debug)]
pub struct Played {
    /// What both ends saw.
    pub trace: Trace,
    /// What neither end can see: who could not be reached, and how the process ended.
    pub notes: Vec<String>,
    /// The settings of each session, by call, as the model held them at the end.
    pub sessions: Vec<Vec<Value>>,
    /// The process of the bridge ended during the play.
    pub felled: bool,
    /// No process listened where a call was to be taken.
    pub unanswered: bool,
    /// Others wanted this machine's processors all the time.
    pub crowded: bool,
}

#[cfg(test)]
impl Played {
    /// A play in which nothing happened beside the trace.
    pub(crate) fn undisturbed(trace: Trace) -> Self {
        Self {
            trace,
            notes: Vec::new(),
            sessions: Vec::new(),
            felled: false,
            unanswered: false,
            crowded: false,
        }
    }
}

/// A bridge under test. Clones are the same one.
#[derive(Clone)]
pub struct Bridge {
    target: Arc<Target>,
    exchange: Exchange,
    dial_turn: Arc<tokio::sync::Mutex<()>>,
    /// Where the model is served.
    openai: SocketAddr,
    plays: Arc<AtomicU64>,
    /// How its process ended, if it has one and that has.
    ended: Arc<Mutex<Option<String>>>,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge")
            .field("target", &self.target)
            .field("openai", &self.openai)
            .finish_non_exhaustive()
    }
}

impl Bridge {
    /// Serves the model at `openai`, with TLS if there is a certificate, for a bridge that is reached like this.
    ///
    /// # Errors
    /// When that address cannot be had.
    pub async fn attach(target: Target, openai: SocketAddr, tls: Option<Throwaway>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(openai).await.with_context(|| {
            format!("cannot serve the model at {openai}: free the port, or name another with --serve-openai")
        })?;
        let bridge = Self {
            target: Arc::new(target),
            exchange: Exchange::default(),
            dial_turn: Arc::default(),
            openai: listener.local_addr()?,
            plays: Arc::default(),
            ended: Arc::default(),
        };
        tokio::spawn(bridge.exchange.clone().serve(listener, tls));
        Ok(bridge)
    }

    /// Where the model is served.
    pub const fn openai(&self) -> SocketAddr {
        self.openai
    }

    /// How it is reached.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The bridge says which call a model connection is for.
    pub fn names_its_calls(&self) -> bool {
        self.exchange.named.load(Ordering::Relaxed)
    }

    /// The process of the bridge has ended like this, or has been started again.
    pub fn set_ended(&self, how: Option<String>) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = how;
    }

    /// How the process of the bridge ended, if it did.
    pub fn ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Plays a scenario to its end, or to the end of its time.
    ///
    /// # Errors
    /// When the harness itself failed, which says nothing about the bridge.
    pub async fn play(&self, scenario: &Scenario, seed: Seed) -> anyhow::Result<Played> {
        let scenario = on_this_machine(scenario);
        let id = self.plays.fetch_add(1, Ordering::Relaxed);
        // No two plays are the same call.
        let seed = Seed(seed.number(&format!("play/{id}")));
        let wire = Wire {
            id,
            clock: Clock::start(),
            bridge: self.clone(),
            planned: scenario.planned(seed).into(),
            places: Arc::default(),
            notes: Arc::default(),
            unanswered: Arc::default(),
            tasks: Arc::default(),
        };
        let play = Play::new(wire.clone(), &scenario, seed, None);
        self.exchange.lines().enter(&play);
        let lag = Lag::default();
        wire.spawn(lag.clone().watch());
        let crowd = Crowd::default();
        wire.spawn(crowd.clone().watch());
        for planned in play.planned.iter().cloned() {
            wire.spawn(shell::caller(play.clone(), planned));
        }
        let mut told = false;
        let cut = self.watch(&play, &mut told).await;
        if !told && lost_a_caller(&play) {
            // Its connections end before the process is known to have ended.
            tokio::time::sleep(OBITUARY).await;
            self.tell_of_its_end(&wire, &mut told);
        }
        self.exchange.lines().leave(id);
        let mut tasks = std::mem::take(&mut *wire.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.abort_all();
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                bail!("the harness itself failed while it played {}: {error}", scenario.name);
            }
        }
        let sessions = (0..play.planned.len())
            .map(|call| play.models(call).iter().map(|model| model.get().session()).collect())
            .collect();
        let ending = Ending { at: wire.clock.now(), finished: None, cut, broken: Vec::new() };
        let mut trace = play.trace(Backend::Attach, ending, || {});
        trace.panics.clear();
        trace.lag_us = lag.worst_us();
        let mut notes = std::mem::take(&mut *wire.notes());
        notes.extend(refusals(&trace));
        let unanswered = wire.unanswered.load(Ordering::Relaxed);
        let crowded = crowd.is_dense(processors());
        Ok(Played { trace, notes, sessions, felled: told, unanswered, crowded })
    }

    /// Notes once that the process has ended, if it has.
    fn tell_of_its_end(&self, wire: &Wire, told: &mut bool) {
        if let Some(how) = self.ended().filter(|_| !*told) {
            *told = true;
            wire.notes().push(format!("the bridge's process ended during this play: {how}"));
        }
    }

    /// Waits until every end is done. True when one never was.
    async fn watch(&self, play: &Play<Wire>, told: &mut bool) -> bool {
        let wire = &play.net;
        let limit = At::ms(play.scenario.world.limit_ms);
        let mut callers_done: Option<At> = None;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            let now = wire.clock.now();
            self.exchange.lines().close_doors(wire.id, now);
            self.tell_of_its_end(wire, told);
            if callers_done.is_none() && play.callers_done() {
                callers_done = Some(now);
            }
            if let Some(since) = callers_done {
                let all = (0..play.planned.len()).flat_map(|call| play.models(call));
                let gone = all.into_iter().all(|model| model.get().is_over());
                if gone || now > since.plus_ms(TEARDOWN_MS) {
                    return false;
                }
            } else if now > limit.plus_ms(DOOR_MS * play.planned.len() as u64) {
                return true;
            }
        }
    }
}

/// A caller's end was lost, and not by itself.
fn lost_a_caller(play: &Play<Wire>) -> bool {
    (0..play.planned.len()).any(|call| {
        let caller = play.caller(call).get();
        let lost = |what: &CallerObservation| {
            matches!(
                what,
                CallerObservation::Ended(record::Ending::Lost { .. })
                    | CallerObservation::Refused { status: 0 }
            )
        };
        caller.record().observations.iter().any(|seen| lost(&seen.what))
    })
}

/// Upgrades that the bridge refused.
fn refusals(trace: &Trace) -> Vec<String> {
    let refused = |call: &crate::sim::trace::CallTrace| {
        call.caller.observations.iter().find_map(|seen| {
            let CallerObservation::Refused { status } = seen.what else { return None };
            Some((call.index, status))
        })
    };
    let wanted = trace.scenario.expect.refused.unwrap_or(0) as usize;
    let all: Vec<_> = trace.calls.iter().filter_map(refused).collect();
    let said = |(call, status): (usize, u16)| match status {
        0 => format!("call {call} was not taken: the upgrade got no answer"),
        status => format!("call {call} was not taken: the upgrade was answered with {status}"),
    };
    if all.len() > wanted { all.into_iter().map(said).collect() } else { Vec::new() }
}

// ------------------------------------------------------------------------------------------ the exchange

/// Who of those who connect to the model is which call. Clones are the same one.
#[derive(Clone, Default)]
struct Exchange {
    lines: Arc<Mutex<Lines>>,
    /// The bridge names its calls.
    named: Arc<AtomicBool>,
}

#[derive(Default)]
struct Lines(Vec<Line>);

/// A call of a play that is going on.
struct Line {
    play: Play<Wire>,
    call: usize,
    /// When its caller's end dialled the bridge.
    dialled: Option<At>,
    /// It is the one whose model connection comes next.
    dial_turn: Option<OwnedMutexGuard<()>>,
}

impl Line {
    fn names(&self, head: &str) -> bool {
        let identity = &self.play.planned[self.call].identity;
        head.contains(&identity.call_sid) || head.contains(&identity.stream_sid)
    }

    fn caller_is_there(&self) -> bool {
        self.dialled.is_some() && !self.play.caller(self.call).get().is_finished()
    }

    /// It had a model, and has none any more.
    fn has_lost(&self) -> bool {
        let models = self.play.models(self.call);
        !models.is_empty() && models.iter().all(|model| model.get().is_over())
    }
}

impl Lines {
    fn enter(&mut self, play: &Play<Wire>) {
        let line = |call| Line { play: play.clone(), call, dialled: None, dial_turn: None };
        self.0.extend((0..play.planned.len()).map(line));
    }

    fn leave(&mut self, id: u64) {
        self.0.retain(|line| line.play.net.id != id);
    }

    fn dialled(&mut self, id: u64, call: usize, now: At, dial_turn: Option<OwnedMutexGuard<()>>) {
        let line = self.0.iter_mut().find(|line| line.play.net.id == id && line.call == call);
        if let Some(line) = line {
            line.dialled = Some(now);
            line.dial_turn = dial_turn;
        }
    }

    /// No call keeps the turn for ever.
    fn close_doors(&mut self, id: u64, now: At) {
        for line in self.0.iter_mut().filter(|line| line.play.net.id == id && line.dial_turn.is_some()) {
            let late = line.dialled.is_some_and(|since| now > since.plus_ms(DOOR_MS));
            if late || !line.caller_is_there() {
                line.dial_turn = None;
            }
        }
    }

    /// Whose model connection this is, and whether it says so itself.
    fn whose(&self, head: &str) -> Option<(usize, bool)> {
        if let Some(named) = self.0.iter().position(|line| line.names(head)) {
            return Some((named, true));
        }
        let there = || self.0.iter().enumerate().filter(|(_, line)| line.caller_is_there());
        let dial_turn = self.0.iter().position(|line| line.dial_turn.is_some());
        let lost = || there().filter(|(_, line)| line.has_lost()).map(|(n, _)| n).next_back();
        let bare =
            || there().filter(|(_, line)| line.play.models(line.call).is_empty()).map(|(n, _)| n).next_back();
        let only = || {
            let mut there = there().map(|(n, _)| n);
            there.next().filter(|_| there.next().is_none())
        };
        dial_turn.or_else(lost).or_else(bare).or_else(only).map(|n| (n, false))
    }
}

impl Exchange {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes connections for ever.
    async fn serve(self, listener: TcpListener, tls: Option<Throwaway>) {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            let (exchange, stream) = (self.clone(), net::receive(tcp, tls.as_ref()));
            tokio::spawn(async move {
                let looked = async {
                    let mut stream = stream.await?;
                    let head = stream.peek_head().await?;
                    io::Result::Ok((stream, head))
                };
                // A client that sends nothing does not count: a port scan, a health check, a connection kept warm.
                if let Ok(Ok((stream, head))) = tokio::time::timeout(HEAD, looked).await {
                    exchange.connect(stream, &head).await;
                }
            });
        }
    }

    async fn connect(&self, mut stream: net::Stream, head: &str) {
        let first = head.lines().next().unwrap_or_default().to_owned();
        let taken = {
            let mut lines = self.lines();
            lines.whose(head).map(|(n, named)| {
                self.named.fetch_or(named, Ordering::Relaxed);
                let line = &mut lines.0[n];
                // The turn goes to the next call.
                line.dial_turn = None;
                (line.play.clone(), line.call)
            })
        };
        let upgrades = head.to_ascii_lowercase().contains("upgrade: websocket");
        match taken {
            Some((play, call)) if upgrades => {
                let wire = play.net.clone();
                wire.spawn(model(play, call, stream));
            }
            Some((play, _)) => {
                let path = first.rsplit_once(' ').map_or(first.as_str(), |(path, _)| path);
                play.net.notes().push(format!("the model was asked for `{path}`, which it does not serve"));
                let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                // The client may be gone by now.
                let _told = stream.write_all(answer).await;
            }
            // No call is going on that it could be for: a connection that a pool keeps ready, perhaps.
            None => stream.reset(),
        }
    }
}

/// One model connection, from the accepted socket to its end.
async fn model(play: Play<Wire>, call: usize, stream: net::Stream) {
    let (n, model) = play.place_model(call);
    let (dial, dial_ms) = {
        let model = model.get();
        (model.script().dial.clone(), model.script().dial_ms)
    };
    tokio::time::sleep(Duration::from_millis(dial_ms)).await;
    match dial {
        Dial::Refuses => {
            model.get().refused("the connection is reset", play.net.now());
            stream.reset();
        }
        Dial::Hangs => {
            model.get().refused("the connection is made and nothing answers", play.net.now());
            let _held = stream;
            pending().await
        }
        Dial::Accepts | Dial::HangsInUpgrade | Dial::AnswersHttp(_) => {
            shell::model(play, stream, Dialled { call, n }).await;
        }
    }
}

/// The sockets of one play. Clones are the same ones.
#[derive(Clone)]
struct Wire {
    id: u64,
    clock: Clock,
    bridge: Bridge,
    planned: Arc<[PlannedCall]>,
    /// Where the upgrade of each call is to be asked for.
    places: Arc<Mutex<BTreeMap<usize, Url>>>,
    notes: Arc<Mutex<Vec<String>>>,
    unanswered: Arc<AtomicBool>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Wire {
    fn notes(&self) -> MutexGuard<'_, Vec<String>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

impl Net for Wire {
    type Stream = net::Stream;

    fn now(&self) -> At {
        self.clock.now()
    }

    async fn dial_model(&self, _dialled: Dialled) -> io::Result<net::Stream> {
        Err(io::Error::other("a foreign bridge dials by itself"))
    }

    async fn dial_closed_port(&self) -> io::Result<net::Stream> {
        Err(io::Error::other("a foreign bridge dials by itself"))
    }

    async fn dial_bridge(&self, call: usize) -> io::Result<net::Stream> {
        let place = self.places.lock().unwrap_or_else(PoisonError::into_inner).get(&call).cloned();
        let place = place.ok_or_else(|| io::Error::other("a dial without an invitation"))?;
        let dialled = net::dial(&place, &self.bridge.target.roots).await;
        dialled.inspect_err(|error| {
            self.unanswered.store(true, Ordering::Relaxed);
            self.notes().push(format!("call {call}: no answer at {place}: {error}"));
        })
    }

    async fn invite(&self, call: usize) -> io::Result<Invited> {
        let dial_turn = match self.bridge.names_its_calls() {
            true => None,
            false => Some(self.bridge.dial_turn.clone().lock_owned().await),
        };
        self.bridge.exchange.lines().dialled(self.id, call, self.clock.now(), dial_turn);
        match self.bridge.target.invite(&self.planned[call]).await {
            Ok((invited, place)) => {
                self.places.lock().unwrap_or_else(PoisonError::into_inner).insert(call, place);
                Ok(invited)
            }
            Err(error) => {
                self.notes().push(format!("call {call}: {error:#}"));
                Err(io::Error::other(error))
            }
        }
    }
}
