//! How a response is generated, and how it is cancelled.
//!
//! When a response is created, everything it will say is laid out on the clock as a plan of small steps.
//! A cancel throws the rest of the plan away and lays out the closing run instead.

use super::ids::{Kind, pieces};
use super::items::{Body, Item, Spoken};
use super::response::{Cause, Gen, GenKind, Params, Pending, Response, Step};
use super::script::{
    AudioFormat, Call, CancelledItems, CloseAfter, Dialect, ErrorSpec, MESSAGE_MS_MAX, Outcome, Turn,
};
use super::session;
use super::voice::Source;
use super::{Link, Made, Model, Task, voice};
use crate::base64;
use crate::peer::At;
use crate::record::{ItemRecord, ModelObservation};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// From `response.created` to the end of a response that fails.
const FAILS_AFTER_MS: u64 = 50;

/// From `response.done` to `rate_limits.updated`.
const RATE_LIMITS_MS: u64 = 40;

/// So many deltas of a message may have a length of their own.
const FIRST_DELTAS: usize = 3;

/// The words of a message are out after one of so many of its spoken deltas, and after so many deltas at the latest.
const WORDS_SHARE: usize = 3;
const WORDS_DELTAS_MAX: usize = 8;

/// Arguments come in so many pieces, if they have as many characters, and so far apart.
const ARGUMENTS_PIECES: usize = 12;
const ARGUMENTS_MS: u64 = 10;

/// What a model that reasons has thought of before it speaks, in tokens.
const REASONING_TOKENS: u64 = 24;

/// Prompts are kept in blocks of so many tokens.
const CACHE_BLOCK: u64 = 64;

impl Model {
    // ------------------------------------------------------------------------------------------ creating

    /// The id of the response that speaks or will speak in the conversation, cancelled or not.
    pub(super) fn occupant(&self) -> Option<&str> {
        let active =
            self.active.and_then(|key| self.responses.get(&key)).map(|response| response.id.as_str());
        let pending = self.pending.values().find(|p| p.params.in_conversation).map(|p| p.id.as_str());
        active.or(pending)
    }

    /// The id of the response that speaks in the conversation and was not cancelled.
    pub(super) fn speaking(&self) -> Option<&str> {
        let key = self.running(None)?;
        self.responses.get(&key).map(|response| response.id.as_str())
    }

    /// The response of that id (or the one of the conversation), if it can still be cancelled.
    pub(super) fn running(&self, id: Option<&str>) -> Option<u64> {
        let can_be = |response: &Response| response.cancelled.is_none() && !response.done;
        match id {
            None => self.active.filter(|key| self.responses.get(key).is_some_and(can_be)),
            Some(id) => self.responses.iter().find(|(_, r)| r.id == id && can_be(r)).map(|(key, _)| *key),
        }
    }

    /// A response was asked for: it takes the next turn of the script.
    pub(super) fn request(&mut self, params: Params, cause: Cause, now: At) {
        let may_call = !params.no_calls || self.script.ignores_tool_choice;
        if params.in_conversation {
            self.repeated.clear(); // what the last response did not call again is not called again
        }
        let turn = if may_call && !self.again.is_empty() {
            // It goes on where it was, without the outputs.
            let again = std::mem::take(&mut self.again);
            let calls = again.iter().map(|(_, call)| Call { call_id: None, ..call.clone() }).collect();
            self.repeated.extend(again);
            Turn { calls, ..Turn::default() }
        } else {
            let turn = self.script.turn(self.progress.turns_used);
            if may_call || turn.calls.is_empty() {
                self.progress.turns_used += 1;
                turn
            } else {
                // It says something, and makes its calls when it may.
                Turn::default()
            }
        };
        if turn.never_created || self.dark {
            return;
        }
        self.responses_made += 1;
        let key = self.responses_made;
        self.later(now.plus_ms(turn.created_ms), Task::Create(key));
        let id = self.ids.make(Kind::Response);
        self.pending.insert(key, Pending { id, params, cause, turn });
    }

    pub(super) fn create(&mut self, key: u64, now: At) {
        let Some(Pending { id, params, cause, turn }) = self.pending.remove(&key) else { return };
        self.idle_epoch += 1;
        let items = self.compose(key, &turn, params.text || turn.text_only, params.format);
        let plan = lay_out(&turn, &items, params.format, now);
        let response = Response::new(id, params, turn, items, plan);

        let (auto, asked) = match cause {
            Cause::Turn => (true, None),
            Cause::Client(event_id) => (false, event_id),
        };
        let fields =
            json!({"response": self.response_json(&response, "in_progress", &Value::Null, &Value::Null)});
        let sight = ModelObservation::SentResponseCreated { response: response.id.clone(), auto, asked };
        if !response.turn.unannounced {
            self.say(now, "response.created", fields, Some(sight));
        }
        if response.params.in_conversation {
            self.active = Some(key);
        }
        if let Some(ms) = response.turn.drop_after_ms {
            self.later(now.plus_ms(ms), Task::Drop);
        }
        if let Some(CloseAfter { ms, code, reason }) = response.turn.close_after.clone() {
            self.later(now.plus_ms(ms), Task::Close { code, reason });
        }
        self.keep(key, response);
    }

