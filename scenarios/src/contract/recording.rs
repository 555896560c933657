//! What was said on one connection, as NDJSON: the format of `golden/wire`, with times and without secrets.
//!
//! A line has `name`, `source`, `from` and `frame` as the golden samples have, so that what reads those reads these,
//! and `at_us`: microseconds since the upgrade. Audio is cut to its first bytes; how much there was, and its digest,
//! stand beside it in `audio`. What is no event of the protocol (the upgrade, a close, a client that gave up) is a
//! frame whose type begins with `websocket.` or `contract.`.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// Type of the frame that opens a recording.
pub const OPEN: &str = "websocket.open";
/// Type of the frame that stands for a close frame of the server.
pub const CLOSE: &str = "websocket.close";
/// Type of the frame that stands for a connection that ended without a close frame.
pub const LOST: &str = "websocket.lost";
/// Type of the frame that stands for an upgrade that was answered otherwise, or not at all.
pub const REFUSED: &str = "websocket.refused";
/// Type of the frame that stands for a frame that is no event.
pub const BAD: &str = "websocket.bad_frame";
/// Type of the frame that stands for a client that no longer waits.
pub const GAVE_UP: &str = "contract.gave_up";

/// Audio that is kept of a delta, bytes: whole groups of base64, whole samples, and no sound.
const AUDIO_KEPT: usize = 24;

/// Length of the shortest text that is taken for a key, bytes.
const KEY_MIN: usize = 6;

/// Who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sender {
    /// The server.
    #[serde(rename = "openai")]
    Server,
    /// The client.
    #[serde(rename = "bridge")]
    Client,
}

/// Audio that was in a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audio {
    /// Bytes in the format of the session.
    pub bytes: u64,
    /// How long they play, ms.
    pub ms: u64,
    /// SHA-256 of them, lower-case hex; absent where several frames are one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Audio {
    /// Of base64 text; `None` when it is none.
    fn of(text: &str, bytes_per_ms: u64) -> Option<(Self, Vec<u8>)> {
        let bytes = STANDARD.decode(text).ok()?;
        let sha256 = golden::digest(&bytes);
        let len = bytes.len() as u64;
        Some((Self { bytes: len, ms: len / bytes_per_ms.max(1), sha256: Some(sha256) }, bytes))
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The session, a number and the type.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// Who sent it.
    pub from: Sender,
    /// Microseconds since the upgrade.
    pub at_us: u64,
    /// The audio in it, or in as many appends as were sent in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audio: Option<Audio>,
    /// The frame, with its audio cut.
    pub frame: Value,
}

impl Line {
    /// The type of its frame.
    pub fn kind(&self) -> &str {
        self.frame["type"].as_str().unwrap_or_default()
    }
}

/// What was said on one connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    /// The session that was played.
    pub session: String,
    /// Every frame, in order.
    pub lines: Vec<Line>,
}

impl Recording {
    /// An empty one.
    pub fn new(session: &str) -> Self {
        Self { session: session.to_owned(), lines: Vec::new() }
    }

    /// Adds a frame.
    pub fn put(&mut self, source: &str, from: Sender, at_us: u64, audio: Option<Audio>, frame: Value) {
        let kind = frame["type"].as_str().unwrap_or("?");
        let name = format!("{} {:03} {kind}", self.session, self.lines.len());
        self.lines.push(Line { name, source: source.to_owned(), from, at_us, audio, frame });
    }

    /// As a file.
    pub fn to_ndjson(&self) -> String {
        let line = |line: &Line| serde_json::to_string(line).unwrap_or_default() + "\n";
        self.lines.iter().map(line).collect()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When a line is none, or the first does not tell which session it is.
    pub fn from_ndjson(text: &str) -> anyhow::Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let lines: Vec<Line> = lines
            .map(|(n, line)| serde_json::from_str(line).with_context(|| format!("line {}", n + 1)))
            .collect::<anyhow::Result<_>>()?;
        let first = lines.first().context("it is empty")?;
        let session = first.frame["session"].as_str().unwrap_or_default().to_owned();
        ensure!(
            matches!(first.kind(), OPEN | REFUSED) && !session.is_empty(),
            "it does not begin with a {OPEN} that names a session: only what `scn contract --record` wrote can be read"
        );
        Ok(Self { session, lines })
    }

    /// Writes it into a folder, under the name of its session.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let file = folder.join(format!("{}.jsonl", self.session));
        std::fs::write(&file, self.to_ndjson()).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Seconds of audio the client sent, and the server.
    pub fn audio_ms(&self) -> (u64, u64) {
        let of = |from: Sender| {
            let lines = self.lines.iter().filter(|line| line.from == from);
            let spoken = lines.filter(|line| line.frame.get("delta").is_some() || from == Sender::Client);
            spoken.filter_map(|line| line.audio.as_ref()).map(|audio| audio.ms).sum()
        };
        (of(Sender::Client), of(Sender::Server))
    }

    /// Tokens that the server says were used.
    pub fn tokens(&self) -> u64 {
        let done = self.lines.iter().filter(|line| line.kind() == "response.done");
        done.filter_map(|line| line.frame["response"]["usage"]["total_tokens"].as_u64()).sum()
    }
}

/// Takes the audio out of a frame, and secrets out of its texts.
#[derive(Clone, Debug)]
pub struct Redaction {
    key: String,
    keep_audio: bool,
}

impl Redaction {
    /// Hides `key`, whatever looks like one, and audio unless it is to be kept.
    pub fn new(key: &str, keep_audio: bool) -> Self {
        Self { key: key.to_owned(), keep_audio }
    }

