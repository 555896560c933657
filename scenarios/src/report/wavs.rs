//! What the two ends of a call heard, on the call's own time line: as audio to play and as peaks to draw.
//!
//! What was played to the caller is mu-law, so its file is exact, silence included. What the model was given at 24 kHz
//! is narrowed to 8 kHz, so that both files of a call are alike and small: 8,000 bytes for each second.

use crate::oracle::audio_attribution::{BYTES_PER_MS, narrowed};
use crate::sim::trace::CallTrace;
use mocks::peer::At;
use mocks::record::{ModelObservation, ModelRecord};
use mocks::{alaw, ulaw};

/// Milliseconds of audio that one letter of [`peaks`] stands for.
pub(crate) const PEAK_MS: usize = 5;
/// A file ends here, ms, whatever the call does.
const LONGEST_MS: u64 = 600_000;
/// Digital silence in mu-law.
const SILENCE: u8 = 0xFF;
/// The loudest sample mu-law has.
const LOUDEST: f64 = 32_124.0;
/// Letters of [`peaks`], from silence to the loudest sample.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A stretch of time with room for audio, mu-law at 8 kHz.
struct Track {
    from: At,
    audio: Vec<u8>,
}

impl Track {
    fn new(from: At, to: At) -> Self {
        let ms = to.since(from).div_ceil(1_000).min(LONGEST_MS);
        Self { from, audio: vec![SILENCE; ms as usize * BYTES_PER_MS] }
    }

