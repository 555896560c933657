//! What the model sounds like: cuts of one master voice, in the session's format.
//!
//! Each item begins somewhere else on the tape, so that audio heard at the far end can be told apart by ear
//! and by machine: which item, and which part of it.

use super::script::AudioFormat;
use crate::{resample, ulaw};
use std::sync::LazyLock;

/// Where consecutive items begin: 3.1 s apart on the tape, in 24 kHz samples. A multiple of three, so that
/// the place exists at 8 kHz too; prime to a tape of 30 s, so that 300 items pass before a place comes again.
const SPREAD: usize = 74_400;

/// The master voice as it goes over the wire at 24 kHz.
static WIDE: LazyLock<Vec<u8>> = LazyLock::new(|| encode(AudioFormat::Pcm, golden::agent_voice()));

/// The master voice at 8 kHz.
static NARROW: LazyLock<Vec<i16>> = LazyLock::new(|| resample::down(golden::agent_voice()));

/// [`NARROW`] in mu-law.
static CODED_MU: LazyLock<Vec<u8>> = LazyLock::new(|| encode(AudioFormat::Pcmu, &NARROW));

/// [`NARROW`] in A-law.
static CODED_A: LazyLock<Vec<u8>> = LazyLock::new(|| encode(AudioFormat::Pcma, &NARROW));

/// Where the audio of the `item`-th item of the `connection`-th connection begins, in 24 kHz samples.
pub(super) fn tape_offset(connection: u64, item: u64) -> usize {
    let whole = golden::agent_voice().len() / 3 * 3;
    let place = (connection % 1_000_003).wrapping_mul(7).wrapping_add(item) % 1_000_003;
    place as usize * SPREAD % whole.max(1)
}

impl AudioFormat {
    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pcm => "audio/pcm",
            Self::Pcmu => "audio/pcmu",
            Self::Pcma => "audio/pcma",
        }
    }

    /// The name the retired dialect used.
    pub const fn beta_name(self) -> &'static str {
        match self {
            Self::Pcm => "pcm16",
            Self::Pcmu => "g711_ulaw",
            Self::Pcma => "g711_alaw",
        }
    }

    /// The format of that name, in either dialect.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pcm, Self::Pcmu, Self::Pcma].into_iter().find(|f| f.name() == name || f.beta_name() == name)
    }

    /// Samples per second.
    pub const fn rate(self) -> u32 {
        match self {
            Self::Pcm => 24_000,
            Self::Pcmu | Self::Pcma => 8_000,
        }
    }

    /// Bytes of one sample.
    pub const fn sample_bytes(self) -> usize {
        match self {
            Self::Pcm => 2,
            Self::Pcmu | Self::Pcma => 1,
        }
    }

    /// Bytes of one millisecond.
    pub const fn bytes_per_ms(self) -> usize {
        self.rate() as usize / 1_000 * self.sample_bytes()
    }
}

/// Bytes `from..to` of an item's audio: `speech` samples of the tape from `offset` (24 kHz), then silence.
pub(super) fn cut(format: AudioFormat, offset: usize, speech: usize, from: usize, to: usize) -> Vec<u8> {
    let (tape, silence, offset): (&[u8], u8, usize) = match format {
        AudioFormat::Pcm => (&WIDE, 0x00, offset * 2),
        AudioFormat::Pcmu => (&CODED_MU, 0xFF, offset / 3),
        AudioFormat::Pcma => (&CODED_A, 0xD5, offset / 3),
    };
    let speech = speech.saturating_mul(format.sample_bytes());
    let mut bytes = Vec::with_capacity(to - from);
    let mut at = from;
    while at < to.min(speech) {
        let place = (offset + at) % tape.len();
        let run = (tape.len() - place).min(to.min(speech) - at);
        bytes.extend_from_slice(&tape[place..place + run]);
        at += run;
    }
    bytes.resize(to - from, silence);
    bytes
}

/// Linear samples of encoded audio; an odd last byte of 16-bit audio is left out.
pub(super) fn decode(format: AudioFormat, bytes: &[u8], out: &mut Vec<i16>) {
    match format {
        AudioFormat::Pcm => {
            out.extend(bytes.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])));
        }
        AudioFormat::Pcmu => out.extend(bytes.iter().map(|&code| ulaw::decode(code))),
        AudioFormat::Pcma => out.extend(bytes.iter().map(|&code| alaw_decode(code))),
    }
}

/// Encoded audio of linear samples.
pub(super) fn encode(format: AudioFormat, samples: &[i16]) -> Vec<u8> {
    match format {
        AudioFormat::Pcm => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
        AudioFormat::Pcmu => samples.iter().map(|&sample| ulaw::encode(sample)).collect(),
        AudioFormat::Pcma => samples.iter().map(|&sample| alaw_encode(sample)).collect(),
    }
}

/// G.711 A-law of a 16-bit sample.
fn alaw_encode(sample: i16) -> u8 {
    let (sign, magnitude) = if sample >= 0 { (0x80, sample >> 3) } else { (0x00, !(sample >> 3)) };
    let magnitude = magnitude as u16;
    let code = if magnitude < 32 {
        magnitude >> 1
    } else {
        let exponent = 15 - magnitude.leading_zeros() as u16 - 4;
        (exponent << 4) | ((magnitude >> exponent) & 0x0F)
    };
    (code as u8 | sign) ^ 0x55
}

/// The 16-bit sample of a G.711 A-law code, in the middle of its interval.
fn alaw_decode(code: u8) -> i16 {
    let code = code ^ 0x55;
    let (exponent, mantissa) = (i16::from(code >> 4 & 0x07), i16::from(code & 0x0F));
    let magnitude = match exponent {
        0 => (mantissa << 4) + 8,
        _ => ((mantissa << 4) + 0x108) << (exponent - 1),
    };
    if code & 0x80 == 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn three_hundred_items_begin_at_three_hundred_places() {
        let places: BTreeSet<_> = (0..300).map(|item| tape_offset(0, item)).collect();
        assert_eq!(places.len(), 300);
        assert!(places.iter().all(|place| place % 3 == 0), "each place exists at 8 kHz");
    }

    #[test]
    fn connections_begin_apart() {
        let first: BTreeSet<_> = (0..7).map(|item| tape_offset(0, item)).collect();
        assert!((0..7).all(|item| !first.contains(&tape_offset(1, item))));
    }

    #[test]
    fn a_cut_is_the_same_however_it_is_sliced() {
        for format in [AudioFormat::Pcm, AudioFormat::Pcmu, AudioFormat::Pcma] {
            let whole = cut(format, 719_997, 4_000, 0, 9_000);
            let mut parts = cut(format, 719_997, 4_000, 0, 3_333);
            parts.extend(cut(format, 719_997, 4_000, 3_333, 9_000));
            assert!(whole == parts, "{format:?}");
        }
    }

    #[test]
    fn every_a_law_code_survives_a_round_trip() {
        for code in 0..=255 {
            assert_eq!(alaw_encode(alaw_decode(code)), code);
        }
    }
}
