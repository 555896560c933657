//! OpenAI Realtime on the wire. Decoding is lenient, encoding is exact.
//!
//! The wire carries fields and events that no published type lists, and servers that speak nearly this protocol
//! carry more; so an unknown event is [`ServerEvent::Other`], unknown fields are ignored, and both the current
//! (GA) and the retired (beta) event names are read. What is written is one dialect, with no key the server
//! could refuse: one unknown key makes it discard a whole `session.update`.

use crate::audio::Format;
use crate::base::redact;
use crate::wire::base64;
use crate::wire::twilio::{object, shape_of};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;

/// Which event names are written to the model. Both are always understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// The current protocol.
    #[default]
    Ga,
    /// The retired beta names and flat session object.
    Beta,
}

/// Transcription of the caller's speech.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transcription {
    /// The transcription model.
    pub model: String,
    /// ISO 639-1 language; naming it keeps noise from flipping the language.
    pub language: Option<String>,
}

/// Server-side voice activity detection. Every field is always sent, because the server's defaults differ by model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vad {
    /// `server_vad` threshold, 0 to 1. Higher ignores more noise.
    pub threshold: f64,
    /// Audio kept from before the detected start, ms.
    pub prefix_padding_ms: u32,
    /// Silence that ends a turn, ms.
    pub silence_duration_ms: u32,
    /// The server answers each turn by itself.
    pub create_response: bool,
    /// The server cancels its response when the caller speaks.
    pub interrupt_response: bool,
}

impl Default for Vad {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            prefix_padding_ms: 300,
            silence_duration_ms: 500,
            create_response: true,
            interrupt_response: true,
        }
    }
}

/// A function the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionSpec {
    /// Its name.
    pub name: String,
    /// What it is for, told to the model.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
}

/// What a session is asked to be.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSettings {
    /// Both ways.
    pub format: Format,
    /// The system instructions.
    pub instructions: String,
    /// `None` leaves the server's default.
    pub voice: Option<String>,
    /// `near_field`, `far_field` or none.
    pub noise_reduction: Option<String>,
    /// Transcription of the caller; `None` switches it off.
    pub transcription: Option<Transcription>,
    /// Voice activity detection.
    pub vad: Vad,
    /// The functions.
    pub tools: Vec<FunctionSpec>,
}

/// An event from the model, with what the bridge uses of it.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerEvent {
    /// The session exists. `expires_at` is in Unix seconds.
    SessionCreated {
        /// Its id.
        id: Option<String>,
        /// When the server will end the session.
        expires_at: Option<i64>,
    },
    /// The session's effective settings, after an accepted `session.update`.
    SessionUpdated {
        /// What is in force.
        session: Box<Effective>,
        /// When the server will end the session.
        expires_at: Option<i64>,
    },
    /// Something went wrong; most errors leave the session usable.
    Error(ApiError),
    /// The caller began to speak, by the server's VAD.
    SpeechStarted {
        /// The future user item.
        item: Option<String>,
    },
    /// The caller's turn ended, by the server's VAD.
    SpeechStopped {
        /// The user item.
        item: Option<String>,
        /// Where in the audio it was sent, the silence that ended the turn included, ms.
        audio_end_ms: Option<u64>,
    },
    /// The caller's audio became an item.
    Committed {
        /// The user item.
        item: String,
        /// The item it follows.
        previous: Option<String>,
    },
    /// An item entered the conversation.
    ItemAdded {
        /// The item.
        item: String,
        /// The item it follows.
        previous: Option<String>,
        /// `user`, `assistant`, `system`; empty for items that are no message.
        role: String,
        /// The function call whose output it is, if it is one.
        answers: Option<String>,
    },
    /// A truncation was carried out.
    Truncated {
        /// The item.
        item: String,
    },
    /// The words of a user item.
    Transcribed {
        /// The user item.
        item: String,
        /// The final text.
        text: String,
    },
    /// A user item could not be transcribed; the turn itself is fine.
    TranscriptionFailed {
        /// The user item.
        item: String,
    },
    /// A response began.
    ResponseCreated {
        /// Its id.
        response: String,
        /// The number we gave the request, if it was ours.
        request: Option<u64>,
    },
    /// A response ended.
    ResponseDone(ResponseDone),
    /// Agent audio.
    AudioDelta {
        /// The response.
        response: String,
        /// The item.
        item: String,
        /// The content part.
        content: u32,
        /// Bytes in the session's output format.
        audio: Vec<u8>,
    },
    /// No more audio for this item. Says nothing about playback.
    AudioDone {
        /// The response.
        response: String,
        /// The item.
        item: String,
    },
    /// Words of the agent, ahead of the audio.
    AgentWords {
        /// The item.
        item: String,
        /// The next piece of text.
        delta: String,
    },
    /// All words of an agent item.
    AgentWordsDone {
        /// The item.
        item: String,
        /// The whole text.
        text: String,
    },
    /// An item of a response is complete; the only ones acted on are function calls.
    OutputItemDone {
        /// The response.
        response: String,
        /// The function call, when the item is one.
        call: Option<FunctionCall>,
    },
    /// An event with nothing the bridge acts on, known or not.
    Other {
        /// Its type.
        kind: String,
        /// The type is one of the protocol's.
        known: bool,
    },
}

