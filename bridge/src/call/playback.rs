//! The ledger of the ear: what was generated, what was sent, what was heard. Three different numbers.
//!
//! Twilio plays what it is sent at exactly 8 bytes a millisecond and returns a mark when all audio before it was
//! played. Between two marks the clock interpolates: audio sent into an idle ear starts at once, audio sent into
//! a busy one starts when the ear is free. A mark that comes later than that model predicts, by more than the
//! usual delay of marks on this call, shows that the ear was held up (a stalled network), and shifts the model by
//! the difference. The usual delay is the smallest one seen; while the ear plays its first stretch of audio, which
//! may have been held up from its beginning, a ping's round trip is the better witness. A mark that is overdue stops
//! the clock: the ear cannot have passed it. One that is overdue for too long is given up, and the clock goes on
//! without it; when it comes back after all, it says as much as any other.
//!
//! No mark can come back sooner than its audio takes to play. One that does says nothing about the ear: the clock goes
//! on without it, and when it comes back once more, in time or late, that counts. Marks returned because of a `clear`
//! prove nothing either: they belong to an earlier generation and are ignored.

use super::settings::ms;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// G.711 bytes per millisecond.
const BYTES_PER_MS: u64 = 8;

/// How long past its usual delay a mark may be before the ear counts as held up: jitter of one frame each way.
const OVERDUE_AFTER: Duration = Duration::from_millis(40);

/// How much sooner than by our clock a mark may come: one frame for a carrier that tells when it begins the last one,
/// and one for clocks that differ.
const EARLY_WITHIN: Duration = Duration::from_millis(40);

/// The delay assumed for the first mark of a call, before one was seen: a generous round trip.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(1_000);

/// Most marks that were given up and are still known if they come back: ten minutes of them, as much as Twilio holds.
const GIVEN_UP_MAX: usize = 3_000;

/// A stretch of one item on its way to the ear, up to and including the mark behind it.
#[derive(Clone, Debug)]
struct Segment {
    /// Which item, by the number the downlink gave it.
    item: u64,
    /// Bytes of the item before this segment.
    from: u64,
    len: u64,
    /// When its first byte plays if nothing holds the ear up.
    starts: Instant,
}

impl Segment {
    fn ends(&self) -> Instant {
        self.starts + playing_time(self.len)
    }
}

#[derive(Clone, Debug)]
struct PendingMark {
    name: String,
    item: u64,
    /// Bytes of the item before the mark.
    position: u64,
    /// When it comes back if nothing holds the ear up and the network took no time.
    expected: Instant,
    /// It came back before that. It may yet come back when it should.
    early: bool,
}

/// What a returned mark means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Returned {
    /// All audio before it was heard.
    Played,
    /// It came back before its audio could have been played: nothing is known because of it.
    Early,
    /// A `clear` sent it back: nothing was heard because of it.
    Flushed,
    /// The last of those that a `clear` sent back: the ear is silent, this long after it was asked to be.
    Silenced(Duration),
    /// No mark of ours.
    Unknown,
}

/// What was sent to the ear and what of it was heard.
#[derive(Clone, Debug)]
pub(crate) struct Playback {
    generation: u64,
    segments: VecDeque<Segment>,
    pending: VecDeque<PendingMark>,
    /// So many of them, from the front, were given up.
    given_up: usize,
    /// Bytes known to be heard of the item a mark was last returned for.
    confirmed: Option<(u64, u64)>,
    /// When the ear runs dry if nothing holds it up.
    free: Option<Instant>,
    /// How much the ear is behind that.
    skew: Duration,
    /// The smallest delay of a mark on this call: the round trip, and the carrier's own slowness.
    mark_delay: Option<Duration>,
    /// The smallest round trip of a ping.
    round_trip: Option<Duration>,
    /// The ear has not run dry since the first mark came back.
    first_stretch: bool,
    /// Marks have been coming back; without them only the clock is left.
    trusted: bool,
    /// The last mark that a `clear` flushed, and when it was sent: once it is back the ear is known to be silent.
    flushed: Option<(String, Instant)>,
}

