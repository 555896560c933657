//! Where a call can be. What makes sense only there lives inside.

use super::context::Stream;
use super::conversation::Conversation;
use super::downlink::Downlink;
use super::event::EndReason;
use super::last_words::LastWords;
use super::tools::Leftover;
use crate::wire::twilio::Start;
use std::time::Instant;

/// The phases, in the order a call meets them. Any of them may go straight to `Closing`.
pub(super) enum Phase {
    /// The socket is open; Twilio has not said which call this is.
    AwaitingStart { requires_auth: bool },
    /// The stream has said whose it is; whether that is true is being verified.
    AwaitingAdmission { start: Start },
    /// The stream is known; the model is dialled when audio flows.
    AwaitingMedia { stream: Stream },
    /// The first session is on its way. What the caller says meanwhile waits in the uplink.
    AwaitingSession { stream: Stream },
    /// Both ends can hear each other, unless another session is taking over: then the caller waits as for the first.
    Live { stream: Stream, conversation: Box<Conversation>, renewal: Option<Renewing> },
    /// The model is gone; the caller is being told.
    Notice {
        stream: Stream,
        reason: EndReason,
        detail: String,
        downlink: Box<Downlink>,
        /// Functions that were running when the conversation ended.
        leftover: Leftover,
    },
    /// Both ends are being closed; the model's only after the caller's `words`, while those are waited for.
    Closing {
        reason: EndReason,
        detail: String,
        words: Option<LastWords>,
        leftover: Leftover,
        /// When both were gone.
        left_at: Option<Instant>,
    },
    /// Nothing is left.
    Over,
}

/// Another session is taking over.
#[derive(Clone, Copy)]
pub(super) struct Renewing {
    pub(super) since: Instant,
    /// Tries begun.
    pub(super) tries: u32,
}

impl Phase {
    /// The stream, while there is one to speak to.
    pub(super) const fn stream(&self) -> Option<&Stream> {
        match self {
            Self::AwaitingMedia { stream }
            | Self::AwaitingSession { stream }
            | Self::Live { stream, .. }
            | Self::Notice { stream, .. } => Some(stream),
            Self::AwaitingStart { .. }
            | Self::AwaitingAdmission { .. }
            | Self::Closing { .. }
            | Self::Over => None,
        }
    }

    /// What is on its way to the ear, while there is one to speak to.
    pub(super) fn downlink(&mut self) -> Option<&mut Downlink> {
        match self {
            Self::Live { conversation, .. } => Some(&mut conversation.downlink),
            Self::Notice { downlink, .. } => Some(downlink),
            Self::AwaitingStart { .. }
            | Self::AwaitingAdmission { .. }
            | Self::AwaitingMedia { .. }
            | Self::AwaitingSession { .. }
            | Self::Closing { .. }
            | Self::Over => None,
        }
    }

    /// Functions that outlast their conversation.
    pub(super) const fn leftover(&mut self) -> Option<&mut Leftover> {
        if let Self::Notice { leftover, .. } | Self::Closing { leftover, .. } = self {
            Some(leftover)
        } else {
            None
        }
    }

    /// The model is not needed any more.
    pub(super) const fn is_ending(&self) -> bool {
        matches!(self, Self::Notice { .. } | Self::Closing { .. } | Self::Over)
    }

    /// The renewal that goes on.
    pub(super) const fn renewal(&mut self) -> Option<&mut Renewing> {
        if let Self::Live { renewal, .. } = self { renewal.as_mut() } else { None }
    }
}
