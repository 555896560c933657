//! What a store does, whichever it is: in memory, in a SQLite file, in Postgres (`tests/postgres/run` starts one).

#![cfg(feature = "store")]
#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use bridge::call::event::{CallEvent, EndReason, Line, Private, Said, Speaker, ToolOutcome};
use bridge::export::store::memory::Memory;
use bridge::export::store::postgres::Postgres;
use bridge::export::store::sqlite::Sqlite;
use bridge::export::store::{
    CallName, LineRow, Page, Record, Settings, Stats, StatsHandle, Store, StoreCalls, StoreError, StoredCall,
    Tokens, Url, What, Writer,
};
use bridge::runtime::observe::Observe;
use bridge::runtime::registry::CallKey;
use bridge::wire::realtime::Usage;
use common::until;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where a store may be, in a folder that goes with its test.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("calls.db")
    }
}

fn name(n: i64) -> Arc<CallName> {
    Arc::new(CallName {
        id: format!("id-{n:04}"),
        process: "test".into(),
        call_sid: format!("CA{n}"),
        stream_sid: format!("MZ{n}"),
        began_ms: 1_000 * n,
    })
}

fn line(item: &str, place: i64, text: &str) -> LineRow {
    LineRow { item: item.into(), place, at_ms: 0, speaker: "agent".into(), text: text.into(), cut: false }
}

/// All there is to write of one call, in the order in which it comes.
fn records(n: i64) -> Vec<Record> {
    let tokens = Tokens { input_text: 100, cached_text: 60, output_audio: 9, ..Tokens::default() };
    let cut = LineRow { cut: true, ..line("two", 20, "hello it's") };
    let whats = [
        What::Began,
        What::Session { id: "sess_1".into() },
        What::Line(line("two", 20, "hello it's me")),
        What::Line(line("one", 10, "où êtes-vous? 🙂")),
        What::Line(line("three", 30, "not heard")),
        What::ToolCalled { tool_call_id: "c1".into(), name: "lookup".into(), arguments: "{\"id\":7}".into() },
        What::ToolAnswered {
            tool_call_id: "c1".into(),
            name: "lookup".into(),
            outcome: "done",
            output: "{}".into(),
            took_ms: Some(70),
        },
        What::ToolAnswered {
            tool_call_id: "c2".into(),
            name: "nothing".into(),
            outcome: "refused",
            output: "{}".into(),
            took_ms: None,
        },
        What::Keypad { number: 1, entry: "4711#".into() },
        What::Keypad { number: 2, entry: "0#".into() },
        What::Response { response_id: "r2".into(), status: "completed".into(), tokens },
        What::Response { response_id: "r1".into(), status: "cancelled".into(), tokens: Tokens::default() },
        What::Line(line("three", 30, "")),
        What::Line(cut.clone()),
        What::Ended {
            session_id: Some("sess_1".into()),
            reason: "stopped".into(),
            detail: "stop".into(),
            counts: Some("{\"barge_ins\":1}".into()),
            lines: vec![line("one", 10, "où êtes-vous? 🙂"), cut, line("late", 40, "bye")],
        },
    ];
    let at = |(at, what)| Record { call: name(n), at_ms: 1_000 * n + 10 * at as i64, what };
    whats.into_iter().enumerate().map(at).collect()
}

