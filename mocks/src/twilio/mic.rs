//! The microphone: one frame every 20 ms, speech or the noise of an idle line, and the network behind it.
//!
//! A frame is *made* on the 20 ms grid and *leaves* then or later: a stall or arrival jitter holds it back, and
//! order is kept. Timestamps tell when a frame was made, never when it left.

use super::script::{CallerScript, Idle};
use crate::peer::At;
use crate::{clip, ulaw};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use std::collections::VecDeque;
use std::sync::OnceLock;

/// Bytes of one frame.
pub(super) const FRAME: usize = 160;
/// Milliseconds of one frame.
pub(super) const FRAME_MS: u64 = 20;

/// One named random stream for each concern, so that a new draw in one does not reshuffle the others.
#[derive(Clone, Copy)]
enum Concern {
    Noise = 1,
    Timestamps = 2,
    Arrival = 3,
}

fn stream(seed: u64, concern: Concern) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(concern as u64);
    rng
}

/// The caller's voice in mu-law, a tape without end.
pub(super) fn tape() -> &'static [u8] {
    static TAPE: OnceLock<Vec<u8>> = OnceLock::new();
    TAPE.get_or_init(|| ulaw::encode_all(golden::caller_voice()))
}

/// What leaves the microphone at one point of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Made {
    /// `media.timestamp`.
    pub(super) timestamp_ms: u64,
    /// The audio, or nothing when silence is left out.
    pub(super) audio: Option<[u8; FRAME]>,
    /// The utterance it belongs to.
    pub(super) speech: Option<usize>,
}

/// The microphone of one call.
#[derive(Debug)]
pub(super) struct Mic {
    dtx: bool,
    jitters: bool,
    arrival_jitter_us: u64,
    /// Codes of mu-law from zero on that the noise of the line is made of.
    noise_codes: u8,
    noise: ChaCha8Rng,
    timestamps: ChaCha8Rng,
    arrival: ChaCha8Rng,
    first_timestamp_ms: u64,
    /// How far the timestamps are off their grid.
    wander_ms: i64,
    /// Frames made so far, left out or not.
    made: u64,
    /// When the next frame is made; `None` before the stream runs and after it.
    next: Option<At>,
    /// Frames held back, with the time they leave at.
    held: VecDeque<(At, Made)>,
    last_leaves: At,
    stalled_until: At,
    /// What is still to be played, one after the other.
    sounds: VecDeque<Sound>,
    /// Sounds that are over.
    ended: usize,
    /// Those of them that were speech.
    uttered: usize,
    tape_at: usize,
}

/// Something to be played. A silent frame ends it.
#[derive(Debug)]
struct Sound {
    /// Frames to come before that.
    frames: usize,
    source: Source,
    is_speech: bool,
}

#[derive(Debug)]
enum Source {
    /// The tape goes on.
    Tape,
    /// These codes, from there on.
    Codes { codes: Vec<u8>, at: usize },
}

impl Mic {
    pub(super) fn new(script: &CallerScript, seed: u64) -> Self {
        let mut timestamps = stream(seed, Concern::Timestamps);
        // Recorded streams begin at 57 to 171 ms: the clock starts before the first frame does.
        let drawn = 57 + u64::from(timestamps.next_u32() % 115);
        Self {
            dtx: script.idle == Idle::Dtx,
            jitters: script.timestamp_jitter,
            arrival_jitter_us: script.arrival_jitter_ms * 1_000,
            noise_codes: ulaw::encode(i16::try_from(script.idle_noise).unwrap_or(i16::MAX)) ^ 0xFF,
            noise: stream(seed, Concern::Noise),
            timestamps,
            arrival: stream(seed, Concern::Arrival),
            first_timestamp_ms: script.first_timestamp_ms.unwrap_or(drawn),
            wander_ms: 0,
            made: 0,
            next: None,
            held: VecDeque::new(),
            last_leaves: At(0),
            stalled_until: At(0),
            sounds: VecDeque::new(),
            ended: 0,
            uttered: 0,
            tape_at: 0,
        }
    }

    /// The stream runs: the first frame is made now.
    pub(super) fn begin(&mut self, now: At) {
        self.next = Some(now);
    }

    /// Nothing is made any more.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// Leaves silence out, or sends it.
    pub(super) fn set_dtx(&mut self, dtx: bool) {
        self.dtx = dtx;
    }

