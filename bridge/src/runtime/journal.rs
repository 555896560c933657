//! What a call's driver notes for its journal, and who takes the notes.

use crate::call::event::CallEvent;
use crate::call::settings::CallConfig;
use crate::call::{Control, Leg, LegChange, ToolResult, Transmit};
use std::time::Duration;

/// Something a call's driver did or saw.
#[derive(Clone, Debug, PartialEq)]
pub enum JournalEntry {
    /// A text frame arrived.
    Text(Leg, String),
    /// A binary frame of this many bytes arrived.
    Binary(Leg, usize),
    /// Something happened to a connection.
    Changed(Leg, LegChange),
    /// The call wanted something sent or done.
    Done(Transmit),
    /// The call told that something happened.
    Happened(CallEvent),
    /// A function ended.
    ToolEnded(ToolResult),
    /// The world outside wanted something.
    Asked(Control),
}

impl JournalEntry {
    /// What it holds beyond its own size, bytes, roughly.
    pub(crate) fn weight(&self) -> usize {
        use crate::wire::realtime::ClientEvent;
        use crate::wire::twilio::ToTwilio;
        match self {
            Self::Text(_, text) => text.len(),
            Self::Done(Transmit::Caller { message: ToTwilio::Media { audio }, .. })
            | Self::Done(Transmit::Model(ClientEvent::AppendAudio { audio })) => audio.len(),
            Self::ToolEnded(ToolResult { output: Ok(text) | Err(text), .. }) => text.len(),
            Self::Binary(..) | Self::Changed(..) | Self::Done(_) | Self::Happened(_) | Self::Asked(_) => 0,
        }
    }
}

/// How a call begins, as its journal remembers it.
#[derive(Clone, Debug, PartialEq)]
pub struct CallBeginning {
    /// Counts the calls of the server.
    pub key: u64,
    /// The wall clock when the caller's WebSocket was opened, Unix seconds.
    pub unix: i64,
    /// The same moment, counted from when the server began to serve.
    pub up: Duration,
    /// `max_calls` of the server.
    pub max_calls: usize,
    /// `drain_ms` of the server.
    pub drain_ms: u64,
    /// Length of the notice, bytes of mu-law.
    pub notice_bytes: usize,
    /// The settings of the call.
    pub call: std::sync::Arc<CallConfig>,
}

/// Where journals go.
pub trait Journal: Send + Sync {
    /// A call begins.
    fn begin(&self, beginning: CallBeginning) -> Box<dyn JournalWriter>;
}

/// Takes the notes of one call, in order, and is dropped with it. Called in the call's own task: must never wait.
pub trait JournalWriter: Send {
    /// `note` was made this long after the caller's WebSocket was opened.
    fn note(&mut self, after: Duration, note: JournalEntry);
}
