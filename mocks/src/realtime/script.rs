//! What a scripted model does, as data: how it is reached, how it opens, what it answers, how it misbehaves.
//!
//! Every field has a default, so a script names only what is unusual about it, and only that is written back
//! when a script is serialised. `ModelScript::default()` is a well-behaved model that answers every turn with
//! one and a half seconds of speech.

use crate::sound::Sound;
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

/// A struct whose fields all have defaults and whose serialised form leaves the defaults out.
macro_rules! knobs {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let usual = Self::default();
                let mut map = serializer.serialize_map(None)?;
                $(if self.$field != usual.$field {
                    map.serialize_entry(stringify!($field), &self.$field)?;
                })*
                map.end()
            }
        }
    };
}

knobs! {
    /// One model connection, from the dial to the end.
    pub struct ModelScript {
        /// What happens when the bridge dials. Played by the backend, before any frame exists.
        pub dial: Dial = Dial::Accepts,
        /// Extra milliseconds before the dial has its outcome. Played by the backend.
        pub dial_ms: u64 = 0,
        /// What comes first on the open WebSocket.
        pub opening: Opening = Opening::Normal,
        /// Milliseconds from the open WebSocket to `session.created`; 3 to 9 in the field.
        pub created_after_ms: u64 = 6,
        /// Milliseconds from the open WebSocket to the refusal of its key or model; in the field it leaves with the
        /// answer to the upgrade.
        pub refused_after_ms: u64 = 0,
        /// Milliseconds from `session.update` to `session.updated` or its refusal.
        pub updated_after_ms: u64 = 10,
        /// `session.update` is never answered.
        pub never_updates: bool = false,
        /// Every `session.update` is refused with this error code and changes nothing.
        pub refuses_update: Option<String> = None,
        /// The session takes and echoes this audio format in both directions, whatever was asked for:
        /// `audio/pcm`, `audio/pcmu` or `audio/pcma`.
        pub echoes_format: Option<AudioFormat> = None,
        /// The session takes and echoes something else than was asked for.
        pub echoes: Option<Echoes> = None,
        /// Closes with a close frame, counted from the open WebSocket.
        pub close_after: Option<CloseAfter> = None,
        /// Drops the connection without a close frame, ms from the open WebSocket.
        pub drops_after_ms: Option<u64> = None,
        /// Sends and answers nothing any more (no pong, no close) while the socket stays open; ms from the
        /// open WebSocket.
        pub goes_dark_after_ms: Option<u64> = None,
        /// Session length, seconds from the open WebSocket; 60 minutes when absent.
        pub expires_after_s: Option<u64> = None,
        /// The end of the session is announced by an `error` event before the close.
        pub expiry_error_frame: bool = true,
        /// Which generation of event names and shapes is spoken.
        pub dialect: Dialect = Dialect::Ga,
        /// `silence_duration_ms` of a session that did not say; when absent that of the model: 200 for
        /// `gpt-realtime` and `gpt-realtime-mini`, 500 for the others.
        pub default_silence_ms: Option<u64> = None,
        /// The `silence_duration_ms` that is asked for is echoed, but the model keeps to its default.
        pub keeps_default_silence: bool = false,
        /// `prefix_padding_ms` of a session that did not say.
        pub default_prefix_ms: u64 = 300,
        /// A bearer token that is refused. A missing or empty token is always refused.
        pub bad_key: Option<String> = None,
        /// What the model does, response by response, however each came about; afterwards the default turn.
        pub turns: Vec<Turn> = Vec::new(),
        /// What becomes of the transcription of each user turn; afterwards the default.
        pub transcription: Vec<Transcription> = Vec::new(),
        /// How the model hears.
        pub vad: Vad = Vad::default(),
        /// Things that happen by the clock.
        pub events: Vec<TimedEvent> = Vec::new(),
        /// Milliseconds between pings; 0 for none.
        pub ping_ms: u64 = 20_260,
        /// A function's output is refused with `invalid_tool_call_id` when it comes before the `response.done` of the
        /// response that made the call, although the call is known; the model then makes the call again.
        pub refuses_early_outputs: bool = false,
        /// Functions are called although `tool_choice` says `none`.
        pub ignores_tool_choice: bool = false,
        /// What is different on the second connection of a call, on the third, and so on.
        pub again: Vec<ReconnectScript> = Vec::new(),
    }
}

