//! What a journal looks like: a header, then one JSON object a line. Pure: notes in, lines out.
//!
//! The types here are read back by the harness. Readers ignore fields they do not know; whatever changes the meaning of
//! one that is there raises [`VERSION`].

use super::Content;
use crate::audio::{Companding, FRAME_BYTES};
use crate::base::{random, redact};
use crate::call::event::{CallEvent, Counts, Line, Said, ToolOutcome};
use crate::call::settings::CallConfig;
use crate::call::{Control, Leg, LegChange, ToolResult, Transmit};
use crate::runtime::journal::{CallBeginning, JournalEntry};
use crate::wire::realtime::{ClientEvent, HistoryItem};
use crate::wire::twilio::{self, FromTwilio, ToTwilio};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// The version of the format that is written.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format. It is the first field, so that `head -c 13` tells it.
    pub journal: u32,
    /// The version of the bridge that wrote it.
    pub bridge: String,
    /// What is written of audio and words.
    pub content: Content,
    /// Counts the calls of the process.
    pub key: u64,
    /// The wall clock at microsecond 0 of the journal, Unix seconds.
    pub unix: i64,
    /// The same moment in microseconds since the server began to serve: how the calls of a process lie to each other.
    pub up_us: u64,
    /// `max_calls` of the server.
    pub max_calls: usize,
    /// `drain_ms` of the server.
    pub drain_ms: u64,
    /// Length of the notice, bytes of mu-law.
    pub notice_bytes: usize,
    /// The settings of the call. Instructions and greeting are written with [`Content::Full`] only.
    pub call: CallConfig,
}

/// One line after the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the caller's WebSocket was opened.
    pub us: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// Audio or words: how much, and either enough to compare or all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Bytes.
    pub len: usize,
    /// The beginning of a keyed hash, in hexadecimal; only comparable within one process.
    pub sum: String,
    /// Loudness of a frame from the caller, whole decibels below full scale; -99 is digital silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dbfs: Option<i32>,
    /// The content itself: text, or audio in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// What a line is about. `caller` and `model` are what came from them, `to_caller` and `to_model` what was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is")]
