//! Short recordings that a scenario plays by name: what people say, and what measuring instruments do.
//!
//! The two voices of the crate are tapes without end, made so that a machine can tell every place of them. Clips
//! are what a real line carries: words with pauses between them, a cough, keys, silence, overload.

use std::sync::LazyLock;

/// One clip, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clip {
    /// What it is played by.
    pub name: &'static str,
    /// Samples per second: 8,000 for what a caller's line carries, 24,000 for what a model says.
    pub rate: u32,
    /// Mono, linear.
    pub samples: &'static [i16],
    /// Whether a person makes the sound; a signal is made by an instrument.
    pub is_speech: bool,
    /// The words that are said, if any.
    pub words: &'static str,
}

impl Clip {
    /// How long it plays, ms. Clips last whole frames of 20 ms.
    pub fn duration_ms(&self) -> u64 {
        self.samples.len() as u64 * 1_000 / u64::from(self.rate)
    }
}

/// The keys of a telephone, in the order of the clip `dtmf`.
pub const KEYS: &str = "0123456789*#ABCD";
/// How long a key of the clip `dtmf` sounds, ms.
pub const KEY_ON_MS: u64 = 100;
/// How long the silence after a key of the clip `dtmf` is, ms.
pub const KEY_OFF_MS: u64 = 60;
/// Sample rate of the clip `dtmf`, Hz.
const KEY_RATE: u64 = 8_000;

struct Source {
    name: &'static str,
    file: &'static str,
    is_speech: bool,
    words: &'static str,
}

const fn said(name: &'static str, file: &'static str, words: &'static str) -> Source {
    Source { name, file, is_speech: true, words }
}

const fn signal(name: &'static str, file: &'static str) -> Source {
    Source { name, file, is_speech: false, words: "" }
}

const SOURCES: &[Source] = &[
    said("caller_question", "speech/caller_question.wav", "Hello, when are you open on Saturday?"),
    said("caller_stop", "speech/caller_stop.wav", "Stop, please."),
    said("caller_cough", "speech/caller_cough.wav", ""),
    said("agent_greeting", "speech/agent_greeting.wav", "Hello, flower shop. How can I help you?"),
    said(
        "agent_answer",
        "speech/agent_answer.wav",
        "On Saturday we are open from nine until two. If you call before noon, your flowers are ready the same day.",
    ),
    signal("sweep", "signals/sweep.wav"),
    signal("multitone", "signals/multitone.wav"),
    signal("dtmf", "signals/dtmf.wav"),
    signal("silence", "signals/silence.wav"),
    signal("full_scale", "signals/full_scale.wav"),
    signal("clipping", "signals/clipping.wav"),
    signal("impulse", "signals/impulse.wav"),
];

static LOADED: LazyLock<Vec<(u32, Vec<i16>)>> = LazyLock::new(|| {
    SOURCES
        .iter()
        .map(|source| crate::decoded(crate::embedded(source.file).expect("every clip is embedded")))
        .collect()
});

/// The clip of this name.
pub fn clip(name: &str) -> Option<Clip> {
    let place = SOURCES.iter().position(|source| source.name == name)?;
    let (Source { name, is_speech, words, .. }, (rate, samples)) = (&SOURCES[place], &LOADED[place]);
    Some(Clip { name, rate: *rate, samples, is_speech: *is_speech, words })
}

/// The names of all clips: speech first, then signals.
pub fn clips() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|source| source.name)
}

