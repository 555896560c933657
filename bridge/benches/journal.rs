//! What the journal costs a call, per frame: what the call's own task does, and what the thread does in its place.
//!
//! `cargo bench -p bridge --bench journal`. `queue` is what delays a frame: the note is made, weighed and put into the
//! queue. `line` is what the thread spends on it afterwards: the message is read, hashed and written as a line.

use base64::Engine as _;
use bridge::audio::FRAME_BYTES;
use bridge::call::{Leg, Transmit};
use bridge::config::Config;
use bridge::journal::files::Files;
use bridge::journal::lines::{Salt, Scribe};
use bridge::journal::{Beginning, Content, Journal, Note, Settings};
use bridge::realtime::ClientEvent;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::time::Duration;

fn beginning() -> Beginning {
    Beginning { key: 1, unix: 0, config: Config::default().into() }
}

/// What a frame from the caller makes a call note: the message, and the audio that is passed on.
fn from_caller() -> [Note; 2] {
    let payload = base64::engine::general_purpose::STANDARD.encode([0x5A; FRAME_BYTES]);
    let text = format!(
        r#"{{"event":"media","sequenceNumber":"4","media":{{"track":"inbound","chunk":"3","timestamp":"143","payload":"{payload}"}},"streamSid":"MZ00000000000000000000000000000000"}}"#
    );
    let audio = vec![0x5A; 960];
    [Note::Text(Leg::Caller, text), Note::Done(Transmit::Model(ClientEvent::AppendAudio { audio }))]
}

/// A delta of the model: a quarter of a second.
fn from_model() -> Note {
    let delta = base64::engine::general_purpose::STANDARD.encode(vec![0x5A; 12_000]);
    let text = format!(
        r#"{{"type":"response.output_audio.delta","event_id":"event_1","response_id":"resp_1","item_id":"item_1","output_index":0,"content_index":0,"delta":"{delta}"}}"#
    );
    Note::Text(Leg::Model, text)
}

fn journal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal");
    let dir = std::env::temp_dir().join(format!("bridge-bench-{}", std::process::id()));
    let settings = Settings { dir: Some(dir.clone()), max_bytes_per_call: 64 << 10, ..Settings::default() };
    let files = Files::open(&settings).ok().flatten().expect("a folder for temporary files");
    let mut tape = files.begin(beginning());
    group.bench_function("queue a frame of the caller", |bench| {
        bench.iter_batched(
            from_caller,
            |notes| notes.into_iter().for_each(|note| tape.note(Duration::from_secs(1), note)),
            BatchSize::SmallInput,
        );
    });
    drop(tape);
    for content in [Content::Hashes, Content::Full] {
        let (mut scribe, _) = Scribe::begin(&beginning(), content, Salt::secret());
        let frame = from_caller();
        group.bench_function(format!("line of a frame of the caller, {content:?}"), |bench| {
            bench.iter(|| {
                frame
                    .iter()
                    .map(|note| scribe.line(Duration::from_secs(1), black_box(note)).0.len())
                    .sum::<usize>()
            });
        });
        let delta = from_model();
        group.bench_function(format!("line of a delta of 250 ms, {content:?}"), |bench| {
            bench.iter(|| scribe.line(Duration::from_secs(1), black_box(&delta)).0.len());
        });
    }
    group.finish();
    files.stop();
    let _left = std::fs::remove_dir_all(dir);
}

criterion_group!(journals, journal);
criterion_main!(journals);