pub enum What {
    /// `connected` from Twilio.
    #[serde(rename = "caller.connected")]
    Connected,
    /// `start` from Twilio.
    #[serde(rename = "caller.start")]
    Start {
        /// `CA...`.
        call_sid: String,
        /// `MZ...`.
        stream_sid: String,
        /// `sequenceNumber`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// `mediaFormat.encoding`.
        encoding: String,
        /// `mediaFormat.sampleRate`, Hz.
        rate: u32,
        /// `mediaFormat.channels`.
        channels: u32,
        /// The `<Parameter>`s of the TwiML.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        parameters: BTreeMap<String, Blob>,
    },
    /// `media` from Twilio.
    #[serde(rename = "caller.media")]
    Media {
        /// `sequenceNumber`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// Counts media messages from 1.
        chunk: u64,
        /// Presentation time, ms.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ts: Option<u64>,
        /// The audio.
        audio: Blob,
    },
    /// `dtmf` from Twilio.
    #[serde(rename = "caller.dtmf")]
    Dtmf {
        /// The key; hidden when it is a digit or letter and content is not written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<char>,
        /// It is the key that ends an entry.
        ends: bool,
    },
    /// `mark` from Twilio.
    #[serde(rename = "caller.mark")]
    Mark {
        /// Its name.
        name: String,
    },
    /// `stop` from Twilio.
    #[serde(rename = "caller.stop")]
    Stop,
    /// An event from Twilio that this version does not know, or a known one of another stream.
    #[serde(rename = "caller.other")]
    CallerOther {
        /// Its name.
        event: String,
        /// Bytes of the message.
        len: usize,
        /// It belongs to another stream.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stray: bool,
    },
    /// Audio to Twilio.
    #[serde(rename = "to_caller.media")]
    SentMedia {
        /// The audio.
        audio: Blob,
    },
    /// A mark to Twilio.
    #[serde(rename = "to_caller.mark")]
    SentMark {
        /// Its name.
        name: String,
    },
    /// A clear to Twilio.
    #[serde(rename = "to_caller.clear")]
    SentClear,
    /// An event from the model.
    #[serde(rename = "model")]
    Model(Box<Event>),
    /// An event to the model.
    #[serde(rename = "to_model")]
    SentModel(Box<Event>),
    /// A frame that is no message of its protocol.
    #[serde(rename = "malformed")]
    Malformed {
        /// Where it came from.
        leg: Side,
        /// Bytes.
        len: usize,
        /// It was a binary frame.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        binary: bool,
        /// What is wrong with it, without quoting it.
        why: String,
        /// The frame.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<String>,
    },
    /// Something happened to a connection: `open`, `dial_failed`, `closed`, `lost`, `clogged`, `flowing`, `ping`,
    /// `pong`.
    #[serde(rename = "leg")]
    Leg {
        /// Which.
        leg: Side,
        /// What.
        change: String,
        /// The code of a close frame.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<u16>,
        /// The reason of a close frame, or why it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// The bridge did something: `dial`, `ping`, `close`, `drop`, `hold`, `release`.
    #[serde(rename = "bridge")]
    Bridge {
        /// What.
        does: String,
        /// On which connection.
        leg: Side,
        /// The code of a close frame.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<u16>,
        /// The reason of a close frame.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A function was run.
    #[serde(rename = "tool.run")]
    RunTool {
        /// Its call id.
        call_id: String,
        /// Which.
        name: String,
        /// With what.
        arguments: Blob,
    },
    /// The call no longer waits for a function.
    #[serde(rename = "tool.cancel")]
    CancelTool {
        /// Its call id.
        call_id: String,
    },
    /// A function ended.
    #[serde(rename = "tool.end")]
    ToolEnded {
        /// Its call id.
        call_id: String,
        /// It succeeded.
        ok: bool,
        /// What it returned, or why it failed.
        output: Blob,
    },
    /// The world outside wanted something: `replaced`, `drain`, `hang_up`, `welcome`, `turn_away`,
    /// `stream_failed`, `stream_stopped`.
    #[serde(rename = "asked")]
    Asked {
        /// What.
        what: String,
    },
    /// The bridge told that something happened: the end of the call and its reason, timers that fired, barge-ins.
    #[serde(rename = "event")]
    Event {
        /// Which event.
        name: String,
        /// More about it.
        #[serde(flatten)]
        more: Map<String, Value>,
    },
    /// Lines are missing here: the queue was full, or the disk was.
    #[serde(rename = "lost")]
    Lost {
        /// How many.
        lines: u64,
    },
    /// The journal has reached its size; what follows is only how the call ended.
    #[serde(rename = "full")]
    Full,
    /// The call's task panicked.
    #[serde(rename = "panicked")]
    Panicked,
    /// The last line of a whole journal.
    #[serde(rename = "end")]
    End {
        /// Lines that are missing in all.
        lost: u64,
    },
}

/// Which connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Towards Twilio.
    Caller,
    /// Towards the model.
    Model,
}

impl From<Leg> for Side {
    fn from(leg: Leg) -> Self {
        match leg {
            Leg::Caller => Self::Caller,
            Leg::Model => Self::Model,
        }
    }
}

/// An event of the model's protocol, either way: what a reader of journals needs of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Bytes of the message; 0 for what the bridge sent.
    #[serde(skip_serializing_if = "is_zero")]
    pub len: usize,
    /// Our name for it, or in an error the name of what it answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// The item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// `message`, `function_call`, ... of an item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_type: Option<String>,
    /// The role of an item.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The item it follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The content part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<u64>,
    /// Status of a response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Why it has that status, or the code of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The type of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The number of the request a response answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// `audio_start_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<u64>,
    /// `audio_end_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// Audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio: Option<Blob>,
    /// Words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Blob>,
    /// A function call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// A function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The arguments of a function call, or its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Blob>,
    /// Effective input format of a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Effective output format of a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// When the session will end, seconds after the beginning of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<i64>,
    /// Total tokens used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// The whole message, when nothing else of it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

fn is_zero(len: &usize) -> bool {
    *len == 0
}

/// What hashes are keyed with.
#[derive(Clone, Copy)]
pub struct Salt([u8; 32]);

impl Salt {
    /// A secret that exists nowhere but in this process.
    pub fn secret() -> Self {
        Self(random::bytes())
    }

    /// No secret at all: the same bytes in every simulation.
    pub const fn known() -> Self {
        Self([0; 32])
    }

    /// Eight digits that tell processes apart and say nothing of the secret.
    pub(crate) fn tag(&self) -> String {
        self.sum(b"process")[..8].to_owned()
    }

    /// The first 12 digits of the hash.
    fn sum(&self, bytes: &[u8]) -> String {
        use std::fmt::Write as _;
        let mut hash = Sha256::new();
        hash.update(self.0);
        hash.update(bytes);
        hash.finalize()[..6].iter().fold(String::with_capacity(12), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Salt(***)")
    }
}

/// Writes the lines of one call.
#[derive(Debug)]
pub struct Formatter {
    content: Content,
    salt: Salt,
    unix: i64,
    terminator: char,
    /// The caller's companding, once `start` has said it.
    companding: Companding,
    stream_sid: Option<String>,
}

/// What a note says beyond its line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// `start` came: this is the call's name.
    pub call_sid: Option<String>,
    /// How the call ended: worth the room that a full journal has left.
    pub is_end: bool,
}

impl Formatter {
    /// A formatter, and the line it begins with.
    pub fn begin(beginning: &CallBeginning, content: Content, salt: Salt) -> (Self, String) {
        let mut call = beginning.call.as_ref().clone();
        if content == Content::Hashes {
            // An operator's words may be a secret of theirs; that there are some is not.
            call.instructions = hidden(&call.instructions);
            call.greeting = call.greeting.as_deref().map(hidden);
            for tool in &mut call.tools {
                tool.description = hidden(&tool.description);
            }
            call.hangup.farewell = call.hangup.farewell.as_deref().map(hidden);
            for person in &mut call.hangup.transfer {
                person.number = "+000".into();
            }
        }
        let header = Header {
            journal: VERSION,
            bridge: env!("CARGO_PKG_VERSION").to_owned(),
            content,
            key: beginning.key,
            unix: beginning.unix,
            up_us: u64::try_from(beginning.up.as_micros()).unwrap_or(u64::MAX),
            max_calls: beginning.max_calls,
            drain_ms: beginning.drain_ms,
            notice_bytes: beginning.notice_bytes,
            call,
        };
        let formatter = Self {
            content,
            salt,
            unix: beginning.unix,
            terminator: beginning.call.dtmf.terminator,
            companding: Companding::Ulaw,
            stream_sid: None,
        };
        (formatter, to_line(&header))
    }

