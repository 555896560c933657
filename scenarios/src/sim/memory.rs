//! The call as a value between two pure mocks, on one heap of timed messages.
//!
//! There is no network and nothing waits: the world is a heap of what arrives when, and time jumps from one
//! arrival to the next. What the production driver does around a [`Call`] is done here in its place: it answers
//! pings and close frames, bounds the writer's queue, runs the functions, admits calls and replaces streams.
//! A call takes about a millisecond, so this is where seeds are spent.

use super::adapter::{Act, BridgeOut, Defect, OutputFault, OutputOnly, Told};
use super::common::{
    API_KEY, AUTH_TOKEN, EPOCH_UNIX, STREAM_URL, ScenarioRunner, UPGRADE_PATIENCE_MS, WEBHOOK_URL,
};
use crate::model::backend::Backend;
use crate::model::network::LegConditions;
use crate::model::scenario::{PlannedCall, Scenario};
use crate::model::seed::Seed;
use crate::sim::in_memory_journal::InMemoryJournal;
use crate::sim::trace::{CallTrace, Network, Trace};
use bridge::app::config::Config;
use bridge::auth::signature::{Body, Signed};
use bridge::auth::stream_auth::{self, Refusal, StreamAuth};
use bridge::call::event::CallEvent;
use bridge::call::settings::CallConfig;
use bridge::call::{Call, Control, Incoming, Leg, LegChange, ToolResult, Transmit};
use bridge::runtime::codec;
use bridge::runtime::journal::{Journal as _, JournalEntry, JournalWriter};
use bridge::runtime::leg::{CALLER_MESSAGE_MAX, MODEL_MESSAGE_MAX, QUEUE_HIGH, QUEUE_LOW, QUEUE_MAX};
use bridge::runtime::registry::{CallKey, Registry};
use bridge::server::settings::Settings;
use bridge::wire::twiml::TOKEN_PARAMETER;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{Dial, Model, ModelIdentity};
use mocks::twilio::{Caller, Connect};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore as _;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a WebSocket frame adds to its payload, bytes.
const FRAME_OVERHEAD: u64 = 4;

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory;

impl ScenarioRunner for Memory {
    fn kind(&self) -> Backend {
        Backend::Memory
    }

    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace {
        World::new(scenario, seed, scenario.bridge.clone(), None, None).run()
    }
}

/// Plays a scenario with a bridge whose words are spoiled; `fault` is asked once for each call, by its index.
pub fn play_spoiled(scenario: &Scenario, seed: Seed, fault: &dyn Fn(usize) -> Box<dyn OutputFault>) -> Trace {
    play_defective(scenario, seed, &|_| {}, &|index| Box::new(OutputOnly(fault(index))))
}

/// Plays a scenario with a defective bridge: `settings` are changed behind the scenario's back, so that the judges
/// know nothing of it, and `defect` is asked once for each call, by its index.
pub fn play_defective(
    scenario: &Scenario,
    seed: Seed,
    settings: &dyn Fn(&mut CallConfig),
    defect: &dyn Fn(usize) -> Box<dyn Defect>,
) -> Trace {
    let mut config = scenario.bridge.clone();
    settings(&mut config);
    World::new(scenario, seed, config, Some(defect), None).run()
}

/// Plays a scenario, with a spoiled bridge or a whole one, and keeps the journals its calls would leave. They hold
/// what the bridge itself said, not what a fault made of it.
pub fn play_journalled(
    scenario: &Scenario,
    seed: Seed,
    fault: Option<&dyn Fn(usize) -> Box<dyn OutputFault>>,
    journals: &InMemoryJournal,
) -> Trace {
    let mouth = fault.map(|fault| move |index| Box::new(OutputOnly(fault(index))) as Box<dyn Defect>);
    let defect = mouth.as_ref().map(|mouth| mouth as &dyn Fn(usize) -> Box<dyn Defect>);
    World::new(scenario, seed, scenario.bridge.clone(), defect, Some(journals)).run()
}

/// Plays a scenario with a defective bridge and keeps the journals its calls would leave. A defect stands between the
/// bridge and its ends: the journals hold what it let the bridge hear, and what the bridge said before the defect
/// changed it.
pub fn play_defective_journalled(
    scenario: &Scenario,
    seed: Seed,
    defect: &dyn Fn(usize) -> Box<dyn Defect>,
    journals: &InMemoryJournal,
) -> Trace {
    World::new(scenario, seed, scenario.bridge.clone(), Some(defect), Some(journals)).run()
}

/// Something that travels on a connection.
#[derive(Debug)]
enum Parcel {
    Frame(Frame),
    /// The connection has ended without a close frame.
    Lost(&'static str),
}

impl Parcel {
    fn bytes(&self) -> u64 {
        let payload = match self {
            Self::Frame(Frame::Text(text)) => text.len(),
            Self::Frame(Frame::Binary(bytes) | Frame::Ping(bytes) | Frame::Pong(bytes)) => bytes.len(),
            Self::Frame(Frame::Close(_)) | Self::Lost(_) => 2,
        };
        payload as u64 + FRAME_OVERHEAD
    }
}

/// What the heap holds.
#[derive(Debug)]
enum Happens {
    /// The caller's upgrade request reaches the bridge.
    Arrives,
    /// The answer to it reaches the caller: the WebSocket is open, or this HTTP status.
    Answered(Option<u16>),
    /// The model's end of connection `usize` is reached by the upgrade request.
    ModelReached(usize),
    /// The outcome of a dial reaches the bridge.
    Dialled(usize, Result<(), String>),
    /// A parcel reaches the far end's socket.
    ToPeer(Pipe, Parcel),
    /// A parcel reaches the bridge's socket.
    ToBridge(Pipe, Parcel),
    /// The far end has time to read.
    Reads(Pipe),
    /// The bridge takes up what it left unread.
    Resumes(usize),
    /// Something about a leg that only its writer knows.
    Writer(Pipe, bool),
    /// The writer's queue is full.
    Overflows(Pipe),
    CallerWakes,
    ModelWakes(usize),
    CallWakes,
    Tool(ToolResult),
    /// Twilio does what this function asks of it.
    TakenAway(String),
    /// A defect does something late.
    Late(Act),
    /// The connections on a leg are reset.
    Cut(Leg),
    /// Another stream of the same call took over.
    Replaced,
    /// The server shuts down.
    Drains,
}

/// One connection of a call: the caller's, or the n-th to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pipe {
    Caller,
    Model(usize),
}

