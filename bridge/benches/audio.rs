//! What a 20 ms frame costs: each step alone, and from the text of one leg to the text of the other.
//!
//! `cargo bench -p bridge --bench audio`. Every figure is the time of one frame. The goals: at most 1 µs for the
//! samples of a frame in either direction, and 1.4 µs with its JSON and base64, built for the baseline of the
//! architecture. `docs/dev/audio.md` has the figures, and the command that puts other libraries' beside them.

use bridge::audio;
use bridge::audio::{Companding, Downlink, FRAME_BYTES, Format, Uplink};
use bridge::call::settings::Dialect;
use bridge::wire::base64;
use bridge::wire::realtime::{self, ClientEvent, ServerEvent};
use bridge::wire::twilio::{self, FromTwilio, ToTwilio};
use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;

/// Frames in one delta of the model.
const DELTA_FRAMES: usize = 5;
/// As long as Twilio's are.
const STREAM_SID: &str = "MZ0123456789abcdef0123456789abcdef";
const FORMATS: [Format; 2] = [Format::Pcm24k, Format::Pcmu];

/// Noise; the filters do not care what they filter.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_F491u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 16) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn frame_bytes(format: Format) -> usize {
    format.bytes_per_ms() as usize * audio::FRAME_MS as usize
}

/// A frame as Twilio sends it.
fn media(codes: &[u8]) -> String {
    let mut text = r#"{"event":"media","sequenceNumber":"4711","media":{"track":"inbound","chunk":"4710","timestamp":"94205","payload":""#.to_owned();
    base64::write(codes, &mut text);
    text + &format!(r#""}},"streamSid":"{STREAM_SID}"}}"#)
}

/// 100 ms as the model sends them.
fn delta(bytes: &[u8]) -> String {
    let mut text = r#"{"type":"response.output_audio.delta","event_id":"event_BGnTAeEJLG3qjWYRjrC3q","response_id":"resp_BGnT9cUpNrIuUc0z2Fnkw","item_id":"item_BGnT9EVRWLlvJXj3GLBNm","output_index":0,"content_index":0,"delta":""#.to_owned();
    base64::write(bytes, &mut text);
    text + r#""}"#
}

fn samples(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("samples");
    for (name, companding) in [("mu-law", Companding::Ulaw), ("A-law", Companding::Alaw)] {
        let (codes, bytes) = (noise(FRAME_BYTES), noise(960));
        let linear: Vec<i16> = bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        let (mut decoded, mut encoded) = ([0; FRAME_BYTES], [0; FRAME_BYTES]);
        group.bench_function(format!("decode {name}"), |bench| {
            bench.iter(|| companding.decode_slice(black_box(&codes), black_box(&mut decoded)));
        });
        group.bench_function(format!("encode {name}"), |bench| {
            bench.iter(|| companding.encode_slice(black_box(&linear[..160]), black_box(&mut encoded)));
        });
        let mut out = Vec::with_capacity(960);
        let mut uplink = Uplink::new(companding, Format::Pcm24k);
        group.bench_function(format!("decode {name} and widen"), |bench| {
            bench.iter(|| {
                out.clear();
                uplink.push(black_box(&codes), &mut out);
                black_box(out.len())
            });
        });
        let mut downlink = Downlink::new(Format::Pcm24k, companding);
        group.bench_function(format!("narrow and encode {name}"), |bench| {
            bench.iter(|| {
                out.clear();
                downlink.push(black_box(&bytes), &mut out);
                black_box(out.len())
            });
        });
    }
    group.finish();
}

fn text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("text");
    for size in [160, 960] {
        let bytes = noise(size);
        let mut text = String::with_capacity(base64::text_len(size));
        group.bench_function(format!("base64 of {size} bytes, writing"), |bench| {
            bench.iter(|| {
                text.clear();
                base64::write(black_box(&bytes), &mut text);
                black_box(text.len())
            });
        });
        group.bench_function(format!("base64 of {size} bytes, reading"), |bench| {
            bench.iter(|| base64::read(black_box(&text)).map_or(0, |bytes| bytes.len()));
        });
    }
    let media = media(&noise(FRAME_BYTES));
    group.bench_function("media, reading", |bench| {
        bench.iter(|| twilio::decode(black_box(&media)).is_ok());
    });
    let audio = ToTwilio::Media { audio: noise(FRAME_BYTES) };
    group.bench_function("media, writing", |bench| {
        bench.iter(|| black_box(&audio).encode(black_box(STREAM_SID)).len());
    });
    for format in FORMATS {
        let (name, size) = (format.wire_name(), frame_bytes(format));
        let delta = delta(&noise(size * DELTA_FRAMES));
        group.bench_function(format!("delta of {DELTA_FRAMES} frames {name}, reading"), |bench| {
            bench.iter(|| realtime::decode(black_box(&delta)).is_ok());
        });
        let append = ClientEvent::AppendAudio { audio: noise(size) };
        group.bench_function(format!("append {name}, writing"), |bench| {
            bench.iter(|| black_box(&append).encode(Dialect::Ga).len());
        });
    }
    group.finish();
}

fn whole(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("whole frame");
    for format in FORMATS {
        let (name, size) = (format.wire_name(), frame_bytes(format));
        let media = media(&noise(FRAME_BYTES));
        let mut uplink = Uplink::new(Companding::Ulaw, format);
        group.bench_function(format!("up {name}"), |bench| {
            bench.iter(|| {
                let Ok(twilio::Envelope { message: FromTwilio::Media(media), .. }) =
                    twilio::decode(black_box(&media))
                else {
                    return 0;
                };
                let mut audio = Vec::new();
                uplink.push(&media.audio, &mut audio);
                ClientEvent::AppendAudio { audio }.encode(Dialect::Ga).len()
            });
        });

        // One delta, and five messages to Twilio.
        let delta = delta(&noise(size * DELTA_FRAMES));
        let mut downlink = Downlink::new(format, Companding::Ulaw);
        group.bench_function(format!("down {name}, {DELTA_FRAMES} frames"), |bench| {
            bench.iter(|| {
                let Ok(ServerEvent::AudioDelta { audio, .. }) = realtime::decode(black_box(&delta)) else {
                    return 0;
                };
                let mut codes = Vec::new();
                downlink.push(&audio, &mut codes);
                let frames = codes.chunks(FRAME_BYTES);
                frames.map(|f| ToTwilio::Media { audio: f.to_vec() }.encode(STREAM_SID).len()).sum()
            });
        });
    }
    group.finish();
}

criterion_group!(audio, samples, text, whole);
criterion_main!(audio);
