//! Golden audio: what the two ends of chosen calls heard, kept as WAV files below `golden/calls`.
//!
//! An oracle says that the audio of a call is not wrong; a recording says that it is the same audio as before,
//! sample for sample. The calls are played in memory with one seed. The simulated backend delivers a message at the
//! next tick of its network, so what it plays is the same audio some milliseconds away: that is judged by the
//! oracles and not recorded.
//!
//! `scn audio check` shows what changed, and `scn audio accept` writes the files; nothing else writes them.

use crate::audio::diff::Difference;
pub use crate::audio::diff::Recording;
use crate::model::backend::Backend;
use crate::model::catalogue;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::sim;
use crate::sim::trace::{CallTrace, Trace};
use anyhow::{Context as _, ensure};
use golden::{Entry, Manifest};
use mocks::peer::At;
use mocks::record::{CallerObservation, ModelObservation};
use mocks::ulaw;
use std::fmt;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// The seed every recording is made with.
pub const SEED: Seed = Seed(1);
/// A recording ends here, s: long enough for every interruption in it, short enough for a repository.
pub const LONGEST_S: usize = 12;
/// Sample rate of what the caller hears, Hz.
pub const CALLER_RATE: u32 = 8_000;

/// A call that is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The scenario of the catalogue.
    pub scenario: &'static str,
    /// Whether what the model received is kept, too. What the caller heard always is.
    pub received: bool,
}

/// The calls that are recorded: each way of coding, each thing that cuts, delays or re-cuts audio.
pub const CHOSEN: &[Chosen] = &[
    Chosen { scenario: "greeting/plain", received: true },
    Chosen { scenario: "greeting/pcmu", received: true },
    Chosen { scenario: "barge_in/mid_answer", received: true },
    Chosen { scenario: "barge_in/pcmu", received: false },
    Chosen { scenario: "dtmf/interrupts_the_answer", received: true },
    Chosen { scenario: "network/silence_left_out_after_speech", received: true },
    Chosen { scenario: "turns/stall_then_burst", received: false },
    Chosen { scenario: "turns/odd_deltas", received: false },
    Chosen { scenario: "audio/tones_muted", received: true },
];

/// A chosen call, played.
#[derive(Clone, Debug)]
pub struct Played {
    /// What was heard at its ends.
    pub recordings: Vec<Recording>,
    /// Every interruption in it.
    pub drains: Vec<Drain>,
}

/// How a recording stands to its file.
#[derive(Clone, Debug)]
pub enum Standing {
    /// The same, sample for sample.
    Same,
    /// There is no file yet.
    New,
    /// The file holds something else.
    Changed {
        /// What the file holds.
        before: Recording,
        /// How they differ.
        difference: Box<Difference>,
    },
}

/// The scenarios and how they are recorded whose name contains `pattern`.
///
/// # Errors
/// When the catalogue cannot be read, or lacks a chosen scenario.
pub fn chosen(pattern: Option<&str>) -> anyhow::Result<Vec<(Chosen, Scenario)>> {
    let all = catalogue::check()?;
    let wanted = |chosen: &&Chosen| pattern.is_none_or(|pattern| chosen.scenario.contains(pattern));
    let scenario = |chosen: &Chosen| {
        let found = all.iter().find(|scenario| scenario.name == chosen.scenario);
        let found =
            found.with_context(|| format!("{} is recorded but not in the catalogue", chosen.scenario))?;
        Ok((*chosen, found.clone()))
    };
    CHOSEN.iter().filter(wanted).map(scenario).collect()
}

/// Plays one call in memory and records both of its ends.
///
/// # Errors
/// When the model was never connected although its end is to be recorded.
pub fn play(chosen: Chosen, scenario: &Scenario) -> anyhow::Result<Played> {
    let trace = sim::play(Backend::Memory, scenario, SEED);
    let call = trace.calls.first().with_context(|| format!("{} has no call", scenario.name))?;
    let mut recordings = vec![heard(&scenario.name, call)];
    if chosen.received {
        let received = received(&scenario.name, call);
        recordings.push(received.with_context(|| format!("{}: no model was reached", scenario.name))?);
    }
    Ok(Played { recordings, drains: drains(&trace, 0) })
}

