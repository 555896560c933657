//! The play-out: a queue behind a clock.
//!
//! Audio is played in order at 8000 bytes a second, from the moment it reaches an idle play-out. So the time of every
//! byte is known as soon as it arrives, and the play-out is a *schedule*: it needs no tick, and costs the same for a
//! minute of audio as for a frame. Only a `clear` ever takes something off it.

use crate::peer::At;
use crate::record::{CallerRecord, Played};
use crate::ulaw;
use std::collections::VecDeque;

/// Microseconds per byte of G.711.
const BYTE_US: u64 = 125;
/// Microseconds of one frame.
const FRAME_US: u64 = 20_000;
/// Nothing played for this long is the end of an utterance.
pub(super) const QUIET_MS: u64 = 400;

/// The level from which on a frame is audible, in samples of 16 bits, as a root of a mean square: -42 dBFS. An idle line
/// was recorded at up to 72, and a quiet speaker on the phone is some 20 dB above this.
const AUDIBLE: u64 = 260;
/// Codes whose level is taken at once: one frame.
const WINDOW: usize = 160;

/// Tells what of the audio that is played a person hears: from the first audible frame on to the last, with the pauses
/// of speech between them. Silence that is sent is as quiet as none.
#[derive(Clone, Debug, Default)]
pub(super) struct Audible {
    /// Played since the last audible frame.
    pause: Vec<Played>,
    /// When that ended.
    ended: Option<At>,
}

impl Audible {
    /// These codes are played from `at` on; they begin at `offset` of everything received. Returns what of all that was
    /// played so far turns out to be heard.
    pub(super) fn push(&mut self, at: At, offset: usize, codes: &[u8]) -> Vec<Played> {
        let mut found = Vec::new();
        for (nth, window) in codes.chunks(WINDOW).enumerate() {
            let before = nth * WINDOW;
            let at = At(at.0 + before as u64 * BYTE_US);
            let new = Played { at, offset: offset + before, len: window.len() };
            if is_audible(window) {
                let pause = std::mem::take(&mut self.pause);
                if self.ended.is_some_and(|ended| at.since(ended) < QUIET_MS * 1_000) {
                    found.extend(pause);
                }
                found.push(new);
                self.ended = Some(new.end());
            } else if self.ended.is_some_and(|ended| at.since(ended) < QUIET_MS * 1_000) {
                self.pause.push(new);
            }
        }
        found
    }

    /// What was to be played is not.
    fn clear(&mut self) {
        *self = Self::default();
    }
}

fn is_audible(codes: &[u8]) -> bool {
    let energy: u64 = codes.iter().map(|code| u64::from(ulaw::decode(*code).unsigned_abs()).pow(2)).sum();
    energy >= AUDIBLE * AUDIBLE * codes.len().max(1) as u64
}

/// What the person on the line hears of a play-out.
#[derive(Debug)]
pub(super) struct Listening {
    playout: Playout,
    audible: Audible,
    /// What was played of it is not used.
    played: Vec<Played>,
}

impl Listening {
    pub(super) fn new(in_flight_frame: bool) -> Self {
        Self { playout: Playout::new(0, in_flight_frame), audible: Audible::default(), played: Vec::new() }
    }

    /// What is audible, as a play-out that nothing else reaches.
    pub(super) fn playout(&self) -> &Playout {
        &self.playout
    }

    pub(super) fn advance(&mut self, now: At) {
        let _dry = self.playout.advance(now, &mut self.played);
        self.played.clear();
    }

    /// These codes will be played from `at` on.
    pub(super) fn push(&mut self, at: At, offset: usize, codes: &[u8]) {
        for heard in self.audible.push(at, offset, codes) {
            self.playout.place(heard.at, heard.offset, heard.len);
        }
    }

    pub(super) fn clear(&mut self, now: At) {
        self.playout.clear(now);
        self.audible.clear();
    }

    pub(super) fn stop(&mut self) {
        self.playout.stop();
    }
}

/// Bytes that were heard of what was played: see `Audible`.
pub fn audible_bytes(record: &CallerRecord) -> usize {
    let mut audible = Audible::default();
    let codes = |stretch: &Played| {
        let end = (stretch.offset + stretch.len).min(record.received.len());
        &record.received[stretch.offset.min(end)..end]
    };
    let heard =
        record.played.iter().flat_map(|stretch| audible.push(stretch.at, stretch.offset, codes(stretch)));
    heard.map(|heard| heard.len).sum()
}