/// What every store has to do. It begins empty.
async fn keeps_the_contract<S: Store>(store: &S) {
    store.prepare().await.unwrap();
    store.prepare().await.unwrap();
    assert_eq!(store.list(&Page { limit: 10, ..Page::default() }).await, Ok(Vec::new()));
    assert_eq!(store.find("CA1").await, Ok(None));

    // A call can be read while it goes on.
    let all = records(1);
    store.write(&all[..3]).await.unwrap();
    let so_far = store.find("CA1").await.unwrap().unwrap();
    assert_eq!((so_far.call.ended_ms, so_far.call.session_id.as_deref()), (None, Some("sess_1")));
    assert_eq!(so_far.lines.len(), 1);

    store.write(&all).await.unwrap();
    let stored = store.find("id-0001").await.unwrap().unwrap();
    check(&stored);
    // Writing it all again, or the last of it, changes nothing.
    store.write(&all).await.unwrap();
    store.write(&all[all.len() - 2..]).await.unwrap();
    assert_eq!(store.find("CA1").await, Ok(Some(stored)));

    // The end alone says enough: whatever came before it was lost.
    store.write(&records(2)[all.len() - 1..]).await.unwrap();
    let late = store.find("CA2").await.unwrap().unwrap();
    assert_eq!((late.call.call_sid.as_str(), late.call.began_ms, late.lines.len()), ("CA2", 2_000, 3));

    // Newest first, in pages that neither miss nor repeat, also between calls that began at the same time.
    store.write(&(3..8).flat_map(|n| records(n)[..1].to_vec()).collect::<Vec<_>>()).await.unwrap();
    let again = CallName { call_sid: "CA4".into(), began_ms: 5_000, ..(*name(8)).clone() };
    store.write(&[Record { call: Arc::new(again), ..records(8)[0].clone() }]).await.unwrap();
    let mut page = Page { limit: 3, ..Page::default() };
    let mut ids = Vec::new();
    for _ in 0..4 {
        let rows = store.list(&page).await.unwrap();
        page.before = rows.last().map(|last| (last.began_ms, last.id.clone())).or(page.before);
        ids.extend(rows.into_iter().map(|row| row.id));
    }
    let all_of_them =
        ["id-0007", "id-0006", "id-0008", "id-0005", "id-0004", "id-0003", "id-0002", "id-0001"];
    assert_eq!(ids, all_of_them);
    let one = store.list(&Page { limit: 9, call_sid: "CA4".into(), before: None }).await.unwrap();
    assert_eq!(one.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["id-0008", "id-0004"]);
    let newest = store.find("CA4").await.unwrap().unwrap();
    assert_eq!(newest.call.id, "id-0008", "a callSid names the newest call that bears it");
}

fn check(stored: &StoredCall) {
    let texts: Vec<_> = stored.lines.iter().map(|l| (l.text.as_str(), l.cut, l.at_ms)).collect();
    let want = [("où êtes-vous? 🙂", false, 1_030), ("hello it's", true, 1_020), ("bye", false, 1_140)];
    assert_eq!(texts, want, "in order of place, at the time of the first words, without what was not heard");
    let call = &stored.call;
    assert_eq!(
        (call.process.as_str(), call.call_sid.as_str(), call.stream_sid.as_str()),
        ("test", "CA1", "MZ1")
    );
    assert_eq!((call.began_ms, call.ended_ms, call.reason.as_deref()), (1_000, Some(1_140), Some("stopped")));
    assert_eq!(call.counts.as_ref().unwrap()["barge_ins"], 1);
    let tool = &stored.tools[0];
    assert_eq!((tool.arguments.as_deref(), tool.outcome.as_deref(), tool.took_ms), {
        (Some("{\"id\":7}"), Some("done"), Some(70))
    });
    assert_eq!(
        (stored.tools[1].arguments.as_deref(), stored.tools[1].outcome.as_deref()),
        (None, Some("refused"))
    );
    let entries: Vec<_> = stored.keypad.iter().map(|row| (row.number, row.entry.as_str())).collect();
    assert_eq!(entries, [(1, "4711#"), (2, "0#")]);
    let responses: Vec<_> =
        stored.responses.iter().map(|row| (row.response_id.as_str(), row.status.as_str())).collect();
    assert_eq!(responses, [("r2", "completed"), ("r1", "cancelled")], "in order of time");
    assert_eq!((stored.responses[0].tokens.cached_text, stored.responses[0].tokens.output_audio), (60, 9));
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    keeps_the_contract(&Memory::default()).await;
}

#[tokio::test]
async fn sqlite_keeps_the_contract_and_the_calls() {
    let folder = Folder::new();
    let store = Sqlite::open(&folder.file()).unwrap();
    keeps_the_contract(&store).await;
    store.close().await;
    let again = Sqlite::open(&folder.file()).unwrap();
    again.prepare().await.unwrap();
    check(&again.find("CA1").await.unwrap().unwrap());
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(folder.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "only the owner may read transcripts");
}