    /// Puts a response back, to be woken for its next step.
    fn keep(&mut self, key: u64, mut response: Response) {
        if self.link != Link::Open || (response.done && response.plan.is_empty()) {
            return;
        }
        let next = response.plan.front().map(|(at, _)| *at);
        if let Some(at) = next.filter(|_| response.wake != next) {
            self.later(at, Task::Reply(key));
        }
        response.wake = next;
        self.responses.insert(key, response);
    }

    /// What a turn is made of, before any of it is sent.
    fn compose(&mut self, key: u64, turn: &Turn, text: bool, format: AudioFormat) -> Vec<Gen> {
        let nothing = turn.silent || turn.never_audio || turn.unannounced;
        if nothing || matches!(turn.status, Outcome::Failed(_)) {
            return Vec::new();
        }
        let mut items = Vec::new();
        for (i, &ms) in turn.messages().iter().enumerate() {
            let clip = turn.says.as_deref().map(|name| voice::clip(format, name));
            let recorded = turn.recorded.get(i).filter(|_| clip.is_none());
            let words = match (&turn.transcript, &clip) {
                (Some(text), _) if i == 0 => text.clone(),
                (None, Some((_, _, words))) if !words.is_empty() => (*words).to_owned(),
                (Some(_) | None, _) => self.ids.words(ms, self.responses_made * 16 + i as u64),
            };
            let words = pieces(&words);
            let kind = if text {
                GenKind::Written { words }
            } else {
                // Samples are counted at 24 kHz here, so that one number fits every format.
                let (source, speech) = match clip {
                    Some((source, samples, _)) => (source, samples),
                    None => {
                        let offset = voice::tape_offset(self.identity.index, self.progress.voices_used);
                        self.progress.voices_used += 1;
                        match recorded {
                            Some(sound) => voice::recorded(format, &sound.0, ms, offset),
                            None => (Source::Tape(offset), ms as usize * 24),
                        }
                    }
                };
                let silence_ms = turn.trailing_silence_ms.min(MESSAGE_MS_MAX);
                let samples = speech + silence_ms as usize * 24;
                GenKind::Spoken { source, speech, samples, words }
            };
            items.push(Gen::new(self.ids.make(Kind::Item), kind));
        }
        for call in &turn.calls {
            let call_id = call.call_id.clone().unwrap_or_else(|| self.ids.make(Kind::Call));
            let (response, refusals) = (key, turn.refuses_outputs);
            let made = Made { response, call: call.clone(), refusals, repeats: false };
            self.calls.insert(call_id.clone(), made);
            let copies = if turn.duplicate_call { 2 } else { 1 };
            for _ in 0..copies {
                let (name, arguments) = (call.name.clone(), call.arguments.clone());
                let kind = GenKind::Call { name, call_id: call_id.clone(), arguments };
                items.push(Gen::new(self.ids.make(Kind::Item), kind));
            }
        }
        items
    }

    // ------------------------------------------------------------------------------------------ cancelling

    /// The caller took the floor: the response of the conversation ends, even one only about to begin.
    pub(super) fn interrupt(&mut self, now: At) {
        if let Some(key) = self.running(None) {
            self.cancel(key, "turn_detected", now);
        }
        let begun =
            self.pending.iter().find(|(_, pending)| pending.params.in_conversation).map(|(key, _)| *key);
        if let Some(key) = begun {
            if self.pending.get(&key).is_some_and(|pending| pending.turn.uncreated) {
                self.skip_creation(key);
            } else {
                self.create(key, now);
            }
            self.cancel(key, "turn_detected", now);
        }
    }

    /// A response that was asked for is there to be cancelled, and nothing was said of it.
    fn skip_creation(&mut self, key: u64) {
        let Some(Pending { id, params, turn, .. }) = self.pending.remove(&key) else { return };
        self.idle_epoch += 1;
        self.responses.insert(key, Response::new(id, params, turn, Vec::new(), VecDeque::new()));
    }

