//! When a turn begins and ends, and what follows from it: the item, its transcription, the response.

use super::ids::{Kind, pieces};
use super::items::{Body, Item};
use super::response::{Cause, Params};
use super::script::When;
use super::vad::Heard;
use super::{Model, Scribble, Task};
use crate::peer::At;
use crate::record::ModelObservation;
use serde_json::{Value, json};

/// From the commit to the first words of a transcription, and to its end.
const TRANSCRIPT_DELTA_MS: u64 = 400;
const TRANSCRIPT_DONE_MS: u64 = 500;

/// The transcription model that writes words down while they are spoken, from so far into the speech on, a word
/// each so often.
const DICTATION: &str = "gpt-realtime-whisper";
const DICTATION_FROM_MS: u64 = 1_200;
const DICTATION_WORD_MS: u64 = 400;

/// A second `speech_started` of one utterance comes this much later.
const REPEAT_MS: u64 = 60;

impl Model {
    /// The detector hears new audio; what it proves becomes events a little later.
    pub(super) fn listen(&mut self, bytes: &[u8], now: At) {
        let limits = self.session.turns.as_ref().map(|turns| (turns.prefix_ms, turns.silence_ms()));
        let at = now.plus_ms(self.script.vad.vad_latency_ms);
        let epoch = self.turn_epoch;
        for heard in self.detector.listen(bytes, self.session.input, limits) {
            match heard {
                Heard::Started { audio_start_ms } => {
                    self.later(at, Task::SpeechStarted { epoch, audio_start_ms, repeat: false });
                    if self.script.vad.extra_speech_started {
                        let again = Task::SpeechStarted { epoch, audio_start_ms, repeat: true };
                        self.later(at.plus_ms(REPEAT_MS), again);
                    }
                }
                Heard::Stopped { audio_end_ms } => {
                    self.later(at, Task::SpeechStopped { epoch, audio_end_ms });
                }
            }
        }
        self.dictate(now);
    }

    /// Some models write words down before the turn is over, and before its item exists.
    fn dictate(&mut self, now: At) {
        let Some((item, audio_start_ms)) = self.hearing.clone() else { return };
        if self.session.transcription["model"] != DICTATION {
            return;
        }
        let prefix_ms = self.session.turns.as_ref().map_or(0, |turns| turns.prefix_ms);
        let spoken_ms = self.detector.clock_ms().saturating_sub(audio_start_ms + prefix_ms);
        let Some(ms) = spoken_ms.checked_sub(DICTATION_FROM_MS) else { return };
        let turn = self.progress.user_turns;
        let plan = self.script.transcription.get(turn).cloned().unwrap_or_default();
        if plan.when == When::Never {
            return;
        }
        let text = plan.text.unwrap_or_else(|| self.ids.words(spoken_ms, voice_of(turn)));
        let words = dictation(&text);
        // What the last word is shows when the turn is over.
        let due = usize::try_from(ms / DICTATION_WORD_MS + 1).unwrap_or(usize::MAX);
        let due = due.min(words.len().saturating_sub(1));
        let said = if self.dictated.0 == item { self.dictated.1 } else { 0 };
        if let Some(fresh) = words.get(said..due) {
            fresh.iter().for_each(|word| self.say_transcribed(&item, word, now));
            self.dictated = (item, due.max(said));
        }
    }

    fn say_transcribed(&mut self, item: &str, words: &str, now: At) {
        let obfuscation = self.ids.obfuscation();
        let fields = json!({"item_id": item, "content_index": 0, "delta": words, "obfuscation": obfuscation});
        self.say(now, "conversation.item.input_audio_transcription.delta", fields, None);
    }

    /// Throws the turn in progress away: decisions that are not events yet are void.
    pub(super) fn forget_turn(&mut self) {
        self.turn_epoch += 1;
        self.hearing = None;
        self.detector.reset();
    }

