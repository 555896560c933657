//! The client of a scripted session, as a value: fed with frames and times, it hands out frames, and keeps a
//! recording.
//!
//! It is a [`Peer`] like the mocks, so that [`mocks::attach::attach`] runs it over any socket and a loop of ours runs
//! it in memory. It waits for nothing without an end: each step, the session and the audio have a limit, and what
//! stopped it is the last line of the recording.

use super::recording::{self, GAVE_UP, Recording, Redaction, Sender};
use super::script::{Session, Step, retired, todays_name};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::Dialect;
use mocks::{alaw, resample, ulaw};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Audio of one append, ms.
const APPEND_MS: u64 = 20;
/// How long the answer to our close frame is waited for, ms.
const CLOSE_MS: u64 = 3_000;
/// Most frames of one session.
const FRAMES_MAX: usize = 20_000;
/// Most text of one session, bytes.
const TEXT_MAX: usize = 64 << 20;

/// How long it waits, and how much audio there may be.
#[derive(Clone, Debug)]
pub struct Limits {
    /// For the connection and the upgrade, ms.
    pub dial_ms: u64,
    /// For one step, ms.
    pub step_ms: u64,
    /// For one session, ms.
    pub session_ms: u64,
    /// Audio of all sessions together.
    pub budget: Arc<Budget>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { dial_ms: 15_000, step_ms: 20_000, session_ms: 60_000, budget: Arc::new(Budget::new(u64::MAX)) }
    }
}

/// Audio that all sessions together may send and receive.
#[derive(Debug)]
pub struct Budget {
    max_ms: u64,
    used_ms: AtomicU64,
}

impl Budget {
    /// So many milliseconds.
    pub const fn new(max_ms: u64) -> Self {
        Self { max_ms, used_ms: AtomicU64::new(0) }
    }

    /// Whether there is still some after this.
    fn take(&self, ms: u64) -> bool {
        self.used_ms.fetch_add(ms, Ordering::Relaxed).saturating_add(ms) <= self.max_ms
    }
}

/// How the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Waiting,
    Open,
    /// Our close frame is out, until this time.
    Closing(At),
    Over,
}

/// The line of the caller: a clip, and silence before and after it.
#[derive(Debug)]
struct Microphone {
    next: At,
    samples: VecDeque<i16>,
}

/// The client of one session. See the module.
#[derive(Debug)]
pub struct Client {
    session: Session,
    dialect: Dialect,
    limits: Limits,
    redaction: Redaction,
    source: String,
    recording: Recording,

    link: Link,
    opened: At,
    outbox: VecDeque<Out>,
    text: usize,

    step: usize,
    /// Which of the parts of [`Step::Opens`] is next.
    part: usize,
    step_since: At,
    /// How often each event came, and how often it was awaited, by today's name.
    came: BTreeMap<String, usize>,
    taken: BTreeMap<String, usize>,
    /// The id of the last event we sent.
    sent_id: String,
    sent: u64,
    /// The server refused what we sent last.
    refused: bool,

    /// The last id of each kind, by the name that stands for it.
    ids: BTreeMap<&'static str, String>,
    item_ms: u64,
    input: String,
    output: String,
    microphone: Option<Microphone>,
}

impl Client {
    /// A client that has not begun. `opening` is shown in the recording as how the connection came to be.
    pub fn new(
        session: &Session,
        dialect: Dialect,
        limits: Limits,
        redaction: Redaction,
        source: &str,
        opening: &Value,
    ) -> Self {
        let mut recording = Recording::new(&session.name);
        let mut first = json!({"type": recording::OPEN, "session": session.name});
        if let (Some(first), Some(opening)) = (first.as_object_mut(), opening.as_object()) {
            first.extend(opening.clone());
        }
        recording.put(source, Sender::Client, 0, None, first);
        Self {
            session: session.clone(),
            dialect,
            limits,
            redaction,
            source: source.to_owned(),
            recording,
            link: Link::Waiting,
            opened: At(0),
            outbox: VecDeque::new(),
            text: 0,
            step: 0,
            part: 0,
            step_since: At(0),
            came: BTreeMap::new(),
            taken: BTreeMap::new(),
            sent_id: String::new(),
            sent: 0,
            refused: false,
            ids: BTreeMap::new(),
            item_ms: 0,
            input: "audio/pcm".to_owned(),
            output: "audio/pcm".to_owned(),
            microphone: None,
        }
    }