    /// The network holds back what leaves before `until`.
    pub(super) fn stall(&mut self, until: At) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// Speaks for `ms` once everything asked for before has been played. Returns which sound that is.
    pub(super) fn say(&mut self, ms: u64) -> usize {
        let frames = usize::try_from(ms.div_ceil(FRAME_MS)).unwrap_or(usize::MAX);
        self.add(frames, Source::Tape, true)
    }

    /// Plays a golden clip once everything asked for before has been played. Returns which sound that is. A clip
    /// that does not exist is a sound of no length.
    pub(super) fn play(&mut self, name: &str) -> usize {
        match clip::sound(name) {
            Some(sound) => self.add_samples(&sound.narrow, sound.is_speech),
            None => self.add_samples(&[], false),
        }
    }

    /// Says recorded codes once everything asked for before has been played. Returns which sound that is.
    pub(super) fn say_recorded(&mut self, codes: &[u8]) -> usize {
        self.add_codes(codes.to_vec(), true)
    }

    /// Plays the tones of keys once everything asked for before has been played. Returns which sound that is.
    pub(super) fn play_tones(&mut self, keys: &str) -> usize {
        let tones: Vec<i16> = keys.chars().filter_map(golden::dtmf).flatten().copied().collect();
        self.add_samples(&tones, false)
    }

    fn add_samples(&mut self, samples: &[i16], is_speech: bool) -> usize {
        self.add_codes(ulaw::encode_all(samples), is_speech)
    }

    fn add_codes(&mut self, codes: Vec<u8>, is_speech: bool) -> usize {
        self.add(codes.len().div_ceil(FRAME), Source::Codes { codes, at: 0 }, is_speech)
    }

    fn add(&mut self, frames: usize, source: Source, is_speech: bool) -> usize {
        if frames == 0 {
            return self.ended.saturating_sub(1);
        }
        self.sounds.push_back(Sound { frames, source, is_speech });
        self.ended + self.sounds.len() - 1
    }

    /// Whether this sound is over. A sound of no length is over at once.
    pub(super) fn has_played(&self, sound: usize) -> bool {
        self.sounds.is_empty() || sound < self.ended
    }

    /// When the next frame is made.
    pub(super) fn next_made(&self) -> Option<At> {
        self.next
    }

    /// When the next frame that was held back leaves.
    pub(super) fn next_leaves(&self) -> Option<At> {
        self.held.front().map(|(at, _)| *at)
    }

    /// Makes the frame of grid point `at`. Returns it when it leaves at once; otherwise it is held back.
    pub(super) fn make(&mut self, at: At) -> Option<Made> {
        self.next = Some(at.plus_ms(FRAME_MS));
        let made = self.made();
        if self.arrival_jitter_us == 0 && self.stalled_until <= at && self.held.is_empty() {
            return Some(made);
        }
        let late = match self.arrival_jitter_us {
            0 => 0,
            most => self.arrival.next_u64() % (most + 1),
        };
        self.last_leaves = self.last_leaves.max(At(at.0 + late)).max(self.stalled_until);
        self.held.push_back((self.last_leaves, made));
        None
    }

    /// The next frame held back; the caller of this knows that its time has come, or does not care.
    pub(super) fn release(&mut self) -> Option<Made> {
        self.held.pop_front().map(|(_, made)| made)
    }

    /// A frame of idle line at the current timestamp, off the grid.
    pub(super) fn idle_frame(&mut self) -> Made {
        let timestamp_ms = self.timestamp();
        Made { timestamp_ms, audio: Some(self.idle_audio()), speech: None }
    }

    fn made(&mut self) -> Made {
        let timestamp_ms = self.timestamp();
        if let Some(sound) = self.sounds.front_mut() {
            if sound.frames > 0 {
                sound.frames -= 1;
                let speech = sound.is_speech.then_some(self.uttered);
                let audio = match &mut sound.source {
                    Source::Tape => Self::next_codes(tape(), &mut self.tape_at, true),
                    Source::Codes { codes, at } => Self::next_codes(codes, at, false),
                };
                return Made { timestamp_ms, audio: Some(audio), speech };
            }
            self.uttered += usize::from(sound.is_speech);
            self.ended += 1;
            self.sounds.pop_front();
        }
        let audio = (!self.dtx).then(|| self.idle_audio());
        Made { timestamp_ms, audio, speech: None }
    }

