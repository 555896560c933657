//! What the model saw and did, in words for people.

use crate::record::ModelObservation;

/// One line about a sighting, without its time.
pub fn in_words(sight: &ModelObservation) -> String {
    match sight {
        ModelObservation::Opened => "the WebSocket is open".to_owned(),
        ModelObservation::Refused { how } => format!("refused: {how}"),
        ModelObservation::SentSessionCreated => "sent session.created".to_owned(),
        ModelObservation::SentSessionUpdated => "sent session.updated".to_owned(),
        ModelObservation::SentSpeechStarted { item, audio_start_ms, active } => {
            let over = active.as_ref().map(|response| format!(", over {response}")).unwrap_or_default();
            format!("sent speech started at {audio_start_ms} ms ({item}{over})")
        }
        ModelObservation::SentSpeechStopped { item, audio_end_ms } => {
            format!("sent speech stopped at {audio_end_ms} ms ({item})")
        }
        ModelObservation::SentResponseCreated { response, auto, asked } => match (auto, asked) {
            (true, _) => format!("sent response created, for the turn ({response})"),
            (false, Some(event)) => format!("sent response created, as asked by {event} ({response})"),
            (false, None) => format!("sent response created, as asked ({response})"),
        },
        ModelObservation::SentAudio { item, offset, samples, late, .. } => {
            let late = if *late { ", after the cancel" } else { "" };
            format!("sent audio {item} [{offset}..{} samples{late}]", offset + samples)
        }
        ModelObservation::SentAudioDone { item, .. } => format!("sent audio done ({item})"),
        ModelObservation::SentResponseDone { response, status } => {
            format!("sent response {status} ({response})")
        }
        ModelObservation::SentFunctionCall { call_id, name, .. } => {
            format!("sent a call of {name} ({call_id})")
        }
        ModelObservation::SentTruncated { item, audio_end_ms } => {
            format!("sent that {item} was cut at {audio_end_ms} ms")
        }
        ModelObservation::SentTranscription { item, text: Some(text) } => {
            format!("sent transcription, {} characters ({item})", text.chars().count())
        }
        ModelObservation::SentTranscription { item, text: None } => {
            format!("sent transcription failed ({item})")
        }
        ModelObservation::SentError { code, message, rejected, .. } => {
            let rejected = rejected.as_ref().map(|kind| format!("{kind} refused: ")).unwrap_or_default();
            format!("sent error {code}: {rejected}{message}")
        }
        ModelObservation::SentOther { kind } => format!("sent {kind}"),
        ModelObservation::GotUpdate { input, output } => {
            format!("got session.update: hears {input}, speaks {output}")
        }
        ModelObservation::GotAppend { offset, len } => {
            format!("got audio [{offset}..{} bytes]", offset + len)
        }
        ModelObservation::GotCreate { event_id, busy } => {
            let id = event_id.as_deref().unwrap_or("no event id");
            format!("got response.create ({id}{})", if *busy { ", while busy" } else { "" })
        }
        ModelObservation::GotCancel { response } => {
            format!("got response.cancel ({})", response.as_deref().unwrap_or("the active one"))
        }
        ModelObservation::GotTruncate { item, audio_end_ms: Some(ms), .. } => {
            format!("got cut of {item} at {ms} ms")
        }
        ModelObservation::GotTruncate { item, audio_end_ms: None, .. } => {
            format!("got cut of {item} at no position")
        }
        ModelObservation::GotText { role, text } => {
            format!("got {role} text, {} characters", text.chars().count())
        }
        ModelObservation::GotCall { call_id, name, .. } => {
            format!("got the earlier call {call_id} of {name}")
        }
        ModelObservation::GotToolOutput { call_id, fresh, output } => {
            let stale = if *fresh { "" } else { ", not expected" };
            format!("got output of {call_id}, {} bytes{stale}", output.len())
        }
        ModelObservation::GotDelete { item } => format!("got delete of {item}"),
        ModelObservation::GotOther { kind } => format!("got {kind}"),
        ModelObservation::GotBad { detail } => format!("got something off the protocol: {detail}"),
        ModelObservation::GotPing => "got a ping or pong".to_owned(),
        ModelObservation::Ended(ending) => format!("ended: {ending}"),
    }
}