    /// What was said.
    pub fn into_recording(self) -> Recording {
        self.recording
    }

    fn note(&mut self, from: Sender, now: At, mut frame: Value) -> u64 {
        let format = if from == Sender::Client { &self.input } else { &self.output };
        let audio = self.redaction.apply(&mut frame, bytes_per_ms(format));
        let ms = audio.as_ref().map_or(0, |audio| audio.ms);
        let at_us = now.since(self.opened);
        self.recording.put(&self.source, from, at_us, audio, frame);
        ms
    }

    // ------------------------------------------------------------------------------------------ sending

    fn send(&mut self, event: Value, now: At) {
        let mut event = if self.dialect == Dialect::Beta { retired(event) } else { event };
        self.sent += 1;
        self.sent_id = format!("contract_{}", self.sent);
        self.refused = false;
        if let Some(fields) = event.as_object_mut() {
            fields.insert("event_id".to_owned(), json!(self.sent_id));
        }
        self.fill(&mut event);
        if event["type"] == "session.update" {
            let settings = &event["session"];
            let asked = [&settings["audio"]["input"]["format"]["type"], &settings["input_audio_format"]];
            if let Some(format) = asked.into_iter().find_map(Value::as_str) {
                todays_format(format).clone_into(&mut self.input);
            }
        }
        self.outbox.push_back(Out::Frame(Frame::Text(event.to_string())));
        self.note(Sender::Client, now, event);
    }

