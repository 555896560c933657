//! Model to caller: deltas of any length become whole 20 ms frames, sent at once up to a bounded lead over the
//! ear and held as G.711 beyond it, with a mark every so often to learn what was heard.
//!
//! Audio is kept per item, in the order items began, because a response may hold several and the first of them
//! is still playing when the last is complete. Only the last frame of an item is padded, with silence.

use super::fifo::take_front;
use super::playback::{Playback, Returned};
use super::settings::{CallConfig, Pacing, ms};
use super::sound::Sound;
use crate::audio::{self, Companding, FRAME_BYTES, Format};
use crate::wire::twilio::ToTwilio;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes of G.711 in a millisecond.
const BYTES_PER_MS: u64 = 8;

/// Largest lead that keeps what Twilio queues below ten minutes, where it begins to discard.
const LEAD_MAX: Duration = Duration::from_secs(540);

/// Items remembered for cutting. More than this many unheard at once is a flood; the oldest are forgotten.
const ITEMS_MAX: usize = 256;

/// One item with audio, from its first delta until all of it was heard.
struct Item {
    /// Counts items of this call; names marks and ledger entries.
    number: u64,
    /// `None` for the notice, which is nobody's item.
    id: Option<String>,
    response: String,
    content: u32,
    codec: audio::Downlink,
    /// Bytes received in the session's format.
    received: u64,
    /// Where in it there is sound.
    sound: Sound,
    /// G.711 waiting to be sent.
    held: VecDeque<u8>,
    /// G.711 bytes sent.
    sent: u64,
    /// Position of the last mark.
    marked: u64,
    /// No more audio will come.
    complete: bool,
    /// Audio that may have been on its way was given up.
    broken_off: bool,
}

impl Item {
    /// More audio in the caller's companding.
    fn hold(&mut self, codes: &[u8]) {
        self.sound.push(self.codec.companding(), codes);
        self.held.extend(codes);
    }

    fn cut(&self, heard: u64, format: Format) -> Option<Truncation> {
        let item = self.id.clone()?;
        let generated_ms = self.generated_ms(format);
        let voice = Voice {
            heard_ms: self.sound.before(heard),
            all_ms: self.sound.before(u64::MAX),
            ends_ms: self.sound.ends_ms(),
            quiet_ms: self.sound.quiet_ms(),
        };
        Some(Truncation {
            item,
            content: self.content,
            heard_ms: (heard / BYTES_PER_MS).min(generated_ms),
            generated_ms,
            voice,
            unfinished: !self.complete || self.broken_off,
        })
    }

    /// What the item holds, ms, as the server counts it.
    fn generated_ms(&self, format: Format) -> u64 {
        self.received / u64::from(format.bytes_per_ms())
    }

    fn finish(&mut self) {
        if self.complete {
            return;
        }
        self.complete = true;
        let mut tail = Vec::new();
        self.codec.flush(&mut tail);
        self.hold(&tail);
        self.sound.finish();
        let total = self.sent as usize + self.held.len();
        let padding = total.next_multiple_of(FRAME_BYTES) - total;
        self.held.extend(std::iter::repeat_n(self.codec.companding().silence(), padding));
    }

    fn is_sent(&self) -> bool {
        self.complete && self.held.is_empty()
    }
}

/// Where the model must be told that hearing stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Truncation {
    pub(crate) item: String,
    pub(crate) content: u32,
    pub(crate) heard_ms: u64,
    pub(crate) generated_ms: u64,
    /// What of that is voice.
    pub(crate) voice: Voice,
    /// More of it may have been on its way.
    pub(crate) unfinished: bool,
}

/// The voice in an item, without the silence before, between and behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Voice {
    /// Heard of it.
    pub(crate) heard_ms: u64,
    /// Generated of it.
    pub(crate) all_ms: u64,
    /// Where it ends in the item.
    pub(crate) ends_ms: u64,
    /// How much silence was generated since.
    pub(crate) quiet_ms: u64,
}