    /// The line of a note.
    pub fn line(&mut self, after: Duration, note: &JournalEntry) -> (String, Remarks) {
        let mut remarks = Remarks::default();
        let what = self.what(note, &mut remarks);
        (Self::written(after, what), remarks)
    }

    /// A line about the journal itself.
    pub fn written(after: Duration, what: What) -> String {
        let us = u64::try_from(after.as_micros()).unwrap_or(u64::MAX);
        to_line(&Record { us, what })
    }

    fn what(&mut self, note: &JournalEntry, remarks: &mut Remarks) -> What {
        match note {
            JournalEntry::Text(Leg::Caller, text) => self.caller_said(text, remarks),
            JournalEntry::Text(Leg::Model, text) => self.model_said(text),
            JournalEntry::Binary(leg, len) => What::Malformed {
                leg: (*leg).into(),
                len: *len,
                binary: true,
                why: "a binary frame".into(),
                data: None,
            },
            JournalEntry::Changed(leg, change) => changed((*leg).into(), change),
            JournalEntry::Done(transmit) => self.done(transmit),
            JournalEntry::Happened(event) => {
                remarks.is_end = matches!(event, CallEvent::Ended { .. });
                let (name, more) = self.event(event);
                What::Event { name: name.into(), more }
            }
            JournalEntry::ToolEnded(ToolResult { call_id, output }) => What::ToolEnded {
                call_id: call_id.clone(),
                ok: output.is_ok(),
                output: self.words(match output {
                    Ok(text) | Err(text) => text,
                }),
            },
            JournalEntry::Asked(control) => What::Asked {
                what: match control {
                    Control::Replaced => "replaced",
                    Control::Drain { .. } => "drain",
                    Control::HangUp => "hang_up",
                    Control::Admitted => "welcome",
                    Control::Rejected { .. } => "turn_away",
                    Control::StreamOver { failed: true } => "stream_failed",
                    Control::StreamOver { failed: false } => "stream_stopped",
                }
                .into(),
            },
        }
    }

    // ------------------------------------------------------------------------------------- content

    fn is_full(&self) -> bool {
        self.content == Content::Full
    }

    fn words(&self, text: &str) -> Blob {
        Blob {
            len: text.len(),
            sum: self.salt.sum(text.as_bytes()),
            dbfs: None,
            data: self.is_full().then(|| text.to_owned()),
        }
    }

    fn audio(&self, bytes: &[u8]) -> Blob {
        Blob {
            len: bytes.len(),
            sum: self.salt.sum(bytes),
            dbfs: None,
            data: self.is_full().then(|| BASE64.encode(bytes)),
        }
    }

    // ------------------------------------------------------------------------------------- the caller leg

    fn caller_said(&mut self, text: &str, remarks: &mut Remarks) -> What {
        let envelope = match twilio::decode(text) {
            Ok(envelope) => envelope,
            Err(error) => return self.malformed(Side::Caller, text, error.to_string()),
        };
        let seq = envelope.sequence;
        let (ours, theirs) = (&self.stream_sid, &envelope.stream_sid);
        let is_start = matches!(envelope.message, FromTwilio::Start(_));
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours != theirs
            && !is_start
        {
            let event = event_name(&envelope.message).to_owned();
            return What::CallerOther { event, len: text.len(), stray: true };
        }
        match envelope.message {
            FromTwilio::Connected => What::Connected,
            FromTwilio::Start(start) => {
                if self.stream_sid.is_none() {
                    self.stream_sid = Some(start.stream_sid.clone());
                    self.companding = start.format.companding().unwrap_or(Companding::Ulaw);
                    remarks.call_sid = Some(start.call_sid.clone());
                }
                What::Start {
                    call_sid: start.call_sid,
                    stream_sid: start.stream_sid,
                    seq,
                    encoding: start.format.encoding,
                    rate: start.format.sample_rate,
                    channels: start.format.channels,
                    parameters: start.parameters.iter().map(|(k, v)| (k.clone(), self.words(v))).collect(),
                }
            }
            FromTwilio::Media(media) => {
                let audio =
                    Blob { dbfs: Some(level(self.companding, &media.audio)), ..self.audio(&media.audio) };
                What::Media { seq, chunk: media.chunk, ts: media.timestamp_ms, audio }
            }
            FromTwilio::Dtmf { digit } => What::Dtmf {
                key: (self.is_full() || !digit.is_ascii_alphanumeric()).then_some(digit),
                ends: digit == self.terminator,
            },
            FromTwilio::Mark { name } => What::Mark { name },
            FromTwilio::Stop => What::Stop,
            FromTwilio::Unknown { event } => What::CallerOther { event, len: text.len(), stray: false },
        }
    }

