//! The bridge's audio path beside other libraries', on the same signals, in the same run.
//!
//! ```sh
//! cargo bench -p tests --features rivals
//! ```
//!
//! measures the quality of each, times each with criterion, and prints the two tables of `docs/dev/audio.md`. Nothing
//! is asserted: figures of speed belong to a machine and a day. The other libraries are built for this program
//! alone, and only when it is asked for.

use audio_codec::{Decoder as _, Encoder as _};
use bridge::audio::{Companding, Downlink, FRAME_BYTES, Format, Uplink};
use bridge::call::settings::Dialect;
use bridge::wire::base64;
use bridge::wire::realtime::{self, ClientEvent, ServerEvent};
use bridge::wire::twilio::{self, FromTwilio, ToTwilio};
use criterion::Criterion;
use golden::codec;
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Async, Fft, FixedAsync, FixedSync, SincInterpolationParameters};
use scenarios::audio::quality::{Bridge, Character, Resampler};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

/// Samples of 20 ms at 8 and at 24 kHz.
const NARROW: usize = FRAME_BYTES;
const WIDE: usize = 3 * NARROW;
/// Frames in one delta of the model.
const DELTA_FRAMES: usize = 5;

/// A G.711 of both laws.
struct Codec {
    decode: fn(Companding, &[u8], &mut [i16]),
    encode: fn(Companding, &[i16], &mut [u8]),
}

/// One column of the tables.
struct Contestant {
    name: &'static str,
    /// `None` when it brings none: then the bridge's stands in.
    codec: Option<Codec>,
    /// `None` when it is a G.711 alone.
    resampler: Option<fn() -> Box<dyn Resampler>>,
}

const BRIDGE: Codec = Codec { decode: Companding::decode_slice, encode: Companding::encode_slice };

fn contestants() -> [Contestant; 6] {
    [
        Contestant { name: "bridge", codec: Some(BRIDGE), resampler: Some(|| Box::new(Bridge::default())) },
        Contestant { name: "rubato, FFT", codec: None, resampler: Some(|| Box::new(Rubato::fft())) },
        Contestant { name: "rubato, sinc 256", codec: None, resampler: Some(|| Box::new(Rubato::sinc())) },
        Contestant {
            name: "audio-codec",
            codec: Some(Codec { decode: audio_codec_decode, encode: audio_codec_encode }),
            resampler: Some(|| Box::new(AudioCodec::new())),
        },
        Contestant {
            name: "audio-codec-algorithms",
            codec: Some(Codec { decode: algorithms_decode, encode: algorithms_encode }),
            resampler: None,
        },
        Contestant { name: "no filter", codec: None, resampler: Some(|| Box::new(NoFilter::default())) },
    ]
}

fn main() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rivals");
    // What an earlier run measured must not be taken for this one's.
    if folder.exists() {
        fs::remove_dir_all(&folder).expect("the figures of an earlier run can be removed");
    }
    let contestants = contestants();
    let mut criterion = Criterion::default()
        .output_directory(&folder)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    speeds(&mut criterion, &contestants);
    criterion.final_summary();
    println!(
        "\n{}\n{}\nns for each 20 ms frame, {}.",
        quality(&contestants),
        Speeds(&contestants, folder),
        machine()
    );
}

/// What the figures of speed belong to.
fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let target = if cfg!(target_feature = "avx2") { "with AVX2" } else { "for the baseline" };
    format!(
        "{}, {}, built {target}",
        std::env::consts::ARCH,
        model.map_or("unknown processor", |(_, name)| name)
    )
}

// ------------------------------------------------------------------------------------------------ quality

