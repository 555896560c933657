//! What each client event does.

use super::ids::Kind;
use super::items::{Body, Item, text_of};
use super::response::{Cause, Params};
use super::rules::{self, Rejection};
use super::script::AudioFormat;
use super::voice;
use super::{Complaint, Model, Task};
use crate::base64;
use crate::peer::At;
use crate::record::ModelObservation;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Largest audio of one append, bytes.
const APPEND_MAX: usize = 15 * 1024 * 1024;

/// Shortest audio that can be committed, ms.
const COMMIT_MS_MIN: usize = 100;

const APPEND: &str = "input_audio_buffer.append";

/// The one message that comes fifty times a second, in the form every client sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    audio: &'a str,
}

impl Model {
    pub(super) fn client_binary(&mut self, len: usize, now: At) {
        self.see(now, ModelObservation::GotBad { detail: format!("binary frame of {len} bytes") });
        let text = "Expected a text WebSocket message; binary frames are not supported.";
        self.reject("binary", Rejection::new("invalid_event", text), None, now);
    }

    pub(super) fn client_text(&mut self, text: &str, now: At) {
        if let Ok(Append { kind: APPEND, audio }) = serde_json::from_str(text) {
            return self.append(audio, None, now);
        }
        let event: Value = match serde_json::from_str(text) {
            Ok(event) => event,
            Err(error) => {
                self.see(now, ModelObservation::GotBad { detail: format!("not JSON: {error}") });
                let text = format!("Could not parse the event as JSON: {error}.");
                return self.reject("malformed", Rejection::new("invalid_json", text), None, now);
            }
        };
        let Some(kind) = event["type"].as_str() else {
            self.see(now, ModelObservation::GotBad { detail: "event without a type".to_owned() });
            let refusal = Rejection::at("invalid_event", "The event has no 'type'.", "type");
            return self.reject("untyped", refusal, event_id(&event), now);
        };
        self.note(kind, &event, now);
        if let Err(refusal) = rules::check(kind, &event, self.script.dialect) {
            self.see(now, ModelObservation::GotBad { detail: refusal.message.clone() });
            return self.reject(kind, refusal, event_id(&event), now);
        }
        if let Err(refusal) = self.obey(kind, &event, now) {
            self.reject(kind, refusal, event_id(&event), now);
        }
    }

    /// Notes what arrived, as well as it can be read, before anything is judged.
    fn note(&mut self, kind: &str, event: &Value, now: At) {
        let sight = match kind {
            // These are noted where their outcome is known.
            APPEND | "session.update" | "conversation.item.create" => return,
            "response.create" => {
                let busy = self.active.is_some() || self.pending.values().any(|p| p.params.in_conversation);
                ModelObservation::GotCreate { event_id: event_id(event), busy }
            }
            "response.cancel" => ModelObservation::GotCancel { response: text(&event["response_id"]) },
            "conversation.item.truncate" => ModelObservation::GotTruncate {
                item: text(&event["item_id"]).unwrap_or_default(),
                content_index: event["content_index"].as_u64().unwrap_or_default(),
                audio_end_ms: event["audio_end_ms"].as_u64(),
            },
            "conversation.item.delete" => {
                ModelObservation::GotDelete { item: text(&event["item_id"]).unwrap_or_default() }
            }
            other => ModelObservation::GotOther { kind: other.to_owned() },
        };
        self.see(now, sight);
    }

    /// Answers a client event with an `error`.
    fn reject(&mut self, kind: &str, refusal: Rejection, event_id: Option<String>, now: At) {
        let Rejection { code, message, param, anonymous } = refusal;
        let event_id = event_id.filter(|_| !anonymous);
        let complaint = Complaint {
            kind: "invalid_request_error".to_owned(),
            code: Some(code.to_owned()),
            message,
            param,
            event_id,
            rejected: Some(kind.to_owned()),
        };
        self.complain(now, complaint);
    }

    /// Does what a well-formed event asks for, if the state of the session allows it.
    fn obey(&mut self, kind: &str, event: &Value, now: At) -> Result<(), Rejection> {
        match kind {
            "session.update" => self.update(event, now),
            APPEND => {
                self.append(event["audio"].as_str().unwrap_or_default(), event_id(event), now);
                Ok(())
            }
            "input_audio_buffer.commit" => self.commit_by_hand(now),
            "input_audio_buffer.clear" => {
                self.forget_turn();
                self.buffer_from = self.record.appended.len();
                self.say(now, "input_audio_buffer.cleared", json!({}), None);
                Ok(())
            }
            "conversation.item.create" => self.create_item(event, now),
            "conversation.item.retrieve" => self.retrieve(event, now),
            "conversation.item.truncate" => self.truncate(event, now),
            "conversation.item.delete" => self.delete(event, now),
            "response.create" => self.create_response(event, now),
            "response.cancel" => self.cancel_response(event, now),
            "output_audio_buffer.clear" => {
                let text = "The output audio buffer belongs to WebRTC and SIP sessions, not to a WebSocket.";
                Err(Rejection::at("invalid_value", text, "type"))
            }
            other => rules::known(other),
        }
    }