#[tokio::test]
async fn calls_without_an_end_are_closed_by_the_next_bridge_that_is_alone_with_the_file() {
    let folder = Folder::new();
    let first = Sqlite::open(&folder.file()).unwrap().written_by("test");
    first.prepare().await.unwrap();
    first.write(&records(1)[..3]).await.unwrap();
    first.prepare().await.unwrap();
    let beside = Sqlite::open(&folder.file()).unwrap().written_by("beside");
    beside.prepare().await.unwrap();
    let reason = async |store: &Sqlite| store.find("CA1").await.unwrap().unwrap().call.reason;
    assert_eq!(reason(&beside).await, None, "the first is still there, and its call is its own");
    drop(first);
    let reader = Sqlite::open(&folder.file()).unwrap();
    reader.prepare().await.unwrap();
    assert_eq!(reason(&reader).await, None, "who only reads closes nothing");
    beside.prepare().await.unwrap();
    let orphan = beside.find("CA1").await.unwrap().unwrap();
    assert_eq!(orphan.call.reason.as_deref(), Some("process_died"));
    assert_eq!(orphan.lines.len(), 1, "what was said until then is there");
}

// ------------------------------------------------------------------------------------------------ the writer

/// A store that is away, or that refuses one call, as it is told.
#[derive(Clone, Default)]
struct Moody {
    inner: Memory,
    away: Arc<AtomicBool>,
    attempts: Arc<AtomicU32>,
}

impl Store for Moody {
    async fn prepare(&self) -> Result<(), StoreError> {
        if self.away.load(SeqCst) { Err(StoreError::Later("away".into())) } else { Ok(()) }
    }

    async fn write(&self, batch: &[Record]) -> Result<(), StoreError> {
        self.attempts.fetch_add(1, SeqCst);
        if self.away.load(SeqCst) {
            return Err(StoreError::Later("away".into()));
        }
        if batch.iter().any(|record| record.call.call_sid == "CA_POISON") {
            return Err(StoreError::Never("it hurts".into()));
        }
        self.inner.write(batch).await
    }

    async fn list(&self, page: &Page) -> Result<Vec<bridge::export::store::CallRow>, StoreError> {
        self.inner.list(page).await
    }

    async fn find(&self, name: &str) -> Result<Option<StoredCall>, StoreError> {
        self.inner.find(name).await
    }

    async fn close(&self) {}
}

#[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
fn zero() -> Instant {
    Instant::now()
}

/// What a call of `lines` lines tells.
fn call(calls: &StoreCalls, key: u64, call_sid: &str, lines: u64) {
    let (key, zero) = (CallKey(key), zero());
    let tell = |ms: u64, event: CallEvent| calls.event(key, zero + Duration::from_millis(ms), &event);
    let said = |place: u64| Line {
        item: format!("i{place}"),
        place,
        speaker: Speaker::Caller,
        text: format!("words {place} \0 end"),
        cut: false,
    };
    calls.begins(key, zero, 1_700_000_000);
    tell(0, CallEvent::Started { call_sid: call_sid.into(), stream_sid: "MZ1".into() });
    tell(10, CallEvent::Session { id: "sess_1".into() });
    for n in 1..=lines {
        tell(
            n * 20,
            CallEvent::Said(Said::More {
                item: format!("i{n}"),
                speaker: Speaker::Caller,
                words: Private::new("w"),
            }),
        );
        tell(n * 20, CallEvent::Said(Said::Line(said(n))));
    }
    tell(30, CallEvent::Keypad { keys: 2, entry: Private::new("1#") });
    tell(40, CallEvent::ToolCalled { call_id: "c".into(), name: "f".into(), arguments: Private::new("{}") });
    let (took, output) = (Some(Duration::from_millis(5)), Private::new("{}"));
    tell(
        45,
        CallEvent::ToolAnswered {
            call_id: "c".into(),
            name: "f".into(),
            outcome: ToolOutcome::Done,
            took,
            why: None,
            output,
        },
    );
    let usage = Some(Usage { output_text: 3, ..Usage::default() });
    tell(50, CallEvent::ResponseDone { response: "r".into(), status: "completed".into(), usage });
    let transcript = (1..=lines).map(said).collect();
    let (reason, detail, lasted) = (EndReason::Stopped, "stop".into(), Duration::from_secs(3));
    tell(3_000, CallEvent::Ended { reason, detail, lasted, counts: Box::default(), transcript });
    calls.gone(key);
}

