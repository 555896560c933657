//! What goes into a call and comes out of it: its inputs, and what it wants done.

use crate::wire::realtime::{ClientEvent, ServerEvent};
use crate::wire::twilio::{self, ToTwilio};
use std::sync::Arc;
use std::time::Instant;

/// One of the two connections of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leg {
    /// Towards Twilio.
    Caller,
    /// Towards the model.
    Model,
}

/// Something happened to a connection itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegChange {
    /// The model's WebSocket is open. (The caller's is open when the call begins.)
    Open,
    /// The model could not be reached: refused, an HTTP status instead of the upgrade, a TLS failure.
    DialFailed {
        /// In words, without secrets.
        why: String,
    },
    /// The other side sent a close frame.
    Closed {
        /// Its code, if it named one.
        code: Option<u16>,
        /// Its reason.
        reason: String,
    },
    /// The connection ended without a close frame, or broke the WebSocket protocol (an oversized frame, too).
    Lost {
        /// In words.
        why: String,
    },
    /// The writer's queue is filling up: send only what must go.
    Backpressured,
    /// The writer has room again.
    Writable,
    /// The pong of our ping came back.
    Pong,
    /// The other side pinged.
    Ping,
}

/// The world outside the two legs wants something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Another stream of the same call took over: this one ends without touching it.
    Replaced,
    /// The server is shutting down; calls may finish until then.
    Drain {
        /// The end of the drain time.
        by: Instant,
    },
    /// The operator ends the call.
    HangUp,
    /// The stream has shown that it is the call's: it is admitted.
    Admitted,
    /// It has not: nothing is done for it.
    Rejected {
        /// In words, without secrets.
        why: &'static str,
    },
    /// Twilio reports that the stream has ended; `failed`: with an error. Its socket may look open for a while yet.
    StreamOver {
        /// It reported an error.
        failed: bool,
    },
}

/// How a function call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolResult {
    /// The call.
    pub call_id: String,
    /// The output for the model, or why there is none (in words for the model).
    pub output: Result<String, String>,
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Transmit {
    /// Send to the caller leg.
    Caller {
        /// The stream it belongs to.
        stream_sid: Arc<str>,
        /// The message.
        message: ToTwilio,
    },
    /// Take back what waits to be written on the caller leg: it is not to be played any more, and the `clear` that
    /// follows must not wait behind it.
    WithdrawAudio,
    /// Send to the model leg.
    Model(ClientEvent),
    /// Send a ping.
    Ping(Leg),
    /// Find out whether this stream is to be admitted; answer with [`Control::Admitted`] or [`Control::Rejected`].
    VerifyStream(StreamCredentials),
    /// Dial the model; answer with [`LegChange::Open`] or [`LegChange::DialFailed`].
    Dial {
        /// For the request id header, so that both sides can name the call.
        call_sid: String,
    },
    /// Send a close frame after everything queued; answer with [`LegChange::Closed`] or [`LegChange::Lost`].
    Close {
        /// Which.
        leg: Leg,
        /// The close code.
        code: u16,
        /// At most 123 bytes.
        reason: &'static str,
    },
    /// Drop the connection now, whatever is queued; stop dialling if it is not open yet. Nothing is answered.
    Drop(Leg),
    /// Stop (`true`) or go on (`false`) reading from the model.
    PauseModelReads(bool),
    /// Run a function; answer with [`super::Call::handle_tool`], exactly once, unless it is cancelled.
    RunTool {
        /// The call.
        call_id: String,
        /// The function.
        name: String,
        /// A JSON object.
        arguments: String,
    },
    /// Stop running this function: its output is not needed any more.
    CancelTool {
        /// The call.
        call_id: String,
    },
}

/// Audio a call holds, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The caller's, until the model takes it; in the session's format.
    pub uplink_bytes: usize,
    /// The model's, until caller playback is close enough behind; G.711.
    pub downlink_bytes: usize,
}

/// What arrived on a leg, decoded.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming<'a> {
    /// A message of Twilio's.
    Twilio(twilio::Envelope<'a>),
    /// An event of the model's.
    Model(ServerEvent),
    /// A text frame that is no message of its protocol: what is wrong with it, in words.
    Malformed(String),
    /// A binary frame of this many bytes: neither protocol has them.
    Binary(usize),
}

/// What a stream says of itself, to be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamCredentials {
    /// The call it claims to belong to.
    pub call_sid: String,
    /// The account; empty when it names none.
    pub account_sid: String,
    /// The token it carries.
    pub token: Option<String>,
}
