//! Transcripts that outlive a call: who said what, what was pressed, called and spent, and why the call ended.
//!
//! Calls only ever put a record into a bounded queue, and only if there is room. One thread of its own takes them out
//! in batches and writes each batch in one transaction, on the way through the call and not after it. A database that
//! is away is tried again while the queue fills; what finds no room is counted, and the end of a call says all of its
//! transcript once more, so that a call whose end is written is whole. Everything that is written may be written
//! twice.

#[cfg(feature = "store")]
pub mod cli;
pub mod memory;
#[cfg(feature = "store")]
pub mod postgres;
mod rows;
#[cfg(feature = "store")]
mod sql;
#[cfg(feature = "store")]
pub mod sqlite;

pub use rows::{
    CallName, CallRow, KeypadRow, LineRow, Page, Record, ResponseRow, Store, StoreError, StoredCall, Tokens,
    ToolRow, What,
};

use crate::base::clock;
use crate::base::log_limit::LogLimit;
use crate::call::event::{CallEvent, Line, Said};
use crate::export::journal::lines::{Salt, counted};
use crate::export::worker::{self, Batches, Bounds, Pace, Sender, Weigh};
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// A batch is a transaction. An idle thread has nothing else to see to.
const PACE: Pace = Pace { batch: 256, gather: Duration::from_millis(20), idle: Duration::from_secs(3_600) };
/// How long a batch may take before it counts as failed.
const WRITE_MAX: Duration = Duration::from_secs(20);
/// From one attempt to write a batch to the next: this at first, doubling.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// And never longer than this.
const RETRY_MAX: Duration = Duration::from_secs(2);
/// How a call ended that did not come to its end, and so did its functions.
const CUT: &str = "cut";
/// How long a stopping process waits for its database.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Where transcripts are kept, and how much may wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `sqlite:FILE`, or `postgres://user:password@host/database`; empty, and nothing is kept.
    pub url: Url,
    /// Most records that wait for the database.
    pub queue_records: usize,
    /// Most bytes that they may hold together.
    pub queue_bytes: usize,
    /// Most bytes of one call's records; what comes beyond is left out, but for the end of the call.
    pub call_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        let url = Url::new("sqlite:bridge.db");
        Self { url, queue_records: 65_536, queue_bytes: 64 << 20, call_bytes: 16 << 20 }
    }
}

/// Where a store is. It prints without the password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Url(String);

impl Url {
    /// Takes `text` as it is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// All of it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn shown(&self) -> String {
        let (url, query) = self.0.split_once('?').map_or((self.0.as_str(), ""), |(url, query)| (url, query));
        let url = match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, rest)), Some((_, host))) => {
                let user = rest.split([':', '@']).next().unwrap_or_default();
                format!("{scheme}://{user}:{HIDDEN}@{host}")
            }
            (_, _) => url.to_owned(),
        };
        match query {
            "" => url,
            query if query.contains("password") => format!("{url}?{HIDDEN}"),
            query => format!("{url}?{query}"),
        }
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for Url {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

/// Stands for what is not shown.
const HIDDEN: &str = "***";

/// What `store.url` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing is kept.
    Nowhere,
    /// A SQLite file.
    File(std::path::PathBuf),
    /// A Postgres database, by its URL.
    Server(Url),
}

impl Settings {
    /// What the URL says.
    ///
    /// # Errors
    /// When it is none that is understood. The words do not quote a URL that may hold a password.
    pub fn place(&self) -> Result<Place, String> {
        let url = self.url.expose();
        let wanted = "write sqlite:FILE, postgres://user:password@host/database, or \"\" to keep nothing";
        if url.is_empty() {
            return Ok(Place::Nowhere);
        }
        if url.contains(HIDDEN) {
            return Err(format!("store.url holds {HIDDEN}, which stands for a password that is not shown"));
        }
        if let Some(file) = url.strip_prefix("sqlite:") {
            let file = file.strip_prefix("//").unwrap_or(file);
            if file.is_empty() || file.contains('?') || file.starts_with(":memory:") {
                return Err(format!("store.url names no file; {wanted}"));
            }
            return Ok(Place::File(file.into()));
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Place::Server(self.url.clone()));
        }
        Err(format!("store.url is of no kind that is known; {wanted}"))
    }
}

