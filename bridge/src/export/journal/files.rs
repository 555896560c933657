//! Journals as files: a bounded queue, one thread that writes, a folder that stays within its limits.
//!
//! Calls only ever put a note into the queue, and only if there is room. The thread turns notes into lines, gathers
//! them for a moment, and appends them in one write a file. It never rewrites what is there, so whatever ends the
//! process leaves files that can be read, the last line possibly torn. A write that fails takes back what it wrote of a
//! line, counts what is lost, and is tried again with what comes next: a full disk makes holes, not rubbish.

use super::lines::{Formatter, Salt, What};
use super::{Content, Settings};
use crate::base::clock;
use crate::base::log_limit::LogLimit;
use crate::export::worker::{self, Batches, Bounds, Pace, Sender, Weigh};
use crate::runtime::journal::{CallBeginning, Journal, JournalEntry, JournalWriter};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What may wait for the thread: several seconds of a busy server.
const BOUNDS: Bounds = Bounds { items: 16_384, bytes: 32 << 20 };
/// The thread looks after its folder once a second, also when nothing comes.
const PACE: Pace =
    Pace { batch: usize::MAX, gather: Duration::from_millis(20), idle: Duration::from_secs(1) };
/// What waits already.
const AT_ONCE: Pace = Pace { batch: usize::MAX, gather: Duration::ZERO, idle: Duration::ZERO };
/// How often, at most, it looks for files that have to go after calls have ended.
const TIDY: Duration = Duration::from_secs(10);
/// And how often when none have.
const TIDY_IDLE: Duration = Duration::from_secs(3_600);
/// A system's clock that is off by more than this from what it was has been set.
const STEP: Duration = Duration::from_secs(3_600);
/// How long a clock that was set must run on before ages are measured by it.
const BELIEVED_AFTER: Duration = Duration::from_secs(86_400);
/// How long a process runs before it removes a journal for its age: a machine that has just started may not have been
/// told the time yet.
const AGES_AFTER: Duration = Duration::from_secs(3_600);
/// How often it is checked that a file that is written to is still in its folder, in writes.
const CHECK_EVERY: u32 = 64;
/// Gathered bytes of one call that are written at once.
const BATCH_BYTES: usize = 256 * 1024;
/// What a full journal keeps free for the end of the call, bytes.
const TAIL_BYTES: u64 = 8 * 1024;
/// How long a stopping process waits for the disk.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Every journal's name begins with this, and nothing else is ever removed from the folder.
const PREFIX: &str = "call-";
/// And ends with this.
const SUFFIX: &str = ".ndjson";

/// What became of the notes of a process so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Lines written.
    pub lines: u64,
    /// Lines left out: no room in the queue, or none on the disk.
    pub lost: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Journals that reached their size.
    pub full: u64,
    /// Journals removed to keep the folder within its limits.
    pub removed: u64,
}

#[derive(Default)]
struct Shared {
    next: AtomicU64,
    lines: AtomicU64,
    lost: AtomicU64,
    failed_writes: AtomicU64,
    full: AtomicU64,
    removed: AtomicU64,
}

/// What travels to the thread.
enum QueueItem {
    Begins {
        call: u64,
        beginning: Box<CallBeginning>,
        alive: Weak<()>,
    },
    Entry {
        call: u64,
        after: Duration,
        /// Entries of the call that found no room since the last one.
        missed: u64,
        what: Entry,
    },
}

enum Entry {
    Note(JournalEntry),
    Panicked,
    Ends,
}

impl Weigh for QueueItem {
    fn weight(&self) -> usize {
        if let Self::Entry { what: Entry::Note(note), .. } = self { note.weight() } else { 0 }
    }
}

/// Journals in a folder.
pub struct Files {
    queue: Sender<QueueItem>,
    shared: Arc<Shared>,
    worker: worker::Worker<QueueItem>,
}

impl Files {
    /// Opens the folder and starts the thread. `None` when no folder is set.
    ///
    /// # Errors
    /// When the folder cannot be made or written to. The words name it.
    pub fn open(settings: &Settings) -> io::Result<Option<Self>> {
        let Some(dir) = &settings.dir else { return Ok(None) };
        let cannot = |error: io::Error| {
            let words = format!(
                "journal.dir {}: {error}; name a folder this process may write to, or leave it out",
                dir.display()
            );
            io::Error::new(error.kind(), words)
        };
        make_folder(dir).map_err(cannot)?;
        let probe = dir.join(format!(".probe-{}", std::process::id()));
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(cannot)?;

        let shared = Arc::new(Shared::default());
        let salt = Salt::secret();
        let worker = Worker {
            folder: Folder::new(dir.clone(), settings.clone(), salt.tag()),
            content: settings.content,
            salt,
            shared: shared.clone(),
            open: BTreeMap::new(),
            closed_any: false,
            began: clock::now(),
            clock: Clock::new(wall_clock()),
            now: wall_clock(),
            tidied: None,
        };
        let (queue, worker) = worker::start("journal", BOUNDS, move |items| worker.run(&items))?;
        Ok(Some(Self { queue, shared, worker }))
    }

    /// What became of the notes so far.
    pub fn snapshot(&self) -> Stats {
        self.shared.snapshot()
    }