/// What an interruption found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interruption {
    /// Something was queued at the ear: a `clear` is due.
    pub(crate) clear: bool,
    /// Items with audio nobody will hear, in order of play.
    pub(crate) truncations: Vec<Truncation>,
    /// Audio nobody will hear: sent and queued, and not yet sent.
    pub(crate) discarded: Duration,
}

/// Everything between the model's deltas and the ear.
pub(crate) struct Downlink {
    format: Format,
    companding: Companding,
    pacing: Pacing,
    items: VecDeque<Item>,
    next_number: u64,
    playback: Playback,
}

impl Downlink {
    /// Towards a caller who hears `companding`.
    /// `round_trip`: the smallest one to the ear and back, if one was seen.
    pub(crate) fn new(config: &CallConfig, companding: Companding, round_trip: Option<Duration>) -> Self {
        Self {
            format: config.format,
            companding,
            pacing: config.pacing,
            items: VecDeque::new(),
            next_number: 1,
            playback: Playback::new(round_trip),
        }
    }

    /// Takes a delta. Returns whether it was the first of its item.
    pub(crate) fn push(&mut self, response: &str, item: &str, content: u32, bytes: &[u8]) -> bool {
        let known = self
            .items
            .iter_mut()
            .rev()
            .find(|i| !i.complete && i.id.as_deref() == Some(item) && i.content == content);
        let mut first = false;
        let target = match known {
            Some(known) => known,
            None => {
                // The server generates one item after the other: a new one means that the others are complete.
                self.items.iter_mut().for_each(Item::finish);
                first = true;
                let codec = audio::Downlink::new(self.format, self.companding);
                self.add(Some(item.to_owned()), response.to_owned(), content, codec)
            }
        };
        target.received += bytes.len() as u64;
        let mut codes = Vec::new();
        target.codec.push(bytes, &mut codes);
        target.hold(&codes);
        first
    }

    /// Queues a prompt of ours, in mu-law, behind everything else.
    pub(crate) fn push_prompt(&mut self, ulaw: &[u8]) {
        self.items.iter_mut().for_each(Item::finish);
        let codec = audio::Downlink::new(Format::Pcmu, self.companding);
        let item = self.add(None, String::new(), 0, codec);
        let mut codes = Vec::new();
        item.codec.push(ulaw, &mut codes);
        item.hold(&codes);
        item.finish();
    }

    fn add(
        &mut self,
        id: Option<String>,
        response: String,
        content: u32,
        codec: audio::Downlink,
    ) -> &mut Item {
        if self.items.len() >= ITEMS_MAX {
            self.items.pop_front();
        }
        self.items.push_back(Item {
            number: self.next_number,
            id,
            response,
            content,
            codec,
            received: 0,
            sound: Sound::default(),
            held: VecDeque::new(),
            sent: 0,
            marked: 0,
            complete: false,
            broken_off: false,
        });
        self.next_number += 1;
        self.items.back_mut().expect("an item was just added")
    }

    /// No more audio for this item.
    pub(crate) fn finish_item(&mut self, item: &str) {
        self.items.iter_mut().filter(|i| i.id.as_deref() == Some(item)).for_each(Item::finish);
    }

    /// No more audio for any item of this response.
    pub(crate) fn finish_response(&mut self, response: &str) {
        self.items.iter_mut().filter(|i| i.response == response).for_each(Item::finish);
    }