impl Pipe {
    const fn leg(self) -> Leg {
        match self {
            Self::Caller => Leg::Caller,
            Self::Model(_) => Leg::Model,
        }
    }
}

#[derive(Debug)]
struct Entry {
    at: At,
    order: u64,
    call: usize,
    happens: Happens,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// One direction of a connection: messages in order, each as late as the network has it.
struct Wire {
    draws: ChaCha8Rng,
    behind: At,
}

impl Wire {
    fn new(seed: Seed, label: &str) -> Self {
        Self { draws: seed.stream(label), behind: At(0) }
    }

    fn arrives(&mut self, conditions: &LegConditions, sent: At) -> Option<At> {
        let at = conditions.arrives(sent, self.draws.next_u64(), self.behind);
        // What follows something that is lost in the dark is lost with it, however lucky its own way.
        let lost = || conditions.blackhole_at_ms.map_or(self.behind, |dark| self.behind.max(At::ms(dark)));
        self.behind = at.unwrap_or_else(lost);
        at
    }
}

/// A connection with both its directions and what waits at either end.
struct Connection {
    /// Bridge to far end.
    out: Wire,
    /// Far end to bridge.
    back: Wire,
    /// The bridge's end exists.
    bridge_end: bool,
    /// The far end exists.
    far_end: bool,
    /// The bridge has sent its close frame.
    closing: bool,
    /// Sent by the bridge, not yet read by the far end.
    in_flight: usize,
    /// Waiting for room in the network.
    queue: VecDeque<Parcel>,
    clogged: bool,
    /// Arrived at the far end, not read yet.
    unread: VecDeque<Parcel>,
    /// The far end reads.
    reading: bool,
    /// A slow far end is busy with its last message until then.
    busy_until: At,
    /// A [`Happens::Reads`] is on the heap.
    will_read: bool,
    /// Arrived at the bridge while it does not read.
    held: VecDeque<Parcel>,
}

impl Connection {
    fn new(seed: Seed, label: &str) -> Self {
        Self {
            out: Wire::new(seed, &format!("{label}/out")),
            back: Wire::new(seed, &format!("{label}/back")),
            bridge_end: false,
            far_end: false,
            closing: false,
            in_flight: 0,
            queue: VecDeque::new(),
            clogged: false,
            unread: VecDeque::new(),
            reading: true,
            busy_until: At(0),
            will_read: false,
            held: VecDeque::new(),
        }
    }
}

/// A connection to the model.
struct ModelEnd {
    model: Model,
    connection: Connection,
    /// The bridge has given up dialling.
    cancelled: bool,
    wakes: Option<At>,
}

/// One call with both its ends.
struct Line {
    planned: PlannedCall,
    caller: Caller,
    connection: Connection,
    caller_wakes: Option<At>,
    models: Vec<ModelEnd>,
    call: Option<Call>,
    call_wakes: Option<At>,
    /// The bridge does not read from the model.
    model_held: bool,
    /// What the answer of its webhook gave it.
    token: Option<String>,
    /// Functions that are running.
    running: BTreeSet<String>,
    defect: Option<Box<dyn Defect>>,
    /// The call's journal, and when it began.
    tape: Option<(Box<dyn JournalWriter>, At)>,
    events: Vec<(At, CallEvent)>,
    begun: bool,
    done: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    seed: Seed,
    journals: Option<&'a InMemoryJournal>,
    /// Of the process; [`Self::config`] is its part for calls.
    settings: Settings,
    auth: StreamAuth,
    config: Arc<CallConfig>,
    notice: Arc<[u8]>,
    /// Scenario time zero on the clock of [`Call`].
    base: Instant,
    now: At,
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    lines: Vec<Line>,
    /// Calls that are not done.
    open: usize,
    /// Calls the bridge is carrying.
    active: usize,
    /// Which call carries the stream of a phone call; keys are indices.
    registry: Registry,
    /// No new calls are taken.
    draining: bool,
    /// The server has drained, and is gone.
    stopped: bool,
}

impl<'a> World<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "an Instant has no zero; only differences to this one are used"
    )]
    fn new(
        scenario: &'a Scenario,
        seed: Seed,
        config: CallConfig,
        defect: Option<&dyn Fn(usize) -> Box<dyn Defect>>,
        journals: Option<&'a InMemoryJournal>,
    ) -> Self {
        super::common::watch_panics();
        let lines: Vec<_> = scenario
            .planned(seed)
            .into_iter()
            .map(|planned| {
                let index = planned.index;
                let script = scenario.calls[planned.plan].caller.clone();
                Line {
                    caller: Caller::new(
                        script,
                        planned.identity.clone(),
                        seed.number(&format!("caller/{index}")),
                    ),
                    planned,
                    connection: Connection::new(seed, &format!("weather/caller/{index}")),
                    caller_wakes: None,
                    models: Vec::new(),
                    call: None,
                    call_wakes: None,
                    model_held: false,
                    token: None,
                    running: BTreeSet::new(),
                    defect: defect.map(|make| make(index)),
                    tape: None,
                    events: Vec::new(),
                    begun: false,
                    done: false,
                }
            })
            .collect();
        let settings = Config { call: config.clone(), ..super::common::settings(scenario) }.server();
        let mut world = Self {
            scenario,
            seed,
            journals,
            auth: StreamAuth::new(settings.twilio.clone(), settings.public_url.clone(), 1),
            settings,
            config: Arc::new(config),
            notice: bridge::app::config::notice(),
            base: Instant::now(),
            now: At(0),
            heap: BinaryHeap::new(),
            order: 0,
            open: lines.len(),
            lines,
            active: 0,
            registry: Registry::default(),
            draining: false,
            stopped: false,
        };
        for call in 0..world.lines.len() {
            let dialled = At::ms(world.lines[call].planned.at_ms);
            // The connection, then the request: two ways.
            let conditions = &scenario.network.caller;
            let there = world.lines[call].connection.back.arrives(conditions, dialled);
            if let Some(there) =
                there.and_then(|at| world.lines[call].connection.back.arrives(conditions, at))
            {
                world.push(there, call, Happens::Arrives);
            } else {
                world.push(dialled.plus_ms(UPGRADE_PATIENCE_MS), call, Happens::Answered(Some(0)));
            }
            for (leg, cut) in [
                (Leg::Caller, scenario.network.caller.cut_at_ms),
                (Leg::Model, scenario.network.model.cut_at_ms),
            ] {
                if let Some(ms) = cut {
                    world.push(At::ms(ms), call, Happens::Cut(leg));
                }
            }
        }
        if let Some(ms) = scenario.server.drain_at_ms {
            world.push(At::ms(ms), 0, Happens::Drains);
        }
        world
    }

    fn run(mut self) -> Trace {
        let limit = At::ms(self.scenario.world.limit_ms);
        let mut cut = false;
        while self.open > 0 {
            let Some(Reverse(Entry { at, call, happens, .. })) = self.heap.pop() else {
                // Nothing will ever happen again, and a call is still open.
                cut = true;
                break;
            };
            if at > limit {
                self.now = limit;
                cut = true;
                break;
            }
            self.now = at;
            self.happens(call, happens);
        }
        let mut leftovers = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            if line.call.is_some() {
                leftovers.push(format!("call {index} is still alive"));
            }
        }
        if !self.registry.is_empty() {
            leftovers.push(format!("{} calls are still registered", self.registry.len()));
        }
        let calls = self.lines.into_iter().enumerate().map(|(index, line)| CallTrace {
            index,
            caller: line.caller.into_record(),
            models: line.models.into_iter().map(|end| end.model.into_record()).collect(),
            bridge: line.events,
        });
        Trace {
            calls: calls.collect(),
            scenario: Arc::new(self.scenario.clone()),
            backend: Backend::Memory,
            seed: self.seed,
            ended_at: self.now,
            leftovers,
            panics: super::common::panics_seen(),
            cut,
            network: Network::default(),
            lag_us: 0,
        }
    }

    fn push(&mut self, at: At, call: usize, happens: Happens) {
        self.order += 1;
        self.heap.push(Reverse(Entry { at, order: self.order, call, happens }));
    }

    fn conditions(&self, leg: Leg) -> &'a LegConditions {
        match leg {
            Leg::Caller => &self.scenario.network.caller,
            Leg::Model => &self.scenario.network.model,
        }
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now.0)
    }

    /// A time of [`Call`] on the scenario's clock, never early.
    fn at(&self, instant: Instant) -> At {
        let nanos = instant.saturating_duration_since(self.base).as_nanos();
        At(u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX))
    }

    fn connection(&mut self, call: usize, pipe: Pipe) -> &mut Connection {
        let line = &mut self.lines[call];
        match pipe {
            Pipe::Caller => &mut line.connection,
            Pipe::Model(n) => &mut line.models[n].connection,
        }
    }

    fn happens(&mut self, call: usize, happens: Happens) {
        self.happen(call, happens);
        self.settle(call);
    }

    fn happen(&mut self, call: usize, happens: Happens) {
        match happens {
            Happens::Arrives => self.arrives(call),
            Happens::Answered(answer) => {
                self.lines[call].begun = true;
                let now = self.now;
                match answer {
                    None => {
                        self.lines[call].connection.far_end = true;
                        self.lines[call].caller.opened(now);
                    }
                    Some(status) => self.lines[call].caller.refused(status, now),
                }
                self.drain_caller(call);
            }
            Happens::ModelReached(n) => self.model_reached(call, n),
            Happens::Dialled(n, outcome) => {
                let end = &mut self.lines[call].models[n];
                if end.cancelled {
                    return;
                }
                let change = match outcome {
                    Ok(()) => {
                        end.connection.bridge_end = true;
                        LegChange::Open
                    }
                    Err(why) => LegChange::DialFailed { why },
                };
                self.told(call, Told::Leg(Leg::Model, change));
            }
            Happens::ToPeer(pipe, parcel) => {
                let connection = self.connection(call, pipe);
                if matches!(parcel, Parcel::Lost(_)) && connection.reading && connection.unread.is_empty() {
                    return self.read(call, pipe, parcel);
                }
                connection.unread.push_back(parcel);
                self.may_read(call, pipe);
            }
            Happens::Reads(pipe) => {
                self.connection(call, pipe).will_read = false;
                self.may_read(call, pipe);
            }
            Happens::ToBridge(pipe, parcel) => {
                let held = self.lines[call].model_held;
                let connection = self.connection(call, pipe);
                if pipe != Pipe::Caller && (held || !connection.held.is_empty()) {
                    connection.held.push_back(parcel);
                } else {
                    self.bridge_reads(call, pipe, parcel);
                }
            }
            Happens::Resumes(n) => {
                if self.lines[call].model_held {
                    return;
                }
                if let Some(parcel) = self.lines[call].models[n].connection.held.pop_front() {
                    self.bridge_reads(call, Pipe::Model(n), parcel);
                    self.push(self.now, call, Happens::Resumes(n));
                }
            }
            Happens::Writer(pipe, clogged) => {
                let connection = self.connection(call, pipe);
                if connection.bridge_end && connection.clogged == clogged {
                    let change = if clogged { LegChange::Backpressured } else { LegChange::Writable };
                    self.told(call, Told::Leg(pipe.leg(), change));
                }
            }
            Happens::Overflows(pipe) => {
                let change = LegChange::Lost { why: "writer queue overflow".into() };
                self.told(call, Told::Leg(pipe.leg(), change));
            }
            Happens::CallerWakes => {
                if self.lines[call].caller_wakes == Some(self.now) {
                    self.lines[call].caller_wakes = None;
                }
                if self.lines[call].caller.poll_timeout().is_some_and(|due| due <= self.now) {
                    self.lines[call].caller.handle_timeout(self.now);
                }
                self.drain_caller(call);
            }
            Happens::ModelWakes(n) => {
                let end = &mut self.lines[call].models[n];
                if end.wakes == Some(self.now) {
                    end.wakes = None;
                }
                if end.model.poll_timeout().is_some_and(|due| due <= self.now) {
                    end.model.handle_timeout(self.now);
                }
                self.drain_model(call, n);
            }
            Happens::CallWakes => {
                let line = &mut self.lines[call];
                if line.call_wakes == Some(self.now) {
                    line.call_wakes = None;
                }
                let due = line.call.as_ref().and_then(Call::poll_timeout).map(|(due, _)| due);
                if due.is_some_and(|due| self.at(due) <= self.now) {
                    self.tell(call, |call, now| call.handle_timeout(now));
                } else {
                    self.set_call_alarm(call);
                }
            }
            Happens::Tool(result) => {
                if self.lines[call].running.remove(&result.call_id) {
                    self.told(call, Told::Tool(result));
                }
            }
            Happens::TakenAway(call_id) => {
                if self.lines[call].running.contains(&call_id) {
                    self.lines[call].caller.taken_away(self.now);
                    self.drain_caller(call);
                }
            }
            Happens::Late(act) => self.does(call, act),
            Happens::Cut(leg) => self.cut(call, leg),
            Happens::Replaced => self.told(call, Told::Control(Control::Replaced)),
            Happens::Drains => {
                let by = At(self.now.0 + self.scenario.server.drain_ms * 1_000);
                self.draining = true;
                self.stopped |= self.active == 0;
                let by = self.base + Duration::from_micros(by.0);
                for call in 0..self.lines.len() {
                    self.told(call, Told::Control(Control::Drain { by }));
                }
            }
        }
    }

    /// Whether nothing can happen to this call any more.
    fn settle(&mut self, call: usize) {
        let dark = !self.conditions(Leg::Model).passes(self.now);
        let line = &mut self.lines[call];
        if line.done || !line.begun || line.call.is_some() || !line.caller.is_finished() {
            return;
        }
        for end in &mut line.models {
            // In the dark the model is not told that the call is over; its end of it proves nothing any more.
            if dark && !end.model.is_finished() {
                end.model.gone("the connection timed out", self.now);
            }
        }
        if line.models.iter().all(|end| end.model.is_finished()) {
            line.done = true;
            self.open -= 1;
        }
    }

    // ------------------------------------------------------------------------------------------ the server

    /// An upgrade request: the call begins, or is refused.
    fn arrives(&mut self, call: usize) {
        let refused = if self.stopped {
            Some(0)
        } else if let Err(status) = self.shows_itself(call) {
            Some(status)
        } else if self.draining || self.active >= self.scenario.server.max_calls {
            Some(503)
        } else {
            None
        };
        if refused.is_none() {
            let unix = self.unix();
            let value = Call::new(self.config.clone(), self.notice.clone(), self.instant(), unix)
                .requires_auth(self.auth.requires_auth());
            let up = Duration::from_micros(self.now.0);
            let beginning = || self.settings.beginning(call as u64, unix, up);
            let tape = self.journals.map(|journals| (journals.begin(beginning()), self.now));
            let line = &mut self.lines[call];
            line.tape = tape;
            line.call = Some(value);
            line.connection.bridge_end = true;
            self.active += 1;
            self.drain_call(call);
        }
        let conditions = self.conditions(Leg::Caller);
        let now = self.now;
        match self.lines[call].connection.out.arrives(conditions, now) {
            Some(at) => self.push(at, call, Happens::Answered(refused)),
            None => self.push(now.plus_ms(UPGRADE_PATIENCE_MS), call, Happens::Answered(Some(0))),
        }
    }

    /// What the webhook and the upgrade of a call come to: its token is in its hands, or it is refused with a status.
    fn shows_itself(&mut self, call: usize) -> Result<(), u16> {
        if !self.auth.requires_auth() {
            return Ok(());
        }
        let identity = self.lines[call].planned.identity.clone();
        let plan = &self.scenario.calls[self.lines[call].planned.plan];
        let credentials = plan.caller.credentials;
        let before = self.lines[..call].iter().map(|line| &line.planned.identity);
        let form = super::common::webhook_form(&identity, credentials, before);
        let webhook = credentials.of_webhook(AUTH_TOKEN, WEBHOOK_URL, &form);
        let pairs: Vec<_> =
            form.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let signed = |signature| Signed { signature, settings: None };
        let known = self.auth.verify_request(
            stream_auth::VOICE,
            None,
            signed(webhook.as_deref()),
            Body::Form(&pairs),
        );
        known.map_err(|_| 403_u16)?;
        let answered = self.auth.answer(&pairs, None, signed(webhook.as_deref()), self.unix());
        let twiml = answered.map_err(|_| 403_u16)?;
        let connect = Connect::read(&twiml).ok_or(503_u16)?;
        let token = connect.parameter(TOKEN_PARAMETER).map(str::to_owned);
        let before = call.checked_sub(1).and_then(|before| self.lines[before].token.clone());
        self.lines[call].token.clone_from(&token);
        let shown = credentials.token(token, before);
        let line = &mut self.lines[call];
        line.caller.carries(shown.map(|token| (TOKEN_PARAMETER.to_owned(), token)));
        let upgrade = credentials.of_upgrade(AUTH_TOKEN, STREAM_URL);
        let known =
            self.auth.verify_request(stream_auth::STREAM, None, signed(upgrade.as_deref()), Body::None);
        known.map_err(|_| 403_u16)
    }

    /// The clock on the wall.
    fn unix(&self) -> i64 {
        EPOCH_UNIX + i64::try_from(self.now.0 / 1_000_000).unwrap_or(i64::MAX)
    }

    /// The call is to be told something, unless a defect has other ideas.
    fn told(&mut self, call: usize, told: Told) {
        let now = self.now;
        match &mut self.lines[call].defect {
            Some(defect) => {
                let acts = defect.hears(told, now);
                self.acts(call, acts);
            }
            None => self.does(call, Act::Hear(told)),
        }
    }

    /// What a defect wants to happen.
    fn acts(&mut self, call: usize, acts: Vec<(u64, Act)>) {
        for (delay, act) in acts {
            match delay {
                0 => self.does(call, act),
                delay => self.push(At(self.now.0 + delay), call, Happens::Late(act)),
            }
        }
    }

    fn does(&mut self, call: usize, act: Act) {
        match act {
            Act::Say(out) => self.put(call, out),
            Act::Wake => {
                let now = self.now;
                if let Some(defect) = &mut self.lines[call].defect {
                    let acts = defect.wakes(now);
                    self.acts(call, acts);
                }
            }
            Act::Hear(told) => {
                self.note(call, || match &told {
                    Told::Text(leg, text) => JournalEntry::Text(*leg, text.clone()),
                    Told::Binary(leg, len) => JournalEntry::Binary(*leg, *len),
                    Told::Leg(leg, change) => JournalEntry::Changed(*leg, change.clone()),
                    Told::Tool(result) => JournalEntry::ToolEnded(result.clone()),
                    Told::Control(control) => JournalEntry::Asked(*control),
                });
                self.tell(call, |call, now| match told {
                    Told::Text(leg, text) => call.handle_frame(leg, codec::decode(leg, &text), now),
                    Told::Binary(leg, len) => call.handle_frame(leg, Incoming::Binary(len), now),
                    Told::Leg(leg, change) => call.handle_leg(leg, change, now),
                    Told::Tool(result) => call.handle_tool(result, now),
                    Told::Control(control) => call.handle_control(control, now),
                });
            }
        }
    }

    /// What the driver would note in the call's journal. A call that is over has none any more.
    fn note(&mut self, call: usize, note: impl FnOnce() -> JournalEntry) {
        let now = self.now;
        if let Some((tape, began)) = &mut self.lines[call].tape {
            tape.note(Duration::from_micros(now.since(*began)), note());
        }
    }

    /// Hands the call something and does what it wants done.
    fn tell(&mut self, call: usize, what: impl FnOnce(&mut Call, Instant)) {
        let now = self.instant();
        let Some(value) = &mut self.lines[call].call else { return };
        // A panic ends one call, as it does in production, and is reported with the trace that led to it.
        if catch_unwind(AssertUnwindSafe(|| what(value, now))).is_err() {
            self.carried(call);
            for leg in [Leg::Caller, Leg::Model] {
                self.drop_leg(call, leg);
            }
            return self.settle(call);
        }
        self.drain_call(call);
    }

    fn drain_call(&mut self, call: usize) {
        while let Some(transmit) = self.lines[call].call.as_mut().and_then(Call::poll_transmit) {
            self.transmit(call, transmit);
        }
        while let Some(mut event) = self.lines[call].call.as_mut().and_then(Call::poll_event) {
            let now = self.now;
            if let Some(defect) = &mut self.lines[call].defect {
                defect.notes(&mut event, now);
            }
            if let CallEvent::Started { call_sid, .. } = &event
                && let Some(CallKey(other)) = self.registry.claim(call_sid, CallKey(call as u64))
            {
                self.push(self.now, other as usize, Happens::Replaced);
            }
            // What grows is said again at the end, and is no trace's business before.
            if matches!(event, CallEvent::Said(_)) {
                continue;
            }
            self.note(call, || JournalEntry::Happened(event.clone()));
            self.lines[call].events.push((self.now, event));
        }
        if self.lines[call].call.as_ref().is_some_and(Call::is_over) {
            self.carried(call);
        }
        self.set_call_alarm(call);
    }

    /// The server is done with a call.
    fn carried(&mut self, call: usize) {
        let unix = self.unix();
        let line = &mut self.lines[call];
        line.running.clear();
        line.tape = None;
        if let Some(over) = line.call.take()
            && let Some(call_sid) = over.call_sid()
        {
            self.registry.release(call_sid, CallKey(call as u64));
            let ended = line.events.iter().rev().find_map(|(_, event)| {
                if let CallEvent::Ended { reason, .. } = event { Some(*reason) } else { None }
            });
            self.auth.left(call_sid, ended, unix);
        }
        self.active -= 1;
        self.stopped |= self.draining && self.active == 0;
    }

    fn set_call_alarm(&mut self, call: usize) {
        let Some((due, _)) = self.lines[call].call.as_ref().and_then(Call::poll_timeout) else { return };
        let due = self.at(due).max(self.now);
        if self.lines[call].call_wakes.is_none_or(|set| due < set) {
            self.lines[call].call_wakes = Some(due);
            self.push(due, call, Happens::CallWakes);
        }
    }

    fn transmit(&mut self, call: usize, transmit: Transmit) {
        self.note(call, || JournalEntry::Done(transmit.clone()));
        match transmit {
            Transmit::Caller { .. } | Transmit::Model(_) => {
                if let Some((leg, text)) = codec::encode(&transmit, self.config.dialect) {
                    self.spoil(call, BridgeOut::Text(leg, text));
                }
            }
            Transmit::WithdrawAudio => self.withdraw_audio(call),
            Transmit::Ping(leg) => self.spoil(call, BridgeOut::Ping(leg)),
            Transmit::Close { leg, code, .. } => self.spoil(call, BridgeOut::Close(leg, code)),
            Transmit::Drop(leg) => self.spoil(call, BridgeOut::Drop(leg)),
            Transmit::VerifyStream(credentials) => {
                let admitted = self.auth.admit(&credentials, self.unix());
                let rejected = |refusal: Refusal| Control::Rejected { why: refusal.why() };
                let verdict = admitted.map_or_else(rejected, |()| Control::Admitted);
                self.told(call, Told::Control(verdict));
            }
            Transmit::Dial { call_sid } => self.dial(call, &call_sid),
            Transmit::PauseModelReads(held) => {
                self.lines[call].model_held = held;
                if !held && let Some(n) = self.lines[call].models.len().checked_sub(1) {
                    self.push(self.now, call, Happens::Resumes(n));
                }
            }
            Transmit::RunTool { call_id, name, .. } => {
                let script = super::common::function(self.scenario, &name);
                let output = match (&script.output, &script.error) {
                    (Some(output), _) => Ok(output.clone()),
                    (None, error) => Err(error.clone().unwrap_or_default()),
                };
                self.lines[call].running.insert(call_id.clone());
                if !script.never {
                    let at = self.now.plus_ms(script.after_ms);
                    if super::common::takes_away(&name) && output.is_ok() {
                        self.push(at, call, Happens::TakenAway(call_id.clone()));
                    }
                    self.push(at, call, Happens::Tool(ToolResult { call_id, output }));
                }
            }
            Transmit::CancelTool { call_id } => {
                self.lines[call].running.remove(&call_id);
            }
        }
    }

    fn spoil(&mut self, call: usize, out: BridgeOut) {
        let now = self.now;
        match &mut self.lines[call].defect {
            Some(defect) => {
                let acts = defect.says(out, now);
                self.acts(call, acts);
            }
            None => self.put(call, out),
        }
    }

    /// Puts something on the wire.
    fn put(&mut self, call: usize, out: BridgeOut) {
        match out {
            BridgeOut::Text(leg, text) => self.send(call, leg, Parcel::Frame(Frame::Text(text))),
            BridgeOut::Ping(leg) => self.send(call, leg, Parcel::Frame(Frame::Ping(Vec::new()))),
            BridgeOut::Close(leg, code) => {
                self.send(call, leg, Parcel::Frame(Frame::Close(Some((code, String::new())))));
                if let Some(pipe) = self.pipe(call, leg) {
                    self.connection(call, pipe).closing = true;
                }
            }
            BridgeOut::Drop(leg) => self.drop_leg(call, leg),
        }
    }

    /// The connection a leg is on now.
    fn pipe(&self, call: usize, leg: Leg) -> Option<Pipe> {
        match leg {
            Leg::Caller => Some(Pipe::Caller),
            Leg::Model => self.lines[call].models.len().checked_sub(1).map(Pipe::Model),
        }
    }

    /// The driver's writer: at most [`crate::model::scenario::WorldKnobs::tcp_capacity`] messages are on their way, the
    /// rest waits here.
    fn send(&mut self, call: usize, leg: Leg, parcel: Parcel) {
        let Some(pipe) = self.pipe(call, leg) else { return };
        let capacity = self.scenario.world.tcp_capacity;
        let connection = self.connection(call, pipe);
        if !connection.bridge_end || connection.closing {
            return;
        }
        if connection.queue.is_empty() && connection.in_flight < capacity {
            return self.launch(call, pipe, parcel);
        }
        if connection.queue.len() >= QUEUE_MAX {
            connection.bridge_end = false;
            connection.queue.clear();
            self.launch(call, pipe, Parcel::Lost("the bridge dropped the connection"));
            return self.push(self.now, call, Happens::Overflows(pipe));
        }
        connection.queue.push_back(parcel);
        if connection.queue.len() >= QUEUE_HIGH && !connection.clogged {
            connection.clogged = true;
            self.push(self.now, call, Happens::Writer(pipe, true));
        }
    }

    /// What the driver's writer does when the caller is to hear nothing more of what waits.
    fn withdraw_audio(&mut self, call: usize) {
        let connection = &mut self.lines[call].connection;
        connection.queue.retain(|parcel| !matches!(parcel, Parcel::Frame(Frame::Text(_))));
        if connection.clogged && connection.queue.len() < QUEUE_LOW {
            connection.clogged = false;
            self.push(self.now, call, Happens::Writer(Pipe::Caller, false));
        }
    }

    fn launch(&mut self, call: usize, pipe: Pipe, parcel: Parcel) {
        let (now, conditions) = (self.now, self.conditions(pipe.leg()));
        let connection = self.connection(call, pipe);
        connection.in_flight += 1;
        if let Some(at) = connection.out.arrives(conditions, now) {
            self.push(at, call, Happens::ToPeer(pipe, parcel));
        }
    }

    fn drop_leg(&mut self, call: usize, leg: Leg) {
        let Some(pipe) = self.pipe(call, leg) else { return };
        if let Pipe::Model(n) = pipe {
            self.lines[call].models[n].cancelled = true;
        }
        let connection = self.connection(call, pipe);
        connection.queue.clear();
        connection.held.clear();
        let existed = std::mem::take(&mut connection.bridge_end);
        // A dial that is given up while the answer is on its way leaves an open connection at the far end.
        if existed || connection.far_end {
            self.launch(call, pipe, Parcel::Lost("the bridge dropped the connection"));
        }
    }

    // ------------------------------------------------------------------------------------------ reading

    /// A parcel is read by the bridge, as its driver reads it.
    fn bridge_reads(&mut self, call: usize, pipe: Pipe, parcel: Parcel) {
        let connection = self.connection(call, pipe);
        if !connection.bridge_end {
            return;
        }
        let leg = pipe.leg();
        let longest = match leg {
            Leg::Caller => CALLER_MESSAGE_MAX,
            Leg::Model => MODEL_MESSAGE_MAX,
        };
        let length = match &parcel {
            Parcel::Frame(Frame::Text(text)) => text.len(),
            Parcel::Frame(Frame::Binary(bytes)) => bytes.len(),
            Parcel::Frame(Frame::Ping(_) | Frame::Pong(_) | Frame::Close(_)) | Parcel::Lost(_) => 0,
        };
        let change = match parcel {
            Parcel::Frame(_) if length > longest => {
                connection.bridge_end = false;
                self.launch(call, pipe, Parcel::Lost("the bridge dropped the connection"));
                LegChange::Lost { why: "a message is longer than the bridge reads".into() }
            }
            Parcel::Frame(Frame::Text(text)) => {
                return self.told(call, Told::Text(leg, text));
            }
            Parcel::Frame(Frame::Binary(bytes)) => {
                return self.told(call, Told::Binary(leg, bytes.len()));
            }
            Parcel::Frame(Frame::Ping(payload)) => {
                self.send(call, leg, Parcel::Frame(Frame::Pong(payload)));
                LegChange::Ping
            }
            Parcel::Frame(Frame::Pong(_)) => LegChange::Pong,
            Parcel::Frame(Frame::Close(close)) => {
                if !connection.closing {
                    self.send(call, leg, Parcel::Frame(Frame::Close(close.clone())));
                }
                self.connection(call, pipe).bridge_end = false;
                let (code, reason) = close.unzip();
                LegChange::Closed { code, reason: reason.unwrap_or_default() }
            }
            Parcel::Lost(why) => {
                connection.bridge_end = false;
                LegChange::Lost { why: why.to_owned() }
            }
        };
        self.told(call, Told::Leg(leg, change));
    }

    /// The far end reads as much as it can and wants to.
    fn may_read(&mut self, call: usize, pipe: Pipe) {
        let slow = self.conditions(pipe.leg()).reads_bytes_per_s;
        loop {
            let now = self.now;
            let connection = self.connection(call, pipe);
            if !connection.reading || connection.will_read {
                return;
            }
            if connection.busy_until > now {
                if !connection.unread.is_empty() {
                    connection.will_read = true;
                    let at = connection.busy_until;
                    self.push(at, call, Happens::Reads(pipe));
                }
                return;
            }
            let Some(parcel) = connection.unread.pop_front() else { return };
            if let Some(rate) = slow {
                connection.busy_until = At(now.0 + parcel.bytes() * 1_000_000 / rate.max(1));
            }
            self.read(call, pipe, parcel);
        }
    }

    /// A parcel is read by the far end.
    fn read(&mut self, call: usize, pipe: Pipe, parcel: Parcel) {
        let (now, capacity) = (self.now, self.scenario.world.tcp_capacity);
        let connection = self.connection(call, pipe);
        connection.in_flight = connection.in_flight.saturating_sub(1);
        if let Some(next) = (connection.in_flight < capacity).then(|| connection.queue.pop_front()).flatten()
        {
            if connection.clogged && connection.queue.len() < QUEUE_LOW {
                connection.clogged = false;
                self.push(now, call, Happens::Writer(pipe, false));
            }
            self.launch(call, pipe, next);
        }
        if !self.connection(call, pipe).far_end {
            return;
        }
        let line = &mut self.lines[call];
        let peer: &mut dyn Peer = match pipe {
            Pipe::Caller => &mut line.caller,
            Pipe::Model(n) => &mut line.models[n].model,
        };
        match parcel {
            Parcel::Frame(frame) => peer.handle(frame, now),
            Parcel::Lost(why) => peer.gone(why, now),
        }
        self.drain_peer(call, pipe);
    }

    fn cut(&mut self, call: usize, leg: Leg) {
        let Some(pipe) = self.pipe(call, leg) else { return };
        if !self.connection(call, pipe).far_end {
            return;
        }
        self.read(call, pipe, Parcel::Lost("connection reset by peer"));
        self.connection(call, pipe).far_end = false;
        self.back(call, pipe, Parcel::Lost("connection reset by peer"));
    }

    // ------------------------------------------------------------------------------------------ the far ends

    fn drain_peer(&mut self, call: usize, pipe: Pipe) {
        match pipe {
            Pipe::Caller => self.drain_caller(call),
            Pipe::Model(n) => self.drain_model(call, n),
        }
    }

    fn drain_caller(&mut self, call: usize) {
        while let Some(out) = self.lines[call].caller.poll_transmit() {
            self.peer_wants(call, Pipe::Caller, out);
        }
        let line = &mut self.lines[call];
        if let Some(due) = line.caller.poll_timeout()
            && line.caller_wakes.is_none_or(|set| due < set)
        {
            let due = due.max(self.now);
            line.caller_wakes = Some(due);
            self.push(due, call, Happens::CallerWakes);
        }
    }

    fn drain_model(&mut self, call: usize, n: usize) {
        while let Some(out) = self.lines[call].models[n].model.poll_transmit() {
            self.peer_wants(call, Pipe::Model(n), out);
        }
        let end = &mut self.lines[call].models[n];
        if let Some(due) = end.model.poll_timeout()
            && end.wakes.is_none_or(|set| due < set)
        {
            let due = due.max(self.now);
            end.wakes = Some(due);
            self.push(due, call, Happens::ModelWakes(n));
        }
    }

    fn peer_wants(&mut self, call: usize, pipe: Pipe, out: Out) {
        match out {
            Out::Frame(frame) => self.back(call, pipe, Parcel::Frame(frame)),
            Out::Drop => {
                self.back(call, pipe, Parcel::Lost("connection reset without closing handshake"));
                self.connection(call, pipe).far_end = false;
            }
            Out::PauseReading => self.connection(call, pipe).reading = false,
            Out::ResumeReading => {
                self.connection(call, pipe).reading = true;
                self.push(self.now, call, Happens::Reads(pipe));
            }
        }
    }

    fn back(&mut self, call: usize, pipe: Pipe, parcel: Parcel) {
        let (now, conditions) = (self.now, self.conditions(pipe.leg()));
        if let Some(at) = self.connection(call, pipe).back.arrives(conditions, now) {
            self.push(at, call, Happens::ToBridge(pipe, parcel));
        }
    }

    // ------------------------------------------------------------------------------------------ dialling

    fn dial(&mut self, call: usize, call_sid: &str) {
        let n = self.lines[call].models.len();
        let calls = self.lines.len();
        let line = &mut self.lines[call];
        let script = self.scenario.calls[line.planned.plan].model.of_connection(n);
        let identity = ModelIdentity {
            call_sid: call_sid.to_owned(),
            index: (call + n * calls) as u64,
            epoch_unix: EPOCH_UNIX,
        };
        let (dial, dial_ms) = (script.dial.clone(), script.dial_ms);
        let mut model = Model::new(script, identity, self.seed.number(&format!("model/{call}/{n}")));
        if let Some(before) = line.models.last() {
            model.goes_on(before.model.progress());
        }
        model.set_query(&format!("/v1/realtime?model={}", self.config.model));
        let key = format!("Bearer {API_KEY}");
        model.set_headers([("Authorization", key.as_str()), ("X-Client-Request-Id", call_sid)]);
        let mut connection = Connection::new(self.seed, &format!("weather/model/{call}/{n}"));
        let conditions = &self.scenario.network.model;
        // The connection, then the request: two ways there, as for the caller.
        let connected = connection.out.arrives(conditions, self.now);
        let reached = connected.and_then(|at| connection.out.arrives(conditions, at));
        line.models.push(ModelEnd { model, connection, cancelled: false, wakes: None });
        let (Some(connected), Some(reached)) = (connected, reached) else {
            return self.lines[call].models[n].model.refused("the network is dark", self.now);
        };
        match dial {
            Dial::Accepts | Dial::HangsInUpgrade | Dial::AnswersHttp(_) => {
                self.push(reached.plus_ms(dial_ms), call, Happens::ModelReached(n));
            }
            Dial::Hangs => {
                self.lines[call].models[n].model.refused("the connection is never made", connected)
            }
            Dial::Refuses => {
                let at = connected.plus_ms(dial_ms);
                self.lines[call].models[n].model.refused("the connection is refused", at);
                self.answer(call, n, at, Err("connection refused".into()));
            }
        }
    }

    fn model_reached(&mut self, call: usize, n: usize) {
        let now = self.now;
        let end = &mut self.lines[call].models[n];
        let dial = end.model.script().dial.clone();
        match dial {
            Dial::HangsInUpgrade => end.model.refused("the upgrade is never answered", now),
            Dial::AnswersHttp(status) => {
                end.model.refused(&format!("the upgrade is answered with {status}"), now);
                self.answer(call, n, now, Err(format!("HTTP {status}")));
            }
            Dial::Accepts | Dial::Hangs | Dial::Refuses => {
                // The bridge hung up while its request was on the way.
                if end.cancelled {
                    return end.model.refused("the bridge gave up dialling", now);
                }
                end.connection.far_end = true;
                self.answer(call, n, now, Ok(()));
                self.lines[call].models[n].model.opened(now);
                self.drain_model(call, n);
            }
        }
    }

    /// The answer to a dial travels back.
    fn answer(&mut self, call: usize, n: usize, sent: At, outcome: Result<(), String>) {
        let conditions = &self.scenario.network.model;
        if let Some(at) = self.lines[call].models[n].connection.back.arrives(conditions, sent) {
            self.push(at, call, Happens::Dialled(n, outcome));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalogue;
    use mocks::record::{CallerObservation, ModelObservation};

    fn of(text: &str) -> Trace {
        let scenario = Scenario::from_toml("test", &format!("purpose = \"A test.\"\n{text}")).unwrap();
        Memory.play(&scenario, Seed(1))
    }

    fn quiet_end(trace: &Trace, end: &str) {
        assert_eq!(trace.ends(), [Some(end.to_owned())], "{:#?}", trace.calls[0].bridge);
        let whole = trace.leftovers.is_empty() && trace.panics.is_empty() && !trace.cut;
        assert!(whole, "{:#?}", trace.lines().split_off(trace.lines().len().saturating_sub(20)));
    }

    #[test]
    fn a_call_is_greeted_and_ends() {
        let trace = Memory.play(&catalogue::find("greeting/plain")[0], Seed(1));
        quiet_end(&trace, "stopped");
        let heard: usize = trace.calls[0].caller.played.iter().map(|stretch| stretch.len).sum();
        assert!(heard >= 1_800 * 8, "{heard} bytes");
        assert!((2_000..6_000).contains(&trace.call_ms()), "{} ms", trace.call_ms());
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_one_does_not() {
        let scenario = &catalogue::find("barge_in/mid_answer")[0];
        let hash = |seed| Memory.play(scenario, Seed(seed)).hash();
        assert_eq!(hash(7), hash(7));
        assert_ne!(hash(7), hash(8));
    }

    #[test]
    fn every_outcome_of_a_dial_ends_the_call() {
        for (dial, end) in [
            ("\"refuses\"", "dial_failed"),
            ("\"hangs\"", "dial_failed"),
            ("\"hangs_in_upgrade\"", "dial_failed"),
            ("{ answers_http = 503 }", "dial_failed"),
        ] {
            let trace = of(&format!("[[call]]\ncaller.steps = [\"waits_for_close\"]\nmodel.dial = {dial}"));
            quiet_end(&trace, end);
            let seen = &trace.calls[0].models[0].observations;
            assert!(
                seen.iter().any(|s| matches!(s.what, ModelObservation::Refused { .. })),
                "{dial}: {seen:?}"
            );
        }
    }

    #[test]
    fn a_dial_that_is_given_up_leaves_nothing_behind() {
        let trace = of("[[call]]\ncaller.steps = [{ waits = 400 }, \"hangs_up\"]\nmodel.dial_ms = 3000");
        quiet_end(&trace, "stopped");
        let seen = &trace.calls[0].models[0].observations;
        assert!(
            matches!(seen.as_slice(), [only] if matches!(only.what, ModelObservation::Refused { .. })),
            "{seen:?}"
        );
    }

    #[test]
    fn a_full_server_refuses_with_503() {
        let trace = of(
            "server.max_calls = 1\n[[call]]\nrepeat = 2\nevery_ms = 100\ncaller.steps = [{ waits = 900 }]",
        );
        assert_eq!(trace.ends(), [Some("stopped".into()), None]);
        let seen = &trace.calls[1].caller.observations;
        assert!(seen.iter().any(|s| s.what == CallerObservation::Refused { status: 503 }), "{seen:?}");
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
        quiet_end(&of(&format!("network.model.cut_at_ms = 2000\n{call}")), "model_lost");
        quiet_end(&of(&format!("network.caller.cut_at_ms = 2000\n{call}")), "caller_lost");
        quiet_end(&of(&format!("network.model.blackhole_at_ms = 2000\n{call}")), "model_silent");
        quiet_end(&of(&format!("network.caller.blackhole_at_ms = 2000\n{call}")), "caller_silent");
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
    fn a_saboteur_stands_in_the_way_of_every_message() {
        struct Mute;
        impl OutputFault for Mute {
            fn spoil(&mut self, out: BridgeOut, _now: At) -> Vec<(u64, BridgeOut)> {
                match &out {
                    BridgeOut::Text(Leg::Caller, _) => Vec::new(),
                    BridgeOut::Text(Leg::Model, _)
                    | BridgeOut::Close(..)
                    | BridgeOut::Drop(_)
                    | BridgeOut::Ping(_) => {
                        vec![(5_000, out)]
                    }
                }
            }
        }
        let trace = play_spoiled(&catalogue::find("greeting/plain")[0], Seed(1), &|_| Box::new(Mute));
        assert!(trace.calls[0].caller.received.is_empty());
        assert!(!trace.calls[0].models[0].items.is_empty());
    }
}