    /// Puts audio where its first byte is due; what lies before the track or behind it is left out.
    fn place(&mut self, begin: i64, bytes: &[u8]) {
        let skipped = usize::try_from(-begin).unwrap_or(0).min(bytes.len());
        let at = usize::try_from(begin).unwrap_or(0).min(self.audio.len());
        let bytes = bytes.get(skipped..).unwrap_or_default();
        self.audio[at..].iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// Where this moment lies, in bytes.
    fn position(&self, at: At) -> i64 {
        (at.0 as i64 - self.from.0 as i64) / 125
    }
}

/// What was played to the caller.
pub(crate) fn caller(call: &CallTrace, from: At, to: At) -> Vec<u8> {
    let mut track = Track::new(from, to);
    for played in &call.caller.played {
        let bytes = call.caller.received.get(played.offset..played.offset + played.len).unwrap_or_default();
        track.place(track.position(played.at), bytes);
    }
    track.audio
}

/// What the model was given, on all its connections. Each piece ends when it arrived; what came in a burst reaches
/// as far back as it is long, which is where it was spoken.
pub(crate) fn model(call: &CallTrace, from: At, to: At) -> Vec<u8> {
    let mut track = Track::new(from, to);
    for model in &call.models {
        let (given, bytes_per_sample) = given(model);
        let mut next = i64::MAX;
        for seen in model.observations.iter().rev() {
            let ModelObservation::GotAppend { offset, len } = seen.what else { continue };
            let (offset, len) = (offset / bytes_per_sample, len / bytes_per_sample);
            let begin = next.min(track.position(seen.at)) - len as i64;
            track.place(begin, given.get(offset..offset + len).unwrap_or_default());
            next = begin;
        }
    }
    track.audio
}

/// Everything one connection was given, as mu-law, and how many bytes of the original each sample was.
fn given(model: &ModelRecord) -> (Vec<u8>, usize) {
    match model.input_format.as_str() {
        "audio/pcmu" => (model.appended.clone(), 1),
        "audio/pcma" => (ulaw::encode_all(&alaw::decode_all(&model.appended)), 1),
        _ => {
            let (pairs, _) = model.appended.as_chunks();
            let samples: Vec<i16> = pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
            (ulaw::encode_all(&narrowed(&samples)), 6)
        }
    }
}

/// The loudest sample of every 5 ms as one letter: 64 steps of the square root of its share of the loudest there is, so that a
/// quiet voice can still be seen.
pub(crate) fn peaks(audio: &[u8]) -> String {
    let letter = |part: &[u8]| {
        let peak = part.iter().map(|code| ulaw::decode(*code).unsigned_abs()).max().unwrap_or(0);
        let step = (f64::from(peak) / LOUDEST).sqrt() * (LETTERS.len() - 1) as f64;
        char::from(LETTERS[step.round() as usize])
    };
    audio.chunks(PEAK_MS * BYTES_PER_MS).map(letter).collect()
}

/// A WAV file of mu-law: what telephone audio is kept in, and every browser plays it.
pub(crate) fn wav(audio: &[u8]) -> Vec<u8> {
    const MULAW: u16 = 7;
    const RATE: u32 = 8_000;
    let len = audio.len() as u32;
    let mut wav = Vec::with_capacity(audio.len() + 58);
    wav.extend(b"RIFF");
    wav.extend((50 + len + len % 2).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(18_u32.to_le_bytes());
    for word in [MULAW, 1] {
        wav.extend(word.to_le_bytes());
    }
    for word in [RATE, RATE] {
        wav.extend(word.to_le_bytes());
    }
    // Bytes and bits of a sample, and nothing more about the format.
    for word in [1_u16, 8, 0] {
        wav.extend(word.to_le_bytes());
    }
    wav.extend(b"fact");
    wav.extend(4_u32.to_le_bytes());
    wav.extend(len.to_le_bytes());
    wav.extend(b"data");
    wav.extend(len.to_le_bytes());
    wav.extend(audio);
    wav.extend(std::iter::repeat_n(SILENCE, audio.len() % 2));
    wav
}

#[cfg(test)]
mod tests {
    use super::*;
    use mocks::record::{CallerRecord, Observation, Played};

    fn loud(ms: usize) -> Vec<u8> {
        vec![0x80; ms * BYTES_PER_MS]
    }

    #[test]
    fn a_track_is_silent_where_nothing_played() {
        let caller_record = CallerRecord {
            received: loud(40),
            played: vec![Played { at: At::ms(120), offset: 160, len: 160 }],
            ..CallerRecord::default()
        };
        let call = CallTrace { caller: caller_record, ..CallTrace::default() };
        let audio = caller(&call, At::ms(100), At::ms(160));
        assert_eq!(audio.len(), 480);
        assert!(audio[..160].iter().chain(&audio[320..]).all(|code| *code == SILENCE));
        assert_eq!(audio[160..320], loud(20));
    }

    #[test]
    fn a_burst_reaches_back_to_where_it_was_spoken() {
        let append = |ms, offset, len| Observation {
            at: At::ms(ms),
            what: ModelObservation::GotAppend { offset, len },
        };
        let model_record = ModelRecord {
            input_format: "audio/pcmu".into(),
            appended: loud(60),
            observations: vec![append(100, 0, 160), append(100, 160, 160), append(140, 320, 160)],
            ..ModelRecord::default()
        };
        let call = CallTrace { models: vec![model_record], ..CallTrace::default() };
        let audio = model(&call, At(0), At::ms(160));
        let quiet = |from: usize, to: usize| audio[from * 8..to * 8].iter().all(|code| *code == SILENCE);
        assert!(quiet(0, 60) && !quiet(60, 61) && !quiet(99, 100) && quiet(100, 120) && !quiet(120, 121));
        // What was spoken before the call is left out.
        let late = model(&call, At::ms(80), At::ms(160));
        assert_eq!(late[..160], loud(20));
        assert_eq!(late.len(), 640);
    }

    #[test]
    fn peaks_go_from_the_first_letter_to_the_last() {
        assert_eq!(peaks(&[SILENCE; 40]), "A");
        assert_eq!(peaks(&[vec![SILENCE; 40], loud(5)].concat()), "A_");
        assert_eq!(peaks(&[]), "");
    }

    #[test]
    fn a_wav_file_says_what_is_in_it() {
        let wav = wav(&[0x80; 801]);
        let word = |at: usize| u32::from_le_bytes([wav[at], wav[at + 1], wav[at + 2], wav[at + 3]]);
        assert_eq!(word(4) as usize, wav.len() - 8);
        assert_eq!((word(20), word(24), word(54)), (0x1_0007, 8_000, 801));
        assert_eq!(wav.len(), 58 + 802, "chunks have an even length");
    }
}