/// The table of quality, as Markdown.
fn quality(contestants: &[Contestant]) -> String {
    let characters: Vec<Option<Character>> =
        contestants.iter().map(|one| one.resampler.map(|make| Character::of(&make))).collect();
    type Figure = (&'static str, usize, fn(&Character) -> f64);
    let figures: [Figure; 11] = [
        ("delay up, ms", 2, |c| c.delay_ms[0]),
        ("delay down, ms", 2, |c| c.delay_ms[1]),
        ("100-3,300 Hz, greatest deviation, dB", 3, |c| c.pass_band_db),
        ("gain at 3,400 Hz, dB", 2, |c| c.edge_db),
        ("alias rejection from 4.3 kHz, dB", 1, |c| c.alias_db[0]),
        ("alias rejection from 4.6 kHz, dB", 1, |c| c.alias_db[1]),
        ("image rejection from 4.3 kHz, dB", 1, |c| c.image_db[0]),
        ("image rejection from 4.6 kHz, dB", 1, |c| c.image_db[1]),
        ("SINAD of 997 Hz up, dB", 1, |c| c.sinad_db[0]),
        ("SINAD of 997 Hz down, dB", 1, |c| c.sinad_db[1]),
        ("voice, up and down again, dB", 1, |c| c.round_trip_db),
    ];
    let mut rows = vec![header("quality", contestants)];
    for (what, digits, figure) in figures {
        let cells = characters.iter().map(|c| c.as_ref().map(|c| format!("{:.digits$}", figure(c) + 0.0)));
        rows.push(row(what, cells));
    }
    for (what, companding) in [("mu-law", Companding::Ulaw), ("A-law", Companding::Alaw)] {
        let cells = contestants
            .iter()
            .map(|one| Some(others_than_the_standards(one.codec.as_ref()?, companding).to_string()));
        rows.push(row(&format!("{what} codes that are not the ITU's, of 65,536"), cells));
    }
    rows.concat()
}

/// The bridge's codes are the standard's: their check sum says so.
fn others_than_the_standards(codec: &Codec, companding: Companding) -> usize {
    let sweep: Vec<i16> = codec::sweep().collect();
    let (mut standard, mut theirs) = (vec![0; sweep.len()], vec![0; sweep.len()]);
    companding.encode_slice(&sweep, &mut standard);
    let expected = match companding {
        Companding::Ulaw => codec::ULAW_CODES,
        Companding::Alaw => codec::ALAW_CODES,
    };
    assert_eq!(
        codec::crc32(standard.iter().copied()),
        expected,
        "the bridge's {companding:?} is not the standard's"
    );
    (codec.encode)(companding, &sweep, &mut theirs);
    standard.iter().zip(&theirs).filter(|(a, b)| a != b).count()
}

fn header(what: &str, contestants: &[Contestant]) -> String {
    let names: Vec<_> = contestants.iter().map(|one| one.name).collect();
    format!("| {what} | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()))
}

fn row(what: &str, cells: impl Iterator<Item = Option<String>>) -> String {
    let cells: Vec<_> = cells.map(|cell| cell.unwrap_or_else(|| "-".to_owned())).collect();
    format!("| {what} | {} |\n", cells.join(" | "))
}

// -------------------------------------------------------------------------------------------------- speed

/// The rows of the table of speed: what it is called there, and as a folder of criterion.
const ROWS: [(&str, &str); 6] = [
    ("mu-law, decoding", "decode"),
    ("mu-law, encoding", "encode"),
    ("decode and widen", "up"),
    ("narrow and encode", "down"),
    ("whole frame up: JSON to JSON", "whole_up"),
    ("whole frame down: JSON to JSON", "whole_down"),
];

/// A frame's samples, from the bytes of one leg to the bytes of the other.
trait Bytes {
    fn up(&mut self, codes: &[u8], out: &mut Vec<u8>);
    fn down(&mut self, bytes: &[u8], out: &mut Vec<u8>);
}

struct BridgeBytes(Uplink, Downlink);

impl Bytes for BridgeBytes {
    fn up(&mut self, codes: &[u8], out: &mut Vec<u8>) {
        self.0.push(codes, out);
    }

    fn down(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.1.push(bytes, out);
    }
}

/// Any resampler, with a G.711 before or behind it, buffers kept.
struct RivalBytes {
    codec: Codec,
    resampler: Box<dyn Resampler>,
    sent: Vec<i16>,
    got: Vec<i16>,
}

impl Bytes for RivalBytes {
    fn up(&mut self, codes: &[u8], out: &mut Vec<u8>) {
        for frame in codes.chunks(NARROW) {
            self.sent.resize(frame.len(), 0);
            (self.codec.decode)(Companding::Ulaw, frame, &mut self.sent);
            self.got.clear();
            self.resampler.up(&self.sent, &mut self.got);
            out.extend(self.got.iter().flat_map(|sample| sample.to_le_bytes()));
        }
    }

    fn down(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for frame in bytes.chunks(2 * WIDE) {
            self.sent.clear();
            self.sent.extend(frame.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)));
            self.got.clear();
            self.resampler.down(&self.sent, &mut self.got);
            let before = out.len();
            out.resize(before + self.got.len(), 0);
            (self.codec.encode)(Companding::Ulaw, &self.got, &mut out[before..]);
        }
    }
}

