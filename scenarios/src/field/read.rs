//! Reads a journal as it is found: whole, torn, with holes, or not ours at all.

use anyhow::Context as _;
use bridge::export::journal::lines::{Blob, Event, Header, Record, VERSION, What};
use serde::Deserialize;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Longest line that is read, bytes: the largest message of the model in base64, and room.
const LINE_MAX: usize = 32 << 20;
/// No time and no count in a journal comes near this: a number beyond it was not written by a bridge.
const NUMBER_MAX: u64 = 10_000_000_000_000;

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
    /// Lines in the middle that cannot be read or cannot be true, by number.
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
            words.push(format!(
                "{} lines cannot be read or cannot be true, the first is line {first}",
                self.unreadable.len()
            ));
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
    let (mut number, mut now_us) = (1, 0);
    loop {
        let whole = next_line(&mut from, &mut line)?;
        if line.is_empty() && !whole {
            break;
        }
        number += 1;
        match serde_json::from_slice::<Record>(&line) {
            Ok(record) if can_be_true(&record, now_us) => {
                now_us = record.us;
                take(record, &mut records, &mut damage);
            }
            Err(_) if !whole => damage.torn = true,
            Ok(_) | Err(_) => damage.unreadable.push(number),
        }
    }
    if records.is_empty() {
        return Err(ReadError::NoCall);
    }
    Ok(Recorded { header, records, damage })
}

/// Whether a bridge can have written this behind a line of that time: a reader of the journal reckons with its numbers.
fn can_be_true(record: &Record, now_us: u64) -> bool {
    let bounded = |number: Option<u64>| number.unwrap_or_default() < NUMBER_MAX;
    let blob = |blob: &Blob| blob.len <= LINE_MAX && blob.dbfs.is_none_or(|dbfs| (-99..=0).contains(&dbfs));
    let event = |event: &Event| {
        let Event { start_ms, end_ms, content, expires_in_s, audio, .. } = event;
        [*start_ms, *end_ms, *content, expires_in_s.map(i64::unsigned_abs)].into_iter().all(bounded)
            && audio.as_ref().is_none_or(blob)
    };
    (now_us..NUMBER_MAX).contains(&record.us)
        && match &record.what {
            What::Media { chunk, ts, audio, .. } => bounded(Some(*chunk)) && bounded(*ts) && blob(audio),
            What::SentMedia { audio } => blob(audio),
            What::Model(told) | What::SentModel(told) => event(told),
            What::Lost { lines } => bounded(Some(*lines)),
            What::Connected
            | What::Start { .. }
            | What::Dtmf { .. }
            | What::Mark { .. }
            | What::Stop
            | What::CallerOther { .. }
            | What::SentMark { .. }
            | What::SentClear
            | What::Malformed { .. }
            | What::Leg { .. }
            | What::Bridge { .. }
            | What::RunTool { .. }
            | What::CancelTool { .. }
            | What::ToolEnded { .. }
            | What::Asked { .. }
            | What::Event { .. }
            | What::Full
            | What::Panicked
            | What::End { .. } => true,
        }
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
    let header: Header = serde_json::from_slice(line).map_err(no_header)?;
    if header.up_us >= NUMBER_MAX {
        return Err(ReadError::NoHeader(format!("up_us is {}", header.up_us)));
    }
    Ok(header)
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