/// Effective audio formats of a session, as wire names (`audio/pcm`, `audio/pcmu`, `audio/pcma`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats {
    /// Caller to model; `None` when the server did not echo it.
    pub input: Option<String>,
    /// Model to caller.
    pub output: Option<String>,
}

/// What of a session's effective settings is compared with what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective {
    /// Audio formats.
    pub formats: Formats,
    /// Voice activity detection.
    pub turns: TurnDetection,
    /// Names of the functions the model may call; `None` when the server did not echo any list.
    pub tools: Option<Vec<String>>,
}

/// How a session tells turns, as far as the server echoed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TurnDetection {
    /// The server did not echo it.
    #[default]
    NotEchoed,
    /// Not at all: `null`, or without a type.
    Off,
    /// By the server.
    By {
        /// `server_vad`, `semantic_vad`, ...; `None` when it was not echoed.
        kind: Option<String>,
        /// The server answers each turn by itself, if it says so.
        create_response: Option<bool>,
        /// It cancels its response when the caller speaks, if it says so.
        interrupt_response: Option<bool>,
    },
}

/// How turn detection is asked for.
pub(crate) const SERVER_VAD: &str = "server_vad";

/// The body of an `error` event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiError {
    /// `invalid_request_error`, `server_error`, ...
    pub kind: String,
    /// The code; for an error without one, that of its message where that is one of the service's usual ones.
    pub code: Option<String>,
    /// The field that is wrong.
    pub param: Option<String>,
    /// Which of our events it answers.
    pub event_id: Option<String>,
}

impl ApiError {
    /// The code, or the type when there is none.
    pub fn name(&self) -> &str {
        self.code.as_deref().unwrap_or(&self.kind)
    }

    /// The same, with the field that is wrong.
    pub fn in_words(&self) -> String {
        match &self.param {
            Some(param) => format!("{} at {param}", self.name()),
            None => self.name().to_owned(),
        }
    }
}

/// The body of `response.done`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseDone {
    /// The response.
    pub response: String,
    /// The number we gave the request, if it was ours.
    pub request: Option<u64>,
    /// `completed`, `cancelled`, `incomplete`, `failed`.
    pub status: String,
    /// Why it failed: the error's code or type.
    pub error: Option<String>,
    /// Function calls among its items.
    pub calls: Vec<FunctionCall>,
    /// Tokens used, when the server says so.
    pub usage: Option<Usage>,
}

/// Tokens of one response, as the server counted them; what it did not say is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of them.
    pub total: u64,
    /// Read, cached ones included.
    pub input: u64,
    /// Written.
    pub output: u64,
    /// Read as text.
    pub input_text: u64,
    /// Read as audio.
    pub input_audio: u64,
    /// Read again at a lower price.
    pub cached: u64,
    /// Cached text.
    pub cached_text: u64,
    /// Cached audio.
    pub cached_audio: u64,
    /// Written as text.
    pub output_text: u64,
    /// Written as audio.
    pub output_audio: u64,
}

/// A complete function call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCall {
    /// The item it is, when the server says so.
    pub item: Option<String>,
    /// Names the call; the output must carry it.
    pub call_id: String,
    /// The function.
    pub name: String,
    /// JSON text, as the model wrote it: may be padded, empty or invalid.
    pub arguments: String,
    /// The model finished writing it; an interrupted call is not to be run, and not to be answered.
    pub complete: bool,
}

/// A frame that is not an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a JSON object with a `type`.
    #[error("not a Realtime event: {0}")]
    Json(String),
    /// The event lacks a field it cannot do without.
    #[error("`{kind}` without `{field}`")]
    Missing {
        /// The event's type.
        kind: String,
        /// The field.
        field: &'static str,
    },
    /// The audio is not base64.
    #[error("`delta` of an audio event is not base64")]
    Audio,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    response_id: Cow<'a, str>,
    #[serde(borrow)]
    item_id: Cow<'a, str>,
    #[serde(default)]
    content_index: u32,
    #[serde(borrow)]
    delta: Cow<'a, str>,
}

const AUDIO_DELTA: &str = "response.output_audio.delta";
const BETA_AUDIO_DELTA: &str = "response.audio.delta";

/// Servers write the type first or nearly so. To look for it behind kilobytes of audio costs more than it saves.
const TYPE_WITHIN: usize = 100;

/// An audio delta, if the text begins like one and is one. Whatever is unusual about it is left to the longer way.
fn delta_at_once(text: &str) -> Option<Delta<'_>> {
    text.get(..TYPE_WITHIN)?.contains("audio.delta\"").then_some(())?;
    let delta: Delta<'_> = object(text).ok()?;
    matches!(delta.kind.as_ref(), AUDIO_DELTA | BETA_AUDIO_DELTA).then_some(delta)
}

