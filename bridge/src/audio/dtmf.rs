//! Finds keypad tones in a caller's audio, so that they can be kept from the model.
//!
//! Eight Goertzel filters look at each 20 ms frame. A key is heard when two frames in a row carry the same pair of
//! tones: at least 45 % of the frame's energy, no tone much stronger than the other, and both in tune. The first 20
//! to 40 ms of a tone are therefore not noticed in time; to wait for certainty would delay every word instead.
//!
//! Refused here: saying which keys were pressed. Twilio's own `dtmf` messages do that, and they alone count.

use super::{Companding, FRAME_BYTES};

/// What a filter needs to know about its tone. All of it is in the source, so that nothing depends on a library's
/// sine: `w` is the tone's angle from sample to sample, at 8 kHz.
struct Tone {
    /// cos w.
    cos: f32,
    /// sin w.
    sin: f32,
    /// cos 80 w: how far the tone turns in half a frame.
    turn_cos: f32,
    /// sin 80 w.
    turn_sin: f32,
    /// Cosine of the angle by which half a frame of a tone 2.5 % out of tune turns too far. Telephones keep
    /// to 1.5 %, and what is 3.5 % off must not be taken for one (ITU-T Q.24).
    out_of_tune: f32,
}

/// The four tones of the rows (697, 770, 852 and 941 Hz), then of the columns (1,209, 1,336, 1,477 and 1,633 Hz).
#[rustfmt::skip]
const TONES: [Tone; 8] = [
    Tone { cos: 0.853_868_9, sin: 0.520_488_1, turn_cos:  0.982_287_2, turn_sin: -0.187_381_3, out_of_tune:  0.458_184_2 },
    Tone { cos: 0.822_640_5, sin: 0.568_561_9, turn_cos: -0.309_017, turn_sin: -0.951_056_5, out_of_tune:  0.353_474_8 },
    Tone { cos: 0.784_343_5, sin: 0.620_326_8, turn_cos: -0.992_114_7, turn_sin: -0.125_333_2, out_of_tune:  0.230_389_4 },
    Tone { cos: 0.739_102_3, sin: 0.673_593_2, turn_cos: -0.844_327_9, turn_sin:  0.535_826_8, out_of_tune:  0.092_544_4 },
    Tone { cos: 0.582_052, sin: 0.813_151_6, turn_cos:  0.844_327_9, turn_sin:  0.535_826_8, out_of_tune: -0.322_430_9 },
    Tone { cos: 0.498_185_1, sin: 0.867_070_7, turn_cos: -0.637_424, turn_sin:  0.770_513_2, out_of_tune: -0.503_623_2 },
    Tone { cos: 0.399_309_2, sin: 0.916_816_3, turn_cos:  0.125_333_2, turn_sin: -0.992_114_7, out_of_tune: -0.681_104_3 },
    Tone { cos: 0.284_266_4, sin: 0.958_745_3, turn_cos: -0.481_753_7, turn_sin:  0.876_306_7, out_of_tune: -0.838_385_3 },
];

/// The keys, by row and column.
const KEYS: [[char; 4]; 4] =
    [['1', '2', '3', 'A'], ['4', '5', '6', 'B'], ['7', '8', '9', 'C'], ['*', '0', '#', 'D']];

/// Least part of a frame's energy in the two tones together. Half a frame of tone must pass: one of 40 ms fills one
/// frame for certain, and half of a second one.
const SHARE_MIN: f32 = 0.45;
/// The tone of the column may be this many times as strong as the one of the row: 4 dB, and 2 for being out of tune.
const COLUMN_OVER_ROW_MAX: f32 = 4.0;
/// The tone of the row may be this many times as strong as the one of the column: 8 dB, and 4 for being out of tune.
const ROW_OVER_COLUMN_MAX: f32 = 16.0;
/// Least energy of a frame: -40 dBm0 throughout.
const ENERGY_MIN: f32 = 25_000.0 * FRAME_BYTES as f32;

/// A frame that may be part of a key's tone.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Heard {
    key: char,
    energy: f32,
    in_tune: bool,
}

/// Listens to one caller, frame after frame.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    before: Option<Heard>,
}

impl Detector {
    /// The key whose tone this frame and the one before it carry.
    pub fn hear(&mut self, frame: &[i16; FRAME_BYTES]) -> Option<char> {
        let now = listen(frame);
        let (before, now) = (std::mem::replace(&mut self.before, now)?, now?);
        // A frame at the edge of a tone is too short to tell its pitch; the fuller one of the two is not.
        let fuller = if now.energy > before.energy { now } else { before };
        (now.key == before.key && fuller.in_tune).then_some(now.key)
    }

    /// What comes next does not follow what came before.
    pub fn reset(&mut self) {
        self.before = None;
    }
}