    /// Waits until everything is written, but not for ever: a disk that hangs does not keep a process alive. Calls that
    /// are still there lose what they note from now on.
    pub fn stop(self) -> Stats {
        let Self { shared, worker, queue: _ } = self;
        if !worker.stop(STOP_PATIENCE) {
            tracing::warn!("the disk hangs, or a call does: the end of the journals is lost");
        }
        shared.snapshot()
    }
}

impl Shared {
    fn snapshot(&self) -> Stats {
        let Self { lines, lost, failed_writes, full, removed, next: _ } = self;
        Stats {
            lines: lines.load(SeqCst),
            lost: lost.load(SeqCst),
            failed_writes: failed_writes.load(SeqCst),
            full: full.load(SeqCst),
            removed: removed.load(SeqCst),
        }
    }
}

impl Journal for Files {
    fn begin(&self, beginning: CallBeginning) -> Box<dyn JournalWriter> {
        Box::new(FileWriter {
            call: self.shared.next.fetch_add(1, Relaxed),
            queue: self.queue.clone(),
            shared: self.shared.clone(),
            beginning: Some(Box::new(beginning)),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        })
    }
}

/// The end of the queue that a call holds.
struct FileWriter {
    call: u64,
    queue: Sender<QueueItem>,
    shared: Arc<Shared>,
    /// Until the thread knows of the call.
    beginning: Option<Box<CallBeginning>>,
    missed: u64,
    last: Duration,
    /// Goes with the writer, so that the thread notices even when the queue is full.
    alive: Arc<()>,
}

impl FileWriter {
    fn send(&mut self, after: Duration, what: Entry) {
        if let Some(beginning) = self.beginning.take() {
            let begins = QueueItem::Begins { call: self.call, beginning, alive: Arc::downgrade(&self.alive) };
            if let Err(QueueItem::Begins { beginning, .. }) = self.queue.send(begins) {
                self.beginning = Some(beginning);
                return self.miss();
            }
        }
        let entry = QueueItem::Entry { call: self.call, after, missed: self.missed, what };
        match self.queue.send(entry) {
            Ok(()) => self.missed = 0,
            Err(_) => self.miss(),
        }
    }

    fn miss(&mut self) {
        self.missed += 1;
        self.shared.lost.fetch_add(1, Relaxed);
    }
}

impl JournalWriter for FileWriter {
    fn note(&mut self, after: Duration, note: JournalEntry) {
        self.last = after;
        self.send(after, Entry::Note(note));
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.send(self.last, Entry::Panicked);
        }
        self.send(self.last, Entry::Ends);
    }
}

// --------------------------------------------------------------------------------------------- the thread

/// The thread that writes.
struct Worker {
    folder: Folder,
    content: Content,
    salt: Salt,
    shared: Arc<Shared>,
    open: BTreeMap<u64, Open>,
    /// Journals were closed since the folder was last put in order.
    closed_any: bool,
    began: Instant,
    clock: Clock,
    /// The time by that clock, as of the last sweep.
    now: Duration,
    /// When the folder was last put in order, from `began`.
    tidied: Option<Duration>,
}

/// The journal of a call that goes on.
struct Open {
    alive: Weak<()>,
    formatter: Formatter,
    paper: Paper,
    lost: u64,
    /// Lines that are missing behind what was gathered; the next line gathered says so first.
    missing: u64,
    last: Duration,
    /// Bytes written and gathered.
    size: u64,
    full: bool,
}

impl Worker {
    fn run(mut self, queue: &Batches<QueueItem>) {
        loop {
            let (items, stopping) = queue.next(PACE);
            let is_idle = items.is_empty();
            items.into_iter().for_each(|item| self.take(item));
            self.flush();
            self.sweep(queue, self.up(), wall_clock());
            if stopping && is_idle && self.open.is_empty() && queue.close() {
                break;
            }
            if stopping && is_idle {
                std::thread::sleep(PACE.gather); // calls that are still there end first
            }
        }
        self.tidy(self.up());
    }

    fn up(&self) -> Duration {
        clock::now().saturating_duration_since(self.began)
    }

    fn take(&mut self, item: QueueItem) {
        match item {
            QueueItem::Begins { call, beginning, alive } => {
                let (formatter, header) = Formatter::begin(&beginning, self.content, self.salt);
                let paper = Paper::new(self.folder.name(&beginning), header);
                let size = paper.gathered.len() as u64;
                let last = Duration::ZERO;
                let open = Open { alive, formatter, paper, lost: 0, missing: 0, last, size, full: false };
                self.open.insert(call, open);
            }
            QueueItem::Entry { call, after, missed, what } => self.entry(call, after, missed, what),
        }
    }

    fn entry(&mut self, call: u64, after: Duration, missed: u64, what: Entry) {
        let Some(open) = self.open.get_mut(&call) else { return };
        open.last = after;
        open.lost += missed;
        open.missing += missed;
        match what {
            Entry::Note(note) => {
                let (line, remarks) = open.formatter.line(after, &note);
                open.add(&line, remarks.is_end, &self.folder, &self.shared);
                if let Some(call_sid) = remarks.call_sid {
                    open.paper.rename(&self.folder, &call_sid);
                }
            }
            Entry::Panicked => {
                open.add(&Formatter::written(after, What::Panicked), true, &self.folder, &self.shared);
            }
            Entry::Ends => self.close(call),
        }
    }