    fn malformed(&self, leg: Side, text: &str, why: String) -> What {
        let data = self.is_full().then(|| redact::secrets(text).into_owned());
        What::Malformed { leg, len: text.len(), binary: false, why, data }
    }

    // ------------------------------------------------------------------------------------- the model leg

    fn model_said(&self, text: &str) -> What {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow, rename = "type")]
            kind: Cow<'a, str>,
        }
        #[derive(Deserialize)]
        struct Delta<'a> {
            #[serde(borrow, rename = "type")]
            kind: Cow<'a, str>,
            response_id: String,
            item_id: String,
            #[serde(default)]
            content_index: u64,
            #[serde(borrow)]
            delta: Cow<'a, str>,
        }
        let bad = |error: serde_json::Error| twilio::shape_of(&error);
        let head: Head<'_> = match twilio::object(text) {
            Ok(head) => head,
            Err(error) => return self.malformed(Side::Model, text, bad(error)),
        };
        // The one event that carries kilobytes is read without an intermediate tree.
        if matches!(head.kind.as_ref(), "response.output_audio.delta" | "response.audio.delta") {
            let delta: Delta<'_> = match serde_json::from_str(text) {
                Ok(delta) => delta,
                Err(error) => return self.malformed(Side::Model, text, bad(error)),
            };
            let Ok(audio) = BASE64.decode(delta.delta.as_bytes()) else {
                let why = "`delta` of an audio event is not base64".to_owned();
                return self.malformed(Side::Model, text, why);
            };
            return What::Model(Box::new(Event {
                kind: delta.kind.into_owned(),
                len: text.len(),
                response: Some(delta.response_id),
                item: Some(delta.item_id),
                content: Some(delta.content_index),
                audio: Some(self.audio(&audio)),
                ..Event::default()
            }));
        }
        match serde_json::from_str(text) {
            Ok(value) => What::Model(Box::new(self.model_event(&value, text))),
            Err(error) => self.malformed(Side::Model, text, bad(error)),
        }
    }

    fn model_event(&self, v: &Value, text: &str) -> Event {
        let kind = redact::name(v["type"].as_str().unwrap_or_default());
        let shown = |value: &Value| value.as_str().map(redact::name);
        let words = |value: &Value| value.as_str().map(|text| self.words(text));
        let mut event = Event { kind, len: text.len(), ..Event::default() };
        let (item, response, session, error) = (&v["item"], &v["response"], &v["session"], &v["error"]);
        event.response = string(&v["response_id"]).or_else(|| string(&response["id"]));
        event.item = string(&v["item_id"]).or_else(|| string(&item["id"]));
        event.item_type = string(&item["type"]);
        event.role = string(&item["role"]);
        event.previous = string(&v["previous_item_id"]);
        event.content = v["content_index"].as_u64();
        event.status = string(&response["status"]).or_else(|| string(&item["status"]));
        event.start_ms = v["audio_start_ms"].as_u64();
        event.end_ms = v["audio_end_ms"].as_u64();
        event.call_id = string(&item["call_id"]).or_else(|| string(&v["call_id"]));
        event.name = string(&item["name"]);
        event.arguments = words(&item["arguments"]);
        event.text = words(&v["transcript"]).or_else(|| words(&v["delta"])).or_else(|| words(&v["text"]));
        event.request =
            response["metadata"]["bridge_request"].as_str().and_then(|number| number.parse().ok());
        event.tokens = response["usage"]["total_tokens"].as_u64();
        if response.is_object() {
            let details = &response["status_details"];
            event.reason = [&details["error"]["code"], &details["error"]["type"], &details["reason"]]
                .into_iter()
                .find_map(shown);
            event.error = shown(&details["error"]["type"]);
        }
        if error.is_object() {
            event.error = shown(&error["type"]);
            event.reason = shown(&error["code"]);
            event.event_id = string(&error["event_id"]);
            event.text = error["message"].as_str().map(|text| self.words(&redact::secrets(text)));
        }
        if session.is_object() {
            event.input = string(&session["audio"]["input"]["format"]["type"])
                .or_else(|| string(&session["input_audio_format"]));
            event.output = string(&session["audio"]["output"]["format"]["type"])
                .or_else(|| string(&session["output_audio_format"]));
            event.expires_in_s = session["expires_at"].as_i64().map(|unix| unix.saturating_sub(self.unix));
        }
        if self.is_full() && event.text.is_none() && event.arguments.is_none() {
            event.data = Some(redact::secrets(text).into_owned());
        }
        event
    }

    // ------------------------------------------------------------------------------------- what the call did

    fn done(&self, transmit: &Transmit) -> What {
        let bridge = |does: &str, leg: Side| What::Bridge { does: does.into(), leg, code: None, why: None };
        match transmit {
            Transmit::Caller { message: ToTwilio::Media { audio }, .. } => {
                What::SentMedia { audio: self.audio(audio) }
            }
            Transmit::Caller { message: ToTwilio::Mark { name }, .. } => {
                What::SentMark { name: name.clone() }
            }
            Transmit::Caller { message: ToTwilio::Clear, .. } => What::SentClear,
            Transmit::WithdrawAudio => bridge("withdraw", Side::Caller),
            Transmit::Model(event) => What::SentModel(Box::new(self.client_event(event))),
            Transmit::Ping(leg) => bridge("ping", (*leg).into()),
            Transmit::VerifyStream(_) => bridge("show", Side::Caller),
            Transmit::Dial { .. } => bridge("dial", Side::Model),
            Transmit::Close { leg, code, reason } => What::Bridge {
                does: "close".into(),
                leg: (*leg).into(),
                code: Some(*code),
                why: (!reason.is_empty()).then(|| (*reason).to_owned()),
            },
            Transmit::Drop(leg) => bridge("drop", (*leg).into()),
            Transmit::PauseModelReads(true) => bridge("hold", Side::Model),
            Transmit::PauseModelReads(false) => bridge("release", Side::Model),
            Transmit::RunTool { call_id, name, arguments } => What::RunTool {
                call_id: call_id.clone(),
                name: name.clone(),
                arguments: self.words(arguments),
            },
            Transmit::CancelTool { call_id } => What::CancelTool { call_id: call_id.clone() },
        }
    }

    fn client_event(&self, event: &ClientEvent) -> Event {
        let of = |kind: &str| Event { kind: kind.to_owned(), ..Event::default() };
        match event {
            ClientEvent::SessionUpdate { event_id, .. } => {
                Event { event_id: Some(event_id.clone()), ..of("session.update") }
            }
            ClientEvent::AppendAudio { audio } => {
                Event { audio: Some(self.audio(audio)), ..of("input_audio_buffer.append") }
            }
            ClientEvent::CommitAudio { event_id } => {
                Event { event_id: Some(event_id.clone()), ..of("input_audio_buffer.commit") }
            }
            ClientEvent::CreateResponse { event_id, request, instructions, may_call: _ } => Event {
                event_id: Some(event_id.clone()),
                request: Some(*request),
                text: instructions.as_deref().map(|text| self.words(text)),
                ..of("response.create")
            },
            ClientEvent::CancelResponse { response } => {
                Event { response: response.clone(), ..of("response.cancel") }
            }
            ClientEvent::Truncate { item, content, audio_end_ms } => Event {
                item: Some(item.clone()),
                content: Some(u64::from(*content)),
                end_ms: Some(*audio_end_ms),
                ..of("conversation.item.truncate")
            },
            ClientEvent::UserText { item, text } => Event {
                item: Some(item.clone()),
                item_type: Some("message".into()),
                role: Some("user".into()),
                text: Some(self.words(text)),
                ..of("conversation.item.create")
            },
            ClientEvent::ToolOutput { event_id: _, call_id, output }
            | ClientEvent::History(HistoryItem::Output { call_id, output }) => Event {
                item_type: Some("function_call_output".into()),
                call_id: Some(call_id.clone()),
                arguments: Some(self.words(output)),
                ..of("conversation.item.create")
            },
            ClientEvent::History(HistoryItem::Call { call_id, name, arguments }) => Event {
                item_type: Some("function_call".into()),
                call_id: Some(call_id.clone()),
                name: Some(name.clone()),
                arguments: Some(self.words(arguments)),
                ..of("conversation.item.create")
            },
            ClientEvent::History(HistoryItem::User(text) | HistoryItem::Agent(text)) => {
                let by_user = matches!(event, ClientEvent::History(HistoryItem::User(_)));
                Event {
                    item_type: Some("message".into()),
                    role: Some(if by_user { "user" } else { "assistant" }.into()),
                    text: Some(self.words(text)),
                    ..of("conversation.item.create")
                }
            }
        }
    }

    /// The name of an event of the call, and more about it.
    fn event(&self, event: &CallEvent) -> (&'static str, Map<String, Value>) {
        let ms = |duration: &Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (name, more) = match event {
            CallEvent::Started { .. } => ("started", json!({})),
            CallEvent::Dialing => ("dialing", json!({})),
            CallEvent::Dialed { outcome, took } => {
                ("dialed", json!({ "outcome": outcome.name(), "took_ms": ms(took) }))
            }
            CallEvent::Session { id } => ("session", json!({ "id": id })),
            CallEvent::Live { after } => ("live", json!({ "after_ms": ms(after) })),
            CallEvent::Unprotected { why, silenced } => {
                ("unprotected", json!({ "why": why.name(), "silenced_ms": ms(silenced) }))
            }
            CallEvent::SpeechStarted => ("speech_started", json!({})),
            CallEvent::SpeechStopped => ("speech_stopped", json!({})),
            CallEvent::BargeIn { item, heard, discarded } => {
                ("barge_in", json!({ "item": item, "heard_ms": ms(heard), "discarded_ms": ms(discarded) }))
            }
            CallEvent::Silenced { after } => ("silenced", json!({ "after_ms": ms(after) })),
            CallEvent::Said(Said::More { item, speaker, words }) => (
                "said",
                json!({ "item": item, "speaker": speaker.name(), "more": self.words(words.expose()) }),
            ),
            CallEvent::Said(Said::Line(line)) => ("said", json!({ "line": self.transcript_line(line) })),
            CallEvent::Floor(floor) => ("floor", json!({ "caller": floor.caller, "agent": floor.agent })),
            CallEvent::Speaking { response, after } => {
                ("speaking", json!({ "response": response, "after_ms": after.as_ref().map(ms) }))
            }
            CallEvent::ResponseDone { response, status, usage } => {
                let tokens = usage.map(|usage| usage.total);
                ("response_done", json!({ "response": response, "status": status, "tokens": tokens }))
            }
            CallEvent::Keypad { keys, entry: _ } => ("keypad", json!({ "keys": keys })),
            CallEvent::ToolCalled { call_id, name, arguments: _ } => {
                ("tool_called", json!({ "call_id": call_id, "function": name }))
            }
            CallEvent::ToolAnswered { call_id, outcome, why, .. } => (
                "tool_answered",
                json!({
                    "call_id": call_id,
                    "ok": *outcome == ToolOutcome::Done,
                    "outcome": outcome.name(),
                    "why": why,
                }),
            ),
            CallEvent::ModelError { code } => ("model_error", json!({ "code": code })),
            CallEvent::Tolerated { what } => ("tolerated", json!({ "what": what })),
            CallEvent::TimerFired(timer) => ("timer_fired", json!({ "timer": timer.name() })),
            CallEvent::Renewing => ("renewing", json!({})),
            CallEvent::Renewal { outcome, took, tries, items } => (
                "renewal",
                json!({ "outcome": outcome.name(), "took_ms": ms(took), "tries": tries, "items": items }),
            ),
            CallEvent::ExpiringSoon => ("expiring_soon", json!({})),
            CallEvent::ToolLoop { rounds } => ("tool_loop", json!({ "rounds": rounds })),
            CallEvent::Notice { reason } => ("notice", json!({ "reason": reason.name() })),
            CallEvent::Ended { reason, detail, lasted, counts, transcript } => (
                "ended",
                json!({
                    "reason": reason.name(),
                    "detail": detail,
                    "lasted_ms": ms(lasted),
                    "counts": counted(counts),
                    "transcript": transcript.iter().map(|line| self.transcript_line(line)).collect::<Value>(),
                }),
            ),
        };
        match more {
            Value::Object(more) => (name, more),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                (name, Map::new())
            }
        }
    }

    fn transcript_line(&self, line: &Line) -> Value {
        json!({ "item": line.item, "speaker": line.speaker.name(), "cut": line.cut, "text": self.words(&line.text) })
    }
}