    pub(super) fn speech_started(&mut self, audio_start_ms: u64, repeat: bool, now: At) {
        if repeat && self.hearing.is_none() {
            return;
        }
        self.idle_epoch += 1;
        let item = self.ids.make(Kind::Item);
        self.hearing = Some((item.clone(), audio_start_ms));
        let active = self.speaking().map(str::to_owned);
        let fields = json!({"audio_start_ms": audio_start_ms, "item_id": item});
        let sight = ModelObservation::SentSpeechStarted { item, audio_start_ms, active };
        self.say(now, "input_audio_buffer.speech_started", fields, Some(sight));
        if self.session.turns.as_ref().is_some_and(|turns| turns.interrupt_response) {
            self.interrupt(now);
        }
    }

    pub(super) fn speech_stopped(&mut self, audio_end_ms: u64, now: At) {
        let Some((item, audio_start_ms)) = self.hearing.take() else { return };
        let fields = json!({"audio_end_ms": audio_end_ms, "item_id": item});
        let sight = ModelObservation::SentSpeechStopped { item: item.clone(), audio_end_ms };
        if self.script.vad.no_speech_stopped {
            self.see(now, sight);
        } else {
            self.say(now, "input_audio_buffer.speech_stopped", fields, Some(sight));
        }
        let per_ms = self.session.input.bytes_per_ms();
        let to = (audio_end_ms as usize * per_ms).clamp(self.buffer_from, self.record.appended.len());
        // What came before the turn is not part of it.
        self.buffer_from = (audio_start_ms as usize * per_ms).clamp(self.buffer_from, to);
        self.commit(item, to, now);
        if self.session.turns.as_ref().is_some_and(|turns| turns.create_response) {
            self.answer_turn(now);
        }
    }

    /// The line has been quiet for too long: the silence becomes a turn of its own.
    pub(super) fn idle_timeout(&mut self, now: At) {
        if self.hearing.is_some() {
            return;
        }
        let item = self.ids.make(Kind::Item);
        let end = self.record.appended.len();
        let per_ms = self.session.input.bytes_per_ms();
        let (start_ms, end_ms) = (self.buffer_from / per_ms, end / per_ms);
        let fields = json!({"audio_start_ms": start_ms, "audio_end_ms": end_ms, "item_id": item});
        self.say(now, "input_audio_buffer.timeout_triggered", fields, None);
        self.forget_turn();
        self.commit(item, end, now);
        self.answer_turn(now);
    }

    /// A turn ended: the model answers, unless it is still speaking or about to.
    fn answer_turn(&mut self, now: At) {
        if self.pending.values().any(|pending| pending.params.in_conversation) || self.speaking().is_some() {
            return;
        }
        let params = Params::of(&self.session, &Value::Null, self.script.dialect);
        self.request(params, Cause::Turn, now);
    }

    /// The audio that is not committed yet, up to byte `to`, becomes a user item.
    pub(super) fn commit(&mut self, id: String, to: usize, now: At) {
        let from = self.buffer_from.min(to);
        self.buffer_from = to;
        let ms = ((to - from) / self.session.input.bytes_per_ms()) as u64;
        let item = Item::new(id.clone(), "completed", Body::Heard { transcript: None, from, to, ms });
        let previous = self.place(item, None);
        let fields = json!({"previous_item_id": previous, "item_id": id});
        self.say(now, "input_audio_buffer.committed", fields, None);
        self.say_item_added(&id, now);
        self.say_item_done(&id, now);

        let turn = self.progress.user_turns;
        self.progress.user_turns += 1;
        if self.session.transcription.is_null() {
            return;
        }
        let plan = self.script.transcription.get(turn).cloned().unwrap_or_default();
        let text = plan.text.unwrap_or_else(|| self.ids.words(ms.saturating_sub(500), voice_of(turn)));
        let done_ms = match plan.when {
            When::Never => return,
            When::Fails => {
                let task = Task::Transcribe { item: id, text: None, step: Scribble::Failed };
                return self.later(now.plus_ms(TRANSCRIPT_DONE_MS), task);
            }
            When::BeforeResponse => 0,
            When::Normal => TRANSCRIPT_DONE_MS,
            When::Late(ms) => ms,
        };
        if !text.is_empty() {
            let from = if self.dictated.0 == id { self.dictated.1 } else { 0 };
            let step = Scribble::Delta { from };
            let task = Task::Transcribe { item: id.clone(), text: Some(text.clone()), step };
            self.later(now.plus_ms(done_ms.min(TRANSCRIPT_DELTA_MS)), task);
        }
        let task = Task::Transcribe { item: id, text: Some(text), step: Scribble::Completed };
        self.later(now.plus_ms(done_ms), task);
    }