knobs! {
    /// What is different on a further connection of a call. What is absent is as on the first. Played by the backend,
    /// which knows the call before the bridge dials for it.
    pub struct ReconnectScript {
        /// What happens when the bridge dials.
        pub dial: Option<Dial> = None,
        /// Extra milliseconds before the dial has its outcome.
        pub dial_ms: Option<u64> = None,
        /// What comes first on the open WebSocket.
        pub opening: Option<Opening> = None,
        /// Milliseconds from the open WebSocket to the first frame.
        pub created_after_ms: Option<u64> = None,
        /// Milliseconds from `session.update` to `session.updated` or its refusal.
        pub updated_after_ms: Option<u64> = None,
        /// `session.update` is never answered.
        pub never_updates: Option<bool> = None,
        /// Every `session.update` is refused with this error code and changes nothing.
        pub refuses_update: Option<String> = None,
        /// The audio format the session takes and echoes, whatever was asked for.
        pub echoes_format: Option<AudioFormat> = None,
        /// Closes with a close frame, counted from the open WebSocket.
        pub close_after: Option<CloseAfter> = None,
        /// Drops the connection without a close frame, ms from the open WebSocket.
        pub drops_after_ms: Option<u64> = None,
        /// Sends and answers nothing any more while the socket stays open; ms from the open WebSocket.
        pub goes_dark_after_ms: Option<u64> = None,
        /// Session length, seconds.
        pub expires_after_s: Option<u64> = None,
        /// The end of the session is announced by an `error` event before the close.
        pub expiry_error_frame: Option<bool> = None,
    }
}

/// What happens when the bridge dials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dial {
    /// The connection is made and upgraded.
    #[default]
    Accepts,
    /// TCP refuses the connection.
    Refuses,
    /// TCP never answers.
    Hangs,
    /// TCP connects, the upgrade request is never answered.
    HangsInUpgrade,
    /// The upgrade is answered with this HTTP status.
    AnswersHttp(u16),
}

/// What comes first on the open WebSocket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// `session.created`.
    #[default]
    Normal,
    /// An `error` event, then a close.
    ErrorThenClose(Refusal),
    /// The refusal of a bad API key: `invalid_api_key`, close 3000.
    BadKey,
    /// The refusal of a retired or forbidden model: `model_not_found`, close 4004.
    UnknownModel,
    /// Nothing, ever.
    Silent,
}

/// An `error` event followed by a close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// `error.type`.
    #[serde(rename = "type", default = "invalid_request")]
    pub kind: String,
    /// `error.code`; null on the wire when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// `error.message`.
    #[serde(default)]
    pub message: String,
    /// The close code.
    pub close: u16,
    /// The close reason; `<type>.<code>` when absent, as the service forms it, or the type alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn invalid_request() -> String {
    "invalid_request_error".to_owned()
}

/// A close frame, some time later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseAfter {
    /// Milliseconds from the moment the field that holds this names.
    pub ms: u64,
    /// The close code.
    #[serde(default = "internal_error")]
    pub code: u16,
    /// The close reason.
    #[serde(default)]
    pub reason: String,
}

const fn internal_error() -> u16 {
    1011
}

/// An audio format of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AudioFormat {
    /// 16-bit little-endian mono at 24 kHz.
    #[serde(rename = "audio/pcm")]
    Pcm,
    /// G.711 mu-law at 8 kHz.
    #[serde(rename = "audio/pcmu")]
    Pcmu,
    /// G.711 A-law at 8 kHz.
    #[serde(rename = "audio/pcma")]
    Pcma,
}

