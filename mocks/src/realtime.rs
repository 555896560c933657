//! The model's end: an OpenAI Realtime server with a scripted model behind it.
//!
//! [`Model`] is one connection. It keeps a session the way the service does (defaults, updates that are
//! accepted or refused whole, one active response, items in order, truncation against what was generated) and
//! refuses what the service refuses, in its words. What the model says, when, and how it misbehaves is the
//! [`ModelScript`]'s idea. Everything it saw and did is in its [`ModelRecord`].
//!
//! It refuses to guess: it does not know what the caller heard, and it never speaks without audio time or the
//! clock telling it to.
//!
//! * [`script`]: the script, as data.
//! * `rules`: the form of each client event, and the error for each wrong form.
//! * `session`, `items`: what the server holds.
//! * `client`: what each client event does.
//! * `vad`, `hearing`: when a turn begins and ends, in appended audio, and what follows.
//! * `reply`, `voice`: how a response is generated and cancelled, and what it sounds like.
//! * `words`: what was seen, for people.

mod client;
mod hearing;
mod ids;
mod items;
mod reply;
mod response;
mod rules;
pub mod script;
mod session;
mod vad;
mod voice;
mod words;

#[cfg(test)]
mod tests;

pub use script::{
    AudioFormat, Call, CancelledItems, CloseAfter, Dial, Dialect, Echoes, ErrorSpec, Happening, ModelScript,
    Opening, Outcome, ReconnectScript, Refusal, Stall, TimedEvent, Transcription, Turn, Vad, When,
};
pub use words::in_words;

use crate::base64;
use crate::peer::{At, Frame, Out, Peer};
use crate::record::{Ending, ModelObservation, ModelRecord, Observation};
use ids::{Ids, Kind};
use items::Item;
use response::{Pending, Response};
use serde_json::{Map, Value, json};
use session::Session;
use std::collections::{BTreeMap, VecDeque};
use vad::Detector;

/// The model of a connection that did not name one.
const DEFAULT_MODEL: &str = "gpt-realtime-2.1";

/// Longest session of the service, seconds.
pub const SESSION_S: u64 = 3_600;

/// How long the service waits for the answer to its close frame.
const CLOSE_PATIENCE_MS: u64 = 10_000;
/// How [`ModelObservation::SentOther`] calls a close frame.
pub const CLOSE_FRAME: &str = "close";

/// Every event this model can say today, by its name in the current dialect. What it makes up on purpose, to see
/// whether a bridge minds, is not among them.
pub const SERVER_EVENTS: &[&str] = &[
    "conversation.item.added",
    "conversation.item.deleted",
    "conversation.item.done",
    "conversation.item.input_audio_transcription.completed",
    "conversation.item.input_audio_transcription.delta",
    "conversation.item.input_audio_transcription.failed",
    "conversation.item.retrieved",
    "conversation.item.truncated",
    "error",
    "input_audio_buffer.cleared",
    "input_audio_buffer.committed",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.timeout_triggered",
    "rate_limits.updated",
    "response.content_part.added",
    "response.content_part.done",
    "response.created",
    "response.done",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.delta",
    "response.output_audio_transcript.done",
    "response.output_item.added",
    "response.output_item.done",
    "response.output_text.delta",
    "response.output_text.done",
    "session.created",
    "session.updated",
];
/// What is said beside [`SERVER_EVENTS`]: of the retired dialect, and of a future that is made up.
const OTHER_EVENTS: &[&str] = &["conversation.created", "response.weather.updated"];

/// Who a connection is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelIdentity {
    /// The call it belongs to, when the backend knows; `X-Client-Request-Id` says it otherwise.
    pub call_sid: String,
    /// Counts the connections of a scenario. Makes ids unique and chooses where on the tape the voice begins.
    pub index: u64,
    /// Unix time of the beginning of the scenario, seconds; `expires_at` counts from it.
    pub epoch_unix: i64,
}

/// How far the script of a call has been played, for the connection that goes on with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    turns_used: usize,
    user_turns: usize,
    voices_used: u64,
    /// When the first session of the call was settled.
    settled: Option<At>,
}

