//! Where in an item there is sound: real replies begin and end with silence, up to three seconds of it, and words
//! belong to the sound alone.

use super::settings::ms;
use crate::audio::{Companding, FRAME_BYTES};
use std::time::Duration;

/// Below this level a frame is silence: 50 dB below full scale.
const QUIET_RMS: u64 = 100;

/// Bytes of G.711 in a millisecond.
const BYTES_PER_MS: u64 = 8;

/// Silence this short belongs to the speech around it: the stop in a consonant, the gap between two words.
const GAP: Duration = ms(200);

/// Stretches of sound remembered for one item. The last one takes up what follows.
const STRETCHES_MAX: usize = 1_024;

/// A stretch of sound, in bytes of G.711 from the item's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    from: u64,
    to: u64,
}

/// The sound in an item, as far as it was generated.
#[derive(Debug, Default)]
pub(crate) struct Sound {
    stretches: Vec<Stretch>,
    /// Bytes seen.
    len: u64,
    /// Of the frame that is not complete: the sum of squares, and its bytes.
    energy: u64,
    gathered: u64,
}

impl Sound {
    /// More of the item was generated.
    pub(crate) fn push(&mut self, companding: Companding, codes: &[u8]) {
        let mut samples = [0_i16; FRAME_BYTES];
        let mut codes = codes;
        while !codes.is_empty() {
            let room = FRAME_BYTES - self.gathered as usize;
            let (taken, rest) = codes.split_at(room.min(codes.len()));
            companding.decode_slice(taken, &mut samples);
            let squares = samples[..taken.len()].iter().map(|s| u64::from(s.unsigned_abs()).pow(2));
            self.energy += squares.sum::<u64>();
            self.gathered += taken.len() as u64;
            self.len += taken.len() as u64;
            codes = rest;
            if self.gathered == FRAME_BYTES as u64 {
                self.end_frame();
            }
        }
    }

    /// No more of it will come: what is left is a frame, too.
    pub(crate) fn finish(&mut self) {
        if self.gathered > 0 {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        let (from, to) = (self.len - self.gathered, self.len);
        let is_sound = self.energy >= QUIET_RMS.pow(2) * self.gathered;
        (self.energy, self.gathered) = (0, 0);
        if !is_sound {
            return;
        }
        let full = self.stretches.len() >= STRETCHES_MAX;
        let gap = GAP.as_millis() as u64 * BYTES_PER_MS;
        match self.stretches.last_mut() {
            Some(last) if full || from - last.to < gap => last.to = to,
            _ => self.stretches.push(Stretch { from, to }),
        }
    }

    /// How much sound there is before this position, ms.
    pub(crate) fn before(&self, position: u64) -> u64 {
        let part = |s: &Stretch| s.to.min(position).saturating_sub(s.from);
        self.stretches.iter().map(part).sum::<u64>() / BYTES_PER_MS
    }

    /// Where the last sound ends, ms.
    pub(crate) fn ends_ms(&self) -> u64 {
        self.stretches.last().map_or(0, |last| last.to) / BYTES_PER_MS
    }

    /// How much has been silent since, ms.
    pub(crate) fn quiet_ms(&self) -> u64 {
        self.len / BYTES_PER_MS - self.ends_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOUD: u8 = 0x20;

    fn sound(parts: &[(u8, usize)]) -> Sound {
        let mut sound = Sound::default();
        for (code, ms) in parts {
            sound.push(Companding::Ulaw, &vec![*code; ms * 8]);
        }
        sound
    }

    #[test]
    fn silence_before_between_and_behind_the_sound_does_not_count() {
        let t = sound(&[(0xFF, 400), (LOUD, 600), (0xFF, 500), (LOUD, 300), (0xFF, 2_000)]);
        assert_eq!([300, 700, 1_200, 1_600, 9_000].map(|at| t.before(at * 8)), [0, 300, 600, 700, 900]);
        assert_eq!((t.ends_ms(), t.quiet_ms()), (1_800, 2_000));
    }

    #[test]
    fn a_short_gap_belongs_to_the_speech_around_it() {
        let t = sound(&[(LOUD, 200), (0xFF, 180), (LOUD, 200), (0xFF, 200), (LOUD, 100)]);
        assert_eq!(t.stretches, [Stretch { from: 0, to: 4_640 }, Stretch { from: 6_240, to: 7_040 }]);
    }

    #[test]
    fn deltas_of_any_length_make_the_same_sound() {
        let codes: Vec<u8> = (0..16_000).map(|i| if (i / 4_000) % 2 == 0 { LOUD } else { 0xFF }).collect();
        let mut whole = Sound::default();
        whole.push(Companding::Ulaw, &codes);
        let mut pieces = Sound::default();
        codes.chunks(333).for_each(|piece| pieces.push(Companding::Ulaw, piece));
        assert_eq!(whole.stretches, pieces.stretches);
        assert_eq!(whole.len, pieces.len);
    }

    #[test]
    fn the_rest_of_a_frame_counts_once_the_item_is_complete() {
        let mut t = sound(&[(LOUD, 30)]);
        assert_eq!(t.ends_ms(), 20);
        t.finish();
        assert_eq!((t.ends_ms(), t.quiet_ms()), (30, 0));
    }

    #[test]
    fn the_noise_of_a_converter_is_silence_and_a_soft_voice_is_not() {
        let tone = |amplitude: i16| {
            let samples: Vec<i16> =
                (0..1_600).map(|i| if i % 8 < 4 { amplitude } else { -amplitude }).collect();
            let mut codes = vec![0; samples.len()];
            Companding::Alaw.encode_slice(&samples, &mut codes);
            let mut sound = Sound::default();
            sound.push(Companding::Alaw, &codes);
            sound.ends_ms()
        };
        assert_eq!((tone(0), tone(60), tone(200)), (0, 0, 200));
    }

    #[test]
    fn an_item_that_never_ends_is_remembered_within_bounds() {
        let mut t = Sound::default();
        for _ in 0..3 * STRETCHES_MAX {
            t.push(Companding::Ulaw, &[LOUD; 160]);
            t.push(Companding::Ulaw, &[0xFF; 1_600]);
        }
        assert_eq!(t.stretches.len(), STRETCHES_MAX);
        assert_eq!(t.quiet_ms(), 200);
    }
}
