//! A scripted session, as data: what a client does on one connection, and what the mock is told to do meanwhile.
//!
//! The files are below `scenarios/contract` and are part of the program. Both sides of a comparison are played by the
//! same file.

use anyhow::{Context as _, bail, ensure};
use mocks::realtime::{Dialect, ModelScript};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The settings that every session begins with.
const SETTINGS: &str = include_str!("../../contract/session.json");

/// Name and text of every file.
macro_rules! files {
    ($($name:literal,)*) => {
        &[$(($name, include_str!(concat!("../../contract/", $name, ".toml"))),)*]
    };
}

const FILES: &[(&str, &str)] = files![
    "greeting",
    "turn",
    "barge_in",
    "cancel",
    "truncate",
    "function_call",
    "second_response",
    "refusals",
    "bad_settings",
    "bad_key",
    "unknown_model",
    "other_model",
    "missing_model",
    "beta_header",
];

/// One session.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// The name of its file.
    #[serde(skip)]
    pub name: String,
    /// Tells one version of its file from another.
    #[serde(skip)]
    pub digest: String,
    /// What is true of a server that keeps the contract, in one sentence.
    pub about: String,
    /// Seconds of audio that a real model is expected to make, for the estimate of the cost.
    #[serde(default)]
    pub reply_s: u64,
    /// In which dialects it is played.
    #[serde(default = "both")]
    pub dialects: Vec<Dialect>,
    /// JSON that is merged into the common settings.
    #[serde(default)]
    session: Option<String>,
    /// What is unusual about the upgrade.
    #[serde(default)]
    pub connect: Connect,
    /// What the client does, in order.
    pub steps: Vec<Step>,
    /// What the mock does.
    #[serde(default)]
    pub mock: ModelScript,
}

fn both() -> Vec<Dialect> {
    vec![Dialect::Ga, Dialect::Beta]
}

/// What is unusual about the upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Connect {
    /// A made-up key in the place of the user's.
    pub key: Option<String>,
    /// Another model; none when empty.
    pub model: Option<String>,
    /// Further headers.
    pub headers: BTreeMap<String, String>,
}

/// One step of the client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Awaits `session.created`, sends the settings and awaits `session.updated`.
    Opens,
    /// Sends this JSON. `$item`, `$response` and `$call` stand for the last id of their kind.
    Sends(String),
    /// Sends this text, which need not be JSON.
    SendsText(String),
    /// Sends so many zeros in a binary frame.
    SendsBinary(usize),
    /// Says a golden clip on the line, which is open (and silent) from then on; does not wait.
    Speaks(String),
    /// Waits for these events, each of which must not have been awaited before.
    Awaits(OneOrMany),
    /// Waits until the last item has so much audio, ms.
    AwaitsAudioMs(u64),
    /// Waits until the server closes.
    AwaitsClose,
    /// Waits so long, ms.
    WaitsMs(u64),
}

/// One event, or several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several, in any order.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Session {
    /// Reads a session.
    ///
    /// # Errors
    /// When the text is no session; the message says where.
    pub fn from_toml(name: &str, text: &str) -> anyhow::Result<Self> {
        let mut session: Self = toml::from_str(text).with_context(|| format!("{name} is no session"))?;
        session.name = name.to_owned();
        session.digest = golden::digest(text.as_bytes())[..16].to_owned();
        ensure!(!session.steps.is_empty(), "{name} has no steps");
        session.settings().with_context(|| format!("{name}: `session`"))?;
        for step in &session.steps {
            match step {
                Step::Sends(text) => {
                    let event: Value =
                        serde_json::from_str(text).with_context(|| format!("{name} sends `{text}`"))?;
                    ensure!(event["type"].is_string(), "{name} sends `{text}`, which has no `type`");
                }
                Step::Speaks(clip) => {
                    let found = golden::clip(clip).with_context(|| format!("{name}: no clip `{clip}`"))?;
                    ensure!(found.rate == 8_000, "{name}: `{clip}` is no clip of a caller");
                }
                Step::Awaits(events) => ensure!(!events.all().is_empty(), "{name} awaits nothing"),
                Step::Opens
                | Step::SendsText(_)
                | Step::SendsBinary(_)
                | Step::AwaitsAudioMs(_)
                | Step::AwaitsClose
                | Step::WaitsMs(_) => {}
            }
        }
        Ok(session)
    }

    /// The settings it begins with: the common ones with its own merged in.
    ///
    /// # Errors
    /// When one of them is no JSON.
    pub fn settings(&self) -> anyhow::Result<Value> {
        let mut settings: Value = serde_json::from_str(SETTINGS).context("session.json")?;
        if let Some(own) = &self.session {
            merge(&mut settings, serde_json::from_str(own)?);
        }
        Ok(settings)
    }

    /// The client's line is open in it.
    pub fn speaks(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Speaks(_)))
    }

    /// What the mock does in this dialect.
    pub fn mock(&self, dialect: Dialect) -> ModelScript {
        ModelScript { dialect, ..self.mock.clone() }
    }
}

/// Lays `patch` over `value`, key by key.
fn merge(value: &mut Value, patch: Value) {
    match (value, patch) {
        (Value::Object(value), Value::Object(patch)) => {
            for (key, inner) in patch {
                merge(value.entry(key).or_insert(Value::Null), inner);
            }
        }
        (value, patch) => *value = patch,
    }
}

/// Every session, in the order they are told.
///
/// # Errors
/// The first file that is no session.
pub fn all() -> anyhow::Result<Vec<Session>> {
    FILES.iter().map(|(name, text)| Session::from_toml(name, text)).collect()
}