// ---------------------------------------------------------------------------------------------- records

/// What became of the records of a process so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records written.
    pub written: u64,
    /// Records that found no room, or that the database will never take.
    pub lost: u64,
    /// Attempts to write that failed.
    pub failed: u64,
    /// How often the file was removed or replaced under the bridge.
    pub replaced: u64,
    /// Records that wait.
    pub queued: usize,
    /// Bytes that they hold.
    pub queued_bytes: usize,
}

#[derive(Default)]
struct Shared {
    written: AtomicU64,
    lost: AtomicU64,
    failed: AtomicU64,
    replaced: AtomicU64,
    /// Records are being lost, and that was said.
    said_lost: AtomicBool,
}

/// Figures of a store that outlive it. A handle.
#[derive(Clone)]
pub struct StatsHandle {
    shared: Arc<Shared>,
    queue: Sender<Record>,
}

impl StatsHandle {
    /// What became of the records so far.
    pub fn snapshot(&self) -> Stats {
        let Shared { written, lost, failed, replaced, said_lost: _ } = &*self.shared;
        let (queued, queued_bytes) = self.queue.queued();
        Stats {
            written: written.load(SeqCst),
            lost: lost.load(SeqCst),
            failed: failed.load(SeqCst),
            replaced: replaced.load(SeqCst),
            queued,
            queued_bytes,
        }
    }

    /// How long the oldest record has been waiting.
    pub fn lag(&self) -> Duration {
        self.queue.lag()
    }
}

impl Shared {
    fn lose(&self, records: usize) {
        self.lost.fetch_add(records as u64, SeqCst);
        if !self.said_lost.swap(true, SeqCst) {
            tracing::error!("transcripts are being lost: the database has been away for too long");
        }
    }
}

/// Takes records from calls, and never makes one wait. A handle: clones share a queue.
#[derive(Clone)]
pub struct StoreCalls {
    queue: Sender<Record>,
    shared: Arc<Shared>,
    /// `store.call_bytes`.
    call_bytes: usize,
    process: Arc<str>,
    calls: Arc<Mutex<BTreeMap<CallKey, Open>>>,
}

/// What is known of a call that goes on.
struct Open {
    began: Instant,
    /// Without its sids until they are known.
    name: Arc<CallName>,
    session_id: Option<String>,
    keypads: i64,
    /// Function calls without an answer: their ids and names.
    tools: Vec<(String, String)>,
    /// Bytes of its records so far.
    bytes: usize,
    /// There were too many, and further ones are left out.
    is_full: bool,
}

impl Open {
    /// Whether one more record of this weight is stored.
    fn admits(&mut self, weight: usize, most: usize) -> bool {
        let admits = self.bytes.saturating_add(weight) <= most;
        if admits {
            self.bytes += weight;
        } else if !std::mem::replace(&mut self.is_full, true) {
            let call = &self.name.id;
            tracing::warn!(call, "a call stores more than store.call_bytes: what else it adds is left out");
        }
        admits
    }

    /// The call as far as it is known here.
    fn so_far(&self) -> Vec<Record> {
        let (call, at_ms) = (&self.name, self.name.began_ms);
        let session = self.session_id.clone().map(|id| What::Session { id });
        let whats = std::iter::once(What::Began).chain(session);
        whats.map(|what| Record { call: call.clone(), at_ms, what }).collect()
    }

