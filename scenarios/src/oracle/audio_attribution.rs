//! Whose voice was that? Attributes every byte the ear received to the item it came from.
//!
//! The bridge is never asked. Each item the model generated is rendered to 8 kHz by the referee's own resampler, and
//! the bytes that were received are laid over these renderings: a window follows its item as long as it looks like it,
//! and only where it stops doing so everything is searched. Where all items are G.711 nothing is correlated:
//! the bytes themselves must agree, after conversion sample by sample where the session speaks A-law. Silence proves
//! nothing and goes with what surrounds it.
//!
//! The same is done for the other direction: what the model was given is laid over what the microphone sent.
//!
//! Nothing is judged here: [`crate::oracle`] says whether what was played is right.

use crate::sim::trace::{CallTrace, Trace};
use mocks::peer::At;
use mocks::record::{CallerObservation, ItemRecord, ModelObservation, ModelRecord, Played};
use mocks::{alaw, ulaw};
use std::borrow::Cow;
use std::cell::RefCell;
use std::ptr;
use std::rc::Rc;

mod alignment;
mod recording;

use alignment::{Aligned, Aligner, Place, Reference};
pub use recording::{BYTES_PER_MS, DELAY, WINDOW};
use recording::{PROBE, QUIET_RMS, Recording, narrowed_voice, narrowed_where_loud};
pub(crate) use recording::{energy, narrowed};

/// Silence that is shorter belongs to the speech around it, in samples at 8 kHz.
const PAUSE: usize = 200 * BYTES_PER_MS;

/// Where a stretch of the received stream comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An item of the model.
    Item {
        /// Index into [`CallTrace::models`].
        model: usize,
        /// Index into [`ModelRecord::items`].
        item: usize,
        /// Where in the item the stretch begins, in samples at 8 kHz.
        at_sample: usize,
    },
    /// Silence that belongs to no item: padding, or a fill.
    Silence,
    /// Sound the model never sent: a notice, or rubbish.
    Unknown,
}

/// A stretch of a stream and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its first byte in the stream.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    /// Where it comes from.
    pub source: Source,
}

impl Segment {
    /// Offset behind its last byte.
    pub const fn end(&self) -> usize {
        self.offset + self.len
    }
}

/// One item, as far as its audio is concerned.
#[derive(Clone, Debug)]
pub struct Item {
    /// Index into [`CallTrace::models`].
    pub model: usize,
    /// Index into [`ModelRecord::items`].
    pub index: usize,
    /// The item.
    pub id: String,
    /// Its response.
    pub response: String,
    /// Bytes of G.711 its audio makes: samples at 8 kHz.
    pub len: usize,
    /// What had been sent by when: time, and bytes of G.711 since the item's beginning.
    pub sent: Vec<(At, usize)>,
    /// What of it was sent before its response was cancelled.
    pub on_time: usize,
    /// It holds no sound at all.
    pub silent: bool,
    /// Where it holds sound, in bytes of G.711: silence between words that is too short to be a pause is part of it.
    pub sound: Vec<(usize, usize)>,
    /// `response.output_audio.done` was sent.
    pub done: Option<At>,
}

impl Item {
    fn new(model: usize, index: usize, record: &ItemRecord, observations: &ModelRecord) -> Self {
        let per_byte = (record.rate / 8_000).max(1) as usize;
        let mut item = Self {
            model,
            index,
            id: record.id.clone(),
            response: record.response.clone(),
            len: record.audio.len() / per_byte,
            sent: Vec::new(),
            on_time: 0,
            silent: record.audio.iter().all(|s| s.unsigned_abs() < QUIET_RMS as u16),
            sound: sound(record),
            done: None,
        };
        for seen in &observations.observations {
            if let ModelObservation::SentAudio { item: id, offset, samples, late, .. } = &seen.what
                && *id == record.id
            {
                let end = (offset + samples) / per_byte;
                item.sent.push((seen.at, end));
                if !late {
                    item.on_time = item.on_time.max(end);
                }
            } else if let ModelObservation::SentAudioDone { item: id, .. } = &seen.what
                && *id == record.id
            {
                item.done = Some(seen.at);
            }
        }
        item
    }

    /// Bytes of G.711 the model had sent by `at`.
    pub fn sent_by(&self, at: At) -> usize {
        self.sent.iter().take_while(|(sent, _)| *sent <= at).map(|(_, end)| *end).max().unwrap_or(0)
    }