impl Contestant {
    fn bytes(&self) -> Option<Box<dyn Bytes>> {
        let resampler = self.resampler?();
        if self.name == "bridge" {
            let up = Uplink::new(Companding::Ulaw, Format::Pcm24k);
            return Some(Box::new(BridgeBytes(up, Downlink::new(Format::Pcm24k, Companding::Ulaw))));
        }
        let codec = self.codec.as_ref().unwrap_or(&BRIDGE);
        let codec = Codec { decode: codec.decode, encode: codec.encode };
        Some(Box::new(RivalBytes { codec, resampler, sent: Vec::new(), got: Vec::new() }))
    }

    /// Its name as a folder.
    fn id(&self) -> String {
        self.name.replace([',', ' '], "_")
    }
}

/// A second of the voices, so that no branch is always taken the same way.
fn speeds(criterion: &mut Criterion, contestants: &[Contestant]) {
    const SECOND: usize = 50;
    const STREAM_SID: &str = "MZ0123456789abcdef0123456789abcdef";
    let narrow = &golden::caller_voice()[..SECOND * NARROW];
    let mut codes = vec![0; narrow.len()];
    Companding::Ulaw.encode_slice(narrow, &mut codes);
    let wide: Vec<u8> =
        golden::agent_voice()[..SECOND * WIDE].iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let media: Vec<String> = codes.chunks(NARROW).map(media).collect();
    let deltas: Vec<String> = wide.chunks(DELTA_FRAMES * 2 * WIDE).map(delta).collect();

    for one in contestants {
        let name = one.id();
        if let Some(codec) = &one.codec {
            let mut samples = [0; NARROW];
            let mut frames = codes.chunks(NARROW).cycle();
            criterion.benchmark_group("decode").bench_function(&name, |bench| {
                bench.iter(|| (codec.decode)(Companding::Ulaw, next(&mut frames), black_box(&mut samples)));
            });
            let mut encoded = [0; NARROW];
            let mut frames = narrow.chunks(NARROW).cycle();
            criterion.benchmark_group("encode").bench_function(&name, |bench| {
                bench.iter(|| (codec.encode)(Companding::Ulaw, next(&mut frames), black_box(&mut encoded)));
            });
        }
        let Some(mut path) = one.bytes() else { continue };
        let mut out = Vec::new();
        let mut frames = codes.chunks(NARROW).cycle();
        criterion.benchmark_group("up").bench_function(&name, |bench| {
            bench.iter(|| {
                out.clear();
                path.up(next(&mut frames), &mut out);
                black_box(out.len())
            });
        });
        let mut frames = wide.chunks(2 * WIDE).cycle();
        criterion.benchmark_group("down").bench_function(&name, |bench| {
            bench.iter(|| {
                out.clear();
                path.down(next(&mut frames), &mut out);
                black_box(out.len())
            });
        });
        let mut texts = media.iter().cycle();
        criterion.benchmark_group("whole_up").bench_function(&name, |bench| {
            bench.iter(|| {
                let message = twilio::decode(next(&mut texts)).map(|envelope| envelope.message);
                let Ok(FromTwilio::Media(media)) = message else { return 0 };
                let mut audio = Vec::with_capacity(2 * WIDE);
                path.up(&media.audio, &mut audio);
                ClientEvent::AppendAudio { audio }.encode(Dialect::Ga).len()
            });
        });
        let mut texts = deltas.iter().cycle();
        criterion.benchmark_group("whole_down").bench_function(&name, |bench| {
            bench.iter(|| {
                let Ok(ServerEvent::AudioDelta { audio, .. }) = realtime::decode(next(&mut texts)) else {
                    return 0;
                };
                let mut codes = Vec::with_capacity(DELTA_FRAMES * NARROW);
                path.down(&audio, &mut codes);
                let frames = codes.chunks(NARROW);
                frames.map(|f| ToTwilio::Media { audio: f.to_vec() }.encode(STREAM_SID).len()).sum::<usize>()
            });
        });
    }
}

