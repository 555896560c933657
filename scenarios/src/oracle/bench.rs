//! Hand-made records for the judges' own tests: one caller, one turn, one answer, and what may go wrong with it.
//!
//! The bench is not a bridge and not a mock. It writes down what the two ends would have seen of a good call, and
//! its verbs spoil one thing each.

use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle::audio_attribution::{BYTES_PER_MS, WINDOW};
use crate::sim::trace::{CallTrace, Network, Trace};
use bridge::call::event::{CallEvent, Counts, EndReason, Line, Speaker};
use mocks::peer::At;
use mocks::record::{
    CallerObservation, CallerRecord, Ending, ItemRecord, MicFrame, ModelObservation, ModelRecord,
    Observation, Played,
};
use mocks::{resample, ulaw};
use std::sync::Arc;
use std::time::Duration;

/// Each leg's latency, ms.
const LEG_MS: u64 = 10;
const SPEECH_FROM_MS: u64 = 300;
const SPEECH_TO_MS: u64 = 1_300;
const STOPPED_MS: u64 = 1_860;
const CREATED_MS: u64 = 1_920;
const FIRST_AUDIO_MS: u64 = 2_200;
const DELTA_MS: u64 = 250;
const LEAD_MS: u64 = 3_000;
const WORDS: &str = "one two three four five six seven eight nine ten eleven twelve";

/// What a test may change about an interruption.
#[derive(Clone)]
pub(crate) struct BargeInKnobs {
    pub(crate) clear_after_ms: Option<u64>,
    pub(crate) clears: usize,
    pub(crate) stale_ms: u64,
    pub(crate) cut_off_ms: i64,
    pub(crate) cuts: usize,
    pub(crate) cut_item: String,
}

#[derive(Clone)]
pub(crate) struct Bench {
    call_sid: String,
    answer_ms: u64,
    /// What the ear is sent: arrival, bytes.
    frames: Vec<(u64, Vec<u8>)>,
    audio_until_ms: u64,
    status: &'static str,
    clears: Vec<u64>,
    caller: Vec<(u64, CallerObservation)>,
    model: Vec<(u64, ModelObservation)>,
    over_ms: u64,
    bridge_closes_ms: Option<u64>,
    model_ends_after_ms: u64,
    model_dies_ms: Option<u64>,
    mic: Vec<(u64, Vec<u8>, bool)>,
    given: Option<Vec<Vec<u8>>>,
    input_format: &'static str,
    transcript: Option<f64>,
    held: u64,
    shift_ms: u64,
    starts: bool,
}

impl Bench {
    /// From `speech_started` to the ear.
    pub(crate) const ROUND_MS: u64 = 2 * LEG_MS;
    /// When the model sends `session.updated`.
    pub(crate) const READY_MS: u64 = 200;

    /// One turn of the caller, answered with this much speech.
    pub(crate) fn answered(answer_ms: u64) -> Self {
        Self::answered_with(answer_ms, |_| {})
    }

    /// The same with the frames on their way to the ear tampered with.
    pub(crate) fn answered_with(answer_ms: u64, tamper: impl FnOnce(&mut Vec<Vec<u8>>)) -> Self {
        let mut frames: Vec<Vec<u8>> = rendered(answer_ms).chunks(WINDOW).map(<[u8]>::to_vec).collect();
        tamper(&mut frames);
        let first = FIRST_AUDIO_MS + Self::ROUND_MS;
        let frames = frames
            .into_iter()
            .enumerate()
            .map(|(i, frame)| {
                let at = i as u64 * 20;
                let sent = FIRST_AUDIO_MS + (at / DELTA_MS + 1) * 50 - 50 + Self::ROUND_MS;
                (sent.max((first + at).saturating_sub(LEAD_MS)), frame)
            })
            .collect();
        let over_ms = first + answer_ms + 1_500;
        Self {
            call_sid: "CA0".into(),
            answer_ms,
            frames,
            audio_until_ms: u64::MAX,
            status: "completed",
            clears: Vec::new(),
            caller: Vec::new(),
            model: Vec::new(),
            over_ms,
            bridge_closes_ms: None,
            model_ends_after_ms: 30,
            model_dies_ms: None,
            mic: microphone(SPEECH_FROM_MS, SPEECH_TO_MS, over_ms),
            given: None,
            input_format: "audio/pcm",
            transcript: None,
            held: 0,
            shift_ms: 0,
            starts: true,
        }
    }

