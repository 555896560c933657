//! What an end saw, when: the raw material of every judgement.
//!
//! A record is plain data. It is written by the mock while the call runs and read by the oracles afterwards.
//! All times are scenario time; all audio offsets count bytes of G.711 (8 bytes = 1 ms) unless a field says
//! otherwise. Records are never asked of the bridge.

use crate::peer::At;
use std::fmt;

/// Something seen, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation<T> {
    /// When it was seen by this end.
    pub at: At,
    /// What it was.
    pub what: T,
}

/// How a connection ended, as one end saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// We sent the first close frame (or dropped the connection, then `code` is `None`).
    ByUs {
        /// The close code sent.
        code: Option<u16>,
    },
    /// The other side sent a close frame first.
    ByPeer {
        /// The close code received, `None` for an empty close frame.
        code: Option<u16>,
        /// The reason received.
        reason: String,
    },
    /// The connection just ended: end of stream, reset, or it was never made.
    Lost {
        /// The transport's words.
        why: String,
    },
}

// ------------------------------------------------------------------------------------------ caller's end

/// What the Twilio end saw and did.
#[derive(Clone, Debug, PartialEq)]
pub enum CallerObservation {
    /// The WebSocket is open.
    Opened,
    /// The upgrade was refused with this HTTP status (0: no answer at all).
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// `connected` was sent.
    SentConnected,
    /// `start` was sent.
    SentStart,
    /// A `media` message was sent; its audio is in [`CallerRecord::mic`].
    SentMedia {
        /// Index into [`CallerRecord::mic`].
        frame: usize,
    },
    /// A `dtmf` message was sent.
    SentDtmf {
        /// The key.
        digit: char,
    },
    /// A mark was echoed. `flushed` when a `clear` returned it unplayed.
    SentMark {
        /// The mark's name.
        name: String,
        /// Returned by a `clear`, not by play-out.
        flushed: bool,
    },
    /// `stop` was sent.
    SentStop,
    /// Something off-protocol was sent on purpose (malformed, unknown, binary, oversized).
    SentRaw {
        /// What it was, shortened.
        what: String,
    },
    /// The person began to speak (the first frame with speech left the microphone).
    SpeechBegan {
        /// Counts utterances of this caller from 0.
        utterance: usize,
    },
    /// The person fell silent (the first silent frame after speech left the microphone).
    SpeechEnded {
        /// Counts utterances of this caller from 0.
        utterance: usize,
    },
    /// A `media` message arrived; its audio was appended to [`CallerRecord::received`].
    GotMedia {
        /// Offset of its first byte in [`CallerRecord::received`].
        offset: usize,
        /// Bytes of mu-law.
        len: usize,
    },
    /// A `mark` arrived.
    GotMark {
        /// Its name.
        name: String,
        /// Length of [`CallerRecord::received`] when it arrived: all audio before it.
        offset: usize,
    },
    /// A `clear` arrived.
    GotClear {
        /// Bytes that were queued and will never be heard.
        discarded: usize,
        /// Marks it flushed.
        marks: usize,
    },
    /// Twilio would have raised this warning (31950, 31951, 31931) for what the bridge sent.
    Warned {
        /// The code.
        code: u16,
        /// What was wrong.
        detail: String,
    },
    /// A ping or pong arrived.
    GotPing,
    /// Playback ran dry while the agent was speaking, or after it ended.
    WentQuiet {
        /// Bytes heard so far.
        heard: usize,
    },
    /// The script reached its next step.
    Step {
        /// Its index.
        index: usize,
        /// The step in words.
        what: String,
    },
    /// Twilio would call the status callback with this event (`stream-started`, `stream-stopped`, `stream-error`).
    StatusCallback {
        /// The event.
        event: String,
    },
    /// The connection has ended.
    Ended(Ending),
}

/// One frame that left the microphone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicFrame {
    /// When it was sent.
    pub at: At,
    /// Its `media.timestamp`, ms.
    pub timestamp_ms: u64,
    /// Offset in [`CallerRecord::spoken`].
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    /// Whether the person was speaking.
    pub speech: bool,
}