fn next<'a, T: ?Sized>(frames: &mut impl Iterator<Item = &'a T>) -> &'a T {
    black_box(frames.next().expect("a cycle never ends"))
}

/// A frame as Twilio sends it.
fn media(codes: &[u8]) -> String {
    let mut text = r#"{"event":"media","sequenceNumber":"4711","media":{"track":"inbound","chunk":"4710","timestamp":"94205","payload":""#.to_owned();
    base64::write(codes, &mut text);
    text + r#""},"streamSid":"MZ0123456789abcdef0123456789abcdef"}"#
}

/// Some frames as the model sends them.
fn delta(bytes: &[u8]) -> String {
    let mut text = r#"{"type":"response.output_audio.delta","event_id":"event_BGnTAeEJLG3qjWYRjrC3q","response_id":"resp_BGnT9cUpNrIuUc0z2Fnkw","item_id":"item_BGnT9EVRWLlvJXj3GLBNm","output_index":0,"content_index":0,"delta":""#.to_owned();
    base64::write(bytes, &mut text);
    text + r#""}"#
}

/// What criterion keeps of a benchmark: how often it ran in each sample, and how long that took, ns.
#[derive(serde::Deserialize)]
struct Sample {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// The table of speed, as Markdown, from what criterion wrote.
struct Speeds<'a>(&'a [Contestant], PathBuf);

impl fmt::Display for Speeds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(contestants, folder) = self;
        f.write_str(&header("speed, ns", contestants))?;
        for (what, group) in ROWS {
            let frames = if group == "whole_down" { DELTA_FRAMES as f64 } else { 1.0 };
            // The least of the samples: what else the machine does can only add to it.
            let cell = |one: &Contestant| {
                let path = folder.join(group).join(one.id()).join("new/sample.json");
                let sample: Sample = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
                let each = sample.times.iter().zip(&sample.iters).map(|(time, count)| time / count);
                Some(format!("{:.0}", each.fold(f64::INFINITY, f64::min) / frames))
            };
            f.write_str(&row(what, contestants.iter().map(cell)))?;
        }
        Ok(())
    }
}

// ------------------------------------------------------------------------------------------------- rivals

/// To the nearest 16-bit sample.
fn sample(value: f32) -> i16 {
    value.round().clamp(-32_768.0, 32_767.0) as i16
}

struct Rubato {
    up: OneWay,
    down: OneWay,
}

struct OneWay {
    inner: Box<dyn rubato::Resampler<f32>>,
    sent: Vec<f32>,
    got: Vec<f32>,
}

impl Rubato {
    fn fft() -> Self {
        let way = |from, to| {
            let inner = Fft::new(from, to, from / 50, 1, FixedSync::Both).expect("whole ratios of 20 ms");
            OneWay { inner: Box::new(inner), sent: Vec::new(), got: Vec::new() }
        };
        Self { up: way(8_000, 24_000), down: way(24_000, 8_000) }
    }

    /// With the parameters the library takes by itself.
    fn sinc() -> Self {
        let way = |from: usize, to: usize| {
            let parameters = SincInterpolationParameters::default();
            let ratio = to as f64 / from as f64;
            let inner = Async::new_sinc(ratio, 1.0, &parameters, from / 50, 1, FixedAsync::Input);
            OneWay { inner: Box::new(inner.expect("a fixed ratio")), sent: Vec::new(), got: Vec::new() }
        };
        Self { up: way(8_000, 24_000), down: way(24_000, 8_000) }
    }
}