/// The sessions whose name contains `pattern` (or is exactly it), in this dialect.
///
/// # Errors
/// When there are none; the message names those there are.
pub fn chosen(pattern: Option<&str>, dialect: Dialect) -> anyhow::Result<Vec<Session>> {
    let mut all = all()?;
    all.retain(|session| session.dialects.contains(&dialect));
    let Some(pattern) = pattern else { return Ok(all) };
    let names: Vec<_> = all.iter().map(|session| session.name.clone()).collect();
    let exact = names.iter().any(|name| name == pattern);
    all.retain(|session| if exact { session.name == pattern } else { session.name.contains(pattern) });
    if all.is_empty() {
        bail!("no session is named like `{pattern}`; there are {}", names.join(", "));
    }
    Ok(all)
}

/// The name an event of the retired dialect has today; every other name is left as it is.
pub fn todays_name(kind: &str) -> &str {
    match kind {
        "response.audio.delta" => "response.output_audio.delta",
        "response.audio.done" => "response.output_audio.done",
        "response.audio_transcript.delta" => "response.output_audio_transcript.delta",
        "response.audio_transcript.done" => "response.output_audio_transcript.done",
        "response.text.delta" => "response.output_text.delta",
        "response.text.done" => "response.output_text.done",
        "conversation.item.created" => "conversation.item.added",
        same => same,
    }
}

/// What a client event of today is in the retired dialect.
pub(super) fn retired(mut event: Value) -> Value {
    match event["type"].as_str() {
        Some("session.update") => event["session"] = retired_settings(&event["session"]),
        Some("response.create") => {
            if let Some(response) = event["response"].as_object_mut()
                && let Some(modalities) = response.remove("output_modalities")
            {
                response.insert("modalities".to_owned(), retired_modalities(modalities));
            }
        }
        Some(_) | None => {}
    }
    event
}

fn retired_modalities(modalities: Value) -> Value {
    if modalities == json!(["audio"]) { json!(["audio", "text"]) } else { modalities }
}

fn retired_settings(settings: &Value) -> Value {
    let Some(settings) = settings.as_object() else { return settings.clone() };
    let mut flat = Map::new();
    for (key, value) in settings {
        match key.as_str() {
            "type" => {}
            "output_modalities" => {
                flat.insert("modalities".to_owned(), retired_modalities(value.clone()));
            }
            "max_output_tokens" => {
                flat.insert("max_response_output_tokens".to_owned(), value.clone());
            }
            "audio" => {
                for (end, prefix) in [("input", "input_audio_"), ("output", "output_audio_")] {
                    for (key, value) in value[end].as_object().into_iter().flatten() {
                        let (name, value) = match key.as_str() {
                            "format" => (format!("{prefix}format"), retired_format(value)),
                            "transcription" | "noise_reduction" => (format!("{prefix}{key}"), value.clone()),
                            same => (same.to_owned(), value.clone()),
                        };
                        flat.insert(name, value);
                    }
                }
            }
            same => {
                flat.insert(same.to_owned(), value.clone());
            }
        }
    }
    Value::Object(flat)
}

fn retired_format(format: &Value) -> Value {
    match format["type"].as_str() {
        Some("audio/pcm") => json!("pcm16"),
        Some("audio/pcmu") => json!("g711_ulaw"),
        Some("audio/pcma") => json!("g711_alaw"),
        Some(_) | None => format.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_file_of_the_folder_is_a_session_of_the_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("contract");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
            .filter(|name| name != "tolerances")
            .collect();
        files.sort();
        let mut names: Vec<_> = all().unwrap().into_iter().map(|session| session.name).collect();
        names.sort();
        assert_eq!(names, files);
    }

    #[test]
    fn a_session_with_a_mistake_is_refused_by_name() {
        for (text, word) in [
            ("about = 'x'\nsteps = []", "no steps"),
            ("about = 'x'\nsteps = [{ sends = '{' }]", "sends"),
            ("about = 'x'\nsteps = [{ sends = '{}' }]", "type"),
            ("about = 'x'\nsteps = [{ speaks = 'song' }]", "song"),
            ("about = 'x'\nsteps = [{ speaks = 'agent_answer' }]", "caller"),
            ("about = 'x'\nsteps = [{ sings = 'song' }]", "sings"),
            ("about = 'x'\nsession = '{'\nsteps = ['opens']", "session"),
        ] {
            let refusal = format!("{:#}", Session::from_toml("t", text).unwrap_err());
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }

    #[test]
    fn a_pattern_that_names_nothing_is_answered_with_what_there_is() {
        assert_eq!(chosen(Some("turn"), Dialect::Ga).unwrap().len(), 1);
        assert!(chosen(Some("model"), Dialect::Ga).unwrap().len() > 1);
        let refusal = chosen(Some("song"), Dialect::Ga).unwrap_err().to_string();
        assert!(refusal.contains("barge_in"), "{refusal}");
        assert!(chosen(Some("beta_header"), Dialect::Beta).is_err(), "a session of one dialect alone");
    }

    #[test]
    fn own_settings_are_laid_over_the_common_ones() {
        let all = all().unwrap();
        let turn = all.iter().find(|session| session.name == "turn").unwrap().settings().unwrap();
        assert_eq!(turn["audio"]["input"]["transcription"]["language"], "en");
        assert_eq!(turn["audio"]["input"]["format"]["type"], "audio/pcmu");
    }

    #[test]
    fn settings_in_the_retired_dialect_are_flat() {
        let event = json!({"type": "session.update", "session": all().unwrap()[1].settings().unwrap()});
        let flat = &retired(event)["session"];
        assert_eq!(flat["input_audio_format"], "g711_ulaw");
        assert_eq!(flat["modalities"], json!(["audio", "text"]));
        assert_eq!(flat["input_audio_transcription"]["language"], "en");
        assert!(flat.get("audio").is_none() && flat.get("type").is_none());
    }
}
