//! The call as both ends lived it.
//!
//! A journal has one clock, the bridge's. What left an end a latency before it arrived, and what was sent arrives a
//! latency later; the round trips of pings say how long that is. Times here are microseconds of the journal unless a
//! name says otherwise, and signed where a latency may take them below zero.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader picks the lines it needs")]

use crate::field::Recorded;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::export::journal::lines::{Blob, Side, What};
use mocks::sound::Sound;

/// How the caller's steps are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// From what was heard: "two seconds into the answer".
    Heard,
    /// By the clock, as recorded: for seeing where today's bridge parts from that of then.
    Recorded,
}

/// One way, when no ping came back: caller and model.
const USUAL_LATENCY_US: [u64; 2] = [20_000, 30_000];
/// A silence of playback this long ends an utterance of the agent, as the mock caller has it.
pub(super) const QUIET_US: i64 = 400_000;
/// A gap in the caller's messages this long, made up for by a burst, is an outage.
const STALL_US: u64 = 150_000;
/// Frames later than this against their own clock have been delayed by more than rounding.
const JITTER_US: i64 = 8_000;
/// The bridge fills gaps in the caller's timestamps from this length on.
const GAP_MS: u64 = 20;
/// A conversion may keep a part of a millisecond back.
const ROUNDING_MS: u64 = 4;
/// Quieter than this is no speech, even on a quiet line.
const FLOOR_DBFS: i32 = -70;

/// A frame from the caller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// When it arrived.
    pub(super) us: u64,
    pub(super) chunk: u64,
    pub(super) ts: Option<u64>,
    pub(super) ms: u64,
    pub(super) dbfs: i32,
}

/// An outage of the caller leg.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) at_us: i64,
    pub(super) for_us: u64,
}

/// Agent audio played without a pause.
#[derive(Clone, Debug)]
pub(super) struct Utterance {
    pub(super) begins: i64,
    pub(super) ends: i64,
    /// Stretches of it that were really played.
    played: Vec<(i64, i64)>,
}

impl Utterance {
    /// How much of it had been heard by then, us.
    pub(super) fn heard_by(&self, at: i64) -> i64 {
        self.played.iter().map(|(from, to)| (at.min(*to) - from).max(0)).sum()
    }
}

/// Audio given to the model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Append {
    pub(super) us: u64,
    /// Where it begins in all that was appended, ms.
    from_ms: u64,
    ms: u64,
}

/// A stretch of what was appended that has one source.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from_ms: u64,
    ms: u64,
    /// The frame; nothing where the bridge put silence in for what the carrier left out.
    frame: Option<usize>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    pub(super) call_sid: Option<String>,
    pub(super) caller_latency_us: u64,
    pub(super) model_latency_us: u64,
    /// When the caller dialled, in microseconds of the server.
    pub(super) dialled_us: i64,
    pub(super) length_us: u64,
    /// The name of the bridge's reason for the end.
    pub(super) end: Option<String>,
    pub(super) frames: Vec<Frame>,
    /// The bytes of each frame, where they were recorded.
    sounds: Vec<Option<Vec<u8>>>,
    appends: Vec<Append>,
    pieces: Vec<Piece>,
    pub(super) stalls: Vec<Outage>,
    /// Outages of the microphone alone.
    pub(super) pauses: Vec<Outage>,
    pub(super) jitter_ms: u64,
    /// The arrival of a frame of timestamp 0 that nothing delayed.
    on_time_us: Option<i64>,
    pub(super) utterances: Vec<Utterance>,
    /// Loudness that speech exceeds.
    floor_dbfs: i32,
    pub(super) clogged: bool,
}