    /// Takes note of what the event tells of the call itself.
    fn learn(&mut self, event: &CallEvent) {
        if let CallEvent::Started { call_sid, stream_sid } = event {
            let (call_sid, stream_sid) = (clean(call_sid), clean(stream_sid));
            self.name = Arc::new(CallName { call_sid, stream_sid, ..(*self.name).clone() });
        } else if let CallEvent::Session { id } = event {
            self.session_id = Some(clean(id));
        } else if let CallEvent::Keypad { .. } = event {
            self.keypads += 1;
        } else if let CallEvent::ToolCalled { call_id, name, .. } = event {
            self.tools.push((clean(call_id), clean(name)));
        } else if let CallEvent::ToolAnswered { call_id, .. } = event {
            let answered = clean(call_id);
            self.tools.retain(|(id, _)| *id != answered);
        }
    }

    fn at_ms(&self, now: Instant) -> i64 {
        let after = now.saturating_duration_since(self.began).as_millis();
        self.name.began_ms.saturating_add(i64::try_from(after).unwrap_or(i64::MAX))
    }
}

impl StoreCalls {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<CallKey, Open>> {
        // Nothing can panic while this is locked; and if it did, the map would still be whole.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, record: Record) {
        if self.queue.send(record).is_err() {
            self.shared.lose(1);
        }
    }
}

impl Observe for StoreCalls {
    fn begins(&self, call: CallKey, now: Instant, unix: i64) {
        let name = CallName {
            id: format!("{unix:010}-{}-{}", self.process, call.0),
            process: self.process.to_string(),
            began_ms: unix.saturating_mul(1_000),
            ..CallName::default()
        };
        let open = Open {
            began: now,
            name: Arc::new(name),
            session_id: None,
            keypads: 0,
            tools: Vec::new(),
            bytes: 0,
            is_full: false,
        };
        self.calls().insert(call, open);
    }

    fn event(&self, call: CallKey, now: Instant, event: &CallEvent) {
        // Locked for what is known of the call alone: a long transcript is copied while no other call waits for it.
        let known = |calls: &mut BTreeMap<CallKey, Open>| {
            let open = calls.get_mut(&call)?;
            open.learn(event);
            Some((open.name.clone(), open.at_ms(now), open.session_id.clone(), open.keypads))
        };
        let Some((name, at_ms, session_id, keypads)) = known(&mut self.calls()) else { return };
        let Some(what) = what_of(event, session_id, keypads) else { return };
        let record = Record { call: name, at_ms, what };
        if let What::Ended { .. } = record.what {
            self.calls().remove(&call);
            return self.put(record);
        }
        let admits = |open: &mut Open| open.admits(record.weight(), self.call_bytes);
        if self.calls().get_mut(&call).is_none_or(admits) {
            self.put(record);
        } else {
            self.shared.lost.fetch_add(1, SeqCst);
        }
    }

    fn gone(&self, call: CallKey) {
        // Only a call that did not end is still there.
        let Some(open) = self.calls().remove(&call) else { return };
        let at_ms = open.at_ms(clock::now());
        for (tool_call_id, name) in open.tools {
            let output = String::new();
            let what = What::ToolAnswered { tool_call_id, name, outcome: CUT, output, took_ms: None };
            self.put(Record { call: open.name.clone(), at_ms, what });
        }
        let what = What::Ended {
            session_id: open.session_id,
            reason: CUT.to_owned(),
            detail: "the call panicked, or did not end in time".to_owned(),
            counts: None,
            lines: Vec::new(),
        };
        self.put(Record { call: open.name, at_ms, what });
    }
}