/// One Realtime connection with a scripted model behind it. See [`Peer`] for how to drive it.
#[derive(Debug)]
pub struct Model {
    script: ModelScript,
    identity: ModelIdentity,
    query: Option<String>,
    headers: Option<Vec<(String, String)>>,

    link: Link,
    record: ModelRecord,
    outbox: VecDeque<Out>,
    agenda: BTreeMap<(At, u64), Task>,
    tasks_made: u64,
    ids: Ids,
    /// Nothing is sent any more, whatever happens.
    dark: bool,
    /// Events carry fields that do not exist yet.
    extra_fields: bool,

    /// `session.created` has been sent (or never will be).
    greeted: bool,
    /// What arrived before `session.created`; it is answered afterwards.
    early: Vec<String>,
    updates_sent: u64,
    session: Session,
    conversation_id: String,
    items: BTreeMap<String, Item>,

    detector: Detector,
    /// Counts the turns that were thrown away; decisions about them are void.
    turn_epoch: u64,
    /// The item of the turn in progress and where its audio begins, ms.
    hearing: Option<(String, u64)>,
    /// The item whose words are written down while it is spoken, and how many of them are out.
    dictated: (String, usize),
    /// Where the audio that is not committed yet begins in `ModelRecord::appended`.
    buffer_from: usize,
    /// Counts the times the line was quiet or not; an idle timeout belongs to one of them.
    idle_epoch: u64,

    responses: BTreeMap<u64, Response>,
    pending: BTreeMap<u64, Pending>,
    /// The response of the default conversation that is not done.
    active: Option<u64>,
    responses_made: u64,
    /// The function calls of this session, by id.
    calls: BTreeMap<String, Made>,
    /// Calls that are to be made again, because their outputs were refused.
    again: Vec<(String, Call)>,
    /// Calls that are being made again.
    repeated: Vec<(String, Call)>,
    /// Input tokens of the last response: what the next one may find in the cache.
    cached: u64,
    progress: Progress,
}

/// A function call that was made.
#[derive(Clone, Debug)]
struct Made {
    response: u64,
    call: Call,
    /// So many of its outputs are refused.
    refusals: u32,
    /// It was refused before, so that the model makes the call again.
    repeats: bool,
}

/// How the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Waiting,
    Open,
    /// Our close frame is out.
    Closing {
        code: u16,
    },
    /// The peer closed, and we are too dark to answer.
    Abandoned,
    Over,
}

/// Something to be done at a time.
#[derive(Clone, Debug)]
enum Task {
    Greet,
    Refuse(Refusal),
    Updated(Value),
    RefuseUpdate { code: String, event_id: Option<String> },
    SpeechStarted { epoch: u64, audio_start_ms: u64, repeat: bool },
    SpeechStopped { epoch: u64, audio_end_ms: u64 },
    IdleTimeout { epoch: u64 },
    Transcribe { item: String, text: Option<String>, step: Scribble },
    Create(u64),
    Reply(u64),
    Scripted(usize),
    Ping,
    Expire,
    Close { code: u16, reason: String },
    Drop,
    GoDark,
}

/// One step of a transcription.
#[derive(Clone, Copy, Debug)]
enum Scribble {
    /// The words from this one on.
    Delta {
        from: usize,
    },
    Completed,
    Failed,
}

/// An `error` event about to be sent.
#[derive(Debug)]
struct Complaint {
    kind: String,
    code: Option<String>,
    message: String,
    param: Option<String>,
    event_id: Option<String>,
    rejected: Option<String>,
}