    // ------------------------------------------------------------------------------------------ session

    fn update(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let at = now.plus_ms(self.script.updated_after_ms);
        if let Some(code) = self.script.refuses_update.clone() {
            self.see(now, ModelObservation::GotOther { kind: "session.update".to_owned() });
            self.later(at, Task::RefuseUpdate { code, event_id: event_id(event) });
            return Ok(());
        }
        let spoken = self.has_spoken();
        let new = self.session.updated(&event["session"], spoken, &self.script).inspect_err(|_| {
            let what = ModelObservation::GotOther { kind: "session.update".to_owned() };
            self.record.observations.push(crate::record::Observation { at: now, what });
        })?;
        if new.input != self.session.input {
            self.detector.change_format();
            self.forget_turn();
        } else if new.turns.is_none() {
            self.forget_turn();
        }
        self.session = new;
        self.record.settings = Some(event["session"].clone());
        let (input, output) = (self.session.input.name().to_owned(), self.session.output.name().to_owned());
        self.see(now, ModelObservation::GotUpdate { input, output });
        if !self.script.never_updates {
            let echo = self.session.echo(&self.script);
            self.later(at, Task::Updated(echo));
        }
        Ok(())
    }

    /// The session has sent audio in its voice.
    fn has_spoken(&self) -> bool {
        self.record.items.iter().any(|item| item.sent > 0)
    }

    // ------------------------------------------------------------------------------------------ input audio

