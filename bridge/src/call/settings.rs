//! What a call needs to know before it begins. Every limit has a default and a sentence.
//!
//! The same type is a section of the configuration file, part of a scenario, and all that the core ever sees
//! of the configuration. Durations are whole milliseconds and end in `_ms`.

use crate::audio::Format;
pub use crate::wire::realtime::{Dialect, Transcription, Vad};
use crate::wire::realtime::{FunctionSpec, SessionSettings};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// Ends the call.
pub const END_CALL: &str = "end_call";
/// Puts the caller through to a listed person.
pub const TRANSFER_CALL: &str = "transfer_call";

/// Settings of one call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallConfig {
    /// Audio format on the model leg: `pcm24k` (transcoded), or `pcmu` or `pcma` (passed through to and from a
    /// caller who speaks it, else converted sample by sample).
    pub format: Format,
    /// Event names spoken to the model: `ga`, or `beta` for servers that still speak the retired names.
    pub dialect: Dialect,
    /// When to dial the model.
    pub dial: DialWhen,
    /// The model's name, as in the `model` query parameter.
    pub model: String,
    /// The voice to speak with; `None` leaves the server's default.
    pub voice: Option<String>,
    /// The system instructions.
    pub instructions: String,
    /// Instructions for a greeting spoken as soon as the session is ready; `None` waits for the caller.
    pub greeting: Option<String>,
    /// Transcription of the caller; `None` switches it off.
    pub transcription: Option<Transcription>,
    /// Server-side noise reduction: `near_field`, `far_field` or none.
    pub noise_reduction: Option<String>,
    /// Server-side voice activity detection.
    pub vad: Vad,
    /// The caller may interrupt the agent. Switched off, speech over the agent is heard but stops nothing.
    pub barge_in: bool,
    /// Keeps the beginning of the call's audio from the model, and its first words from being interrupted; `None` does
    /// neither.
    #[serde(alias = "protection")]
    pub greeting_guard: Option<GreetingGuard>,
    /// Replaces the tones of pressed keys by silence on their way to the model, so that they are not taken for
    /// speech. The first 20 to 40 ms of each are let through, for nothing is delayed.
    pub mute_dtmf_tones: bool,
    /// Functions the model may call.
    pub tools: Vec<ToolSpec>,
    /// What is said while a function takes its time; `None` lets the caller wait in silence.
    #[serde(alias = "filler")]
    pub hold_message: Option<HoldMessage>,
    /// How the model may end the call or put the caller through.
    #[serde(alias = "leaving")]
    pub hangup: Hangup,
    /// Another session takes over before the server ends the one that runs; `None` ends the call politely then.
    pub renewal: Option<Renewal>,
    /// How far the audio sent to the caller may run ahead of what was played.
    pub pacing: Pacing,
    /// How keypad presses are gathered.
    pub dtmf: Dtmf,
    /// Bounds on what a call may hold.
    pub limits: Limits,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

impl Default for CallConfig {
    fn default() -> Self {
        Self {
            format: Format::default(),
            dialect: Dialect::Ga,
            dial: DialWhen::OnMedia,
            model: "gpt-realtime-2.1".into(),
            voice: None,
            instructions: "You are a helpful assistant on a phone call. Keep your answers short.".into(),
            greeting: None,
            transcription: None,
            noise_reduction: None,
            vad: Vad::default(),
            barge_in: true,
            greeting_guard: None,
            mute_dtmf_tones: false,
            tools: Vec::new(),
            hold_message: None,
            hangup: Hangup::default(),
            renewal: None,
            pacing: Pacing::default(),
            dtmf: Dtmf::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

impl CallConfig {
    /// How long a caller may wait in silence: no function's own time is cut short by it.
    pub(crate) fn dead_air(&self) -> Duration {
        let longest = self.tools.iter().map(|tool| tool.timeout_ms).max().unwrap_or(0);
        ms(self.timeouts.dead_air_ms.max(longest.saturating_add(self.timeouts.first_audio_ms)))
    }

    /// The server cancels by itself what speech interrupts. Where the caller may not interrupt, it is not to do so.
    pub(crate) const fn server_interrupts(&self) -> bool {
        self.vad.interrupt_response && self.barge_in
    }

    /// What the session is asked to be.
    pub fn session(&self) -> SessionSettings {
        let own = self.hangup.functions();
        let spec = |tool: &ToolSpec| FunctionSpec {
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters: tool.parameters.clone(),
        };
        SessionSettings {
            format: self.format,
            instructions: self.instructions.clone(),
            voice: self.voice.clone(),
            noise_reduction: self.noise_reduction.clone(),
            transcription: self.transcription.clone(),
            vad: Vad { interrupt_response: self.server_interrupts(), ..self.vad.clone() },
            tools: self.tools.iter().chain(&own).map(spec).collect(),
        }
    }

    /// The protection that is in force: one that lasts until the greeting was heard needs a greeting.
    pub(crate) fn protects(&self) -> Option<GreetingGuard> {
        self.greeting_guard.filter(|protection| protection.until == Until::Time || self.greeting.is_some())
    }
}

/// When to dial the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialWhen {
    /// On the first `media` message: an early `start` is never taken for audio.
    #[default]
    OnMedia,
    /// On `start`: a few milliseconds earlier.
    OnStart,
}

/// A window at the beginning of the call in which the line is not believed: a speakerphone returns the agent's own
/// voice before its echo canceller has settled, and a line that is just being picked up crackles.
///
/// All audio the caller's end sends in it reaches the model as silence of the same length, that from before the model
/// was ready too: neither an interruption nor a turn can come of it, and nothing behind it is shifted. A key is no echo:
/// it is gathered as always, but as with [`CallConfig::barge_in`] switched off it silences nothing and is answered
/// behind what is being said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GreetingGuard {
    /// What ends the window.
    pub until: Until,
    /// The longest window, from the caller's first audio, ms. A greeting that never comes must not leave the model deaf.
    pub at_most_ms: u64,
}

impl Default for GreetingGuard {
    fn default() -> Self {
        Self { until: Until::Heard, at_most_ms: 15_000 }
    }
}

/// What ends the protected window, unless its longest time is over before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// The agent's first words were heard: the first response that said anything is complete, and the mark behind its
    /// audio came back, or was given up. They are the greeting, or whatever came in its place: a second attempt, the
    /// answer to keys that were pressed before. A model that takes the silence for speech all the same ends it, too.
    /// Without a greeting nothing is protected.
    #[default]
    Heard,
    /// Nothing else does.
    Time,
}