/// What a session takes and echoes otherwise than it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Echoes {
    /// `turn_detection` is `null`: no turn will ever end.
    NoTurnDetection,
    /// `turn_detection.type` is `semantic_vad`.
    SemanticVad,
    /// `create_response` is the opposite.
    OtherAnswers,
    /// `interrupt_response` is the opposite.
    OtherInterruptions,
    /// There are no functions.
    NoTools,
    /// Turn detection and functions are taken and not echoed, as by servers that speak nearly this protocol.
    Less,
}

/// Which generation of event names and shapes is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// Today's names: `response.output_audio.delta`, a nested session with a `type`.
    #[default]
    Ga,
    /// The retired names: `response.audio.delta`, `conversation.item.created`, a flat session.
    Beta,
}

knobs! {
    /// What the model does for one response.
    pub struct Turn {
        /// Milliseconds of speech; 1,500 when absent, or none when the turn calls functions. 0 for none.
        pub answers: Option<u64> = None,
        /// A golden clip ([`golden::clips`]) is said instead of the tape, in one message; replaces `answers` and
        /// `items`.
        #[serde(deserialize_with = "crate::clip::some_name")]
        pub says: Option<String> = None,
        /// Recorded audio that the messages begin with, in the format of the session, one for each message. What
        /// `answers` or `items` ask for beyond it comes from the tape; a recording is never cut short.
        pub recorded: Vec<Sound> = Vec::new(),
        /// Audio is generated this many times faster than it plays.
        pub speed: f64 = 5.0,
        /// From `response.created` to the first audio (or function call) delta.
        pub first_audio_ms: u64 = 354,
        /// From the end of speech or `response.create` to `response.created`; 1 to 12 in the field.
        pub created_ms: u64 = 6,
        /// Audio per delta.
        pub delta_ms: u64 = 250,
        /// Audio of each of the first three deltas, if it is not that of the others.
        pub first_delta_ms: Option<u64> = None,
        /// So much audio of each message comes at once; what follows is generated at the speed.
        pub burst_ms: u64 = 750,
        /// Exact bytes per delta instead, odd numbers allowed.
        pub delta_bytes: Option<usize> = None,
        /// All audio of an item in one delta.
        pub one_delta: bool = false,
        /// Audio without words at the end of each message: the words are spread over the speech before it.
        pub trailing_silence_ms: u64 = 0,
        /// All words of a message are out when so many of its audio deltas have gone out; a third of them when absent,
        /// and no more than 8, as in the field.
        pub words_out_after: Option<usize> = None,
        /// Generation pauses once.
        pub stall: Option<Stall> = None,
        /// Several messages in one response, ms of speech each; replaces `answers`.
        pub items: Vec<u64> = Vec::new(),
        /// At most this many audio deltas are still sent after a cancel.
        pub late_deltas: u32 = 1,
        /// From a cancel to the first of them, from one to the next, and to what closes the items.
        pub late_gap_ms: u64 = 4,
        /// What becomes of the open items of a cancelled response.
        pub cancelled_items: CancelledItems = CancelledItems::Incomplete,
        /// Cancelled before `response.created`, the response ends with `response.done` alone.
        pub uncreated: bool = false,
        /// `rate_limits.updated` follows the response; in the field it does not follow every one.
        pub rate_limits: bool = true,
        /// `response.done` of a cancelled response comes this much later, even past the next
        /// `response.created`.
        pub late_done_ms: u64 = 0,
        /// How the response ends when it is not cancelled.
        pub status: Outcome = Outcome::Completed,
        /// Drops the connection without a close frame, ms from `response.created`.
        pub drop_after_ms: Option<u64> = None,
        /// Closes the connection, counted from `response.created`.
        pub close_after: Option<CloseAfter> = None,
        /// An `error` event in the middle of the audio.
        pub error: Option<ErrorSpec> = None,
        /// Completes without any item.
        pub silent: bool = false,
        /// Answers with text instead of audio.
        pub text_only: bool = false,
        /// Function calls, after the speech if there is any.
        pub calls: Vec<Call> = Vec::new(),
        /// Each function call appears twice, in two items with one call id.
        pub duplicate_call: bool = false,
        /// What is said; when absent the words of the clip, or else words in proportion to the audio.
        pub transcript: Option<String> = None,
        /// The request is swallowed: no `response.created`, no error.
        pub never_created: bool = false,
        /// `response.created` comes, and nothing after it until someone cancels.
        pub never_audio: bool = false,
        /// The response ends, as `status` says, without having begun: `response.done` comes and no `response.created`.
        pub unannounced: bool = false,
        /// The turn is played so many times, one after another.
        pub repeat: u32 = 1,
        /// So many outputs of its function calls are refused with `invalid_tool_call_id`, although the calls are known. A
        /// model whose output was refused makes the call again, under a new id, in its next response.
        pub refuses_outputs: u32 = 0,
        /// From the end of the last item to `response.done`, ms.
        pub done_after_ms: u64 = 0,
    }
}