    /// How much sound there is before this position (8 kHz), in samples.
    pub fn sound_before(&self, sample: usize) -> usize {
        self.sound.iter().map(|(from, to)| to.min(&sample).saturating_sub(*from)).sum()
    }

    /// When the model sent the sample at this position (8 kHz).
    pub fn sent_at(&self, sample: usize) -> Option<At> {
        self.sent.iter().find(|(_, end)| *end > sample).map(|(at, _)| *at)
    }

    /// When the first audio was sent.
    pub fn first_sent(&self) -> Option<At> {
        self.sent.first().map(|(at, _)| *at)
    }
}

/// Where an item holds sound, in samples at 8 kHz.
fn sound(record: &ItemRecord) -> Vec<(usize, usize)> {
    let per_byte = (record.rate / 8_000).max(1) as usize;
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (n, frame) in record.audio.chunks(WINDOW * per_byte).enumerate() {
        let energy: i64 = frame.iter().map(|s| i64::from(i32::from(*s).pow(2))).sum();
        if (energy as f64) < QUIET_RMS * QUIET_RMS * frame.len() as f64 {
            continue;
        }
        let (from, to) = (n * WINDOW, n * WINDOW + frame.len() / per_byte);
        match found.last_mut() {
            Some((_, end)) if from - *end < PAUSE => *end = to,
            _ => found.push((from, to)),
        }
    }
    found
}

/// A `clear` at the ear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clear {
    /// When it arrived.
    pub at: At,
    /// Bytes it discarded.
    pub discarded: usize,
    /// Marks it returned.
    pub marks: usize,
    /// Bytes received before it.
    pub offset: usize,
}

/// A `media` message at the ear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: At,
    /// Offset of its first byte in everything received.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

/// Where everything comes from that the caller's end of one call received, and the model's end was given.
#[derive(Debug)]
pub struct Attribution {
    /// The received stream, without a gap.
    pub stretches: Vec<Segment>,
    /// The items of all model connections, in order of creation.
    pub items: Vec<Item>,
    /// What arrived when.
    pub arrivals: Vec<Arrival>,
    /// The clears.
    pub clears: Vec<Clear>,
    /// What was played when.
    pub played: Vec<Played>,
    /// What the model was given, laid over what the microphone sent; one list for each model connection.
    pub given: Vec<Vec<Given>>,
}

/// A stretch of what the model was given, at 8 kHz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Where it begins in what the model was given, in samples at 8 kHz.
    pub offset: usize,
    /// Samples.
    pub len: usize,
    /// Where it begins in what the microphone sent; `None` for silence nobody sent and for rubbish.
    pub spoken: Option<usize>,
    /// Silence.
    pub silence: bool,
}

/// Whether this G.711 mu-law, taken together, is too quiet to prove anything. Silence has no owner: a notice begins with
/// it, and an item may end with it.
pub(crate) fn is_quiet(codes: &[u8]) -> bool {
    (energy(codes) as f64) < QUIET_RMS * QUIET_RMS * codes.len().max(1) as f64
}

/// The shortest stretch that can be told from another.
pub(crate) const TELLING: usize = PROBE;

/// Attributes every byte the ear of this call received.
pub fn attribute(call: &CallTrace) -> Vec<Segment> {
    let mut sent = Vec::new();
    for (m, model) in call.models.iter().enumerate() {
        for (i, record) in model.items.iter().enumerate() {
            let is_its = |what: &ModelObservation| matches!(what, ModelObservation::SentAudio { item, .. } if *item == record.id);
            let first = model.observations.iter().find(|seen| is_its(&seen.what)).map(|seen| seen.at);
            let Some(first) = first else { continue };
            sent.push((m, i, record, first));
        }
    }
    let exact = sent.iter().all(|(_, _, record, _)| is_g711(record));
    let references: Vec<_> =
        sent.iter().map(|(_, _, record, first)| Reference::new(rendered(record, exact), *first)).collect();
    let received = call.caller.received.as_slice();
    let stream =
        if exact { Recording::ulaw(received) } else { Recording::linear(&ulaw::decode_all(received)) };
    let arrivals = arrivals(call);
    let arrived = |offset: usize| {
        let after = arrivals.partition_point(|a| a.offset <= offset);
        arrivals.get(after.saturating_sub(1)).map_or(At(u64::MAX), |a| a.at)
    };
    let clears: Vec<usize> = clears(call).iter().map(|clear| clear.offset).collect();
    Aligner::run(&stream, &references, &arrived, &clears)
        .into_iter()
        .map(|Aligned { offset, len, place }| {
            let source = match place {
                Place::Reference { reference, at } => {
                    let (model, item, ..) = sent[reference];
                    Source::Item { model, item, at_sample: at }
                }
                Place::Silence => Source::Silence,
                Place::Unknown => Source::Unknown,
            };
            Segment { offset, len, source }
        })
        .collect()
}