    /// Cancels a response: a few deltas that were on their way, then the closing run.
    pub(super) fn cancel(&mut self, key: u64, reason: &'static str, now: At) {
        let Some(mut response) = self.responses.remove(&key) else { return };
        response.cancelled = Some(reason);
        let late: Vec<_> = std::mem::take(&mut response.plan)
            .into_iter()
            .map(|(_, step)| step)
            .take_while(|step| !matches!(step, Step::Add(_) | Step::Close(_) | Step::Done))
            .filter(|step| matches!(step, Step::Audio { .. }))
            .take(response.turn.late_deltas as usize)
            .collect();
        let mut at = now;
        for step in late {
            at = at.plus_ms(response.turn.late_gap_ms);
            response.plan.push_back((at, step));
        }
        let closes = response.turn.cancelled_items != CancelledItems::LeftOpen;
        let open: Vec<_> = (0..response.items.len())
            .filter(|&i| closes && response.items[i].added.is_some() && !response.items[i].closed)
            .collect();
        if !open.is_empty() {
            at = at.plus_ms(response.turn.late_gap_ms);
        }
        response.plan.extend(open.into_iter().map(|item| (at, Step::Close(item))));
        at = at.plus_ms(response.turn.late_done_ms);
        response.plan.push_back((at, Step::Done));
        if response.turn.rate_limits {
            response.plan.push_back((at.plus_ms(RATE_LIMITS_MS), Step::RateLimits));
        }
        response.wake = None;
        self.keep(key, response);
        self.reply(key, now);
    }

    // ------------------------------------------------------------------------------------------ speaking

    /// Does the steps of a response that are due.
    pub(super) fn reply(&mut self, key: u64, now: At) {
        let Some(mut response) = self.responses.remove(&key) else { return };
        while let Some((_, step)) = response.plan.pop_front_if(|(at, _)| *at <= now) {
            self.step(key, &mut response, step, now);
        }
        self.keep(key, response);
    }

    fn step(&mut self, key: u64, response: &mut Response, step: Step, now: At) {
        match step {
            Step::Add(item) => self.add(response, item, now),
            Step::OpenPart(item) => self.open_part(response, item, now),
            Step::Word { item, word } => self.say_word(response, item, word, now),
            Step::Audio { item, from, to } => self.say_audio(response, item, from, to, now),
            Step::Arguments { item, from, to } => self.say_arguments(response, item, from, to, now),
            Step::Close(item) => self.close_item(response, item, now),
            Step::Error(error) => self.complain(now, error.into()),
            Step::Done => self.done(key, response, now),
            Step::RateLimits => self.rate_limits(now),
        }
    }

    fn add(&mut self, response: &mut Response, index: usize, now: At) {
        // What is said before something else of the same response is not the answer yet.
        let phase = if index + 1 < response.items.len() { "commentary" } else { "final_answer" };
        let generated = &mut response.items[index];
        generated.added = Some(self.record.observations.len());
        let rate = response.params.format.rate();
        let body = match &generated.kind {
            GenKind::Spoken { source, speech, .. } => {
                let voice_offset = match source {
                    Source::Tape(offset) => Some(*offset),
                    Source::Clip(_) => None,
                };
                self.record.items.push(ItemRecord {
                    id: generated.id.clone(),
                    response: response.id.clone(),
                    voice_offset,
                    rate,
                    speech: speech * rate as usize / 24_000,
                    added: self.record.observations.len(),
                    ..ItemRecord::default()
                });
                let record = self.record.items.len() - 1;
                Body::Spoken(Spoken { rate, record, ..Spoken::default() })
            }
            GenKind::Written { .. } => Body::Written { text: String::new(), opened: false },
            GenKind::Call { name, call_id, .. } => Body::Call {
                name: name.clone(),
                call_id: call_id.clone(),
                arguments: String::new(),
                answered: false,
            },
        };
        let mut item = Item::new(generated.id.clone(), "in_progress", body);
        let is_message = !matches!(generated.kind, GenKind::Call { .. });
        item.phase = (is_message && session::is_2x(&self.session.model)).then_some(phase);
        let fields = json!({
            "response_id": response.id, "output_index": index, "item": item.json(self.script.dialect),
        });
        let id = generated.id.clone();
        if response.params.in_conversation {
            self.place(item, None);
        } else {
            self.items.insert(id.clone(), item);
        }
        self.say(now, "response.output_item.added", fields, None);
        if response.params.in_conversation {
            self.say_item_added(&id, now);
        }
    }

    fn open_part(&mut self, response: &Response, index: usize, now: At) {
        let id = &response.items[index].id;
        let part = match self.items.get_mut(id).map(|item| &mut item.body) {
            Some(Body::Spoken(spoken)) => {
                spoken.opened = true;
                json!({"type": "audio", "transcript": ""})
            }
            Some(Body::Written { opened, .. }) => {
                *opened = true;
                json!({"type": "text", "text": ""})
            }
            Some(Body::Heard { .. } | Body::Given(_) | Body::Call { .. } | Body::Output { .. }) | None => {
                return;
            }
        };
        let mut fields = place_of(response, index);
        fields["part"] = part;
        self.say(now, "response.content_part.added", fields, None);
    }

