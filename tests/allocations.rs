//! What a call's audio takes from the allocator: nothing for its samples, a few strings for its messages.
//!
//! A program of its own, because it puts a counting allocator in the place of the system's.

use allocation_counter::measure;
use bridge::audio::{Companding, Downlink, FRAME_BYTES, Format, Uplink};
use bridge::call::settings::CallConfig;
use bridge::call::{Call, Leg, LegChange};
use bridge::runtime::codec::{decode, encode};
use bridge::wire::base64;
use scenarios::field::{self};
use scenarios::model::catalogue;
use scenarios::model::seed::Seed;
use scenarios::sim::in_memory_journal::InMemoryJournal;
use scenarios::sim::memory;
use std::io::{BufReader, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LAWS: [Companding; 2] = [Companding::Ulaw, Companding::Alaw];
const FORMATS: [Format; 3] = [Format::Pcm24k, Format::Pcmu, Format::Pcma];
/// Room for what a frame becomes, at its largest.
const ROOM: usize = 4_096;

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * n / 8) as u8).collect()
}

#[test]
fn a_frame_of_samples_takes_nothing_in_any_format_up_or_down() {
    for companding in LAWS {
        for format in FORMATS {
            let (codes, mut out) = (noise(FRAME_BYTES), Vec::with_capacity(ROOM));
            let mut uplink = Uplink::new(companding, format);
            let up = measure(|| {
                for _ in 0..500 {
                    out.clear();
                    uplink.push(&codes, &mut out);
                }
            });
            assert_eq!((up.count_total, out.len()), (0, format.bytes_per_ms() as usize * 20));

            // Half a sample is left over by every piece, and items end and are interrupted.
            let piece = noise(format.bytes_per_ms() as usize * 20 + 1);
            let mut downlink = Downlink::new(format, companding);
            let down = measure(|| {
                for n in 0..500 {
                    out.clear();
                    downlink.push(&piece, &mut out);
                    match n % 100 {
                        50 => downlink.flush(&mut out),
                        99 => downlink.reset(),
                        _ => {}
                    }
                }
            });
            assert_eq!(down.count_total, 0, "{companding:?} from {format:?}");
            assert!(out.len() >= FRAME_BYTES);
        }
    }
}

#[test]
fn both_ways_of_a_call_keep_no_more_than_3_1_kib() {
    let mut kept = None;
    let heap = measure(|| {
        kept = Some((
            Uplink::new(Companding::Ulaw, Format::Pcm24k),
            Downlink::new(Format::Pcm24k, Companding::Ulaw),
        ));
    });
    let bytes = heap.bytes_current + size_of_val(&kept) as i64;
    println!("the audio of a call keeps {bytes} bytes");
    // More than the samples the filters remember: 30 of 8 kHz up, 90 of 24 kHz down, and a frame of each.
    assert!((2_900..=3_174).contains(&bytes), "{bytes} bytes");
}

/// A call in the middle of both people's talking.
struct Live {
    call: Call,
    config: Arc<CallConfig>,
    now: Instant,
}