impl OneWay {
    fn push(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        self.sent.clear();
        self.sent.extend(frame.iter().map(|&sample| f32::from(sample)));
        self.got.resize(self.inner.output_frames_max(), 0.0);
        let sent = InterleavedSlice::new(&self.sent, 1, self.sent.len()).expect("one channel");
        let room = self.got.len();
        let mut got = InterleavedSlice::new_mut(&mut self.got, 1, room).expect("one channel");
        let (_, written) = self.inner.process_into_buffer(&sent, &mut got, None).expect("a whole frame");
        out.extend(self.got[..written].iter().map(|&value| sample(value)));
    }
}

impl Resampler for Rubato {
    fn up(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        self.up.push(frame, out);
    }

    fn down(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        self.down.push(frame, out);
    }
}

struct AudioCodec {
    up: audio_codec::Resampler<'static>,
    down: audio_codec::Resampler<'static>,
}

impl AudioCodec {
    fn new() -> Self {
        // It borrows the room for its coefficients, 24 KiB; a program that measures may leak a few of them.
        let way = |from, to| {
            let room = vec![0.0; audio_codec::resampler::COEFFS_LEN].leak();
            audio_codec::Resampler::new(from, to, room).expect("two rates")
        };
        Self { up: way(8_000, 24_000), down: way(24_000, 8_000) }
    }

    fn push(way: &mut audio_codec::Resampler<'static>, frame: &[i16], room: usize, out: &mut Vec<i16>) {
        let before = out.len();
        out.resize(before + room, 0);
        let written = way.resample_into(frame, &mut out[before..]).expect("enough room");
        out.truncate(before + written);
    }
}

impl Resampler for AudioCodec {
    fn up(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        Self::push(&mut self.up, frame, 3 * frame.len() + 3, out);
    }

    fn down(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        Self::push(&mut self.down, frame, frame.len() / 3 + 3, out);
    }
}

fn audio_codec_decode(companding: Companding, codes: &[u8], samples: &mut [i16]) {
    let done = match companding {
        Companding::Ulaw => audio_codec::pcmu::PcmuDecoder::new().decode_into(codes, samples),
        Companding::Alaw => audio_codec::pcma::PcmaDecoder::new().decode_into(codes, samples),
    };
    done.expect("as much room as codes");
}

fn audio_codec_encode(companding: Companding, samples: &[i16], codes: &mut [u8]) {
    let done = match companding {
        Companding::Ulaw => audio_codec::pcmu::PcmuEncoder::new().encode_into(samples, codes),
        Companding::Alaw => audio_codec::pcma::PcmaEncoder::new().encode_into(samples, codes),
    };
    done.expect("as much room as samples");
}

fn algorithms_decode(companding: Companding, codes: &[u8], samples: &mut [i16]) {
    let decode = match companding {
        Companding::Ulaw => audio_codec_algorithms::decode_ulaw,
        Companding::Alaw => audio_codec_algorithms::decode_alaw,
    };
    samples.iter_mut().zip(codes).for_each(|(sample, &code)| *sample = decode(code));
}

fn algorithms_encode(companding: Companding, samples: &[i16], codes: &mut [u8]) {
    let encode = match companding {
        Companding::Ulaw => audio_codec_algorithms::encode_ulaw,
        Companding::Alaw => audio_codec_algorithms::encode_alaw,
    };
    codes.iter_mut().zip(samples).for_each(|(code, &sample)| *code = encode(sample));
}

/// What bridges without a filter do: straight lines up, every third sample down.
#[derive(Default)]
struct NoFilter {
    last: i16,
}

impl Resampler for NoFilter {
    fn up(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        for &next in frame {
            let (a, b) = (i32::from(self.last), i32::from(next));
            out.extend([(2 * a + b) / 3, (a + 2 * b) / 3, b].map(|sample| sample as i16));
            self.last = next;
        }
    }

    fn down(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        out.extend(frame.iter().step_by(3));
    }
}