    fn close(&mut self, call: u64) {
        let Some(mut open) = self.open.remove(&call) else { return };
        open.write_as(&self.folder, &self.shared, true);
        let lost = open.lost;
        open.add(&Formatter::written(open.last, What::End { lost }), true, &self.folder, &self.shared);
        open.write(&self.folder, &self.shared);
        if self.clock.is_set() {
            // By the clock that was set the file would be too old, or never.
            open.paper.file.iter().for_each(|file| drop(file.set_modified(UNIX_EPOCH + self.now)));
        }
        if open.lost > 0 {
            self.folder.lost_lines(open.lost, &open.paper.name);
        }
        self.closed_any = true;
    }

    fn flush(&mut self) {
        for open in self.open.values_mut() {
            open.write(&self.folder, &self.shared);
        }
    }

    /// Closes journals whose calls are gone without having been able to say so, and puts the folder in order.
    fn sweep(&mut self, queue: &Batches<QueueItem>, up: Duration, wall: Duration) {
        self.now = self.clock.now(up, wall);
        let gone: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.alive.strong_count() == 0)
            .map(|(call, _)| *call)
            .collect();
        if !gone.is_empty() {
            // Their last entries are in the queue by now.
            queue.next(AT_ONCE).0.into_iter().for_each(|item| self.take(item));
            gone.into_iter().for_each(|call| self.close(call));
        }
        let every = if self.closed_any { TIDY } else { TIDY_IDLE };
        if self.tidied.is_none_or(|tidied| up.saturating_sub(tidied) >= every) {
            self.tidy(up);
        }
    }

    fn tidy(&mut self, up: Duration) {
        (self.tidied, self.closed_any) = (Some(up), false);
        let open: BTreeSet<&str> = self.open.values().map(|open| open.paper.name.as_str()).collect();
        let knows_ages = up >= AGES_AFTER && !self.clock.is_set();
        let removed = self.folder.tidy(&open, self.now, knows_ages);
        self.shared.removed.fetch_add(removed, SeqCst);
    }
}

impl Open {
    /// Gathers a line. A full journal takes only the end of the call.
    fn add(&mut self, line: &str, is_end: bool, folder: &Folder, shared: &Shared) {
        let limit = folder.settings.max_bytes_per_call;
        let room = if is_end { limit } else { limit.saturating_sub(TAIL_BYTES) };
        let len = line.len() as u64 + 1;
        if (self.full && !is_end) || self.size + len > room {
            if !std::mem::replace(&mut self.full, true) {
                shared.full.fetch_add(1, SeqCst);
                self.gather(&Formatter::written(self.last, What::Full));
            }
            return;
        }
        self.gather(line);
        if self.paper.gathered.len() >= BATCH_BYTES {
            self.write(folder, shared);
        }
    }

    fn gather(&mut self, line: &str) {
        let lines = std::mem::take(&mut self.missing);
        if lines > 0 {
            self.paper.said_missing += lines;
            self.put(&Formatter::written(self.last, What::Lost { lines }));
        }
        self.paper.lines += 1;
        self.put(line);
    }

    fn put(&mut self, line: &str) {
        self.size += line.len() as u64 + 1;
        self.paper.gathered.extend_from_slice(line.as_bytes());
        self.paper.gathered.push(b'\n');
    }

    /// Writes what was gathered; what cannot be written is lost, and the next line written says so.
    fn write(&mut self, folder: &Folder, shared: &Shared) {
        self.write_as(folder, shared, false);
    }

    fn write_as(&mut self, folder: &Folder, shared: &Shared, is_last: bool) {
        let gone = self.paper.lose_if_removed(is_last);
        if gone > 0 {
            shared.lost.fetch_add(gone, SeqCst);
            self.lost += gone;
            self.missing += gone;
            folder.cannot_write(&"a file was removed while it was written");
        }
        let lines = self.paper.lines;
        if lines == 0 {
            return;
        }
        match self.paper.write(folder) {
            Ok(()) => {
                shared.lines.fetch_add(lines, SeqCst);
                folder.can_write();
            }
            Err(error) => {
                shared.failed_writes.fetch_add(1, SeqCst);
                folder.cannot_write(&error);
                shared.lost.fetch_add(lines, SeqCst);
                self.lost += lines;
                self.missing += lines + self.paper.said_missing;
                self.size = self.paper.written;
                self.paper.forget();
            }
        }
    }
}

/// A file, and what is to be appended to it.
struct Paper {
    name: String,
    header: Vec<u8>,
    file: Option<File>,
    gathered: Vec<u8>,
    /// Lines in `gathered`, without those about missing ones.
    lines: u64,
    /// How many lines `gathered` says are missing.
    said_missing: u64,
    /// Bytes in the file, whole lines all of them.
    written: u64,
    /// Lines in the file.
    lines_written: u64,
    writes: u32,
}

impl Paper {
    fn new(name: String, header: String) -> Self {
        let mut header = header.into_bytes();
        header.push(b'\n');
        Self {
            name,
            header,
            file: None,
            gathered: Vec::new(),
            lines: 0,
            said_missing: 0,
            written: 0,
            lines_written: 0,
            writes: 0,
        }
    }

