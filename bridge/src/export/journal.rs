//! The flight recorder: one file a call, with every decoded message of both legs, what the bridge did about it and why.
//!
//! A call's driver notes what goes by; a [`JournalWriter`](crate::runtime::journal::JournalWriter) takes the notes and never makes it wait. In production they travel
//! through a bounded queue to one thread of their own ([`files`]), which turns them into lines ([`lines`]) and keeps
//! the folder within its limits; what does not fit is left out and counted. A simulation gives the driver a writer
//! that keeps its lines in memory, so that there is neither thread nor file in a simulated world.
//!
//! What people say is not in a journal unless the operator asks for it: see [`Content`].

pub mod files;
pub mod lines;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Whether calls are journalled, where, and how much is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The folder of the journals, one file a call. Nothing is journalled without it.
    pub dir: Option<PathBuf>,
    /// What is written of audio and words: `hashes`, or `full`, which is a recording of the call.
    pub content: Content,
    /// Largest journal of one call, bytes; a longer call keeps its beginning and its end.
    pub max_bytes_per_call: u64,
    /// Most journals kept; the oldest go first.
    pub keep_calls: usize,
    /// Most bytes of all journals together; the oldest go first.
    pub keep_bytes: u64,
    /// Journals untouched for more days than this go.
    pub keep_days: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dir: None,
            content: Content::Hashes,
            max_bytes_per_call: 64 << 20,
            keep_calls: 10_000,
            keep_bytes: 10 << 30,
            keep_days: 30,
        }
    }
}

/// What a journal says of audio, words, keys and arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Lengths, levels, and hashes under a secret that is forgotten with the process: alike is seen to be alike, and
    /// nothing can be guessed back. Digits that were pressed are hidden, too.
    #[default]
    Hashes,
    /// Everything. Such a file is a recording of the call, with all that follows from that.
    Full,
}
