//! Journals as files: a bounded queue, one thread that writes, a folder that stays within its limits.
//!
//! Calls only ever put a note into the queue, and only if there is room. The thread turns notes into lines, gathers
//! them for a moment, and appends them in one write a file. It never rewrites what is there, so whatever ends the
//! process leaves files that can be read, the last line possibly torn. A write that fails takes back what it wrote of a
//! line, counts what is lost, and is tried again with what comes next: a full disk makes holes, not rubbish.

use super::lines::{Salt, Scribe, What};
use super::{Beginning, Content, Journal, Note, Settings, Tape};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Notes that may wait for the thread: several seconds of a busy server.
const QUEUE_NOTES: usize = 16_384;
/// What they may hold together, bytes.
const QUEUE_BYTES: usize = 32 << 20;
/// How long the thread gathers notes before it writes, while there are calls.
const GATHER: Duration = Duration::from_millis(20);
/// How often the thread looks after its folder while there are no calls.
const SWEEP: Duration = Duration::from_secs(1);
/// How often, at most, it looks for files that have to go after calls have ended.
const TIDY: Duration = Duration::from_secs(10);
/// And how often when none have.
const TIDY_IDLE: Duration = Duration::from_secs(3_600);
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
pub struct Counted {
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
    queued_bytes: AtomicUsize,
    next: AtomicU64,
    lines: AtomicU64,
    lost: AtomicU64,
    failed_writes: AtomicU64,
    full: AtomicU64,
    removed: AtomicU64,
}

/// What travels to the thread.
struct Slip {
    call: u64,
    after: Duration,
    /// Notes of the call that found no room since the last slip.
    missed: u64,
    says: Says,
}

enum Says {
    Note(Note),
    Panicked,
    Ends,
}

/// Something for the thread.
enum Post {
    Begins { call: u64, beginning: Box<Beginning>, alive: Weak<()> },
    Slip(Slip),
}

/// Journals in a folder.
pub struct Files {
    posts: SyncSender<Post>,
    shared: Arc<Shared>,
    /// Says when the thread has ended.
    ended: Mutex<Receiver<()>>,
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
        // Journals tell who called when: nobody else's business.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(cannot)?;
        let probe = dir.join(format!(".probe-{}", std::process::id()));
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(cannot)?;

        let shared = Arc::new(Shared::default());
        let (posts, letterbox) = sync_channel(QUEUE_NOTES);
        let (done, ended) = sync_channel(0);
        let salt = Salt::secret();
        let clerk = Clerk {
            folder: Folder { dir: dir.clone(), settings: settings.clone(), process: salt.tag() },
            content: settings.content,
            salt,
            shared: shared.clone(),
            open: BTreeMap::new(),
            closed_any: false,
            tidied: Duration::ZERO,
        };
        std::thread::Builder::new().name("journal".into()).spawn(move || {
            clerk.run(&letterbox);
            drop(done);
        })?;
        Ok(Some(Self { posts, shared, ended: Mutex::new(ended) }))
    }

    /// What became of the notes so far.
    pub fn counted(&self) -> Counted {
        self.shared.counted()
    }

    /// Waits until everything is written, but not for ever: a disk that hangs does not keep a process alive. Calls that
    /// are still there lose what they note from now on.
    pub fn stop(self) -> Counted {
        let Self { posts, shared, ended } = self;
        drop(posts);
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Nothing is ever sent: the other end is dropped with the thread.
        if ended.recv_timeout(STOP_PATIENCE) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the disk hangs, or a call does: the end of the journals is lost");
        }
        shared.counted()
    }
}

impl Shared {
    fn counted(&self) -> Counted {
        let Self { lines, lost, failed_writes, full, removed, queued_bytes: _, next: _ } = self;
        Counted {
            lines: lines.load(SeqCst),
            lost: lost.load(SeqCst),
            failed_writes: failed_writes.load(SeqCst),
            full: full.load(SeqCst),
            removed: removed.load(SeqCst),
        }
    }
}