impl Timeline {
    pub(super) fn of(journal: &Recorded) -> Self {
        let records = &journal.records;
        let latency = |side: Side| latency(journal, side).unwrap_or(USUAL_LATENCY_US[side as usize]);
        let (caller_latency_us, model_latency_us) = (latency(Side::Caller), latency(Side::Model));
        let mut frames: Vec<Frame> = Vec::new();
        let mut sounds = Vec::new();
        let mut is_mulaw = false;
        let mut end = None;
        let mut call_sid = None;
        let mut clogged = false;
        for record in records {
            match &record.what {
                What::Media { chunk, ts, audio, .. } if !repeats(frames.last(), *chunk) => {
                    let (ms, dbfs) = (audio.len as u64 / 8, audio.dbfs.unwrap_or(-99));
                    frames.push(Frame { us: record.us, chunk: *chunk, ts: *ts, ms, dbfs });
                    sounds.push(bytes(audio));
                }
                What::Start { call_sid: sid, encoding, .. } if call_sid.is_none() => {
                    call_sid = Some(sid.clone());
                    is_mulaw = encoding.contains("mulaw");
                }
                What::Event { name, more } if name == "ended" => {
                    end = more.get("reason").and_then(|reason| reason.as_str()).map(str::to_owned);
                }
                What::Leg { leg: Side::Caller, change, .. } if change == "clogged" => clogged = true,
                _ => {}
            }
        }
        if !is_mulaw {
            // The caller's end of a scenario speaks mu-law.
            sounds.fill(None);
        }
        let (appends, pieces) = appends(journal, &frames);
        let mut timeline = Self {
            call_sid,
            caller_latency_us,
            model_latency_us,
            dialled_us: 0,
            length_us: records.last().map_or(0, |record| record.us),
            end,
            appends,
            pieces,
            sounds,
            stalls: Vec::new(),
            pauses: Vec::new(),
            jitter_ms: 0,
            on_time_us: frames.iter().filter_map(|f| Some(signed(f.us) - signed(f.ts?) * 1_000)).min(),
            utterances: utterances(journal, caller_latency_us),
            floor_dbfs: floor(&frames),
            frames,
            clogged,
        };
        timeline.dialled_us = signed(journal.header.up_us) - timeline.opened_after_us();
        timeline.delays(journal);
        timeline
    }

    /// From the caller's dial to the open WebSocket at the bridge: the connection, then the request.
    pub(super) fn opened_after_us(&self) -> i64 {
        2 * signed(self.caller_latency_us)
    }

    /// When the model was given this millisecond of audio.
    pub(super) fn append_at(&self, position_ms: u64) -> Option<Append> {
        let at = self.appends.partition_point(|append| append.from_ms + append.ms <= position_ms);
        self.appends.get(at).copied()
    }

    /// The frame that this millisecond of what was appended came from, or the next one behind silence of the bridge's.
    pub(super) fn frame_at(&self, position_ms: u64) -> Option<usize> {
        let at = self.piece_at(position_ms)?;
        let mut after = self.pieces[at..].iter().filter_map(|piece| piece.frame);
        after.next().or_else(|| self.frame_until(position_ms))
    }

    /// The frame that this millisecond of what was appended came from, or the last one before silence of the bridge's.
    pub(super) fn frame_until(&self, position_ms: u64) -> Option<usize> {
        let at = self.piece_at(position_ms)?;
        self.pieces[..=at].iter().rev().find_map(|piece| piece.frame)
    }

    fn piece_at(&self, position_ms: u64) -> Option<usize> {
        let at = self.pieces.partition_point(|piece| piece.from_ms + piece.ms <= position_ms);
        (at < self.pieces.len()).then_some(at)
    }

    /// What was said in these frames, if all of it was recorded.
    pub(super) fn sound(&self, first: usize, last: usize) -> Option<Sound> {
        let frames: Option<Vec<&[u8]>> =
            self.sounds.get(first..=last)?.iter().map(Option::as_deref).collect();
        frames.map(|frames| Sound(frames.concat()))
    }

    /// The caller speaks in this frame.
    pub(super) fn is_loud(&self, frame: usize) -> bool {
        self.frames.get(frame).is_some_and(|frame| frame.dbfs > self.floor_dbfs)
    }

    /// Nothing was left out between this frame and the one before it.
    pub(super) fn follows(&self, frame: usize) -> bool {
        let Some((before, this)) =
            frame.checked_sub(1).map(|before| (self.frames[before], self.frames[frame]))
        else {
            return false;
        };
        this.ts.zip(before.ts).is_none_or(|(this, before)| this.saturating_sub(before) <= 60)
    }

    /// When this frame would have arrived, had nothing delayed it.
    pub(super) fn on_time(&self, frame: usize) -> i64 {
        let frame = &self.frames[frame];
        let due = frame.ts.zip(self.on_time_us).map(|(ts, least)| signed(ts) * 1_000 + least);
        due.map_or(signed(frame.us), |due| due.min(signed(frame.us)))
    }