/// The model sent this item in G.711.
const fn is_g711(record: &ItemRecord) -> bool {
    record.rate == 8_000 && record.coded.len() == record.audio.len()
}

/// The item as the caller's end should receive it; `exact` when all items of the call are G.711.
fn rendered(record: &ItemRecord, exact: bool) -> Recording<'_> {
    if is_g711(record) {
        let is_ulaw =
            record.coded.iter().zip(&record.audio).all(|(code, sample)| ulaw::decode(*code) == *sample);
        // An item in A-law must be received converted sample by sample.
        let codes = if is_ulaw {
            Cow::Borrowed(record.coded.as_slice())
        } else {
            Cow::Owned(ulaw::encode_all(&record.audio))
        };
        return if exact { Recording::ulaw(codes) } else { Recording::linear(&ulaw::decode_all(&codes)) };
    }
    if record.rate == 8_000 {
        return Recording::linear(&record.audio);
    }
    Recording::linear(&narrowed_voice(&record.audio, record.voice_offset))
}

/// What the model was given, laid over what the microphone sent.
fn given(call: &CallTrace, model: &ModelRecord) -> Vec<Given> {
    if model.appended.is_empty() {
        return Vec::new();
    }
    let spoken = &call.caller.spoken;
    let (stream, reference) = match model.input_format.as_str() {
        "audio/pcmu" => (Recording::ulaw(&model.appended), Recording::ulaw(spoken)),
        "audio/pcma" => {
            let recoded = alaw::encode_all(&ulaw::decode_all(spoken));
            (Recording::alaw(&model.appended), Recording::alaw(recoded))
        }
        _ => {
            let samples: Vec<i16> =
                model.appended.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
            (Recording::linear(&narrowed_where_loud(&samples)), Recording::linear(&ulaw::decode_all(spoken)))
        }
    };
    let reference = Reference::new(reference, At(0));
    Aligner::run(&stream, &[reference], &|_| At(u64::MAX), &[])
        .into_iter()
        .map(|Aligned { offset, len, place }| match place {
            Place::Reference { at, .. } => Given { offset, len, spoken: Some(at), silence: false },
            Place::Silence => Given { offset, len, spoken: None, silence: true },
            Place::Unknown => Given { offset, len, spoken: None, silence: false },
        })
        .collect()
}

fn arrivals(call: &CallTrace) -> Vec<Arrival> {
    call.caller
        .observations
        .iter()
        .filter_map(|seen| {
            let CallerObservation::GotMedia { offset, len } = seen.what else { return None };
            Some(Arrival { at: seen.at, offset, len })
        })
        .collect()
}

fn clears(call: &CallTrace) -> Vec<Clear> {
    let mut offset = 0;
    let mut clears = Vec::new();
    for seen in &call.caller.observations {
        if let CallerObservation::GotMedia { offset: at, len } = seen.what {
            offset = at + len;
        } else if let CallerObservation::GotClear { discarded, marks } = seen.what {
            clears.push(Clear { at: seen.at, discarded, marks, offset });
        }
    }
    clears
}

impl Attribution {
    /// Of one call.
    pub fn of(call: &CallTrace) -> Self {
        let mut items = Vec::new();
        for (m, model) in call.models.iter().enumerate() {
            for (i, record) in model.items.iter().enumerate() {
                items.push(Item::new(m, i, record, model));
            }
        }
        Self {
            stretches: attribute(call),
            items,
            arrivals: arrivals(call),
            clears: clears(call),
            played: call.caller.played.clone(),
            given: call.models.iter().map(|model| given(call, model)).collect(),
        }
    }

    /// Of every call of a trace; computed once for each [`judging`] of it.
    pub fn of_all(trace: &Trace) -> Rc<Vec<Self>> {
        let of = |trace: &Trace| Rc::new(trace.calls.iter().map(Self::of).collect::<Vec<_>>());
        JUDGED.with_borrow_mut(|judged| match judged {
            Some((judged, known)) if ptr::eq(*judged, trace) => {
                Rc::clone(known.get_or_insert_with(|| of(trace)))
            }
            Some(_) | None => of(trace),
        })
    }