impl Delta<'_> {
    fn read(self) -> Result<ServerEvent, Malformed> {
        let audio = base64::read(&self.delta).map_err(|_| Malformed::Audio)?;
        Ok(ServerEvent::AudioDelta {
            response: self.response_id.into_owned(),
            item: self.item_id.into_owned(),
            content: self.content_index,
            audio,
        })
    }
}

/// Reads one text frame from the model.
///
/// # Errors
/// [`Malformed`] when the frame is no JSON object with a `type`, or an event the bridge acts on lacks its core.
pub fn decode(text: &str) -> Result<ServerEvent, Malformed> {
    // The one event that comes by the dozen and carries kilobytes is read once and without an intermediate tree.
    if let Some(delta) = delta_at_once(text) {
        return delta.read();
    }
    let head: Head<'_> = object(text).map_err(|e| Malformed::Json(shape_of(&e)))?;
    let kind = head.kind.as_ref();
    match kind {
        AUDIO_DELTA | BETA_AUDIO_DELTA => {
            let delta: Delta<'_> = serde_json::from_str(text).map_err(|e| Malformed::Json(shape_of(&e)))?;
            delta.read()
        }
        known if acted_on(known) => {
            let value: Value = serde_json::from_str(text).map_err(|e| Malformed::Json(shape_of(&e)))?;
            decode_value(kind, &value)
        }
        other => Ok(ServerEvent::Other { kind: redact::name(other), known: is_known(other) }),
    }
}

fn acted_on(kind: &str) -> bool {
    matches!(
        kind,
        "session.created"
            | "session.updated"
            | "error"
            | "input_audio_buffer.speech_started"
            | "input_audio_buffer.speech_stopped"
            | "input_audio_buffer.committed"
            | "conversation.item.added"
            | "conversation.item.created"
            | "conversation.item.truncated"
            | "conversation.item.input_audio_transcription.completed"
            | "conversation.item.input_audio_transcription.failed"
            | "response.created"
            | "response.done"
            | "response.output_audio.done"
            | "response.audio.done"
            | "response.output_audio_transcript.delta"
            | "response.audio_transcript.delta"
            | "response.output_audio_transcript.done"
            | "response.audio_transcript.done"
            | "response.output_item.done"
    )
}

/// Types of the protocol that need no action here.
fn is_known(kind: &str) -> bool {
    matches!(
        kind,
        "conversation.created"
            | "conversation.item.done"
            | "conversation.item.deleted"
            | "conversation.item.retrieved"
            | "conversation.item.input_audio_transcription.delta"
            | "conversation.item.input_audio_transcription.segment"
            | "input_audio_buffer.cleared"
            | "input_audio_buffer.timeout_triggered"
            | "input_audio_buffer.dtmf_event_received"
            | "rate_limits.updated"
            | "response.output_item.added"
            | "response.content_part.added"
            | "response.content_part.done"
            | "response.output_text.delta"
            | "response.output_text.done"
            | "response.text.delta"
            | "response.text.done"
            | "response.function_call_arguments.delta"
            | "response.function_call_arguments.done"
            | "response.mcp_call_arguments.delta"
            | "response.mcp_call_arguments.done"
            | "response.mcp_call.in_progress"
            | "response.mcp_call.completed"
            | "response.mcp_call.failed"
            | "mcp_list_tools.in_progress"
            | "mcp_list_tools.completed"
            | "mcp_list_tools.failed"
            | "output_audio_buffer.started"
            | "output_audio_buffer.stopped"
            | "output_audio_buffer.cleared"
    )
}