    /// An answer of five seconds, interrupted when 1,240 ms of it had been heard.
    pub(crate) fn barge_in() -> Self {
        Self::barge_in_with(|_| {})
    }

    pub(crate) fn barge_in_with(change: impl FnOnce(&mut BargeInKnobs)) -> Self {
        let mut knobs = BargeInKnobs {
            clear_after_ms: Some(Self::ROUND_MS),
            clears: 1,
            stale_ms: 0,
            cut_off_ms: 0,
            cuts: 1,
            cut_item: "item_1".into(),
        };
        change(&mut knobs);
        let mut bench = Self::answered(5_000);
        let first = FIRST_AUDIO_MS + Self::ROUND_MS;
        let started = first + 1_240 - Self::ROUND_MS;
        bench.speech_started(started);
        let fence = started + knobs.clear_after_ms.unwrap_or(Self::ROUND_MS);
        let stale = bench.frames.iter().position(|(at, _)| *at >= fence).unwrap_or(bench.frames.len());
        let mut rest = bench.frames.split_off(stale);
        rest.truncate(knobs.stale_ms as usize / 20);
        for (_, frame) in rest {
            bench.frames.push((fence + 5, frame));
        }
        if let Some(after) = knobs.clear_after_ms {
            for i in 0..knobs.clears {
                bench.clears.push(started + after + i as u64);
            }
        }
        for i in 0..knobs.cuts {
            bench.model.push((
                started + Self::ROUND_MS + i as u64,
                ModelObservation::GotTruncate {
                    item: knobs.cut_item.clone(),
                    content_index: 0,
                    audio_end_ms: 1_240_u64.checked_add_signed(knobs.cut_off_ms),
                },
            ));
        }
        bench
    }

    /// A caller who speaks for two seconds, and what of it the model is given.
    pub(crate) fn spoken(format: &'static str, tamper: impl FnOnce(&mut Vec<Vec<u8>>)) -> Self {
        let mut bench = Self::answered(1_000);
        bench.input_format = format;
        bench.mic = microphone(SPEECH_FROM_MS, SPEECH_FROM_MS + 2_000, bench.over_ms);
        let mut given: Vec<Vec<u8>> = bench.mic.iter().map(|(_, frame, _)| frame.clone()).collect();
        tamper(&mut given);
        bench.given = Some(given);
        bench
    }

    /// The same with a gap in the microphone's frames, filled so far.
    pub(crate) fn spoken_with_gap(format: &'static str, gap_ms: u64, filled_ms: u64) -> Self {
        let mut bench = Self::spoken(format, |_| {});
        let at = 40;
        bench.mic.drain(at..at + (gap_ms / 20) as usize);
        let mut given: Vec<Vec<u8>> = bench.mic.iter().map(|(_, frame, _)| frame.clone()).collect();
        for _ in 0..filled_ms / 20 {
            given.insert(at, vec![0xFF; WINDOW]);
        }
        bench.given = Some(given);
        bench
    }

    /// A response that calls a function, answered this often.
    pub(crate) fn tool(outputs: usize, goes_on: bool) -> Self {
        let mut bench = Self::answered(1_500);
        let call_id = || "call_1".to_owned();
        bench.created(5_000, "resp_2", None);
        let (response, name) = ("resp_2".to_owned(), "lookup".to_owned());
        let called = ModelObservation::SentFunctionCall {
            call_id: call_id(),
            response,
            name,
            added: bench.model.len(),
            again: None,
        };
        bench.model.push((5_100, called));
        bench.done(5_150, "resp_2", "completed");
        for i in 0..outputs {
            let output = "{}".to_owned();
            let fresh = i == 0;
            bench.model.push((
                5_200 + i as u64,
                ModelObservation::GotToolOutput { call_id: call_id(), fresh, output },
            ));
        }
        if goes_on && outputs > 0 {
            bench
                .model
                .push((5_210, ModelObservation::GotCreate { event_id: Some("e1".into()), busy: false }));
            bench.created(5_240, "resp_3", Some("e1"));
            bench.done(5_400, "resp_3", "completed");
        }
        bench.over_ms = 40_000;
        bench
    }

