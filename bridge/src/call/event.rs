//! What happened on a call, in words for people. Nothing anyone said is in an event but in a transcript line.

use super::timers::Timer;
use std::fmt;
use std::time::Duration;

/// Why a call ended. Every end has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndReason {
    /// Twilio sent `stop`: the caller hung up or the call was redirected.
    Stopped,
    /// Twilio closed the WebSocket without `stop`.
    CallerClosed,
    /// The caller leg broke: reset, protocol error, oversized frame.
    CallerLost,
    /// The caller leg stayed silent: no message and no pong.
    CallerSilent,
    /// Twilio stopped reading and the writer stayed full.
    CallerClogged,
    /// `start` did not come in time.
    NoStart,
    /// The stream could not show that it belongs to its call.
    Unauthenticated,
    /// `media` did not come in time.
    NoMedia,
    /// `start` announced a media format the bridge cannot decode.
    UnsupportedMedia,
    /// Too many malformed messages from Twilio.
    CallerMalformed,
    /// Another stream of the same call took over.
    Replaced,
    /// The model could not be reached: refused, timed out, or an HTTP error instead of the upgrade.
    DialFailed,
    /// The model refused the session: bad key, unknown model, no rights.
    ModelRefused,
    /// `session.created` or `session.updated` did not come in time.
    SessionTimeout,
    /// The model refused the settings or answered with other audio formats.
    SessionRefused,
    /// The model closed or lost the connection in the middle of the call.
    ModelLost,
    /// The model leg stayed silent: no pong.
    ModelSilent,
    /// The model stopped reading and the writer stayed full.
    ModelClogged,
    /// The session reached its maximum duration.
    SessionExpired,
    /// The model could not produce a response twice in a row.
    ResponseFailed,
    /// The longest call was reached.
    TooLong,
    /// The server is shutting down and the drain time is over.
    Drained,
    /// The operator hung up.
    HungUp,
    /// The model ended the call.
    AgentHungUp,
    /// The model put the caller through to somebody.
    Transferred,
}

impl EndReason {
    /// The word used in logs, metrics and scenarios.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::CallerClosed => "caller_closed",
            Self::CallerLost => "caller_lost",
            Self::CallerSilent => "caller_silent",
            Self::CallerClogged => "caller_clogged",
            Self::NoStart => "no_start",
            Self::Unauthenticated => "unauthenticated",
            Self::NoMedia => "no_media",
            Self::UnsupportedMedia => "unsupported_media",
            Self::CallerMalformed => "caller_malformed",
            Self::Replaced => "replaced",
            Self::DialFailed => "dial_failed",
            Self::ModelRefused => "model_refused",
            Self::SessionTimeout => "session_timeout",
            Self::SessionRefused => "session_refused",
            Self::ModelLost => "model_lost",
            Self::ModelSilent => "model_silent",
            Self::ModelClogged => "model_clogged",
            Self::SessionExpired => "session_expired",
            Self::ResponseFailed => "response_failed",
            Self::TooLong => "too_long",
            Self::Drained => "drained",
            Self::HungUp => "hung_up",
            Self::AgentHungUp => "agent_hung_up",
            Self::Transferred => "transferred",
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who said a line of the transcript.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaker {
    /// The caller, by voice.
    Caller,
    /// The caller, by keypad.
    Keypad,
    /// The agent.
    Agent,
}

/// One line of the transcript, in conversation order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The item.
    pub item: String,
    /// Who.
    pub speaker: Speaker,
    /// What; agent lines are cut where hearing stopped.
    pub text: String,
    /// The line was cut by a barge-in.
    pub cut: bool,
}

/// Counters of one call: what was tolerated, filled or dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `media` messages from the caller.
    pub caller_frames: u64,
    /// Caller audio supplied as silence for gaps, ms.
    pub filled_ms: u64,
    /// Caller audio dropped because the model was not ready or not reading, ms.
    pub dropped_uplink_ms: u64,
    /// Audio deltas from the model.
    pub deltas: u64,
    /// Model audio dropped because its response had been interrupted, bytes as received.
    pub stale_bytes: u64,
    /// Agent audio sent to the caller, ms.
    pub sent_ms: u64,
    /// Barge-ins.
    pub barge_ins: u64,
    /// Messages of unknown type, both legs.
    pub unknown: u64,
    /// Malformed messages, both legs.
    pub malformed: u64,
    /// Marks taken as lost.
    pub lost_marks: u64,
    /// `error` events that did not end the call.
    pub errors: u64,
    /// Responses asked for again.
    pub retries: u64,
    /// Largest amount of audio held at one time, bytes.
    pub peak_held_bytes: u64,
}

/// What happened, for logs, metrics and whoever watches.
#[derive(Clone, Debug, PartialEq)]
pub enum CallEvent {
    /// `start` arrived: the stream is known.
    Started {
        /// The call.
        call_sid: String,
        /// The stream.
        stream_sid: String,
    },
    /// The model is being dialled.
    Dialing,
    /// Both ends can hear each other.
    Live {
        /// From the WebSocket's opening.
        after: Duration,
    },
    /// The caller began to speak.
    SpeechStarted,
    /// The caller's turn ended.
    SpeechStopped,
    /// The caller took the floor while the agent was audible or about to be.
    BargeIn {
        /// The item that was playing, if one was.
        item: Option<String>,
        /// How much of it was heard.
        heard: Duration,
        /// How much was discarded behind it: sent but unheard, and not yet sent.
        discarded: Duration,
    },
    /// The first audio of a response was sent to the caller.
    Speaking {
        /// The response.
        response: String,
        /// Since the turn ended or the response was asked for, when known.
        after: Option<Duration>,
    },
    /// A response ended.
    ResponseDone {
        /// The response.
        response: String,
        /// Its status.
        status: String,
        /// Tokens used, as the server counted them.
        tokens: Option<u64>,
    },
    /// The keypad entry was handed to the model.
    Keypad {
        /// How many keys.
        keys: usize,
    },
    /// A function call was started.
    ToolCalled {
        /// Its call id.
        call_id: String,
        /// The function.
        name: String,
    },
    /// A function call was answered.
    ToolAnswered {
        /// Its call id.
        call_id: String,
        /// It succeeded.
        ok: bool,
    },
    /// The model reported a problem that did not end the call.
    ModelError {
        /// Its code, or type when it had none.
        code: String,
    },
    /// Something was tolerated: malformed or unknown input, a dropped message.
    Tolerated {
        /// What, in words without content.
        what: String,
    },
    /// A named timer fired and something was done about it.
    TimerFired(Timer),
    /// The session will be ended because it nears its maximum duration.
    ExpiringSoon,
    /// The caller is being told that the call cannot continue.
    Notice {
        /// Why.
        reason: EndReason,
    },
    /// The call is over. Always the last event.
    Ended {
        /// Why.
        reason: EndReason,
        /// More about why, in words without content.
        detail: String,
        /// From the WebSocket's opening.
        lasted: Duration,
        /// What was counted.
        counts: Counts,
        /// Who said what, in conversation order.
        transcript: Vec<Line>,
    },
}
