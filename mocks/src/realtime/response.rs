//! A response: what it was asked to be, and the plan of what it will say.

use super::script::{AudioFormat, Dialect, ErrorSpec, Turn};
use super::session::Session;
use super::voice::Source;
use crate::peer::At;
use serde_json::Value;
use std::collections::VecDeque;

/// What a response was asked to be.
#[derive(Clone, Debug)]
pub(super) struct Params {
    pub(super) in_conversation: bool,
    /// No functions may be called.
    pub(super) no_calls: bool,
    pub(super) text: bool,
    pub(super) format: AudioFormat,
    pub(super) voice: Value,
    pub(super) max_output_tokens: Value,
    pub(super) temperature: Value,
    pub(super) metadata: Value,
}

impl Params {
    /// The session's settings with what the request says laid over them.
    pub(super) fn of(session: &Session, asked: &Value, dialect: Dialect) -> Self {
        let or = |value: &Value, fallback: &Value| {
            if value.is_null() { fallback.clone() } else { value.clone() }
        };
        let (modalities, format, voice, tokens) = match dialect {
            Dialect::Ga => {
                let output = &asked["audio"]["output"];
                (
                    &asked["output_modalities"],
                    &output["format"]["type"],
                    &output["voice"],
                    "max_output_tokens",
                )
            }
            Dialect::Beta => (
                &asked["modalities"],
                &asked["output_audio_format"],
                &asked["voice"],
                "max_response_output_tokens",
            ),
        };
        Self {
            in_conversation: asked["conversation"] != "none",
            no_calls: asked["tool_choice"] == "none",
            text: modalities.as_array().map_or(session.text, |list| !list.iter().any(|m| m == "audio")),
            format: format.as_str().and_then(AudioFormat::named).unwrap_or(session.output),
            voice: or(voice, &session.voice),
            max_output_tokens: or(&asked[tokens], &session.max_output_tokens),
            temperature: or(&asked["temperature"], &session.temperature),
            metadata: asked["metadata"].clone(),
        }
    }
}

/// Why a response came to be.
#[derive(Clone, Debug)]
pub(super) enum Cause {
    /// The caller finished a turn.
    Turn,
    /// The client asked, in an event with this id.
    Client(Option<String>),
}

/// A response that was asked for and is not created yet.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) id: String,
    pub(super) params: Params,
    pub(super) cause: Cause,
    pub(super) turn: Turn,
}

/// A response that was created and is not over.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) id: String,
    pub(super) params: Params,
    pub(super) turn: Turn,
    pub(super) items: Vec<Gen>,
    pub(super) plan: VecDeque<(At, Step)>,
    pub(super) wake: Option<At>,
    pub(super) cancelled: Option<&'static str>,
    pub(super) done: bool,
}

/// An item in the making.
#[derive(Debug)]
pub(super) struct Gen {
    pub(super) id: String,
    pub(super) kind: GenKind,
    /// `response.output_item.added` was sent, when there had been so many observations.
    pub(super) added: Option<usize>,
    pub(super) closed: bool,
    /// Text or arguments sent so far.
    pub(super) said: String,
}

#[derive(Debug)]
pub(super) enum GenKind {
    Spoken { source: Source, speech: usize, samples: usize, words: Vec<String> },
    Written { words: Vec<String> },
    Call { name: String, call_id: String, arguments: String },
}

/// One step of a plan. Numbers are places in `Response::items`.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Add(usize),
    OpenPart(usize),
    Word { item: usize, word: usize },
    Audio { item: usize, from: usize, to: usize },
    Arguments { item: usize, from: usize, to: usize },
    Close(usize),
    Error(ErrorSpec),
    Done,
    RateLimits,
}
