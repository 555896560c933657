//! Caller to model: order, gaps, and what waits while the model is not ready.
//!
//! Twilio may leave silence out (a muted caller, a carrier that does not transmit pauses). The model's voice
//! detection runs on audio time, not on the clock, so a gap in the timestamps is filled with silence, and a pause
//! in mid-speech is supplied as silence so that the turn can end.
//!
//! In the protected window the caller's audio is replaced by silence. It is a stretch at the front: whatever was taken
//! before the window ended is in it, however long that waits here.
//!
//! **Time rule:** a stream can have no more audio than time has passed since it was opened, by the bridge's clock, and
//! [`ALLOWANCE_MS`]. Timestamps and message sizes are the other side's word: silence beyond that is not supplied, audio
//! beyond it is left out and counted.
//!
//! **Drop rule:** while the model is not ready or not reading, the newest `backlog_ms` are kept and the oldest
//! are dropped: the caller's last words are the ones worth answering.

use super::settings::CallConfig;
use crate::audio::dtmf::Mute;
use crate::audio::{self, Companding, Format};
use crate::wire::twilio::Media;
use std::collections::VecDeque;
use std::time::Instant;

/// Bytes of G.711 in a millisecond.
const BYTES_PER_MS: u64 = 8;

/// Timestamps wander by a few milliseconds; only a whole missing frame is a gap.
const GAP_MIN_MS: u64 = 20;

/// Largest append when a backlog is handed over, in G.711 bytes: one second.
const APPEND_MAX: usize = 8_000;

/// Most audio that another session is told again, ms: no voice detection takes longer to notice a word.
const RECENT_MAX_MS: u64 = 2_000;

/// Audio beyond the time that has passed: what the network held back before the stream was accepted, and silence that is
/// supplied for a pause before its length is known, ms.
const ALLOWANCE_MS: u64 = 3_000;

/// So much of it supplied silence leaves to what the caller says, ms.
const RESERVE_MS: u64 = 1_000;

/// Time is taken for so much longer, as a divisor: two clocks that differ by less than 1 % never meet the time rule.
const DRIFT: u64 = 100;

/// A chunk that is numbered so far below the last is no repeat: the numbers began anew.
const REPEATS_MAX: u64 = 1_000;

/// Keys kept for a model that is not ready, however many of them make an entry.
pub(super) const KEYS_MAX: usize = 256;

/// What one media message amounted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// It was a repeat and was left out.
    pub(crate) repeated: bool,
    /// Silence put in front of it, ms.
    pub(crate) filled_ms: u64,
    /// It is more audio than time has passed, and was left out.
    pub(crate) too_fast: bool,
    /// Older audio dropped to make room, or this, ms.
    pub(crate) dropped_ms: u64,
    /// It is in the protected window: so much of it will be silence, ms.
    pub(crate) silenced_ms: u64,
}

/// The caller's audio on its way to the model.
pub(crate) struct Uplink {
    format: Format,
    /// `None` until the stream says which companding its audio is in. What comes before that waits as it came, and gaps
    /// in it stay open: what silence is made of is not known either.
    codec: Option<audio::Uplink>,
    mutes_tones: bool,
    mute: Option<Mute>,
    gap_max_ms: u64,
    backlog_max: usize,
    backlog: VecDeque<u8>,
    /// Keys pressed while the model is not ready.
    keys: String,
    /// The protected window is not over.
    protected: bool,
    /// Bytes at the front of the backlog that were taken in it.
    silenced: usize,
    /// The last that was handed over, for a session that takes over.
    recent: VecDeque<u8>,
    recent_max: usize,
    last_chunk: u64,
    /// Where the next frame should begin on the caller's clock, ms.
    position_ms: Option<u64>,
    /// Bytes beyond whole milliseconds of `position_ms`.
    position_rest: u64,
    credit: Credit,
}

/// The audio that may still be taken by the time rule.
struct Credit {
    /// Microseconds of audio.
    left_us: u64,
    max_us: u64,
    at: Instant,
}

impl Credit {
    fn new(config: &CallConfig, now: Instant) -> Self {
        let longest_ms = config.limits.backlog_ms.max(config.limits.gap_ms);
        let max_us = longest_ms.saturating_add(ALLOWANCE_MS).saturating_mul(1_000);
        Self { left_us: ALLOWANCE_MS * 1_000, max_us, at: now }
    }

