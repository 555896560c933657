//! Facts from outside the project: audio, vendor messages, codec tables. Depends on nothing of ours.
//!
//! Everything is embedded, so a binary that uses it needs no files. `MANIFEST.toml` lists each file with its
//! digest, its licence and how it was made; [`verify`] checks the embedded bytes against it, and
//! `cargo run -p golden --bin bless` does so from the command line. The recorded calls below `calls/` are listed, too,
//! but stay on disk ([`recorded`]): they are not facts, and `scn audio accept` writes them and their digests.

mod clips;
pub mod codec;
pub mod wire;

pub use clips::{Clip, KEY_OFF_MS, KEY_ON_MS, KEYS, clip, clips, dtmf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::sync::LazyLock;

/// Sample rate of [`agent_voice`], Hz.
pub const AGENT_RATE: u32 = 24_000;
/// Sample rate of [`caller_voice`], Hz.
pub const CALLER_RATE: u32 = 8_000;

static MANIFEST: &str = include_str!("../MANIFEST.toml");

/// Files by their path below `golden/`, as the manifest has it, embedded.
macro_rules! embed {
    ($($file:literal,)*) => { &[$(($file, include_bytes!(concat!("../", $file)).as_slice()),)*] };
}

static FILES: &[(&str, &[u8])] = embed![
    "speech/agent.wav",
    "speech/caller.wav",
    "speech/caller_question.wav",
    "speech/caller_stop.wav",
    "speech/caller_cough.wav",
    "speech/agent_greeting.wav",
    "speech/agent_answer.wav",
    "signals/sweep.wav",
    "signals/multitone.wav",
    "signals/dtmf.wav",
    "signals/silence.wav",
    "signals/full_scale.wav",
    "signals/clipping.wav",
    "signals/impulse.wav",
    "codec/ulaw.codes.bin",
    "codec/ulaw.levels.bin",
    "codec/alaw.codes.bin",
    "codec/alaw.levels.bin",
    "wire/twilio.jsonl",
    "wire/realtime.jsonl",
];

/// The agent's master voice: 30 s of mono PCM at 24 kHz, used as an endless tape.
///
/// A breathy voice that never rests: every 20 ms of it are speech to a voice detector, it has no energy outside
/// 250 to 3,300 Hz, so that the way through 8 kHz leaves it nearly as it is, and no two places of it (or of the
/// other voice) are alike, so that a listener can tell which part of which tape it hears.
pub fn agent_voice() -> &'static [i16] {
    static VOICE: LazyLock<Vec<i16>> = LazyLock::new(|| voice("speech/agent.wav", AGENT_RATE));
    &VOICE
}

/// The caller's master voice: 30 s of mono PCM at 8 kHz, with the properties of [`agent_voice`].
pub fn caller_voice() -> &'static [i16] {
    static VOICE: LazyLock<Vec<i16>> = LazyLock::new(|| voice("speech/caller.wav", CALLER_RATE));
    &VOICE
}

fn voice(file: &str, rate: u32) -> Vec<i16> {
    let (found, samples) = decoded(embedded(file).expect("the voices are embedded"));
    assert_eq!(found, rate, "{file} has its rate");
    samples
}

/// Rate and samples of an embedded recording.
fn decoded(wav: &[u8]) -> (u32, Vec<i16>) {
    let mut reader = hound::WavReader::new(Cursor::new(wav)).expect("an embedded recording is a WAV file");
    let samples = reader.samples::<i16>().map(|s| s.expect("an embedded recording is whole")).collect();
    (reader.spec().sample_rate, samples)
}

/// One file of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is called in conversation.
    pub name: String,
    /// Its path below `golden/`.
    pub file: String,
    /// SHA-256 of its bytes, lower-case hex.
    pub sha256: String,
    /// How long it plays, ms; 0 for what does not play.
    #[serde(default)]
    pub duration_ms: u64,
    /// Sample rate, Hz; 0 for what does not play.
    #[serde(default)]
    pub rate: u32,
    /// Under which terms it may be shipped.
    pub licence: String,
    /// How it was made.
    pub how: String,
}

/// The manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What is embedded, in file order.
    #[serde(rename = "file")]
    pub files: Vec<Entry>,
    /// The recorded calls, sorted by file.
    #[serde(rename = "call", default, skip_serializing_if = "Vec::is_empty")]
    pub calls: Vec<Entry>,
}

impl Manifest {
    /// Reads the manifest below the folder `golden` as it is now, which may be newer than the embedded one.
    ///
    /// # Errors
    /// When it cannot be read, or is not TOML of the documented shape.
    pub fn read(golden: &Path) -> anyhow::Result<Self> {
        let path = golden.join("MANIFEST.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is no manifest", path.display()))
    }

    /// Writes it below the folder `golden`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, golden: &Path) -> anyhow::Result<()> {
        let path = golden.join("MANIFEST.toml");
        let text = toml::to_string(self).context("the manifest does not serialise")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Lists a recorded call, in the place of what was listed for its file before.
    pub fn list_call(&mut self, call: Entry) {
        self.calls.retain(|listed| listed.file != call.file);
        let at = self.calls.partition_point(|listed| listed.file < call.file);
        self.calls.insert(at, call);
    }
}