    fn say_word(&mut self, response: &mut Response, index: usize, word: usize, now: At) {
        let mut fields = place_of(response, index);
        let generated = &mut response.items[index];
        let (kind, word) = match &generated.kind {
            GenKind::Spoken { words, .. } => ("response.output_audio_transcript.delta", &words[word]),
            GenKind::Written { words } => ("response.output_text.delta", &words[word]),
            GenKind::Call { .. } => return,
        };
        generated.said.push_str(word);
        match self.items.get_mut(&generated.id).map(|item| &mut item.body) {
            Some(Body::Spoken(spoken)) => {
                self.record.items[spoken.record].transcript.push_str(word);
                if !spoken.truncated {
                    spoken.transcript.push_str(word);
                }
            }
            Some(Body::Written { text, .. }) => text.push_str(word),
            Some(Body::Heard { .. } | Body::Given(_) | Body::Call { .. } | Body::Output { .. }) | None => {}
        }
        fields["delta"] = json!(word);
        fields["obfuscation"] = json!(self.ids.obfuscation());
        self.say(now, kind, fields, None);
    }

    fn say_audio(&mut self, response: &Response, index: usize, from: usize, to: usize, now: At) {
        let generated = &response.items[index];
        let GenKind::Spoken { source, speech, .. } = &generated.kind else { return };
        let Some(Item { body: Body::Spoken(spoken), .. }) = self.items.get_mut(&generated.id) else { return };
        let format = response.params.format;
        let width = format.sample_bytes();
        let speech = speech * format.rate() as usize / 24_000;
        let bytes = voice::cut(format, source, speech, from, to);
        // A delta may end inside a sample; a sample counts when its last byte has gone.
        let (first, end) = (from / width, to / width);
        if !spoken.truncated {
            spoken.samples = end;
        }
        let record = spoken.record;
        if !self.is_mute() {
            let record = &mut self.record.items[record];
            if from.is_multiple_of(width) && to.is_multiple_of(width) {
                voice::decode(format, &bytes, &mut record.audio);
            } else {
                let whole = voice::cut(format, source, speech, first * width, end * width);
                voice::decode(format, &whole, &mut record.audio);
            }
            if format != AudioFormat::Pcm {
                record.coded.extend_from_slice(&bytes);
            }
            record.sent = end;
        }
        let sight = ModelObservation::SentAudio {
            response: response.id.clone(),
            item: generated.id.clone(),
            offset: first,
            samples: end - first,
            late: response.cancelled.is_some(),
        };
        let fields = place_of(response, index);
        self.say_with_audio(now, "response.output_audio.delta", fields, Some(&bytes), Some(sight));
    }

    fn say_arguments(&mut self, response: &mut Response, index: usize, from: usize, to: usize, now: At) {
        let generated = &mut response.items[index];
        let GenKind::Call { call_id, arguments, .. } = &generated.kind else { return };
        let piece = &arguments[from..to];
        generated.said.push_str(piece);
        if let Some(Item { body: Body::Call { arguments, .. }, .. }) = self.items.get_mut(&generated.id) {
            arguments.push_str(piece);
        }
        let fields = json!({
            "response_id": response.id, "item_id": generated.id, "output_index": index, "call_id": call_id,
            "delta": piece, "obfuscation": self.ids.obfuscation(),
        });
        self.say(now, "response.function_call_arguments.delta", fields, None);
    }

    /// The closing run of an item. All of it also comes when the item was interrupted.
    fn close_item(&mut self, response: &mut Response, index: usize, now: At) {
        let place = place_of(response, index);
        let generated = &mut response.items[index];
        generated.closed = true;
        let whole = response.cancelled.is_none() && !matches!(response.turn.status, Outcome::Incomplete(_));
        let (id, said) = (generated.id.clone(), generated.said.clone());
        let Some(item) = self.items.get_mut(&id) else { return };
        // Half a function call is no call, whatever becomes of half a sentence.
        let passes = response.cancelled.is_some()
            && response.turn.cancelled_items == CancelledItems::Completed
            && !matches!(generated.kind, GenKind::Call { .. });
        item.status = if whole || passes { "completed" } else { "incomplete" };
        let opened = match &item.body {
            Body::Spoken(spoken) => spoken.opened,
            Body::Written { opened, .. } => *opened,
            Body::Heard { .. } | Body::Given(_) | Body::Call { .. } | Body::Output { .. } => false,
        };
        let with = |key: &str, value: Value| {
            let mut fields = place.clone();
            fields[key] = value;
            fields
        };
        let mut sight = None;
        match &generated.kind {
            GenKind::Spoken { .. } if opened => {
                let done =
                    ModelObservation::SentAudioDone { response: response.id.clone(), item: id.clone() };
                self.say(now, "response.output_audio.done", place.clone(), Some(done));
                self.say(now, "response.output_audio_transcript.done", with("transcript", json!(said)), None);
                let part = json!({"type": "audio", "transcript": said});
                self.say(now, "response.content_part.done", with("part", part), None);
            }
            GenKind::Written { .. } if opened => {
                self.say(now, "response.output_text.done", with("text", json!(said)), None);
                let part = json!({"type": "text", "text": said});
                self.say(now, "response.content_part.done", with("part", part), None);
            }
            GenKind::Spoken { .. } | GenKind::Written { .. } => {}
            GenKind::Call { name, call_id, arguments } => {
                let mut fields = json!({
                    "response_id": response.id, "item_id": id, "output_index": index, "call_id": call_id,
                });
                if self.script.dialect == Dialect::Ga {
                    fields["name"] = json!(name);
                }
                fields["arguments"] = json!(said);
                self.say(now, "response.function_call_arguments.done", fields, None);
                let is_it = |(_, call): &(String, Call)| call.name == *name && call.arguments == *arguments;
                let again = self.repeated.iter().position(is_it).filter(|_| whole);
                let again = again.map(|at| self.repeated.remove(at).0);
                sight = whole.then(|| ModelObservation::SentFunctionCall {
                    call_id: call_id.clone(),
                    again,
                    response: response.id.clone(),
                    name: name.clone(),
                    added: generated.added.unwrap_or_default(),
                });
            }
        }
        if response.params.in_conversation {
            self.say_item_done(&id, now);
        }
        let item = self.items.get(&id).map_or(Value::Null, |item| item.json(self.script.dialect));
        let fields = json!({"response_id": response.id, "output_index": index, "item": item});
        self.say(now, "response.output_item.done", fields, sight);
    }