/// A function the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolSpec {
    /// Its name.
    pub name: String,
    /// What it is for, told to the model.
    #[serde(default)]
    pub description: String,
    /// JSON schema of its arguments.
    #[serde(default = "empty_schema")]
    pub parameters: serde_json::Value,
    /// How long one run may take before the model is told it timed out, ms.
    #[serde(default = "tool_timeout")]
    pub timeout_ms: u64,
}

fn empty_schema() -> serde_json::Value {
    json!({"type": "object", "properties": {}})
}

const fn tool_timeout() -> u64 {
    15_000
}

/// What is said while a function takes its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoldMessage {
    /// How long the caller waits in silence before the model is asked for a word, ms: from the end of their turn, or of
    /// what they last heard, however many functions are called meanwhile. One word for all functions that run at one
    /// time.
    pub after_ms: u64,
    /// What the model is told to say. It may call nothing while it says it.
    pub instructions: String,
}

impl Default for HoldMessage {
    fn default() -> Self {
        Self {
            after_ms: 1_500,
            instructions:
                "Say in one short sentence that you are looking it up and that it takes a moment. Do not \
                           guess the result."
                    .into(),
        }
    }
}

/// How the model may end the call or put the caller through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hangup {
    /// Offers the function `end_call`.
    pub end_call: bool,
    /// What the model is told to say when it ends the call or puts the caller through without a word; `None` lets it.
    pub farewell: Option<String>,
    /// Longest wait from the function call until the caller has heard the farewell, ms. Then it is done anyway.
    pub farewell_ms: u64,
    /// How long Twilio may take to do it, ms.
    pub carrier_ms: u64,
    /// Offers the function `transfer_call`, to these. The model knows their names, never their numbers.
    pub transfer: Vec<Person>,
}

impl Hangup {
    /// The functions of the bridge's own that the model may call.
    pub(crate) fn functions(&self) -> Vec<ToolSpec> {
        let spec = |name: &str, description: &str, parameters| ToolSpec {
            name: name.into(),
            description: description.into(),
            parameters,
            timeout_ms: self.carrier_ms,
        };
        let mut offered = Vec::new();
        if self.end_call {
            let about = "Ends the call once the caller has heard what you say. Say goodbye first, in the same answer.";
            offered.push(spec(END_CALL, about, json!({"type": "object", "properties": {}})));
        }
        if !self.transfer.is_empty() {
            let names: Vec<&str> = self.transfer.iter().map(|person| person.name.as_str()).collect();
            let about = "Puts the caller through once they have heard what you say. Tell them first, in the same answer.";
            offered.push(spec(
                TRANSFER_CALL,
                about,
                json!({
                    "type": "object",
                    "properties": { "to": { "type": "string", "enum": names, "description": "Whom." } },
                    "required": ["to"],
                }),
            ));
        }
        offered
    }
}