    fn pass(&mut self, now: Instant) {
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.at = now;
        self.left_us = self.left_us.saturating_add(passed).saturating_add(passed / DRIFT).min(self.max_us);
    }

    /// Takes so much, if it is there.
    fn take(&mut self, bytes: usize) -> bool {
        let us = bytes as u64 * (1_000 / BYTES_PER_MS);
        let left = self.left_us.checked_sub(us);
        self.left_us = left.unwrap_or(self.left_us);
        left.is_some()
    }

    /// Takes as much of this as there is beyond what the caller's own audio may need.
    fn take_silence(&mut self, wanted_ms: u64) -> u64 {
        let taken_ms = wanted_ms.min(self.left_us.saturating_sub(RESERVE_MS * 1_000) / 1_000);
        self.left_us -= taken_ms * 1_000;
        taken_ms
    }
}

impl Uplink {
    /// The stream was opened at `now`.
    pub(crate) fn new(config: &CallConfig, now: Instant) -> Self {
        Self {
            format: config.format,
            codec: None,
            mutes_tones: config.mute_dtmf_tones,
            mute: None,
            gap_max_ms: config.limits.gap_ms,
            backlog_max: usize::try_from(config.limits.backlog_ms * BYTES_PER_MS).unwrap_or(usize::MAX),
            backlog: VecDeque::new(),
            keys: String::new(),
            protected: config.protects().is_some(),
            silenced: 0,
            recent: VecDeque::new(),
            recent_max: config
                .renewal
                .as_ref()
                .map_or(0, |renewal| renewal.quiet_ms.min(RECENT_MAX_MS) * BYTES_PER_MS)
                as usize,
            last_chunk: 0,
            position_ms: None,
            position_rest: 0,
            credit: Credit::new(config, now),
        }
    }

    /// The stream says what its audio is.
    pub(crate) fn speaks(&mut self, companding: Companding) {
        self.codec = Some(audio::Uplink::new(companding, self.format));
        self.mute = self.mutes_tones.then(|| Mute::new(companding));
    }

    /// Whether what is taken now will be silence.
    pub(crate) const fn is_protected(&self) -> bool {
        self.protected
    }

    /// The protected window is over: what is taken from now on is heard.
    pub(crate) const fn end_protection(&mut self) {
        self.protected = false;
    }

    /// Keeps a key for a model that is not ready. Returns whether there was room for it.
    pub(crate) fn keep_key(&mut self, key: char) -> bool {
        let has_room = self.keys.len() < KEYS_MAX;
        self.keys.extend(has_room.then_some(key));
        has_room
    }

    /// The keys that were kept.
    pub(crate) fn take_keys(&mut self) -> String {
        std::mem::take(&mut self.keys)
    }

    /// Takes a frame from the caller into the backlog.
    pub(crate) fn take(&mut self, media: &Media, now: Instant) -> Taken {
        let behind = self.last_chunk.checked_sub(media.chunk);
        if media.chunk != 0 && behind.is_some_and(|behind| behind < REPEATS_MAX) {
            return Taken { repeated: true, ..Taken::default() };
        }
        if media.chunk != 0 {
            self.last_chunk = media.chunk;
        }
        self.credit.pass(now);
        // Small wander is followed without filling, so that it cannot add up.
        let begins = media.timestamp_ms.or(self.position_ms).unwrap_or(0);
        let gap_ms = match self.position_ms.and_then(|expected| begins.checked_sub(expected)) {
            Some(gap_ms) if gap_ms >= GAP_MIN_MS => gap_ms.min(self.gap_max_ms),
            _ => 0,
        };
        let filled_ms = self.fill(gap_ms);
        self.advance(begins, media.audio.len() as u64);
        if !self.credit.take(media.audio.len()) {
            let dropped_ms = self.enforce_limit() + media.audio.len() as u64 / BYTES_PER_MS;
            return Taken { too_fast: true, filled_ms, dropped_ms, ..Taken::default() };
        }
        match &mut self.mute {
            Some(mute) => {
                let mut codes = media.audio.clone();
                mute.apply(&mut codes);
                self.backlog.extend(codes);
            }
            None => self.backlog.extend(&media.audio),
        }
        let mut silenced_ms = 0;
        if self.protected {
            self.silenced = self.backlog.len();
            silenced_ms = media.audio.len() as u64 / BYTES_PER_MS;
        }
        Taken { filled_ms, dropped_ms: self.enforce_limit(), silenced_ms, ..Taken::default() }
    }