/// The play-out of one stream.
#[derive(Debug)]
pub(super) struct Playout {
    gather_us: u64,
    in_flight_frame: bool,
    /// What will be played, in order and without overlap; the first stretch may be half played.
    schedule: VecDeque<Played>,
    /// Bytes on the schedule.
    queued: usize,
    /// Bytes played so far.
    heard: usize,
    /// When the last byte ever scheduled has been played.
    until: At,
    /// The end of the last stretch was reported, or there was none.
    dry_reported: bool,
    /// A `clear` came after the last audio.
    cleared: bool,
    latest: Latest,
}

/// The newest stretch without a gap, and the utterance it belongs to.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    /// Stretches so far.
    starts: u64,
    /// When the newest begins.
    began: At,
    /// Bytes heard before it.
    base: usize,
    /// Utterances so far.
    utterances: u64,
    /// Bytes heard before the newest utterance.
    utterance_base: usize,
}

impl Playout {
    pub(super) fn new(gather_ms: u64, in_flight_frame: bool) -> Self {
        Self {
            gather_us: gather_ms * 1_000,
            in_flight_frame,
            schedule: VecDeque::new(),
            queued: 0,
            heard: 0,
            until: At(0),
            dry_reported: true,
            cleared: false,
            latest: Latest::default(),
        }
    }

    /// Moves what has been played by `now` into `played`. Returns when it ran dry, once for each time.
    pub(super) fn advance(&mut self, now: At, played: &mut Vec<Played>) -> Option<At> {
        while let Some(next) = self.schedule.front_mut() {
            let len = next.len.min((now.since(next.at) / BYTE_US) as usize);
            if len == 0 {
                break;
            }
            heard(played, Played { len, ..*next });
            self.heard += len;
            self.queued -= len;
            *next = Played {
                at: At(next.at.0 + len as u64 * BYTE_US),
                offset: next.offset + len,
                len: next.len - len,
            };
            if next.len > 0 {
                break;
            }
            self.schedule.pop_front();
        }
        // Audio that arrives at the very moment the last byte ends leaves no gap, hence "before", not "by".
        let ran_dry = self.schedule.is_empty() && self.until < now && !self.dry_reported;
        ran_dry.then(|| {
            self.dry_reported = true;
            self.until
        })
    }

    /// Queues `len` bytes that begin at `offset` of everything received. Call [`Playout::advance`] first. Returns when
    /// they will begin to be played.
    pub(super) fn push(&mut self, now: At, offset: usize, len: usize) -> At {
        let at = if self.is_idle(now) { At(now.0 + self.gather_us) } else { self.until };
        self.place(at, offset, len);
        at
    }

    fn is_idle(&self, now: At) -> bool {
        self.until < now || self.latest.starts == 0 || (self.cleared && self.until == now)
    }

    /// Queues `len` bytes behind everything that is queued, to be played from `at` on.
    fn place(&mut self, at: At, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        if self.is_idle(at) || self.cleared {
            let total = self.total();
            let pause = at.since(self.until) >= QUIET_MS * 1_000;
            if pause || self.cleared || self.latest.starts == 0 {
                self.latest.utterances += 1;
                self.latest.utterance_base = total;
            }
            self.latest.starts += 1;
            self.latest.began = at;
            self.latest.base = total;
        }
        match self.schedule.back_mut() {
            Some(last) if last.end() == at && last.offset + last.len == offset => last.len += len,
            Some(_) | None => self.schedule.push_back(Played { at, offset, len }),
        }
        self.queued += len;
        self.until = At(at.0 + len as u64 * BYTE_US);
        self.dry_reported = false;
        self.cleared = false;
    }

    /// Forgets what is queued; says how many bytes will never be heard. Call [`Playout::advance`] first.
    pub(super) fn clear(&mut self, now: At) -> usize {
        let before = self.queued;
        let stop_at = if self.in_flight_frame { self.end_of_frame(now) } else { now };
        while let Some(last) = self.schedule.back_mut() {
            let keep = last.len.min((stop_at.since(last.at) / BYTE_US) as usize);
            self.queued -= last.len - keep;
            last.len = keep;
            if keep > 0 {
                break;
            }
            self.schedule.pop_back();
        }
        if self.until > now {
            self.until = self.schedule.back().map_or(now, Played::end);
        }
        if self.latest.began > now && self.latest.starts > 0 {
            // The newest stretch was still being gathered: it never began.
            self.latest.starts -= 1;
            self.latest.began = now;
            self.latest.base = self.latest.base.min(self.total());
        }
        self.latest.utterance_base = self.latest.utterance_base.min(self.total());
        self.cleared = true;
        before - self.queued
    }

    /// The call is over: nothing more is heard.
    pub(super) fn stop(&mut self) {
        self.schedule.clear();
        self.queued = 0;
        self.dry_reported = true;
    }

