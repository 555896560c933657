//! What happened on a call, in words for people. What anyone said, pressed or passed to a function is only in lines of
//! the transcript and behind [`Private`], which does not print.

use super::timers::Timer;
use crate::wire::realtime::Usage;
use std::fmt;
use std::time::Duration;

/// Something that is nobody's business in a log: keys, words, arguments. It prints as its length.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Private(String);

impl Private {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

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
    /// Every reason.
    pub const ALL: [Self; 25] = [
        Self::Stopped,
        Self::CallerClosed,
        Self::CallerLost,
        Self::CallerSilent,
        Self::CallerClogged,
        Self::NoStart,
        Self::Unauthenticated,
        Self::NoMedia,
        Self::UnsupportedMedia,
        Self::CallerMalformed,
        Self::Replaced,
        Self::DialFailed,
        Self::ModelRefused,
        Self::SessionTimeout,
        Self::SessionRefused,
        Self::ModelLost,
        Self::ModelSilent,
        Self::ModelClogged,
        Self::SessionExpired,
        Self::ResponseFailed,
        Self::TooLong,
        Self::Drained,
        Self::HungUp,
        Self::AgentHungUp,
        Self::Transferred,
    ];

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

/// The text of a turn of the caller that was to be transcribed and was not.
pub const UNTRANSCRIBED: &str = "(not transcribed)";

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

impl Speaker {
    /// The word used in logs, stores and on pages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Keypad => "keypad",
            Self::Agent => "agent",
        }
    }
}

/// One line of the transcript, in conversation order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The item.
    pub item: String,
    /// Orders the lines of a call: larger is later. It changes when an item turns out to stand elsewhere.
    pub place: u64,
    /// Who.
    pub speaker: Speaker,
    /// What; agent lines are cut where hearing stopped.
    pub text: String,
    /// The line was cut by a barge-in.
    pub cut: bool,
}

/// The transcript grows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// More words of a line that is not complete. The agent's may still be ahead of what is heard.
    More {
        /// The item.
        item: String,
        /// Who.
        speaker: Speaker,
        /// What, to be appended.
        words: Private,
    },
    /// A line as it stands now, in place of all that was said of its item before: complete, cut, or moved. Without
    /// words it was not heard at all.
    Line(Line),
}

/// Who is audible, or about to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The caller speaks, by the model's voice detection.
    pub caller: bool,
    /// The agent is heard, or its response that was heard goes on.
    pub agent: bool,
}

/// What became of an attempt to reach the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DialOutcome {
    /// The WebSocket is open.
    Connected,
    /// Refused, an HTTP status instead of the upgrade, a TLS failure.
    Failed,
    /// It took too long.
    TimedOut,
    /// The call ended first.
    Abandoned,
}

impl DialOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Connected, Self::Failed, Self::TimedOut, Self::Abandoned];

    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Abandoned => "abandoned",
        }
    }
}

/// What ended the protected window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProtectionEnd {
    /// The agent's first words were heard.
    Heard,
    /// The model took silence for speech and interrupted them.
    Interrupted,
    /// It was at its longest.
    Time,
}

impl ProtectionEnd {
    /// Every end.
    pub const ALL: [Self; 3] = [Self::Heard, Self::Interrupted, Self::Time];

    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Interrupted => "interrupted",
            Self::Time => "time",
        }
    }
}

/// What became of the renewal of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RenewalOutcome {
    /// Another session goes on with the call.
    Renewed,
    /// No try succeeded.
    Failed,
    /// The call ended first.
    Abandoned,
    /// No moment was quiet before the session ended.
    Missed,
}

impl RenewalOutcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Renewed, Self::Failed, Self::Abandoned, Self::Missed];

    /// The word used in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
            Self::Missed => "missed",
        }
    }
}

/// What became of a function call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToolOutcome {
    /// It ran and there is an output.
    Done,
    /// It ran and failed.
    Failed,
    /// It took too long.
    TimedOut,
    /// It was not run: unknown, interrupted, one too many, no usable arguments.
    Refused,
    /// It was not run again: the server had refused the output of the same call, which is there.
    Reused,
}