    fn timestamp(&mut self) -> u64 {
        const FARTHEST_MS: i64 = 2;
        if self.jitters && self.made > 0 {
            let step = i64::from(self.timestamps.next_u32() % 3) - 1;
            self.wander_ms = (self.wander_ms + step).clamp(-FARTHEST_MS, FARTHEST_MS);
        }
        let grid = self.first_timestamp_ms + self.made * FRAME_MS;
        self.made += 1;
        grid.saturating_add_signed(self.wander_ms)
    }

    /// A frame of codes from `at` on. What has an end is followed by silence, what has none by its beginning.
    fn next_codes(codes: &[u8], at: &mut usize, endless: bool) -> [u8; FRAME] {
        let mut audio = [0xFF; FRAME];
        for byte in &mut audio {
            *byte = codes.get(*at).copied().unwrap_or(0xFF);
            *at += 1;
            if endless && *at >= codes.len() {
                *at = 0;
            }
        }
        audio
    }

    /// Captured near-silence is the two zeros of mu-law in equal parts, now and then a neighbour of theirs.
    fn idle_audio(&mut self) -> [u8; FRAME] {
        let mut audio = [0; FRAME];
        self.noise.fill_bytes(&mut audio);
        if self.noise_codes != 1 {
            // One bit is the sign, the others a level of those there are; all are alike.
            for byte in &mut audio {
                let level = (u16::from(*byte >> 1) * (u16::from(self.noise_codes) + 1)) >> 7;
                *byte = 0xFF ^ (u8::try_from(level).unwrap_or(0) | ((*byte & 1) << 7));
            }
            return audio;
        }
        for byte in &mut audio {
            *byte = match *byte {
                0 => 0x7E,
                1 => 0xFE,
                even if even % 2 == 0 => 0x7F,
                _odd => 0xFF,
            };
        }
        audio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mic(script: &CallerScript) -> Mic {
        let mut mic = Mic::new(script, 7);
        mic.begin(At(0));
        mic
    }

    fn frames(mic: &mut Mic, count: usize) -> Vec<Made> {
        (0..count).filter_map(|_| mic.next_made().and_then(|at| mic.make(at))).collect()
    }

    #[test]
    fn the_first_timestamp_is_drawn_as_captured() {
        for seed in 0..500 {
            let first = Mic::new(&CallerScript::default(), seed).first_timestamp_ms;
            assert!((57..=171).contains(&first), "{first}");
        }
    }

    #[test]
    fn timestamps_stay_within_two_milliseconds_of_their_grid_and_use_them() {
        let made = frames(&mut mic(&CallerScript::default()), 5_000);
        let off: Vec<i64> = made
            .iter()
            .zip(0..)
            .map(|(frame, k)| frame.timestamp_ms as i64 - made[0].timestamp_ms as i64 - 20 * k)
            .collect();
        assert_eq!((off.iter().min(), off.iter().max()), (Some(&-2), Some(&2)));
        assert!(made.windows(2).all(|two| two[0].timestamp_ms < two[1].timestamp_ms));
    }

    #[test]
    fn an_idle_line_is_both_zeros_and_rarely_their_neighbours() {
        let made = frames(&mut mic(&CallerScript::default()), 1_000);
        let count = |code: u8| made.iter().filter_map(|m| m.audio).flatten().filter(|b| *b == code).count();
        let (low, high) = (count(0x7F), count(0xFF));
        assert!(low.abs_diff(high) < 4_000, "{low} {high}");
        let rare = count(0x7E) + count(0xFE);
        assert!((1..3_000).contains(&rare), "{rare}");
        assert_eq!(low + high + rare, 160_000);
    }

    #[test]
    fn utterances_take_the_tape_one_after_the_other() {
        let mut mic = mic(&CallerScript::default());
        mic.say(30);
        mic.say(40);
        let made = frames(&mut mic, 6);
        assert_eq!(
            made.iter().map(|m| m.speech).collect::<Vec<_>>(),
            [Some(0), Some(0), None, Some(1), Some(1), None]
        );
        let spoken: Vec<u8> =
            made.iter().filter(|m| m.speech.is_some()).filter_map(|m| m.audio).flatten().collect();
        assert_eq!(spoken, tape()[..640]);
        assert!(mic.has_played(1));
    }

    #[test]
    fn a_clip_of_speech_is_an_utterance_and_a_signal_is_none() {
        let mut mic = mic(&CallerScript::default());
        mic.play("caller_stop");
        mic.play("impulse");
        let last = mic.say(20);
        let stop = ulaw::encode_all(golden::clip("caller_stop").unwrap().samples);
        let impulse = ulaw::encode_all(golden::clip("impulse").unwrap().samples);
        let (spoken, signal) = (stop.len() / FRAME, impulse.len() / FRAME);
        let made = frames(&mut mic, spoken + 1 + signal + 1 + 2);
        let codes = |from: usize, count: usize| -> Vec<u8> {
            made[from..from + count].iter().filter_map(|m| m.audio).flatten().collect()
        };
        assert!(codes(0, spoken) == stop && codes(spoken + 1, signal) == impulse);
        assert!(codes(spoken + signal + 2, 1) == tape()[..FRAME], "clips leave the tape where it is");
        let speech: Vec<Option<usize>> = made.iter().map(|m| m.speech).collect();
        assert!(speech[..spoken].iter().all(|s| *s == Some(0)));
        assert!(speech[spoken..=spoken + signal + 1].iter().all(|s| s.is_none()));
        assert_eq!(speech[spoken + signal + 2..], [Some(1), None]);
        assert!(mic.has_played(last));
    }

    #[test]
    fn a_wide_clip_is_narrowed() {
        let mut mic = mic(&CallerScript::default());
        mic.play("agent_greeting");
        let clip = golden::clip("agent_greeting").unwrap();
        let made = frames(&mut mic, clip.duration_ms() as usize / 20);
        let codes: Vec<u8> = made.iter().filter_map(|m| m.audio).flatten().collect();
        assert!(codes == ulaw::encode_all(&crate::resample::down(clip.samples)));
    }

    #[test]
    fn tones_are_those_of_the_keys_one_after_the_other() {
        let mut mic = mic(&CallerScript::default());
        let tones = mic.play_tones("42#");
        let made = frames(&mut mic, 25);
        assert!(made.iter().all(|m| m.speech.is_none()), "tones are no speech");
        let codes: Vec<u8> = made[..24].iter().filter_map(|m| m.audio).flatten().collect();
        let expected: Vec<i16> = "42#".chars().flat_map(|key| golden::dtmf(key).unwrap()).copied().collect();
        assert!(codes == ulaw::encode_all(&expected));
        assert!(mic.has_played(tones));
        assert!(codes[800..1_280].iter().all(|&code| code == 0xFF), "keys are 60 ms apart");
    }

    #[test]
    fn what_does_not_exist_is_over_at_once() {
        let mut mic = mic(&CallerScript::default());
        let nothing = mic.play("song");
        assert!(mic.has_played(nothing));
    }

    #[test]
    fn an_utterance_is_over_with_the_first_silent_frame() {
        let mut mic = mic(&CallerScript::default());
        let sound = mic.say(20);
        frames(&mut mic, 1);
        assert!(!mic.has_played(sound));
        frames(&mut mic, 1);
        assert!(mic.has_played(sound));
    }

    #[test]
    fn dtx_leaves_frames_out_while_timestamps_run_on() {
        let script = CallerScript { idle: Idle::Dtx, timestamp_jitter: false, ..CallerScript::default() };
        let mut mic = mic(&script);
        let silent = frames(&mut mic, 3);
        assert!(silent.iter().all(|m| m.audio.is_none()));
        mic.say(20);
        let spoken = frames(&mut mic, 1)[0];
        assert_eq!(spoken.timestamp_ms, silent[0].timestamp_ms + 60);
        assert!(spoken.audio.is_some());
    }

    #[test]
    fn a_stall_holds_frames_back_and_lets_them_go_in_order() {
        let script = CallerScript { timestamp_jitter: false, ..CallerScript::default() };
        let mut mic = mic(&script);
        mic.stall(At::ms(50));
        for k in 0..3 {
            assert_eq!(mic.make(At::ms(20 * k)), None);
        }
        assert_eq!(mic.next_leaves(), Some(At::ms(50)));
        let left: Vec<u64> = std::iter::from_fn(|| mic.release()).map(|m| m.timestamp_ms).collect();
        assert_eq!(left, [left[0], left[0] + 20, left[0] + 40]);
        assert!(mic.make(At::ms(60)).is_some(), "after the stall frames leave at once again");
    }

    #[test]
    fn arrival_jitter_is_bounded_and_keeps_order() {
        let mut mic = mic(&CallerScript { arrival_jitter_ms: 30, ..CallerScript::default() });
        let mut last = At(0);
        for k in 0..2_000 {
            let at = At::ms(20 * k);
            assert_eq!(mic.make(at), None);
            let (leaves, _) = *mic.held.back().unwrap();
            assert!(leaves >= last.max(at) && leaves <= at.plus_ms(30));
            last = leaves;
        }
    }
}