fn settings(queue_records: usize) -> Settings {
    Settings { queue_records, ..Settings::default() }
}

#[tokio::test]
async fn a_call_is_written_as_it_tells_itself() {
    let store = Memory::default();
    let writer = Writer::start(store.clone(), &settings(1_000), "p1").unwrap();
    call(&writer.calls(), 7, "CA1", 2);
    let counted = writer.stop();
    assert_eq!((counted.lost, counted.queued, counted.failed), (0, 0, 0));
    let stored = store.find("CA1").await.unwrap().unwrap();
    assert_eq!(
        (stored.call.id.as_str(), stored.call.session_id.as_deref()),
        ("1700000000-p1-7", Some("sess_1"))
    );
    assert_eq!((stored.call.began_ms, stored.call.ended_ms), (1_700_000_000_000, Some(1_700_000_003_000)));
    assert_eq!(stored.lines[1].text, "words 2 \u{FFFD} end");
    assert_eq!((stored.keypad[0].entry.as_str(), stored.tools[0].took_ms), ("1#", Some(5)));
    assert_eq!((stored.responses[0].tokens.output_text, stored.responses[0].at_ms), (3, 1_700_000_000_050));
}

#[tokio::test]
async fn every_entry_of_a_call_is_kept_in_its_turn() {
    let store = Memory::default();
    let writer = Writer::start(store.clone(), &settings(1_000), "p1").unwrap();
    let calls = writer.calls();
    calls.begins(CallKey(1), zero(), 1_700_000_000);
    calls.event(CallKey(1), zero(), &CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() });
    for entry in ["4711#", "0#"] {
        let keypad = CallEvent::Keypad { keys: entry.len(), entry: Private::new(entry) };
        calls.event(CallKey(1), zero(), &keypad);
    }
    drop(calls);
    writer.stop();
    let stored = store.find("CA1").await.unwrap().unwrap();
    let entries: Vec<_> = stored.keypad.iter().map(|row| (row.number, row.entry.as_str())).collect();
    assert_eq!(entries, [(1, "4711#"), (2, "0#")]);
}

#[tokio::test]
async fn a_call_that_panics_is_stored_with_what_it_said_and_as_cut() {
    let store = Memory::default();
    let writer = Writer::start(store.clone(), &settings(1_000), "p1").unwrap();
    let calls = writer.calls();
    calls.begins(CallKey(1), zero(), 1_700_000_000);
    calls.event(CallKey(1), zero(), &CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() });
    let called = |id: &str| CallEvent::ToolCalled {
        call_id: id.into(),
        name: "book".into(),
        arguments: Private::new("{}"),
    };
    calls.event(CallKey(1), zero(), &called("c1"));
    calls.event(CallKey(1), zero(), &called("c2"));
    let (took, output) = (Some(Duration::ZERO), Private::new("{}"));
    let answered = CallEvent::ToolAnswered {
        call_id: "c1".into(),
        name: "book".into(),
        outcome: ToolOutcome::Done,
        took,
        why: None,
        output,
    };
    calls.event(CallKey(1), zero(), &answered);
    calls.gone(CallKey(1));
    drop(calls);
    writer.stop();
    let stored = store.find("CA1").await.unwrap().unwrap();
    assert_eq!(stored.call.reason.as_deref(), Some("cut"));
    let outcomes: Vec<_> = stored.tools.iter().map(|tool| tool.outcome.as_deref()).collect();
    assert_eq!(outcomes, [Some("done"), Some("cut")], "no function is left without an outcome");
}