    pub(super) fn transcribe(&mut self, id: &str, text: Option<String>, step: Scribble, now: At) {
        let text = text.unwrap_or_default();
        match step {
            Scribble::Delta { from } => {
                dictation(&text).iter().skip(from).for_each(|word| self.say_transcribed(id, word, now));
            }
            Scribble::Completed => {
                let mut ms = 0;
                if let Some(Item { body: Body::Heard { transcript, ms: long, .. }, .. }) =
                    self.items.get_mut(id)
                {
                    *transcript = Some(text.clone());
                    ms = *long;
                }
                let usage = self.transcription_usage(&text, ms);
                let fields = json!({"item_id": id, "content_index": 0, "transcript": text, "usage": usage});
                let sight = ModelObservation::SentTranscription { item: id.to_owned(), text: Some(text) };
                self.say(now, "conversation.item.input_audio_transcription.completed", fields, Some(sight));
            }
            Scribble::Failed => {
                let fields = json!({
                    "item_id": id, "content_index": 0,
                    "error": {"type": "server_error", "code": null, "param": null,
                        "message": "Input transcription failed for this item."},
                });
                let sight = ModelObservation::SentTranscription { item: id.to_owned(), text: None };
                self.say(now, "conversation.item.input_audio_transcription.failed", fields, Some(sight));
            }
        }
    }

    /// What a transcription costs: tokens with the models of the gpt-4o family, seconds with the others.
    fn transcription_usage(&self, text: &str, ms: u64) -> Value {
        let model = self.session.transcription["model"].as_str().unwrap_or_default();
        if !model.starts_with("gpt-4o") {
            return json!({"type": "duration", "seconds": ms.div_ceil(1_000)});
        }
        let (audio, written) = (ms / 100, text.len() as u64 / 4 + 1);
        json!({
            "type": "tokens", "total_tokens": audio + written, "input_tokens": audio, "output_tokens": written,
            "input_token_details": {"text_tokens": 0, "audio_tokens": audio},
        })
    }

    // ------------------------------------------------------------------------------------------ items

    /// Puts an item into the conversation, at the end or at `index`, and returns the id before it.
    pub(super) fn place(&mut self, mut item: Item, index: Option<usize>) -> Option<String> {
        let order = &mut self.record.conversation;
        let index = index.unwrap_or(order.len());
        item.placed = true;
        item.previous = index.checked_sub(1).map(|before| order[before].clone());
        item.forgets_previous = index == 1
            && matches!(item.body, Body::Spoken(_) | Body::Written { .. } | Body::Call { .. })
            && item.status == "in_progress";
        order.insert(index, item.id.clone());
        let previous = item.previous.clone();
        self.items.insert(item.id.clone(), item);
        previous
    }

    pub(super) fn say_item_added(&mut self, id: &str, now: At) {
        if let Some(item) = self.items.get(id) {
            let fields = json!({"previous_item_id": item.previous, "item": item.json(self.script.dialect)});
            self.say(now, "conversation.item.added", fields, None);
        }
    }

    pub(super) fn say_item_done(&mut self, id: &str, now: At) {
        if let Some(item) = self.items.get(id) {
            let previous = item.previous.as_ref().filter(|_| !item.forgets_previous);
            let fields = json!({"previous_item_id": previous, "item": item.json(self.script.dialect)});
            self.say(now, "conversation.item.done", fields, None);
        }
    }
}

/// Which words a caller says in a turn, among all that could be said.
const fn voice_of(turn: usize) -> u64 {
    1_000 + turn as u64
}

/// A transcription in pieces, each with the space before it.
fn dictation(text: &str) -> Vec<String> {
    pieces(&format!(" {text}"))
}