impl Journal for Files {
    fn begin(&self, beginning: Beginning) -> Box<dyn Tape> {
        Box::new(FileTape {
            call: self.shared.next.fetch_add(1, Relaxed),
            posts: self.posts.clone(),
            shared: self.shared.clone(),
            beginning: Some(Box::new(beginning)),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        })
    }
}

/// The end of the queue that a call holds.
struct FileTape {
    call: u64,
    posts: SyncSender<Post>,
    shared: Arc<Shared>,
    /// Until the thread knows of the call.
    beginning: Option<Box<Beginning>>,
    missed: u64,
    last: Duration,
    /// Goes with the tape, so that the thread notices even when the queue is full.
    alive: Arc<()>,
}

impl FileTape {
    fn post(&mut self, after: Duration, says: Says) {
        if let Some(beginning) = self.beginning.take() {
            let begins = Post::Begins { call: self.call, beginning, alive: Arc::downgrade(&self.alive) };
            if let Err(TrySendError::Full(Post::Begins { beginning, .. })) = self.posts.try_send(begins) {
                self.beginning = Some(beginning);
                return self.miss();
            }
        }
        let weight = match &says {
            Says::Note(note) => note.weight(),
            Says::Panicked | Says::Ends => 0,
        };
        // Two calls may both see the last room and both take it: the bound is one message a call above the number.
        if self.shared.queued_bytes.load(Relaxed) + weight > QUEUE_BYTES {
            return self.miss();
        }
        self.shared.queued_bytes.fetch_add(weight, Relaxed);
        let slip = Slip { call: self.call, after, missed: self.missed, says };
        match self.posts.try_send(Post::Slip(slip)) {
            Ok(()) => self.missed = 0,
            Err(_) => {
                self.shared.queued_bytes.fetch_sub(weight, Relaxed);
                self.miss();
            }
        }
    }

    fn miss(&mut self) {
        self.missed += 1;
        self.shared.lost.fetch_add(1, Relaxed);
    }
}

impl Tape for FileTape {
    fn note(&mut self, after: Duration, note: Note) {
        self.last = after;
        self.post(after, Says::Note(note));
    }
}

impl Drop for FileTape {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.post(self.last, Says::Panicked);
        }
        self.post(self.last, Says::Ends);
    }
}

// --------------------------------------------------------------------------------------------- the thread

/// The thread that writes.
struct Clerk {
    folder: Folder,
    content: Content,
    salt: Salt,
    shared: Arc<Shared>,
    open: BTreeMap<u64, Open>,
    /// Journals were closed since the folder was last put in order.
    closed_any: bool,
    /// When that was, on the wall clock.
    tidied: Duration,
}

/// The journal of a call that goes on.
struct Open {
    alive: Weak<()>,
    scribe: Scribe,
    paper: Paper,
    lost: u64,
    /// Lines that are missing behind what was gathered; the next line gathered says so first.
    missing: u64,
    last: Duration,
    /// Bytes written and gathered.
    size: u64,
    full: bool,
}