    fn done(&mut self, key: u64, response: &mut Response, now: At) {
        response.done = true;
        let (status, details) = match (response.cancelled, &response.turn.status) {
            (Some(reason), _) => ("cancelled", json!({"type": "cancelled", "reason": reason})),
            (None, Outcome::Completed) => ("completed", Value::Null),
            (None, Outcome::Incomplete(reason)) => {
                ("incomplete", json!({"type": "incomplete", "reason": reason}))
            }
            (None, Outcome::Failed(ErrorSpec { kind, code, message })) => {
                let error = json!({"type": kind, "code": code, "message": message});
                ("failed", json!({"type": "failed", "error": error}))
            }
        };
        let usage = self.usage(response);
        let fields = json!({"response": self.response_json(response, status, &details, &usage)});
        let sight =
            ModelObservation::SentResponseDone { response: response.id.clone(), status: status.to_owned() };
        self.say(now, "response.done", fields, Some(sight));
        if self.active == Some(key) {
            self.active = None;
        }
        let idle_ms = self.session.turns.as_ref().and_then(|turns| turns.idle_timeout_ms);
        if let (Some(idle_ms), None) = (idle_ms, response.cancelled) {
            let spoken_ms: u64 = response
                .items
                .iter()
                .map(|generated| match generated.kind {
                    GenKind::Spoken { samples, .. } => samples as u64 / 24,
                    GenKind::Written { .. } | GenKind::Call { .. } => 0,
                })
                .sum();
            let task = Task::IdleTimeout { epoch: self.idle_epoch };
            self.later(now.plus_ms(spoken_ms + idle_ms), task);
        }
    }

    /// The end of a response that never began.
    pub(super) fn say_unknown_done(&mut self, now: At) {
        let error = ErrorSpec::default();
        let error = json!({"type": error.kind, "code": error.code, "message": error.message});
        let response = json!({
            "object": "realtime.response", "id": self.ids.make(Kind::Response), "status": "failed",
            "status_details": {"type": "failed", "error": error}, "output": [],
            "conversation_id": self.conversation_id, "usage": null, "metadata": null,
        });
        let sight = ModelObservation::SentOther { kind: "done_for_unknown_response".to_owned() };
        self.say(now, "response.done", json!({ "response": response }), Some(sight));
    }

    /// A delta of a response that does not exist, as loud as any other.
    pub(super) fn say_unknown_delta(&mut self, now: At) {
        let (response, item) = (self.ids.make(Kind::Response), self.ids.make(Kind::Item));
        let format = self.session.output;
        let bytes = voice::cut(format, &Source::Tape(0), usize::MAX, 0, format.bytes_per_ms() * 200);
        let fields = json!({
            "response_id": response, "item_id": item, "output_index": 0, "content_index": 0,
            "delta": base64::text(&bytes),
        });
        let sight = ModelObservation::SentOther { kind: "delta_for_unknown_response".to_owned() };
        self.say(now, "response.output_audio.delta", fields, Some(sight));
    }

    // ------------------------------------------------------------------------------------------ showing