    /// Puts the last ids where their names stand.
    fn fill(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(id) = text.strip_prefix('$').and_then(|name| self.ids.get(name)) {
                    text.clone_from(id);
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|inner| self.fill(inner)),
            Value::Object(fields) => fields.values_mut().for_each(|inner| self.fill(inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The next pieces of the line that are due.
    fn speak(&mut self, now: At) {
        while let Some(microphone) = &mut self.microphone
            && microphone.next <= now
            && self.link == Link::Open
        {
            let count = (APPEND_MS * 8) as usize;
            let mut samples: Vec<i16> =
                microphone.samples.drain(..count.min(microphone.samples.len())).collect();
            samples.resize(count, 0);
            let due = microphone.next;
            microphone.next = due.plus_ms(APPEND_MS);
            let audio: Vec<u8> = match self.input.as_str() {
                "audio/pcmu" => samples.iter().map(|&sample| ulaw::encode(sample)).collect(),
                "audio/pcma" => alaw::encode_all(&samples),
                _ => resample::up(&samples).iter().flat_map(|sample| sample.to_le_bytes()).collect(),
            };
            let event = json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(&audio)});
            self.outbox.push_back(Out::Frame(Frame::Text(event.to_string())));
            self.note_append(event, now);
            if !self.limits.budget.take(APPEND_MS) {
                self.give_up("the audio that was allowed is used up", now);
            }
        }
    }

    /// Appends in a row are one line: a line for each would hide the session.
    fn note_append(&mut self, event: Value, now: At) {
        let last = self.recording.lines.last().filter(|last| last.frame["type"] == event["type"]);
        match last.cloned() {
            Some(_) => {
                let mut event = event;
                let more = self.redaction.apply(&mut event, bytes_per_ms(&self.input));
                let last = self.recording.lines.last_mut().and_then(|last| last.audio.as_mut());
                if let (Some(audio), Some(more)) = (last, more) {
                    audio.bytes += more.bytes;
                    audio.ms += more.ms;
                    audio.sha256 = None;
                }
            }
            None => {
                self.note(Sender::Client, now, event);
            }
        }
    }

    // ------------------------------------------------------------------------------------------ the steps

    /// Goes through the steps until one has to wait.
    fn advance(&mut self, now: At) {
        while self.link == Link::Open {
            let Some(step) = self.session.steps.get(self.step).cloned() else {
                return self.close(now);
            };
            if !self.perform(&step, now) {
                return;
            }
            self.step += 1;
            self.part = 0;
            self.step_since = now;
        }
    }

    /// Whether the step is done.
    fn perform(&mut self, step: &Step, now: At) -> bool {
        match step {
            Step::Opens => self.open(now),
            Step::Sends(text) => {
                // The script was checked when it was read.
                self.send(serde_json::from_str(text).unwrap_or_default(), now);
                true
            }
            Step::SendsText(text) => {
                self.outbox.push_back(Out::Frame(Frame::Text(text.clone())));
                self.note(Sender::Client, now, json!({"type": recording::BAD, "text": text}));
                true
            }
            Step::SendsBinary(bytes) => {
                self.outbox.push_back(Out::Frame(Frame::Binary(vec![0; *bytes])));
                self.note(Sender::Client, now, json!({"type": recording::BAD, "binary_bytes": bytes}));
                true
            }
            Step::Speaks(clip) => {
                let microphone =
                    self.microphone.get_or_insert_with(|| Microphone { next: now, samples: VecDeque::new() });
                microphone.samples.extend(golden::clip(clip).map(|clip| clip.samples).unwrap_or_default());
                self.speak(now);
                true
            }
            Step::Awaits(events) => self.has(events.all()),
            Step::AwaitsAudioMs(ms) => self.item_ms >= *ms,
            Step::AwaitsClose => false,
            Step::WaitsMs(ms) => now >= self.step_since.plus_ms(*ms),
        }
    }

    fn open(&mut self, now: At) -> bool {
        if self.part == 0 && self.has(&["session.created".to_owned()]) {
            self.part = 1;
            let settings = self.session.settings().unwrap_or_default();
            self.send(json!({"type": "session.update", "session": settings}), now);
        }
        self.part == 1 && self.has(&["session.updated".to_owned()])
    }

    /// Whether each of these has come since it was awaited last; if so they count as awaited.
    fn has(&mut self, events: &[String]) -> bool {
        if self.refused && !events.iter().any(|event| event == "error") {
            self.refused = false;
            return true;
        }
        let count =
            |counts: &BTreeMap<String, usize>, event: &String| counts.get(event).copied().unwrap_or_default();
        let all = events.iter().all(|event| count(&self.came, event) > count(&self.taken, event));
        if all {
            self.refused = false;
            for event in events {
                *self.taken.entry(event.clone()).or_default() += 1;
            }
        }
        all
    }

    /// What the step waits for, in words.
    fn awaited(&self) -> Vec<String> {
        let missing = |event: &&String| {
            let count = |counts: &BTreeMap<String, usize>| counts.get(*event).copied().unwrap_or_default();
            count(&self.came) <= count(&self.taken)
        };
        match self.session.steps.get(self.step) {
            Some(Step::Opens) if self.part == 0 => vec!["session.created".to_owned()],
            Some(Step::Opens) => vec!["session.updated".to_owned()],
            Some(Step::Awaits(events)) => events.all().iter().filter(missing).cloned().collect(),
            Some(Step::AwaitsAudioMs(_)) => vec!["response.output_audio.delta".to_owned()],
            Some(Step::AwaitsClose) => vec![recording::CLOSE.to_owned()],
            Some(
                Step::Sends(_)
                | Step::SendsText(_)
                | Step::SendsBinary(_)
                | Step::Speaks(_)
                | Step::WaitsMs(_),
            )
            | None => Vec::new(),
        }
    }

    // ------------------------------------------------------------------------------------------ the end

    fn give_up(&mut self, why: &str, now: At) {
        let after_ms = now.since(self.step_since) / 1_000;
        let frame = json!({"type": GAVE_UP, "why": why, "after_ms": after_ms, "awaited": self.awaited()});
        self.note(Sender::Client, now, frame);
        self.close(now);
    }

    fn close(&mut self, now: At) {
        if self.link == Link::Open {
            self.outbox.push_back(Out::Frame(Frame::Close(Some((1_000, String::new())))));
            self.link = Link::Closing(now.plus_ms(CLOSE_MS));
        }
    }

    fn step_ends(&self) -> At {
        match self.session.steps.get(self.step) {
            Some(Step::WaitsMs(ms)) => self.step_since.plus_ms(*ms),
            Some(_) | None => self.step_since.plus_ms(self.limits.step_ms),
        }
    }

    fn session_ends(&self) -> At {
        self.opened.plus_ms(self.limits.session_ms)
    }

    // ------------------------------------------------------------------------------------------ hearing

    fn hear(&mut self, text: &str, now: At) {
        self.text += text.len();
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let Some(kind) = frame["type"].as_str() else {
            self.note(Sender::Server, now, json!({"type": recording::BAD, "text_bytes": text.len()}));
            return;
        };
        let kind = todays_name(kind).to_owned();
        let error_of = frame["error"]["event_id"].as_str().map(str::to_owned);
        self.learn(&kind, &frame);
        let ms = self.note(Sender::Server, now, frame);
        if kind == "response.output_audio.delta" {
            self.item_ms += ms;
            if !self.limits.budget.take(ms) {
                return self.give_up("the audio that was allowed is used up", now);
            }
        }
        if kind == "error" && error_of.is_some_and(|id| id == self.sent_id) {
            self.refused = true;
        }
        *self.came.entry(kind).or_default() += 1;
        if self.text > TEXT_MAX || self.recording.lines.len() > FRAMES_MAX {
            self.give_up("the server sends without an end", now);
        }
    }

    /// Keeps the ids and formats that later steps need.
    fn learn(&mut self, kind: &str, frame: &Value) {
        let mut learn = |name, value: &Value| {
            if let Some(id) = value.as_str() {
                self.ids.insert(name, id.to_owned());
            }
        };
        match kind {
            "response.created" => learn("response", &frame["response"]["id"]),
            "response.output_item.added" => {
                learn("item", &frame["item"]["id"]);
                learn("call", &frame["item"]["call_id"]);
                self.item_ms = 0;
            }
            "session.created" | "session.updated" => {
                let session = &frame["session"];
                let shown = [&session["audio"]["output"]["format"]["type"], &session["output_audio_format"]];
                if let Some(format) = shown.into_iter().find_map(Value::as_str) {
                    todays_format(format).clone_into(&mut self.output);
                }
            }
            _ => {}
        }
    }
}

fn todays_format(name: &str) -> &str {
    match name {
        "g711_ulaw" => "audio/pcmu",
        "g711_alaw" => "audio/pcma",
        "pcm16" => "audio/pcm",
        same => same,
    }
}

fn bytes_per_ms(format: &str) -> u64 {
    if format == "audio/pcm" { 48 } else { 8 }
}

impl Peer for Client {
    fn opened(&mut self, now: At) {
        self.link = Link::Open;
        self.opened = now;
        self.step_since = now;
        self.advance(now);
    }