/// One complex number for each tone.
type Eight = [[f32; 2]; 8];

/// What each filter makes of half a frame.
fn filtered(half: &[i16]) -> Eight {
    let (mut last, mut before) = ([0.0f32; 8], [0.0f32; 8]);
    for &sample in half {
        let x = f32::from(sample);
        for ((last, before), tone) in last.iter_mut().zip(&mut before).zip(&TONES) {
            let next = x + 2.0 * tone.cos * *last - *before;
            *before = *last;
            *last = next;
        }
    }
    std::array::from_fn(|n| [last[n] - TONES[n].cos * before[n], TONES[n].sin * before[n]])
}

fn listen(frame: &[i16; FRAME_BYTES]) -> Option<Heard> {
    let squares: i64 = frame.iter().map(|&sample| i64::from(i32::from(sample) * i32::from(sample))).sum();
    let energy = squares as f32;
    if energy < ENERGY_MIN {
        return None;
    }
    let (first, second) = frame.split_at(FRAME_BYTES / 2);
    let (first, second) = (filtered(first), filtered(second));
    let mut strength = [0.0; 8];
    let mut in_tune = [false; 8];
    for (n, tone) in TONES.iter().enumerate() {
        let ([a, b], [c, d]) = (first[n], second[n]);
        // Where the first half would stand after the second, if it were exactly this tone.
        let (a, b) = (a * tone.turn_cos - b * tone.turn_sin, a * tone.turn_sin + b * tone.turn_cos);
        let (re, im) = (a + c, b + d);
        // The energy a tone of this amplitude has in a frame.
        strength[n] = (re * re + im * im) * (2.0 / FRAME_BYTES as f32);
        // The angle between the two, by its cosine.
        let lengths = ((a * a + b * b) * (c * c + d * d)).sqrt();
        in_tune[n] = a * c + b * d >= tone.out_of_tune * lengths;
    }
    let strongest = |tones: [usize; 4]| {
        tones.into_iter().fold(tones[0], |best, n| if strength[n] > strength[best] { n } else { best })
    };
    let (row, column) = (strongest([0, 1, 2, 3]), strongest([4, 5, 6, 7]));
    let (low, high) = (strength[row], strength[column]);
    let is_pair = low + high >= SHARE_MIN * energy
        && high <= COLUMN_OVER_ROW_MAX * low
        && low <= ROW_OVER_COLUMN_MAX * high;
    let key = KEYS[row][column - 4];
    is_pair.then_some(Heard { key, energy, in_tune: in_tune[row] && in_tune[column] })
}

/// Replaces the frames of keypad tones by silence, in place and without delay.
#[derive(Clone, Debug)]
pub struct Mute {
    companding: Companding,
    detector: Detector,
    muting: bool,
}

impl Mute {
    /// For a caller who speaks `companding`.
    pub fn new(companding: Companding) -> Self {
        Self { companding, detector: Detector::default(), muting: false }
    }

    /// Takes consecutive G.711 that begins with a frame. Less than a frame, at the end, goes with the frame before.
    /// Returns the bytes that were silenced.
    pub fn apply(&mut self, codes: &mut [u8]) -> usize {
        let mut silenced = 0;
        for piece in codes.chunks_mut(FRAME_BYTES) {
            if piece.len() == FRAME_BYTES {
                let mut samples = [0; FRAME_BYTES];
                self.companding.decode_slice(piece, &mut samples);
                self.muting = self.detector.hear(&samples).is_some();
            }
            if self.muting {
                piece.fill(self.companding.silence());
                silenced += piece.len();
            }
        }
        silenced
    }

    /// What comes next does not follow what came before.
    pub fn reset(&mut self) {
        self.detector.reset();
        self.muting = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audio::ulaw;
    use std::f64::consts::TAU;

    const ROWS: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
    const COLUMNS: [f64; 4] = [1_209.0, 1_336.0, 1_477.0, 1_633.0];

    /// Amplitude of a sine of `dbm0`; 0 dBm0 is 3.17 dB below full scale.
    fn amplitude(dbm0: f64) -> f64 {
        32_124.0 * 10f64.powf((dbm0 - 3.17) / 20.0)
    }

    fn noise() -> impl FnMut() -> f64 {
        let mut state = 0x9E37_79B9u32;
        move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
        }
    }

    /// Two sines of these frequencies and levels between 25 ms of silence, beginning anywhere in a frame.
    struct Press {
        hz: (f64, f64),
        dbm0: (f64, f64),
        ms: usize,
        /// Samples of silence in front of it.
        at: usize,
    }

    impl Press {
        fn of(row: usize, column: usize) -> Self {
            Self { hz: (ROWS[row], COLUMNS[column]), dbm0: (-10.0, -10.0), ms: 60, at: 200 }
        }