#[tokio::test]
async fn a_database_that_is_away_for_less_than_the_buffer_costs_nothing() {
    let store = Moody::default();
    store.away.store(true, SeqCst);
    let writer = Writer::start(store.clone(), &settings(10_000), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    (1..=100).for_each(|n| call(&calls, n, &format!("CA{n}"), 3));
    until(|| gauge.snapshot().failed > 1).await;
    assert_eq!((gauge.snapshot().queued, gauge.snapshot().written), (1_000, 0));
    assert!(gauge.lag() >= Duration::from_millis(100), "{:?}", gauge.lag());
    store.away.store(false, SeqCst);
    drop(calls);
    let counted = writer.stop();
    assert_eq!((counted.written, counted.lost), (1_000, 0));
    let rows = store.list(&Page { limit: 1_000, ..Page::default() }).await.unwrap();
    assert!(rows.len() == 100 && rows.iter().all(|row| row.reason.is_some()));
    assert_eq!(gauge.lag(), Duration::ZERO);
}

#[tokio::test]
async fn what_finds_no_room_is_counted_and_a_call_whose_end_is_written_is_whole() {
    let store = Moody::default();
    store.away.store(true, SeqCst);
    let writer = Writer::start(store.clone(), &settings(50), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    (1..=10).for_each(|n| call(&calls, n, &format!("CA{n}"), 3));
    let counted = gauge.snapshot();
    assert_eq!((counted.queued, counted.lost), (50, 50));
    store.away.store(false, SeqCst);
    until(|| gauge.snapshot().queued == 0).await;
    call(&calls, 11, "CA11", 40); // more than fits at once, perhaps; its end may not be lost then
    until(|| gauge.snapshot().queued == 0).await;
    drop(calls);
    writer.stop();
    let whole = store.find("CA11").await.unwrap().unwrap();
    assert_eq!((whole.lines.len(), whole.call.reason.as_deref()), (40, Some("stopped")));
}

#[tokio::test]
async fn bytes_are_bounded_as_well_as_records() {
    let store = Moody::default();
    store.away.store(true, SeqCst);
    let settings = Settings { queue_bytes: 10_000, ..settings(1_000_000) };
    let writer = Writer::start(store.clone(), &settings, "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    (1..=100).for_each(|n| call(&calls, n, "CA1", 3));
    let Stats { queued_bytes, lost, .. } = gauge.snapshot();
    assert!(queued_bytes <= 10_000 && lost > 800, "{queued_bytes} {lost}");
}

#[tokio::test]
async fn a_record_the_store_never_takes_is_left_out_and_holds_up_no_other() {
    let store = Moody::default();
    let writer = Writer::start(store.clone(), &settings(1_000), "p1").unwrap();
    let calls = writer.calls();
    call(&calls, 1, "CA1", 2);
    call(&calls, 2, "CA_POISON", 2);
    call(&calls, 3, "CA3", 2);
    drop(calls);
    let counted = writer.stop();
    assert_eq!((counted.lost, counted.written, counted.queued), (9, 18, 0));
    for call_sid in ["CA1", "CA3"] {
        assert!(store.find(call_sid).await.unwrap().unwrap().call.ended_ms.is_some());
    }
}

#[tokio::test]
async fn a_stopping_process_does_not_wait_for_ever() {
    let store = Moody::default();
    store.away.store(true, SeqCst);
    let writer = Writer::start(store, &settings(1_000), "p1").unwrap();
    call(&writer.calls(), 1, "CA1", 2);
    let counted = writer.stop_within(Duration::from_millis(300));
    assert_eq!((counted.lost, counted.written), (9, 0));
}

#[tokio::test]
async fn a_full_disk_loses_nothing_while_there_is_room_in_the_queue() {
    let folder = Folder::new();
    // As many pages as the empty tables need, and a few more: what SQLite says then is what it says on a full disk.
    let store = Sqlite::with(&folder.file(), |options| options.pragma("max_page_count", "40")).unwrap();
    let writer = Writer::start(store, &settings(500), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    let words = "many words ".repeat(500);
    calls.begins(CallKey(1), zero(), 1_700_000_000);
    calls.event(CallKey(1), zero(), &CallEvent::Started { call_sid: "CA1".into(), stream_sid: "MZ1".into() });
    for n in 0..1_000 {
        let line = Line {
            item: format!("i{n}"),
            place: n,
            speaker: Speaker::Caller,
            text: words.clone(),
            cut: false,
        };
        calls.event(CallKey(1), zero(), &CallEvent::Said(Said::Line(line)));
        if n == 3 {
            until(|| gauge.snapshot().written >= 4).await; // the disk is not full from the beginning
        }
    }
    until(|| gauge.snapshot().failed > 1).await;
    let counted = gauge.snapshot();
    assert!(counted.lost >= 400 && counted.queued > 0 && counted.queued <= 500, "{counted:?}");
    drop((calls, writer));
    // The file is whole, and what was written is in it.
    let after = Sqlite::open(&folder.file()).unwrap();
    let stored = after.find("CA1").await.unwrap().unwrap();
    assert!(stored.lines.len() >= 3, "{}", stored.lines.len());
}

#[tokio::test]
async fn a_write_that_failed_for_want_of_room_locks_no_writer_out_and_hides_nothing() {
    let folder = Folder::new();
    let small = Sqlite::with(&folder.file(), |options| options.pragma("max_page_count", "40")).unwrap();
    small.prepare().await.unwrap();
    let long =
        |n: i64| Record { what: What::Line(line("one", 10, &"x".repeat(30_000))), ..records(n)[3].clone() };
    let mut n = 0;
    let mut failures = 0;
    while failures < 5 {
        n += 1;
        failures += u32::from(small.write(&[records(n)[0].clone(), long(n)]).await.is_err());
    }
    let other = Sqlite::open(&folder.file()).unwrap();
    for n in [1_000, 1_001, 1_002] {
        assert_eq!(other.write(&records(n)).await, Ok(()), "no connection holds the file");
        if small.write(&records(n + 1_000)[..1]).await.is_ok() {
            assert!(
                other.find(&format!("CA{}", n + 1_000)).await.unwrap().is_some(),
                "what is written is there"
            );
        }
    }
}

/// Writes a call and waits until it is stored.
async fn stored(calls: &StoreCalls, gauge: &StatsHandle, key: u64, call_sid: &str) {
    call(calls, key, call_sid, 3);
    until(|| gauge.snapshot().queued == 0).await;
}

async fn sids(file: &Path) -> Vec<String> {
    let store = Sqlite::read(file).await.unwrap().unwrap();
    let rows = store.list(&Page { limit: 100, ..Page::default() }).await.unwrap();
    let mut sids: Vec<_> = rows.into_iter().map(|row| row.call_sid).collect();
    sids.sort();
    sids
}

#[tokio::test]
async fn a_file_that_is_deleted_under_the_bridge_is_missed_and_what_comes_after_is_stored() {
    let folder = Folder::new();
    let store = Sqlite::open(&folder.file()).unwrap().written_by("p1");
    let writer = Writer::start(store, &settings(1_000), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    stored(&calls, &gauge, 1, "CA1").await;
    calls.begins(CallKey(7), zero(), 1_700_000_000);
    calls.event(CallKey(7), zero(), &CallEvent::Started { call_sid: "CA7".into(), stream_sid: "MZ7".into() });
    until(|| gauge.snapshot().queued == 0).await;
    assert_eq!((gauge.snapshot().written, gauge.snapshot().lost), (11, 0));

    std::fs::remove_file(folder.file()).unwrap();
    stored(&calls, &gauge, 2, "CA2").await;
    let counted = gauge.snapshot();
    assert_eq!((counted.lost, counted.replaced), (11, 1), "what was written is gone, and counted");
    assert_eq!(sids(&folder.file()).await, ["CA2", "CA7"], "a call that goes on is there again");

    // With everything that is beside it, and with the folder.
    std::fs::remove_dir_all(folder.0.path()).unwrap();
    call(&calls, 3, "CA3", 3);
    until(|| gauge.snapshot().failed > 0).await;
    std::fs::create_dir(folder.0.path()).unwrap();
    until(|| gauge.snapshot().queued == 0).await;
    let counted = gauge.snapshot();
    assert_eq!((counted.lost, counted.replaced), (11 + 10, 2));
    assert_eq!(sids(&folder.file()).await, ["CA3", "CA7"]);
    drop(calls);
    writer.stop();
    let whole = Sqlite::read(&folder.file()).await.unwrap().unwrap().find("CA3").await.unwrap().unwrap();
    assert_eq!((whole.lines.len(), whole.call.reason.as_deref()), (3, Some("stopped")));
}

#[tokio::test]
async fn a_file_that_takes_the_place_of_the_bridges_own_is_written_to_and_not_spoilt() {
    let folder = Folder::new();
    let other = folder.0.path().join("backup.db");
    let backup = Sqlite::open(&other).unwrap();
    backup.prepare().await.unwrap();
    backup.write(&records(9)).await.unwrap();
    backup.close().await;

    let writer = Writer::start(Sqlite::open(&folder.file()).unwrap(), &settings(1_000), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    stored(&calls, &gauge, 1, "CA1").await;
    stored(&calls, &gauge, 2, "CA2").await;
    std::fs::rename(&other, folder.file()).unwrap();
    stored(&calls, &gauge, 3, "CA3").await;
    assert_eq!((gauge.snapshot().lost, gauge.snapshot().replaced), (20, 1));
    drop(calls);
    writer.stop();
    assert_eq!(sids(&folder.file()).await, ["CA3", "CA9"], "and none of the other file's log");
    let after = Sqlite::open(&folder.file()).unwrap();
    let verdict = after.check().await.unwrap();
    assert_eq!(verdict, "ok");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_at_the_start_and_waited_for_later() {
    let folder = Folder::new();
    std::fs::write(folder.file(), "no database at all".repeat(1_000)).unwrap();
    let url = || Url::new(format!("sqlite:{}", folder.file().display()));
    let refused =
        bridge::export::store::open(&Settings { url: url(), ..Settings::default() }).await.unwrap_err();
    let words = format!("{refused:#}");
    assert!(words.contains("calls.db") && words.contains("not a database"), "{words}");

    std::fs::remove_file(folder.file()).unwrap();
    let writer = Writer::start(Sqlite::open(&folder.file()).unwrap(), &settings(1_000), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    stored(&calls, &gauge, 1, "CA1").await;
    let bad = folder.0.path().join("bad.db");
    std::fs::write(&bad, "no database at all".repeat(1_000)).unwrap();
    std::fs::rename(&bad, folder.file()).unwrap();
    call(&calls, 2, "CA2", 3);
    until(|| gauge.snapshot().failed > 1).await;
    assert_eq!(
        (gauge.snapshot().lost, gauge.snapshot().queued),
        (10, 10),
        "it waits until the file is mended"
    );
    std::fs::remove_file(folder.file()).unwrap();
    until(|| gauge.snapshot().queued == 0).await;
    assert_eq!(sids(&folder.file()).await, ["CA2"]);
    drop((calls, writer));
}

#[tokio::test]
async fn a_place_that_cannot_be_written_to_is_refused_at_the_start() {
    let folder = Folder::new();
    // A folder where the bridge's lock should be: not even the superuser can write it.
    std::fs::create_dir(folder.file().with_extension("lock")).unwrap();
    let url = |path: &Path| Url::new(format!("sqlite:{}", path.display()));
    for path in [folder.file(), folder.0.path().to_owned(), folder.0.path().join("nowhere/calls.db")] {
        let settings = Settings { url: url(&path), ..Settings::default() };
        let words = format!("{:#}", bridge::export::store::open(&settings).await.unwrap_err());
        assert!(words.contains("name a file this process may write to"), "{words}");
    }
}

#[tokio::test]
async fn reading_needs_no_right_to_write_and_leaves_nothing_behind() {
    let folder = Folder::new();
    assert!(Sqlite::read(&folder.file()).await.is_err(), "there is none");
    assert!(!folder.file().exists());
    std::fs::write(folder.file(), "").unwrap();
    assert!(Sqlite::read(&folder.file()).await.unwrap().is_none(), "nothing was stored in it yet");
    let store = Sqlite::open(&folder.file()).unwrap();
    store.prepare().await.unwrap();
    store.write(&records(1)).await.unwrap();
    assert_eq!(sids(&folder.file()).await, ["CA1"], "beside a bridge that writes");
    let reader = Sqlite::read(&folder.file()).await.unwrap().unwrap();
    assert!(matches!(reader.write(&records(2)).await, Err(StoreError::Broken(_))), "it only reads");
    check(&reader.find("CA1").await.unwrap().unwrap());
}

#[tokio::test]
async fn a_call_that_adds_and_adds_is_stored_up_to_its_limit_and_with_its_end() {
    let store = Memory::default();
    let settings = Settings { call_bytes: 10_000, ..settings(100_000) };
    let writer = Writer::start(store.clone(), &settings, "p1").unwrap();
    let calls = writer.calls();
    call(&calls, 1, "CA1", 2_000);
    call(&calls, 2, "CA2", 3);
    let lost = writer.gauge().snapshot().lost;
    assert!((1_900..2_004).contains(&lost), "{lost}");
    drop(calls);
    writer.stop();
    for call_sid in ["CA1", "CA2"] {
        let stored = store.find(call_sid).await.unwrap().unwrap();
        assert_eq!(stored.call.reason.as_deref(), Some("stopped"));
    }
}

// ------------------------------------------------------------------------------------------------ Postgres

/// The server that `tests/postgres/run` started. Without one these tests have nothing to say.
fn server() -> Option<String> {
    std::env::var("BRIDGE_TEST_POSTGRES").ok().filter(|url| !url.is_empty())
}

/// The script that stops, starts and kills the server.
fn control(what: &str) {
    let script = std::env::var("BRIDGE_TEST_POSTGRES_CONTROL").unwrap();
    let done = std::process::Command::new(script).arg(what).status().unwrap();
    assert!(done.success(), "{what}: {done}");
}

fn at(url: &str) -> Settings {
    Settings { url: Url::new(url), queue_records: 5_000, ..Settings::default() }
}

/// One after the other: they share a server, and one of them kills it.
#[tokio::test]
async fn postgres_keeps_the_contract_and_survives_its_server() {
    let Some(url) = server() else { return };
    keeps_the_contract(&Postgres::open(&url).unwrap()).await;
    check(&Postgres::open(&url).unwrap().find("id-0001").await.unwrap().unwrap());

    // Killed in the middle of a call, without a word, and started again: nothing is lost.
    let writer = Writer::start(Postgres::open(&url).unwrap(), &at(&url), "p1").unwrap();
    let (calls, gauge) = (writer.calls(), writer.gauge());
    (1..=20).for_each(|n| call(&calls, n, &format!("CB{n}"), 5));
    until(|| gauge.snapshot().written > 0).await;
    control("kill");
    (21..=60).for_each(|n| call(&calls, n, &format!("CB{n}"), 5));
    until(|| gauge.snapshot().failed > 0).await;
    control("start");
    (61..=80).for_each(|n| call(&calls, n, &format!("CB{n}"), 5));
    until(|| gauge.snapshot().queued == 0).await;
    assert_eq!((gauge.snapshot().lost, gauge.snapshot().written), (0, 80 * 12));
    let reader = Postgres::open(&url).unwrap();
    for n in 1..=80 {
        let stored = reader.find(&format!("CB{n}")).await.unwrap().unwrap();
        assert_eq!((stored.lines.len(), stored.call.reason.as_deref()), (5, Some("stopped")), "CB{n}");
    }

    // Away for longer than the buffer: what is lost is counted, and the next call is whole.
    control("kill");
    let before = gauge.snapshot().written;
    (1..=1_000).for_each(|n| call(&calls, 1_000 + n, &format!("CC{n}"), 5));
    let lost = gauge.snapshot().lost;
    assert_eq!(lost, 1_000 * 12 - 5_000);
    control("start");
    until(|| gauge.snapshot().queued == 0).await;
    assert_eq!((gauge.snapshot().lost, gauge.snapshot().written), (lost, before + 5_000));
    call(&calls, 3_000, "CD1", 5);
    until(|| gauge.snapshot().queued == 0).await;
    assert_eq!(reader.find("CD1").await.unwrap().unwrap().lines.len(), 5);
    drop(calls);
    writer.stop();
}
