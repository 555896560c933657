//! What the caller's end saw, in words for people.

use crate::record::CallerSight;

/// One line about a sighting, without its time.
pub fn in_words(sight: &CallerSight) -> String {
    match sight {
        CallerSight::Opened => "the WebSocket is open".into(),
        CallerSight::Refused { status: 0 } => "the upgrade got no answer".into(),
        CallerSight::Refused { status } => format!("the upgrade was refused with {status}"),
        CallerSight::SentConnected => "sent connected".into(),
        CallerSight::SentStart => "sent start".into(),
        CallerSight::SentMedia { frame } => format!("sent media, frame {frame}"),
        CallerSight::SentDtmf { digit } => format!("pressed {digit}"),
        CallerSight::SentMark { name, flushed: true } => format!("echoed mark {name}, flushed by a clear"),
        CallerSight::SentMark { name, flushed: false } => format!("echoed mark {name}"),
        CallerSight::SentStop => "sent stop".into(),
        CallerSight::SentRaw { what } => format!("sent {what}"),
        CallerSight::SpeechBegan { utterance } => format!("began to speak (utterance {utterance})"),
        CallerSight::SpeechEnded { utterance } => format!("fell silent (utterance {utterance})"),
        CallerSight::GotMedia { offset, len } => {
            format!("got {} ms of audio, from {} ms on", len / 8, offset / 8)
        }
        CallerSight::GotMark { name, offset } => format!("got mark {name} after {} ms of audio", offset / 8),
        CallerSight::GotClear { discarded, marks } => {
            format!("got clear: {} ms will not be heard, {marks} marks flushed", discarded / 8)
        }
        CallerSight::Warned { code, detail } => format!("warning {code}: {detail}"),
        CallerSight::GotPing => "got a ping or pong".into(),
        CallerSight::WentQuiet { heard } => format!("the ear went quiet after {} ms in all", heard / 8),
        CallerSight::Step { index, what } => format!("step {index}: {what}"),
        CallerSight::StatusCallback { event } => format!("status callback {event}"),
        CallerSight::Ended(ending) => ending.to_string(),
    }
}
