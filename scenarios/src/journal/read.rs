//! Reads a journal as it is found: whole, torn, with holes, or not ours at all.

use anyhow::Context as _;
use bridge::journal::lines::{Header, Record, VERSION, What};
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Longest line that is read, bytes: the largest message of the model in base64, and room.
const LINE_MAX: usize = 32 << 20;

/// A call, as its journal tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The first line.
    pub header: Header,
    /// The lines after it, in order, without those about the journal itself.
    pub records: Vec<Record>,
    /// What is missing.
    pub damage: Damage,
}

impl Recorded {
    /// Forgets audio that was recorded, so that speech of the same length takes its place. Words stay.
    pub fn forget_audio(&mut self) {
        for record in &mut self.records {
            if let What::Media { audio, .. } | What::SentMedia { audio } = &mut record.what {
                audio.data = None;
            } else if let What::Model(event) | What::SentModel(event) = &mut record.what
                && let Some(audio) = &mut event.audio
            {
                audio.data = None;
            }
        }
    }
}

/// What a journal lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// The last line is torn: the process ended while it was being written.
    pub torn: bool,
    /// The file ends before the call did.
    pub truncated: bool,
    /// Lines in the middle that cannot be read, by number.
    pub unreadable: Vec<usize>,
    /// Lines the bridge left out because the queue or the disk was full.
    pub lost: u64,
    /// The journal reached its size: what is missing is the middle.
    pub full: bool,
    /// The call's task panicked.
    pub panicked: bool,
}

impl Damage {
    /// Nothing is missing.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.torn {
            words.push("its last line is torn".to_owned());
        }
        if self.truncated {
            words.push("it ends before the call does".to_owned());
        }
        if let [first, ..] = self.unreadable.as_slice() {
            words.push(format!("{} lines cannot be read, the first is line {first}", self.unreadable.len()));
        }
        if self.lost > 0 {
            words.push(format!(
                "the bridge left {} lines out, because a queue or the disk was full",
                self.lost
            ));
        }
        if self.full {
            words.push("it reached journal.max_bytes_per_call, and what came after is missing".to_owned());
        }
        if self.panicked {
            words.push("the call's task panicked".to_owned());
        }
        f.write_str(&words.join("; "))
    }
}

/// Why a file is no journal that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// There is nothing in it.
    #[error("the file is empty: the call wrote no journal, or it was removed by journal.keep_*")]
    Empty,
    /// The first line is no header.
    #[error("the first line is no header of a journal ({0}): is this a file that the bridge wrote?")]
    NoHeader(String),
    /// Another version wrote it.
    #[error(
        "this is a journal of version {0}, and this scn reads version {VERSION}: use the scn of the bridge that wrote it"
    )]
    Version(u32),
    /// There is no call in it.
    #[error("there is nothing after the header: the process ended before anything happened on the call")]
    NoCall,
}

/// Reads a file.
///
/// # Errors
/// When it cannot be read or is no journal of this version. The message names the file.
pub fn load(path: &Path) -> anyhow::Result<Recorded> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    read(BufReader::new(file)).with_context(|| format!("{} cannot be used", path.display()))
}

/// Reads a journal line by line: what is in memory afterwards is the call, not the file.
///
/// # Errors
/// When it is no journal of this version, or has nothing in it.
pub fn read(mut from: impl BufRead) -> Result<Recorded, ReadError> {
    let mut line = Vec::new();
    if !next_line(&mut from, &mut line)? && line.is_empty() {
        return Err(ReadError::Empty);
    }
    let header = header(&line)?;
    let mut damage = Damage { truncated: true, ..Damage::default() };
    let mut records = Vec::new();
    let mut number = 1;
    loop {
        let whole = next_line(&mut from, &mut line)?;
        if line.is_empty() && !whole {
            break;
        }
        number += 1;
        match serde_json::from_slice::<Record>(&line) {
            Ok(record) => take(record, &mut records, &mut damage),
            Err(_) if !whole => damage.torn = true,
            Err(_) => damage.unreadable.push(number),
        }
    }
    if records.is_empty() {
        return Err(ReadError::NoCall);
    }
    Ok(Recorded { header, records, damage })
}

fn take(record: Record, records: &mut Vec<Record>, damage: &mut Damage) {
    if let What::Lost { lines } = record.what {
        damage.lost += lines;
    } else if let What::Full = record.what {
        damage.full = true;
    } else if let What::Panicked = record.what {
        damage.panicked = true;
    } else if let What::End { .. } = record.what {
        damage.truncated = false;
    } else {
        records.push(record);
    }
}

fn header(line: &[u8]) -> Result<Header, ReadError> {
    #[derive(Deserialize)]
    struct Version {
        journal: u32,
    }
    let no_header = |error: serde_json::Error| ReadError::NoHeader(error.to_string());
    let Version { journal } = serde_json::from_slice(line).map_err(no_header)?;
    if journal != VERSION {
        return Err(ReadError::Version(journal));
    }
    serde_json::from_slice(line).map_err(no_header)
}

/// Reads a line without its end. Returns whether it had one; a line that is too long is cut and will not be read.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    line.clear();
    loop {
        let bytes = from.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = &bytes[..end.unwrap_or(bytes.len())];
        if line.len() + part.len() <= LINE_MAX {
            line.extend_from_slice(part);
        }
        let used = end.map_or(bytes.len(), |end| end + 1);
        from.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}