    fn response_json(&self, response: &Response, status: &str, details: &Value, usage: &Value) -> Value {
        let dialect = self.script.dialect;
        let params = &response.params;
        let output: Vec<_> = response
            .items
            .iter()
            .filter(|generated| generated.added.is_some())
            .filter_map(|generated| self.items.get(&generated.id))
            .map(|item| item.json(dialect))
            .collect();
        let conversation = params.in_conversation.then_some(&self.conversation_id);
        let modalities = session::modalities(params.text, dialect);
        let format = session::format_json(params.format, dialect);
        match dialect {
            Dialect::Ga => json!({
                "object": "realtime.response",
                "id": response.id,
                "status": status,
                "status_details": details,
                "output": output,
                "conversation_id": conversation,
                "output_modalities": modalities,
                "max_output_tokens": params.max_output_tokens,
                "audio": {"output": {"format": format, "voice": params.voice}},
                "usage": usage,
                "metadata": params.metadata,
            }),
            Dialect::Beta => json!({
                "object": "realtime.response",
                "id": response.id,
                "status": status,
                "status_details": details,
                "output": output,
                "conversation_id": conversation,
                "modalities": modalities,
                "voice": params.voice,
                "output_audio_format": format,
                "temperature": params.temperature,
                "max_output_tokens": params.max_output_tokens,
                "usage": usage,
                "metadata": params.metadata,
            }),
        }
    }

    /// What the response costs. A failed one costs nothing.
    fn usage(&mut self, response: &Response) -> Value {
        let sum = |tokens: &mut dyn Iterator<Item = (u64, u64)>| {
            tokens.fold((0, 0), |(text, audio), (t, a)| (text + t, audio + a))
        };
        let mine = |id: &str| response.items.iter().any(|generated| generated.id == id);
        let mut before = self
            .record
            .conversation
            .iter()
            .filter(|id| !mine(id))
            .filter_map(|id| self.items.get(id))
            .map(Item::tokens);
        let (text_in, audio_in) = sum(&mut before);
        let text_in = text_in + self.session.instructions.len() as u64 / 4;
        let mut own =
            response.items.iter().filter_map(|generated| self.items.get(&generated.id)).map(Item::tokens);
        let (text_out, audio_out) = sum(&mut own);
        if matches!(response.turn.status, Outcome::Failed(_)) && response.cancelled.is_none() {
            return usage_json((0, 0), (0, 0), 0, None);
        }
        // What the response before was given is still there, in whole blocks.
        let cached = self.cached.min(text_in + audio_in) / CACHE_BLOCK * CACHE_BLOCK;
        self.cached = text_in + audio_in;
        let thought = session::is_2x(&self.session.model);
        let thought = thought.then_some(if response.items.is_empty() { 0 } else { REASONING_TOKENS });
        usage_json((text_in, audio_in), (text_out, audio_out), cached, thought)
    }
}