/// A stretch of received audio that was really played, without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Played {
    /// When its first byte was played.
    pub at: At,
    /// Offset of that byte in [`CallerRecord::received`].
    pub offset: usize,
    /// Bytes played; they took `len / 8` ms.
    pub len: usize,
}

impl Played {
    /// When its last byte had been played.
    pub const fn end(&self) -> At {
        At(self.at.0 + self.len as u64 * 125)
    }
}

/// Everything the Twilio end saw of one stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallerRecord {
    /// The call this stream belongs to.
    pub call_sid: String,
    /// The stream.
    pub stream_sid: String,
    /// What was seen, in order.
    pub observations: Vec<Observation<CallerObservation>>,
    /// All mu-law bytes sent, in order.
    pub spoken: Vec<u8>,
    /// The frames of `spoken`.
    pub mic: Vec<MicFrame>,
    /// All mu-law bytes received, in order, heard or not.
    pub received: Vec<u8>,
    /// What was heard, in order.
    pub played: Vec<Played>,
}

// ------------------------------------------------------------------------------------------ model's end

/// What the Realtime end saw and did.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelObservation {
    /// The WebSocket is open.
    Opened,
    /// The connection attempt was answered by the script with a refusal instead (in words).
    Refused {
        /// Which refusal.
        how: String,
    },
    /// `session.created` was sent.
    SentSessionCreated,
    /// `session.updated` was sent.
    SentSessionUpdated,
    /// `input_audio_buffer.speech_started` was sent.
    SentSpeechStarted {
        /// The future user item.
        item: String,
        /// Start of speech in appended audio, ms.
        audio_start_ms: u64,
        /// The response that was active at that moment, if one was.
        active: Option<String>,
    },
    /// `input_audio_buffer.speech_stopped` was sent.
    SentSpeechStopped {
        /// The user item.
        item: String,
        /// End of speech in appended audio, ms (includes the silence window).
        audio_end_ms: u64,
    },
    /// `response.created` was sent.
    SentResponseCreated {
        /// Its id.
        response: String,
        /// Created by VAD rather than asked for.
        auto: bool,
        /// The `event_id` of the client's `response.create`, if it was asked for.
        asked: Option<String>,
    },
    /// An audio delta was sent.
    SentAudio {
        /// The response.
        response: String,
        /// The item.
        item: String,
        /// Offset of its first sample in the item, in samples of the item's own rate ([`ItemRecord::rate`]).
        offset: usize,
        /// Samples.
        samples: usize,
        /// Sent after the response had been cancelled.
        late: bool,
    },
    /// `response.output_audio.done` was sent.
    SentAudioDone {
        /// The response.
        response: String,
        /// The item.
        item: String,
    },
    /// `response.done` was sent.
    SentResponseDone {
        /// The response.
        response: String,
        /// `completed`, `cancelled`, `incomplete` or `failed`.
        status: String,
    },
    /// A function call was sent whole (`response.output_item.done`).
    SentFunctionCall {
        /// Its call id.
        call_id: String,
        /// The response it belongs to.
        response: String,
        /// The function.
        name: String,
        /// When its item entered the conversation: so many observations there were by then.
        added: usize,
        /// The same call was made before, under this id, and its output was refused.
        again: Option<String>,
    },
    /// `conversation.item.truncated` was sent: the truncation was accepted.
    SentTruncated {
        /// The item.
        item: String,
        /// Where it was cut, ms.
        audio_end_ms: u64,
    },
    /// A final input transcription was sent.
    SentTranscription {
        /// The user item.
        item: String,
        /// The text, `None` when it failed.
        text: Option<String>,
    },
    /// An `error` event was sent.
    SentError {
        /// Its code.
        code: String,
        /// Its message.
        message: String,
        /// The client event it answers.
        event_id: Option<String>,
        /// The type of the client event that was rejected; `None` when the error was the script's idea.
        rejected: Option<String>,
    },
    /// Any other event was sent.
    SentOther {
        /// Its type, or what it was if it had none.
        kind: String,
    },
    /// `session.update` arrived and was accepted.
    GotUpdate {
        /// Effective input format, e.g. `audio/pcm`.
        input: String,
        /// Effective output format.
        output: String,
    },
    /// `input_audio_buffer.append` arrived; its audio was appended to [`ModelRecord::appended`].
    GotAppend {
        /// Offset of its first byte.
        offset: usize,
        /// Bytes, in the session's input format.
        len: usize,
    },
    /// `response.create` arrived.
    GotCreate {
        /// Its event id.
        event_id: Option<String>,
        /// Whether a response was active or being created at that moment.
        busy: bool,
    },
    /// `response.cancel` arrived.
    GotCancel {
        /// The response it names.
        response: Option<String>,
    },
    /// `conversation.item.truncate` arrived.
    GotTruncate {
        /// The item.
        item: String,
        /// The content part.
        content_index: u64,
        /// Where to cut, ms; `None` when it was no non-negative integer.
        audio_end_ms: Option<u64>,
    },
    /// A text message item arrived.
    GotText {
        /// Its role.
        role: String,
        /// Its text.
        text: String,
    },
    /// A function call arrived that an earlier session made.
    GotCall {
        /// Its call id.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments.
        arguments: String,
    },
    /// A function call output arrived.
    GotToolOutput {
        /// Which call it answers.
        call_id: String,
        /// Whether that call was known and unanswered.
        fresh: bool,
        /// The output.
        output: String,
    },
    /// `conversation.item.delete` arrived.
    GotDelete {
        /// The item.
        item: String,
    },
    /// Any other client event arrived.
    GotOther {
        /// Its type.
        kind: String,
    },
    /// A frame arrived that breaks the protocol (binary, bad JSON, unknown or misspelt field).
    GotBad {
        /// What was wrong.
        detail: String,
    },
    /// A ping or pong arrived.
    GotPing,
    /// The connection has ended.
    Ended(Ending),
}

