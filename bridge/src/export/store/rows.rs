//! What is stored, and what a store does with it.

use crate::export::worker::Weigh;
use crate::wire::realtime::Usage;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// The call a record belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallName {
    /// Names the call among all calls of all bridges; in order of beginning.
    pub id: String,
    /// The bridge process it is on.
    pub process: String,
    /// Twilio's name for the phone call.
    pub call_sid: String,
    /// Twilio's name for the stream.
    pub stream_sid: String,
    /// When it began, Unix ms.
    pub began_ms: i64,
}

/// Something to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The call.
    pub call: Arc<CallName>,
    /// When it happened, Unix ms.
    pub at_ms: i64,
    /// What.
    pub what: What,
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The stream is known.
    Began,
    /// The model's session is known.
    Session {
        /// Its id.
        id: String,
    },
    /// A line of the transcript, in place of what it was.
    Line(LineRow),
    /// A function call.
    ToolCalled {
        /// Its id.
        tool_call_id: String,
        /// The function.
        name: String,
        /// With what.
        arguments: String,
    },
    /// Its answer.
    ToolAnswered {
        /// Its id.
        tool_call_id: String,
        /// The function.
        name: String,
        /// How it ended.
        outcome: &'static str,
        /// What the model was told.
        output: String,
        /// How long it ran, ms.
        took_ms: Option<i64>,
    },
    /// A keypad entry.
    Keypad {
        /// Counts the entries of the call.
        number: i64,
        /// The keys.
        entry: String,
    },
    /// A response of the model.
    Response {
        /// Its id.
        response_id: String,
        /// How it ended.
        status: String,
        /// What it cost.
        tokens: Tokens,
    },
    /// The call is over; all of it that one record can say.
    Ended {
        /// The model's session.
        session_id: Option<String>,
        /// Why.
        reason: String,
        /// More about why.
        detail: String,
        /// What the call counted, a JSON object.
        counts: Option<String>,
        /// The whole transcript.
        lines: Vec<LineRow>,
    },
}

impl Weigh for Record {
    fn weight(&self) -> usize {
        let line = |line: &LineRow| size_of::<LineRow>() + line.text.len() + line.item.len();
        size_of::<Self>()
            + match &self.what {
                What::Began => 0,
                What::Session { id } => id.len(),
                What::Line(row) => line(row),
                What::ToolCalled { arguments: text, .. } | What::ToolAnswered { output: text, .. } => {
                    text.len()
                }
                What::Keypad { entry, .. } => entry.len(),
                What::Response { response_id, .. } => response_id.len(),
                What::Ended { lines, .. } => 1_000 + lines.iter().map(line).sum::<usize>(),
            }
    }
}

/// A call as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CallRow {
    /// Names the call among all calls of all bridges.
    pub id: String,
    /// The bridge process it was on.
    pub process: String,
    /// Twilio's name for the phone call.
    pub call_sid: String,
    /// Twilio's name for the stream.
    pub stream_sid: String,
    /// The model's name for the session.
    pub session_id: Option<String>,
    /// When it began, Unix ms.
    pub began_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// Why it ended.
    pub reason: Option<String>,
    /// More about why.
    pub detail: Option<String>,
    /// What it counted.
    pub counts: Option<Value>,
}

/// A line of a transcript as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LineRow {
    /// The item.
    pub item: String,
    /// Orders the lines.
    pub place: i64,
    /// When its first words came, Unix ms.
    pub at_ms: i64,
    /// `caller`, `keypad` or `agent`.
    pub speaker: String,
    /// What, as heard.
    pub text: String,
    /// Cut by a barge-in.
    pub cut: bool,
}

/// A function call as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ToolRow {
    /// Its id.
    pub tool_call_id: String,
    /// When, Unix ms.
    pub at_ms: i64,
    /// The function.
    pub name: String,
    /// With what.
    pub arguments: Option<String>,
    /// How it ended; missing as long as it runs.
    pub outcome: Option<String>,
    /// What the model was told.
    pub output: Option<String>,
    /// How long it ran.
    pub took_ms: Option<i64>,
}

/// A keypad entry as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeypadRow {
    /// Counts the entries of the call.
    pub number: i64,
    /// When, Unix ms.
    pub at_ms: i64,
    /// The keys.
    pub entry: String,
}

/// A response as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ResponseRow {
    /// Its id.
    pub response_id: String,
    /// When it ended, Unix ms.
    pub at_ms: i64,
    /// How.
    pub status: String,
    /// What it cost.
    pub tokens: Tokens,
}

/// What a response cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tokens {
    /// Text read.
    pub input_text: i64,
    /// Audio read.
    pub input_audio: i64,
    /// Of the text read, from the cache.
    pub cached_text: i64,
    /// Of the audio read, from the cache.
    pub cached_audio: i64,
    /// Text written.
    pub output_text: i64,
    /// Audio written.
    pub output_audio: i64,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            input_text: count(usage.input_text),
            input_audio: count(usage.input_audio),
            cached_text: count(usage.cached_text),
            cached_audio: count(usage.cached_audio),
            output_text: count(usage.output_text),
            output_audio: count(usage.output_audio),
        }
    }
}

/// A call with all that is known of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StoredCall {
    /// The call.
    #[serde(flatten)]
    pub call: CallRow,
    /// Who said what, in conversation order.
    pub lines: Vec<LineRow>,
    /// Its function calls.
    pub tools: Vec<ToolRow>,
    /// Its keypad entries.
    pub keypad: Vec<KeypadRow>,
    /// Its responses.
    pub responses: Vec<ResponseRow>,
}

/// Which calls to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: usize,
    /// Only those that began before this one: its beginning and its id.
    pub before: Option<(i64, String)>,
    /// Only those of this callSid, unless it is empty.
    pub call_sid: String,
}

/// Why something could not be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It may work later: the database is away, full, or busy.
    #[error("{0}")]
    Later(String),
    /// It will work once an operator has mended it: the file is corrupt, no database, or not writable.
    #[error("{0}")]
    Broken(String),
    /// It will never work.
    #[error("{0}")]
    Never(String),
}

/// Keeps transcripts.
pub trait Store: Send + Sync + 'static {
    /// Makes the tables, or changes them to what this version writes. Needed once before anything is written.
    fn prepare(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Finds out whether what was written has gone, with the place it was written to. Then the store begins anew, must be
    /// prepared again, and `true` is returned.
    fn recover(&self) -> impl Future<Output = Result<bool, StoreError>> + Send {
        std::future::ready(Ok(false))
    }

    /// Writes all of the batch, or nothing. What was written before may be written again.
    fn write(&self, batch: &[Record]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Calls, the newest first.
    fn list(&self, page: &Page) -> impl Future<Output = Result<Vec<CallRow>, StoreError>> + Send;

    /// The call of this id, or the newest of this callSid.
    fn find(&self, name: &str) -> impl Future<Output = Result<Option<StoredCall>, StoreError>> + Send;

    /// Puts everything down, so that the process can end.
    fn close(&self) -> impl Future<Output = ()> + Send;
}

// ---------------------------------------------------------------------------------------------- the queue