/// What is to be written of an event, once the call is known.
fn what_of(event: &CallEvent, session_id: Option<String>, keypads: i64) -> Option<What> {
    Some(match event {
        CallEvent::Started { .. } => What::Began,
        CallEvent::Session { id } => What::Session { id: clean(id) },
        CallEvent::Said(Said::Line(line)) => What::Line(row(line)),
        CallEvent::ToolCalled { call_id, name, arguments } => What::ToolCalled {
            tool_call_id: clean(call_id),
            name: clean(name),
            arguments: clean(arguments.expose()),
        },
        CallEvent::ToolAnswered { call_id, name, outcome, took, output, why: _ } => What::ToolAnswered {
            tool_call_id: clean(call_id),
            name: clean(name),
            outcome: outcome.name(),
            output: clean(output.expose()),
            took_ms: took.map(|took| i64::try_from(took.as_millis()).unwrap_or(i64::MAX)),
        },
        CallEvent::Keypad { entry, .. } => What::Keypad { number: keypads, entry: clean(entry.expose()) },
        CallEvent::ResponseDone { response, status, usage } => What::Response {
            response_id: clean(response),
            status: clean(status),
            tokens: usage.unwrap_or_default().into(),
        },
        CallEvent::Ended { reason, detail, counts, transcript, .. } => What::Ended {
            session_id,
            reason: reason.name().to_owned(),
            detail: clean(detail),
            counts: Some(counted(counts).to_string()),
            lines: transcript.iter().map(row).collect(),
        },
        CallEvent::Dialing
        | CallEvent::Dialed { .. }
        | CallEvent::Live { .. }
        | CallEvent::Unprotected { .. }
        | CallEvent::SpeechStarted
        | CallEvent::SpeechStopped
        | CallEvent::BargeIn { .. }
        | CallEvent::Silenced { .. }
        | CallEvent::Said(Said::More { .. })
        | CallEvent::Floor(_)
        | CallEvent::Speaking { .. }
        | CallEvent::ModelError { .. }
        | CallEvent::Tolerated { .. }
        | CallEvent::TimerFired(_)
        | CallEvent::ExpiringSoon
        | CallEvent::Renewing
        | CallEvent::Renewal { .. }
        | CallEvent::ToolLoop { .. }
        | CallEvent::Notice { .. } => return None,
    })
}

/// Text as every database takes it: Postgres has no zero byte.
fn clean(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{FFFD}") } else { text.to_owned() }
}

fn row(line: &Line) -> LineRow {
    LineRow {
        item: clean(&line.item),
        place: i64::try_from(line.place).unwrap_or(i64::MAX),
        at_ms: 0,
        speaker: line.speaker.name().to_owned(),
        text: clean(&line.text),
        cut: line.cut,
    }
}

// ---------------------------------------------------------------------------------------------- the writer

/// A store with the thread that writes to it.
pub struct Writer {
    calls: StoreCalls,
    worker: worker::Worker<Record>,
}

impl Writer {
    /// Starts the thread. `process` tells this bridge from others that write to the same store.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start<S: Store>(store: S, settings: &Settings, process: &str) -> std::io::Result<Self> {
        let Settings { queue_records, queue_bytes, call_bytes, url: _ } = *settings;
        let (shared, calls) = (Arc::<Shared>::default(), Arc::<Mutex<BTreeMap<CallKey, Open>>>::default());
        let worker = Worker {
            store,
            calls: calls.clone(),
            shared: shared.clone(),
            trouble: None,
            prepared: false,
            kept: 0,
            refusals: LogLimit::once_a_minute(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let bounds = Bounds { items: queue_records, bytes: queue_bytes };
        let (queue, worker) = worker::start("store", bounds, move |records| worker.run(&records, &runtime))?;
        let calls = StoreCalls { queue, shared, call_bytes, process: process.into(), calls };
        Ok(Self { calls, worker })
    }

    /// Takes the records of calls.
    pub fn calls(&self) -> StoreCalls {
        self.calls.clone()
    }

    /// Figures.
    pub fn gauge(&self) -> StatsHandle {
        StatsHandle { shared: self.calls.shared.clone(), queue: self.calls.queue.clone() }
    }

    /// Waits until everything is written, but not for ever: a database that is away does not keep a process alive.
    /// What is not written by then is lost.
    pub fn stop(self) -> Stats {
        self.stop_within(STOP_PATIENCE)
    }

    /// The same, with a patience of one's own.
    pub fn stop_within(self, patience: Duration) -> Stats {
        let gauge = self.gauge();
        if !self.worker.stop(patience) {
            tracing::warn!("the database does not answer: what waited for it is lost");
        }
        let mut counted = gauge.snapshot();
        counted.lost += counted.queued as u64;
        counted
    }
}

/// The thread that writes.
struct Worker<S> {
    store: S,
    calls: Arc<Mutex<BTreeMap<CallKey, Open>>>,
    shared: Arc<Shared>,
    /// Since when nothing can be written.
    trouble: Option<Instant>,
    /// The tables are there.
    prepared: bool,
    /// Records that this process has written to where it writes now.
    kept: u64,
    refusals: LogLimit,
}

impl<S: Store> Worker<S> {
    fn run(mut self, records: &Batches<Record>, runtime: &Runtime) {
        loop {
            let (batch, stopping) = records.next(PACE);
            if !batch.is_empty() {
                runtime.block_on(self.write(&batch));
            } else if stopping && records.close() {
                return runtime.block_on(self.close());
            }
        }
    }