/// The longest message; nothing outlasts a session.
pub(super) const MESSAGE_MS_MAX: u64 = 3_600_000;

impl Turn {
    /// A turn of `ms` milliseconds of speech.
    pub fn answers(ms: u64) -> Self {
        Self { answers: Some(ms), ..Self::default() }
    }

    /// A turn that says a golden clip. A name that does not exist says nothing.
    pub fn says(clip: &str) -> Self {
        Self { says: Some(clip.to_owned()), ..Self::default() }
    }

    /// Milliseconds of speech of each message of the turn.
    pub fn messages(&self) -> Vec<u64> {
        if let Some(name) = &self.says {
            return golden::clip(name).iter().map(golden::Clip::duration_ms).collect();
        }
        if !self.items.is_empty() {
            return self.items.iter().map(|&ms| ms.min(MESSAGE_MS_MAX)).collect();
        }
        match self.answers {
            Some(0) => Vec::new(),
            Some(ms) => vec![ms.min(MESSAGE_MS_MAX)],
            None if self.calls.is_empty() => vec![1_500],
            None => Vec::new(),
        }
    }
}

/// What becomes of the open items of a cancelled response. No recording shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelledItems {
    /// They are closed, and are incomplete.
    #[default]
    Incomplete,
    /// They are closed, and what was said is complete as far as it goes. A function call is not.
    Completed,
    /// Nothing closes them but `response.done`.
    LeftOpen,
}

/// A pause of the generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// After this much audio of the response, ms.
    pub after_ms: u64,
    /// For this long, ms.
    pub for_ms: u64,
}

/// How a response ends when it is not cancelled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All went well.
    #[default]
    Completed,
    /// Fails 50 ms after `response.created`, with no items.
    Failed(ErrorSpec),
    /// The audio stops short, for this reason: `max_output_tokens` or `content_filter`.
    Incomplete(String),
}

/// The contents of an `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorSpec {
    /// `type`.
    #[serde(rename = "type", default = "server_error")]
    pub kind: String,
    /// `code`; null on the wire when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// `message`.
    #[serde(default = "server_error_text")]
    pub message: String,
}

impl Default for ErrorSpec {
    fn default() -> Self {
        Self { kind: server_error(), code: None, message: server_error_text() }
    }
}

fn server_error() -> String {
    "server_error".to_owned()
}

fn server_error_text() -> String {
    "The server had an error while processing your request.".to_owned()
}

/// A function call of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The function.
    pub name: String,
    /// The arguments, sent exactly as given: padded, invalid or empty text included.
    #[serde(default = "no_arguments")]
    pub arguments: String,
    /// The call id; made up when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

fn no_arguments() -> String {
    "{}".to_owned()
}

knobs! {
    /// The transcription of one user turn. Nothing is sent unless the session turned transcription on.
    pub struct Transcription {
        /// When it comes, or how it fails.
        pub when: When = When::Normal,
        /// The text; words in proportion to the audio when absent.
        pub text: Option<String> = None,
    }
}