        /// In mu-law, whole frames.
        fn codes(&self) -> Vec<u8> {
            let tone = |n: usize| {
                let t = n as f64 / 8_000.0;
                amplitude(self.dbm0.0) * (TAU * self.hz.0 * t + 0.3).sin()
                    + amplitude(self.dbm0.1) * (TAU * self.hz.1 * t + 1.9).sin()
            };
            let mut codes = vec![0xFF; self.at];
            codes.extend((0..self.ms * 8).map(|n| ulaw::encode(tone(n).round() as i16)));
            codes.resize((codes.len() + 200).next_multiple_of(FRAME_BYTES), 0xFF);
            codes
        }

        fn heard(&self) -> Vec<char> {
            heard(&self.codes())
        }
    }

    /// What the detector says of each frame, if anything.
    fn heard(codes: &[u8]) -> Vec<char> {
        let mut detector = Detector::default();
        let frames = codes.as_chunks::<FRAME_BYTES>().0.iter();
        frames.filter_map(|frame| detector.hear(&frame.map(ulaw::decode))).collect()
    }

    fn every_key(mut with: impl FnMut(char, Press)) {
        for (row, keys) in KEYS.into_iter().enumerate() {
            for (column, key) in keys.into_iter().enumerate() {
                with(key, Press::of(row, column));
            }
        }
    }

    #[test]
    fn a_tone_far_below_the_level_of_a_telephone_is_none() {
        every_key(|key, press| {
            assert!(Press { dbm0: (-42.0, -42.0), ..press }.heard().contains(&key), "{key}");
        });
        every_key(|key, press| {
            assert!(Press { dbm0: (-44.0, -44.0), ..press }.heard().is_empty(), "{key}");
        });
    }

    #[test]
    fn the_constants_are_what_they_are_called() {
        for (tone, hz) in TONES.iter().zip(ROWS.into_iter().chain(COLUMNS)) {
            let w = TAU * hz / 8_000.0;
            for (constant, value) in [
                (tone.cos, w.cos()),
                (tone.sin, w.sin()),
                (tone.turn_cos, (80.0 * w).cos()),
                (tone.turn_sin, (80.0 * w).sin()),
                (tone.out_of_tune, (80.0 * 0.025 * w).cos()),
            ] {
                assert!((f64::from(constant) - value).abs() < 2e-7, "{hz} Hz: {constant} for {value}");
            }
        }
    }

    #[test]
    fn every_key_is_heard_at_every_length_level_and_place() {
        every_key(|key, press| {
            for ms in [40, 50, 60, 80, 100] {
                for dbm0 in [-10.0, -20.0, -30.0] {
                    for at in (160..320).step_by(7) {
                        let press = Press { hz: press.hz, dbm0: (dbm0, dbm0), ms, at };
                        let heard = press.heard();
                        assert!(
                            !heard.is_empty() && heard.iter().all(|&k| k == key),
                            "{key}: {ms} ms, {dbm0} dBm0, at {at}: {heard:?}"
                        );
                    }
                }
            }
        });
    }

    #[test]
    fn a_telephone_may_be_a_little_out_of_tune_but_not_much() {
        for (low, high, is_heard) in [
            (1.015, 1.015, true),
            (0.985, 0.985, true),
            (1.015, 0.985, true),
            (0.985, 1.015, true),
            (1.035, 1.0, false),
            (0.965, 1.0, false),
            (1.0, 1.035, false),
            (1.0, 0.965, false),
            (1.035, 1.035, false),
            (0.965, 0.965, false),
        ] {
            every_key(|key, press| {
                for at in (160..320).step_by(7) {
                    let hz = (press.hz.0 * low, press.hz.1 * high);
                    let heard = Press { hz, ms: 60, at, ..Press::of(0, 0) }.heard();
                    assert_eq!(!heard.is_empty(), is_heard, "{key} at {low} and {high}, at {at}: {heard:?}");
                    assert!(heard.iter().all(|&k| k == key));
                }
            });
        }
    }

    #[test]
    fn one_tone_may_be_weaker_but_not_absent() {
        every_key(|key, press| {
            for (low, high) in [(-10.0, -6.0), (-6.0, -14.0)] {
                let heard = Press { dbm0: (low, high), ..Press { hz: press.hz, ..Press::of(0, 0) } }.heard();
                assert!(heard.iter().all(|&k| k == key) && !heard.is_empty(), "{key}: {heard:?}");
            }
            for (low, high) in [(-10.0, 0.0), (-10.0, -60.0), (-60.0, -10.0)] {
                let heard = Press { dbm0: (low, high), ..Press { hz: press.hz, ..Press::of(0, 0) } }.heard();
                assert_eq!(heard, Vec::<char>::new(), "{key} at {low} and {high} dBm0");
            }
        });
    }