impl Playback {
    pub(crate) const fn new(round_trip: Option<Duration>) -> Self {
        Self {
            generation: 0,
            segments: VecDeque::new(),
            pending: VecDeque::new(),
            given_up: 0,
            confirmed: None,
            free: None,
            skew: Duration::ZERO,
            mark_delay: None,
            round_trip,
            first_stretch: true,
            trusted: true,
            flushed: None,
        }
    }

    /// When the ear will have played everything sent, by the best estimate.
    pub(crate) fn free_at(&self, now: Instant) -> Instant {
        self.free.map_or(now, |free| free + self.skew).max(now)
    }

    /// How much sent audio is still ahead of the ear.
    pub(crate) fn lead(&self, now: Instant) -> Duration {
        self.free_at(now) - now
    }

    /// Whether sent audio may still be unheard.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        self.free_at(now) > now || self.held_up_at(now).is_some()
    }

    /// Notes `len` bytes of item `item`, which follow `from` bytes of it, as sent at `now`.
    pub(crate) fn sent(&mut self, item: u64, from: u64, len: u64, now: Instant) {
        let starts = match self.free {
            Some(free) if free + self.skew > now => free,
            _ => {
                self.skew = Duration::ZERO;
                self.first_stretch &= self.mark_delay.is_none();
                now
            }
        };
        self.free = Some(starts + playing_time(len));
        match self.segments.back_mut() {
            Some(last) if last.item == item && last.from + last.len == from && last.ends() == starts => {
                last.len += len;
            }
            _ => self.segments.push_back(Segment { item, from, len, starts }),
        }
    }

    /// A name for a mark behind `position` bytes of item `item`, noted as sent at `now`.
    pub(crate) fn mark(&mut self, item: u64, position: u64, now: Instant) -> String {
        let name = format!("{}/{item}/{}", self.generation, position / BYTES_PER_MS);
        let expected = match self.free {
            Some(free) if free + self.skew > now || self.held_up_at(now).is_some() => free,
            // The ear has run dry: the mark comes back at once, and that is not late.
            _ => {
                self.skew = Duration::ZERO;
                now
            }
        };
        self.pending.push_back(PendingMark { name: name.clone(), item, position, expected, early: false });
        name
    }

    /// The network to the ear and back takes no longer than this: a ping came back.
    pub(crate) fn round_trip_seen(&mut self, round_trip: Duration) {
        self.round_trip = Some(self.round_trip.map_or(round_trip, |usual| usual.min(round_trip)));
    }

    /// A mark came back.
    pub(crate) fn returned(&mut self, name: &str, now: Instant) -> Returned {
        let Some(index) = self.pending.iter().position(|mark| mark.name == name) else {
            if let Some((_, since)) = self.flushed.take_if(|(last, _)| last == name) {
                return Returned::Silenced(now.saturating_duration_since(since));
            }
            let generation = name.split('/').next().and_then(|g| g.parse::<u64>().ok());
            return match generation {
                Some(g) if g < self.generation => Returned::Flushed,
                _ => Returned::Unknown,
            };
        };
        let mark = &mut self.pending[index];
        if now + EARLY_WITHIN < mark.expected {
            mark.early = true;
            return Returned::Early;
        }
        let late = now.saturating_duration_since(mark.expected);
        self.mark_delay = Some(self.mark_delay.map_or(late, |delay| delay.min(late)));
        self.skew = late.saturating_sub(self.usual_delay());
        self.trusted = true;
        self.confirm_through(index);
        // What was given up behind it is only late, too.
        self.given_up = 0;
        Returned::Played
    }

    /// Everything up to and including pending mark `index` was heard.
    fn confirm_through(&mut self, index: usize) {
        let Some(mark) = self.pending.drain(..=index).next_back() else { return };
        self.given_up = self.given_up.saturating_sub(index + 1);
        self.confirmed = Some((mark.item, mark.position));
        let is_heard =
            |segment: &Segment| (segment.item, segment.from + segment.len) <= (mark.item, mark.position);
        while self.segments.front().is_some_and(is_heard) {
            self.segments.pop_front();
        }
    }

    /// Gives up on marks that are overdue by `patience`: from now on the clock alone says what was heard.
    /// Returns how many there were. For one that has come back early there is no need to be patient, and it is not lost.
    pub(crate) fn give_up_marks(&mut self, patience: Duration, now: Instant) -> usize {
        let overdue = |mark: &&PendingMark| self.due(mark, patience) <= now;
        let given_up = self.pending.iter().skip(self.given_up).take_while(overdue);
        let (all, lost) =
            given_up.fold((0, 0), |(all, lost), mark| (all + 1, lost + usize::from(!mark.early)));
        self.trusted &= lost == 0;
        self.given_up += all;
        if let Some(excess) = self.given_up.checked_sub(GIVEN_UP_MAX + 1) {
            self.confirm_through(excess);
        }
        lost
    }

    /// When the oldest outstanding mark will have to be given up.
    pub(crate) fn marks_due(&self, patience: Duration) -> Option<Instant> {
        self.next_mark().map(|mark| self.due(mark, patience))
    }

    fn due(&self, mark: &PendingMark, patience: Duration) -> Instant {
        let patience = if mark.early { patience.min(self.usual_delay() + OVERDUE_AFTER) } else { patience };
        mark.expected + self.skew + patience
    }

    /// No mark is waited for.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.next_mark().is_none()
    }

    /// A mark behind audio of this item may still come back.
    pub(crate) fn may_hear_of(&self, item: u64) -> bool {
        self.pending.iter().any(|mark| mark.item == item)
    }

    /// The next mark that was not given up.
    fn next_mark(&self) -> Option<&PendingMark> {
        self.pending.get(self.given_up)
    }

    /// No mark behind audio of this item, or of one before it, is waited for.
    pub(crate) fn is_confirmed_through(&self, item: u64) -> bool {
        self.pending.iter().skip(self.given_up).all(|mark| mark.item > item)
    }

    /// The moment of ear time that the ear cannot have passed, because a mark is overdue there.
    fn held_up_at(&self, now: Instant) -> Option<Instant> {
        let mark = self.next_mark().filter(|mark| self.trusted && !mark.early)?;
        (now > mark.expected + self.skew + self.usual_delay() + OVERDUE_AFTER).then_some(mark.expected)
    }

    /// How late a mark is when nothing holds the ear up.
    fn usual_delay(&self) -> Duration {
        let witnesses =
            if self.first_stretch { [self.round_trip, self.mark_delay] } else { [None, self.mark_delay] };
        witnesses.into_iter().flatten().min().or(self.round_trip).unwrap_or(FIRST_ROUND_TRIP)
    }

    /// Bytes of item `item` heard by `now`.
    pub(crate) fn heard(&self, item: u64, now: Instant) -> u64 {
        let mut ear = now - self.skew.min(ms(u64::from(u32::MAX)));
        if let Some(wall) = self.held_up_at(now) {
            ear = ear.min(wall);
        }
        let confirmed = match self.confirmed {
            Some((confirmed, position)) if confirmed == item => position,
            Some((confirmed, _)) if confirmed > item => u64::MAX,
            _ => 0,
        };
        let by_clock = self
            .segments
            .iter()
            .filter(|s| s.item == item)
            .map(|s| s.from + bytes_in(ear.saturating_duration_since(s.starts)).min(s.len))
            .max()
            .unwrap_or(0);
        confirmed.max(by_clock)
    }

    /// The caller took the floor: what is not heard will not be. Returns whether anything was queued at the ear,
    /// that is, whether a `clear` is due.
    pub(crate) fn clear(&mut self, now: Instant) -> bool {
        let busy = self.is_busy(now);
        self.segments.clear();
        if busy && let Some(last) = self.pending.pop_back() {
            self.flushed = Some((last.name, now));
        }
        self.pending.clear();
        self.given_up = 0;
        self.free = None;
        self.skew = Duration::ZERO;
        self.generation += 1;
        busy
    }
}