impl Model {
    /// A connection that is not open yet. `seed` colours ids, padding and words, nothing else.
    pub fn new(script: ModelScript, identity: ModelIdentity, seed: u64) -> Self {
        let mut ids = Ids::new(identity.index, seed);
        let session = Session::new(ids.make(Kind::Session), DEFAULT_MODEL, 0, &script);
        let conversation_id = ids.make(Kind::Conversation);
        Self {
            record: ModelRecord { call_sid: identity.call_sid.clone(), ..ModelRecord::default() },
            detector: Detector::new(&script.vad),
            script,
            identity,
            query: None,
            headers: None,
            link: Link::Waiting,
            outbox: VecDeque::new(),
            agenda: BTreeMap::new(),
            tasks_made: 0,
            ids,
            dark: false,
            extra_fields: false,
            greeted: false,
            early: Vec::new(),
            updates_sent: 0,
            session,
            conversation_id,
            items: BTreeMap::new(),
            turn_epoch: 0,
            hearing: None,
            dictated: (String::new(), 0),
            buffer_from: 0,
            idle_epoch: 0,
            responses: BTreeMap::new(),
            pending: BTreeMap::new(),
            active: None,
            responses_made: 0,
            calls: BTreeMap::new(),
            again: Vec::new(),
            repeated: Vec::new(),
            cached: 0,
            progress: Progress::default(),
        }
    }

    /// Goes on with the script where an earlier connection of the same call has left it: what was said is not said
    /// again, and what has happened does not happen again.
    pub const fn goes_on(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// How far the script has been played.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// Tells the request target of the upgrade, e.g. `/v1/realtime?model=gpt-realtime-2.1`, before it opens.
    /// Without it the model is not checked.
    pub fn set_query(&mut self, path_and_query: &str) {
        self.query = Some(path_and_query.split_once('?').map_or("", |(_, query)| query).to_owned());
    }

    /// Tells the headers of the upgrade request, before it opens. Without them the key is not checked.
    pub fn set_headers<'a>(&mut self, headers: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let headers: Vec<_> =
            headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        if let Some((_, id)) = headers.iter().find(|(name, _)| name == "x-client-request-id") {
            self.record.call_sid.clone_from(id);
        }
        self.headers = Some(headers);
    }

    /// The backend answered the dial with a refusal, so that the WebSocket never opened.
    pub fn refused(&mut self, how: &str, now: At) {
        self.see(now, ModelObservation::Refused { how: how.to_owned() });
        self.over(now, None);
    }

    /// What was seen and done so far.
    pub const fn record(&self) -> &ModelRecord {
        &self.record
    }

    /// What was seen and done.
    pub fn into_record(self) -> ModelRecord {
        self.record
    }

    /// The session as the server holds it now, in the shape of `session.updated`.
    pub fn session(&self) -> Value {
        self.session.json(self.script.dialect)
    }

    /// The connection has ended, or never was one.
    pub fn is_over(&self) -> bool {
        self.link == Link::Over
    }

    /// The script it plays.
    pub const fn script(&self) -> &ModelScript {
        &self.script
    }

    // ------------------------------------------------------------------------------------------ the opening