    /// A socket on which nothing is said until the bridge closes it.
    pub(crate) fn never_started(closed_ms: u64) -> Self {
        let mut bench = Self::answered(0);
        bench.starts = false;
        bench.mic.clear();
        bench.over_ms = closed_ms + 1_000;
        bench.bridge_closes_ms = Some(closed_ms);
        bench
    }

    pub(crate) fn caller(&mut self, ms: u64, what: CallerObservation) {
        self.caller.push((ms, what));
    }

    pub(crate) fn model(&mut self, ms: u64, what: ModelObservation) {
        self.model.push((ms, what));
    }

    pub(crate) fn speech_started(&mut self, ms: u64) {
        let active = None;
        self.model(
            ms,
            ModelObservation::SentSpeechStarted { item: "item_u2".into(), audio_start_ms: ms, active },
        );
        self.over_ms = self.over_ms.max(ms + 4_000);
    }

    pub(crate) fn clear(&mut self, ms: u64) {
        self.clears.push(ms);
    }

    pub(crate) fn append_at(&mut self, ms: u64) {
        self.model(ms, ModelObservation::GotAppend { offset: 0, len: 0 });
    }

    /// An event of the bridge is refused.
    pub(crate) fn refused(&mut self, ms: u64, code: &str, kind: &str) {
        let (code, rejected) = (code.to_owned(), Some(kind.to_owned()));
        self.model(ms, ModelObservation::SentError { code, message: "no".into(), event_id: None, rejected });
        self.over_ms = self.over_ms.max(ms + 1_000);
    }

    /// An error nobody caused.
    pub(crate) fn error(&mut self, ms: u64) {
        let code = "server_error".to_owned();
        self.model(
            ms,
            ModelObservation::SentError { code, message: "oops".into(), event_id: None, rejected: None },
        );
    }

    /// When the response is done.
    pub(crate) fn done_ms(&self) -> u64 {
        FIRST_AUDIO_MS + self.answer_ms.div_ceil(DELTA_MS) * 50
    }

    /// From this much of the item on, everything arrives and plays so much later.
    pub(crate) fn tear_open(&mut self, from_ms: u64, hole_ms: u64) {
        let frame = (from_ms / 20) as usize;
        let first = self.frames[0].0;
        for (i, (at, _)) in self.frames.iter_mut().enumerate().skip(frame) {
            *at = first + i as u64 * 20 + hole_ms;
        }
        self.over_ms += hole_ms;
    }

    /// Everything is sent as soon as it can be.
    pub(crate) fn all_at_once(&mut self) {
        for (i, (at, _)) in self.frames.iter_mut().enumerate() {
            *at = FIRST_AUDIO_MS + i as u64 * 20 / DELTA_MS * 50 + Self::ROUND_MS;
        }
    }

    /// Everything reaches the ear later.
    pub(crate) fn later(&mut self, ms: u64) {
        for (at, _) in &mut self.frames {
            *at += ms;
        }
        self.over_ms += ms;
    }

    /// The caller ends another turn and nobody answers.
    pub(crate) fn say_nothing_for(&mut self, ms: u64) {
        let at = self.over_ms - 500;
        self.model(at, ModelObservation::SentSpeechStopped { item: "item_u2".into(), audio_end_ms: at });
        self.over_ms = at + ms;
    }

    pub(crate) fn model_ends_after(&mut self, ms: u64) {
        self.model_ends_after_ms = ms;
    }

    pub(crate) fn model_dies(&mut self, ms: u64) {
        self.model_dies_ms = Some(ms);
    }

    pub(crate) fn bridge_closes(&mut self, ms: u64) {
        self.bridge_closes_ms = Some(ms);
    }

    pub(crate) fn bridge_closed(mut self, ms: u64) -> Self {
        self.over_ms = self.over_ms.max(ms + 1_000);
        self.bridge_closes(ms);
        self
    }

    pub(crate) fn named(mut self, call_sid: &str) -> Self {
        self.call_sid = call_sid.into();
        self
    }

    pub(crate) fn shifted(mut self, ms: u64) -> Self {
        self.shift_ms = ms;
        self
    }