    /// Sends what may be sent now. Returns when to come back for the rest, if pacing holds any.
    pub(crate) fn pump(&mut self, now: Instant, out: &mut Vec<ToTwilio>) -> Option<Instant> {
        let lead_max = ms(self.pacing.lead_ms).min(LEAD_MAX);
        let mark_bytes = (self.pacing.mark_every_ms * BYTES_PER_MS).max(FRAME_BYTES as u64);
        for item in &mut self.items {
            while !item.held.is_empty() {
                let whole = item.held.len() / FRAME_BYTES * FRAME_BYTES;
                if whole == 0 {
                    break; // a frame is not complete, and neither is the item
                }
                let lead = self.playback.lead(now);
                let room = lead_max.saturating_sub(lead).as_millis() as u64 * BYTES_PER_MS;
                let to_mark = item.marked + mark_bytes - item.sent;
                let take = (whole as u64).min(to_mark).min(room / FRAME_BYTES as u64 * FRAME_BYTES as u64);
                let half = lead_max.as_millis() as u64 / 2 * BYTES_PER_MS;
                let worthwhile = to_mark.min(whole as u64).min(half);
                if take == 0 || (take < worthwhile && lead > lead_max / 2) {
                    // Wait until a whole message's worth fits, unless the ear is about to run dry.
                    let excess = ms(worthwhile.div_ceil(BYTES_PER_MS)) + lead;
                    return Some(now + excess.saturating_sub(lead_max).max(ms(1)));
                }
                let audio = take_front(&mut item.held, take as usize);
                self.playback.sent(item.number, item.sent, take, now);
                item.sent += take;
                out.push(ToTwilio::Media { audio });
                if item.sent == item.marked + mark_bytes || item.is_sent() {
                    item.marked = item.sent;
                    out.push(ToTwilio::Mark { name: self.playback.mark(item.number, item.sent, now) });
                }
            }
            if item.complete && item.held.is_empty() && item.marked < item.sent {
                // The item was completed after its last frame had gone.
                item.marked = item.sent;
                out.push(ToTwilio::Mark { name: self.playback.mark(item.number, item.sent, now) });
            }
            if !item.complete {
                break; // what follows waits for the rest of this item
            }
        }
        None
    }

    /// The network to the ear and back takes no longer than this.
    pub(crate) fn round_trip_seen(&mut self, round_trip: Duration) {
        self.playback.round_trip_seen(round_trip);
    }

    /// A mark came back.
    pub(crate) fn mark_returned(&mut self, name: &str, now: Instant) -> Returned {
        let returned = self.playback.returned(name, now);
        self.forget_heard(now);
        returned
    }

    /// Gives up on marks that are overdue. Returns how many.
    pub(crate) fn give_up_marks(&mut self, patience: Duration, now: Instant) -> usize {
        let lost = self.playback.give_up_marks(patience, now);
        self.forget_heard(now);
        lost
    }

    fn forget_heard(&mut self, now: Instant) {
        while let Some(first) = self.items.front() {
            let heard = self.playback.heard(first.number, now) >= first.sent;
            // A mark that is only late may yet show that it was not.
            if !first.is_sent() || !heard || self.playback.may_hear_of(first.number) {
                break;
            }
            self.items.pop_front();
        }
    }

    /// When the oldest outstanding mark will have to be given up.
    pub(crate) fn marks_due(&self, patience: Duration) -> Option<Instant> {
        self.playback.marks_due(patience)
    }

    /// Everything was sent and every mark is back.
    pub(crate) fn is_quiet(&self) -> bool {
        self.playback.is_confirmed() && self.items.iter().all(|i| i.held.is_empty())
    }

    /// How much audio of this item has come, ms.
    pub(crate) fn generated_ms(&self, item: &str) -> u64 {
        let of_it = self.items.iter().filter(|i| i.id.as_deref() == Some(item));
        of_it.map(|i| i.generated_ms(self.format)).sum()
    }

    /// The number of the item that began last.
    pub(crate) const fn last_item(&self) -> u64 {
        self.next_number - 1
    }

    /// Everything up to this item was sent, and the mark behind it is back.
    pub(crate) fn is_heard_through(&self, item: u64) -> bool {
        let is_sent = |i: &Item| i.is_sent() && i.marked == i.sent;
        self.items.iter().all(|i| i.number > item || is_sent(i)) && self.playback.is_confirmed_through(item)
    }

    /// Sent audio ahead of the ear.
    pub(crate) fn lead(&self, now: Instant) -> Duration {
        self.playback.lead(now)
    }