    fn header(&self, name: &str) -> Option<&str> {
        let headers = self.headers.as_ref()?;
        headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The value of a query field; `None` when it is absent or empty.
    fn asked(&self, field: &str) -> Option<&str> {
        let query = self.query.as_deref()?;
        let values = query.split('&').filter_map(|pair| pair.split_once('='));
        values.filter(|(key, value)| *key == field && !value.is_empty()).map(|(_, value)| value).next()
    }

    /// Authentication and model are judged after the upgrade, by an `error` event and a close.
    fn refusal(&self) -> Option<Refusal> {
        let refuse = |code: &str, close: u16, message: String| {
            let kind = "invalid_request_error".to_owned();
            Some(Refusal { kind, code: Some(code.to_owned()), message, close, reason: None })
        };
        let bad_key = || {
            let key = self.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            let key = masked(key.unwrap_or_default().trim());
            refuse("invalid_api_key", 3_000, format!("Incorrect API key provided: {key}."))
        };
        let unknown = |model: &str| {
            let text = format!("The model '{model}' does not exist or you do not have access to it.");
            refuse("model_not_found", 4_004, text)
        };
        match &self.script.opening {
            Opening::ErrorThenClose(refusal) => return Some(refusal.clone()),
            Opening::BadKey => return bad_key(),
            Opening::UnknownModel => return unknown(self.asked("model").unwrap_or(DEFAULT_MODEL)),
            Opening::Normal | Opening::Silent => {}
        }
        if self.headers.is_some() {
            let key = self.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
            let key = key.map(str::trim).filter(|key| !key.is_empty());
            if key.is_none() || key == self.script.bad_key.as_deref() {
                return bad_key();
            }
            if self.script.dialect == Dialect::Ga && self.header("openai-beta").is_some() {
                let text = "The Realtime Beta API is no longer supported. Please use the GA shape: \
                    do not send the OpenAI-Beta header.";
                return refuse("beta_api_shape_disabled", 4_000, text.to_owned());
            }
        }
        if self.query.is_some() && self.asked("call_id").is_none() && self.asked("intent").is_none() {
            let Some(model) = self.asked("model") else {
                let text = "You must provide a model parameter, \
                    for example wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1.";
                return refuse("missing_model", 4_000, text.to_owned());
            };
            if !model.contains("realtime") {
                let text = format!("Model '{model}' is not supported in realtime mode.");
                return refuse("invalid_model", 4_000, text);
            }
            if model.contains("-preview") && self.script.dialect == Dialect::Ga {
                return unknown(model);
            }
        }
        None
    }

    fn refuse(&mut self, refusal: Refusal, now: At) {
        let reason = refusal.reason.unwrap_or_else(|| match &refusal.code {
            Some(code) => format!("{}.{code}", refusal.kind),
            None => refusal.kind.clone(),
        });
        self.see(now, ModelObservation::Refused { how: reason.clone() });
        let complaint = Complaint {
            kind: refusal.kind,
            code: refusal.code,
            message: refusal.message,
            param: None,
            event_id: None,
            rejected: None,
        };
        self.complain(now, complaint);
        self.close(refusal.close, reason, now);
    }

    fn greet(&mut self, now: At) {
        let session = self.session.json(self.script.dialect);
        self.say(
            now,
            "session.created",
            json!({ "session": session }),
            Some(ModelObservation::SentSessionCreated),
        );
        if self.script.dialect == Dialect::Beta {
            let conversation = json!({"id": self.conversation_id, "object": "realtime.conversation"});
            self.say(now, "conversation.created", json!({ "conversation": conversation }), None);
        }
        self.greeted = true;
        for text in std::mem::take(&mut self.early) {
            self.client_text(&text, now);
        }
    }

    fn updated(&mut self, session: &Value, now: At) {
        self.say(
            now,
            "session.updated",
            json!({ "session": session }),
            Some(ModelObservation::SentSessionUpdated),
        );
        self.updates_sent += 1;
        if self.updates_sent == 1 {
            let settled = *self.progress.settled.get_or_insert(now);
            let plan: Vec<_> = self.script.events.iter().map(|event| event.at_ms).enumerate().collect();
            for (index, at) in plan.into_iter().map(|(index, at_ms)| (index, settled.plus_ms(at_ms))) {
                if at >= now {
                    self.later(at, Task::Scripted(index));
                }
            }
        }
    }

    // ------------------------------------------------------------------------------------------ saying

    fn see(&mut self, at: At, what: ModelObservation) {
        self.record.observations.push(Observation { at, what });
    }

    fn later(&mut self, at: At, task: Task) {
        self.tasks_made += 1;
        self.agenda.insert((at, self.tasks_made), task);
    }

    fn is_mute(&self) -> bool {
        self.dark || self.link != Link::Open
    }

    /// Sends an event under the name the dialect has for it, if it has one, and notes it.
    fn say(&mut self, now: At, kind: &'static str, fields: Value, sight: Option<ModelObservation>) {
        self.say_with_audio(now, kind, fields, None, sight);
    }

    /// The same, with this audio as the last of its fields, `delta`.
    fn say_with_audio(
        &mut self,
        now: At,
        kind: &'static str,
        fields: Value,
        audio: Option<&[u8]>,
        sight: Option<ModelObservation>,
    ) {
        if self.is_mute() {
            return;
        }
        debug_assert!(SERVER_EVENTS.contains(&kind) || OTHER_EVENTS.contains(&kind), "{kind} is in no list");
        let Some(name) = wire_name(kind, self.script.dialect) else { return };
        let mut event = Map::new();
        event.insert("type".to_owned(), json!(name));
        event.insert("event_id".to_owned(), json!(self.ids.make(Kind::Event)));
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        let mut text = Value::Object(event).to_string();
        text.pop();
        if let Some(audio) = audio {
            // Written behind the other fields by hand: it is most of what a model sends, and holds nothing to escape.
            text.reserve(audio.len().div_ceil(3) * 4 + 100);
            text.push_str(r#","delta":""#);
            base64::encode(audio, &mut text);
            text.push('"');
        }
        if self.extra_fields {
            let extra = r#","x_future":{"level":3,"tags":["not","known","yet"]},"latency_us":1234.5"#;
            text.push_str(extra);
        }
        text.push('}');
        self.send_text(text);
        self.see(now, sight.unwrap_or_else(|| ModelObservation::SentOther { kind: name.to_owned() }));
    }

    fn send_text(&mut self, text: String) {
        self.outbox.push_back(Out::Frame(Frame::Text(text)));
    }

    fn complain(&mut self, now: At, complaint: Complaint) {
        let Complaint { kind, code, message, param, event_id, rejected } = complaint;
        let error =
            json!({"type": kind, "code": code, "message": message, "param": param, "event_id": event_id});
        let sight =
            ModelObservation::SentError { code: code.unwrap_or_default(), message, event_id, rejected };
        self.say(now, "error", json!({ "error": error }), Some(sight));
    }

    fn rate_limits(&mut self, now: At) {
        let remaining = 15_000_000_u64.saturating_sub(371 * self.responses_made);
        let limits =
            json!([{"name": "tokens", "limit": 15_000_000, "remaining": remaining, "reset_seconds": 0.002}]);
        self.say(now, "rate_limits.updated", json!({ "rate_limits": limits }), None);
    }

    fn ping(&mut self) {
        if !self.is_mute() {
            let payload = (self.tasks_made as u32).to_be_bytes().to_vec();
            self.outbox.push_back(Out::Frame(Frame::Ping(payload)));
        }
    }

    // ------------------------------------------------------------------------------------------ the end

    fn close(&mut self, code: u16, reason: String, now: At) {
        if self.link != Link::Open {
            return;
        }
        self.outbox.push_back(Out::Frame(Frame::Close(Some((code, reason)))));
        self.see(now, ModelObservation::SentOther { kind: CLOSE_FRAME.to_owned() });
        self.forget();
        self.link = Link::Closing { code };
        self.later(now.plus_ms(CLOSE_PATIENCE_MS), Task::Drop);
    }

    fn drop_connection(&mut self, now: At) {
        let code = match self.link {
            Link::Closing { code } => Some(code),
            Link::Waiting | Link::Open | Link::Abandoned | Link::Over => None,
        };
        self.outbox.push_back(Out::Drop);
        self.over(now, Some(Ending::ByUs { code }));
    }

    fn over(&mut self, now: At, ending: Option<Ending>) {
        if let Some(ending) = ending {
            self.see(now, ModelObservation::Ended(ending));
        }
        self.forget();
        self.link = Link::Over;
    }

    fn forget(&mut self) {
        self.agenda.clear();
        self.responses.clear();
        self.pending.clear();
        self.active = None;
    }

    fn expire(&mut self, now: At) {
        if self.dark {
            return;
        }
        let minutes = self.script.expires_after_s.unwrap_or(SESSION_S).div_ceil(60);
        let text = format!("Your session hit the maximum duration of {minutes} minutes.");
        if self.script.expiry_error_frame {
            let complaint = Complaint {
                kind: "invalid_request_error".to_owned(),
                code: Some("session_expired".to_owned()),
                message: text.clone(),
                param: None,
                event_id: None,
                rejected: None,
            };
            self.complain(now, complaint);
        }
        self.close(1_001, text, now);
    }

    // ------------------------------------------------------------------------------------------ the clock

    fn run_due(&mut self, now: At) {
        while let Some(entry) = self.agenda.first_entry().filter(|entry| entry.key().0 <= now) {
            let task = entry.remove();
            self.perform(task, now);
        }
    }

    fn perform(&mut self, task: Task, now: At) {
        match task {
            Task::Greet => self.greet(now),
            Task::Refuse(refusal) => self.refuse(refusal, now),
            Task::Updated(session) => self.updated(&session, now),
            Task::RefuseUpdate { code, event_id } => {
                let complaint = Complaint {
                    kind: "invalid_request_error".to_owned(),
                    message: format!("The session update was refused ({code})."),
                    code: Some(code),
                    param: Some("session".to_owned()),
                    event_id,
                    rejected: None,
                };
                self.complain(now, complaint);
            }
            Task::SpeechStarted { epoch, audio_start_ms, repeat } => {
                if epoch == self.turn_epoch {
                    self.speech_started(audio_start_ms, repeat, now);
                }
            }
            Task::SpeechStopped { epoch, audio_end_ms } => {
                if epoch == self.turn_epoch {
                    self.speech_stopped(audio_end_ms, now);
                }
            }
            Task::IdleTimeout { epoch } => {
                if epoch == self.idle_epoch {
                    self.idle_timeout(now);
                }
            }
            Task::Transcribe { item, text, step } => self.transcribe(&item, text, step, now),
            Task::Create(key) => self.create(key, now),
            Task::Reply(key) => self.reply(key, now),
            Task::Scripted(index) => self.scripted(index, now),
            Task::Ping => {
                self.ping();
                self.later(now.plus_ms(self.script.ping_ms), Task::Ping);
            }
            Task::Expire => self.expire(now),
            Task::Close { code, reason } => self.close(code, reason, now),
            Task::Drop => self.drop_connection(now),
            Task::GoDark => {
                self.dark = true;
                self.responses.clear();
                self.pending.clear();
                self.active = None;
            }
        }
    }

    fn scripted(&mut self, index: usize, now: At) {
        let Some(event) = self.script.events.get(index) else { return };
        let raw = |kind: &str| ModelObservation::SentOther { kind: kind.to_owned() };
        match event.does.clone() {
            Happening::UnknownEvent => {
                let fields =
                    json!({"weather": {"outlook": "fine", "degrees": 21.5}, "list": [1, null, "three"]});
                self.say(now, "response.weather.updated", fields, None);
            }
            Happening::Malformed if !self.is_mute() => {
                self.send_text(r#"{"type":"response.output_audio.delta","event_id":"event_"#.to_owned());
                self.see(now, raw("malformed"));
            }
            Happening::Binary if !self.is_mute() => {
                self.outbox.push_back(Out::Frame(Frame::Binary(vec![0x00, 0xFF, 0x7F, 0x80])));
                self.see(now, raw("binary"));
            }
            Happening::Malformed | Happening::Binary => {}
            Happening::Error(error) => self.complain(now, error.into()),
            Happening::FalseSpeech { for_ms } => self.detector.force(for_ms),
            Happening::RateLimits => self.rate_limits(now),
            Happening::Ping => self.ping(),
            Happening::DeltaForUnknownResponse => self.say_unknown_delta(now),
            Happening::DoneForUnknownResponse => self.say_unknown_done(now),
            Happening::ExtraFields => self.extra_fields = true,
            Happening::Close { code, reason } => self.close(code, reason, now),
        }
    }
}

impl From<ErrorSpec> for Complaint {
    fn from(error: ErrorSpec) -> Self {
        let ErrorSpec { kind, code, message } = error;
        Self { kind, code, message, param: None, event_id: None, rejected: None }
    }
}

/// A key as the service quotes it when it refuses it: the middle is hidden, the ends are not.
pub fn masked(key: &str) -> String {
    let ends = |n: usize| key.chars().rev().take(n).collect::<Vec<_>>().into_iter().rev();
    if key.chars().count() < 10 {
        return "*".repeat(key.chars().count());
    }
    key.chars().take(5).chain(std::iter::repeat_n('*', 8)).chain(ends(4)).collect()
}

/// What the dialect calls an event; `None` when it has no such event.
fn wire_name(kind: &'static str, dialect: Dialect) -> Option<&'static str> {
    if dialect == Dialect::Ga {
        return Some(kind);
    }
    match kind {
        "conversation.item.added" => Some("conversation.item.created"),
        "conversation.item.done" | "input_audio_buffer.timeout_triggered" => None,
        "response.output_audio.delta" => Some("response.audio.delta"),
        "response.output_audio.done" => Some("response.audio.done"),
        "response.output_audio_transcript.delta" => Some("response.audio_transcript.delta"),
        "response.output_audio_transcript.done" => Some("response.audio_transcript.done"),
        "response.output_text.delta" => Some("response.text.delta"),
        "response.output_text.done" => Some("response.text.done"),
        same => Some(same),
    }
}

impl Peer for Model {
    fn opened(&mut self, now: At) {
        if self.link != Link::Waiting {
            return;
        }
        self.link = Link::Open;
        self.see(now, ModelObservation::Opened);
        let limit_s = self.script.expires_after_s.unwrap_or(SESSION_S);
        let model = self.asked("model").unwrap_or(DEFAULT_MODEL).to_owned();
        let expires_at = self.identity.epoch_unix + (now.as_ms() / 1_000 + limit_s) as i64;
        self.session = Session::new(self.session.id.clone(), &model, expires_at, &self.script);

        match self.refusal() {
            Some(refusal) => {
                self.later(now.plus_ms(self.script.refused_after_ms), Task::Refuse(refusal));
            }
            None if self.script.opening == Opening::Silent => {
                self.dark = true;
                self.greeted = true;
            }
            None => self.later(now.plus_ms(self.script.created_after_ms), Task::Greet),
        }
        self.later(now.plus_ms(limit_s * 1_000), Task::Expire);
        if self.script.ping_ms > 0 {
            self.later(now.plus_ms(self.script.ping_ms), Task::Ping);
        }
        if let Some(CloseAfter { ms, code, reason }) = self.script.close_after.clone() {
            self.later(now.plus_ms(ms), Task::Close { code, reason });
        }
        if let Some(ms) = self.script.drops_after_ms {
            self.later(now.plus_ms(ms), Task::Drop);
        }
        if let Some(ms) = self.script.goes_dark_after_ms {
            self.later(now.plus_ms(ms), Task::GoDark);
        }
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.run_due(now);
        match (frame, self.link) {
            (_, Link::Waiting | Link::Over) => {}
            (Frame::Close(_), Link::Closing { code }) => {
                self.over(now, Some(Ending::ByUs { code: Some(code) }))
            }
            (_, Link::Closing { .. } | Link::Abandoned) => {}
            (Frame::Text(text), Link::Open) if self.greeted => self.client_text(&text, now),
            (Frame::Text(text), Link::Open) => self.early.push(text),
            (Frame::Binary(bytes), Link::Open) => self.client_binary(bytes.len(), now),
            (Frame::Ping(payload), Link::Open) => {
                self.see(now, ModelObservation::GotPing);
                if !self.dark {
                    self.outbox.push_back(Out::Frame(Frame::Pong(payload)));
                }
            }
            (Frame::Pong(_), Link::Open) => self.see(now, ModelObservation::GotPing),
            (Frame::Close(frame), Link::Open) => {
                let (code, reason) = match frame.clone() {
                    Some((code, reason)) => (Some(code), reason),
                    None => (None, String::new()),
                };
                let ending = Ending::ByPeer { code, reason };
                if self.dark {
                    self.see(now, ModelObservation::Ended(ending));
                    self.forget();
                    self.link = Link::Abandoned;
                } else {
                    self.outbox.push_back(Out::Frame(Frame::Close(frame)));
                    self.over(now, Some(ending));
                }
            }
        }
    }

    fn gone(&mut self, why: &str, now: At) {
        match self.link {
            Link::Over => {}
            Link::Abandoned => self.over(now, None),
            Link::Closing { code } => self.over(now, Some(Ending::ByUs { code: Some(code) })),
            Link::Waiting | Link::Open => self.over(now, Some(Ending::Lost { why: why.to_owned() })),
        }
    }

    fn handle_timeout(&mut self, now: At) {
        self.run_due(now);
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.outbox.pop_front()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.agenda.first_key_value().map(|((at, _), _)| *at)
    }

    fn is_finished(&self) -> bool {
        self.link == Link::Over && self.outbox.is_empty()
    }
}
