//! What a 20 ms frame costs in each direction and format.
//!
//! `cargo bench -p bridge --bench audio`; the goal is below 1 µs a frame and direction without any instruction
//! beyond the baseline of the architecture.

use bridge::audio::{Downlink, FRAME_BYTES, Format, Law, Uplink};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// Frames of one measured pass: a second of audio.
const FRAMES: usize = 50;

/// A second of noise; the filters do not care what they filter.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x2545_F491u32;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 16) as u8
        })
        .collect()
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for format in [Format::Pcmu, Format::Pcma, Format::Pcm24k] {
        let name = format.wire_name();
        let frame = format.bytes_per_ms() as usize * 20;
        let (codes, bytes) = (noise(FRAMES * FRAME_BYTES), noise(FRAMES * frame));
        let mut out = Vec::with_capacity(FRAMES * frame);

        let mut uplink = Uplink::new(Law::Ulaw, format);
        group.bench_function(format!("up {name}"), |bench| {
            bench.iter(|| {
                out.clear();
                codes.chunks(FRAME_BYTES).for_each(|frame| uplink.push(black_box(frame), &mut out));
                black_box(out.len())
            });
        });

        let mut downlink = Downlink::new(format, Law::Ulaw);
        // The model sends pieces of 100 ms and more, of any length; these are odd on purpose.
        let piece = frame * 5 + 1;
        group.bench_function(format!("down {name}"), |bench| {
            bench.iter(|| {
                out.clear();
                bytes.chunks(piece).for_each(|piece| downlink.push(black_box(piece), &mut out));
                black_box(out.len())
            });
        });
    }
    group.finish();
}

criterion_group!(audio, frames);
criterion_main!(audio);