    /// Supplies silence the caller's carrier leaves out. Returns how much, ms.
    pub(crate) fn supply_silence(&mut self, silence_ms: u64, now: Instant) -> u64 {
        self.credit.pass(now);
        let silence_ms = self.fill(silence_ms);
        if let Some(position) = self.position_ms {
            self.advance(position, silence_ms * BYTES_PER_MS);
        }
        self.enforce_limit();
        silence_ms
    }

    /// Puts silence into the backlog, if it is known what that is, and as far as time allows. Returns how much, ms.
    fn fill(&mut self, silence_ms: u64) -> u64 {
        let Some(codec) = &self.codec else { return 0 };
        let silence_ms = self.credit.take_silence(silence_ms);
        let silence = std::iter::repeat_n(codec.companding().silence(), (silence_ms * BYTES_PER_MS) as usize);
        self.backlog.extend(silence);
        if let Some(mute) = self.mute.as_mut().filter(|_| silence_ms > 0) {
            mute.reset();
        }
        silence_ms
    }

    fn advance(&mut self, begins_ms: u64, bytes: u64) {
        let bytes = bytes + self.position_rest;
        self.position_ms = Some(begins_ms.saturating_add(bytes / BYTES_PER_MS));
        self.position_rest = bytes % BYTES_PER_MS;
    }

    /// Keeps the newest audio within the limit. Returns what was dropped, ms.
    fn enforce_limit(&mut self) -> u64 {
        let excess = self.backlog.len().saturating_sub(self.backlog_max);
        self.backlog.drain(..excess);
        self.silenced = self.silenced.saturating_sub(excess);
        excess as u64 / BYTES_PER_MS
    }

    /// The next of what waits, at most a second, in the session's format. `None` when nothing waits, or it is not
    /// known yet what it is.
    pub(crate) fn append(&mut self) -> Option<Vec<u8>> {
        let codec = self.codec.as_mut().filter(|_| !self.backlog.is_empty())?;
        let take = self.backlog.len().min(APPEND_MAX);
        let silenced = take.min(self.silenced);
        self.silenced -= silenced;
        let silence = codec.companding().silence();
        self.backlog.iter_mut().take(silenced).for_each(|code| *code = silence);
        let (front, back) = self.backlog.as_slices();
        let front = &front[..take.min(front.len())];
        let mut audio =
            Vec::with_capacity(take * self.format.bytes_per_ms() as usize / BYTES_PER_MS as usize);
        codec.push(front, &mut audio);
        codec.push(&back[..take - front.len()], &mut audio);
        let handed_over = self.backlog.drain(..take);
        if self.recent_max > 0 {
            self.recent.extend(handed_over);
            let excess = self.recent.len().saturating_sub(self.recent_max);
            self.recent.drain(..excess);
        }
        Some(audio)
    }

    /// Another session takes over, and hears the caller from a moment before on: the old one may have been told the
    /// beginning of a word that it did not notice any more.
    pub(crate) fn replay_recent(&mut self) {
        let mut backlog = std::mem::take(&mut self.recent);
        backlog.append(&mut self.backlog);
        self.backlog = backlog;
        self.codec = self.codec.as_ref().map(|codec| audio::Uplink::new(codec.companding(), self.format));
    }