impl Default for Hangup {
    fn default() -> Self {
        Self {
            end_call: false,
            farewell: Some(
                "Say goodbye, or whom you are putting the caller through to, in one short sentence.".into(),
            ),
            farewell_ms: 20_000,
            carrier_ms: 10_000,
            transfer: Vec::new(),
        }
    }
}

/// Another session takes over before the server ends the one that runs, at a moment when neither side speaks.
///
/// The old session is closed before the new one is dialled. What the caller says meanwhile waits, so that all tries
/// together (see [`Renewal::longest_ms`]) must fit into [`Limits::backlog_ms`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Renewal {
    /// How long before `expires_at` of the session a quiet moment is looked for, ms; at most half of its length. When
    /// none comes, the call is ended politely as without renewal.
    pub before_ms: u64,
    /// Where the server does not say when the session ends: how old it is when a quiet moment is looked for, ms; `None`
    /// keeps it.
    pub after_ms: Option<u64>,
    /// A moment is quiet when neither side has spoken and nothing has been due for this long, ms. This much of the caller's
    /// audio is told to the new session again: a word that was beginning is in it.
    pub quiet_ms: u64,
    /// Most items of the conversation that the new session is told, the newest. A function call and its output are two.
    pub history_items: usize,
    /// Most text in them, bytes.
    pub history_bytes: usize,
    /// How often it is tried.
    pub tries: u32,
    /// How long one try may take, from the dial to the confirmed settings, ms.
    pub try_ms: u64,
}

impl Default for Renewal {
    fn default() -> Self {
        Self {
            before_ms: 300_000,
            after_ms: None,
            quiet_ms: 1_000,
            history_items: 200,
            history_bytes: 32_768,
            tries: 3,
            try_ms: 2_000,
        }
    }
}

impl Renewal {
    /// The longest time without a session, ms: the old one is closed, every try takes as long as it may, and each is
    /// closed and rested from before the next.
    pub fn longest_ms(&self, timeouts: &Timeouts) -> u64 {
        let tries = u64::from(self.tries.max(1));
        let between = timeouts.closing_ms.saturating_add(timeouts.retry_ms).saturating_mul(tries - 1);
        timeouts.closing_ms.saturating_add(self.try_ms.saturating_mul(tries)).saturating_add(between)
    }
}

/// Somebody the model may put a caller through to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// What the model calls them.
    pub name: String,
    /// Where they are reached: `+` and the number, or a SIP address.
    pub number: String,
}

/// How far the audio sent to the caller may run ahead of what was played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pacing {
    /// Largest lead, ms. Survives network stalls of that length; what is not yet sent need not be cleared.
    /// 540,000 and more means "at once": Twilio discards what would queue beyond ten minutes.
    pub lead_ms: u64,
    /// Distance between marks, ms. Marks say what was heard.
    pub mark_every_ms: u64,
}

impl Default for Pacing {
    fn default() -> Self {
        Self { lead_ms: 3_000, mark_every_ms: 200 }
    }
}

/// How keypad presses become one message to the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Dtmf {
    /// The key that ends an entry at once.
    pub terminator: char,
    /// Quiet that ends an entry, ms.
    pub quiet_ms: u64,
    /// Most keys in one entry.
    pub max_digits: usize,
}

impl Default for Dtmf {
    fn default() -> Self {
        Self { terminator: '#', quiet_ms: 1_500, max_digits: 32 }
    }
}

/// Bounds on what one call may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Caller audio kept while the model is not ready, ms; beyond it the oldest is dropped.
    pub backlog_ms: u64,
    /// Model audio waiting to be sent, ms; beyond it the bridge stops reading from the model. The default is
    /// above the longest response (4,096 tokens of 50 ms), so that speech events are never stuck behind it.
    #[serde(alias = "held_ms")]
    pub max_buffered_ms: u64,
    /// Longest gap in caller audio that is filled with silence, ms.
    pub gap_ms: u64,
    /// Function calls running at once; more are answered with an error.
    pub tools_running: usize,
    /// Responses in a row that may call functions, from one turn of the caller to the next. Then the model is asked for
    /// an answer that calls none, and the call is ended if it calls one all the same.
    pub function_rounds: u32,
    /// In how many of them the same function may be called with the same arguments.
    pub same_calls: u32,
    /// Malformed messages tolerated on one leg before the call is ended.
    pub malformed: u32,
    /// Most items of the conversation that are remembered; beyond it the oldest are forgotten.
    pub transcript_items: usize,
    /// Most bytes of words, function arguments and outputs that are remembered; beyond it the oldest are forgotten.
    pub transcript_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            backlog_ms: 10_000,
            max_buffered_ms: 300_000,
            gap_ms: 10_000,
            tools_running: 8,
            function_rounds: 20,
            same_calls: 5,
            malformed: 100,
            transcript_items: 10_000,
            transcript_bytes: 4 << 20,
        }
    }
}