    /// A file that was removed takes no more lines, and those in it are lost: returns how many. The rest of the call
    /// goes to a new one.
    fn lose_if_removed(&mut self, is_last: bool) -> u64 {
        self.writes = self.writes.wrapping_add(u32::from(self.lines > 0));
        let is_due = is_last || (self.lines > 0 && self.writes.is_multiple_of(CHECK_EVERY));
        let removed = |file: &File| file.metadata().is_ok_and(|about| about.nlink() == 0);
        if !is_due || !self.file.as_ref().is_some_and(removed) {
            return 0;
        }
        (self.file, self.written) = (None, 0);
        std::mem::take(&mut self.lines_written)
    }

    fn write(&mut self, folder: &Folder) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(folder.create(&self.name)?),
        };
        if self.written == 0 {
            append(file, &self.header, 0)?;
            self.written = self.header.len() as u64;
        }
        append(file, &self.gathered, self.written)?;
        self.written += self.gathered.len() as u64;
        self.lines_written += self.lines;
        self.forget();
        Ok(())
    }

    fn forget(&mut self) {
        self.gathered.clear();
        (self.lines, self.said_missing) = (0, 0);
    }

    /// The call has a name now. A file that cannot be renamed keeps the name it has.
    fn rename(&mut self, folder: &Folder, call_sid: &str) {
        let stem = self.name.trim_end_matches(SUFFIX);
        let name = format!("{stem}-{}{SUFFIX}", safe(call_sid));
        if self.file.is_none() || fs::rename(folder.dir.join(&self.name), folder.dir.join(&name)).is_ok() {
            self.name = name;
        }
    }
}

/// Something that only grows, unless what was just added has to go again.
trait Append: io::Write {
    /// Takes back what is beyond this length.
    fn take_back(&mut self, len: u64) -> io::Result<()>;
}