    /// The bridge's transcript holds this share of the agent's words.
    pub(crate) fn transcript(mut self, share: f64) -> Self {
        self.transcript = Some(share);
        self
    }

    pub(crate) fn held(mut self, bytes: u64) -> Self {
        self.held = bytes;
        self
    }

    pub(crate) fn trace(&self) -> Trace {
        Self::together([self.clone()])
    }

    /// Several calls of one scenario.
    pub(crate) fn together<const N: usize>(benches: [Self; N]) -> Trace {
        let calls: Vec<CallTrace> = benches.into_iter().enumerate().map(|(i, b)| b.call(i)).collect();
        let ended_at = At(calls.iter().map(last_sight).max().unwrap_or_default() + 10_000_000);
        Trace {
            scenario: Arc::new(scenario()),
            backend: Backend::Memory,
            seed: Seed(1),
            calls,
            ended_at,
            leftovers: Vec::new(),
            panics: Vec::new(),
            cut: false,
            network: Network::default(),
            lag_us: 0,
        }
    }

    fn created(&mut self, ms: u64, response: &str, asked: Option<&str>) {
        let asked = asked.map(str::to_owned);
        self.model.push((
            ms,
            ModelObservation::SentResponseCreated { response: response.into(), auto: asked.is_none(), asked },
        ));
    }

    fn done(&mut self, ms: u64, response: &str, status: &str) {
        self.model.push((
            ms,
            ModelObservation::SentResponseDone { response: response.into(), status: status.into() },
        ));
    }

    fn call(mut self, index: usize) -> CallTrace {
        let shift = self.shift_ms;
        let over = self.bridge_closes_ms.unwrap_or(self.over_ms).min(self.over_ms);
        let model = self.model_record(over, shift);
        let caller = self.caller_record(over, shift);
        let bridge = self.bridge_events(over, shift);
        CallTrace { index, caller, models: model.into_iter().collect(), bridge }
    }

    fn model_record(&mut self, over: u64, shift: u64) -> Option<ModelRecord> {
        if !self.starts {
            return None;
        }
        let mut sights = std::mem::take(&mut self.model);
        let format = self.input_format.to_owned();
        sights.push((150, ModelObservation::Opened));
        sights.push((170, ModelObservation::SentSessionCreated));
        sights.push((190, ModelObservation::GotUpdate { input: format.clone(), output: format.clone() }));
        sights.push((Self::READY_MS, ModelObservation::SentSessionUpdated));
        let item_u1 = || "item_u1".to_owned();
        let started = SPEECH_FROM_MS + Self::ROUND_MS + 80;
        sights.push((
            started,
            ModelObservation::SentSpeechStarted { item: item_u1(), audio_start_ms: 180, active: None },
        ));
        sights
            .push((STOPPED_MS, ModelObservation::SentSpeechStopped { item: item_u1(), audio_end_ms: 1_700 }));
        sights.push((
            STOPPED_MS + 500,
            ModelObservation::SentTranscription { item: item_u1(), text: Some("hello".into()) },
        ));
        let (response, item) = (|| "resp_1".to_owned(), || "item_1".to_owned());
        sights.push((
            CREATED_MS,
            ModelObservation::SentResponseCreated { response: response(), auto: true, asked: None },
        ));
        let audio: Vec<i16> = voice(self.answer_ms).to_vec();
        let mut sent = 0;
        let mut at = FIRST_AUDIO_MS;
        while sent < audio.len() && at <= self.audio_until_ms {
            let samples = (DELTA_MS as usize * 24).min(audio.len() - sent);
            let (response, item) = (response(), item());
            sights.push((
                at,
                ModelObservation::SentAudio { response, item, offset: sent, samples, late: false },
            ));
            sent += samples;
            at += 50;
        }
        sights.push((at, ModelObservation::SentAudioDone { response: response(), item: item() }));
        sights.push((
            at,
            ModelObservation::SentResponseDone { response: response(), status: self.status.to_owned() },
        ));
        let mut appended = Vec::new();
        let given: Vec<Vec<u8>> =
            self.given.take().unwrap_or_else(|| self.mic.iter().map(|(_, f, _)| f.clone()).collect());
        let mut coded = Vec::new();
        for (i, frame) in given.iter().enumerate() {
            let made = self.mic.get(i).map_or(0, |(at, _, _)| *at);
            let at = (made + Self::ROUND_MS).max(Self::READY_MS + Self::ROUND_MS);
            let wide = if self.input_format == "audio/pcmu" { 1 } else { 6 };
            if at < over {
                let (offset, len) = (coded.len() * wide, frame.len() * wide);
                sights.push((at, ModelObservation::GotAppend { offset, len }));
                coded.extend_from_slice(frame);
            }
        }
        if self.input_format == "audio/pcmu" {
            appended.append(&mut coded);
        } else {
            appended.extend(widened(&coded).iter().flat_map(|s| s.to_le_bytes()));
        }
        let end = self.model_dies_ms.unwrap_or(over + self.model_ends_after_ms);
        let ending = match self.model_dies_ms {
            Some(_) => Ending::Lost { why: "reset".into() },
            None => Ending::ByPeer { code: Some(1_000), reason: String::new() },
        };
        sights.retain(|(at, _)| *at <= end);
        sights.push((end, ModelObservation::Ended(ending)));
        let record = ItemRecord {
            id: item(),
            response: response(),
            voice_offset: Some(0),
            rate: 24_000,
            speech: sent,
            added: 0,
            sent,
            audio,
            coded: Vec::new(),
            transcript: WORDS.into(),
            truncated_ms: None,
        };
        Some(ModelRecord {
            call_sid: self.call_sid.clone(),
            observations: in_order(sights, shift),
            appended,
            input_format: self.input_format.to_owned(),
            settings: None,
            items: vec![record],
            conversation: vec![item_u1(), item()],
        })
    }