/// When a transcription comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// 500 ms after the commit.
    #[default]
    Normal,
    /// Never.
    Never,
    /// It fails, 500 ms after the commit.
    Fails,
    /// This many ms after the commit.
    Late(u64),
    /// Together with the commit, before any response to it.
    BeforeResponse,
}

knobs! {
    /// How the model hears: energy in 20 ms windows of appended audio.
    pub struct Vad {
        /// Level that counts as speech, dB below full scale.
        pub threshold_dbfs: f64 = -42.0,
        /// Milliseconds from the append that proves a decision to its event.
        pub vad_latency_ms: u64 = 40,
        /// Audio above the threshold that makes a start.
        pub onset_ms: u64 = 40,
        /// `speech_started` comes twice in each utterance, with two item ids.
        pub extra_speech_started: bool = false,
        /// `speech_stopped` is left out: that a turn has ended is told by its commit alone.
        pub no_speech_stopped: bool = false,
    }
}

/// Something that happens by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimedEvent {
    /// Milliseconds after the first `session.updated`.
    pub at_ms: u64,
    /// What happens.
    pub does: Happening,
}

/// What can happen by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    /// An event whose type does not exist yet.
    UnknownEvent,
    /// A text frame that is not JSON.
    Malformed,
    /// A binary frame.
    Binary,
    /// An `error` event without a cause.
    Error(ErrorSpec),
    /// The detector takes the next `for_ms` milliseconds of appended audio for speech, whatever is in it.
    FalseSpeech {
        /// Milliseconds of audio.
        for_ms: u64,
    },
    /// `rate_limits.updated` out of turn.
    RateLimits,
    /// A ping out of turn.
    Ping,
    /// An audible audio delta of an unknown response.
    DeltaForUnknownResponse,
    /// The end of an unknown response.
    DoneForUnknownResponse,
    /// From now on every event carries fields that do not exist yet.
    ExtraFields,
    /// A close frame.
    Close {
        /// The close code.
        code: u16,
        /// The close reason.
        #[serde(default)]
        reason: String,
    },
}

impl ModelScript {
    /// The script as the `n`-th connection of a call plays it, counted from zero.
    pub fn of_connection(&self, n: usize) -> Self {
        let mut script = self.clone();
        let again = n.checked_sub(1).and_then(|n| self.again.get(n)).cloned().unwrap_or_default();
        script.dial = again.dial.unwrap_or(script.dial);
        script.dial_ms = again.dial_ms.unwrap_or(script.dial_ms);
        script.opening = again.opening.unwrap_or(script.opening);
        script.created_after_ms = again.created_after_ms.unwrap_or(script.created_after_ms);
        script.updated_after_ms = again.updated_after_ms.unwrap_or(script.updated_after_ms);
        script.never_updates = again.never_updates.unwrap_or(script.never_updates);
        script.refuses_update = again.refuses_update.or(script.refuses_update);
        script.echoes_format = again.echoes_format.or(script.echoes_format);
        script.close_after = again.close_after.or(script.close_after);
        script.drops_after_ms = again.drops_after_ms.or(script.drops_after_ms);
        script.goes_dark_after_ms = again.goes_dark_after_ms.or(script.goes_dark_after_ms);
        script.expires_after_s = again.expires_after_s.or(script.expires_after_s);
        script.expiry_error_frame = again.expiry_error_frame.unwrap_or(script.expiry_error_frame);
        script
    }

    /// What the model does for the `n`-th response, counted from zero.
    pub fn turn(&self, n: usize) -> Turn {
        let mut left = n;
        let found = self.turns.iter().find(|turn| {
            let times = turn.repeat as usize;
            let found = left < times;
            left = left.saturating_sub(times);
            found
        });
        found.cloned().unwrap_or_default()
    }