pub(crate) fn counted(counts: &Counts) -> Value {
    let Counts {
        caller_frames,
        filled_ms,
        dropped_uplink_ms,
        protected_ms,
        deltas,
        stale_bytes,
        sent_ms,
        barge_ins,
        truncations,
        unknown,
        malformed,
        lost_marks,
        errors,
        refused_outputs,
        unannounced,
        tool_loops,
        retries,
        peak_held_bytes,
        forgotten_items,
    } = counts;
    json!({
        "caller_frames": caller_frames,
        "filled_ms": filled_ms,
        "dropped_uplink_ms": dropped_uplink_ms,
        "protected_ms": protected_ms,
        "deltas": deltas,
        "stale_bytes": stale_bytes,
        "sent_ms": sent_ms,
        "barge_ins": barge_ins,
        "truncations": truncations,
        "unknown": unknown,
        "malformed": malformed,
        "lost_marks": lost_marks,
        "errors": errors,
        "refused_outputs": refused_outputs,
        "unannounced": unannounced,
        "tool_loops": tool_loops,
        "retries": retries,
        "peak_held_bytes": peak_held_bytes,
        "forgotten_items": forgotten_items,
    })
}

fn changed(leg: Side, change: &LegChange) -> What {
    let (change, code, why) = match change {
        LegChange::Open => ("open", None, None),
        LegChange::DialFailed { why } => ("dial_failed", None, Some(why)),
        LegChange::Closed { code, reason } => ("closed", *code, Some(reason)),
        LegChange::Lost { why } => ("lost", None, Some(why)),
        LegChange::Backpressured => ("clogged", None, None),
        LegChange::Writable => ("flowing", None, None),
        LegChange::Pong => ("pong", None, None),
        LegChange::Ping => ("ping", None, None),
    };
    let why = why.filter(|why| !why.is_empty()).map(|why| redact::secrets(why).into_owned());
    What::Leg { leg, change: change.into(), code, why }
}

