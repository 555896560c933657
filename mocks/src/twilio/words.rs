//! What the caller's end saw, in words for people.

use crate::record::CallerObservation;

/// One line about a sighting, without its time.
pub fn in_words(sight: &CallerObservation) -> String {
    match sight {
        CallerObservation::Opened => "the WebSocket is open".into(),
        CallerObservation::Refused { status: 0 } => "the upgrade got no answer".into(),
        CallerObservation::Refused { status } => format!("the upgrade was refused with {status}"),
        CallerObservation::SentConnected => "sent connected".into(),
        CallerObservation::SentStart => "sent start".into(),
        CallerObservation::SentMedia { frame } => format!("sent media, frame {frame}"),
        CallerObservation::SentDtmf { digit } => format!("pressed {digit}"),
        CallerObservation::SentMark { name, flushed: true } => {
            format!("echoed mark {name}, flushed by a clear")
        }
        CallerObservation::SentMark { name, flushed: false } => format!("echoed mark {name}"),
        CallerObservation::SentStop => "sent stop".into(),
        CallerObservation::SentRaw { what } => format!("sent {what}"),
        CallerObservation::SpeechBegan { utterance } => format!("began to speak (utterance {utterance})"),
        CallerObservation::SpeechEnded { utterance } => format!("fell silent (utterance {utterance})"),
        CallerObservation::GotMedia { offset, len } => {
            format!("got {} ms of audio, from {} ms on", len / 8, offset / 8)
        }
        CallerObservation::GotMark { name, offset } => {
            format!("got mark {name} after {} ms of audio", offset / 8)
        }
        CallerObservation::GotClear { discarded, marks } => {
            format!("got clear: {} ms will not be heard, {marks} marks flushed", discarded / 8)
        }
        CallerObservation::Warned { code, detail } => format!("warning {code}: {detail}"),
        CallerObservation::GotPing => "got a ping or pong".into(),
        CallerObservation::WentQuiet { heard } => format!("the ear went quiet after {} ms in all", heard / 8),
        CallerObservation::Step { index, what } => format!("step {index}: {what}"),
        CallerObservation::StatusCallback { event } => format!("status callback {event}"),
        CallerObservation::Ended(ending) => ending.to_string(),
    }
}
