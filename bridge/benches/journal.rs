//! What the journal costs a call, per frame: what the call's own task does, and what the thread does in its place.
//!
//! `cargo bench -p bridge --bench journal`. `queue` is what delays a frame: the note is made, weighed and put into the
//! queue. `line` is what the thread spends on it afterwards: the message is read, hashed and written as a line.

use base64::Engine as _;
use bridge::app::config::Config;
use bridge::audio::FRAME_BYTES;
use bridge::call::{Leg, Transmit};
use bridge::export::journal::files::Files;
use bridge::export::journal::lines::{Formatter, Salt};
use bridge::export::journal::{Content, Settings};
use bridge::runtime::journal::{CallBeginning, Journal, JournalEntry};
use bridge::wire::realtime::ClientEvent;
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Frames that fit into the queue together.
const PIECE: u64 = 2_000;
/// The thread has written them by then.
const EMPTIED: Duration = Duration::from_millis(60);

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

fn beginning() -> CallBeginning {
    Config::default().server().beginning(1, 0, Duration::ZERO)
}

/// What a frame from the caller makes a call note: the message, and the audio that is passed on.
fn from_caller() -> [JournalEntry; 2] {
    let payload = base64::engine::general_purpose::STANDARD.encode([0x5A; FRAME_BYTES]);
    let text = format!(
        r#"{{"event":"media","sequenceNumber":"4","media":{{"track":"inbound","chunk":"3","timestamp":"143","payload":"{payload}"}},"streamSid":"MZ00000000000000000000000000000000"}}"#
    );
    let audio = vec![0x5A; 960];
    [
        JournalEntry::Text(Leg::Caller, text),
        JournalEntry::Done(Transmit::Model(ClientEvent::AppendAudio { audio })),
    ]
}

/// A delta of the model: a quarter of a second.
fn from_model() -> JournalEntry {
    let delta = base64::engine::general_purpose::STANDARD.encode(vec![0x5A; 12_000]);
    let text = format!(
        r#"{{"type":"response.output_audio.delta","event_id":"event_1","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":0,"delta":"{delta}"}}"#
    );
    JournalEntry::Text(Leg::Model, text)
}

fn journal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    let dir = tempfile::TempDir::new().expect("a folder");
    let settings =
        Settings { dir: Some(dir.path().to_owned()), max_bytes_per_call: 64 << 10, ..Settings::default() };
    let files = Files::open(&settings).ok().flatten().expect("a folder for temporary files");
    let mut writer = files.begin(beginning());
    // In pieces that fit the queue, with time to empty it: a full one would only count what it leaves out.
    group
        .sample_size(10)
        .measurement_time(Duration::from_millis(100))
        .warm_up_time(Duration::from_millis(20));
    group.bench_function("queue a frame of the caller", |bench| {
        bench.iter_custom(|frames| {
            let mut took = Duration::ZERO;
            let pieces = frames.div_ceil(PIECE);
            for _ in 0..pieces {
                let notes: Vec<_> = (0..PIECE).flat_map(|_| from_caller()).collect();
                let began = now();
                notes.into_iter().for_each(|note| writer.note(Duration::from_secs(1), note));
                took += began.elapsed();
                std::thread::sleep(EMPTIED);
            }
            took.mul_f64(frames as f64 / (pieces * PIECE) as f64)
        });
    });
    drop(writer);
    for content in [Content::Hashes, Content::Full] {
        let (mut formatter, _) = Formatter::begin(&beginning(), content, Salt::secret());
        let frame = from_caller();
        group.bench_function(format!("line of a frame of the caller, {content:?}"), |bench| {
            bench.iter(|| {
                frame
                    .iter()
                    .map(|note| formatter.line(Duration::from_secs(1), black_box(note)).0.len())
                    .sum::<usize>()
            });
        });
        let delta = from_model();
        group.bench_function(format!("line of a delta of 250 ms, {content:?}"), |bench| {
            bench.iter(|| formatter.line(Duration::from_secs(1), black_box(&delta)).0.len());
        });
    }
    group.finish();
    let counted = files.stop();
    assert_eq!(counted.lost, 0, "the queue was full: {counted:?}");
}

criterion_group!(journals, journal);
criterion_main!(journals);