const fn event_name(message: &FromTwilio) -> &'static str {
    match message {
        FromTwilio::Connected => "connected",
        FromTwilio::Start(_) => "start",
        FromTwilio::Media(_) => "media",
        FromTwilio::Dtmf { .. } => "dtmf",
        FromTwilio::Mark { .. } => "mark",
        FromTwilio::Stop => "stop",
        FromTwilio::Unknown { .. } => "unknown",
    }
}

/// The loudness of G.711, decibels below full scale.
fn level(companding: Companding, codes: &[u8]) -> i32 {
    const SILENT: i32 = -99;
    let mut samples = [0; FRAME_BYTES];
    let mut energy = 0_u64;
    for block in codes.chunks(FRAME_BYTES) {
        companding.decode_slice(block, &mut samples);
        energy += samples[..block.len()].iter().map(|s| u64::from(s.unsigned_abs()).pow(2)).sum::<u64>();
    }
    if energy == 0 {
        return SILENT;
    }
    let mean_square = energy as f64 / codes.len() as f64 / 32_768.0_f64.powi(2);
    ((10.0 * mean_square.log10()).round() as i32).max(SILENT)
}

fn hidden(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("({} bytes, not written)", text.len()) }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn to_line(value: &impl Serialize) -> String {
    // Nothing here has a key that is no string, the only thing this fails on.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::Config;
    use crate::call::event::EndReason;

    fn formatter(content: Content) -> (Formatter, Header) {
        let mut config = Config::default();
        config.openai.api_key = crate::base::secret::Secret::new("sk-secret");
        config.call.instructions = "secret instructions".into();
        config.call.greeting = Some("secret greeting".into());
        let beginning = config.server().beginning(1, 1_000, Duration::ZERO);
        let (formatter, header) = Formatter::begin(&beginning, content, Salt::known());
        assert!(!header.contains("sk-secret"), "a journal holds no key: {header}");
        assert!(header.starts_with(r#"{"journal":1,"#), "{header}");
        (formatter, serde_json::from_str(&header).unwrap())
    }

    fn of(formatter: &mut Formatter, note: &JournalEntry) -> What {
        let (line, _) = formatter.line(Duration::from_micros(1_234), note);
        let record: Record = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert_eq!(record.us, 1_234);
        record.what
    }

    fn caller(text: &str) -> JournalEntry {
        JournalEntry::Text(Leg::Caller, text.to_owned())
    }

    fn model(text: &str) -> JournalEntry {
        JournalEntry::Text(Leg::Model, text.to_owned())
    }

    const START: &str = r#"{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{"streamSid":"MZ1","callSid":"CA1",
        "customParameters":{"name":"secret Jane"},"mediaFormat":{"encoding":"audio/x-alaw","sampleRate":8000,"channels":1}}}"#;

    /// Everything people could have said, in every place it could be.
    fn telling() -> Vec<JournalEntry> {
        let said = Line {
            item: "i".into(),
            place: 1,
            speaker: crate::call::event::Speaker::Caller,
            text: "secret".into(),
            cut: false,
        };
        let transcript = vec![said];
        let (reason, detail) = (EndReason::Stopped, "stop".to_owned());
        let (lasted, counts) = (Duration::ZERO, Box::default());
        vec![
            caller(START),
            caller("not json: secret"),
            caller(r#"{"event":"dtmf","streamSid":"MZ1","dtmf":{"digit":"7"}}"#),
            model(r#"{"type":"response.output_audio_transcript.delta","item_id":"i","delta":"secret"}"#),
            model(
                r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i","transcript":"secret"}"#,
            ),
            model(
                r#"{"type":"response.output_item.done","response_id":"r","item":{"id":"i","type":"function_call","call_id":"c","name":"f","arguments":"secret"}}"#,
            ),
            model(r#"{"type":"response.output_text.done","item_id":"i","text":"secret"}"#),
            model(r#"{"type":"error","error":{"type":"t","code":"c","message":"secret"}}"#),
            model(r#"{"type":"future.event","words":"secret"}"#),
            model(
                r#"{"type":"response.done","response":{"id":"r","status":"completed","output":[{"type":"message","content":[{"transcript":"secret"}]}]}}"#,
            ),
            model("secret"),
            JournalEntry::Done(Transmit::Model(ClientEvent::UserText {
                item: "k".into(),
                text: "secret".into(),
            })),
            JournalEntry::Done(Transmit::Model(ClientEvent::ToolOutput {
                event_id: "output_1".into(),
                call_id: "c".into(),
                output: "secret".into(),
            })),
            JournalEntry::Done(Transmit::RunTool {
                call_id: "c".into(),
                name: "f".into(),
                arguments: "secret".into(),
            }),
            JournalEntry::ToolEnded(ToolResult { call_id: "c".into(), output: Err("secret".into()) }),
            JournalEntry::Happened(CallEvent::Ended { reason, detail, lasted, counts, transcript }),
        ]
    }

    #[test]
    fn hashes_say_nothing_of_what_was_said_and_full_says_it_all() {
        let (mut formatter, header) = formatter(Content::Hashes);
        assert_eq!(header.call.instructions, "(19 bytes, not written)");
        assert!(!format!("{header:?}").contains("secret"), "{header:?}");
        for note in telling() {
            let (line, _) = formatter.line(Duration::ZERO, &note);
            assert!(!line.contains("secret") && !line.contains(r#""7""#), "{line}");
        }
        let (mut formatter, header) = self::formatter(Content::Full);
        assert_eq!(header.call.greeting.as_deref(), Some("secret greeting"));
        for note in telling() {
            let (line, _) = formatter.line(Duration::ZERO, &note);
            assert!(line.contains("secret") || line.contains(r#""7""#), "{line}");
        }
    }

    #[test]
    fn a_hash_needs_the_secret_of_the_process() {
        let (one, other) = (Salt::secret(), Salt::secret());
        assert_eq!(one.sum(b"yes"), one.sum(b"yes"));
        assert_ne!(one.sum(b"yes"), one.sum(b"no"));
        assert_ne!(one.sum(b"yes"), other.sum(b"yes"), "a table made elsewhere is of no use");
        assert_eq!(format!("{one:?}"), "Salt(***)");
    }

    #[test]
    fn a_frame_tells_its_length_its_place_and_its_loudness() {
        let (mut formatter, _) = formatter(Content::Hashes);
        formatter.line(Duration::ZERO, &caller(&START.replace("alaw", "mulaw")));
        let frame = |code: u8| {
            let payload = BASE64.encode([code; 160]);
            caller(&format!(
                r#"{{"event":"media","sequenceNumber":"4","streamSid":"MZ1","media":{{"chunk":"2","timestamp":"143","payload":"{payload}"}}}}"#
            ))
        };
        for (code, dbfs) in [(0xFF, -99), (0x7F, -99), (0x80, 0), (0x90, -6)] {
            let What::Media { seq, chunk, ts, audio } = of(&mut formatter, &frame(code)) else { panic!() };
            assert_eq!((seq, chunk, ts), (Some(4), 2, Some(143)));
            assert_eq!((audio.len, audio.dbfs, audio.data), (160, Some(dbfs), None));
        }
    }

    #[test]
    fn messages_of_other_streams_and_other_worlds_are_told_apart() {
        let (mut formatter, _) = formatter(Content::Hashes);
        let (_, remarks) = formatter.line(Duration::ZERO, &caller(START));
        assert_eq!(remarks.call_sid.as_deref(), Some("CA1"));
        let stray =
            of(&mut formatter, &caller(r#"{"event":"media","streamSid":"MZ2","media":{"payload":""}}"#));
        assert!(matches!(stray, What::CallerOther { stray: true, .. }), "{stray:?}");
        let new = of(&mut formatter, &caller(r#"{"event":"hologram","streamSid":"MZ1"}"#));
        assert!(matches!(&new, What::CallerOther { event, stray: false, .. } if event == "hologram"));
        let bad = of(&mut formatter, &JournalEntry::Binary(Leg::Model, 9));
        assert!(matches!(bad, What::Malformed { leg: Side::Model, len: 9, binary: true, .. }));
        let hash =
            of(&mut formatter, &caller(r##"{"event":"dtmf","streamSid":"MZ1","dtmf":{"digit":"#"}}"##));
        assert_eq!(hash, What::Dtmf { key: Some('#'), ends: true });
    }

    #[test]
    fn an_event_of_the_model_keeps_its_ids_and_numbers() {
        let (mut formatter, _) = formatter(Content::Hashes);
        let read = |formatter: &mut Formatter, text: &str| {
            let what = of(formatter, &model(text));
            let What::Model(event) = what else { panic!("{what:?}") };
            *event
        };
        let delta = read(
            &mut formatter,
            r#"{"type":"response.output_audio.delta","response_id":"r","item_id":"i","content_index":1,"delta":"AAEC"}"#,
        );
        assert_eq!((delta.response.as_deref(), delta.item.as_deref()), (Some("r"), Some("i")));
        assert_eq!((delta.content, delta.audio.map(|audio| audio.len)), (Some(1), Some(3)));
        let created = read(&mut formatter, r#"{"type":"session.created","session":{"expires_at":4600}}"#);
        assert_eq!(created.expires_in_s, Some(3_600), "counted from the beginning of the call");
        let done = read(
            &mut formatter,
            r#"{"type":"response.done","response":{"id":"r","status":"failed","metadata":{"bridge_request":"3"},
                "status_details":{"error":{"type":"server_error","code":"rate_limit_exceeded"}},"usage":{"total_tokens":7}}}"#,
        );
        assert_eq!((done.status.as_deref(), done.request, done.tokens), (Some("failed"), Some(3), Some(7)));
        assert_eq!(done.reason.as_deref(), Some("rate_limit_exceeded"));
        let speech = read(
            &mut formatter,
            r#"{"type":"input_audio_buffer.speech_started","item_id":"u","audio_start_ms":900}"#,
        );
        assert_eq!((speech.start_ms, speech.item.as_deref()), (Some(900), Some("u")));
    }

    #[test]
    fn readers_pass_over_fields_of_the_future() {
        let line = r#"{"us":5,"is":"caller.mark","name":"m","new":{"a":1}}"#;
        let record: Record = serde_json::from_str(line).unwrap();
        assert_eq!(record, Record { us: 5, what: What::Mark { name: "m".into() } });
    }
}