    fn handle(&mut self, frame: Frame, now: At) {
        match (frame, self.link) {
            (Frame::Close(_), Link::Closing(_)) => self.link = Link::Over,
            (Frame::Close(close), Link::Open) => {
                let (code, reason) = match close.clone() {
                    Some((code, reason)) => (json!(code), json!(reason)),
                    None => (Value::Null, json!("")),
                };
                let frame = json!({"type": recording::CLOSE, "code": code, "reason": reason});
                self.note(Sender::Server, now, frame);
                self.outbox.push_back(Out::Frame(Frame::Close(close)));
                self.link = Link::Over;
            }
            (Frame::Text(text), Link::Open) => {
                self.hear(&text, now);
                self.advance(now);
            }
            (Frame::Binary(bytes), Link::Open) => {
                self.text += bytes.len();
                self.note(Sender::Server, now, json!({"type": recording::BAD, "binary_bytes": bytes.len()}));
            }
            (Frame::Ping(payload), Link::Open | Link::Closing(_)) => {
                self.outbox.push_back(Out::Frame(Frame::Pong(payload)));
            }
            (Frame::Pong(_), _) | (_, Link::Waiting | Link::Closing(_) | Link::Over) => {}
        }
    }

    fn gone(&mut self, why: &str, now: At) {
        if self.link == Link::Open {
            self.note(Sender::Server, now, json!({"type": recording::LOST, "why": why}));
        }
        self.link = Link::Over;
    }

    fn handle_timeout(&mut self, now: At) {
        match self.link {
            Link::Closing(until) if now >= until => {
                self.outbox.push_back(Out::Drop);
                self.link = Link::Over;
            }
            Link::Open => {
                self.speak(now);
                self.advance(now);
                if self.link == Link::Open && now >= self.session_ends() {
                    self.give_up("the session lasts too long", now);
                } else if self.link == Link::Open && now >= self.step_ends() {
                    self.give_up("nothing came in time", now);
                }
            }
            Link::Waiting | Link::Closing(_) | Link::Over => {}
        }
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.outbox.pop_front()
    }

    fn poll_timeout(&self) -> Option<At> {
        match self.link {
            Link::Open => {
                let line = self.microphone.as_ref().map(|microphone| microphone.next);
                let first = self.step_ends().min(self.session_ends());
                Some(line.map_or(first, |line| line.min(first)))
            }
            Link::Closing(until) => Some(until),
            Link::Waiting | Link::Over => None,
        }
    }

    fn is_finished(&self) -> bool {
        self.link == Link::Over && self.outbox.is_empty()
    }
}