    async fn close(&mut self) {
        if self.kept > 0 {
            let _ = self.recover().await;
        }
        let _ = tokio::time::timeout(RETRY_MAX, self.store.close()).await;
    }

    /// Counts as lost what was written to a place that is gone. Returns whether it is.
    async fn recover(&mut self) -> Result<bool, StoreError> {
        let is_gone = self.within(self.store.recover()).await?;
        if is_gone {
            let lost = std::mem::take(&mut self.kept);
            self.prepared = false;
            self.shared.lost.fetch_add(lost, SeqCst);
            self.shared.replaced.fetch_add(1, SeqCst);
            tracing::error!(
                lost,
                "the file of the transcripts was removed or replaced: what was in it is gone"
            );
        }
        Ok(is_gone)
    }

    /// Waits until records can be written, and makes what they need.
    async fn ready(&mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            let ready = match self.recover().await {
                Ok(_) if self.prepared => return,
                Ok(_) => self.prepare().await,
                Err(error) => Err(error),
            };
            match ready {
                Ok(()) => self.prepared = true,
                Err(error) => self.wait_out(&error, &mut wait).await,
            }
        }
    }

    /// Makes the tables. Calls that go on are not in them yet, except at the start, when there are none.
    async fn prepare(&self) -> Result<(), StoreError> {
        self.within(self.store.prepare()).await?;
        if self.shared.replaced.load(SeqCst) == 0 {
            return Ok(());
        }
        let again: Vec<Record> = {
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let known = calls.values().filter(|open| !open.name.call_sid.is_empty());
            known.flat_map(Open::so_far).collect()
        };
        self.within(self.store.write(&again)).await
    }

    async fn within<T>(&self, attempt: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let late = |_| Err(StoreError::Later(format!("no answer in {} s", WRITE_MAX.as_secs())));
        tokio::time::timeout(WRITE_MAX, attempt).await.unwrap_or_else(late)
    }

    /// Writes a batch, however long that takes, but for records that the store will never take.
    async fn write(&mut self, batch: &[Record]) {
        let mut wait = RETRY_FIRST;
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            self.ready().await;
            match self.within(self.store.write(part)).await {
                Ok(()) => {
                    if self.recover().await != Ok(false) {
                        // It went the way of what was written before.
                        parts.push(part);
                        continue;
                    }
                    self.kept += part.len() as u64;
                    self.shared.written.fetch_add(part.len() as u64, SeqCst);
                    if let Some(since) = self.trouble.take() {
                        let away_ms = clock::now().saturating_duration_since(since).as_millis();
                        tracing::info!(away_ms, lost = self.shared.lost.load(SeqCst), "the database is back");
                        self.shared.said_lost.store(false, SeqCst);
                    }
                    wait = RETRY_FIRST;
                }
                Err(StoreError::Never(error)) if part.len() > 1 => {
                    self.shared.failed.fetch_add(1, SeqCst);
                    tracing::debug!(error, "a batch is refused; its records are tried in smaller ones");
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(StoreError::Never(error)) => {
                    self.shared.failed.fetch_add(1, SeqCst);
                    self.shared.lost.fetch_add(1, SeqCst);
                    let call = part.first().map_or("", |record| record.call.id.as_str());
                    if let Some(records) = self.refusals.count(1) {
                        tracing::error!(error, call, records, "a record is refused and left out");
                    }
                }
                Err(error @ (StoreError::Later(_) | StoreError::Broken(_))) => {
                    parts.push(part);
                    self.wait_out(&error, &mut wait).await;
                }
            }
        }
    }