    /// What delayed the caller's frames: outages of the leg, of the microphone, and ordinary jitter.
    fn delays(&mut self, journal: &Recorded) {
        let late = |frame: &Frame| Some(signed(frame.us) - signed(frame.ts?) * 1_000);
        let Some(least) = self.on_time_us else { return };
        let mut jitter = 0;
        let mut until = 0;
        for pair in self.frames.windows(2) {
            let (before, after) = (pair[0], pair[1]);
            let lateness = late(&after).map_or(0, |late| late - least);
            let follows =
                after.ts.zip(before.ts).is_some_and(|(after, before)| after.saturating_sub(before) <= 30);
            let gap = after.us - before.us;
            if gap >= STALL_US && follows && lateness > 100_000 {
                until = after.us;
                let alive = journal.records.iter().any(|record| {
                    let between = record.us > before.us + 30_000 && record.us < after.us;
                    let from_caller = matches!(record.what, What::Mark { .. } | What::Dtmf { .. })
                        || matches!(&record.what, What::Leg { leg: Side::Caller, change, .. } if change == "pong");
                    between && from_caller
                });
                let outage = Outage { at_us: signed(before.us) + 1_000, for_us: gap - 1_000 };
                if alive { &mut self.pauses } else { &mut self.stalls }.push(outage);
            } else if after.us > until + 40_000 {
                jitter = jitter.max(lateness);
            }
        }
        if jitter > JITTER_US {
            self.jitter_ms = (u64::try_from(jitter).unwrap_or_default() / 1_000).min(200);
        }
    }
}

/// The journal with one count of what the model was given: each session of a renewed call begins its own.
pub(super) fn counted_on(journal: &Recorded) -> Recorded {
    let mut journal = journal.clone();
    let per_ms = u64::from(journal.header.call.format.bytes_per_ms());
    let (mut bytes, mut before_ms) = (0, 0);
    for record in &mut journal.records {
        match &mut record.what {
            What::Bridge { does, .. } if does == "dial" => before_ms = bytes / per_ms,
            What::SentModel(event) => bytes += event.audio.as_ref().map_or(0, |audio| audio.len as u64),
            What::Model(event) => {
                for position in [&mut event.start_ms, &mut event.end_ms].into_iter().flatten() {
                    *position += before_ms;
                }
            }
            _ => {}
        }
    }
    journal
}

pub(super) fn signed(us: u64) -> i64 {
    i64::try_from(us).unwrap_or(i64::MAX)
}

/// The bridge drops a frame that comes again.
fn repeats(last: Option<&Frame>, chunk: u64) -> bool {
    chunk > 0 && last.is_some_and(|last| last.chunk == chunk)
}

/// Half the shortest round trip of a ping.
fn latency(journal: &Recorded, side: Side) -> Option<u64> {
    let mut pinged = None;
    let mut least: Option<u64> = None;
    for record in &journal.records {
        match &record.what {
            What::Bridge { does, leg, .. } if does == "ping" && *leg == side => pinged = Some(record.us),
            What::Leg { leg, change, .. } if change == "pong" && *leg == side => {
                if let Some(at) = pinged.take() {
                    least = Some(least.unwrap_or(u64::MAX).min(record.us - at));
                }
            }
            _ => {}
        }
    }
    // Two seconds and more is no network but a far end that was busy.
    least.filter(|round_trip| *round_trip < 2_000_000).map(|round_trip| round_trip / 2)
}

/// The loudness between a quiet line and speech.
fn floor(frames: &[Frame]) -> i32 {
    let mut levels: Vec<_> = frames.iter().map(|frame| frame.dbfs).collect();
    levels.sort_unstable();
    let quiet = levels.get(levels.len() / 5).copied().unwrap_or(FLOOR_DBFS);
    // On a call where nearly all is speech the quietest fifth is speech, too.
    (quiet + 8).clamp(FLOOR_DBFS, -45)
}

/// Audio that was recorded.
pub(super) fn bytes(blob: &Blob) -> Option<Vec<u8>> {
    BASE64.decode(blob.data.as_ref()?).ok().filter(|bytes| bytes.len() == blob.len)
}

/// Which audio was given to the model when, and what it was made of: frames, and silence that the bridge put in where
/// the carrier leaves it out. The bridge hands over all that waits at one moment.
fn appends(journal: &Recorded, frames: &[Frame]) -> (Vec<Append>, Vec<Piece>) {
    let config = &journal.header.call;
    let per_ms = u64::from(config.format.bytes_per_ms());
    let mut bytes = 0_u64;
    let mut appends: Vec<Append> = Vec::new();
    let mut waiting = Waiting { gap_max_ms: config.limits.gap_ms, ..Waiting::default() };
    let mut pieces = Vec::new();
    // What is handed over now: when, where it begins in all that was appended, how much, ms.
    let mut burst: Option<(u64, u64, u64)> = None;
    for record in &journal.records {
        if let What::Bridge { does, .. } = &record.what {
            waiting.begins |= does == "dial";
        }
        let What::SentModel(event) = &record.what else { continue };
        let Some(audio) = &event.audio else { continue };
        if let Some((us, from_ms, ms)) = burst
            && us != record.us
        {
            waiting.hand_over(from_ms, ms, &mut pieces);
            burst = None;
        }
        waiting.take(frames, record.us);
        let from_ms = bytes / per_ms;
        bytes += audio.len as u64;
        let ms = bytes / per_ms - from_ms;
        appends.push(Append { us: record.us, from_ms, ms });
        let (_, _, so_far) = burst.get_or_insert((record.us, from_ms, 0));
        *so_far += ms;
    }
    if let Some((_, from_ms, ms)) = burst {
        waiting.hand_over(from_ms, ms, &mut pieces);
    }
    (appends, pieces)
}