    /// Reads a script from TOML text.
    ///
    /// # Errors
    /// When the text is not TOML, or names a field or value that does not exist; the message says where.
    pub fn from_toml(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_script() {
        assert_eq!(ModelScript::from_toml("").unwrap(), ModelScript::default());
    }

    #[test]
    fn a_script_reads_as_it_is_written() {
        let script = ModelScript::from_toml(
            r#"
            dial = { answers_http = 503 }
            opening = { error_then_close = { code = "insufficient_permissions", close = 3000 } }
            echoes_format = "audio/pcm"
            dialect = "beta"
            vad = { threshold_dbfs = -36.0 }

            [[turns]]
            answers = 4000
            speed = 1.0
            stall = { after_ms = 500, for_ms = 2000 }

            [[turns]]
            status = { failed = { type = "server_error" } }
            says = "agent_answer"

            [[turns]]
            calls = [{ name = "lookup_order", arguments = "{\"order\":1}" }]

            [[transcription]]
            when = { late = 4000 }
            text = ""

            [[events]]
            at_ms = 900
            does = "malformed"

            [[events]]
            at_ms = 1000
            does = { false_speech = { for_ms = 300 } }
            "#,
        )
        .unwrap();
        assert_eq!(script.dial, Dial::AnswersHttp(503));
        assert_eq!(script.turns[0].messages(), [4_000]);
        assert_eq!(script.turns[1].messages(), [golden::clip("agent_answer").unwrap().duration_ms()]);
        assert_eq!(script.turns[2].messages(), [0; 0]);
        assert_eq!(script.events[1].does, Happening::FalseSpeech { for_ms: 300 });

        let written = toml::to_string(&script).unwrap();
        assert_eq!(ModelScript::from_toml(&written).unwrap(), script);
        assert!(!written.contains("created_after_ms"), "defaults are left out:\n{written}");
    }

    #[test]
    fn a_further_connection_differs_where_the_script_says_so() {
        let script = ModelScript::from_toml(
            "expires_after_s = 20\ndial_ms = 7\nagain = [{ dial = \"refuses\" }, { expires_after_s = 9 }]",
        )
        .unwrap();
        assert_eq!(script.of_connection(0), script);
        let [second, third, fourth] = [1, 2, 3].map(|n| script.of_connection(n));
        assert_eq!((second.dial, second.dial_ms, second.expires_after_s), (Dial::Refuses, 7, Some(20)));
        assert_eq!((third.dial, third.expires_after_s), (Dial::Accepts, Some(9)));
        assert_eq!(fourth, script);
    }

    #[test]
    fn a_further_connection_can_differ_in_all_that_is_offered() {
        let again = ReconnectScript {
            dial: Some(Dial::Hangs),
            dial_ms: Some(1),
            opening: Some(Opening::Silent),
            created_after_ms: Some(2),
            updated_after_ms: Some(3),
            never_updates: Some(true),
            refuses_update: Some("invalid_value".into()),
            echoes_format: Some(AudioFormat::Pcma),
            close_after: Some(CloseAfter { ms: 4, code: 1_011, reason: "bye".into() }),
            drops_after_ms: Some(5),
            goes_dark_after_ms: Some(6),
            expires_after_s: Some(7),
            expiry_error_frame: Some(false),
        };
        let table = |written: &str| written.parse::<toml::Table>().unwrap();
        let offered = table(&toml::to_string(&again).unwrap());
        let script = ModelScript { again: vec![again], ..ModelScript::default() };
        let played = table(&toml::to_string(&script.of_connection(1)).unwrap());
        assert_eq!(offered.len(), 13);
        for (key, value) in offered {
            assert_eq!(played.get(&key), Some(&value), "{key}");
        }
    }

    #[test]
    fn a_misspelt_knob_is_refused_by_name() {
        let error = ModelScript::from_toml("[[turns]]\nanswer = 3").unwrap_err().to_string();
        assert!(error.contains("answer"), "{error}");
    }

    #[test]
    fn an_unknown_clip_is_refused_with_the_names_there_are() {
        let error = ModelScript::from_toml("[[turns]]\nsays = \"song\"").unwrap_err().to_string();
        assert!(error.contains("`song`"), "{error}");
        assert!(golden::clips().all(|name| error.contains(name)), "{error}");
    }
}