    /// The stretches of one item, in the order received.
    pub fn of_item(&self, item: &Item) -> impl Iterator<Item = (Segment, usize)> {
        let (m, i) = (item.model, item.index);
        self.stretches.iter().filter_map(move |stretch| match stretch.source {
            Source::Item { model, item, at_sample } if (model, item) == (m, i) => Some((*stretch, at_sample)),
            Source::Item { .. } | Source::Silence | Source::Unknown => None,
        })
    }

    /// The item a byte of the stream belongs to, and the position in it.
    pub fn item_at(&self, offset: usize) -> Option<(&Item, usize)> {
        let index = self.stretches.partition_point(|s| s.end() <= offset);
        match self.stretches.get(index)?.source {
            Source::Item { model, item, at_sample } => {
                let found = self.items.iter().find(|i| (i.model, i.index) == (model, item))?;
                Some((found, at_sample + offset - self.stretches[index].offset))
            }
            Source::Silence | Source::Unknown => None,
        }
    }

    /// Bytes of the item played by `at`, counted from the item's beginning: the furthest position heard.
    pub fn item_played(&self, item: &Item, at: At) -> usize {
        let mut furthest = 0;
        for (stretch, sample) in self.of_item(item) {
            for played in self.played_between(stretch.offset, stretch.end()) {
                let by_then = (at.since(played.at) / 125) as usize;
                let end = (played.offset + played.len.min(by_then)).min(stretch.end());
                if end > stretch.offset && by_then > 0 {
                    furthest = furthest.max(sample + end - stretch.offset);
                }
            }
        }
        furthest
    }

    /// Milliseconds of the item played by `at`.
    pub fn item_played_ms(&self, item: &Item, at: At) -> f64 {
        self.item_played(item, at) as f64 / BYTES_PER_MS as f64
    }

    /// When the byte at this offset of the stream was played, if it ever was.
    pub fn played_at(&self, offset: usize) -> Option<At> {
        let index = self.played.partition_point(|p| p.offset + p.len <= offset);
        let played = self.played.get(index).filter(|p| p.offset <= offset)?;
        Some(At(played.at.0 + (offset - played.offset) as u64 * 125))
    }

    /// When the byte at this offset of the stream arrived.
    pub fn arrived_at(&self, offset: usize) -> Option<At> {
        let index = self.arrivals.partition_point(|a| a.offset + a.len <= offset);
        self.arrivals.get(index).map(|a| a.at)
    }

    fn played_between(&self, from: usize, to: usize) -> impl Iterator<Item = &Played> {
        let first = self.played.partition_point(|p| p.offset + p.len <= from);
        self.played[first..].iter().take_while(move |p| p.offset < to)
    }

    /// Bytes received by `at`.
    pub fn received_by(&self, at: At) -> usize {
        let after = self.arrivals.partition_point(|a| a.at <= at);
        after.checked_sub(1).map_or(0, |last| self.arrivals[last].offset + self.arrivals[last].len)
    }

    /// Bytes played by `at`.
    pub fn played_by(&self, at: At) -> usize {
        self.played.iter().take_while(|p| p.at < at).map(|p| p.len.min((at.since(p.at) / 125) as usize)).sum()
    }

    /// Bytes waiting at the ear at `at`, before a clear of that very moment.
    pub fn queued(&self, at: At) -> usize {
        let discarded: usize = self.clears.iter().take_while(|c| c.at < at).map(|c| c.discarded).sum();
        self.received_by(at).saturating_sub(self.played_by(at) + discarded)
    }

    /// The item with this id on this model connection.
    pub fn item(&self, model: usize, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.model == model && item.id == id)
    }

    /// What the ear played, in utterances: stretches without a pause of `quiet_ms`. From and to.
    pub fn utterances(&self, quiet_ms: u64) -> Vec<(At, At)> {
        let mut utterances: Vec<(At, At)> = Vec::new();
        for played in &self.played {
            match utterances.last_mut() {
                Some((_, to)) if played.at.since(*to) < quiet_ms * 1_000 => *to = played.end(),
                Some(_) | None => utterances.push((played.at, played.end())),
            }
        }
        utterances
    }
}

thread_local! {
    /// The trace that is being judged, and its attribution once an oracle has asked for it.
    static JUDGED: RefCell<Option<Judged>> = const { RefCell::new(None) };
}

type Judged = (*const Trace, Option<Rc<Vec<Attribution>>>);