/// What the caller heard from the open WebSocket to its end, silent where nothing played.
pub fn heard(scenario: &str, call: &CallTrace) -> Recording {
    let longest = LONGEST_S * CALLER_RATE as usize;
    let opened = opened(call);
    let place = |at: At| (at.since(opened) / 125) as usize;
    let ended = call.caller.observations.iter().find(|seen| matches!(seen.what, CallerObservation::Ended(_)));
    let last_played = call.caller.played.last().map(|played| played.end());
    let end = ended.map(|seen| seen.at).into_iter().chain(last_played).max().unwrap_or(opened);
    let mut samples = vec![0; place(end).min(longest)];
    for played in &call.caller.played {
        let bytes = call.caller.received.get(played.offset..played.offset + played.len).unwrap_or_default();
        let from = place(played.at).min(samples.len());
        samples[from..].iter_mut().zip(bytes).for_each(|(sample, code)| *sample = ulaw::decode(*code));
    }
    Recording { name: file_name(scenario, "heard"), rate: CALLER_RATE, samples }
}

/// What the model was given on its first connection, from its first byte; `None` when there was none.
pub fn received(scenario: &str, call: &CallTrace) -> Option<Recording> {
    let model = call.models.first()?;
    let coded = |decode: fn(u8) -> i16| model.appended.iter().map(|code| decode(*code)).collect();
    let (rate, mut samples): (u32, Vec<i16>) = match model.input_format.as_str() {
        "audio/pcmu" => (8_000, coded(ulaw::decode)),
        "audio/pcma" => (8_000, coded(mocks::alaw::decode)),
        _ => {
            let (pairs, _) = model.appended.as_chunks();
            (24_000, pairs.iter().map(|pair| i16::from_le_bytes(*pair)).collect())
        }
    };
    samples.truncate(LONGEST_S * rate as usize);
    Some(Recording { name: file_name(scenario, "received"), rate, samples })
}

fn opened(call: &CallTrace) -> At {
    let opened = call.caller.observations.iter().find(|seen| matches!(seen.what, CallerObservation::Opened));
    opened.map_or(At(0), |seen| seen.at)
}

fn file_name(scenario: &str, end: &str) -> String {
    format!("{}.{end}", scenario.replace('/', "__"))
}

// ---------------------------------------------------------------------------------------------------- files

/// The root of the repository this program was built from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where the manifest is kept.
fn golden_folder() -> PathBuf {
    root().join("golden")
}

/// Where the recordings are kept.
pub fn folder() -> PathBuf {
    root().join("golden/calls")
}

impl Recording {
    /// Its file, seen from the root of the repository.
    pub fn file(&self) -> String {
        format!("golden/calls/{}.wav", self.name)
    }

    /// Holds it against its file.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn standing(&self, drains: &[Drain]) -> anyhow::Result<Standing> {
        let path = folder().join(format!("{}.wav", self.name));
        if !path.exists() {
            return Ok(Standing::New);
        }
        let bytes =
            golden::recorded(&golden_folder(), &self.entry_file(), &Manifest::read(&golden_folder())?)?;
        let before = Self::from_wav(&self.name, &bytes)?;
        let interrupted: Vec<f64> = if self.name.ends_with(".heard") {
            drains.iter().map(|d| d.from_open_ms).collect()
        } else {
            vec![]
        };
        Ok(match Difference::between(&before, self, &interrupted) {
            None => Standing::Same,
            Some(difference) => Standing::Changed { before, difference: Box::new(difference) },
        })
    }

    /// Writes its file and lists it in the manifest.
    ///
    /// # Errors
    /// When one of them cannot be written.
    pub fn save(&self) -> anyhow::Result<()> {
        let path = folder().join(format!("{}.wav", self.name));
        let wav = self.to_wav();
        fs::create_dir_all(folder()).with_context(|| format!("cannot make {}", folder().display()))?;
        fs::write(&path, &wav).with_context(|| format!("cannot write {}", path.display()))?;
        let mut manifest = Manifest::read(&golden_folder())?;
        manifest.list_call(self.entry(&wav));
        manifest.write(&golden_folder())
    }

    /// Its file, seen from the folder of the manifest.
    fn entry_file(&self) -> String {
        format!("calls/{}.wav", self.name)
    }

    /// What the manifest says of it.
    fn entry(&self, wav: &[u8]) -> Entry {
        let call = self.name.replace("__", "/");
        let (call, what) = match call.strip_suffix(".heard") {
            Some(call) => (call, "the caller heard"),
            None => (call.trim_end_matches(".received"), "the model received"),
        };
        Entry {
            name: format!("what {what} in {call}"),
            file: self.entry_file(),
            sha256: golden::digest(wav),
            duration_ms: self.samples.len() as u64 * 1_000 / u64::from(self.rate),
            rate: self.rate,
            licence: "MIT OR Apache-2.0: ours, the files above as a call carries them".to_owned(),
            how: format!("cargo scn audio accept: {call} in memory with seed {SEED}, at most {LONGEST_S} s"),
        }
    }

    /// A WAV file of one channel of 16-bit samples.
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    pub fn to_wav(&self) -> Vec<u8> {
        let spec = hound::WavSpec {
            channels: 1,
            sample_rate: self.rate,
            bits_per_sample: 16,
            sample_format: hound::SampleFormat::Int,
        };
        let mut wav = Cursor::new(Vec::new());
        let written = hound::WavWriter::new(&mut wav, spec).and_then(|mut writer| {
            self.samples.iter().try_for_each(|&sample| writer.write_sample(sample))?;
            writer.finalize()
        });
        written.expect("writing to memory does not fail");
        wav.into_inner()
    }

    /// Reads what [`Recording::to_wav`] wrote.
    ///
    /// # Errors
    /// When it is anything else: a recording is not to be edited with other programs.
    pub fn from_wav(name: &str, wav: &[u8]) -> anyhow::Result<Self> {
        let mut recording = Self { name: name.to_owned(), rate: 0, samples: Vec::new() };
        if let Ok(mut reader) = hound::WavReader::new(wav) {
            recording.rate = reader.spec().sample_rate;
            recording.samples = reader.samples().collect::<Result<_, _>>().unwrap_or_default();
        }
        ensure!(
            recording.rate > 0 && recording.to_wav() == wav,
            "{} is not as `scn audio accept` writes it; restore it, or delete it and let `cargo scn audio accept` write it",
            recording.file()
        );
        Ok(recording)
    }
}