fn decode_value(kind: &str, v: &Value) -> Result<ServerEvent, Malformed> {
    let missing = |field| Malformed::Missing { kind: kind.to_owned(), field };
    let text = |field: &'static str| string(&v[field]).ok_or_else(|| missing(field));
    Ok(match kind {
        "session.created" => ServerEvent::SessionCreated {
            id: string(&v["session"]["id"]),
            expires_at: v["session"]["expires_at"].as_i64(),
        },
        "session.updated" => ServerEvent::SessionUpdated {
            session: Box::new(effective(&v["session"])),
            expires_at: v["session"]["expires_at"].as_i64(),
        },
        "error" => ServerEvent::Error(api_error(&v["error"])),
        "input_audio_buffer.speech_started" => ServerEvent::SpeechStarted { item: string(&v["item_id"]) },
        "input_audio_buffer.speech_stopped" => ServerEvent::SpeechStopped {
            item: string(&v["item_id"]),
            audio_end_ms: v["audio_end_ms"].as_u64(),
        },
        "input_audio_buffer.committed" => {
            ServerEvent::Committed { item: text("item_id")?, previous: string(&v["previous_item_id"]) }
        }
        "conversation.item.added" | "conversation.item.created" => ServerEvent::ItemAdded {
            item: string(&v["item"]["id"]).ok_or_else(|| missing("item.id"))?,
            previous: string(&v["previous_item_id"]),
            role: string(&v["item"]["role"]).unwrap_or_default(),
            answers: (v["item"]["type"] == "function_call_output")
                .then(|| string(&v["item"]["call_id"]))
                .flatten(),
        },
        "conversation.item.truncated" => ServerEvent::Truncated { item: text("item_id")? },
        "conversation.item.input_audio_transcription.completed" => ServerEvent::Transcribed {
            item: text("item_id")?,
            text: string(&v["transcript"]).unwrap_or_default(),
        },
        "conversation.item.input_audio_transcription.failed" => {
            ServerEvent::TranscriptionFailed { item: text("item_id")? }
        }
        "response.created" => ServerEvent::ResponseCreated {
            response: string(&v["response"]["id"]).ok_or_else(|| missing("response.id"))?,
            request: request(&v["response"]),
        },
        "response.done" => {
            ServerEvent::ResponseDone(response_done(&v["response"]).ok_or_else(|| missing("response.id"))?)
        }
        "response.output_audio.done" | "response.audio.done" => {
            ServerEvent::AudioDone { response: text("response_id")?, item: text("item_id")? }
        }
        "response.output_audio_transcript.delta" | "response.audio_transcript.delta" => {
            ServerEvent::AgentWords { item: text("item_id")?, delta: string(&v["delta"]).unwrap_or_default() }
        }
        "response.output_audio_transcript.done" | "response.audio_transcript.done" => {
            ServerEvent::AgentWordsDone {
                item: text("item_id")?,
                text: string(&v["transcript"]).unwrap_or_default(),
            }
        }
        "response.output_item.done" => {
            ServerEvent::OutputItemDone { response: text("response_id")?, call: function_call(&v["item"]) }
        }
        other => ServerEvent::Other { kind: other.to_owned(), known: true },
    })
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn effective(session: &Value) -> Effective {
    // GA nests it under audio; beta and some that speak GA otherwise do not.
    let turns = session["audio"]["input"].get("turn_detection").or_else(|| session.get("turn_detection"));
    let tools = session.get("tools").map(|tools| {
        let name = |tool: &Value| string(&tool["name"]).or_else(|| string(&tool["function"]["name"]));
        tools.as_array().into_iter().flatten().filter_map(name).collect()
    });
    Effective { formats: formats(session), turns: turns.map(turn_detection).unwrap_or_default(), tools }
}

fn turn_detection(echo: &Value) -> TurnDetection {
    if echo.is_null() || echo.get("type").is_some_and(Value::is_null) {
        return TurnDetection::Off;
    }
    TurnDetection::By {
        kind: string(&echo["type"]),
        create_response: echo["create_response"].as_bool(),
        interrupt_response: echo["interrupt_response"].as_bool(),
    }
}

fn formats(session: &Value) -> Formats {
    // GA nests {"type": ...} under audio; beta has a flat word.
    let one = |ga: &Value, beta: &Value| {
        string(&ga["format"]["type"]).or_else(|| {
            Some(match beta.as_str()? {
                "pcm16" => "audio/pcm".to_owned(),
                "g711_ulaw" => "audio/pcmu".to_owned(),
                "g711_alaw" => "audio/pcma".to_owned(),
                other => other.to_owned(),
            })
        })
    };
    Formats {
        input: one(&session["audio"]["input"], &session["input_audio_format"]),
        output: one(&session["audio"]["output"], &session["output_audio_format"]),
    }
}

/// A word of the server's own that may be shown.
fn word(value: &Value) -> Option<String> {
    value.as_str().filter(|word| !word.is_empty()).map(redact::name)
}

fn request(response: &Value) -> Option<u64> {
    response["metadata"][REQUEST_KEY].as_str()?.parse().ok()
}

fn api_error(error: &Value) -> ApiError {
    ApiError {
        kind: word(&error["type"]).unwrap_or_else(|| "error".to_owned()),
        code: code(error),
        param: word(&error["param"]),
        event_id: string(&error["event_id"]),
    }
}

/// The code of an error. The message of one without is only looked at, never kept: it may quote a key.
fn code(error: &Value) -> Option<String> {
    /// What the service says, and what it calls it elsewhere.
    const USUAL: [(&str, &str); 7] = [
        ("API key provided", "invalid_api_key"),
        ("hit the maximum duration", "session_expired"),
        ("exceeded your current quota", "insufficient_quota"),
        ("already has an active response", "conversation_already_has_active_response"),
        ("no active response found", "response_cancel_not_active"),
        ("Tool call ID", "invalid_tool_call_id"),
        ("is already shorter than", "invalid_value"),
    ];
    word(&error["code"]).or_else(|| {
        let message = error["message"].as_str()?;
        let usual = USUAL.iter().find(|(words, _)| message.contains(words));
        usual.map(|(_, code)| (*code).to_owned())
    })
}

fn response_done(response: &Value) -> Option<ResponseDone> {
    let details = &response["status_details"]["error"];
    Some(ResponseDone {
        response: string(&response["id"])?,
        request: request(response),
        status: word(&response["status"]).unwrap_or_default(),
        error: code(details).or_else(|| word(&details["type"])),
        calls: response["output"].as_array().into_iter().flatten().filter_map(function_call).collect(),
        usage: usage(&response["usage"]),
    })
}

fn usage(usage: &Value) -> Option<Usage> {
    let total = usage["total_tokens"].as_u64()?;
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let (input, output) = (&usage["input_token_details"], &usage["output_token_details"]);
    let cached = &input["cached_tokens_details"];
    Some(Usage {
        total,
        input: count(&usage["input_tokens"]),
        output: count(&usage["output_tokens"]),
        input_text: count(&input["text_tokens"]),
        input_audio: count(&input["audio_tokens"]),
        cached: count(&input["cached_tokens"]),
        cached_text: count(&cached["text_tokens"]),
        cached_audio: count(&cached["audio_tokens"]),
        output_text: count(&output["text_tokens"]),
        output_audio: count(&output["audio_tokens"]),
    })
}

fn function_call(item: &Value) -> Option<FunctionCall> {
    (item["type"] == "function_call").then_some(())?;
    Some(FunctionCall {
        item: string(&item["id"]),
        call_id: string(&item["call_id"])?,
        name: string(&item["name"]).unwrap_or_default(),
        arguments: string(&item["arguments"]).unwrap_or_default(),
        complete: item["status"].as_str().is_none_or(|status| status == "completed"),
    })
}

/// The metadata key under which a request's number travels to its `response.created` and back.
const REQUEST_KEY: &str = "bridge_request";

/// An event to the model.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// The one complete `session.update` of a call.
    SessionUpdate {
        /// Names the event, so that a refusal can be matched.
        event_id: String,
        /// All that the update says.
        settings: Box<SessionSettings>,
    },
    /// Caller audio in the session's input format.
    AppendAudio {
        /// The bytes.
        audio: Vec<u8>,
    },
    /// Ends the turn that is going on, without asking for an answer to it.
    CommitAudio {
        /// Names the event, so that a refusal can be matched.
        event_id: String,
    },
    /// Asks for a response.
    CreateResponse {
        /// Names the event.
        event_id: String,
        /// Comes back in `response.created`.
        request: u64,
        /// Replaces the session's instructions for this response.
        instructions: Option<String>,
        /// The response may call functions.
        may_call: bool,
    },
    /// Stops a response.
    CancelResponse {
        /// The response; `None` means whichever is active.
        response: Option<String>,
    },
    /// Cuts an item at what was heard.
    Truncate {
        /// The item.
        item: String,
        /// The content part.
        content: u32,
        /// From the item's first sample, ms.
        audio_end_ms: u64,
    },
    /// A message from the user in text: the keypad.
    UserText {
        /// A name of ours, at most 32 characters.
        item: String,
        /// The words.
        text: String,
    },
    /// Answers a function call.
    ToolOutput {
        /// Names the event, so that a refusal can be matched.
        event_id: String,
        /// The call.
        call_id: String,
        /// Usually JSON text.
        output: String,
    },
    /// Something that was said or done in an earlier session of the call.
    History(HistoryItem),
}