    /// Says once that there is trouble, and waits a little.
    async fn wait_out(&mut self, error: &StoreError, wait: &mut Duration) {
        self.shared.failed.fetch_add(1, SeqCst);
        if self.trouble.is_none() {
            self.trouble = Some(clock::now());
            tracing::warn!(%error, "transcripts cannot be written; they wait");
        }
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(RETRY_MAX);
    }
}

/// Opens what the settings name and starts to write there. `None` when nothing is to be kept.
///
/// # Errors
/// When a file cannot be opened, is corrupt or cannot be written to, or the URL is none. A database that is away is no
/// error, nor is a disk that is full: both may pass.
#[cfg(feature = "store")]
pub async fn open(settings: &Settings) -> anyhow::Result<Option<Writer>> {
    use anyhow::Context as _;
    let process = process_tag();
    match settings.place().map_err(anyhow::Error::msg)? {
        Place::Nowhere => Ok(None),
        Place::File(path) => {
            let name = path.display();
            let hint = || {
                format!("store.url sqlite:{name}: name a file this process may write to, or set it to \"\"")
            };
            let store = sqlite::Sqlite::open(&path).with_context(hint)?.written_by(&process);
            match store.prepare().await {
                // A full disk is no reason to take no calls: it passes, and the writer prepares it once more. A file that
                // the operator has to mend is one.
                Err(error @ StoreError::Later(_)) => {
                    tracing::warn!(file = %name, %error, "transcripts cannot be written now; they will wait");
                }
                prepared => prepared.with_context(hint)?,
            }
            tracing::info!(file = %name, "transcripts are kept in a file");
            Ok(Some(Writer::start(store, settings, &process)?))
        }
        Place::Server(url) => {
            let store =
                postgres::Postgres::open(url.expose()).map_err(anyhow::Error::msg).context("store.url")?;
            tracing::info!("transcripts are kept in Postgres");
            Ok(Some(Writer::start(store, settings, &process)?))
        }
    }
}

/// Eight digits that tell this process from others.
pub fn process_tag() -> String {
    Salt::secret().tag()
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("counted", &self.gauge().snapshot()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<Place, String> {
        Settings { url: Url::new(url), ..Settings::default() }.place()
    }

    #[test]
    fn a_url_names_a_file_a_server_or_nothing() {
        assert_eq!(place(""), Ok(Place::Nowhere));
        for url in ["sqlite:/var/lib/bridge.db", "sqlite:///var/lib/bridge.db"] {
            assert_eq!(place(url), Ok(Place::File("/var/lib/bridge.db".into())));
        }
        let url = "postgresql://u:p@h/d";
        assert_eq!(place(url), Ok(Place::Server(Url::new(url))));
        for (url, problem) in [
            ("mysql://u:secret@h/d", "of no kind that is known"),
            ("sqlite:", "names no file"),
            ("sqlite::memory:", "names no file"),
            ("postgres://u:***@h/d", "stands for a password"),
        ] {
            let error = place(url).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_url_prints_without_its_password() {
        for (url, shown) in [
            ("sqlite:bridge.db", "sqlite:bridge.db"),
            ("postgres://u:se@cret@h:1/d?sslmode=require", "postgres://u:***@h:1/d?sslmode=require"),
            ("postgres://u@h/d?password=secret", "postgres://u:***@h/d?***"),
            ("postgres://h/d", "postgres://h/d"),
        ] {
            assert_eq!(format!("{:?}", Url::new(url)), shown);
        }
    }
}