impl Live {
    #[expect(clippy::disallowed_methods, reason = "a test may anchor its time line anywhere")]
    fn new(format: Format) -> Self {
        let config = Arc::new(CallConfig { format, ..CallConfig::default() });
        let now = Instant::now();
        let mut live = Self { call: Call::new(config.clone(), Arc::from([0xFF; 160]), now, 0), config, now };
        live.text(Leg::Caller, r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"streamSid":"MZ1"}"#);
        live.text(Leg::Caller, &media(1, 0));
        live.call.handle_leg(Leg::Model, LegChange::Open, live.now);
        live.text(Leg::Model, r#"{"type":"session.created","session":{}}"#);
        let echo = format!(r#"{{"format":{{"type":"{}"}}}}"#, format.wire_name());
        let session = format!(r#"{{"audio":{{"input":{echo},"output":{echo}}}}}"#);
        live.text(Leg::Model, &format!(r#"{{"type":"session.updated","session":{session}}}"#));
        live.text(Leg::Model, r#"{"type":"response.created","response":{"id":"r"}}"#);
        live
    }

    /// Takes a message, and drains what comes of it to the text that would be sent. Returns how many bytes that is.
    fn text(&mut self, leg: Leg, text: &str) -> usize {
        self.call.handle_frame(leg, decode(leg, text), self.now);
        let mut bytes = 0;
        while let Some(transmit) = self.call.poll_transmit() {
            bytes += encode(&transmit, self.config.dialect).map_or(0, |(_, text)| text.len());
        }
        while self.call.poll_event().is_some() {}
        bytes
    }
}

fn media(chunk: u64, timestamp_ms: u64) -> String {
    let mut payload = String::new();
    base64::write(&noise(FRAME_BYTES), &mut payload);
    format!(
        r#"{{"event":"media","media":{{"chunk":"{chunk}","timestamp":"{timestamp_ms}","payload":"{payload}"}},"streamSid":"MZ1"}}"#
    )
}

/// The message's audio, what the model is given of it, and its text: each is handed on, so each is its own.
#[test]
fn a_frame_of_the_caller_takes_three_allocations_from_text_to_text() {
    for format in FORMATS {
        let mut live = Live::new(format);
        let frames: Vec<String> = (2..=600).map(|n| media(n, (n - 1) * 20)).collect();
        let (warm_up, steady) = frames.split_at(99);
        let mut send = |frame: &String| {
            live.now += Duration::from_millis(20);
            assert!(live.text(Leg::Caller, frame) > 200, "the model is given each frame");
        };
        warm_up.iter().for_each(&mut send);
        let taken = measure(|| steady.iter().for_each(&mut send));
        assert_eq!(taken.count_total, 3 * steady.len() as u64, "{format:?}");
        assert_eq!(taken.bytes_current, 0, "{format:?}: nothing is kept");
    }
}

/// A journal of a hundred megabytes: a call of hours, read from a file that is made up as it is read.
#[test]
fn a_journal_of_a_hundred_megabytes_keeps_its_call_and_not_its_file() {
    let journals = InMemoryJournal::default();
    memory::play_journalled(&catalogue::find("barge_in/mid_answer")[0], Seed(1), None, &journals);
    let text = journals.texts().remove(0);
    let (header, body) = text.split_at(text.find('\n').expect("a header") + 1);
    let body = &body[..body.rfind("{\"us\"").expect("a last line")];
    // Time stands still, for it does not go back where the file begins again.
    let still = |line: &str| {
        format!("{{\"us\":9000000{}\n", &line[line.find(',').expect("a field behind the time")..])
    };
    let body: String = body.lines().map(still).collect();
    let mut kept = None;
    let taken = measure(|| {
        let long =
            header.as_bytes().chain(ReconnectScript { text: body.as_bytes(), at: 0, left: HUNDRED_MB });
        kept = Some(field::read(BufReader::new(long)).expect("a journal"));
    });
    let bytes = taken.bytes_max;
    println!("a journal of 100 MB takes {} MB at most", bytes >> 20);
    assert!(kept.is_some_and(|journal| journal.records.len() > 100_000));
    // A line becomes a value about three times as long, and a list grows by doubling.
    assert!(bytes < 5 * HUNDRED_MB as u64, "{bytes} bytes at most");
}

#[test]
fn a_file_without_an_end_of_line_takes_no_more_than_the_longest_line() {
    let taken = measure(|| {
        let rubbish = ReconnectScript { text: b"call", at: 0, left: HUNDRED_MB };
        let error = field::read(BufReader::new(rubbish)).expect_err("no journal").to_string();
        assert!(error.contains("no header"), "{error}");
    });
    // A vector grows by doubling.
    assert!(taken.bytes_max <= 2 * LINE_MAX + (1 << 20), "{} bytes at most", taken.bytes_max);
}

const HUNDRED_MB: usize = 100 << 20;
/// The longest line that is read.
const LINE_MAX: u64 = 32 << 20;

/// A text again and again, until so many bytes have been read.
struct ReconnectScript<'a> {
    text: &'a [u8],
    at: usize,
    left: usize,
}

impl Read for ReconnectScript<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let bytes = (&self.text[self.at..]).take(self.left as u64).read(into)?;
        self.at = (self.at + bytes) % self.text.len();
        self.left -= bytes;
        Ok(bytes)
    }
}

/// The delta's audio and two names; the same audio for the caller; then each message to the caller and its text, and a
/// mark every other time. As many for a delta of ten seconds as for one of 100 ms but for the messages.
#[test]
fn a_delta_of_the_model_takes_at_most_a_dozen_allocations_from_text_to_text() {
    for format in FORMATS {
        let mut live = Live::new(format);
        let mut audio = String::new();
        base64::write(&noise(format.bytes_per_ms() as usize * 100), &mut audio);
        let delta = format!(
            r#"{{"type":"response.output_audio.delta","response_id":"r","item_id":"i","output_index":0,"content_index":0,"delta":"{audio}"}}"#
        );
        // More than a second in one burst is within what the bridge sends ahead of playback without collecting.
        let mut send = || assert!(live.text(Leg::Model, &delta) > 4 * 216, "the caller is given each delta");
        (0..4).for_each(|_| send());
        let taken = measure(|| (0..8).for_each(|_| send()));
        assert!((48..=96).contains(&taken.count_total), "{format:?}: {taken:?}");
    }
}