impl Append for File {
    fn take_back(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// Appends all of it, or nothing: what was written of it is taken back.
fn append(file: &mut impl Append, bytes: &[u8], len_before: u64) -> io::Result<()> {
    let written = file.write_all(bytes);
    if written.is_err() {
        // If even this fails there is a torn line in the file, which readers pass over.
        let _taken_back = file.take_back(len_before);
    }
    written
}

/// What of a name can be part of a file name: a hostile one cannot leave the folder, hide, or fill the screen.
fn safe(name: &str) -> String {
    const LONGEST: usize = 64;
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = name.chars().take(LONGEST).map(plain).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

// --------------------------------------------------------------------------------------------- the folder

/// Makes the folder. Journals hold who called when, so only their owner may read them.
fn make_folder(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The time ages are measured by: the system's clock, but for a step of it, which is believed once the clock has run on
/// from there for [`BELIEVED_AFTER`]. What goes on meanwhile is the clock that no step moves.
struct Clock {
    /// The system's clock at the start of the process, ms; believed.
    zero_ms: i64,
    /// What it was by a clock that was set, and since when.
    set: Option<(i64, Duration)>,
}

impl Clock {
    fn new(wall: Duration) -> Self {
        Self { zero_ms: millis(wall), set: None }
    }

    /// The clock was set, and is not believed yet.
    const fn is_set(&self) -> bool {
        self.set.is_some()
    }

    /// The time, `up` after the start of the process, when the system's clock shows `wall`.
    fn now(&mut self, up: Duration, wall: Duration) -> Duration {
        let zero_ms = millis(wall).saturating_sub(millis(up));
        let is_near = |other: i64| u128::from(zero_ms.abs_diff(other)) <= STEP.as_millis();
        if is_near(self.zero_ms) {
            (self.zero_ms, self.set) = (zero_ms, None);
        } else {
            match self.set {
                Some((set, since)) if is_near(set) => {
                    if up.saturating_sub(since) >= BELIEVED_AFTER {
                        (self.zero_ms, self.set) = (zero_ms, None);
                    }
                }
                Some(_) | None => {
                    self.set = Some((zero_ms, up));
                    let by_s = zero_ms.saturating_sub(self.zero_ms) / 1_000;
                    tracing::warn!(
                        by_s,
                        "the system's clock was set: no journal is removed for its age for a day"
                    );
                }
            }
        }
        let now_ms = self.zero_ms.saturating_add(millis(up));
        Duration::from_millis(u64::try_from(now_ms).unwrap_or_default())
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The folder and its limits.
struct Folder {
    dir: PathBuf,
    settings: Settings,
    /// Tells the files of processes apart that share a folder.
    process: String,
    failures: LogLimit,
    losses: LogLimit,
    /// A failure was logged, and no write has succeeded since.
    told: Cell<bool>,
}

impl Folder {
    const fn new(dir: PathBuf, settings: Settings, process: String) -> Self {
        let (failures, losses) = (LogLimit::once_a_minute(), LogLimit::once_a_minute());
        Self { dir, settings, process, failures, losses, told: Cell::new(false) }
    }

    fn cannot_write(&self, why: &dyn std::fmt::Display) {
        if let Some(times) = self.failures.count(1) {
            tracing::warn!(%why, times, dir = %self.dir.display(), "a journal cannot be written");
            self.told.set(true);
        }
    }

    fn can_write(&self) {
        if self.told.take() {
            tracing::info!(dir = %self.dir.display(), "journals are written again");
        }
    }

    /// A journal that was closed lacks lines.
    fn lost_lines(&self, lines: u64, journal: &str) {
        if let Some(lost) = self.losses.count(lines) {
            tracing::warn!(lost, journal, "lines of journals are lost");
        }
    }

    /// A new file, in a new folder if the old one was removed.
    fn create(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.append(true).create_new(true).mode(0o600);
        match options.open(self.dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make_folder(&self.dir)?;
                options.open(self.dir.join(name))
            }
            opened => opened,
        }
    }

    /// `call-20260101T000000Z-1f2e3d4c-000001.ndjson`: names sort by time. The callSid follows when it is known.
    fn name(&self, beginning: &CallBeginning) -> String {
        let when = utc(beginning.unix);
        format!("{PREFIX}{when}-{}-{:06}{SUFFIX}", self.process, beginning.key)
    }

    /// Removes what is beyond the limits, the oldest first, and never a journal that is being written. Returns how many
    /// went. For its age none goes unless ages are known.
    fn tidy(&self, open: &BTreeSet<&str>, now: Duration, knows_ages: bool) -> u64 {
        let Settings { keep_calls, keep_bytes, keep_days, .. } = self.settings;
        let mut found = self.journals();
        for journal in &mut found {
            if journal.touched > now + STEP && knows_ages {
                // Written by a clock that was ahead: it ages from now on.
                let file = OpenOptions::new().append(true).open(self.dir.join(&journal.name));
                let _ = file.and_then(|file| file.set_modified(UNIX_EPOCH + now));
            }
            journal.touched = journal.touched.min(now);
        }
        found.sort();
        let (mut calls, mut bytes) = (0, 0_u64);
        let mut removed = 0;
        // The newest first: they are counted before any older one is.
        for Found { touched, name, len } in found.into_iter().rev() {
            calls += 1;
            bytes = bytes.saturating_add(len);
            let old = knows_ages
                && now.saturating_sub(touched) > Duration::from_secs(keep_days.saturating_mul(86_400));
            let beyond = calls > keep_calls || bytes > keep_bytes || old;
            if beyond && !open.contains(name.as_str()) && fs::remove_file(self.dir.join(&name)).is_ok() {
                calls -= 1;
                bytes = bytes.saturating_sub(len);
                removed += 1;
            }
        }
        removed
    }

    fn journals(&self) -> Vec<Found> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                let about = entry.metadata().ok()?; // of a link itself, not of what it points to
                let is_ours = about.is_file() && name.starts_with(PREFIX) && name.ends_with(SUFFIX);
                let touched = about.modified().ok()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                is_ours.then_some(Found { touched, name, len: about.len() })
            })
            .collect()
    }
}

/// A journal in the folder; sorts by when it was last written, then by name, which begins with when its call did.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    touched: Duration,
    name: String,
    len: u64,
}

#[expect(clippy::disallowed_methods, reason = "the age of files is on the system's clock")]
fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `20260101T000000Z`.
fn utc(unix: i64) -> String {
    let (days, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    // The civil calendar in eras of 400 years, each beginning on the first of March.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + next;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day_of_month:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::Config;
    use crate::call::event::EndReason;
    use crate::call::{Leg, LegChange};
    use serde_json::Value;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use tempfile::TempDir;

    /// An empty folder of the test's own, gone when dropped.
    fn dir() -> TempDir {
        TempDir::new().unwrap()
    }

    fn settings(dir: &Path) -> Settings {
        Settings { dir: Some(dir.to_owned()), ..Settings::default() }
    }

    fn beginning(key: u64) -> CallBeginning {
        Config::default().server().beginning(key, 1_767_225_600, Duration::ZERO)
    }

    fn start(call_sid: &str) -> JournalEntry {
        let text = format!(
            r#"{{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{{"streamSid":"MZ1","callSid":"{call_sid}",
            "mediaFormat":{{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}}}}"#
        );
        JournalEntry::Text(Leg::Caller, text)
    }

