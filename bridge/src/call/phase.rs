//! Where a call can be. What makes sense only there lives inside.

use super::context::Stream;
use super::conversation::Conversation;
use super::downlink::Downlink;
use super::event::EndReason;
use super::last_words::LastWords;
use crate::wire::twilio::Start;

/// The phases, in the order a call meets them. Any of them may go straight to `Closing`.
pub(super) enum Phase {
    /// The socket is open; Twilio has not said which call this is.
    AwaitingStart,
    /// The stream has said whose it is; whether that is true is being verified.
    AwaitingAdmission { start: Start },
    /// The stream is known; the model is dialled when audio flows.
    AwaitingMedia { stream: Stream },
    /// The model is being dialled; what the caller says meanwhile waits in the uplink.
    Dialing { stream: Stream },
    /// The model's socket is open; the session is being settled. `asked`: the `session.update` was sent.
    Configuring { stream: Stream, asked: bool },
    /// Both ends can hear each other.
    Live { stream: Stream, conversation: Box<Conversation> },
    /// The session is being replaced by another one; what the caller says meanwhile waits in the uplink.
    Renewing { stream: Stream, conversation: Box<Conversation>, renewing: Renewing },
    /// The model is gone; the caller is being told.
    Notice { stream: Stream, reason: EndReason, detail: String, downlink: Box<Downlink> },
    /// Both ends are being closed; the model's only after the caller's `words`, while those are waited for.
    Closing { reason: EndReason, detail: String, words: Option<LastWords> },
    /// Nothing is left.
    Over,
}

/// How far a renewal has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Renewing {
    pub(super) step: Step,
    /// Tries begun.
    pub(super) tries: u32,
}

/// What a renewal waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The connection before this one is closing.
    Closing,
    /// A try failed a moment ago.
    Resting,
    /// The connection.
    Dialing,
    /// The session; `asked`: the `session.update` was sent.
    Configuring { asked: bool },
}

impl Phase {
    /// The stream, while there is one to speak to.
    pub(super) const fn stream(&self) -> Option<&Stream> {
        match self {
            Self::AwaitingMedia { stream }
            | Self::Dialing { stream }
            | Self::Configuring { stream, .. }
            | Self::Live { stream, .. }
            | Self::Renewing { stream, .. }
            | Self::Notice { stream, .. } => Some(stream),
            Self::AwaitingStart | Self::AwaitingAdmission { .. } | Self::Closing { .. } | Self::Over => None,
        }
    }

    /// What is on its way to the ear, while there is one to speak to.
    pub(super) fn downlink(&mut self) -> Option<&mut Downlink> {
        match self {
            Self::Live { conversation, .. } | Self::Renewing { conversation, .. } => {
                Some(&mut conversation.downlink)
            }
            Self::Notice { downlink, .. } => Some(downlink),
            Self::AwaitingStart
            | Self::AwaitingAdmission { .. }
            | Self::AwaitingMedia { .. }
            | Self::Dialing { .. }
            | Self::Configuring { .. }
            | Self::Closing { .. }
            | Self::Over => None,
        }
    }
}