impl ToolOutcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Done, Self::Failed, Self::TimedOut, Self::Refused, Self::Reused];

    /// The word used in logs, stores and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
            Self::Reused => "reused",
        }
    }
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
    /// Caller audio replaced by silence in the protected window, ms.
    pub protected_ms: u64,
    /// Audio deltas from the model.
    pub deltas: u64,
    /// Model audio dropped because its response had been interrupted, bytes as received.
    pub stale_bytes: u64,
    /// Agent audio sent to the caller, ms.
    pub sent_ms: u64,
    /// Barge-ins.
    pub barge_ins: u64,
    /// Items cut because of them, at what was heard.
    pub truncations: u64,
    /// Messages of unknown type, both legs.
    pub unknown: u64,
    /// Malformed messages, both legs.
    pub malformed: u64,
    /// Marks taken as lost.
    pub lost_marks: u64,
    /// `error` events that did not end the call.
    pub errors: u64,
    /// Outputs of functions that the server refused to take.
    pub refused_outputs: u64,
    /// Ends of responses that never began.
    pub unannounced: u64,
    /// Times the model called functions without end and was stopped.
    pub tool_loops: u64,
    /// Responses asked for again.
    pub retries: u64,
    /// Largest amount of audio held at one time, bytes.
    pub peak_held_bytes: u64,
    /// Items at the beginning of the conversation that were forgotten because there was too much of it.
    pub forgotten_items: u64,
}

/// What happened, for logs, metrics and other observers.
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
    /// The dial is over.
    Dialed {
        /// How.
        outcome: DialOutcome,
        /// From its beginning.
        took: Duration,
    },
    /// The model opened a session.
    Session {
        /// Its id, by which the model's service knows it.
        id: String,
    },
    /// Both ends can hear each other.
    Live {
        /// From the WebSocket's opening.
        after: Duration,
    },
    /// The protected window is over: from now on the model hears the caller. A call that ends in it has no such event.
    Unprotected {
        /// What ended it.
        why: ProtectionEnd,
        /// How much of the caller's audio was replaced by silence.
        silenced: Duration,
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
    /// The ear is silent after a barge-in: Twilio has returned the last mark that the `clear` flushed.
    Silenced {
        /// Since the barge-in.
        after: Duration,
    },
    /// The transcript grew. All of it is said again at the end.
    Said(Said),
    /// Somebody began or ceased to be heard.
    Floor(Floor),
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
        usage: Option<Usage>,
    },
    /// The keypad entry was handed to the model.
    Keypad {
        /// How many keys.
        keys: usize,
        /// The keys themselves.
        entry: Private,
    },
    /// A function call was started.
    ToolCalled {
        /// Its call id.
        call_id: String,
        /// The function, one of those configured.
        name: String,
        /// What it was called with, a JSON object.
        arguments: Private,
    },
    /// A function call was answered.
    ToolAnswered {
        /// Its call id.
        call_id: String,
        /// The function, by the name the model called it.
        name: String,
        /// How it ended.
        outcome: ToolOutcome,
        /// From when it was started; `None` for a call that was not run.
        took: Option<Duration>,
        /// Why it was not run, in words without content.
        why: Option<&'static str>,
        /// What the model was told.
        output: Private,
    },
    /// The model calls functions again and again: it is asked for an answer without one.
    ToolLoop {
        /// Responses in a row that called functions.
        rounds: u32,
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
    /// The session is given up for another one; [`CallEvent::Renewal`] says what became of it.
    Renewing,
    /// The renewal of the session is over, or will not be.
    Renewal {
        /// What became of it.
        outcome: RenewalOutcome,
        /// From when the old session was given up; zero for one that was missed.
        took: Duration,
        /// How often it was tried.
        tries: u32,
        /// Items of the conversation that the new session was told.
        items: usize,
    },
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
        counts: Box<Counts>,
        /// Who said what, in conversation order.
        transcript: Vec<Line>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Metrics would add up what has the same name.
    #[test]
    fn no_two_outcomes_have_one_name() {
        fn distinct<T: Copy, const N: usize>(all: [T; N], name: fn(T) -> &'static str) {
            let names: std::collections::BTreeSet<_> = all.into_iter().map(name).collect();
            assert!(names.len() == N && !names.contains(""), "{names:?}");
        }
        distinct(EndReason::ALL, EndReason::name);
        distinct(DialOutcome::ALL, DialOutcome::name);
        distinct(ProtectionEnd::ALL, ProtectionEnd::name);
        distinct(RenewalOutcome::ALL, RenewalOutcome::name);
        distinct(ToolOutcome::ALL, ToolOutcome::name);
    }
}