    /// Bytes of G.711 waiting.
    pub(crate) fn waiting(&self) -> usize {
        self.backlog.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::settings::{GreetingGuard, Renewal, Until};
    use std::time::Duration;

    impl Uplink {
        /// Takes a frame at a time when there is no lack of it.
        fn hears(&mut self, media: &Media) -> Taken {
            self.take(media, self.credit.at + Duration::from_secs(3_600))
        }

        fn pauses(&mut self, silence_ms: u64) {
            assert_eq!(self.supply_silence(silence_ms, self.credit.at), silence_ms);
        }

        /// All that waits.
        fn drain(&mut self) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.append()).collect()
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn began() -> Instant {
        Instant::now()
    }

    fn uplink(backlog_ms: u64) -> Uplink {
        let mut config = CallConfig { format: Format::Pcmu, ..CallConfig::default() };
        config.limits.backlog_ms = backlog_ms;
        let mut uplink = Uplink::new(&config, began());
        uplink.speaks(Companding::Ulaw);
        uplink
    }

    fn frame(chunk: u64, timestamp_ms: u64) -> Media {
        Media { chunk, timestamp_ms: Some(timestamp_ms), audio: vec![chunk as u8; 160] }
    }

    #[test]
    fn audio_without_timestamps_in_odd_pieces_takes_the_time_it_lasts() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 0));
        for chunk in 2..=101 {
            let piece = Media { chunk, timestamp_ms: None, audio: vec![0x55; 12] }; // 1.5 ms
            assert_eq!(t.hears(&piece), Taken::default());
        }
        assert_eq!(t.hears(&frame(102, 20 + 150)), Taken::default());
    }

    #[test]
    fn a_wandering_clock_adds_no_silence() {
        let mut t = uplink(60_000);
        let mut at = 155;
        for chunk in 1..=500 {
            assert_eq!(t.hears(&frame(chunk, at)), Taken::default());
            at += if chunk % 3 == 0 { 18 } else { 21 };
        }
        assert_eq!(t.waiting(), 500 * 160);
    }

    #[test]
    fn a_gap_in_the_timestamps_becomes_silence() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 100));
        assert_eq!(t.hears(&frame(2, 1_120)).filled_ms, 1_000);
        assert_eq!(t.hears(&frame(3, 1_140)).filled_ms, 0);
        let audio = t.drain().concat();
        assert_eq!(audio.len(), 3 * 160 + 8_000);
        assert!(audio[160..8_160].iter().all(|&b| b == 0xFF));
    }

    #[test]
    fn silence_is_what_the_callers_law_calls_silence() {
        let mut t = uplink(60_000);
        t.format = Format::Pcma;
        t.speaks(Companding::Alaw);
        t.hears(&frame(1, 100));
        t.hears(&frame(2, 220));
        t.pauses(10);
        let audio = t.drain().concat();
        assert_eq!(audio, [&[1; 160][..], &[0xD5; 800], &[2; 160], &[0xD5; 80]].concat());
    }

    #[test]
    fn what_came_before_the_law_was_known_is_read_in_it() {
        let config = CallConfig { format: Format::Pcmu, ..CallConfig::default() };
        let mut t = Uplink::new(&config, began());
        t.hears(&Media { audio: vec![0xD5; 160], ..frame(1, 100) });
        assert_eq!(t.hears(&frame(2, 500)).filled_ms, 0);
        assert_eq!(t.drain(), Vec::<Vec<u8>>::new());
        t.speaks(Companding::Alaw);
        let audio = t.drain().concat();
        assert_eq!(audio.len(), 320);
        assert_eq!(crate::audio::ulaw::decode(audio[0]), 8, "the silence of A-law");
    }

    /// 20 ms of the key 1: 697 and 1,209 Hz, by turning two vectors.
    fn key_frames(count: usize) -> Vec<Vec<u8>> {
        let mut vectors = [(0.0f64, 5_000.0), (0.0, 5_000.0)];
        let mut next = || {
            for (vector, (cos, sin)) in
                vectors.iter_mut().zip([(0.853_868_905, 0.520_488_130), (0.582_052_012, 0.813_151_558)])
            {
                *vector = (vector.0 * cos + vector.1 * sin, vector.1 * cos - vector.0 * sin);
            }
            crate::audio::ulaw::encode((vectors[0].0 + vectors[1].0) as i16)
        };
        (0..count).map(|_| (0..160).map(|_| next()).collect()).collect()
    }

    #[test]
    fn tones_are_muted_when_that_is_asked_for() {
        for muted in [false, true] {
            let config = CallConfig { format: Format::Pcmu, mute_dtmf_tones: muted, ..CallConfig::default() };
            let mut t = Uplink::new(&config, began());
            t.speaks(Companding::Ulaw);
            let tone = key_frames(3);
            for (n, audio) in (1u64..).zip(&tone) {
                t.hears(&Media { audio: audio.clone(), ..frame(n, 80 + 20 * n) });
            }
            t.hears(&frame(4, 160));
            let silence = vec![0xFF; 320];
            let rest = if muted { silence } else { tone[1..].concat() };
            assert_eq!(t.drain().concat(), [tone[0].clone(), rest, vec![4; 160]].concat());
        }
    }

    #[test]
    fn a_gap_is_bounded() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 100));
        assert_eq!(t.hears(&frame(2, 900_000)).filled_ms, 10_000);
    }

    #[test]
    fn a_repeated_chunk_is_left_out() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 100));
        assert!(t.hears(&frame(1, 100)).repeated);
        assert_eq!(t.waiting(), 160);
    }

    #[test]
    fn silence_already_supplied_is_not_filled_again() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 100));
        t.pauses(1_000);
        assert_eq!(t.hears(&frame(2, 1_420)).filled_ms, 300);
    }

    fn protected(backlog_ms: u64) -> Uplink {
        let protection = Some(GreetingGuard { until: Until::Time, at_most_ms: 1 });
        let mut config =
            CallConfig { format: Format::Pcmu, greeting_guard: protection, ..CallConfig::default() };
        config.limits.backlog_ms = backlog_ms;
        Uplink::new(&config, began())
    }

    #[test]
    fn what_was_taken_in_the_window_is_silence_however_long_it_waits() {
        let mut t = protected(60_000);
        assert_eq!(t.hears(&frame(1, 100)).silenced_ms, 20);
        t.speaks(Companding::Ulaw);
        t.hears(&frame(2, 120));
        t.end_protection();
        assert_eq!(t.hears(&frame(3, 140)).silenced_ms, 0);
        assert_eq!(t.drain().concat(), [[0xFF; 320].as_slice(), &[3; 160]].concat());
        t.hears(&frame(4, 160));
        assert_eq!(t.drain().concat(), [4; 160]);
    }

    #[test]
    fn the_window_moves_with_what_is_dropped() {
        let mut t = protected(60);
        t.speaks(Companding::Ulaw);
        for chunk in 1..=3 {
            t.hears(&frame(chunk, 80 + 20 * chunk));
        }
        t.end_protection();
        assert_eq!(t.hears(&frame(4, 160)).dropped_ms, 20);
        assert_eq!(t.drain().concat(), [[0xFF; 320].as_slice(), &[4; 160]].concat());
    }

    #[test]
    fn a_gap_in_the_window_is_filled_in_it() {
        let mut t = protected(60_000);
        t.speaks(Companding::Ulaw);
        t.hears(&frame(1, 100));
        t.hears(&frame(2, 220));
        t.end_protection();
        t.hears(&frame(3, 240));
        assert_eq!(t.drain().concat(), [[0xFF; 1_120].as_slice(), &[3; 160]].concat());
    }

    #[test]
    fn the_newest_audio_is_kept() {
        let mut t = uplink(100);
        let dropped: u64 = (1..=10).map(|chunk| t.hears(&frame(chunk, 80 + 20 * chunk)).dropped_ms).sum();
        assert_eq!(dropped, 100);
        assert_eq!(t.drain().concat()[0], 6, "frames 6 to 10 are left");
    }

    #[test]
    fn another_session_hears_the_last_moment_again_and_then_what_has_waited() {
        let renewal = Some(Renewal { quiet_ms: 40, ..Renewal::default() });
        let mut t =
            Uplink::new(&CallConfig { format: Format::Pcmu, renewal, ..CallConfig::default() }, began());
        t.speaks(Companding::Ulaw);
        for chunk in 1..=5 {
            t.hears(&frame(chunk, 80 + 20 * chunk));
        }
        t.drain();
        t.hears(&frame(6, 200));
        t.replay_recent();
        assert_eq!(t.drain().concat(), [[4; 160], [5; 160], [6; 160]].concat());
        t.replay_recent();
        assert_eq!(t.drain().concat(), [[5; 160], [6; 160]].concat());
    }

    #[test]
    fn a_tone_behind_a_gap_begins_anew() {
        let config = CallConfig { format: Format::Pcmu, mute_dtmf_tones: true, ..CallConfig::default() };
        let mut t = Uplink::new(&config, began());
        t.speaks(Companding::Ulaw);
        let tone = key_frames(3);
        t.hears(&Media { audio: tone[0].clone(), ..frame(1, 100) });
        t.hears(&Media { audio: tone[1].clone(), ..frame(2, 220) });
        t.hears(&Media { audio: tone[2].clone(), ..frame(3, 240) });
        let (gap, muted) = (vec![0xFF; 800], vec![0xFF; 160]);
        assert_eq!(t.drain().concat(), [&tone[0][..], &gap, &tone[1], &muted].concat());
    }

    /// What the model is given of a stream that says all this at once, ms.
    fn given(media: impl IntoIterator<Item = Media>, after: Duration) -> u64 {
        let mut t = uplink(60_000);
        let mut bytes = 0;
        for media in media {
            t.take(&media, t.credit.at + after);
            bytes += t.drain().concat().len() as u64;
        }
        bytes / BYTES_PER_MS
    }

    #[test]
    fn no_timestamps_make_more_silence_than_time_has_passed() {
        let ahead = |n: u64| Media { chunk: n, timestamp_ms: Some(n * 60_000), audio: vec![1; 160] };
        let to_and_fro = |n: u64| Media { chunk: n, timestamp_ms: Some(n % 2 * u64::MAX), audio: vec![1; 1] };
        let empty = |n: u64| Media { audio: Vec::new(), ..ahead(n) };
        assert!(given((1..1_000).map(ahead), Duration::ZERO) <= ALLOWANCE_MS);
        assert!(given((1..10_000).map(to_and_fro), Duration::ZERO) <= ALLOWANCE_MS);
        assert!(given((1..10_000).map(empty), Duration::ZERO) <= ALLOWANCE_MS - RESERVE_MS);
        let in_six_seconds = given((1..6_000).map(ahead), Duration::from_millis(1));
        assert!((5_900..=6_100 + ALLOWANCE_MS).contains(&in_six_seconds), "{in_six_seconds}");
    }

    #[test]
    fn audio_faster_than_time_is_left_out_and_counted() {
        let mut t = uplink(60_000);
        let flood = |n: u64| Media { chunk: n, timestamp_ms: None, audio: vec![1; 48_000] };
        let taken: Vec<Taken> = (1..=1_000).map(|n| t.take(&flood(n), t.credit.at)).collect();
        assert!(taken.iter().all(|taken| taken.too_fast && taken.dropped_ms == 6_000));
        let frames: Vec<Taken> = (1_001..=1_200).map(|n| t.take(&frame(n, 20 * n), t.credit.at)).collect();
        assert_eq!(frames.iter().filter(|taken| !taken.too_fast).count(), 150, "the allowance");
        assert_eq!(t.take(&frame(1_201, 24_020), t.credit.at + Duration::from_millis(20)), Taken::default());
    }

    #[test]
    fn what_the_network_held_back_is_taken_whole() {
        let mut t = uplink(60_000);
        t.take(&frame(1, 100), t.credit.at + Duration::from_millis(100));
        let late = Duration::from_secs(30);
        let first = t.take(&frame(2, 120), t.credit.at + late);
        let rest = (3..=1_500).map(|n| t.take(&frame(n, 80 + 20 * n), t.credit.at));
        assert!([first].into_iter().chain(rest).all(|taken| taken == Taken::default()));
    }

    #[test]
    fn a_clock_that_runs_a_little_faster_loses_nothing_in_a_day() {
        let mut t = uplink(60_000);
        for n in 1..=1_000_000 {
            let taken = t.take(&frame(n, 20 * n), t.credit.at + Duration::from_micros(19_900));
            assert!(!taken.too_fast);
            t.backlog.clear();
        }
    }

    #[test]
    fn silence_that_finds_no_time_leaves_room_for_the_callers_words() {
        let mut t = uplink(60_000);
        t.hears(&frame(1, 100));
        for n in 2..=1_000 {
            let taken = t.take(&frame(n, n * 100_000), t.credit.at + Duration::from_millis(20));
            assert!(!taken.too_fast, "{n}");
        }
    }

    #[test]
    fn chunks_that_are_counted_anew_are_no_repeats() {
        let mut t = uplink(60_000);
        t.hears(&frame(u64::MAX, 100));
        assert!(!t.hears(&frame(1, 120)).repeated && !t.hears(&frame(2, 140)).repeated);
        assert!(t.hears(&frame(2, 140)).repeated);
    }
}