    fn append(&mut self, audio: &str, event_id: Option<String>, now: At) {
        if audio.len() / 4 * 3 > APPEND_MAX {
            let text = format!("Invalid 'audio': at most {APPEND_MAX} bytes of audio fit into one event.");
            return self.reject(
                APPEND,
                Rejection::at("string_above_max_length", text, "audio"),
                event_id,
                now,
            );
        }
        let offset = self.record.appended.len();
        let decoded = match base64::decode(audio) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.see(now, ModelObservation::GotBad { detail: format!("append: not base64: {error}") });
                let text = "Invalid 'audio'. Expected base64-encoded audio bytes but got an invalid value.";
                return self.reject(APPEND, Rejection::at("invalid_value", text, "audio"), event_id, now);
            }
        };
        if offset == 0 {
            self.session.input.name().clone_into(&mut self.record.input_format);
        }
        self.record.appended.extend_from_slice(&decoded);
        self.see(now, ModelObservation::GotAppend { offset, len: decoded.len() });
        self.listen(&decoded, now);
    }

    fn commit_by_hand(&mut self, now: At) -> Result<(), Rejection> {
        let end = self.record.appended.len();
        let per_ms = self.session.input.bytes_per_ms();
        let waiting = end - self.buffer_from;
        if waiting < COMMIT_MS_MIN * per_ms {
            let text = format!(
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, \
                 but buffer only has {:.2}ms of audio.",
                waiting as f64 / per_ms as f64
            );
            return Err(Rejection::new("input_audio_buffer_commit_empty", text));
        }
        let heard = self.hearing.take().map(|(item, _)| item);
        let item = heard.unwrap_or_else(|| self.ids.make(Kind::Item));
        self.forget_turn();
        self.commit(item, end, now);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ items

    fn create_item(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let asked = &event["item"];
        let output = self.note_item(asked, now)?;
        let index = match event["previous_item_id"].as_str() {
            None => None,
            Some("root") => Some(0),
            Some(previous) => match self.record.conversation.iter().position(|id| id == previous) {
                Some(index) => Some(index + 1),
                None => {
                    let text = format!("Item with item_id '{previous}' not found.");
                    return Err(Rejection::at("invalid_value", text, "previous_item_id"));
                }
            },
        };
        let id = text(&asked["id"]).unwrap_or_else(|| self.ids.make(Kind::Item));
        if self.items.contains_key(&id) {
            let text = format!("An item with id '{id}' exists already.");
            return Err(Rejection::at("invalid_value", text, "item.id"));
        }
        if let Some(Body::Output { call_id, .. }) = &output {
            self.settle_call(call_id);
        }
        let body = match output {
            Some(output) => output,
            None if asked["type"] == "function_call" => Body::Call {
                name: text(&asked["name"]).unwrap_or_default(),
                call_id: text(&asked["call_id"]).unwrap_or_else(|| self.ids.make(Kind::Call)),
                arguments: text(&asked["arguments"]).unwrap_or_default(),
                answered: false,
            },
            None => Body::Given(shown(asked)),
        };
        self.place(Item::new(id.clone(), "completed", body), index);
        self.say_item_added(&id, now);
        self.say_item_done(&id, now);
        Ok(())
    }

    /// Notes an item the client wrote; a function call output must answer a call of the conversation.
    fn note_item(&mut self, asked: &Value, now: At) -> Result<Option<Body>, Rejection> {
        let said = |key: &str| text(&asked[key]).unwrap_or_default();
        match asked["type"].as_str().unwrap_or_default() {
            "message" => {
                self.see(
                    now,
                    ModelObservation::GotText { role: said("role"), text: text_of(&asked["content"]) },
                );
                Ok(None)
            }
            "function_call_output" => {
                let (call_id, output) = (said("call_id"), said("output"));
                let calls = self.items.values().filter(|item| item.placed);
                let answers: Vec<_> = calls
                    .filter_map(|item| match &item.body {
                        Body::Call { call_id: id, answered, .. } if *id == call_id => Some(*answered),
                        Body::Call { .. }
                        | Body::Heard { .. }
                        | Body::Given(_)
                        | Body::Spoken(_)
                        | Body::Written { .. }
                        | Body::Output { .. } => None,
                    })
                    .collect();
                let fresh = !answers.is_empty() && answers.iter().all(|answered| !answered);
                let sight = ModelObservation::GotToolOutput {
                    call_id: call_id.clone(),
                    fresh,
                    output: output.clone(),
                };
                self.see(now, sight);
                if answers.is_empty() || self.refuses_output(&call_id) {
                    let text = format!("Tool call ID '{call_id}' not found in conversation.");
                    return Err(Rejection::at("invalid_tool_call_id", text, "item.call_id"));
                }
                Ok(Some(Body::Output { call_id, output }))
            }
            "function_call" => {
                let (call_id, name, arguments) = (said("call_id"), said("name"), said("arguments"));
                self.see(now, ModelObservation::GotCall { call_id, name, arguments });
                Ok(None)
            }
            other => {
                self.see(
                    now,
                    ModelObservation::GotOther { kind: format!("conversation.item.create {other}") },
                );
                Ok(None)
            }
        }
    }

    /// Whether the server will not have the output of a call that it knows. Then the model makes the call again.
    fn refuses_output(&mut self, call_id: &str) -> bool {
        let Some(made) = self.calls.get_mut(call_id) else { return false };
        let early = self.responses.get(&made.response).is_some_and(|response| !response.is_done());
        let scripted = made.refusals > 0;
        made.refusals = made.refusals.saturating_sub(1);
        let refused = scripted || (early && self.script.refuses_early_outputs);
        if refused && !std::mem::replace(&mut made.repeats, true) {
            self.again.push((call_id.to_owned(), made.call.clone()));
        }
        refused
    }

    fn settle_call(&mut self, settled: &str) {
        self.again.retain(|(call_id, _)| call_id != settled);
        for item in self.items.values_mut() {
            if let Body::Call { call_id, answered, .. } = &mut item.body
                && call_id == settled
            {
                *answered = true;
            }
        }
    }

    /// The item of that id, if it is part of the conversation.
    fn placed(&mut self, event: &Value, code: &'static str) -> Result<&mut Item, Rejection> {
        let id = event["item_id"].as_str().unwrap_or_default();
        let item = self.items.get_mut(id).filter(|item| item.placed);
        item.ok_or_else(|| Rejection::at(code, format!("Item with item_id '{id}' not found."), "item_id"))
    }

    fn retrieve(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let dialect = self.script.dialect;
        let item = self.placed(event, "item_retrieve_invalid_item_id")?;
        let mut shown = item.json(dialect);
        let body = item.body.clone();
        let audio = match body {
            Body::Heard { from, to, .. } => Some(self.record.appended[from..to].to_vec()),
            Body::Spoken(spoken) => {
                // What was sent in G.711 is shown as sent: it has two zeros, and linear samples have one.
                let record = &self.record.items[spoken.record];
                Some(match record.coded.get(..spoken.samples) {
                    Some(coded) if !record.coded.is_empty() => coded.to_vec(),
                    Some(_) | None => voice::encode(
                        AudioFormat::Pcm,
                        &record.audio[..spoken.samples.min(record.audio.len())],
                    ),
                })
            }
            Body::Given(_) | Body::Written { .. } | Body::Call { .. } | Body::Output { .. } => None,
        };
        if let (Some(audio), true) = (audio, shown["content"][0].is_object()) {
            shown["content"][0]["audio"] = json!(base64::text(&audio));
        }
        self.say(now, "conversation.item.retrieved", json!({ "item": shown }), None);
        Ok(())
    }

    fn truncate(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let content_index = event["content_index"].as_u64().unwrap_or_default();
        let end_ms = event["audio_end_ms"].as_u64().unwrap_or_default();
        let item = self.placed(event, "item_truncate_invalid_item_id")?;
        let id = item.id.clone();
        let spoken = match &mut item.body {
            Body::Spoken(spoken) if spoken.samples > 0 || spoken.truncated => spoken,
            Body::Spoken(_)
            | Body::Heard { .. }
            | Body::Given(_)
            | Body::Written { .. }
            | Body::Call { .. }
            | Body::Output { .. } => {
                let text = "Only model output audio messages can be truncated";
                return Err(Rejection::new("unsupported_content_type", text));
            }
        };
        if content_index != 0 {
            let text =
                format!("Content index {content_index} is out of range: the item has one content part.");
            return Err(Rejection::at("invalid_value", text, "content_index"));
        }
        if end_ms > spoken.ms() {
            let text = format!("Audio content of {}ms is already shorter than {end_ms}ms", spoken.ms());
            return Err(Rejection::new("invalid_value", text).anonymous());
        }
        spoken.samples = end_ms as usize * spoken.rate as usize / 1_000;
        spoken.transcript.clear();
        spoken.truncated = true;
        let record = spoken.record;
        self.record.items[record].truncated_ms = Some(end_ms);
        let fields = json!({"item_id": id, "content_index": content_index, "audio_end_ms": end_ms});
        let sight = ModelObservation::SentTruncated { item: id, audio_end_ms: end_ms };
        self.say(now, "conversation.item.truncated", fields, Some(sight));
        Ok(())
    }

    fn delete(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let item = self.placed(event, "item_delete_invalid_item_id")?;
        item.placed = false;
        let id = item.id.clone();
        self.record.conversation.retain(|other| *other != id);
        self.say(now, "conversation.item.deleted", json!({ "item_id": id }), None);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------ responses

    fn create_response(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        let asked = &event["response"];
        let params = Params::of(&self.session, asked, self.script.dialect);
        if params.voice != self.session.voice && self.has_spoken() {
            let text = "Cannot update a conversation's voice if assistant audio is present.";
            return Err(Rejection::new("cannot_update_voice", text));
        }
        if params.in_conversation
            && let Some(id) = self.occupant()
        {
            let text = format!(
                "Conversation already has an active response in progress: {id}. \
                 Wait until the response is finished before creating a new one."
            );
            return Err(Rejection::new("conversation_already_has_active_response", text));
        }
        self.request(params, Cause::Client(event_id(event)), now);
        Ok(())
    }

    fn cancel_response(&mut self, event: &Value, now: At) -> Result<(), Rejection> {
        match self.running(event["response_id"].as_str()) {
            Some(key) => {
                self.cancel(key, "client_cancelled", now);
                Ok(())
            }
            None => {
                let text = "Cancellation failed: no active response found";
                Err(Rejection::new("response_cancel_not_active", text).anonymous())
            }
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn event_id(event: &Value) -> Option<String> {
    text(&event["event_id"])
}

/// An item the client wrote, as the server shows it: without audio, with a status.
fn shown(asked: &Value) -> Map<String, Value> {
    let mut shown = Map::new();
    let Some(fields) = asked.as_object() else { return shown };
    shown.insert("type".to_owned(), asked["type"].clone());
    if asked["type"] == "message" {
        shown.insert("status".to_owned(), json!("completed"));
    }
    for (key, value) in fields {
        if matches!(key.as_str(), "id" | "object" | "type" | "status") {
            continue;
        }
        let mut value = value.clone();
        for part in value.as_array_mut().into_iter().flatten() {
            if let Some(part) = part.as_object_mut()
                && part.remove("audio").is_some()
            {
                part.entry("transcript").or_insert(Value::Null);
            }
        }
        shown.insert(key.clone(), value);
    }
    shown
}