const fn playing_time(bytes: u64) -> Duration {
    Duration::from_micros(bytes * 1_000 / BYTES_PER_MS)
}

fn bytes_in(time: Duration) -> u64 {
    u64::try_from(time.as_micros() * u128::from(BYTES_PER_MS) / 1_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: u64 = 1;

    struct Ear {
        playback: Playback,
        zero: Instant,
        at: u64,
    }

    impl Ear {
        #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
        fn new() -> Self {
            Self { playback: Playback::new(None), zero: Instant::now(), at: 0 }
        }
        fn now(&self) -> Instant {
            self.zero + ms(self.at)
        }
        fn sent(&mut self, from_ms: u64, len_ms: u64) -> String {
            let now = self.now();
            self.playback.sent(ITEM, from_ms * 8, len_ms * 8, now);
            self.playback.mark(ITEM, (from_ms + len_ms) * 8, now)
        }
        fn heard_ms(&self) -> u64 {
            self.playback.heard(ITEM, self.now()) / 8
        }
    }

    #[test]
    fn only_of_an_item_with_a_mark_under_way_anything_may_be_heard() {
        let mut ear = Ear::new();
        ear.sent(0, 100);
        assert!(ear.playback.may_hear_of(ITEM) && !ear.playback.may_hear_of(ITEM + 1));
    }

    #[test]
    fn a_burst_is_heard_at_the_speed_of_speech() {
        let mut t = Ear::new();
        for i in 0..15 {
            t.sent(i * 200, 200);
        }
        t.at = 140;
        assert_eq!(t.heard_ms(), 140);
        assert!(t.playback.is_busy(t.now()));
    }

    #[test]
    fn a_usual_round_trip_does_not_count_as_delay() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        for (i, mark) in marks.iter().enumerate().take(6) {
            t.at = (i as u64 + 1) * 200 + 50;
            assert_eq!(t.playback.returned(mark, t.now()), Returned::Played);
        }
        t.at = 1_330;
        assert_eq!(t.heard_ms(), 1_330);
    }

    #[test]
    fn a_late_mark_shows_that_the_ear_was_held_up() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 250;
        t.playback.returned(&marks[0], t.now());
        t.at = 750; // usual would have been 450: something held the ear up for 300 ms
        t.playback.returned(&marks[1], t.now());
        t.at = 800;
        assert_eq!(t.heard_ms(), 500);
    }

    #[test]
    fn more_audio_or_a_mark_for_an_ear_that_was_held_up_comes_behind_what_it_still_holds() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..5).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 250;
        t.playback.returned(&marks[0], t.now());
        t.at = 750; // held up for 300 ms: it plays until 1,300
        t.playback.returned(&marks[1], t.now());
        t.at = 800;
        assert_eq!(t.playback.marks_due(ms(5_000)), Some(t.zero + ms(600 + 300 + 5_000)));
        t.playback.mark(ITEM, 1_000 * 8, t.now());
        assert_eq!(t.heard_ms(), 500);
        t.playback.sent(ITEM, 1_000 * 8, 200 * 8, t.now());
        assert_eq!(t.heard_ms(), 500);
        assert_eq!(t.playback.lead(t.now()), ms(700));
    }

    #[test]
    fn a_ping_tells_a_late_first_mark_from_a_long_way() {
        let mut t = Ear::new();
        t.playback.round_trip_seen(ms(50));
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 750; // 500 ms later than a round trip of 50 ms would have it
        t.playback.returned(&marks[0], t.now());
        t.at = 980;
        assert_eq!(t.heard_ms(), 480);
    }

    #[test]
    fn a_carrier_that_is_always_slow_with_marks_is_known_by_its_second_stretch() {
        let mut t = Ear::new();
        t.playback.round_trip_seen(ms(50));
        let mark = t.sent(0, 200);
        t.at = 550; // 300 ms slower than the network
        t.playback.returned(&mark, t.now());
        t.at = 2_000;
        let mark = t.sent(200, 200);
        t.sent(400, 1_000);
        t.at = 2_550;
        t.playback.returned(&mark, t.now());
        t.at = 2_600;
        assert_eq!(t.heard_ms(), 800);
    }

    #[test]
    fn an_overdue_mark_stops_the_clock() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 250;
        t.playback.returned(&marks[0], t.now());
        t.at = 2_000;
        assert_eq!(t.heard_ms(), 400, "the second mark should have been back by 490 ms");
        assert!(t.playback.is_busy(t.now()));
    }

    #[test]
    fn marks_returned_by_a_clear_prove_nothing() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 300;
        assert!(t.playback.clear(t.now()), "there was audio to clear");
        t.at = 340;
        let (last, others) = marks.split_last().unwrap();
        for mark in others {
            assert_eq!(t.playback.returned(mark, t.now()), Returned::Flushed);
        }
        assert_eq!(
            t.playback.returned(last, t.now()),
            Returned::Silenced(ms(40)),
            "but that the ear is silent"
        );
        assert!(!t.playback.clear(t.now()), "nothing is queued any more");
    }

    #[test]
    fn a_carrier_without_marks_leaves_the_clock_in_charge() {
        let mut t = Ear::new();
        for i in 0..50 {
            t.sent(i * 200, 200);
        }
        t.at = 5_200;
        assert_eq!(t.playback.give_up_marks(ms(5_000), t.now()), 1);
        t.at = 6_000;
        assert_eq!(t.heard_ms(), 6_000);
    }

    #[test]
    fn a_mark_that_comes_back_after_it_was_given_up_is_believed() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 250;
        t.playback.returned(&marks[0], t.now());
        t.at = 1_400; // by 450 and 650 they should have been back
        assert_eq!(t.playback.give_up_marks(ms(1_000), t.now()), 1);
        assert_eq!(t.heard_ms(), 1_400, "the clock goes on without them");
        t.at = 1_450; // a second late
        assert_eq!(t.playback.returned(&marks[1], t.now()), Returned::Played);
        assert_eq!(t.heard_ms(), 450, "a round trip ago the ear had reached it, and nothing behind it");
        t.at = 1_550;
        assert_eq!(t.heard_ms(), 550);
        assert_eq!(t.playback.give_up_marks(ms(1_000), t.now()), 0, "the others are as late");
    }

    #[test]
    fn marks_that_never_come_back_are_not_kept_for_ever() {
        let mut t = Ear::new();
        for i in 0..10_000 {
            t.at = i * 20;
            t.sent(i * 20, 20);
            t.playback.give_up_marks(ms(1_000), t.now());
        }
        // Beside those, the marks of a second are waited for, and that of the frame that is being heard.
        assert_eq!(t.playback.pending.len(), GIVEN_UP_MAX + 51);
        assert_eq!(t.playback.marks_due(ms(1_000)), Some(t.now() + ms(20)));
        assert_eq!(t.heard_ms(), 199_980);
    }

    #[test]
    fn a_mark_that_comes_back_before_its_audio_could_be_played_is_not_believed() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..5).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 40;
        assert_eq!(t.playback.returned(&marks[0], t.now()), Returned::Early);
        assert_eq!(t.playback.returned(&marks[4], t.now()), Returned::Early, "the last one, too");
        assert_eq!(t.heard_ms(), 40);
        t.at = 250;
        assert_eq!(t.playback.returned(&marks[0], t.now()), Returned::Played, "its real return counts");
        t.at = 750;
        assert_eq!(t.playback.returned(&marks[1], t.now()), Returned::Played);
        assert_eq!(t.heard_ms(), 450, "held up for 300 ms");
        assert_eq!(t.playback.returned(&marks[4], t.now()), Returned::Early, "again");
        assert_eq!(t.heard_ms(), 450);
        assert!(!t.playback.is_confirmed());
    }

    #[test]
    fn a_carrier_that_returns_marks_at_once_leaves_the_clock_in_charge() {
        let mut t = Ear::new();
        t.playback.round_trip_seen(ms(50));
        let marks: Vec<_> = (0..5).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 50;
        for mark in &marks {
            assert_eq!(t.playback.returned(mark, t.now()), Returned::Early);
        }
        for at in [200, 400, 600, 800, 1_000] {
            t.at = at + 89;
            assert_eq!(t.heard_ms(), (at + 89).min(1_000));
            assert_eq!(t.playback.marks_due(ms(5_000)), Some(t.zero + ms(at + 90)));
            assert!(!t.playback.is_confirmed());
            t.at += 1;
            assert_eq!(t.playback.give_up_marks(ms(5_000), t.now()), 0, "it was not lost");
        }
        assert!(t.playback.is_confirmed() && !t.playback.is_busy(t.now()));
        assert!(t.playback.trusted);
    }

    #[test]
    fn a_mark_may_be_two_frames_early() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..2).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 159;
        assert_eq!(t.playback.returned(&marks[0], t.now()), Returned::Early);
        t.at = 160;
        assert_eq!(t.playback.returned(&marks[0], t.now()), Returned::Played);
        assert_eq!(t.heard_ms(), 200);
    }

    #[test]
    fn a_gap_in_generation_restarts_the_ear() {
        let mut t = Ear::new();
        t.sent(0, 200);
        t.at = 1_000;
        assert!(t.playback.free_at(t.now()) == t.now());
        t.sent(200, 200);
        t.at = 1_100;
        assert_eq!(t.heard_ms(), 300);
    }

    #[test]
    fn a_mark_we_never_sent_is_told_apart() {
        let mut t = Ear::new();
        assert_eq!(t.playback.returned("responsePart", t.now()), Returned::Unknown);
        assert_eq!(t.playback.returned("9/1/20", t.now()), Returned::Unknown);
        assert_eq!(t.playback.returned("0/1/20", t.now()), Returned::Unknown);
    }

    #[test]
    fn a_mark_may_be_two_frames_late_before_the_ear_counts_as_held_up() {
        let mut t = Ear::new();
        let marks: Vec<_> = (0..15).map(|i| t.sent(i * 200, 200)).collect();
        t.at = 250;
        t.playback.returned(&marks[0], t.now());
        t.at = 490;
        assert_eq!(t.heard_ms(), 490);
        t.at = 491;
        assert_eq!(t.heard_ms(), 400);
    }

    #[test]
    fn a_mark_says_that_earlier_items_were_heard_whole_and_nothing_of_later_ones() {
        let mut t = Ear::new();
        t.sent(0, 200);
        let now = t.now();
        t.playback.sent(2, 0, 1_600, now);
        let second = t.playback.mark(2, 1_600, now);
        t.playback.sent(3, 0, 1_600, now);
        t.playback.mark(3, 1_600, now);
        t.at = 450;
        t.playback.returned(&second, t.now());
        let heard = |item| t.playback.heard(item, t.now());
        assert!(heard(1) >= 1_600);
        assert_eq!((heard(2), heard(3)), (1_600, 400));
    }

    #[test]
    fn a_mark_given_up_is_due_after_the_patience() {
        let mut t = Ear::new();
        assert_eq!(t.playback.marks_due(ms(5_000)), None);
        t.sent(0, 200);
        t.sent(200, 200);
        assert_eq!(t.playback.marks_due(ms(5_000)), Some(t.zero + ms(5_200)));
        t.at = 5_199;
        assert_eq!(t.playback.give_up_marks(ms(5_000), t.now()), 0);
        assert_eq!(t.heard_ms(), 200, "the first mark is still believed in");
        t.at = 5_200;
        assert_eq!(t.playback.give_up_marks(ms(5_000), t.now()), 1);
        assert_eq!(t.playback.marks_due(ms(5_000)), Some(t.zero + ms(5_400)));
    }

    #[test]
    fn a_mark_sent_into_a_dry_ear_is_not_late() {
        let mut t = Ear::new();
        t.playback.round_trip_seen(ms(40));
        t.sent(0, 200);
        let now = t.now();
        t.playback.sent(ITEM, 200 * 8, 100 * 8, now);
        t.at = 240;
        t.playback.returned("0/1/200", t.now());
        // The item turns out to be complete long after its last sample was heard.
        t.at = 740;
        let last = t.playback.mark(ITEM, 300 * 8, t.now());
        t.playback.sent(ITEM + 1, 0, 200 * 8, t.now());
        t.at = 780;
        t.playback.returned(&last, t.now());
        t.at = 840;
        assert_eq!(t.playback.heard(ITEM + 1, t.now()) / 8, 100);
    }
}