/// Tokens of text and audio, in and out. Those of the cache are among those that went in, text first.
fn usage_json(
    (text_in, audio_in): (u64, u64),
    (text_out, audio_out): (u64, u64),
    cached: u64,
    thought: Option<u64>,
) -> Value {
    let cached_text = cached.min(text_in);
    let out = text_out + audio_out + thought.unwrap_or_default();
    let mut usage = json!({
        "total_tokens": text_in + audio_in + out,
        "input_tokens": text_in + audio_in,
        "output_tokens": out,
        "input_token_details": {
            "text_tokens": text_in, "audio_tokens": audio_in, "image_tokens": 0, "cached_tokens": cached,
            "cached_tokens_details":
                {"text_tokens": cached_text, "audio_tokens": cached - cached_text, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
    });
    if let Some(thought) = thought {
        usage["output_token_details"]["reasoning_tokens"] = json!(thought);
    }
    usage
}

impl Response {
    const fn new(
        id: String,
        params: Params,
        turn: Turn,
        items: Vec<Gen>,
        plan: VecDeque<(At, Step)>,
    ) -> Self {
        Self { id, params, turn, items, plan, wake: None, cancelled: None, done: false }
    }
}

impl Response {
    /// `response.done` was sent.
    pub(super) const fn is_done(&self) -> bool {
        self.done
    }
}

impl Gen {
    const fn new(id: String, kind: GenKind) -> Self {
        Self { id, kind, added: None, closed: false, said: String::new() }
    }
}

/// The four fields that name a content part.
fn place_of(response: &Response, index: usize) -> Value {
    json!({
        "response_id": response.id, "item_id": response.items[index].id,
        "output_index": index, "content_index": 0,
    })
}

/// Lays a turn out on the clock.
fn lay_out(turn: &Turn, items: &[Gen], format: AudioFormat, created: At) -> VecDeque<(At, Step)> {
    let mut plan = VecDeque::new();
    if turn.never_audio {
        return plan;
    }
    let first = created.plus_ms(turn.first_audio_ms);
    let mut clock = match turn.status {
        Outcome::Failed(_) => created.plus_ms(FAILS_AFTER_MS),
        Outcome::Completed | Outcome::Incomplete(_) => first,
    };
    let mut stall = turn.stall;
    let mut generated_ms = 0;
    // Messages are closed together at the end, and never before the arguments of the call that follows them are out.
    let mut open = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let added = if i == 0 { created.plus_ms(turn.first_audio_ms / 2) } else { clock };
        plan.push_back((added, Step::Add(i)));
        match &item.kind {
            GenKind::Spoken { samples, speech, words, .. } => {
                plan.push_back((added, Step::OpenPart(i)));
                let began = clock;
                let total = samples * format.rate() as usize / 24_000 * format.sample_bytes();
                let per_ms = format.bytes_per_ms();
                let sizes = delta_sizes(turn, total, per_ms);
                let out_after = match turn.words_out_after {
                    Some(after) => after.min(sizes.len()),
                    None => {
                        let speech = speech * format.rate() as usize / 24_000 * format.sample_bytes();
                        let spoken = begins(&sizes).take_while(|from| *from < speech).count();
                        (spoken / WORDS_SHARE).min(WORDS_DELTAS_MAX)
                    }
                };
                let burst =
                    if turn.one_delta { total } else { turn.burst_ms.min(MESSAGE_MS_MAX) as usize * per_ms };
                let (mut from, mut word, mut stalled_ms) = (0, 0, 0);
                for (delta, size) in sizes.into_iter().enumerate() {
                    let to = from + size;
                    if let Some(pause) =
                        stall.filter(|pause| generated_ms + (from / per_ms) as u64 >= pause.after_ms)
                    {
                        stalled_ms += pause.for_ms;
                        stall = None;
                    }
                    let generation_us =
                        to.saturating_sub(burst) as f64 / per_ms as f64 * 1_000.0 / turn.speed.max(0.01);
                    clock = At(began.0 + generation_us as u64).plus_ms(stalled_ms);
                    // Evenly, the first before all of the audio, the last as many deltas later as it takes.
                    while word < words.len() && word * out_after <= delta * (words.len() - 1) {
                        plan.push_back((clock, Step::Word { item: i, word }));
                        word += 1;
                    }
                    plan.push_back((clock, Step::Audio { item: i, from, to }));
                    from = to;
                }
                plan.extend((word..words.len()).map(|word| (clock, Step::Word { item: i, word })));
                generated_ms += (total / per_ms) as u64;
                open.push(i);
            }
            GenKind::Written { words } => {
                plan.push_back((added, Step::OpenPart(i)));
                for word in 0..words.len() {
                    plan.push_back((clock, Step::Word { item: i, word }));
                    clock = clock.plus_ms(ARGUMENTS_MS);
                }
                open.push(i);
            }
            GenKind::Call { arguments, .. } => {
                let piece = arguments.len().div_ceil(ARGUMENTS_PIECES);
                let mut from = 0;
                while from < arguments.len() {
                    let to = arguments.ceil_char_boundary(from + piece);
                    plan.push_back((clock, Step::Arguments { item: i, from, to }));
                    clock = clock.plus_ms(ARGUMENTS_MS);
                    from = to;
                }
                plan.extend(open.drain(..).map(|message| (clock, Step::Close(message))));
                plan.push_back((clock, Step::Close(i)));
            }
        }
    }
    plan.extend(open.drain(..).map(|message| (clock, Step::Close(message))));
    let clock = clock.plus_ms(turn.done_after_ms);
    plan.push_back((clock, Step::Done));
    if turn.rate_limits {
        plan.push_back((clock.plus_ms(RATE_LIMITS_MS), Step::RateLimits));
    }
    if let Some(error) = &turn.error {
        let audio: Vec<_> =
            (0..plan.len()).filter(|&step| matches!(plan[step].1, Step::Audio { .. })).collect();
        let middle = audio.get(audio.len() / 2).copied().unwrap_or(0);
        plan.insert(middle, (plan[middle].0, Step::Error(error.clone())));
    }
    plan
}

/// Bytes of each audio delta of an item.
fn delta_sizes(turn: &Turn, total: usize, per_ms: usize) -> Vec<usize> {
    let usual = turn.delta_ms.max(1) as usize * per_ms;
    let first = turn.first_delta_ms.unwrap_or(turn.delta_ms).max(1) as usize * per_ms;
    let mut sizes = Vec::new();
    let mut left = total;
    while left > 0 {
        let size = match turn.delta_bytes {
            _ if turn.one_delta => total,
            Some(bytes) => bytes.max(1),
            None if sizes.len() < FIRST_DELTAS => first,
            None => usual,
        };
        sizes.push(size.min(left));
        left -= size.min(left);
    }
    sizes
}

/// Where each delta begins, in bytes of the item's audio.
fn begins(sizes: &[usize]) -> impl Iterator<Item = usize> {
    sizes.iter().scan(0, |end, size| {
        let from = *end;
        *end += size;
        Some(from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_deltas_may_be_short() {
        assert_eq!(delta_sizes(&Turn::default(), 8 * 800, 8), [2_000, 2_000, 2_000, 400]);
        let turn = Turn { first_delta_ms: Some(100), ..Turn::default() };
        assert_eq!(delta_sizes(&turn, 8 * 1_000, 8), [800, 800, 800, 2_000, 2_000, 1_600]);
    }

    #[test]
    fn exact_bytes_may_be_odd() {
        let turn = Turn { delta_bytes: Some(777), ..Turn::default() };
        assert_eq!(delta_sizes(&turn, 2_000, 48), [777, 777, 446]);
    }

    #[test]
    fn audio_is_generated_at_its_speed() {
        let spoken = GenKind::Spoken {
            source: Source::Tape(0),
            speech: 24 * 2_300,
            samples: 24 * 2_300,
            words: pieces("One two."),
        };
        let items = [Gen::new("item_1".to_owned(), spoken)];
        let plan = lay_out(&Turn::default(), &items, AudioFormat::Pcmu, At::ms(1_000));
        let audio = |plan: &VecDeque<(At, Step)>| -> Vec<u64> {
            let audio = plan.iter().filter(|(_, step)| matches!(step, Step::Audio { .. }));
            audio.map(|(at, _)| at.as_ms()).collect()
        };
        assert_eq!(audio(&plan), [1_354, 1_354, 1_354, 1_404, 1_454, 1_504, 1_554, 1_604, 1_654, 1_664]);
        assert!(matches!(plan[plan.len() - 2], (at, Step::Done) if at == At::ms(1_664)));
        let drip = Turn { speed: 1.0, burst_ms: 0, ..Turn::default() };
        let plan = lay_out(&drip, &items, AudioFormat::Pcmu, At::ms(1_000));
        assert_eq!(audio(&plan)[..3], [1_604, 1_854, 2_104], "without a burst each waits for its own audio");
    }

    /// How many audio deltas have gone out before each word.
    fn deltas_before_words(turn: &Turn) -> Vec<usize> {
        let speech = 24 * 2_100;
        let words = pieces("One two three four five six seven eight nine ten.");
        let samples = speech + 24 * turn.trailing_silence_ms as usize;
        let spoken = GenKind::Spoken { source: Source::Tape(0), speech, samples, words };
        let items = [Gen::new("item_1".to_owned(), spoken)];
        let mut deltas = 0;
        let mut before = Vec::new();
        for (_, step) in lay_out(turn, &items, AudioFormat::Pcmu, At::ms(0)) {
            deltas += usize::from(matches!(step, Step::Audio { .. }));
            if matches!(step, Step::Word { .. }) {
                before.push(deltas);
            }
        }
        before
    }

    #[test]
    fn silence_after_the_speech_has_no_words_and_delays_none() {
        let alone = deltas_before_words(&Turn::default());
        let silent = deltas_before_words(&Turn { trailing_silence_ms: 2_800, ..Turn::default() });
        assert_eq!((alone.len(), &alone), (10, &silent));
    }

    #[test]
    fn all_words_are_out_after_as_many_deltas_as_the_script_says() {
        for after in [0, 1, 2, 3, 8] {
            let turn = Turn { words_out_after: Some(after), trailing_silence_ms: 2_800, ..Turn::default() };
            let before = deltas_before_words(&turn);
            assert_eq!(before.len(), 10);
            assert!(before.is_sorted());
            assert_eq!((before[0], before[9]), (0, after), "{before:?}");
            let spread: std::collections::BTreeSet<_> = before.iter().collect();
            assert_eq!(spread.len(), after + 1, "words go with each delta up to it: {before:?}");
        }
        let endless = Turn { words_out_after: Some(1_000), ..Turn::default() };
        assert_eq!(deltas_before_words(&endless).len(), 10, "no word is lost where there are fewer deltas");
    }

    #[test]
    fn plans_never_go_back_in_time() {
        let turn = Turn {
            items: vec![700, 900],
            stall: Some(super::super::Stall { after_ms: 500, for_ms: 2_000 }),
            error: Some(ErrorSpec::default()),
            ..Turn::default()
        };
        let spoken = |ms| GenKind::Spoken {
            source: Source::Tape(0),
            speech: ms,
            samples: ms * 24,
            words: pieces("One two."),
        };
        let items = [Gen::new("a".to_owned(), spoken(700)), Gen::new("b".to_owned(), spoken(900))];
        let plan = lay_out(&turn, &items, AudioFormat::Pcm, At::ms(0));
        assert!(plan.iter().zip(plan.iter().skip(1)).all(|(one, next)| one.0 <= next.0));
        let closes: Vec<_> = plan
            .iter()
            .filter(|(_, step)| matches!(step, Step::Close(_)))
            .map(|(at, _)| at.as_ms())
            .collect();
        assert_eq!(closes.len(), 2);
        assert_eq!(closes[0], closes[1], "items of one response are closed together");
    }
}