/// Files below `golden/calls`, there or only listed in the manifest, that no chosen call makes, sorted.
///
/// # Errors
/// When the folder or the manifest cannot be read.
pub fn strays() -> anyhow::Result<Vec<PathBuf>> {
    let ours: Vec<String> = CHOSEN
        .iter()
        .flat_map(|chosen| {
            let heard = file_name(chosen.scenario, "heard");
            let received = chosen.received.then(|| file_name(chosen.scenario, "received"));
            [Some(heard), received].into_iter().flatten().map(|name| name + ".wav")
        })
        .collect();
    let mut found: Vec<PathBuf> =
        Manifest::read(&golden_folder())?.calls.iter().map(|call| golden_folder().join(&call.file)).collect();
    if folder().exists() {
        for entry in fs::read_dir(folder()).with_context(|| format!("cannot read {}", folder().display()))? {
            found.push(entry?.path());
        }
    }
    let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    found.retain(|path| name(path).ends_with(".wav") && !ours.contains(&name(path)));
    found.sort();
    found.dedup();
    Ok(found)
}

/// Removes a stray file and what the manifest says of it.
///
/// # Errors
/// When the file or the manifest cannot be changed.
pub fn remove(stray: &Path) -> anyhow::Result<()> {
    if stray.exists() {
        fs::remove_file(stray).with_context(|| format!("cannot remove {}", stray.display()))?;
    }
    let mut manifest = Manifest::read(&golden_folder())?;
    manifest.calls.retain(|call| golden_folder().join(&call.file) != stray);
    manifest.write(&golden_folder())
}

// --------------------------------------------------------------------------------------------------- drains

/// How long the agent went on after the caller took the floor, and whose time it was. All ms.
#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// `a word` or `a key`.
    pub by: &'static str,
    /// When it left the caller, from the open WebSocket.
    pub from_open_ms: f64,
    /// From there to the last sample of the agent that was played.
    pub total: f64,
    /// Until the model decided that this is speech; its own time, without the way there. 0 for a key.
    pub detection: f64,
    /// On the way, there and back, as the scenario's network has it.
    pub network: f64,
    /// Within the bridge.
    pub bridge: f64,
    /// From the `clear` at Twilio's end to the last sample; less than 0 when nothing was playing any more.
    pub carrier: f64,
}

impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, from_open_ms, total, detection, network, bridge, carrier } = self;
        write!(
            f,
            "{by} at {:+.3} s: the agent was heard for {total:.1} ms more (detection {detection:.1}, network \
             {network:.1}, bridge {bridge:.1}, carrier {carrier:.1})",
            from_open_ms / 1e3
        )
    }
}

