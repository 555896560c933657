//! What the model sounds like: cuts of one master voice in the session's format, or a golden clip.
//!
//! Each item begins somewhere else on the tape, so that a listener and a
//! machine at the far end can tell it apart: which item, and which part of it.

use super::script::AudioFormat;
use crate::{alaw, clip, resample, ulaw};
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

/// Where the sound of an item comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The tape, from this 24 kHz sample on.
    Tape(usize),
    /// These bytes, in the format the item is sent in.
    Clip(Vec<u8>),
}

/// A golden clip in a format, with its samples at 24 kHz and its words. A name that does not exist is silence of no
/// length.
pub(super) fn clip(format: AudioFormat, name: &str) -> (Source, usize, &'static str) {
    let Some(sound) = clip::sound(name) else { return (Source::Clip(Vec::new()), 0, "") };
    let samples = if format.rate() == 8_000 { &sound.narrow } else { &sound.wide };
    (Source::Clip(encode(format, samples)), sound.wide.len(), sound.words)
}

/// Recorded audio, and what it lacks to `ms` from the tape, with its samples at 24 kHz.
pub(super) fn recorded(format: AudioFormat, sound: &[u8], ms: u64, offset: usize) -> (Source, usize) {
    let width = format.sample_bytes();
    let wanted = usize::try_from(ms).unwrap_or(usize::MAX).saturating_mul(format.bytes_per_ms());
    let mut bytes = sound.to_vec();
    // A recording may end inside a sample; the tape keeps to the grid.
    let from = sound.len() % width;
    let to = from + wanted.saturating_sub(sound.len());
    bytes.extend(cut(format, &Source::Tape(offset), usize::MAX, from, to));
    let samples = bytes.len().div_ceil(width) * (24_000 / format.rate() as usize);
    (Source::Clip(bytes), samples)
}

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

/// Bytes `from..to` of an item's audio: `speech` samples of its source (in the format), then silence. A tape
/// begins again at its end, a clip does not.
pub(super) fn cut(format: AudioFormat, source: &Source, speech: usize, from: usize, to: usize) -> Vec<u8> {
    let (tape, silence): (&[u8], u8) = match format {
        AudioFormat::Pcm => (&WIDE, 0x00),
        AudioFormat::Pcmu => (&CODED_MU, 0xFF),
        AudioFormat::Pcma => (&CODED_A, alaw::SILENCE),
    };
    let speech = speech.saturating_mul(format.sample_bytes());
    let (sound, offset, speech) = match source {
        Source::Tape(offset) => {
            (tape, offset * format.rate() as usize / 24_000 * format.sample_bytes(), speech)
        }
        Source::Clip(bytes) => (bytes.as_slice(), 0, speech.min(bytes.len())),
    };
    let mut bytes = Vec::with_capacity(to - from);
    let mut at = from;
    while at < to.min(speech) {
        let place = (offset + at) % sound.len();
        let run = (sound.len() - place).min(to.min(speech) - at);
        bytes.extend_from_slice(&sound[place..place + run]);
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
        AudioFormat::Pcma => out.extend(bytes.iter().map(|&code| alaw::decode(code))),
    }
}

/// Encoded audio of linear samples.
pub(super) fn encode(format: AudioFormat, samples: &[i16]) -> Vec<u8> {
    match format {
        AudioFormat::Pcm => samples.iter().flat_map(|sample| sample.to_le_bytes()).collect(),
        AudioFormat::Pcmu => samples.iter().map(|&sample| ulaw::encode(sample)).collect(),
        AudioFormat::Pcma => alaw::encode_all(samples),
    }
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
            for source in [Source::Tape(719_997), clip(format, "agent_greeting").0] {
                let whole = cut(format, &source, 4_000, 0, 9_000);
                let mut parts = cut(format, &source, 4_000, 0, 3_333);
                parts.extend(cut(format, &source, 4_000, 3_333, 9_000));
                assert!(whole == parts, "{format:?}");
            }
        }
    }

    #[test]
    fn a_clip_is_the_recording_and_then_silence() {
        let recorded = golden::clip("agent_greeting").unwrap().samples;
        let (source, samples, words) = clip(AudioFormat::Pcm, "agent_greeting");
        assert_eq!((samples, words), (recorded.len(), golden::clip("agent_greeting").unwrap().words));
        let bytes = cut(AudioFormat::Pcm, &source, samples, 0, samples * 2 + 100);
        assert!(bytes[..samples * 2] == encode(AudioFormat::Pcm, recorded));
        assert!(bytes[samples * 2..].iter().all(|&byte| byte == 0));
        let (narrow, ..) = clip(AudioFormat::Pcmu, "agent_greeting");
        assert_eq!(narrow, Source::Clip(ulaw::encode_all(&resample::down(recorded))));
    }

    #[test]
    fn a_recording_is_said_to_its_last_byte_and_the_tape_goes_on_after_it() {
        for format in [AudioFormat::Pcm, AudioFormat::Pcmu] {
            let sound: Vec<u8> = (0..=250).collect();
            let (source, samples) = recorded(format, &sound, 0, 0);
            let speech = samples * format.rate() as usize / 24_000;
            assert!(cut(format, &source, speech, 0, 251) == sound, "{format:?}");
            let (source, samples) = recorded(format, &sound, 100, 0);
            assert_eq!(samples, 2_400);
            let odd = 251 % format.sample_bytes();
            let tape = cut(format, &Source::Tape(0), usize::MAX, odd, odd + 40);
            assert!(cut(format, &source, 2_400, 251, 291) == tape, "{format:?}");
        }
    }

    #[test]
    fn a_clip_that_does_not_exist_is_silence() {
        let (source, samples, _) = clip(AudioFormat::Pcmu, "song");
        assert_eq!(samples, 0);
        assert_eq!(cut(AudioFormat::Pcmu, &source, 80, 0, 80), [0xFF; 80]);
    }
}