/// The sound of a key, at 8 kHz: [`KEY_ON_MS`] of its two tones and [`KEY_OFF_MS`] of silence. `None` for a
/// character that is on no telephone.
pub fn dtmf(key: char) -> Option<&'static [i16]> {
    let place = KEYS.find(key)?;
    let length = ((KEY_ON_MS + KEY_OFF_MS) * KEY_RATE / 1_000) as usize;
    clip("dtmf")?.samples.get(place * length..(place + 1) * length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec, levels_dbfs, manifest};
    use std::f64::consts::TAU;

    fn of(name: &str) -> Clip {
        clip(name).unwrap()
    }

    /// RMS, dBFS.
    fn level(samples: &[i16]) -> f64 {
        levels_dbfs(samples, samples.len() as u32 * 50)[0]
    }

    fn peak(samples: &[i16]) -> u16 {
        samples.iter().map(|x| x.unsigned_abs()).max().unwrap()
    }

    /// The peak amplitude of a tone in the samples, by the correlation that Goertzel's recurrence computes.
    fn tone(samples: &[i16], hz: f64, rate: u32) -> f64 {
        let step = TAU * hz / f64::from(rate);
        let (mut s1, mut s2) = (0.0, 0.0);
        for &x in samples {
            (s1, s2) = (f64::from(x) + 2.0 * step.cos() * s1 - s2, s1);
        }
        let power = s1 * s1 + s2 * s2 - 2.0 * step.cos() * s1 * s2;
        power.max(0.0).sqrt() * 2.0 / samples.len() as f64
    }

    #[test]
    fn every_clip_lasts_as_long_as_the_manifest_says() {
        let manifest = manifest().unwrap();
        for source in SOURCES {
            let entry = manifest.files.iter().find(|entry| entry.file == source.file).unwrap();
            let clip = of(source.name);
            assert_eq!((entry.rate, entry.duration_ms), (clip.rate, clip.duration_ms()), "{}", clip.name);
            assert_eq!(clip.duration_ms() % 20, 0, "{} lasts whole frames", clip.name);
            assert_eq!(clip.samples.len() as u64, clip.duration_ms() * u64::from(clip.rate) / 1_000);
        }
        assert_eq!(clips().count(), SOURCES.len());
        assert_eq!(clip("song"), None);
    }

    #[test]
    fn people_speak_at_minus_twenty_and_never_clip() {
        for (name, rate, from_ms, to_ms) in [
            ("caller_question", 8_000, 1_800, 2_400),
            ("caller_stop", 8_000, 700, 1_000),
            ("caller_cough", 8_000, 240, 500),
            ("agent_greeting", 24_000, 1_800, 2_800),
            ("agent_answer", 24_000, 5_500, 6_500),
        ] {
            let clip = of(name);
            assert!(clip.is_speech && clip.rate == rate, "{name}");
            assert!((from_ms..to_ms).contains(&clip.duration_ms()), "{name}: {} ms", clip.duration_ms());
            assert!((level(clip.samples) + 20.0).abs() < 0.2, "{name}: {:.2} dBFS", level(clip.samples));
            assert!(peak(clip.samples) < 29_205, "{name} peaks above -1 dBFS");
        }
    }

    #[test]
    fn people_begin_at_once_and_pause_for_less_than_a_turn_detector_waits() {
        for clip in clips().map(of).filter(|clip| clip.is_speech) {
            let levels = levels_dbfs(clip.samples, clip.rate);
            let first = levels.iter().position(|&level| level > -42.0).unwrap();
            assert!(first <= 1, "{} begins after {first} frames", clip.name);
            let longest = levels.split(|&level| level > -42.0).map(<[f64]>::len).max().unwrap();
            assert!(longest * 20 < 400, "{} pauses for {} ms", clip.name, longest * 20);
        }
    }

    #[test]
    fn the_words_are_those_the_synthesiser_was_given() {
        let script = include_str!("../make-speech.sh");
        for clip in clips().map(of).filter(|clip| !clip.words.is_empty()) {
            let line = format!("clip {} ", clip.name);
            let (_, rest) = script.split_once(&line).unwrap();
            assert_eq!(rest.split('"').nth(1), Some(clip.words), "{}", clip.name);
        }
    }

    #[test]
    fn each_key_is_its_two_tones_at_their_levels_and_then_silence() {
        const LOW: [f64; 4] = [697.0, 770.0, 852.0, 941.0];
        const HIGH: [f64; 4] = [1_209.0, 1_336.0, 1_477.0, 1_633.0];
        // A sine of 0 dBm0 stays 3.17 dB below the largest level of mu-law.
        let dbm0 = |peak: f64| 20.0 * (peak / 32_124.0).log10() + 3.17;
        for (row, keys) in ["123A", "456B", "789C", "*0#D"].iter().enumerate() {
            for (column, key) in keys.chars().enumerate() {
                let sound = dtmf(key).unwrap();
                assert_eq!(sound.len(), 1_280);
                assert!(sound[800..].iter().all(|&x| x == 0), "{key} ends");
                // The middle 80 ms, away from the ramps: the tones are then resolved to 12.5 Hz.
                let steady = &sound[80..720];
                for (group, own, expected) in [(LOW, row, -10.0), (HIGH, column, -8.0)] {
                    for (place, hz) in group.into_iter().enumerate() {
                        let found = dbm0(tone(steady, hz, 8_000));
                        if place == own {
                            assert!((found - expected).abs() < 0.5, "{key}: {hz} Hz at {found:.2} dBm0");
                        } else {
                            assert!(found < expected - 12.0, "{key}: also {hz} Hz at {found:.2} dBm0");
                        }
                    }
                }
            }
        }
        assert_eq!(dtmf('x'), None);
    }

    #[test]
    fn silence_is_both_zeros_of_mu_law_in_equal_parts() {
        let codes: Vec<u8> = of("silence").samples.iter().map(|&x| codec::ulaw(x)).collect();
        let high = codes.iter().filter(|&&code| code == 0xFF).count();
        let low = codes.iter().filter(|&&code| code == 0x7F).count();
        assert_eq!(high + low, codes.len(), "nothing but the zeros");
        assert!(high.abs_diff(low) < codes.len() / 20, "{high} {low}");
        let changes = codes.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(changes.abs_diff(codes.len() / 2) < codes.len() / 20, "{changes} changes");
    }

    #[test]
    fn the_sweep_rises_from_100_to_3900_hz_at_one_level() {
        let clip = of("sweep");
        // Zero crossings of a tenth of a second: two in each period.
        let rising: Vec<f64> = clip
            .samples
            .chunks_exact(800)
            .map(|part| {
                let crossings = part.windows(2).filter(|two| (two[0] < 0) != (two[1] < 0)).count();
                crossings as f64 * 5.0
            })
            .collect();
        assert_eq!(rising.len(), 30);
        for (tenth, hz) in rising.into_iter().enumerate() {
            let expected = 100.0 + 3_800.0 * (tenth as f64 + 0.5) / 30.0;
            assert!((hz - expected).abs() < 25.0, "{hz} Hz in tenth {tenth}");
        }
        for level in levels_dbfs(&clip.samples[160..], 8_000) {
            assert!((level + 13.0).abs() < 0.8, "{level:.2} dBFS");
        }
    }

    #[test]
    fn the_multitone_is_22_equal_tones_and_nothing_between() {
        let samples = &of("multitone").samples[..8_000];
        assert!((level(samples) + 20.0).abs() < 0.1, "{:.2} dBFS", level(samples));
        let own = 32_768.0 * 0.1 * (2.0 / 22f64).sqrt();
        for k in 0..22 {
            let hz = 250.0 + 150.0 * f64::from(k);
            let off_db = 20.0 * (tone(samples, hz, 8_000) / own).log10();
            assert!(off_db.abs() < 0.1, "{hz} Hz is off by {off_db:.2} dB");
            let between = 20.0 * (tone(samples, hz + 75.0, 8_000).max(1e-9) / own).log10();
            assert!(between < -60.0, "{} Hz at {between:.1} dB", hz + 75.0);
        }
    }

    #[test]
    fn loud_signals_are_as_loud_as_samples_can_be() {
        let (full, over) = (of("full_scale").samples, of("clipping").samples);
        assert_eq!((full.iter().max(), peak(full)), (Some(&32_767), 32_767));
        assert!((level(full) + 3.01).abs() < 0.01, "{:.3} dBFS", level(full));
        assert!((tone(full, 1_000.0, 8_000) - 32_767.0).abs() < 10.0);
        let at_the_limits = over.iter().filter(|x| x.unsigned_abs() >= 32_767).count();
        assert!(at_the_limits * 10 > over.len() * 7, "{at_the_limits} of {}", over.len());
        assert!(tone(over, 3_000.0, 8_000) > 5_000.0, "clipping makes harmonics");
    }

    #[test]
    fn an_impulse_is_one_sample() {
        let samples = of("impulse").samples;
        let sounds: Vec<_> = samples.iter().enumerate().filter(|(_, x)| **x != 0).collect();
        assert_eq!(sounds, [(2_000, &32_767), (6_000, &-32_768)]);
    }
}
