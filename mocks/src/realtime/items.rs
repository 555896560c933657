//! Conversation items and how they are shown.

use super::script::Dialect;
use serde_json::{Map, Value, json};

/// One item the server knows.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) body: Body,
    /// Part of the conversation: not deleted, and not of a response outside it.
    pub(super) placed: bool,
    /// The item before it when it was added.
    pub(super) previous: Option<String>,
    /// The service forgets `previous_item_id` in the `conversation.item.done` of a second item that the model
    /// made.
    pub(super) forgets_previous: bool,
    /// `phase` of an assistant message, with models that have it.
    pub(super) phase: Option<&'static str>,
}

/// What an item is.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// What the caller said: bytes of the appended audio.
    Heard { transcript: Option<String>, from: usize, to: usize, ms: u64 },
    /// A message or approval the client wrote.
    Given(Map<String, Value>),
    /// What the model said aloud.
    Spoken(Spoken),
    /// What the model wrote.
    Written { text: String, opened: bool },
    /// A function call.
    Call { name: String, call_id: String, arguments: String, answered: bool },
    /// A function call output.
    Output { call_id: String, output: String },
}

/// The server's idea of an audio message.
#[derive(Clone, Debug, Default)]
pub(super) struct Spoken {
    /// The words so far; empty for good once the item was truncated.
    pub(super) transcript: String,
    /// The content part exists.
    pub(super) opened: bool,
    /// Samples the server holds.
    pub(super) samples: usize,
    pub(super) rate: u32,
    pub(super) truncated: bool,
    /// Its place in `ModelRecord::items`.
    pub(super) record: usize,
}

impl Spoken {
    pub(super) const fn ms(&self) -> u64 {
        if self.rate == 0 { 0 } else { self.samples as u64 * 1_000 / self.rate as u64 }
    }
}

impl Item {
    pub(super) fn new(id: String, status: &'static str, body: Body) -> Self {
        Self { id, status, body, placed: false, previous: None, forgets_previous: false, phase: None }
    }

    /// The item as the server sends it.
    pub(super) fn json(&self, dialect: Dialect) -> Value {
        let mut item = Map::new();
        item.insert("id".to_owned(), json!(self.id));
        if dialect == Dialect::Beta {
            item.insert("object".to_owned(), json!("realtime.item"));
        }
        let (audio, text) = match dialect {
            Dialect::Ga => ("output_audio", "output_text"),
            Dialect::Beta => ("audio", "text"),
        };
        let mut message = |role: &str, content: Value| {
            item.insert("type".to_owned(), json!("message"));
            item.insert("status".to_owned(), json!(self.status));
            item.insert("role".to_owned(), json!(role));
            item.insert("content".to_owned(), content);
        };
        match &self.body {
            Body::Heard { transcript, .. } => {
                message("user", json!([{"type": "input_audio", "transcript": transcript}]));
            }
            Body::Spoken(Spoken { opened: false, .. }) | Body::Written { opened: false, .. } => {
                message("assistant", json!([]));
            }
            Body::Spoken(spoken) => {
                message("assistant", json!([{"type": audio, "transcript": spoken.transcript}]));
            }
            Body::Written { text: words, .. } => message("assistant", json!([{"type": text, "text": words}])),
            Body::Given(given) => item.extend(given.iter().map(|(key, value)| (key.clone(), value.clone()))),
            Body::Call { name, call_id, arguments, .. } => {
                item.insert("type".to_owned(), json!("function_call"));
                item.insert("status".to_owned(), json!(self.status));
                item.insert("name".to_owned(), json!(name));
                item.insert("call_id".to_owned(), json!(call_id));
                item.insert("arguments".to_owned(), json!(arguments));
            }
            Body::Output { call_id, output } => {
                item.insert("type".to_owned(), json!("function_call_output"));
                item.insert("call_id".to_owned(), json!(call_id));
                item.insert("output".to_owned(), json!(output));
            }
        }
        if let (Some(phase), Dialect::Ga) = (self.phase, dialect) {
            item.insert("phase".to_owned(), json!(phase));
        }
        Value::Object(item)
    }

    /// Tokens the item puts into the context: text and audio.
    pub(super) fn tokens(&self) -> (u64, u64) {
        let of_text = |text: &str| text.len() as u64 / 4 + 1;
        match &self.body {
            Body::Heard { ms, .. } => (0, ms / 100),
            Body::Spoken(spoken) => (of_text(&spoken.transcript), spoken.ms() / 50),
            Body::Written { text, .. } => (of_text(text), 0),
            Body::Given(given) => (of_text(&text_of(&given["content"])), 0),
            Body::Call { arguments, .. } => (of_text(arguments) + 8, 0),
            Body::Output { output, .. } => (of_text(output), 0),
        }
    }
}

/// The text of all parts of a message.
pub(super) fn text_of(content: &Value) -> String {
    let parts = content.as_array().map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<_> = parts
        .iter()
        .filter_map(|part| part["text"].as_str().or_else(|| part["transcript"].as_str()))
        .collect();
    texts.join(" ")
}