    /// Bytes waiting to be played.
    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    /// Bytes played so far.
    pub(super) fn heard(&self) -> usize {
        self.heard
    }

    /// Bytes that will have been played when the queue is empty.
    pub(super) fn total(&self) -> usize {
        self.heard + self.queued
    }

    /// When everything queued by now has been played; `None` when nothing is queued.
    pub(super) fn plays_until(&self) -> Option<At> {
        (self.queued > 0).then_some(self.until)
    }

    /// When `total` bytes since the call began will have been played, if they are here already.
    pub(super) fn when_total(&self, total: usize) -> Option<At> {
        let Some(mut missing) = total.checked_sub(self.heard).filter(|missing| *missing > 0) else {
            return Some(At(0));
        };
        for stretch in &self.schedule {
            if missing <= stretch.len {
                return Some(At(stretch.at.0 + missing as u64 * BYTE_US));
            }
            missing -= stretch.len;
        }
        None
    }

    /// The state of playback now, to compare with later.
    pub(super) fn moment(&self, now: At) -> Moment {
        let playing = self.schedule.front().is_some_and(|next| next.at <= now);
        let gathering = u64::from(self.latest.starts > 0 && self.latest.began > now);
        let over = self.latest.starts == 0 || self.cleared || self.until.plus_ms(QUIET_MS) <= now;
        Moment {
            playing,
            starts: self.latest.starts - gathering,
            utterances: self.latest.utterances,
            current: if over { self.latest.utterances + 1 } else { self.latest.utterances },
        }
    }

    /// When audio began that is new since `then`, and how much had been heard before it.
    pub(super) fn began_since(&self, then: Moment) -> Option<(At, usize)> {
        let new = if then.playing {
            self.latest.utterances > then.utterances
        } else {
            self.latest.starts > then.starts
        };
        new.then_some((self.latest.began, self.latest.base))
    }

    /// When `len` bytes of the utterance that was current at `then`, or of a later one, have been played.
    pub(super) fn when_heard(&self, then: Moment, len: usize) -> Option<At> {
        if self.latest.utterances < then.current {
            return None;
        }
        self.when_total(self.latest.utterance_base + len)
    }

    /// When playback will have been quiet for [`QUIET_MS`], if more than `total` bytes were played by then.
    pub(super) fn when_quiet(&self, total: usize) -> Option<At> {
        (self.total() > total).then(|| self.until.plus_ms(QUIET_MS))
    }

    /// The end of the 20 ms frame being played at `now`.
    fn end_of_frame(&self, now: At) -> At {
        if self.schedule.is_empty() || self.latest.began >= now {
            return now;
        }
        At(self.latest.began.0 + now.since(self.latest.began).div_ceil(FRAME_US) * FRAME_US)
    }
}

/// A state of playback, to tell later what is new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    playing: bool,
    starts: u64,
    utterances: u64,
    /// The utterance under way, or else the next.
    current: u64,
}

