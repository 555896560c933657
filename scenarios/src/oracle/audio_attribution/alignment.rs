//! Lays a stream over recordings: which of them each part of it comes from, and from where.

use super::recording::{BYTES_PER_MS, DELAY, PROBE, QUIET_RMS, Recording, WINDOW};
use mocks::peer::At;

/// A window goes on like its item when the normalised correlation is above this. Two good resamplers agree to
/// 0.97 and better on speech; two different places of a voice stay below 0.6.
const ALIKE: f32 = 0.8;
/// A single window (a fricative, where a third of a sample of delay matters) may fall this low when the next
/// one is alike again.
const WEAKLY_ALIKE: f32 = 0.4;
/// Two places this close in likeness cannot be told apart.
const AS_ALIKE: f32 = 0.02;
/// While nothing is recognised, everything is searched in every n-th window only.
const SEARCH_EVERY: usize = 5;
/// Positions that are ruled out at one time in a search of everything.
const SEARCH_BLOCK: usize = 8;
/// The probe must be this similar before the whole window is compared.
const PROBE_ALIKE: f32 = 0.7;

/// Where a stretch of a stream lies on one of several references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Reference { reference: usize, at: usize },
    Silence,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aligned {
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) place: Place,
}

/// What a stream may come from.
#[derive(Debug)]
pub(super) struct Reference<'a> {
    recording: Recording<'a>,
    /// It cannot be received before this.
    from: At,
    /// First sample that is not quiet.
    first_loud: usize,
}

impl<'a> Reference<'a> {
    pub(super) fn new(recording: Recording<'a>, from: At) -> Self {
        let mut first_loud = 0;
        while first_loud + PROBE < recording.len() && recording.is_quiet(first_loud, PROBE) {
            first_loud += PROBE;
        }
        Self { recording, from, first_loud }
    }
}

/// Lays a stream over references.
pub(super) struct Aligner<'a> {
    stream: &'a Recording<'a>,
    references: &'a [Reference<'a>],
    /// When each byte of the stream arrived, at the latest.
    arrived: &'a dyn Fn(usize) -> At,
    /// Where the stream was broken off: what follows is compared anew.
    breaks: &'a [usize],
    /// How far each reference has been followed.
    followed: Vec<usize>,
    out: Vec<Aligned>,
    /// The last place followed: reference, position, and the stream offset where it was left.
    left: Option<(usize, usize, usize)>,
    lost_for: usize,
}

