//! What the model saw and did, in words for people.

use crate::record::ModelSight;

/// One line about a sighting, without its time.
pub fn in_words(sight: &ModelSight) -> String {
    match sight {
        ModelSight::Opened => "the WebSocket is open".to_owned(),
        ModelSight::Refused { how } => format!("refused: {how}"),
        ModelSight::SentSessionCreated => "sent session.created".to_owned(),
        ModelSight::SentSessionUpdated => "sent session.updated".to_owned(),
        ModelSight::SentSpeechStarted { item, audio_start_ms, active } => {
            let over = active.as_ref().map(|response| format!(", over {response}")).unwrap_or_default();
            format!("sent speech started at {audio_start_ms} ms ({item}{over})")
        }
        ModelSight::SentSpeechStopped { item, audio_end_ms } => {
            format!("sent speech stopped at {audio_end_ms} ms ({item})")
        }
        ModelSight::SentResponseCreated { response, auto, asked } => match (auto, asked) {
            (true, _) => format!("sent response created, for the turn ({response})"),
            (false, Some(event)) => format!("sent response created, as asked by {event} ({response})"),
            (false, None) => format!("sent response created, as asked ({response})"),
        },
        ModelSight::SentAudio { item, offset, samples, late, .. } => {
            let late = if *late { ", after the cancel" } else { "" };
            format!("sent audio {item} [{offset}..{} samples{late}]", offset + samples)
        }
        ModelSight::SentAudioDone { item, .. } => format!("sent audio done ({item})"),
        ModelSight::SentResponseDone { response, status } => format!("sent response {status} ({response})"),
        ModelSight::SentFunctionCall { call_id, name, .. } => format!("sent a call of {name} ({call_id})"),
        ModelSight::SentTruncated { item, audio_end_ms } => {
            format!("sent that {item} was cut at {audio_end_ms} ms")
        }
        ModelSight::SentTranscription { item, text: Some(text) } => {
            format!("sent transcription, {} characters ({item})", text.chars().count())
        }
        ModelSight::SentTranscription { item, text: None } => format!("sent transcription failed ({item})"),
        ModelSight::SentError { code, message, rejected, .. } => {
            let rejected = rejected.as_ref().map(|kind| format!("{kind} refused: ")).unwrap_or_default();
            format!("sent error {code}: {rejected}{message}")
        }
        ModelSight::SentOther { kind } => format!("sent {kind}"),
        ModelSight::GotUpdate { input, output } => {
            format!("got session.update: hears {input}, speaks {output}")
        }
        ModelSight::GotAppend { offset, len } => format!("got audio [{offset}..{} bytes]", offset + len),
        ModelSight::GotCreate { event_id, busy } => {
            let id = event_id.as_deref().unwrap_or("no event id");
            format!("got response.create ({id}{})", if *busy { ", while busy" } else { "" })
        }
        ModelSight::GotCancel { response } => {
            format!("got response.cancel ({})", response.as_deref().unwrap_or("the active one"))
        }
        ModelSight::GotTruncate { item, audio_end_ms: Some(ms), .. } => {
            format!("got cut of {item} at {ms} ms")
        }
        ModelSight::GotTruncate { item, audio_end_ms: None, .. } => {
            format!("got cut of {item} at no position")
        }
        ModelSight::GotText { role, text } => format!("got {role} text, {} characters", text.chars().count()),
        ModelSight::GotCall { call_id, name, .. } => format!("got the earlier call {call_id} of {name}"),
        ModelSight::GotToolOutput { call_id, fresh, output } => {
            let stale = if *fresh { "" } else { ", not expected" };
            format!("got output of {call_id}, {} bytes{stale}", output.len())
        }
        ModelSight::GotDelete { item } => format!("got delete of {item}"),
        ModelSight::GotOther { kind } => format!("got {kind}"),
        ModelSight::GotBad { detail } => format!("got something off the protocol: {detail}"),
        ModelSight::GotPing => "got a ping or pong".to_owned(),
        ModelSight::Ended(ending) => format!("ended: {ending}"),
    }
}
