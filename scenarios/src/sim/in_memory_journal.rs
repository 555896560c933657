//! The journals of simulated calls: the lines production would write to files, kept in memory, without a thread.

use bridge::export::journal::Content;
use bridge::export::journal::lines::{Formatter, Salt, What};
use bridge::runtime::journal::{CallBeginning, Journal, JournalEntry, JournalWriter};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The journals of a world, by the key of the call. A handle: clones hold the same journals.
#[derive(Clone, Debug, Default)]
pub struct InMemoryJournal {
    content: Content,
    written: Arc<Mutex<BTreeMap<u64, String>>>,
}

impl InMemoryJournal {
    /// Journals that say this much of audio and words.
    pub fn new(content: Content) -> Self {
        Self { content, written: Arc::default() }
    }

    /// Every journal as the file it would be, in the order in which the calls began.
    pub fn texts(&self) -> Vec<String> {
        self.written().values().cloned().collect()
    }

    fn written(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, key: u64, line: &str) {
        let mut written = self.written();
        let text = written.entry(key).or_default();
        text.push_str(line);
        text.push('\n');
    }
}

impl Journal for InMemoryJournal {
    fn begin(&self, beginning: CallBeginning) -> Box<dyn JournalWriter> {
        // The same bytes in every run: there is no reader to keep a secret from.
        let (formatter, header) = Formatter::begin(&beginning, self.content, Salt::known());
        self.write(beginning.key, &header);
        Box::new(InMemoryWriter {
            journals: self.clone(),
            key: beginning.key,
            formatter,
            last: Duration::ZERO,
        })
    }
}

struct InMemoryWriter {
    journals: InMemoryJournal,
    key: u64,
    formatter: Formatter,
    last: Duration,
}

impl JournalWriter for InMemoryWriter {
    fn note(&mut self, after: Duration, note: JournalEntry) {
        self.last = after;
        let (line, _) = self.formatter.line(after, &note);
        self.journals.write(self.key, &line);
    }
}

impl Drop for InMemoryWriter {
    fn drop(&mut self) {
        self.journals.write(self.key, &Formatter::written(self.last, What::End { lost: 0 }));
    }
}