    fn caller_record(&mut self, over: u64, shift: u64) -> CallerRecord {
        let mut record = CallerRecord {
            call_sid: self.call_sid.clone(),
            stream_sid: format!("MZ{}", self.call_sid),
            ..CallerRecord::default()
        };
        let mut sights = std::mem::take(&mut self.caller);
        sights.push((0, CallerObservation::Opened));
        if self.starts {
            sights.push((90, CallerObservation::SentConnected));
            sights.push((90, CallerObservation::SentStart));
            sights.push((SPEECH_FROM_MS, CallerObservation::SpeechBegan { utterance: 0 }));
            sights.push((SPEECH_TO_MS, CallerObservation::SpeechEnded { utterance: 0 }));
        }
        for (at, frame, speech) in self.mic.iter().filter(|(at, _, _)| *at < over) {
            let (offset, len) = (record.spoken.len(), frame.len());
            sights.push((*at, CallerObservation::SentMedia { frame: record.mic.len() }));
            let timestamp_ms = at + 20;
            record.mic.push(MicFrame { at: At::ms(at + shift), timestamp_ms, offset, len, speech: *speech });
            record.spoken.extend_from_slice(frame);
        }
        self.play(over, shift, &mut record, &mut sights);
        if self.bridge_closes_ms == Some(over) {
            let ending = Ending::ByPeer { code: Some(1_000), reason: String::new() };
            sights.push((over, CallerObservation::Ended(ending)));
        } else {
            sights.push((over, CallerObservation::SentStop));
            sights.push((over, CallerObservation::Ended(Ending::ByUs { code: Some(1_000) })));
        }
        record.observations = in_order(sights, shift);
        record
    }

    /// What the ear makes of the frames and the clears.
    fn play(
        &self,
        over: u64,
        shift: u64,
        record: &mut CallerRecord,
        sights: &mut Vec<(u64, CallerObservation)>,
    ) {
        if !self.starts {
            return;
        }
        let mut todo: Vec<(u64, Option<&Vec<u8>>)> =
            self.frames.iter().map(|(at, f)| (*at, Some(f))).collect();
        todo.extend(self.clears.iter().map(|at| (*at, None)));
        todo.sort_by_key(|(at, frame)| (*at, frame.is_some()));
        let mut schedule: Vec<Played> = Vec::new();
        for (ms, frame) in todo.into_iter().filter(|(ms, _)| *ms < over) {
            let now = At::ms(ms);
            let Some(frame) = frame else {
                let mut discarded = 0;
                for played in &mut schedule {
                    let keep = played.len.min((now.since(played.at) / 125) as usize);
                    discarded += played.len - keep;
                    played.len = keep;
                }
                schedule.retain(|p| p.len > 0);
                sights.push((ms, CallerObservation::GotClear { discarded, marks: 0 }));
                continue;
            };
            let (offset, len) = (record.received.len(), frame.len());
            sights.push((ms, CallerObservation::GotMedia { offset, len }));
            record.received.extend_from_slice(frame);
            let at = schedule.last().map_or(now, |last| last.end().max(now));
            match schedule.last_mut() {
                Some(last) if last.end() == at && last.offset + last.len == offset => last.len += len,
                Some(_) | None => schedule.push(Played { at, offset, len }),
            }
        }
        for played in &mut schedule {
            played.len = played.len.min((At::ms(over).since(played.at) / 125) as usize);
            played.at = played.at.plus_ms(shift);
        }
        schedule.retain(|p| p.len > 0);
        record.played = schedule;
    }