impl Clerk {
    fn run(mut self, letterbox: &Receiver<Post>) {
        let mut goes_on = true;
        while goes_on {
            if self.open.is_empty() {
                match letterbox.recv_timeout(SWEEP) {
                    Ok(post) => self.take(post),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => goes_on = false,
                }
            } else {
                // Nobody waits at the box while calls go on, so putting something in never costs a call a wake-up.
                std::thread::sleep(GATHER);
            }
            loop {
                match letterbox.try_recv() {
                    Ok(post) => self.take(post),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        goes_on = false;
                        break;
                    }
                }
            }
            self.flush();
            self.sweep(letterbox);
        }
        self.flush();
        self.tidy(wall_clock());
    }

    fn take(&mut self, post: Post) {
        match post {
            Post::Begins { call, beginning, alive } => {
                let (scribe, header) = Scribe::begin(&beginning, self.content, self.salt);
                let paper = Paper::new(self.folder.name(&beginning), header);
                let size = paper.gathered.len() as u64;
                let last = Duration::ZERO;
                let open = Open { alive, scribe, paper, lost: 0, missing: 0, last, size, full: false };
                self.open.insert(call, open);
            }
            Post::Slip(slip) => self.slip(slip),
        }
    }

    fn slip(&mut self, Slip { call, after, missed, says }: Slip) {
        let weight = if let Says::Note(note) = &says { note.weight() } else { 0 };
        self.shared.queued_bytes.fetch_sub(weight, Relaxed);
        let Some(open) = self.open.get_mut(&call) else { return };
        open.last = after;
        open.lost += missed;
        open.missing += missed;
        match says {
            Says::Note(note) => {
                let (line, remarks) = open.scribe.line(after, &note);
                open.add(&line, remarks.is_end, &self.folder, &self.shared);
                if let Some(call_sid) = remarks.call_sid {
                    open.paper.rename(&self.folder, &call_sid);
                }
            }
            Says::Panicked => {
                open.add(&Scribe::written(after, What::Panicked), true, &self.folder, &self.shared);
            }
            Says::Ends => self.close(call),
        }
    }

    fn close(&mut self, call: u64) {
        let Some(mut open) = self.open.remove(&call) else { return };
        open.write(&self.folder, &self.shared);
        let lost = open.lost;
        open.add(&Scribe::written(open.last, What::End { lost }), true, &self.folder, &self.shared);
        open.write(&self.folder, &self.shared);
        if open.lost > 0 {
            tracing::warn!(lost = open.lost, journal = %open.paper.name, "lines of a journal are lost");
        }
        self.closed_any = true;
    }

    fn flush(&mut self) {
        for open in self.open.values_mut() {
            open.write(&self.folder, &self.shared);
        }
    }

    /// Closes journals whose calls are gone without having been able to say so, and puts the folder in order.
    fn sweep(&mut self, letterbox: &Receiver<Post>) {
        let gone: Vec<u64> = self
            .open
            .iter()
            .filter(|(_, open)| open.alive.strong_count() == 0)
            .map(|(call, _)| *call)
            .collect();
        if !gone.is_empty() {
            // What they still said is in the box by now.
            while let Ok(post) = letterbox.try_recv() {
                self.take(post);
            }
            gone.into_iter().for_each(|call| self.close(call));
        }
        let now = wall_clock();
        if now.saturating_sub(self.tidied) >= if self.closed_any { TIDY } else { TIDY_IDLE } {
            self.tidy(now);
        }
    }

    fn tidy(&mut self, now: Duration) {
        (self.tidied, self.closed_any) = (now, false);
        let open: BTreeSet<&str> = self.open.values().map(|open| open.paper.name.as_str()).collect();
        let removed = self.folder.tidy(&open, now);
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
                self.gather(&Scribe::written(self.last, What::Full));
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
            self.put(&Scribe::written(self.last, What::Lost { lines }));
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
        let lines = self.paper.lines;
        if lines == 0 {
            return;
        }
        match self.paper.write(folder) {
            Ok(()) => {
                shared.lines.fetch_add(lines, SeqCst);
            }
            Err(error) => {
                if shared.failed_writes.fetch_add(1, SeqCst) == 0 {
                    tracing::warn!(%error, dir = %folder.dir.display(), "a journal cannot be written");
                }
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
}

impl Paper {
    fn new(name: String, header: String) -> Self {
        let mut header = header.into_bytes();
        header.push(b'\n');
        Self { name, header, file: None, gathered: Vec::new(), lines: 0, said_missing: 0, written: 0 }
    }

    fn write(&mut self, folder: &Folder) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                let file =
                    options.append(true).create_new(true).mode(0o600).open(folder.dir.join(&self.name))?;
                none.insert(file)
            }
        };
        if self.written == 0 {
            append(file, &self.header, 0)?;
            self.written = self.header.len() as u64;
        }
        append(file, &self.gathered, self.written)?;
        self.written += self.gathered.len() as u64;
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

/// The folder and its limits.
struct Folder {
    dir: PathBuf,
    settings: Settings,
    /// Tells the files of processes apart that share a folder.
    process: String,
}

impl Folder {
    /// `call-20260101T000000Z-1f2e3d4c-000001.ndjson`: names sort by time. The callSid follows when it is known.
    fn name(&self, beginning: &Beginning) -> String {
        let when = utc(beginning.unix);
        format!("{PREFIX}{when}-{}-{:06}{SUFFIX}", self.process, beginning.key)
    }

    /// Removes what is beyond the limits, the oldest first, and never a journal that is being written. Returns how many
    /// went.
    fn tidy(&self, open: &BTreeSet<&str>, now: Duration) -> u64 {
        let Settings { keep_calls, keep_bytes, keep_days, .. } = self.settings;
        let mut found = self.journals();
        found.sort();
        let (mut calls, mut bytes) = (0, 0_u64);
        let mut removed = 0;
        // The newest first: they are counted before any older one is.
        for Found { name, len, touched } in found.into_iter().rev() {
            calls += 1;
            bytes = bytes.saturating_add(len);
            let old = now.saturating_sub(touched) > Duration::from_secs(keep_days.saturating_mul(86_400));
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
                is_ours.then_some(Found { name, len: about.len(), touched })
            })
            .collect()
    }
}