/// One item the model generated audio for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemRecord {
    /// The item.
    pub id: String,
    /// Its response.
    pub response: String,
    /// Where its audio begins in the master voice ([`golden::agent_voice`]), in 24 kHz samples; `None` for silence
    /// and for clips.
    pub voice_offset: Option<usize>,
    /// Sample rate of the audio as sent: 24,000 or 8,000.
    pub rate: u32,
    /// Samples of speech at its beginning, at `rate`, over which its words are spread; what follows is silence.
    pub speech: usize,
    /// When it entered the conversation: so many observations there were by then.
    pub added: usize,
    /// Samples sent so far.
    pub sent: usize,
    /// Every sample sent, as linear PCM at `rate` (decoded when the format is G.711).
    pub audio: Vec<i16>,
    /// The bytes sent when the session speaks G.711, for exact comparison; empty otherwise.
    pub coded: Vec<u8>,
    /// The words of the item.
    pub transcript: String,
    /// Where the client cut it, ms.
    pub truncated_ms: Option<u64>,
}

/// Everything the Realtime end saw of one connection.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelRecord {
    /// Which call the connection belongs to (from `X-Client-Request-Id`), empty when it did not say.
    pub call_sid: String,
    /// What was seen, in order.
    pub observations: Vec<Observation<ModelObservation>>,
    /// All appended input audio, decoded from base64, in the session's input format.
    pub appended: Vec<u8>,
    /// The session's input format at the first append: `audio/pcm` (16-bit LE, 24 kHz) or `audio/pcmu`.
    pub input_format: String,
    /// What the last accepted `session.update` asked for.
    pub settings: Option<serde_json::Value>,
    /// Items with audio, in order of creation.
    pub items: Vec<ItemRecord>,
    /// Ids of every conversation item in order, as the server holds them at the end.
    pub conversation: Vec<String>,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByUs { code: Some(code) } => write!(f, "closed by this end ({code})"),
            Self::ByUs { code: None } => write!(f, "dropped by this end"),
            Self::ByPeer { code: Some(code), reason } if reason.is_empty() => {
                write!(f, "closed by the bridge ({code})")
            }
            Self::ByPeer { code: Some(code), reason } => write!(f, "closed by the bridge ({code} {reason})"),
            Self::ByPeer { code: None, .. } => write!(f, "closed by the bridge (no code)"),
            Self::Lost { why } => write!(f, "lost: {why}"),
        }
    }
}