    #[test]
    fn noise_over_a_tone_does_not_hide_it() {
        let mut random = noise();
        every_key(|key, press| {
            let mut heard = Vec::new();
            let mut codes = press.codes();
            for code in &mut codes {
                // Uniform noise 15 dB below the two tones together.
                let loud = amplitude(-10.0) * (2.0 * 1.5 * 10f64.powf(-1.5)).sqrt();
                *code = ulaw::encode((f64::from(ulaw::decode(*code)) + random() * loud) as i16);
            }
            heard.extend(self::heard(&codes));
            assert!(heard.iter().all(|&k| k == key) && !heard.is_empty(), "{key}: {heard:?}");
        });
    }

    /// Three formants over a gliding pitch, with hisses between: what a voice has that a keypad has not.
    #[test]
    fn no_voice_and_no_noise_is_taken_for_a_key() {
        let mut random = noise();
        let mut phase = 0.0f64;
        let mut filters = [[0.0f64; 2]; 3];
        let voice = (0..60 * 8_000).map(|n| {
            let t = n as f64 / 8_000.0;
            let pitch = 150.0 + 60.0 * (TAU * 0.41 * t).sin() + 20.0 * (TAU * 2.3 * t).sin();
            phase = (phase + pitch / 8_000.0).fract();
            let hisses = (TAU * 1.7 * t).sin() > 0.8;
            let source = if hisses { random() * 0.5 } else { 2.0 * phase - 1.0 };
            let formants = [
                500.0 + 250.0 * (TAU * 1.1 * t).sin(),
                1_400.0 + 500.0 * (TAU * 0.7 * t).sin(),
                2_500.0 + 200.0 * (TAU * 0.9 * t).sin(),
            ];
            let sum: f64 = filters
                .iter_mut()
                .zip(formants)
                .map(|([a, b], hz)| {
                    let r = 0.985;
                    let next = source + 2.0 * r * (TAU * hz / 8_000.0).cos() * *a - r * r * *b;
                    (*b, *a) = (*a, next);
                    next
                })
                .sum();
            ulaw::encode((sum * 300.0).clamp(-32_000.0, 32_000.0) as i16)
        });
        assert_eq!(heard(&voice.collect::<Vec<_>>()), Vec::<char>::new());
        let hiss: Vec<u8> = (0..480_000).map(|_| ulaw::encode((random() * 9_000.0) as i16)).collect();
        assert_eq!(heard(&hiss), Vec::<char>::new());
        let sines = |hz: f64| (0..8_000).map(move |n| (TAU * hz * f64::from(n) / 8_000.0).sin() * 9_000.0);
        for hz in (300..3_400).step_by(11) {
            let codes: Vec<u8> = sines(f64::from(hz)).map(|x| ulaw::encode(x as i16)).collect();
            assert_eq!(heard(&codes), Vec::<char>::new(), "{hz} Hz alone");
        }
    }

    #[test]
    fn at_most_two_frames_of_a_tone_get_through() {
        every_key(|key, press| {
            for at in (160..320).step_by(7) {
                let codes = Press { hz: press.hz, ms: 100, at, ..Press::of(0, 0) }.codes();
                let mut muted = codes.clone();
                let silenced = Mute::new(Companding::Ulaw).apply(&mut muted);
                let left = muted.iter().filter(|&&code| code != 0xFF).count();
                // A frame that the tone only brushes at its end is left to the caller.
                assert!(left <= 2 * FRAME_BYTES + 80, "{key} at {at}: {} ms are left", left / 8);
                assert!(silenced >= 60 * 8, "{key} at {at}");
                assert_eq!(muted.len(), codes.len());
                assert!(muted.iter().zip(&codes).all(|(now, then)| now == then || *now == 0xFF));
            }
        });
    }

    #[test]
    fn pieces_shorter_than_a_frame_go_with_the_frame_before() {
        let mut codes = Press { ms: 100, at: 0, ..Press::of(1, 1) }.codes();
        codes.truncate(2 * FRAME_BYTES + 100);
        assert_eq!(Mute::new(Companding::Ulaw).apply(&mut codes), FRAME_BYTES + 100);
        assert_eq!(Mute::new(Companding::Ulaw).apply(&mut codes[..100]), 0);
    }

    #[test]
    fn the_silence_of_an_a_law_caller_is_that_of_a_law() {
        let press = Press { ms: 100, at: 0, ..Press::of(2, 2) };
        let mut codes = Vec::new();
        Companding::Ulaw.recode(&press.codes(), Companding::Alaw, &mut codes);
        Mute::new(Companding::Alaw).apply(&mut codes);
        assert!(codes[FRAME_BYTES..4 * FRAME_BYTES].iter().all(|&code| code == 0xD5));
    }
}