/// Every interruption of a call that reached the caller's end as a `clear`. Exact in an ideal network, where the
/// network's part is known; elsewhere its delays count as the bridge's.
pub fn drains(trace: &Trace, call: usize) -> Vec<Drain> {
    let Some(call) = trace.calls.get(call) else { return Vec::new() };
    let network = &trace.scenario.network;
    let (caller_leg, model_leg) = (network.caller.latency_ms as f64, network.model.latency_ms as f64);
    let ms = |from: At, to: At| (to.0 as f64 - from.0 as f64) / 1e3;
    let opened = opened(call);
    let mut drains = Vec::new();
    let mut taken: Option<(At, bool)> = None;
    for seen in &call.caller.observations {
        match &seen.what {
            CallerObservation::SpeechBegan { .. } => taken = Some((seen.at, false)),
            CallerObservation::SentDtmf { .. } => taken = Some((seen.at, true)),
            CallerObservation::GotClear { .. } => {
                let Some((began, key)) = taken.take() else { continue };
                let last = call.caller.played.iter().rev().find(|played| played.at <= seen.at);
                // What had fallen silent before was not interrupted.
                let Some(last) = last.map(|played| played.end()).filter(|last| *last > began) else {
                    continue;
                };
                let noticed = call.models.iter().flat_map(|model| &model.observations).find(|sight| {
                    matches!(sight.what, ModelObservation::SentSpeechStarted { .. }) && sight.at >= began
                });
                let (detection, network) = match noticed.filter(|sight| !key && sight.at <= seen.at) {
                    Some(sight) => {
                        (ms(began, sight.at) - caller_leg - model_leg, 2.0 * (caller_leg + model_leg))
                    }
                    None => (0.0, 2.0 * caller_leg),
                };
                drains.push(Drain {
                    by: if key { "a key" } else { "a word" },
                    from_open_ms: ms(opened, began),
                    total: ms(began, last),
                    detection,
                    network,
                    bridge: ms(began, seen.at) - detection - network,
                    carrier: ms(seen.at, last),
                });
            }
            CallerObservation::Opened
            | CallerObservation::Refused { .. }
            | CallerObservation::SentConnected
            | CallerObservation::SentStart
            | CallerObservation::SentMedia { .. }
            | CallerObservation::SentMark { .. }
            | CallerObservation::SentStop
            | CallerObservation::SentRaw { .. }
            | CallerObservation::SpeechEnded { .. }
            | CallerObservation::GotMedia { .. }
            | CallerObservation::GotMark { .. }
            | CallerObservation::Warned { .. }
            | CallerObservation::GotPing
            | CallerObservation::WentQuiet { .. }
            | CallerObservation::Step { .. }
            | CallerObservation::StatusCallback { .. }
            | CallerObservation::Ended(_) => {}
        }
    }
    drains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wav_file_is_read_as_it_was_written_and_nothing_else_is() {
        let recording =
            Recording { name: "x".into(), rate: 8_000, samples: vec![0, 1, -1, i16::MAX, i16::MIN] };
        let wav = recording.to_wav();
        assert_eq!(Recording::from_wav("x", &wav).unwrap(), recording);
        assert_eq!(wav.len(), 44 + 10);
        for broken in [&wav[..43], &wav[..wav.len() - 1], b"RIFF", b""] {
            assert!(Recording::from_wav("x", broken).is_err());
        }
    }

    #[test]
    fn a_recording_is_as_long_as_the_call_and_silent_before_the_agent_speaks() {
        for (chosen, scenario) in chosen(Some("greeting/plain")).unwrap() {
            let played = play(chosen, &scenario).unwrap();
            let heard = &played.recordings[0];
            assert_eq!(heard.name, "greeting__plain.heard");
            let first = heard.samples.iter().position(|sample| *sample != 0).unwrap();
            assert!(first > 800, "the agent cannot be heard {first} samples after the call began");
            assert!(heard.samples.len() > first + 4_000);
        }
    }

    #[test]
    fn the_parts_of_a_drain_add_up_to_it() {
        let mut seen = 0;
        for (chosen, scenario) in chosen(None).unwrap() {
            for drain in play(chosen, &scenario).unwrap().drains {
                let parts = drain.detection + drain.network + drain.bridge + drain.carrier;
                assert!((parts - drain.total).abs() < 0.01, "{}: {drain}", scenario.name);
                assert!(drain.total > 0.0 && drain.bridge >= 0.0, "{}: {drain}", scenario.name);
                seen += 1;
            }
        }
        assert!(seen >= 3, "only {seen} interruptions are recorded");
    }
}