    /// Bytes waiting to be sent.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.items.iter().map(|i| i.held.len()).sum()
    }

    /// Something sent may still be unheard, or something waits to be sent.
    pub(crate) fn is_audible(&self, now: Instant) -> bool {
        self.playback.is_busy(now) || self.buffered_bytes() > 0
    }

    /// The item at the ear, and how much of it was heard.
    pub(crate) fn playing_item(&self, now: Instant) -> Option<(String, Duration)> {
        self.items.iter().find_map(|item| {
            let heard = self.playback.heard(item.number, now).min(item.sent);
            (heard < item.sent || !item.held.is_empty())
                .then(|| item.id.clone().map(|id| (id, ms(heard / BYTES_PER_MS))))
                .flatten()
        })
    }

    /// The caller took the floor: nothing of what is here will be played.
    pub(crate) fn interrupt(&mut self, now: Instant) -> Interruption {
        let truncations = self.unheard(now);
        let sent_and_held: u64 = self.items.iter().map(|i| i.sent + i.held.len() as u64).sum();
        let heard: u64 = self.items.iter().map(|i| self.heard(i, now)).sum();
        self.items.clear();
        let clear = self.playback.clear(now);
        Interruption { clear, truncations, discarded: ms((sent_and_held - heard) / BYTES_PER_MS) }
    }

    /// Bytes of an item heard by `now`. A clock that ran past the last frame has still heard no more than was sent.
    fn heard(&self, item: &Item, now: Instant) -> u64 {
        self.playback.heard(item.number, now).min(item.sent)
    }

    /// Where hearing stops if nothing more is played: the model's items with audio the caller does not know, or
    /// will not come to know because more of it may be on its way.
    pub(crate) fn unheard(&self, now: Instant) -> Vec<Truncation> {
        let cut = |item: &Item| {
            let cut = item.cut(self.heard(item, now), self.format)?;
            (cut.heard_ms < cut.generated_ms || !item.complete).then_some(cut)
        };
        self.items.iter().filter_map(cut).collect()
    }

    /// Drops what was not sent yet; what is at the ear plays on. Returns where the dropped items will end.
    pub(crate) fn drop_buffered(&mut self) -> Vec<Truncation> {
        let format = self.format;
        let mut truncations = Vec::new();
        for item in &mut self.items {
            item.broken_off |= !std::mem::replace(&mut item.complete, true);
            item.held.clear();
            // Words may be there for audio that will not come.
            let is_short = |cut: &Truncation| cut.heard_ms < cut.generated_ms || cut.unfinished;
            truncations.extend(item.cut(item.sent, format).filter(is_short));
        }
        truncations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        downlink: Downlink,
        zero: Instant,
        at: u64,
    }

    impl Bench {
        #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
        fn pcmu() -> Self {
            let config = CallConfig { format: Format::Pcmu, ..CallConfig::default() };
            Self { downlink: Downlink::new(&config, Companding::Ulaw, None), zero: Instant::now(), at: 0 }
        }
        fn now(&self) -> Instant {
            self.zero + ms(self.at)
        }
        fn delta(&mut self, item: &str, bytes: usize) {
            self.downlink.push("r", item, 0, &vec![0x55; bytes]);
        }
        /// (bytes of media, marks) sent by one pump.
        fn pump(&mut self) -> (usize, Vec<String>) {
            let mut out = Vec::new();
            self.downlink.pump(self.zero + ms(self.at), &mut out);
            let mut sent = 0;
            let mut marks = Vec::new();
            for message in out {
                match message {
                    ToTwilio::Media { audio } => {
                        assert_eq!(audio.len() % FRAME_BYTES, 0, "whole frames only");
                        sent += audio.len();
                    }
                    ToTwilio::Mark { name } => marks.push(name),
                    ToTwilio::Clear => panic!("pump never clears"),
                }
            }
            (sent, marks)
        }
    }

    #[test]
    fn a_burst_is_sent_up_to_the_lead_and_held_beyond() {
        let mut t = Bench::pcmu();
        t.delta("item", 80_000); // 10 s
        let (sent, marks) = t.pump();
        assert_eq!(sent, 24_000);
        assert_eq!(marks.len(), 15);
        assert_eq!(t.downlink.buffered_bytes(), 56_000);
        t.at = 200;
        assert_eq!(t.pump().0, 1_600);
    }

    #[test]
    fn a_ragged_delta_waits_for_its_frame_and_is_padded_at_the_end() {
        let mut t = Bench::pcmu();
        t.delta("item", 333);
        assert_eq!(t.pump(), (320, vec![]));
        t.downlink.finish_item("item");
        assert_eq!(t.pump(), (160, vec!["0/1/60".to_owned()]));
        let found = t.downlink.interrupt(t.now());
        assert_eq!(found.truncations[0].generated_ms, 41, "padding is not generated");
    }

    #[test]
    fn an_item_completed_after_its_last_frame_still_gets_its_mark() {
        let mut t = Bench::pcmu();
        t.delta("item", 320);
        assert_eq!(t.pump(), (320, vec![]));
        t.downlink.finish_response("r");
        assert_eq!(t.pump(), (0, vec!["0/1/40".to_owned()]));
    }

    #[test]
    fn an_item_that_was_heard_as_far_as_it_goes_is_the_same_item_when_more_of_it_comes() {
        let mut t = Bench::pcmu();
        t.delta("item", 1_600); // 200 ms
        let (_, marks) = t.pump();
        t.at = 250;
        assert_eq!(t.downlink.mark_returned(&marks[0], t.now()), Returned::Played);
        assert!(!t.downlink.is_heard_through(t.downlink.last_item()), "there is more to come");
        t.delta("item", 1_600);
        t.pump();
        t.at = 350;
        let found = t.downlink.interrupt(t.now());
        assert_eq!((found.truncations[0].heard_ms, found.truncations[0].generated_ms), (300, 400));
    }

    #[test]
    fn an_item_is_heard_through_when_it_is_complete_and_its_last_mark_is_back() {
        let mut t = Bench::pcmu();
        t.delta("item", 1_600);
        let (_, marks) = t.pump();
        t.downlink.finish_item("item");
        assert!(!t.downlink.is_heard_through(1));
        t.at = 250;
        t.downlink.mark_returned(&marks[0], t.now());
        assert!(t.downlink.is_heard_through(1));
        assert!(t.downlink.items.is_empty(), "it is over and forgotten");
        t.delta("next", 1_600);
        assert!(t.downlink.is_heard_through(1));
        assert_eq!(t.downlink.last_item(), 2);
    }

    #[test]
    fn each_unheard_item_is_cut_at_what_was_heard_of_it() {
        let mut t = Bench::pcmu();
        t.delta("one", 4_000); // 500 ms
        t.delta("two", 8_000); // 1 s
        t.pump();
        t.at = 800;
        let found = t.downlink.interrupt(t.now());
        assert!(found.clear);
        let voice = Voice { heard_ms: 300, all_ms: 1_000, ends_ms: 1_000, quiet_ms: 0 };
        let two = Truncation {
            item: "two".into(),
            content: 0,
            heard_ms: 300,
            generated_ms: 1_000,
            voice,
            unfinished: true,
        };
        assert_eq!(found.truncations, [two]);
        assert_eq!(found.discarded, ms(700));
        assert_eq!(t.downlink.interrupt(t.now()), Interruption::default(), "once");
    }

    #[test]
    fn a_cut_in_the_silence_behind_the_voice_knows_that_all_of_it_was_heard() {
        let mut t = Bench::pcmu();
        t.delta("item", 16_800); // 2.1 s
        t.downlink.push("r", "item", 0, &[0xFF; 22_400]);
        t.downlink.finish_item("item");
        t.pump();
        t.at = 2_000;
        t.pump();
        t.at = 3_050;
        assert_eq!(t.downlink.mark_returned("0/1/3000", t.now()), Returned::Played);
        t.at = 3_200;
        let found = t.downlink.interrupt(t.now());
        let voice = Voice { heard_ms: 2_100, all_ms: 2_100, ends_ms: 2_100, quiet_ms: 2_800 };
        assert_eq!((found.truncations[0].heard_ms, found.truncations[0].voice), (3_200, voice));
    }

    #[test]
    fn after_everything_was_heard_there_is_nothing_to_cut() {
        let mut t = Bench::pcmu();
        t.delta("item", 4_000);
        t.downlink.finish_item("item");
        t.pump();
        t.at = 501;
        assert_eq!(t.downlink.interrupt(t.now()), Interruption::default());
    }

    #[test]
    fn a_prompt_waits_for_what_was_sent() {
        let mut t = Bench::pcmu();
        t.delta("item", 4_000);
        t.pump();
        t.downlink.drop_buffered();
        t.downlink.push_prompt(&[0xFF; 1_600]);
        assert_eq!(t.pump(), (1_600, vec!["0/1/500".to_owned(), "0/2/200".to_owned()]));
        assert_eq!(t.downlink.lead(t.now()), ms(700));
        assert!(!t.downlink.is_quiet());
    }

    #[test]
    fn what_follows_a_full_lead_waits_until_a_whole_message_fits() {
        let mut t = Bench::pcmu();
        t.delta("item", 80_000);
        t.pump();
        t.at = 120;
        let mut out = Vec::new();
        let again = t.downlink.pump(t.now(), &mut out);
        assert_eq!(out, []);
        assert_eq!(again, Some(t.now() + ms(80)), "200 ms of room for a message of 200 ms");
    }

    #[test]
    fn an_ear_with_a_short_lead_is_fed_again_before_it_runs_dry() {
        let config = CallConfig {
            format: Format::Pcmu,
            pacing: Pacing { lead_ms: 100, mark_every_ms: 200 },
            ..CallConfig::default()
        };
        let mut t = Bench { downlink: Downlink::new(&config, Companding::Ulaw, None), ..Bench::pcmu() };
        t.delta("item", 8_000);
        t.pump();
        t.at = 40;
        let again = t.downlink.pump(t.now(), &mut Vec::new());
        assert_eq!(again, Some(t.now() + ms(10)), "half the lead is worth a message");
    }

    #[test]
    fn sent_and_held_audio_nobody_heard_is_discarded() {
        let mut t = Bench::pcmu();
        t.delta("one", 4_000); // 500 ms
        t.delta("two", 80_000); // 10 s
        t.pump();
        t.at = 900;
        assert_eq!(t.downlink.interrupt(t.now()).discarded, ms(9_600));
    }

    #[test]
    fn an_item_that_is_dropped_ends_where_sending_stopped() {
        let mut t = Bench::pcmu();
        t.delta("whole", 8_000);
        t.downlink.finish_item("whole");
        t.delta("long", 80_000);
        t.pump();
        let voice = Voice { heard_ms: 2_000, all_ms: 10_000, ends_ms: 10_000, quiet_ms: 0 };
        let long = Truncation {
            item: "long".into(),
            content: 0,
            heard_ms: 2_000,
            generated_ms: 10_000,
            voice,
            unfinished: true,
        };
        assert_eq!(t.downlink.drop_buffered(), [long]);
        assert_eq!(t.downlink.buffered_bytes(), 0);
        assert!(t.downlink.unheard(t.now()).iter().all(|cut| cut.unfinished == (cut.item == "long")));
    }

    #[test]
    fn what_is_held_is_audible_and_what_was_heard_is_not() {
        let mut t = Bench::pcmu();
        assert!(!t.downlink.is_audible(t.now()));
        t.delta("item", 1_600);
        assert!(t.downlink.is_audible(t.now()), "held");
        t.pump();
        t.at = 199;
        assert!(t.downlink.is_audible(t.now()), "at the ear");
        t.at = 200;
        assert!(!t.downlink.is_audible(t.now()));
    }

    #[test]
    fn the_item_at_the_ear_is_the_first_that_was_not_heard_whole() {
        let mut t = Bench::pcmu();
        t.delta("one", 4_000); // 500 ms
        t.delta("two", 80_000);
        t.pump();
        assert_eq!(t.downlink.playing_item(t.now()), Some(("one".into(), ms(0))));
        t.at = 500;
        assert_eq!(t.downlink.playing_item(t.now()), Some(("two".into(), ms(0))));
        t.at = 1_100;
        assert_eq!(t.downlink.playing_item(t.now()), Some(("two".into(), ms(600))));
    }
}