/// An item of the conversation of an earlier session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HistoryItem {
    /// What the caller said or pressed.
    User(String),
    /// What the caller heard the agent say.
    Agent(String),
    /// A function call.
    Call {
        /// Names the call; its output follows.
        call_id: String,
        /// The function.
        name: String,
        /// JSON text, as the model wrote it.
        arguments: String,
    },
    /// The output of the call before it.
    Output {
        /// The call.
        call_id: String,
        /// Usually JSON text.
        output: String,
    },
}

impl HistoryItem {
    /// Bytes of text in it.
    pub fn text_len(&self) -> usize {
        match self {
            Self::User(text) | Self::Agent(text) => text.len(),
            Self::Call { call_id, name, arguments } => call_id.len() + name.len() + arguments.len(),
            Self::Output { call_id, output } => call_id.len() + output.len(),
        }
    }

    fn item(&self, dialect: Dialect) -> Value {
        // The server names them: an item's name is its own session's.
        match self {
            Self::User(text) => {
                json!({ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": text }] })
            }
            Self::Agent(text) => {
                let kind = match dialect {
                    Dialect::Ga => "output_text",
                    Dialect::Beta => "text",
                };
                json!({ "type": "message", "role": "assistant", "content": [{ "type": kind, "text": text }] })
            }
            Self::Call { call_id, name, arguments } => {
                json!({ "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments })
            }
            Self::Output { call_id, output } => {
                json!({ "type": "function_call_output", "call_id": call_id, "output": output })
            }
        }
    }
}

impl ClientEvent {
    /// The text frame for this event.
    pub fn encode(&self, dialect: Dialect) -> String {
        match self {
            Self::AppendAudio { audio } => {
                let mut text = String::with_capacity(60 + base64::text_len(audio.len()));
                text.push_str(r#"{"type":"input_audio_buffer.append","audio":""#);
                base64::write(audio, &mut text);
                text.push_str(r#""}"#);
                text
            }
            Self::SessionUpdate { event_id, settings } => json!({
                "type": "session.update",
                "event_id": event_id,
                "session": match dialect {
                    Dialect::Ga => session_ga(settings),
                    Dialect::Beta => session_beta(settings),
                },
            })
            .to_string(),
            Self::CommitAudio { event_id } => {
                json!({ "type": "input_audio_buffer.commit", "event_id": event_id }).to_string()
            }
            Self::CreateResponse { event_id, request, instructions, may_call } => {
                let mut response = json!({ "metadata": { REQUEST_KEY: request.to_string() } });
                if let Some(instructions) = instructions {
                    response["instructions"] = json!(instructions);
                }
                if !may_call {
                    response["tool_choice"] = json!("none");
                }
                json!({ "type": "response.create", "event_id": event_id, "response": response }).to_string()
            }
            Self::CancelResponse { response: Some(id) } => {
                json!({ "type": "response.cancel", "response_id": id }).to_string()
            }
            Self::CancelResponse { response: None } => r#"{"type":"response.cancel"}"#.to_owned(),
            Self::Truncate { item, content, audio_end_ms } => json!({
                "type": "conversation.item.truncate",
                "item_id": item,
                "content_index": content,
                "audio_end_ms": audio_end_ms,
            })
            .to_string(),
            Self::UserText { item, text } => json!({
                "type": "conversation.item.create",
                "item": {
                    "id": item,
                    "type": "message",
                    "role": "user",
                    "content": [{ "type": "input_text", "text": text }],
                },
            })
            .to_string(),
            Self::ToolOutput { event_id, call_id, output } => json!({
                "type": "conversation.item.create",
                "event_id": event_id,
                "item": { "type": "function_call_output", "call_id": call_id, "output": output },
            })
            .to_string(),
            Self::History(past) => {
                json!({ "type": "conversation.item.create", "item": past.item(dialect) }).to_string()
            }
        }
    }
}

fn tools(settings: &SessionSettings) -> Value {
    settings
        .tools
        .iter()
        .map(|t| json!({ "type": "function", "name": t.name, "description": t.description, "parameters": t.parameters }))
        .collect()
}

fn vad(settings: &SessionSettings) -> Value {
    let vad = &settings.vad;
    json!({
        "type": SERVER_VAD,
        "threshold": vad.threshold,
        "prefix_padding_ms": vad.prefix_padding_ms,
        "silence_duration_ms": vad.silence_duration_ms,
        "create_response": vad.create_response,
        "interrupt_response": vad.interrupt_response,
    })
}

fn transcription(settings: &SessionSettings) -> Value {
    settings.transcription.as_ref().map_or(Value::Null, |t| {
        let mut value = json!({ "model": t.model });
        if let Some(language) = &t.language {
            value["language"] = json!(language);
        }
        value
    })
}

fn session_ga(settings: &SessionSettings) -> Value {
    // PCM needs its rate spelled out, although the published types call it optional.
    let format = match settings.format {
        Format::Pcm24k => json!({ "type": "audio/pcm", "rate": 24_000 }),
        Format::Pcmu | Format::Pcma => json!({ "type": settings.format.wire_name() }),
    };
    let mut output = json!({ "format": format });
    if let Some(voice) = &settings.voice {
        output["voice"] = json!(voice);
    }
    json!({
        "type": "realtime",
        "instructions": settings.instructions,
        "output_modalities": ["audio"],
        "audio": {
            "input": {
                "format": format,
                "noise_reduction": settings.noise_reduction.as_ref().map(|kind| json!({ "type": kind })),
                "transcription": transcription(settings),
                "turn_detection": vad(settings),
            },
            "output": output,
        },
        "tools": tools(settings),
        "tool_choice": "auto",
    })
}

fn session_beta(settings: &SessionSettings) -> Value {
    let format = match settings.format {
        Format::Pcm24k => "pcm16",
        Format::Pcmu => "g711_ulaw",
        Format::Pcma => "g711_alaw",
    };
    let mut session = json!({
        "instructions": settings.instructions,
        "modalities": ["audio", "text"],
        "input_audio_format": format,
        "output_audio_format": format,
        "input_audio_transcription": transcription(settings),
        "turn_detection": vad(settings),
        "tools": tools(settings),
        "tool_choice": "auto",
    });
    if let Some(voice) = &settings.voice {
        session["voice"] = json!(voice);
    }
    if let Some(kind) = &settings.noise_reduction {
        session["input_audio_noise_reduction"] = json!({ "type": kind });
    }
    session
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> SessionSettings {
        SessionSettings {
            format: Format::default(),
            instructions: "Be brief.".into(),
            voice: None,
            noise_reduction: None,
            transcription: None,
            vad: Vad::default(),
            tools: Vec::new(),
        }
    }

    #[test]
    fn a_past_call_is_as_long_as_all_its_texts() {
        let call =
            HistoryItem::Call { call_id: "call_1".into(), name: "look".into(), arguments: "{}".into() };
        assert_eq!(call.text_len(), 6 + 4 + 2);
        assert_eq!(
            HistoryItem::Output { call_id: "call_1".into(), output: "shipped".into() }.text_len(),
            6 + 7
        );
        assert_eq!(
            [HistoryItem::User("abc".into()), HistoryItem::Agent("ab".into())].map(|past| past.text_len()),
            [3, 2]
        );
    }

    #[test]
    fn an_audio_delta_is_the_same_wherever_its_type_stands() {
        for kind in ["response.output_audio.delta", "response.audio.delta"] {
            let kind = format!(r#""type":"{kind}""#);
            let rest = r#""response_id":"r","item_id":"i","content_index":2,"delta":"/38=""#;
            let padding = format!(r#""new":"{}""#, "x".repeat(TYPE_WITHIN));
            for text in [
                format!("{{{kind},{rest},{padding}}}"),
                format!("{{{rest},{padding},{kind}}}"),
                format!("{{{padding},{kind},{rest}}}"),
                format!("{{{kind},{rest}}}"),
            ] {
                let delta = ServerEvent::AudioDelta {
                    response: "r".into(),
                    item: "i".into(),
                    content: 2,
                    audio: vec![0xFF, 0x7F],
                };
                assert_eq!(decode(&text), Ok(delta), "{text}");
            }
            let broken = format!(r#"{{{kind},{padding},"response_id":"r","delta":""}}"#);
            assert!(matches!(decode(&broken), Err(Malformed::Json(_))));
            let noise = format!(r#"{{{kind},{padding},"response_id":"r","item_id":"i","delta":"-"}}"#);
            assert_eq!(decode(&noise), Err(Malformed::Audio));
        }
        // Words that look like it in the beginning of something else.
        let other =
            format!(r#"{{"event_id":"audio.delta","type":"hologram","x":"{}"}}"#, "x".repeat(TYPE_WITHIN));
        assert_eq!(decode(&other), Ok(ServerEvent::Other { kind: "hologram".into(), known: false }));
    }

    #[test]
    fn beta_and_ga_names_read_the_same() {
        let ga = r#"{"type":"response.output_audio.delta","event_id":"e","response_id":"r","item_id":"i","output_index":0,"content_index":0,"delta":"AAE="}"#;
        let beta = ga.replace("output_audio", "audio");
        assert_eq!(decode(ga), decode(&beta));
        assert_eq!(
            decode(ga).unwrap(),
            ServerEvent::AudioDelta { response: "r".into(), item: "i".into(), content: 0, audio: vec![0, 1] }
        );
    }

    #[test]
    fn null_transcripts_and_string_details_do_not_hurt() {
        let text = r#"{"type":"response.done","response":{"id":"r","status":"failed","status_details":"unimplemented","output":[{"type":"message","id":"i","content":[{"type":"input_audio","transcript":null}]}],"usage":null}}"#;
        let ServerEvent::ResponseDone(done) = decode(text).unwrap() else { panic!("not a done") };
        assert_eq!((done.status.as_str(), done.error, done.usage), ("failed", None, None));
    }

    #[test]
    fn tokens_are_read_as_the_server_counts_them() {
        let text = r#"{"type":"response.done","response":{"id":"r","status":"completed","usage":{"total_tokens":253,"input_tokens":132,"output_tokens":121,"input_token_details":{"text_tokens":119,"audio_tokens":13,"image_tokens":0,"cached_tokens":64,"cached_tokens_details":{"text_tokens":60,"audio_tokens":4,"image_tokens":0}},"output_token_details":{"text_tokens":30,"audio_tokens":91}}}}"#;
        let ServerEvent::ResponseDone(done) = decode(text).unwrap() else { panic!("not a done") };
        let want = Usage {
            total: 253,
            input: 132,
            output: 121,
            input_text: 119,
            input_audio: 13,
            cached: 64,
            cached_text: 60,
            cached_audio: 4,
            output_text: 30,
            output_audio: 91,
        };
        assert_eq!(done.usage, Some(want));
    }

    #[test]
    fn unknown_types_are_told_from_known_ones() {
        assert_eq!(
            decode(r#"{"type":"session.hologram"}"#).unwrap(),
            ServerEvent::Other { kind: "session.hologram".into(), known: false }
        );
        assert_eq!(
            decode(r#"{"type":"rate_limits.updated","rate_limits":[]}"#).unwrap(),
            ServerEvent::Other { kind: "rate_limits.updated".into(), known: true }
        );
    }

    #[test]
    fn malformed_events_are_named_and_never_quoted() {
        for (text, want) in [
            ("a secret", "not a Realtime event"),
            (r#"["response.audio.delta","r","i",0,"AAE="]"#, "not a Realtime event"),
            (r#"{"secret":1}"#, "not a Realtime event"),
            (
                r#"{"type":"response.audio.delta","response_id":"r","item_id":"i","content_index":"a secret","delta":""}"#,
                "not a Realtime event",
            ),
            (r#"{"type":"response.done","response":{"secret":1}}"#, "`response.done` without `response.id`"),
            (
                r#"{"type":"response.audio.delta","response_id":"r","item_id":"i","delta":"a secret"}"#,
                "`delta` of an",
            ),
        ] {
            let error = decode(text).unwrap_err().to_string();
            assert!(error.starts_with(want), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_session_update_says_every_vad_field_and_the_pcm_rate() {
        let event = ClientEvent::SessionUpdate { event_id: "c1".into(), settings: Box::new(asked()) };
        let v: Value = serde_json::from_str(&event.encode(Dialect::Ga)).unwrap();
        let input = &v["session"]["audio"]["input"];
        assert_eq!(input["format"], json!({ "type": "audio/pcm", "rate": 24_000 }));
        assert_eq!(input["turn_detection"].as_object().unwrap().len(), 6);
        assert!(input["transcription"].is_null());
        assert!(v["session"]["audio"]["output"].get("voice").is_none(), "an unset voice is absent, not null");
    }

    #[test]
    fn g711_is_named_in_both_dialects_and_read_back() {
        for (format, ga, beta) in
            [(Format::Pcmu, "audio/pcmu", "g711_ulaw"), (Format::Pcma, "audio/pcma", "g711_alaw")]
        {
            let settings = Box::new(SessionSettings { format, ..asked() });
            let event = ClientEvent::SessionUpdate { event_id: "c1".into(), settings };
            for dialect in [Dialect::Ga, Dialect::Beta] {
                let v: Value = serde_json::from_str(&event.encode(dialect)).unwrap();
                match dialect {
                    Dialect::Ga => {
                        assert_eq!(v["session"]["audio"]["input"]["format"], json!({ "type": ga }));
                        assert_eq!(v["session"]["audio"]["output"]["format"], json!({ "type": ga }));
                    }
                    Dialect::Beta => {
                        assert_eq!(v["session"]["input_audio_format"], beta);
                        assert_eq!(v["session"]["output_audio_format"], beta);
                    }
                }
                let echoed = formats(&v["session"]);
                assert_eq!(echoed.input.as_deref(), Some(format.wire_name()));
                assert_eq!(echoed.output.as_deref(), Some(format.wire_name()));
            }
        }
    }

    #[test]
    fn what_is_asked_for_is_read_back_in_both_dialects() {
        let tool = |name: &str| FunctionSpec {
            name: name.into(),
            description: String::new(),
            parameters: json!({}),
        };
        let mut settings = SessionSettings { tools: vec![tool("one"), tool("two")], ..asked() };
        settings.vad.create_response = false;
        let event = ClientEvent::SessionUpdate { event_id: "c1".into(), settings: Box::new(settings) };
        for dialect in [Dialect::Ga, Dialect::Beta] {
            let v: Value = serde_json::from_str(&event.encode(dialect)).unwrap();
            let Effective { turns, tools, .. } = effective(&v["session"]);
            let asked = TurnDetection::By {
                kind: Some("server_vad".into()),
                create_response: Some(false),
                interrupt_response: Some(true),
            };
            assert_eq!(turns, asked);
            assert_eq!(tools, Some(vec!["one".to_owned(), "two".to_owned()]));
        }
    }

    #[test]
    fn what_a_server_does_not_echo_is_told_from_what_it_switched_off() {
        let turns = |session: Value| effective(&session).turns;
        let nested = |echo: Value| json!({ "audio": { "input": { "turn_detection": echo } } });
        assert_eq!(turns(json!({ "audio": { "input": {} } })), TurnDetection::NotEchoed);
        assert_eq!(turns(nested(Value::Null)), TurnDetection::Off);
        assert_eq!(turns(json!({ "turn_detection": { "type": null } })), TurnDetection::Off);
        let bare = TurnDetection::By { kind: None, create_response: None, interrupt_response: None };
        assert_eq!(turns(nested(json!({ "create_response": null }))), bare);
        let tools = |session: Value| effective(&session).tools;
        assert_eq!(tools(json!({})), None);
        assert_eq!(tools(json!({ "tools": null })), Some(vec![]));
        let listed =
            json!({ "tools": [{ "type": "function", "function": { "name": "one" } }, { "type": "mcp" }] });
        assert_eq!(tools(listed), Some(vec!["one".to_owned()]));
    }

    #[test]
    fn a_request_number_comes_back_in_response_created() {
        let text = r#"{"type":"response.created","response":{"id":"r","metadata":{"bridge_request":"7"}}}"#;
        assert_eq!(
            decode(text).unwrap(),
            ServerEvent::ResponseCreated { response: "r".into(), request: Some(7) }
        );
    }
}