/// A journal in the folder; sorts by name, which is by time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    name: String,
    len: u64,
    touched: Duration,
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
    use crate::call::event::EndReason;
    use crate::call::{Leg, LegChange};
    use crate::config::Config;
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

    fn beginning(key: u64) -> Beginning {
        Beginning { key, unix: 1_767_225_600, up: Duration::ZERO, config: Config::default().into() }
    }

    fn start(call_sid: &str) -> Note {
        let text = format!(
            r#"{{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{{"streamSid":"MZ1","callSid":"{call_sid}",
            "mediaFormat":{{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}}}}"#
        );
        Note::Text(Leg::Caller, text)
    }

    fn ended() -> Note {
        Note::Happened(crate::call::event::CallEvent::Ended {
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
        let mut tape = files.begin(beginning(7));
        tape.note(ms(1), start("CA1"));
        tape.note(ms(2), Note::Changed(Leg::Caller, LegChange::Pong));
        tape.note(ms(3), ended());
        drop(tape);
        assert_eq!(files.stop(), Counted { lines: 4, ..Counted::default() });
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
        let mut tape = files.begin(beginning(1));
        tape.note(ms(1), start("/../../x"));
        drop(tape);
        files.stop();
        assert!(names(dir)[0].ends_with("-_______x.ndjson"), "{:?}", names(dir));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_said_and_nobody_waits() {
        let (posts, letterbox) = sync_channel(3);
        let shared = Arc::new(Shared::default());
        let mut tape = FileTape {
            call: 0,
            posts,
            shared: shared.clone(),
            beginning: Some(Box::new(beginning(1))),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        };
        // The thread hangs: nobody reads. Room is for the beginning and two notes.
        for n in 0..10 {
            tape.note(ms(n), start("CA1"));
        }
        assert_eq!(shared.counted().lost, 8);
        let folder = dir();
        let dir = folder.path();
        let mut clerk = clerk(dir, shared.clone());
        while let Ok(post) = letterbox.try_recv() {
            clerk.take(post);
        }
        tape.note(ms(10), start("CA1"));
        drop(tape);
        while let Ok(post) = letterbox.try_recv() {
            clerk.take(post);
        }
        let lines = lines(&dir.join(&names(dir)[0]));
        assert_eq!(kinds(&lines), ["caller.start", "caller.start", "lost", "caller.start", "end"]);
        assert_eq!((&lines[3]["lines"], &lines[5]["lost"]), (&8.into(), &8.into()));
        assert_eq!(shared.queued_bytes.load(SeqCst), 0, "what was taken is not counted any more");
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_too() {
        let (posts, _letterbox) = sync_channel(100);
        let shared = Arc::new(Shared::default());
        let tape = |call| FileTape {
            call,
            posts: posts.clone(),
            shared: shared.clone(),
            beginning: Some(Box::new(beginning(call))),
            missed: 0,
            last: Duration::ZERO,
            alive: Arc::new(()),
        };
        let mut tapes = [tape(0), tape(1)];
        for n in 0..6 {
            tapes[n % 2].note(ms(0), Note::Text(Leg::Model, "x".repeat(10 << 20)));
        }
        assert_eq!((shared.counted().lost, shared.queued_bytes.load(SeqCst)), (3, 30 << 20));
    }

    fn clerk(dir: &Path, shared: Arc<Shared>) -> Clerk {
        Clerk {
            folder: Folder { dir: dir.to_owned(), settings: settings(dir), process: "00000000".into() },
            content: Content::Hashes,
            salt: Salt::known(),
            shared,
            open: BTreeMap::new(),
            closed_any: false,
            tidied: Duration::ZERO,
        }
    }

    #[test]
    fn a_full_disk_makes_a_hole_that_is_said_and_no_rubbish() {
        let folder = dir();
        let dir = folder.path();
        let shared = Arc::new(Shared::default());
        let mut clerk = clerk(dir, shared.clone());
        let alive = Arc::new(());
        let begins =
            Post::Begins { call: 0, beginning: Box::new(beginning(1)), alive: Arc::downgrade(&alive) };
        let slip = |says| Post::Slip(Slip { call: 0, after: ms(5), missed: 0, says });
        clerk.take(begins);
        clerk.take(slip(Says::Note(start("CA1"))));
        clerk.flush();
        // The disk is full for a while: this device refuses every write.
        let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
        let paper = &mut clerk.open.get_mut(&0).unwrap().paper;
        let real = paper.file.replace(full);
        for _ in 0..3 {
            clerk.take(slip(Says::Note(start("CA1"))));
            clerk.flush();
        }
        clerk.flush();
        assert_eq!((shared.counted().lost, shared.counted().failed_writes), (3, 3));
        clerk.open.get_mut(&0).unwrap().paper.file = real;
        clerk.take(slip(Says::Note(ended())));
        clerk.take(slip(Says::Ends));
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
        let mut tape = files.begin(beginning(1));
        for n in 0..1_000 {
            tape.note(ms(n), start("CA1"));
        }
        tape.note(ms(1_000), ended());
        drop(tape);
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
        let mut tape = files.begin(beginning(1));
        tape.note(ms(1), start("CA1"));
        let panicked = std::thread::spawn(move || {
            let _tape = tape;
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
        let mut clerk = clerk(dir, Arc::default());
        let alive = Arc::new(());
        clerk.take(Post::Begins {
            call: 3,
            beginning: Box::new(beginning(1)),
            alive: Arc::downgrade(&alive),
        });
        let (_posts, letterbox) = sync_channel(1);
        clerk.sweep(&letterbox);
        assert_eq!(clerk.open.len(), 1);
        drop(alive);
        clerk.sweep(&letterbox);
        assert!(clerk.open.is_empty());
        assert_eq!(kinds(&lines(&dir.join(&names(dir)[0]))), ["end"]);
    }

    #[test]
    fn the_oldest_go_first_by_count_by_bytes_and_by_age() {
        let folder = dir();
        let dir = folder.path();
        let day = |day: u64| Duration::from_secs(day * 86_400);
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
        let with = |keep_calls, keep_bytes, keep_days| Folder {
            dir: dir.to_owned(),
            settings: Settings { keep_calls, keep_bytes, keep_days, ..settings(dir) },
            process: String::new(),
        };
        let left = || names(dir).into_iter().filter(|name| all.contains(name)).collect::<Vec<_>>();
        let none = BTreeSet::new();
        let now = day(20_007);

        assert_eq!(with(9, 99_999, 99).tidy(&none, now), 0, "all within the limits");
        assert_eq!(with(5, 99_999, 99).tidy(&none, now), 1);
        assert_eq!(left(), all[1..]);
        assert_eq!(with(9, 4_500, 99).tidy(&none, now), 1);
        assert_eq!(left(), all[2..]);
        assert_eq!(with(9, 99_999, 3).tidy(&none, now), 1);
        assert_eq!(left(), all[3..]);
        let open = BTreeSet::from([all[3].as_str()]);
        assert_eq!(with(1, 1, 1).tidy(&open, now), 2, "what is being written stays");
        assert_eq!(left(), all[3..4]);
        assert_eq!(names(dir).len(), 4, "what is not ours stays");
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