/// What waited in the bridge to be given to the model, as it keeps account of it.
#[derive(Debug, Default)]
struct Waiting {
    gap_max_ms: u64,
    taken: usize,
    /// Where the next frame should begin on the caller's clock, ms.
    expected_ms: Option<u64>,
    /// How long each piece is, ms, and its frame.
    pieces: Vec<(u64, Option<usize>)>,
    /// Another session takes over: what is more than waited was told to the one before, too.
    begins: bool,
}

impl Waiting {
    /// Takes the frames that have arrived by then.
    fn take(&mut self, frames: &[Frame], until_us: u64) {
        for (n, frame) in frames.iter().enumerate().skip(self.taken) {
            if frame.us > until_us {
                break;
            }
            self.taken = n + 1;
            if let (Some(expected), Some(ts)) = (self.expected_ms, frame.ts)
                && ts >= expected + GAP_MS
            {
                self.pieces.push(((ts - expected).min(self.gap_max_ms), None));
            }
            self.pieces.push((frame.ms, Some(n)));
            self.expected_ms = Some(frame.ts.or(self.expected_ms).unwrap_or_default() + frame.ms);
        }
    }

    /// So many ms were handed over: all that waits ends with them. What is more was supplied as silence; what is less
    /// was dropped, the oldest first.
    fn hand_over(&mut self, from_ms: u64, ms: u64, into: &mut Vec<Piece>) {
        let mut waits: u64 = self.pieces.iter().map(|(ms, _)| ms).sum();
        let end = from_ms + ms;
        let more = ms.checked_sub(waits).filter(|more| *more > ROUNDING_MS);
        let again = std::mem::take(&mut self.begins);
        if let Some(again_ms) = more.filter(|_| again) {
            let (mut begins, mut left) = (from_ms + again_ms, again_ms);
            let mut pieces = Vec::new();
            for piece in into.iter().rev() {
                let ms = piece.ms.min(left);
                (begins, left) = (begins - ms, left - ms);
                pieces.push(Piece { from_ms: begins, ms, frame: piece.frame });
                if left == 0 {
                    break;
                }
            }
            into.extend(pieces.into_iter().rev());
        } else if let Some(supplied) = more {
            into.push(Piece { from_ms, ms: supplied, frame: None });
            self.expected_ms = self.expected_ms.map(|expected| expected + supplied);
        }
        for (ms, frame) in self.pieces.drain(..) {
            let begins = end.saturating_sub(waits);
            waits -= ms;
            let ends = end.saturating_sub(waits);
            if ends > from_ms {
                let from_ms = begins.max(from_ms);
                into.push(Piece { from_ms, ms: ends - from_ms, frame });
            }
        }
    }
}

/// What was played to the caller, as the bridge sent it.
fn utterances(journal: &Recorded, latency_us: u64) -> Vec<Utterance> {
    let mut all: Vec<Utterance> = Vec::new();
    let mut cleared = true;
    for record in &journal.records {
        let arrives = signed(record.us + latency_us);
        match &record.what {
            What::SentMedia { audio } => {
                let lasts = signed(audio.len as u64 * 125);
                match all.last_mut().filter(|last| !cleared && arrives < last.ends + QUIET_US) {
                    Some(last) => {
                        let from = last.ends.max(arrives);
                        last.ends = from + lasts;
                        match last.played.last_mut().filter(|stretch| stretch.1 == from) {
                            Some(stretch) => stretch.1 = from + lasts,
                            None => last.played.push((from, from + lasts)),
                        }
                    }
                    None => {
                        let begins = all.last().map_or(arrives, |last| last.ends.max(arrives));
                        let ends = begins + lasts;
                        all.push(Utterance { begins, ends, played: vec![(begins, ends)] });
                    }
                }
                cleared = false;
            }
            What::SentClear => {
                if let Some(last) = all.last_mut() {
                    last.ends = last.ends.min(arrives).max(last.begins);
                    let ends = last.ends;
                    last.played.retain(|stretch| stretch.0 < ends);
                    if let Some(stretch) = last.played.last_mut() {
                        stretch.1 = stretch.1.min(ends);
                    }
                }
                cleared = true;
            }
            _ => {}
        }
    }
    all
}