impl<'a> Aligner<'a> {
    pub(super) fn run(
        stream: &'a Recording<'a>,
        references: &'a [Reference<'a>],
        arrived: &'a dyn Fn(usize) -> At,
        breaks: &'a [usize],
    ) -> Vec<Aligned> {
        let mut aligner = Self {
            stream,
            references,
            arrived,
            breaks,
            followed: vec![0; references.len()],
            out: Vec::new(),
            left: None,
            lost_for: 0,
        };
        aligner.follow();
        aligner.out
    }

    fn follow(&mut self) {
        let end = self.stream.len();
        let mut offset = 0;
        // Where the last place was found, rather than followed to.
        let mut found = usize::MAX;
        let mut here: Option<(usize, usize)> = None;
        while offset < end {
            if let Some((reference, at)) = here {
                let mut len = WINDOW.min(self.references[reference].recording.len() - at).min(end - offset);
                // At a break nothing goes on by itself, for two items may be cut from the same sound; what was found
                // there does.
                let from = if found == offset { offset + 1 } else { offset };
                let next = self.breaks.partition_point(|at| *at < from);
                if let Some(at) = self.breaks.get(next) {
                    len = len.min(at - offset);
                }
                let len = self.goes_on(offset, reference, at, len);
                if len > 0 {
                    self.lay(offset, len, Place::Reference { reference, at });
                    self.followed[reference] = self.followed[reference].max(at + len);
                    here = Some((reference, at + len));
                    offset += len;
                    continue;
                }
                self.left = Some((reference, at, offset));
                self.lost_for = 0;
                here = None;
            }
            let len = WINDOW.min(end - offset);
            // Sound that follows silence is compared from where it begins, not from where a window happens to.
            let quiet = self.quiet_for(offset, len);
            if quiet > 0 {
                self.lay(offset, quiet, Place::Silence);
                offset += quiet;
                self.lost_for = 0;
                continue;
            }
            if let Some((reference, at, begins)) = self.find(offset) {
                if begins > offset {
                    self.lay_filler(offset, begins - offset);
                }
                self.reach_back(reference, at, begins);
                here = Some((reference, at));
                offset = begins;
                found = begins;
                continue;
            }
            self.lay(offset, len, Place::Unknown);
            self.lost_for += 1;
            offset += len;
        }
    }

    /// How much of the window is silence, from its beginning on, in steps of a millisecond.
    fn quiet_for(&self, offset: usize, len: usize) -> usize {
        if self.stream.is_quiet(offset, len) {
            return len;
        }
        // In the middle of sound that is not recognised a quiet moment separates nothing.
        if self.out.last().is_some_and(|last| last.place == Place::Unknown) {
            return 0;
        }
        let is_loud = |from: &usize| !self.stream.is_quiet(offset + from, BYTES_PER_MS.min(len - from));
        (0..len).step_by(BYTES_PER_MS).find(is_loud).unwrap_or(len)
    }

    /// How much of the window goes on like the reference: all of it, a part, or nothing.
    fn goes_on(&self, offset: usize, reference: usize, at: usize, len: usize) -> usize {
        let there = &self.references[reference].recording;
        if len == 0 {
            return 0;
        }
        if let (Recording::Exact { codes: a, .. }, Recording::Exact { codes: b, .. }) = (self.stream, there) {
            let (a, b) = (&a[offset..offset + len], &b[at..at + len]);
            if a == b {
                return len;
            }
            let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
            // The next sound may begin with a few bytes that would have been the next of this one.
            return if same >= DELAY { same } else { 0 };
        }
        let (heard, expected) = (self.stream.power(offset, len), there.power(at, len));
        let quiet = QUIET_RMS * QUIET_RMS;
        if heard < quiet && expected < quiet || heard.max(expected) < 4.0 * quiet && heard.min(expected) > 0.0
        {
            return len;
        }
        let alike = self.stream.alike(offset, there, at, len);
        if alike > ALIKE {
            return len;
        }
        let next_is_alike = || {
            let (o, a) = (offset + len, at + len);
            let more = WINDOW.min(self.stream.len() - o).min(there.len() - a);
            more > PROBE && self.stream.alike(o, there, a, more) > ALIKE
        };
        if alike > WEAKLY_ALIKE && next_is_alike() {
            return len;
        }
        // A very short rest of an item says little by correlation: accept it when its level fits.
        if len < PROBE && alike > 0.0 { len } else { 0 }
    }

    /// Whether there is next to nothing in the window that could be compared: the end of a sound, the ringing of a
    /// filter behind it.
    fn is_a_tail(&self, offset: usize) -> bool {
        let end = (offset + WINDOW).min(self.stream.len());
        let (mut loud, mut all) = (0, 0);
        for at in (offset..end).step_by(BYTES_PER_MS) {
            all += 1;
            loud += usize::from(!self.stream.is_quiet(at, BYTES_PER_MS.min(end - at)));
        }
        4 * loud < all
    }

    /// Where the window at `offset` comes from: reference, position, and the stream offset where it begins.
    fn find(&self, offset: usize) -> Option<(usize, usize, usize)> {
        let mut best = Best::default();
        if !self.stream.is_exact() && self.is_a_tail(offset) {
            return None;
        }
        if let Some((reference, at, since)) = self.left {
            // The same reference: where it was left, or as far on as the stream went on meanwhile.
            for target in [at, at + (offset - since)] {
                for delay in 0..=2 * DELAY {
                    if let Some(at) = (target + delay).checked_sub(DELAY) {
                        self.compare(&mut best, offset, reference, at);
                    }
                }
            }
        }
        let went_on = best;
        let mut best = Best::default();
        // The beginning of something not heard yet, somewhere within this window.
        for (reference, there) in self.references.iter().enumerate() {
            if self.followed[reference] > 0 || !self.is_possible(reference, offset) {
                continue;
            }
            for before in 1..=WINDOW + DELAY {
                self.compare(&mut best, offset + before, reference, 0);
            }
            for at in 0..=(there.first_loud + WINDOW).min(there.recording.len()) {
                self.compare(&mut best, offset, reference, at);
            }
            if best.found() && best.place.is_some_and(|place| self.goes_on_from(place)) {
                break;
            }
            best = Best::default();
        }
        // Two items may be cut from the same sound; what could be either is what is due.
        if best.found() && best.alike + AS_ALIKE >= went_on.alike {
            return best.place;
        }
        if went_on.found() {
            return went_on.place;
        }
        if !self.lost_for.is_multiple_of(SEARCH_EVERY) {
            return None;
        }
        let probe = self.loudest(offset);
        // What looks like several places is the next of them: a voice begins its words alike.
        if let Some((reference, at, _)) = self.left {
            self.search(&mut best, offset, reference, probe, at.saturating_sub(DELAY));
            if best.found() {
                return best.place;
            }
        }
        for reference in 0..self.references.len() {
            if self.is_possible(reference, offset) {
                self.search(&mut best, offset, reference, probe, 0);
            }
        }
        best.place.filter(|_| best.found())
    }

    /// Whether the window behind this one is like the reference, too. One window may be by chance: two voices begin
    /// alike.
    fn goes_on_from(&self, (reference, at, offset): (usize, usize, usize)) -> bool {
        let there = &self.references[reference].recording;
        let (o, a) = (offset + WINDOW, at + WINDOW);
        // Behind a break there is something else.
        let whole = self.breaks.iter().find(|at| **at >= o).map_or(self.stream.len(), |at| *at);
        let more = WINDOW.min(whole.saturating_sub(o)).min(there.len().saturating_sub(a));
        more <= PROBE || self.stream.is_quiet(o, more) || self.stream.alike(o, there, a, more) > WEAKLY_ALIKE
    }

    fn is_possible(&self, reference: usize, offset: usize) -> bool {
        self.references[reference].recording.len() > 0
            && self.references[reference].from <= (self.arrived)(offset)
    }

    fn compare(&self, best: &mut Best, offset: usize, reference: usize, at: usize) {
        let there = &self.references[reference].recording;
        if offset >= self.stream.len() || at >= there.len() {
            return;
        }
        let len = WINDOW.min(self.stream.len() - offset).min(there.len() - at);
        if len < 2 * PROBE {
            return;
        }
        // The order changes nothing: the power of samples is at hand, that of bytes is summed where they are equal.
        if !self.stream.is_exact() && self.stream.is_quiet(offset, len) {
            return;
        }
        let alike = self.stream.alike(offset, there, at, len);
        if alike > best.alike && !self.stream.is_quiet(offset, len) {
            best.offer(alike, (reference, at, offset));
        }
    }

    /// Compares the window with every position of a reference from `first` on, the loudest part of it first.
    fn search(&self, best: &mut Best, offset: usize, reference: usize, probe: usize, first: usize) {
        let there = &self.references[reference].recording;
        let len = WINDOW.min(self.stream.len() - offset);
        if len < 2 * PROBE || there.len() < len {
            return;
        }
        let end = there.len() - len + 1;
        let mut next = first;
        while next < end {
            let at = next;
            let block = SEARCH_BLOCK.min(end - at);
            if at.is_multiple_of(SEARCH_BLOCK)
                && (self.stream.none_is_alike((offset, len), there, at, block)
                    || self.stream.none_is_alike((offset + probe, PROBE), there, at + probe, block))
            {
                next += block;
                continue;
            }
            next += 1;
            if self.stream.may_be_alike((offset, len), there, at, (probe, PROBE), PROBE_ALIKE)
                && self.stream.alike(offset + probe, there, at + probe, PROBE) > PROBE_ALIKE
            {
                best.offer(self.stream.alike(offset, there, at, len), (reference, at, offset));
                // Nothing is more alike than equal.
                if self.stream.is_exact() && best.found() {
                    return;
                }
            }
        }
    }

    /// Where in the window its loudest part begins.
    fn loudest(&self, offset: usize) -> usize {
        let len = WINDOW.min(self.stream.len() - offset);
        (0..len.saturating_sub(PROBE - 1))
            .step_by(PROBE / 2)
            .max_by(|a, b| {
                self.stream.power(offset + a, PROBE).total_cmp(&self.stream.power(offset + b, PROBE))
            })
            .unwrap_or(0)
    }

    /// A match was found at `offset`: what was taken for filler before it may belong to it, too.
    fn reach_back(&mut self, reference: usize, mut at: usize, mut offset: usize) {
        const STEP: usize = 8;
        let there = &self.references[reference].recording;
        // Two resamplers place the same sound a few samples apart.
        let followed = self.followed[reference];
        let followed = if at + DELAY >= followed { followed.min(at) } else { 0 };
        let mut gained = 0;
        while let Some(last) = self.out.last_mut() {
            if matches!(last.place, Place::Reference { .. }) {
                break;
            }
            let step = STEP.min(last.len).min(at - followed.min(at));
            if step == 0 {
                break;
            }
            let (o, a) = (offset - step, at - step);
            let same = if self.stream.is_exact() {
                self.stream.alike(o, there, a, step) == 1.0
            } else {
                let both_quiet = self.stream.is_quiet(o, step) && there.is_quiet(a, step);
                let room = WINDOW.min(self.stream.len() - o).min(there.len() - a);
                both_quiet || self.stream.alike(o, there, a, 2 * STEP.min(room / 2)) > ALIKE
            };
            if !same {
                break;
            }
            last.len -= step;
            if last.len == 0 {
                self.out.pop();
            }
            offset = o;
            at = a;
            gained += step;
        }
        if gained > 0 {
            self.lay(offset, gained, Place::Reference { reference, at });
        }
    }

    fn lay_filler(&mut self, offset: usize, len: usize) {
        let place = if self.stream.is_quiet(offset, len) { Place::Silence } else { Place::Unknown };
        self.lay(offset, len, place);
    }

    fn lay(&mut self, offset: usize, len: usize, place: Place) {
        if let Some(last) = self.out.last_mut() {
            let continues = match (last.place, place) {
                (Place::Reference { reference: a, at }, Place::Reference { reference: b, at: next }) => {
                    a == b && at + last.len == next
                }
                (Place::Silence, Place::Silence) | (Place::Unknown, Place::Unknown) => true,
                (Place::Reference { .. } | Place::Silence | Place::Unknown, _) => false,
            };
            if continues {
                last.len += len;
                return;
            }
        }
        self.out.push(Aligned { offset, len, place });
    }
}

#[derive(Default)]
struct Best {
    alike: f32,
    place: Option<(usize, usize, usize)>,
}

impl Best {
    fn offer(&mut self, alike: f32, place: (usize, usize, usize)) {
        if alike > self.alike {
            self.alike = alike;
            self.place = Some(place);
        }
    }

    fn found(&self) -> bool {
        self.alike > ALIKE
    }
}