/// Appends to what was heard, as one stretch where there was no break.
fn heard(played: &mut Vec<Played>, new: Played) {
    match played.last_mut() {
        Some(last) if last.end() == new.at && last.offset + last.len == new.offset => last.len += new.len,
        Some(_) | None => played.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A play-out with the audio it was given.
    struct Bench {
        playout: Playout,
        received: usize,
        played: Vec<Played>,
    }

    impl Bench {
        fn new() -> Self {
            Self::with(0, false)
        }

        fn with(gather_ms: u64, in_flight_frame: bool) -> Self {
            Self { playout: Playout::new(gather_ms, in_flight_frame), received: 0, played: Vec::new() }
        }

        fn push(&mut self, at: At, len: usize) {
            self.playout.advance(at, &mut self.played);
            self.playout.push(at, self.received, len);
            self.received += len;
        }

        fn clear(&mut self, at: At) -> usize {
            self.playout.advance(at, &mut self.played);
            self.playout.clear(at)
        }

        fn at(&mut self, at: At) -> &[Played] {
            self.playout.advance(at, &mut self.played);
            &self.played
        }
    }

    fn stretch(at: At, offset: usize, len: usize) -> Played {
        Played { at, offset, len }
    }

    #[test]
    fn audio_plays_at_once_and_at_8000_bytes_a_second() {
        let mut t = Bench::new();
        t.push(At(1_000_003), 8_000);
        assert_eq!(t.at(At(1_000_003 + 124)), []);
        assert_eq!(t.at(At(1_000_003 + 125)), [stretch(At(1_000_003), 0, 1)]);
        assert_eq!(t.at(At(2_000_003)), [stretch(At(1_000_003), 0, 8_000)]);
    }

    #[test]
    fn audio_that_arrives_in_time_leaves_no_gap() {
        let mut t = Bench::new();
        t.push(At::ms(0), 160);
        t.push(At::ms(20), 160);
        t.push(At::ms(39), 160);
        assert_eq!(t.at(At::ms(60)), [stretch(At::ms(0), 0, 480)]);
    }

    #[test]
    fn audio_that_arrives_late_leaves_a_gap() {
        let mut t = Bench::new();
        t.push(At::ms(0), 160);
        t.push(At::ms(25), 160);
        assert_eq!(t.at(At::ms(60)), [stretch(At::ms(0), 0, 160), stretch(At::ms(25), 160, 160)]);
    }

    #[test]
    fn running_dry_is_said_once_and_to_the_microsecond() {
        let mut t = Bench::new();
        t.push(At::ms(0), 81);
        assert_eq!(t.playout.advance(At(81 * 125), &mut t.played), None);
        assert_eq!(t.playout.advance(At::ms(11), &mut t.played), Some(At(81 * 125)));
        assert_eq!(t.playout.advance(At::ms(12), &mut t.played), None);
    }

    #[test]
    fn a_clear_stops_at_the_very_sample() {
        let mut t = Bench::new();
        t.push(At::ms(0), 1_600);
        assert_eq!(t.clear(At(33_130)), 1_600 - 265);
        t.push(At::ms(50), 160);
        assert_eq!(t.at(At::ms(100)), [stretch(At(0), 0, 265), stretch(At::ms(50), 1_600, 160)]);
    }

    #[test]
    fn a_frame_in_flight_is_heard_to_its_end_when_the_knob_says_so() {
        let mut t = Bench::with(0, true);
        t.push(At::ms(0), 1_600);
        assert_eq!(t.clear(At::ms(33)), 1_600 - 320);
        t.push(At::ms(35), 160);
        assert_eq!(t.at(At::ms(100)), [stretch(At(0), 0, 320), stretch(At::ms(40), 1_600, 160)]);
    }

    #[test]
    fn no_frame_is_in_flight_between_two_frames() {
        let mut t = Bench::with(0, true);
        t.push(At::ms(0), 1_600);
        assert_eq!(t.clear(At::ms(40)), 1_600 - 320);
    }

    #[test]
    fn an_idle_playout_gathers_before_it_plays() {
        let mut t = Bench::with(60, false);
        t.push(At::ms(0), 160);
        t.push(At::ms(20), 160);
        assert_eq!(t.at(At::ms(59)), []);
        assert_eq!(t.at(At::ms(100)), [stretch(At::ms(60), 0, 320)]);
    }

    #[test]
    fn what_was_being_gathered_is_never_heard_after_a_clear() {
        let mut t = Bench::with(60, false);
        let then = t.playout.moment(At(0));
        t.push(At::ms(0), 160);
        assert_eq!(t.clear(At::ms(30)), 160);
        assert_eq!(t.playout.began_since(then), None);
        assert_eq!(t.at(At::ms(200)), []);
    }

    #[test]
    fn the_time_of_a_total_is_known_in_advance() {
        let mut t = Bench::new();
        t.push(At::ms(0), 160);
        t.at(At::ms(5));
        assert_eq!(t.playout.when_total(161), None);
        t.push(At::ms(30), 160);
        assert_eq!(t.playout.when_total(240), Some(At::ms(40)));
    }

    #[test]
    fn a_short_gap_does_not_begin_a_new_utterance() {
        let mut t = Bench::new();
        t.push(At::ms(0), 160);
        let playing = t.playout.moment(At::ms(10));
        t.push(At::ms(419), 160);
        assert_eq!(t.playout.began_since(playing), None);
        assert_eq!(t.playout.when_heard(playing, 240), Some(At::ms(429)));
    }

    #[test]
    fn a_long_gap_begins_a_new_utterance() {
        let mut t = Bench::new();
        t.push(At::ms(0), 160);
        let playing = t.playout.moment(At::ms(10));
        t.push(At::ms(420), 160);
        assert_eq!(t.playout.began_since(playing), Some((At::ms(420), 160)));
        assert_eq!(t.playout.when_heard(playing, 80), Some(At::ms(430)));
    }

    #[test]
    fn a_clear_ends_the_utterance() {
        let mut t = Bench::new();
        t.push(At::ms(0), 1_600);
        let playing = t.playout.moment(At::ms(10));
        t.clear(At::ms(20));
        t.push(At::ms(20), 160);
        assert_eq!(t.playout.began_since(playing), Some((At::ms(20), 160)));
    }
}