    fn ended() -> JournalEntry {
        JournalEntry::Happened(crate::call::event::CallEvent::Ended {
            reason: EndReason::Stopped,
            detail: "stop".into(),
            lasted: Duration::from_secs(1),
            counts: Box::default(),
            transcript: Vec::new(),
        })
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}")))
            .collect()
    }

    fn kinds(lines: &[Value]) -> Vec<&str> {
        lines.iter().skip(1).map(|line| line["is"].as_str().unwrap()).collect()
    }

    #[test]
    fn a_call_leaves_one_private_file_that_is_named_like_it() {
        let parent = dir();
        let dir = parent.path().join("made by the bridge");
        let files = Files::open(&settings(&dir)).unwrap().unwrap();
        let mut writer = files.begin(beginning(7));
        writer.note(ms(1), start("CA1"));
        writer.note(ms(2), JournalEntry::Changed(Leg::Caller, LegChange::Pong));
        writer.note(ms(3), ended());
        drop(writer);
        assert_eq!(files.stop(), Stats { lines: 4, ..Stats::default() });
        let names = names(&dir);
        assert!(
            names.len() == 1
                && names[0].starts_with("call-20260101T000000Z-")
                && names[0].ends_with("-000007-CA1.ndjson"),
            "{names:?}"
        );
        let path = dir.join(&names[0]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
        let lines = lines(&path);
        assert_eq!((&lines[0]["journal"], &lines[0]["key"]), (&1.into(), &7.into()));
        assert_eq!(kinds(&lines), ["caller.start", "leg", "event", "end"]);
        assert_eq!(lines[3]["reason"], "stopped");
    }

    #[test]
    fn a_hostile_name_cannot_leave_the_folder() {
        for (name, file) in [
            ("../../etc/passwd", "______etc_passwd"),
            (".hidden", "_hidden"),
            ("CA1\n\u{202e}x", "CA1__x"),
            ("", "unnamed"),
        ] {
            assert_eq!(safe(name), file);
        }
        assert_eq!(safe(&"A".repeat(900)).len(), 64);
        let folder = dir();
        let dir = folder.path();
        let files = Files::open(&settings(dir)).unwrap().unwrap();
        let mut writer = files.begin(beginning(1));
        writer.note(ms(1), start("/../../x"));
        drop(writer);
        files.stop();
        assert!(names(dir)[0].ends_with("-_______x.ndjson"), "{:?}", names(dir));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_noted_and_the_call_does_not_wait() {
        let (queue, items) = worker::queue(Bounds { items: 3, bytes: 10_000 });
        let shared = Arc::new(Shared::default());
        let mut writer = FileWriter {
            call: 0,
            queue: queue.clone(),
            shared: shared.clone(),
            beginning: Some(Box::new(beginning(1))),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        };
        // The thread hangs and reads nothing. Room is for the beginning and two notes.
        for n in 0..10 {
            writer.note(ms(n), start("CA1"));
        }
        assert_eq!(shared.snapshot().lost, 8);
        let folder = dir();
        let dir = folder.path();
        let mut worker = worker(dir, shared.clone());
        take_all(&mut worker, &items);
        writer.note(ms(10), start("CA1"));
        drop(writer);
        take_all(&mut worker, &items);
        let lines = lines(&dir.join(&names(dir)[0]));
        assert_eq!(kinds(&lines), ["caller.start", "caller.start", "lost", "caller.start", "end"]);
        assert_eq!((&lines[3]["lines"], &lines[5]["lost"]), (&8.into(), &8.into()));
        assert_eq!(queue.queued(), (0, 0), "what was taken is not counted any more");
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_too() {
        let (queue, _items) = worker::queue(BOUNDS);
        let shared = Arc::new(Shared::default());
        let writer = |call| FileWriter {
            call,
            queue: queue.clone(),
            shared: shared.clone(),
            beginning: Some(Box::new(beginning(call))),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        };
        let mut writers = [writer(0), writer(1)];
        for n in 0..6 {
            writers[n % 2].note(ms(0), JournalEntry::Text(Leg::Model, "x".repeat(10 << 20)));
        }
        assert_eq!((shared.snapshot().lost, queue.queued().1), (3, 30 << 20));
    }

    const fn day(day: u64) -> Duration {
        Duration::from_secs(day * 86_400)
    }

    /// As the thread does, until nothing waits.
    fn take_all(worker: &mut Worker, items: &Batches<QueueItem>) {
        loop {
            let (batch, _) = items.next(AT_ONCE);
            if batch.is_empty() {
                break;
            }
            batch.into_iter().for_each(|item| worker.take(item));
        }
    }

    fn worker(dir: &Path, shared: Arc<Shared>) -> Worker {
        Worker {
            folder: Folder::new(dir.to_owned(), settings(dir), "00000000".into()),
            content: Content::Hashes,
            salt: Salt::known(),
            shared,
            open: BTreeMap::new(),
            closed_any: false,
            began: clock::now(),
            clock: Clock::new(day(20_000)),
            now: day(20_000),
            tidied: None,
        }
    }

    #[test]
    fn a_full_disk_makes_a_hole_that_is_said_and_no_rubbish() {
        let folder = dir();
        let dir = folder.path();
        let shared = Arc::new(Shared::default());
        let mut worker = worker(dir, shared.clone());
        let alive = Arc::new(());
        let begins =
            QueueItem::Begins { call: 0, beginning: Box::new(beginning(1)), alive: Arc::downgrade(&alive) };
        let entry = |what| QueueItem::Entry { call: 0, after: ms(5), missed: 0, what };
        worker.take(begins);
        worker.take(entry(Entry::Note(start("CA1"))));
        worker.flush();
        // The disk is full for a while: this device refuses every write.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let paper = &mut worker.open.get_mut(&0).unwrap().paper;
        let real = paper.file.replace(full);
        for _ in 0..3 {
            worker.take(entry(Entry::Note(start("CA1"))));
            worker.flush();
        }
        worker.flush();
        assert_eq!((shared.snapshot().lost, shared.snapshot().failed_writes), (3, 3));
        worker.open.get_mut(&0).unwrap().paper.file = real;
        worker.take(entry(Entry::Note(ended())));
        worker.take(entry(Entry::Ends));
        let lines = lines(&dir.join(&names(dir)[0]));
        assert_eq!(kinds(&lines), ["caller.start", "lost", "event", "end"]);
        assert_eq!((&lines[2]["lines"], &lines[4]["lost"]), (&3.into(), &3.into()));
    }

    /// A disk with room for so many bytes.
    struct Small(Vec<u8>, usize);

    impl io::Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = (self.1 - self.0.len()).min(bytes.len());
            self.0.extend_from_slice(&bytes[..room]);
            if room == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Append for Small {
        fn take_back(&mut self, len: u64) -> io::Result<()> {
            self.0.truncate(usize::try_from(len).unwrap());
            Ok(())
        }
    }

    #[test]
    fn a_write_that_fails_half_way_is_taken_back() {
        let mut disk = Small(Vec::new(), 10);
        append(&mut disk, b"one\n", 0).unwrap();
        assert!(append(&mut disk, b"too long\n", 4).is_err());
        append(&mut disk, b"three\n", 4).unwrap();
        assert_eq!(disk.0, b"one\nthree\n");
    }

    #[test]
    fn a_journal_that_is_full_keeps_its_beginning_and_how_the_call_ended() {
        let folder = dir();
        let dir = folder.path();
        let settings = Settings { max_bytes_per_call: 64 * 1024, ..settings(dir) };
        let files = Files::open(&settings).unwrap().unwrap();
        let mut writer = files.begin(beginning(1));
        for n in 0..1_000 {
            writer.note(ms(n), start("CA1"));
        }
        writer.note(ms(1_000), ended());
        drop(writer);
        assert_eq!(files.stop().full, 1);
        let path = dir.join(&names(dir)[0]);
        assert!((50_000..=64 * 1024).contains(&fs::metadata(&path).unwrap().len()));
        let lines = lines(&path);
        let kinds = kinds(&lines);
        assert_eq!(kinds[kinds.len() - 3..], ["full", "event", "end"]);
    }

    #[test]
    fn a_call_that_panics_says_so() {
        let folder = dir();
        let dir = folder.path();
        let files = Files::open(&settings(dir)).unwrap().unwrap();
        let mut writer = files.begin(beginning(1));
        writer.note(ms(1), start("CA1"));
        let panicked = std::thread::spawn(move || {
            let _writer = writer;
            panic!("planted");
        });
        assert!(panicked.join().is_err());
        files.stop();
        assert_eq!(kinds(&lines(&dir.join(&names(dir)[0]))), ["caller.start", "panicked", "end"]);
    }

    #[test]
    fn a_call_that_could_not_say_it_is_gone_is_closed_all_the_same() {
        let folder = dir();
        let dir = folder.path();
        let mut worker = worker(dir, Arc::default());
        let alive = Arc::new(());
        worker.take(QueueItem::Begins {
            call: 3,
            beginning: Box::new(beginning(1)),
            alive: Arc::downgrade(&alive),
        });
        let (_queue, items) = worker::queue(BOUNDS);
        worker.sweep(&items, ms(0), day(20_000));
        assert_eq!(worker.open.len(), 1);
        drop(alive);
        worker.sweep(&items, ms(0), day(20_000));
        assert!(worker.open.is_empty());
        assert_eq!(kinds(&lines(&dir.join(&names(dir)[0]))), ["end"]);
    }

    #[test]
    fn the_oldest_go_first_by_count_by_bytes_and_by_age() {
        let folder = dir();
        let dir = folder.path();
        let put = |n: u64, bytes: usize| {
            let name = format!("call-2026010{n}T000000Z-x-000001.ndjson");
            let file = File::create(dir.join(&name)).unwrap();
            (&file).write_all(&vec![b'x'; bytes]).unwrap();
            file.set_modified(UNIX_EPOCH + day(20_000 + n)).unwrap();
            name
        };
        let all: Vec<_> = (1..=6).map(|n| put(n, 1_000)).collect();
        for other in ["notes.ndjson", "call-me.txt"] {
            fs::write(dir.join(other), "not ours").unwrap();
        }
        std::os::unix::fs::symlink("/etc/hostname", dir.join("call-0.ndjson")).unwrap();
        let with = |keep_calls, keep_bytes, keep_days| {
            let settings = Settings { keep_calls, keep_bytes, keep_days, ..settings(dir) };
            Folder::new(dir.to_owned(), settings, String::new())
        };
        let left = || names(dir).into_iter().filter(|name| all.contains(name)).collect::<Vec<_>>();
        let none = BTreeSet::new();
        let now = day(20_007);

        assert_eq!(with(9, 99_999, 99).tidy(&none, now, true), 0, "all within the limits");
        assert_eq!(with(5, 99_999, 99).tidy(&none, now, true), 1);
        assert_eq!(left(), all[1..]);
        assert_eq!(with(9, 4_500, 99).tidy(&none, now, true), 1);
        assert_eq!(left(), all[2..]);
        assert_eq!(with(9, 99_999, 3).tidy(&none, now, false), 0, "ages are not known");
        assert_eq!(with(9, 99_999, 3).tidy(&none, now, true), 1);
        assert_eq!(left(), all[3..]);
        let open = BTreeSet::from([all[3].as_str()]);
        assert_eq!(with(1, 1, 1).tidy(&open, now, true), 2, "what is being written stays");
        assert_eq!(left(), all[3..4]);
        assert_eq!(names(dir).len(), 4, "what is not ours stays");
    }

    /// A journal that was last written at this time.
    fn put(dir: &Path, name: &str, touched: Duration) -> String {
        let name = format!("call-{name}.ndjson");
        File::create(dir.join(&name)).unwrap().set_modified(UNIX_EPOCH + touched).unwrap();
        name
    }

    #[test]
    fn a_clock_that_jumps_ahead_removes_no_journal_and_back_again_the_limits_hold() {
        let folder = dir();
        let dir = folder.path();
        let mut worker = worker(dir, Arc::default());
        let (_queue, items) = worker::queue(BOUNDS);
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let recent = put(dir, "1", day(19_990));
        let old = put(dir, "2", day(19_960));
        let mut at = |up: Duration, wall: Duration, closed| {
            worker.closed_any = closed;
            worker.sweep(&items, up, wall);
            names(dir)
        };
        assert_eq!(
            at(ms(0), day(20_000), true),
            [recent.clone(), old.clone()],
            "the machine has just started"
        );
        assert_eq!(
            at(hours(2), day(20_000) + hours(2), true),
            std::slice::from_ref(&recent),
            "40 days and more"
        );
        // 40 days ahead, for 20 hours: a journal of this time counts as what it is.
        for hour in 3..23 {
            assert_eq!(at(hours(hour), day(20_040) + hours(hour), true), std::slice::from_ref(&recent));
        }
        let ahead = put(dir, "3", day(20_040) + hours(22));
        // Back again: what seems to be of the future ages from now on, and the folder is put in order as before.
        assert_eq!(at(hours(24), day(20_001), true), [recent.clone(), ahead.clone()]);
        assert_eq!(at(hours(24) + day(19), day(20_020), true), [recent.clone(), ahead.clone()]);
        assert_eq!(at(hours(24) + day(20), day(20_021), true), [ahead]);
        assert!(at(hours(24) + day(31), day(20_032), true).is_empty());
    }

    #[test]
    fn a_clock_that_was_set_is_believed_after_a_day_and_journals_closed_meanwhile_keep_the_other_time() {
        let folder = dir();
        let dir = folder.path();
        let mut worker = worker(dir, Arc::default());
        let (_queue, items) = worker::queue(BOUNDS);
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        let old = put(dir, "1", day(19_990));
        worker.sweep(&items, hours(1), day(20_000) + hours(1));
        worker.sweep(&items, hours(2), day(20_040));
        let alive = Arc::new(());
        worker.take(QueueItem::Begins {
            call: 3,
            beginning: Box::new(beginning(1)),
            alive: Arc::downgrade(&alive),
        });
        worker.take(QueueItem::Entry { call: 3, after: ms(1), missed: 0, what: Entry::Ends });
        let of_the_call = names(dir).into_iter().find(|name| *name != old).unwrap();
        let touched = fs::metadata(dir.join(of_the_call)).unwrap().modified().unwrap();
        assert_eq!(touched, UNIX_EPOCH + day(20_000) + hours(2));
        worker.sweep(&items, hours(25), day(20_040) + hours(23));
        assert!(names(dir).contains(&old));
        worker.sweep(&items, hours(26), day(20_040) + hours(24));
        assert!(worker.now == day(20_040) + hours(24) && !names(dir).contains(&old));
    }

    #[test]
    fn a_journal_that_is_removed_while_it_is_written_is_missed_and_the_call_goes_on_in_a_new_one() {
        let parent = dir();
        let dir = parent.path().join("journals");
        make_folder(&dir).unwrap();
        let shared = Arc::new(Shared::default());
        let mut worker = worker(&dir, shared.clone());
        let alive = Arc::new(());
        worker.take(QueueItem::Begins {
            call: 0,
            beginning: Box::new(beginning(1)),
            alive: Arc::downgrade(&alive),
        });
        let entry = |what| QueueItem::Entry { call: 0, after: ms(5), missed: 0, what };
        for _ in 0..3 {
            worker.take(entry(Entry::Note(start("CA1"))));
            worker.flush();
        }
        fs::remove_dir_all(&dir).unwrap();
        for _ in 0..CHECK_EVERY {
            worker.take(entry(Entry::Note(start("CA1"))));
            worker.flush();
        }
        worker.take(entry(Entry::Note(ended())));
        worker.take(entry(Entry::Ends));
        let lines = lines(&dir.join(&names(&dir)[0]));
        let kinds = kinds(&lines);
        let lost = u64::from(CHECK_EVERY) - 1;
        assert_eq!((kinds[1], &lines[2]["lines"]), ("lost", &lost.into()), "{kinds:?}");
        assert_eq!((lines.last().unwrap()["lost"].as_u64(), shared.snapshot().lost), (Some(lost), lost));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_refused_with_its_name() {
        let error = Files::open(&settings(Path::new("/proc/nowhere"))).err().unwrap().to_string();
        assert!(error.contains("journal.dir /proc/nowhere") && error.contains("leave it out"), "{error}");
        assert!(Files::open(&Settings::default()).unwrap().is_none(), "off unless a folder is set");
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix, text) in [
            (0, "19700101T000000Z"),
            (951_782_399, "20000228T235959Z"),
            (951_782_400, "20000229T000000Z"),
            (1_767_225_600, "20260101T000000Z"),
            (4_107_542_399, "21000228T235959Z"),
            (-1, "19691231T235959Z"),
        ] {
            assert_eq!(utc(unix), text);
        }
    }
}