/// The bytes of a recorded call, read from below the folder `golden` and checked against its manifest.
///
/// # Errors
/// When the file cannot be read, is not listed, or is not what was listed; and what to do about it.
pub fn recorded(golden: &Path, file: &str, manifest: &Manifest) -> anyhow::Result<Vec<u8>> {
    const MEND: &str = "restore both, or delete the file and let `cargo scn audio accept` write it";
    let bytes = fs::read(golden.join(file)).with_context(|| format!("cannot read golden/{file}"))?;
    let listed = manifest.calls.iter().find(|call| call.file == file);
    let listed = listed.with_context(|| format!("golden/{file} is not in MANIFEST.toml; {MEND}"))?;
    let found = digest(&bytes);
    ensure!(
        found == listed.sha256,
        "golden/{file}: digest {found} where MANIFEST.toml says {}; {MEND}",
        listed.sha256
    );
    Ok(bytes)
}

/// Reads the embedded manifest.
///
/// # Errors
/// When it is not TOML of the documented shape.
pub fn manifest() -> anyhow::Result<Manifest> {
    toml::from_str(MANIFEST).context("golden/MANIFEST.toml")
}

/// The embedded bytes of a file of the manifest.
fn embedded(file: &str) -> Option<&'static [u8]> {
    FILES.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes)
}

/// SHA-256 as lower-case hex.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Checks every embedded file against the manifest. Returns how many there are.
///
/// # Errors
/// The first file that is missing or whose digest differs, and what to do about it.
pub fn verify() -> anyhow::Result<usize> {
    let manifest = manifest()?;
    for entry in &manifest.files {
        let bytes = embedded(&entry.file)
            .with_context(|| format!("{} is in MANIFEST.toml but not embedded", entry.file))?;
        let found = digest(bytes);
        ensure!(
            found == entry.sha256,
            "{}: digest {found} where MANIFEST.toml says {}; restore the file, or accept it with \
             `cargo run -p golden --bin bless -- --write`",
            entry.file,
            entry.sha256
        );
    }
    Ok(manifest.files.len())
}

/// Samples at 8 kHz in 20 ms: what [`most_alike`] compares at once.
pub const WINDOW: usize = 160;

/// RMS of each 20 ms of a voice, dBFS.
pub fn levels_dbfs(voice: &[i16], rate: u32) -> Vec<f64> {
    voice
        .chunks(rate as usize / 50)
        .map(|window| {
            let power = window.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / window.len() as f64;
            10.0 * (power / 32_768f64.powi(2)).log10()
        })
        .collect()
}