/// Runs oracles over one trace, and attributes its audio once for all of them. The trace is borrowed meanwhile: it
/// cannot change, and no other trace can stand at its address.
pub fn judging<T>(trace: &Trace, oracles: impl FnOnce() -> T) -> T {
    /// Ends the judging, also when an oracle panics.
    struct Before(Option<Judged>);
    impl Drop for Before {
        fn drop(&mut self) {
            JUDGED.set(self.0.take());
        }
    }
    let _before = Before(JUDGED.replace(Some((trace, None))));
    oracles()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::bench::Bench;

    fn places(bench: &Bench) -> Vec<(usize, usize, Option<usize>)> {
        let place = |source| match source {
            Source::Item { at_sample, .. } => Some(at_sample),
            Source::Silence | Source::Unknown => None,
        };
        attribute(&bench.trace().calls[0]).iter().map(|s| (s.offset, s.len, place(s.source))).collect()
    }

    #[test]
    fn an_item_heard_whole_is_one_stretch() {
        assert_eq!(places(&Bench::answered(1_500)), [(0, 12_000, Some(0))]);
    }

    #[test]
    fn what_is_missing_shows_as_a_jump() {
        let bench = Bench::answered_with(1_500, |frames| drop(frames.drain(20..30)));
        assert_eq!(places(&bench), [(0, 3_200, Some(0)), (3_200, 7_200, Some(4_800))]);
    }

    #[test]
    fn what_comes_again_is_recognised_where_it_comes_from() {
        let bench = Bench::answered_with(1_500, |frames| {
            let again: Vec<_> = frames[10..20].to_vec();
            frames.splice(30..30, again);
        });
        assert_eq!(
            places(&bench),
            [(0, 4_800, Some(0)), (4_800, 1_600, Some(1_600)), (6_400, 7_200, Some(4_800))]
        );
    }

    #[test]
    fn sound_that_is_nobodys_is_unknown() {
        let bench = Bench::answered_with(1_500, |frames| {
            // A square wave of 1 kHz.
            let wave: Vec<u8> = (0..WINDOW).map(|i| if i % 8 < 4 { 0x10 } else { 0x90 }).collect();
            frames.splice(30..30, vec![wave; 10]);
        });
        assert_eq!(places(&bench), [(0, 4_800, Some(0)), (4_800, 1_600, None), (6_400, 7_200, Some(4_800))]);
    }

    #[test]
    fn a_constant_delay_is_followed() {
        let bench = Bench::answered_with(1_500, |frames| {
            let mut late: Vec<u8> = vec![0xFF; 11];
            late.extend(frames.concat());
            *frames = late.chunks(WINDOW).map(<[u8]>::to_vec).collect();
        });
        let stretches = attribute(&bench.trace().calls[0]);
        let items: Vec<_> = stretches.iter().filter(|s| matches!(s.source, Source::Item { .. })).collect();
        let [one] = items.as_slice() else { panic!("{stretches:?}") };
        let Source::Item { at_sample, .. } = one.source else { panic!("{one:?}") };
        assert!((one.offset as isize - at_sample as isize - 11).abs() <= 1, "{one:?}");
        assert!(one.len + WINDOW >= 12_000, "{one:?}");
    }

    #[test]
    fn an_item_is_played_as_far_as_the_caller_was_by_then() {
        let trace = Bench::barge_in().trace();
        let attribution = Attribution::of(&trace.calls[0]);
        let clear = attribution.clears[0];
        let item = &attribution.items[0];
        assert!((attribution.item_played_ms(item, clear.at) - 1_240.0).abs() < 1.0);
        assert_eq!(
            attribution.item_played(item, At(u64::MAX)),
            attribution.item_played(item, clear.at),
            "nothing after the clear"
        );
        assert_eq!(attribution.item_played(item, At::ms(1_000)), 0, "nothing before the answer");
        assert!(attribution.queued(At(clear.at.0 - 1)) > 1_000 * BYTES_PER_MS);
        assert_eq!(attribution.queued(clear.at.plus_ms(1)), 0);
    }

    #[test]
    fn a_trace_is_attributed_once_for_each_judging() {
        let trace = Bench::answered(1_500).trace();
        let other = Bench::barge_in().trace();
        let same = || Rc::ptr_eq(&Attribution::of_all(&trace), &Attribution::of_all(&trace));
        judging(&trace, || {
            assert!(same());
            assert!(!Rc::ptr_eq(&Attribution::of_all(&trace), &Attribution::of_all(&other)));
            judging(&other, || assert!(!same()));
            assert!(same());
        });
        assert!(!same(), "a trace may change between two judgings");
    }
}