    /// Does so.
    pub fn apply(&self, frame: &mut Value, bytes_per_ms: u64) -> Option<Audio> {
        let kind = frame["type"].as_str().unwrap_or_default().to_owned();
        let mut audio = None;
        if matches!(kind.as_str(), "response.output_audio.delta" | "response.audio.delta") {
            audio = frame.get_mut("delta").and_then(|text| self.cut(text, bytes_per_ms));
        } else if kind == "input_audio_buffer.append" {
            audio = frame.get_mut("audio").and_then(|text| self.cut(text, bytes_per_ms));
        }
        let parts = frame.pointer_mut("/item/content").and_then(Value::as_array_mut);
        for text in parts.into_iter().flatten().filter_map(|part| part.get_mut("audio")) {
            audio = self.cut(text, bytes_per_ms).or(audio);
        }
        self.hide(frame);
        audio
    }

    fn cut(&self, text: &mut Value, bytes_per_ms: u64) -> Option<Audio> {
        let (audio, bytes) = Audio::of(text.as_str()?, bytes_per_ms)?;
        if !self.keep_audio {
            *text = json!(STANDARD.encode(&bytes[..bytes.len().min(AUDIO_KEPT)]));
        }
        Some(audio)
    }

    fn hide(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(hidden) = self.hidden(text) {
                    *text = hidden;
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|inner| self.hide(inner)),
            Value::Object(fields) => fields.values_mut().for_each(|inner| self.hide(inner)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// The text without the key, or what looks like a key or the name of an account; `None` when it has neither.
    pub fn hidden(&self, text: &str) -> Option<String> {
        /// What opens the name of a key, an organisation or a project.
        const SECRETS: [&str; 5] = ["sk-", "ek_", "xai-", "org-", "proj_"];
        // A stand-in such as `any` is no secret, and a word of the language.
        let is_secret = self.key.len() >= KEY_MIN;
        let mut out = if is_secret { text.replace(&self.key, "[redacted]") } else { text.to_owned() };
        for opening in SECRETS {
            let mut from = 0;
            while let Some(found) = out[from..].find(opening) {
                let start = from + found;
                let begins = !out[..start].ends_with(|c: char| c.is_ascii_alphanumeric());
                let rest = &out[start + opening.len()..];
                // A server shows a key with stars in its middle.
                let is_part = |c: char| c.is_ascii_alphanumeric() || "-_*.".contains(c);
                let len: usize = rest.chars().take_while(|c| is_part(*c)).map(char::len_utf8).sum();
                from = start + opening.len();
                if begins && len >= 4 {
                    out.replace_range(start..from + len, "[redacted]");
                    from = start;
                }
            }
        }
        (out != text).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_reads_as_it_was_written() {
        let mut recording = Recording::new("greeting");
        recording.put("test", Sender::Client, 0, None, json!({"type": OPEN, "session": "greeting"}));
        let mut frame = json!({"type": "response.output_audio.delta", "delta": STANDARD.encode([7; 800])});
        let audio = Redaction::new("", false).apply(&mut frame, 8);
        assert_eq!(audio.as_ref().map(|audio| (audio.bytes, audio.ms)), Some((800, 100)));
        assert_eq!(STANDARD.decode(frame["delta"].as_str().unwrap()).unwrap(), [7; AUDIO_KEPT]);
        recording.put("test", Sender::Server, 1_234, audio, frame);
        assert_eq!(Recording::from_ndjson(&recording.to_ndjson()).unwrap(), recording);
        assert_eq!(recording.audio_ms(), (0, 100));
    }

    #[test]
    fn what_is_no_recording_is_refused_with_a_reason() {
        for (text, word) in [("", "empty"), ("{", "line 1"), (GOLDEN_LINE, "--record")] {
            let refusal = format!("{:#}", Recording::from_ndjson(text).unwrap_err());
            assert!(refusal.contains(word), "{refusal}");
        }
    }

    const GOLDEN_LINE: &str =
        r#"{"name":"a","source":"b","from":"openai","at_us":1,"frame":{"type":"session.created"}}"#;

    #[test]
    fn neither_the_key_nor_what_looks_like_one_is_kept() {
        let redaction = Redaction::new("my own secret", false);
        let text =
            "Incorrect API key provided: sk-proj-ab12***************9zQ4. In org-a1B2c3D4 my own secret.";
        let mut frame = json!({"type": "error", "error": {"message": text, "list": ["ek_12345"]}});
        redaction.apply(&mut frame, 8);
        let hidden = frame.to_string();
        for secret in ["ab12", "9zQ4", "a1B2c3D4", "my own secret", "12345"] {
            assert!(!hidden.contains(secret), "{hidden}");
        }
        assert!(hidden.contains("Incorrect API key provided: [redacted]"), "{hidden}");
        assert_eq!(redaction.hidden("task-oriented; ask-me; a sk-"), None);
    }

    #[test]
    fn a_frame_without_audio_or_secrets_stays_as_it_is() {
        for sample in golden::wire::realtime() {
            let frame: Value = serde_json::from_str(&sample.text).unwrap();
            let mut redacted = frame.clone();
            if Redaction::new("a real key", true).apply(&mut redacted, 8).is_none() {
                assert_eq!(redacted, frame, "{}", sample.name);
            }
            let mut cut = frame.clone();
            Redaction::new("any", false).apply(&mut cut, 8);
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&cut), keys(&frame), "{}", sample.name);
        }
    }

    #[test]
    fn audio_is_kept_whole_when_it_is_wanted() {
        let text = STANDARD.encode([1; 800]);
        let mut frame = json!({"type": "input_audio_buffer.append", "audio": text});
        assert!(Redaction::new("", true).apply(&mut frame, 8).is_some());
        assert_eq!(frame["audio"], text);
    }
}