    fn bridge_events(&self, over: u64, shift: u64) -> Vec<(At, CallEvent)> {
        let Some(share) = self.transcript else { return Vec::new() };
        let count = (WORDS.len() as f64 * share) as usize;
        let line = |item: &str, speaker, text: &str, cut| Line {
            item: item.into(),
            place: 1,
            speaker,
            text: text.into(),
            cut,
        };
        let transcript = vec![
            line("item_u1", Speaker::Caller, "hello", false),
            line("item_1", Speaker::Agent, &WORDS[..count], share < 1.0),
        ];
        let counts = Box::new(Counts { peak_held_bytes: self.held, ..Counts::default() });
        let ended = CallEvent::Ended {
            reason: EndReason::Stopped,
            detail: String::new(),
            lasted: Duration::from_millis(over),
            counts,
            transcript,
        };
        vec![(At::ms(over + shift + 10), ended)]
    }
}

/// The plain scenario every hand-made record pretends to come from.
fn scenario() -> Scenario {
    super::tolerance::plain_scenario(LEG_MS)
}

fn last_sight(call: &CallTrace) -> u64 {
    let caller = call.caller.observations.last().map_or(0, |s| s.at.0);
    let model = call.models.iter().filter_map(|m| m.observations.last()).map(|s| s.at.0).max().unwrap_or(0);
    caller.max(model)
}

fn in_order<T>(mut sights: Vec<(u64, T)>, shift: u64) -> Vec<Observation<T>> {
    sights.sort_by_key(|(at, _)| *at);
    sights.into_iter().map(|(at, what)| Observation { at: At::ms(at + shift), what }).collect()
}

/// This much of the agent's voice.
fn voice(ms: u64) -> &'static [i16] {
    &golden::agent_voice()[..ms as usize * 24]
}

/// The same as an ear gets it, padded to whole frames.
fn rendered(ms: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = resample::down(voice(ms)).iter().map(|s| ulaw::encode(*s)).collect();
    bytes.resize(bytes.len().next_multiple_of(WINDOW), 0xFF);
    bytes.truncate((ms as usize * BYTES_PER_MS).next_multiple_of(WINDOW));
    bytes
}

/// Frames of 20 ms from 100 ms on: speech in between, an idle line around it.
fn microphone(speech_from: u64, speech_to: u64, until: u64) -> Vec<(u64, Vec<u8>, bool)> {
    let mut voice = golden::caller_voice().iter().map(|s| ulaw::encode(*s));
    (100..until)
        .step_by(20)
        .map(|at| {
            let speech = (speech_from..speech_to).contains(&at);
            let frame = if speech { voice.by_ref().take(WINDOW).collect() } else { vec![0xFF; WINDOW] };
            (at, frame, speech)
        })
        .collect()
}

/// 8 kHz to 24 kHz by straight lines: good enough to be recognised, and nobody's resampler.
fn widened(coded: &[u8]) -> Vec<i16> {
    let samples: Vec<i32> = coded.iter().map(|b| i32::from(ulaw::decode(*b))).collect();
    let mut wide = Vec::with_capacity(samples.len() * 3);
    for (i, here) in samples.iter().enumerate() {
        let next = samples.get(i + 1).unwrap_or(here);
        for third in 0..3 {
            wide.push(((here * (3 - third) + next * third) / 3) as i16);
        }
    }
    wide
}