/// How long to wait for what. Each is one named timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the WebSocket's opening to `start`, ms.
    pub start_ms: u64,
    /// From `start` to the first `media`, ms.
    pub first_media_ms: u64,
    /// DNS, TCP, TLS and the WebSocket upgrade towards the model together, ms.
    pub dial_ms: u64,
    /// From the upgrade to `session.created`, ms.
    pub session_created_ms: u64,
    /// From `session.update` to `session.updated`, ms.
    pub session_updated_ms: u64,
    /// From a turn's end or a `response.create` to the first audio of its response, ms. The first time it
    /// passes the response is asked for again, the second time the caller is told and the call ends.
    pub first_audio_ms: u64,
    /// The longest silence in which a caller waits for the agent, whatever functions are called meanwhile, ms; longer
    /// where one function alone may take longer. Then the caller is told and the call ends.
    pub dead_air_ms: u64,
    /// How long functions may go on that still run when the call ends, ms. What comes of them is recorded; the call
    /// keeps its place until then.
    pub tool_after_end_ms: u64,
    /// Nothing at all from Twilio, not even a pong, ms. Longer than any gap of silence.
    pub caller_silent_ms: u64,
    /// While the caller is speaking, this long without media makes the bridge supply the silence that lets the
    /// turn end, ms.
    pub media_pause_ms: u64,
    /// A mark this late is taken as lost, ms.
    pub mark_ms: u64,
    /// A leg whose writer makes no room for this long is given up, ms.
    pub clogged_ms: u64,
    /// Between pings on each leg, ms.
    pub ping_ms: u64,
    /// A pong this late means the leg is dead, ms.
    pub pong_ms: u64,
    /// The longest call, ms.
    pub call_ms: u64,
    /// How long before `expires_at` of the session the call is ended politely, ms.
    pub before_expiry_ms: u64,
    /// The last words of a failing call: how long after they should have been heard their mark may take, ms.
    pub notice_ms: u64,
    /// When the caller is gone: how long the session is kept for the words of what they said last, ms; 0 does not wait.
    /// No response is asked for meanwhile, and no audio sent.
    pub last_words_ms: u64,
    /// From our close frame to dropping the socket, ms.
    pub closing_ms: u64,
    /// From a failed response to asking for it again, ms.
    pub retry_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            start_ms: 5_000,
            first_media_ms: 10_000,
            dial_ms: 8_000,
            session_created_ms: 8_000,
            session_updated_ms: 5_000,
            first_audio_ms: 8_000,
            dead_air_ms: 60_000,
            tool_after_end_ms: 15_000,
            caller_silent_ms: 60_000,
            media_pause_ms: 750,
            mark_ms: 5_000,
            clogged_ms: 10_000,
            ping_ms: 5_000,
            pong_ms: 8_000,
            call_ms: 4 * 60 * 60 * 1_000,
            before_expiry_ms: 60_000,
            notice_ms: 3_000,
            last_words_ms: 1_000,
            closing_ms: 800,
            retry_ms: 500,
        }
    }
}

/// Milliseconds as a [`Duration`].
pub(crate) const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_model_is_offered_what_the_operator_allows() {
        let names = |hangup: &Hangup| -> Vec<String> {
            hangup.functions().into_iter().map(|function| function.name).collect()
        };
        let nothing = Hangup::default();
        let end = Hangup { end_call: true, ..Hangup::default() };
        let sales = Person { name: "sales".into(), number: "+15550100".into() };
        let both = Hangup { end_call: true, transfer: vec![sales], ..Hangup::default() };
        assert_eq!(names(&nothing), Vec::<String>::new());
        assert_eq!(names(&end), [END_CALL]);
        assert_eq!(names(&both), [END_CALL, TRANSFER_CALL]);
        assert_eq!(both.functions()[1].parameters["properties"]["to"]["enum"], json!(["sales"]));
    }

    #[test]
    fn a_function_without_parameters_takes_an_empty_object() {
        let tool: ToolSpec = serde_json::from_str(r#"{"name": "time"}"#).unwrap();
        assert_eq!(tool.parameters, json!({"type": "object", "properties": {}}));
        assert_eq!(tool.timeout_ms, 15_000);
    }

    #[test]
    fn the_longest_time_without_a_session_is_that_of_all_tries_and_of_all_rests_between_them() {
        let timeouts = Timeouts { closing_ms: 100, retry_ms: 30, ..Timeouts::default() };
        let renewal = |tries| Renewal { tries, try_ms: 1_000, ..Renewal::default() };
        assert_eq!(renewal(3).longest_ms(&timeouts), 100 + 1_000 + 130 + 1_000 + 130 + 1_000);
        assert_eq!(renewal(1).longest_ms(&timeouts), 1_100);
        assert_eq!(renewal(0).longest_ms(&timeouts), 1_100);
    }
}