/// Where `other` is most like the 20 ms of `tape` from `at`: the normalised correlation, sign aside, and the place.
///
/// Both are at 8 kHz. When both are the same recording (`same`), places less than 5 ms away from `at` are the
/// same place and do not count.
pub fn most_alike(tape: &[i16], at: usize, other: &[i16], same: bool) -> (f64, usize) {
    let wide = |x: &[i16]| x.iter().map(|&x| f32::from(x)).collect::<Vec<_>>();
    let energy = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
    let (window, other) = (wide(&tape[at..at + WINDOW]), wide(other));
    let own = energy(&window);
    let mut there = energy(&other[..WINDOW]);
    let mut best = (0.0, 0);
    for (place, pair) in other.windows(WINDOW + 1).enumerate() {
        if !same || place.abs_diff(at) >= 40 {
            let mut lanes = [0f32; 16];
            for (a, b) in window.chunks_exact(16).zip(pair.chunks_exact(16)) {
                lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a * b);
            }
            let likeness = f64::from(lanes.iter().sum::<f32>().abs()) / (own * there).sqrt();
            if likeness > best.0 {
                best = (likeness, place);
            }
        }
        there += f64::from(pair[WINDOW]).powi(2) - f64::from(pair[0]).powi(2);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_covers_every_embedded_file() {
        let listed: Vec<String> = manifest().unwrap().files.into_iter().map(|entry| entry.file).collect();
        let embedded: Vec<&str> = FILES.iter().map(|(file, _)| *file).collect();
        assert_eq!(listed, embedded);
        assert_eq!(verify().unwrap(), FILES.len());
    }

    #[test]
    fn every_recorded_call_is_what_the_manifest_lists() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = Manifest::read(golden).unwrap();
        assert!(!manifest.calls.is_empty());
        for call in &manifest.calls {
            recorded(golden, &call.file, &manifest).unwrap();
        }
        let mut files: Vec<_> = fs::read_dir(golden.join("calls"))
            .unwrap()
            .map(|entry| format!("calls/{}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        files.sort();
        assert_eq!(files, manifest.calls.iter().map(|call| call.file.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn a_recorded_call_with_another_bit_or_without_an_entry_is_refused() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR"));
        let file = "signals/impulse.wav";
        let mut manifest = Manifest::default();
        let why = |manifest: &Manifest| recorded(golden, file, manifest).unwrap_err().to_string();
        assert!(why(&manifest).contains("is not in MANIFEST.toml"));
        let mut bytes = embedded(file).unwrap().to_vec();
        let mut entry = super::manifest().unwrap().files.swap_remove(0);
        entry.file = file.to_owned();
        entry.sha256 = digest(&bytes);
        manifest.list_call(entry.clone());
        assert_eq!(recorded(golden, file, &manifest).unwrap(), bytes);
        bytes[1_000] ^= 1;
        entry.sha256 = digest(&bytes);
        manifest.list_call(entry);
        assert_eq!(manifest.calls.len(), 1, "a file is listed once");
        assert!(why(&manifest).contains("cargo scn audio accept"));
    }

    #[test]
    fn the_manifest_tells_how_long_the_voices_are() {
        for (file, voice, rate) in [
            ("speech/agent.wav", agent_voice(), AGENT_RATE),
            ("speech/caller.wav", caller_voice(), CALLER_RATE),
        ] {
            let manifest = manifest().unwrap();
            let entry = manifest.files.iter().find(|entry| entry.file == file).unwrap();
            assert_eq!((entry.rate, entry.duration_ms), (rate, 30_000), "{file}");
            assert_eq!(voice.len(), 30 * rate as usize, "{file}");
        }
    }

    #[test]
    fn the_voices_are_never_silent_and_never_clip() {
        for (voice, rate) in [(agent_voice(), AGENT_RATE), (caller_voice(), CALLER_RATE)] {
            for (window, level) in levels_dbfs(voice, rate).into_iter().enumerate() {
                assert!((-32.0..-6.0).contains(&level), "window {window}: {level:.1} dBFS");
            }
            let peak = voice.iter().map(|s| s.unsigned_abs()).max().unwrap();
            assert!(peak < 29_205, "peak {peak} is above -1 dBFS");
        }
    }

    #[test]
    fn no_two_places_of_the_voices_are_alike() {
        // The agent's band ends far below 4 kHz, so every third sample is the whole voice.
        let agent: Vec<i16> = agent_voice().iter().copied().step_by(3).collect();
        let tapes = [agent.as_slice(), caller_voice()];
        for (probe, at) in (0..24).map(|n| (n, n * 9_973)) {
            let tape = tapes[probe % 2];
            for other in tapes {
                let (likeness, place) = most_alike(tape, at, other, std::ptr::eq(tape, other));
                assert!(likeness < 0.6, "{at} and {place} correlate by {likeness:.2}");
            }
        }
    }

    #[test]
    fn a_place_is_found_again() {
        let voice = caller_voice();
        let (likeness, place) = most_alike(voice, 100_000, voice, false);
        assert_eq!(place, 100_000);
        assert!(likeness > 0.999);
    }

    #[test]
    fn the_voices_have_nothing_outside_their_band() {
        for (voice, rate, outside) in [
            (agent_voice(), AGENT_RATE, [60.0, 150.0, 245.0, 3_305.0, 4_000.0, 9_000.0].as_slice()),
            (caller_voice(), CALLER_RATE, [60.0, 150.0, 245.0, 3_305.0, 3_600.0, 3_900.0].as_slice()),
        ] {
            let inside: f64 =
                [500.0, 1_000.0, 2_000.0, 3_000.0].map(|hz| density(voice, rate, hz)).iter().sum();
            for &hz in outside {
                let below = 10.0 * (density(voice, rate, hz) * 4.0 / inside).log10();
                assert!(below < -55.0, "{hz} Hz is only {below:.1} dB below the band");
            }
        }
    }

    /// Mean power per bin of one second around `hz`, under a Hann window.
    fn density(voice: &[i16], rate: u32, hz: f64) -> f64 {
        use std::f64::consts::TAU;
        let second = rate as usize;
        let spectrum = voice.chunks_exact(second).map(|chunk| {
            let (re, im) = chunk.iter().enumerate().fold((0.0, 0.0), |(re, im), (n, &x)| {
                let t = n as f64 / f64::from(rate);
                let x = f64::from(x) * (0.5 - 0.5 * (TAU * t).cos());
                (re + x * (TAU * hz * t).cos(), im + x * (TAU * hz * t).sin())
            });
            re * re + im * im
        });
        spectrum.sum()
    }
}
