//! The quality of the audio path as a table: what each goal demands, and what the code at hand reaches.
//!
//! Everything is measured anew, through the public face of [`bridge::audio`]: the two links where bytes are asked
//! for, the resampler where mu-law would hide what is to be seen. Each figure has a bound that a bridge must keep;
//! `docs/dev/audio.md` says why it is that one.
//!
//! The instruments measure any [`Resampler`], so that other libraries can be held against the same goals.

use crate::audio::golden_audio::Recording;
use bridge::audio::resample::{Down, Up};
use bridge::audio::{Companding, Downlink, Format, Uplink};
use golden::codec;
use std::f64::consts::TAU;
use std::fmt::Write as _;

/// A way from 8 to 24 kHz and back, from its first sample on.
pub trait Resampler {
    /// Takes 20 ms at 8 kHz and puts what there is at 24 kHz behind what `out` holds.
    fn up(&mut self, frame: &[i16], out: &mut Vec<i16>);
    /// Takes 20 ms at 24 kHz and puts what there is at 8 kHz behind what `out` holds.
    fn down(&mut self, frame: &[i16], out: &mut Vec<i16>);
}

/// Makes a resampler that has heard nothing yet.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Resampler>;

/// The bridge's.
#[derive(Clone, Debug, Default)]
pub struct Bridge {
    up: Up,
    down: Down,
}

impl Resampler for Bridge {
    fn up(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        self.up.push(frame, |wide| out.extend_from_slice(wide));
    }

    fn down(&mut self, frame: &[i16], out: &mut Vec<i16>) {
        let mut pairs = [[0; 2]; 480];
        for frame in frame.chunks(pairs.len()) {
            pairs.iter_mut().zip(frame).for_each(|(pair, sample)| *pair = sample.to_le_bytes());
            self.down.push(&pairs[..frame.len()], |narrow| out.extend_from_slice(narrow));
        }
    }
}

/// What can be said of any resampler, in ms and dB.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Character {
    /// From a sample to its place in what has come out by the end of its frame at the worst: the filter's delay and
    /// what a frame in withholds of a frame out. Up, then down.
    pub delay_ms: [f64; 2],
    /// Greatest deviation from 100 to 3,300 Hz, both ways.
    pub pass_band_db: f64,
    /// Gain at 3,400 Hz, the lesser way.
    pub edge_db: f64,
    /// Alias rejection from 4.3 and from 4.6 kHz.
    pub alias_db: [f64; 2],
    /// Image rejection from 4.3 and from 4.6 kHz.
    pub image_db: [f64; 2],
    /// SINAD of 997 Hz at -1 dBFS through 16 bits, up and down.
    pub sinad_db: [f64; 2],
    /// SNR of a voice, up and down again, at the best lag and gain.
    pub round_trip_db: f64,
}

impl Character {
    /// Measures a resampler.
    pub fn of(make: Make<'_>) -> Self {
        let (pass_band_db, edge_db) = pass_band(make);
        let (up, down) = purity(make);
        Self {
            delay_ms: [delay(make, 8_000, 24_000), delay(make, 24_000, 8_000)],
            pass_band_db,
            edge_db,
            alias_db: [4_300, 4_600].map(|from| alias_rejection(make, from)),
            image_db: [4_300, 4_600].map(|from| image_rejection(make, from)),
            sinad_db: [up, down],
            round_trip_db: fitted_round_trip(make),
        }
    }
}

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This, and nothing else.
    Exactly(f64),
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    /// What is measured.
    pub what: &'static str,
    /// The unit of `measured` and `bound`.
    pub unit: &'static str,
    /// Digits behind the point when it is shown.
    pub digits: usize,
    /// What the code at hand reaches.
    pub measured: f64,
    /// What it must be.
    pub bound: Bound,
}

impl Goal {
    /// Whether the figure keeps its bound.
    pub fn is_met(&self) -> bool {
        match self.bound {
            Bound::Exactly(wanted) => (self.measured - wanted).abs() < 1e-9,
            Bound::AtLeast(least) => self.measured >= least,
            Bound::AtMost(most) => self.measured <= most,
        }
    }
}

/// Measures everything. Takes a second or two in a debug build.
pub fn measure() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost, Exactly};
    let goal = |what, unit, digits, measured, bound| Goal { what, unit, digits, measured, bound };
    let ours: Make<'_> = &|| Box::new(Bridge::default());
    let (up_sinad, down_sinad) = purity(ours);
    let (band, edge) = pass_band(ours);
    let (linear, coded) = round_trips();
    let (late, crooked) = uplink_delay();
    vec![
        goal("G.711 check sums that are not the standard's, of 4", "", 0, wrong_check_sums(), Exactly(0.0)),
        goal("uplink delay", "ms", 3, late, Exactly(1.875)),
        goal("downlink: audio it must see ahead", "ms", 3, downlink_look_ahead(), Exactly(1.875)),
        goal("asymmetry of the impulse response (delay is constant)", "LSB", 0, crooked, Exactly(0.0)),
        goal("bytes missing from the first uplink frame", "", 0, missing_at_first(), Exactly(0.0)),
        goal("pass band 100-3,300 Hz, greatest deviation", "dB", 3, band, AtMost(0.05)),
        goal("gain at 3,400 Hz, the lesser way", "dB", 3, edge, AtLeast(-0.1)),
        goal("alias rejection from 4.3 kHz", "dB", 1, alias_rejection(ours, 4_300), AtLeast(64.0)),
        goal("alias rejection from 4.6 kHz", "dB", 1, alias_rejection(ours, 4_600), AtLeast(70.0)),
        goal("image rejection from 4.3 kHz", "dB", 1, image_rejection(ours, 4_300), AtLeast(64.0)),
        goal("image rejection from 4.6 kHz", "dB", 1, image_rejection(ours, 4_600), AtLeast(70.0)),
        goal("SINAD of 997 Hz at -1 dBFS, uplink", "dB", 1, up_sinad, AtLeast(90.0)),
        goal("SINAD of 997 Hz at -1 dBFS, downlink", "dB", 1, down_sinad, AtLeast(90.0)),
        goal("voice, up and down again, linear", "dB", 1, linear, AtLeast(50.0)),
        goal("voice, up and down again, between mu-law", "dB", 1, coded, AtLeast(41.0)),
        goal("ways of cutting the input that change a byte, of 80", "", 0, cuts_that_matter(), Exactly(0.0)),
        goal("digests that are not the recorded ones, of 4", "", 0, other_digests(), Exactly(0.0)),
        goal("bytes changed by pass-through, of 1,024", "", 0, changed_in_passing(), Exactly(0.0)),
    ]
}

/// Whether every goal is met.
pub fn all_met(goals: &[Goal]) -> bool {
    goals.iter().all(Goal::is_met)
}

/// The goals as text, one line each.
pub fn table(goals: &[Goal]) -> String {
    let width = goals.iter().map(|goal| goal.what.len()).max().unwrap_or(0);
    let mut text = format!("{:<width$}  {:>9}  {:<18}  verdict\n", "goal", "measured", "bound");
    for goal in goals {
        let Goal { what, unit, digits, .. } = goal;
        // No "-0.0" for what rounds to nothing.
        let number = |value: f64| format!("{:.digits$}", value + 0.0);
        let bound = match goal.bound {
            Bound::Exactly(wanted) => format!("exactly {} {unit}", number(wanted)),
            Bound::AtLeast(least) => format!("at least {} {unit}", number(least)),
            Bound::AtMost(most) => format!("at most {} {unit}", number(most)),
        };
        let verdict = if goal.is_met() { "met" } else { "NOT MET" };
        let bound = bound.trim_end();
        let _infallible =
            writeln!(text, "{what:<width$}  {:>9}  {bound:<18}  {verdict}", number(goal.measured));
    }
    text
}

/// Spoken words after each way through the bridge, and the same words through the witness's resampler, which has no
/// delay and nearly no limits: for instruments that are not ours, and for listeners.
pub fn speech() -> Vec<Recording> {
    let recording = |name: &str, rate, samples| Recording { name: name.to_owned(), rate, samples };
    let mut all = Vec::new();
    if let Some(said) = golden::clip("caller_question") {
        let codes = encoded(Companding::Ulaw, said.samples);
        let reference = mocks::resample::up(&decoded(Companding::Ulaw, &codes));
        all.push(recording("uplink.reference", 24_000, reference));
        all.push(recording("uplink", 24_000, linear(&uplinked(&codes))));
    }
    if let Some(said) = golden::clip("agent_answer") {
        let mut codes = Vec::new();
        let mut link = Downlink::new(Format::Pcm24k, Companding::Ulaw);
        link.push(&bytes(said.samples), &mut codes);
        link.flush(&mut codes);
        all.push(recording("downlink.reference", 8_000, mocks::resample::down(said.samples)));
        all.push(recording("downlink", 8_000, decoded(Companding::Ulaw, &codes)));
    }
    all
}

// ------------------------------------------------------------------------------------------ the instruments

/// -1 dB of full scale.
const FULL: f64 = 29_204.0;
/// A tone is looked at for this long, so that every multiple of 2.5 Hz is whole.
const LOOKED_AT_MS: usize = 400;
/// What the filters need to settle.
const SETTLED_MS: usize = 50;
/// Frequencies that are tried lie this far apart, Hz.
const STEP: usize = 50;

fn tone(hz: f64, rate: usize, ms: usize) -> Vec<i16> {
    let sample = |n: usize| (FULL * (TAU * hz * n as f64 / rate as f64).sin()).round() as i16;
    (0..rate * ms / 1_000).map(sample).collect()
}

/// What comes out after each 20 ms. A last frame that is not whole is filled with silence.
fn converted(make: Make<'_>, samples: &[i16], from: usize) -> Vec<Vec<i16>> {
    let mut resampler = make();
    let convert = |frame: &[i16]| {
        let mut frame = frame.to_vec();
        frame.resize(from / 50, 0);
        let mut out = Vec::new();
        if from == 8_000 {
            resampler.up(&frame, &mut out);
        } else {
            resampler.down(&frame, &mut out);
        }
        out
    };
    samples.chunks(from / 50).map(convert).collect()
}

fn widened(make: Make<'_>, samples: &[i16]) -> Vec<i16> {
    converted(make, samples, 8_000).concat()
}

fn narrowed(make: Make<'_>, samples: &[i16]) -> Vec<i16> {
    converted(make, samples, 24_000).concat()
}

fn db(ratio: f64) -> f64 {
    10.0 * ratio.log10()
}

/// Power of the component at `hz`, and of everything else.
fn split(samples: &[i16], hz: f64, rate: usize) -> (f64, f64) {
    let count = samples.len() as f64;
    let (mut re, mut im, mut power) = (0.0, 0.0, 0.0);
    for (n, sample) in samples.iter().enumerate() {
        let (sin, cos) = (TAU * hz * n as f64 / rate as f64).sin_cos();
        let sample = f64::from(*sample);
        re += sample * cos;
        im += sample * sin;
        power += sample * sample;
    }
    let tone = 2.0 * (re * re + im * im) / (count * count);
    (tone, (power / count - tone).max(1e-9))
}

/// Level at `seen` of what a tone of -1 dBFS at `hz` became, against the tone.
fn level(make: Make<'_>, hz: usize, from: usize, seen: usize, to: usize) -> f64 {
    // What a slow resampler withholds must not be missed at the end.
    let sent = tone(hz as f64, from, SETTLED_MS + LOOKED_AT_MS + SETTLED_MS);
    let got = converted(make, &sent, from).concat();
    let settled = &got[SETTLED_MS * to / 1_000..][..LOOKED_AT_MS * to / 1_000];
    db(split(settled, seen as f64, to).0 / (FULL * FULL / 2.0))
}

// ---------------------------------------------------------------------------------------------- the figures

fn encoded(companding: Companding, samples: &[i16]) -> Vec<u8> {
    let mut codes = vec![0; samples.len()];
    companding.encode_slice(samples, &mut codes);
    codes
}

fn decoded(companding: Companding, codes: &[u8]) -> Vec<i16> {
    let mut samples = vec![0; codes.len()];
    companding.decode_slice(codes, &mut samples);
    samples
}

/// Codes and decoded codes of all 65,536 samples, in both laws.
fn wrong_check_sums() -> f64 {
    let sweep: Vec<i16> = codec::sweep().collect();
    let wrong = |companding: Companding, standard: [u32; 2]| {
        let codes = encoded(companding, &sweep);
        let ours = [codec::crc32(bytes(&decoded(companding, &codes))), codec::crc32(codes)];
        ours.iter().zip(standard).filter(|(ours, standard)| **ours != *standard).count()
    };
    let ulaw = wrong(Companding::Ulaw, [codec::ULAW_DECODED, codec::ULAW_CODES]);
    let alaw = wrong(Companding::Alaw, [codec::ALAW_DECODED, codec::ALAW_CODES]);
    (ulaw + alaw) as f64
}

fn linear(bytes: &[u8]) -> Vec<i16> {
    bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect()
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

fn uplinked(codes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Uplink::new(Companding::Ulaw, Format::Pcm24k).push(codes, &mut out);
    out
}

/// Delay of a click, ms, and how unlike the two sides of what it became are, in steps of 16 bits. A filter whose
/// response is symmetric delays every frequency by the same time.
fn uplink_delay() -> (f64, f64) {
    const AT: usize = 100;
    let mut click = [0; 3 * AT];
    click[AT] = i16::MAX;
    let heard = linear(&uplinked(&encoded(Companding::Ulaw, &click)));
    let peak = heard.iter().enumerate().max_by_key(|(_, sample)| sample.unsigned_abs()).map_or(0, |(n, _)| n);
    let apart =
        (1..=peak.min(60)).map(|k| heard[peak - k].abs_diff(heard[peak + k])).max().unwrap_or(u16::MAX);
    ((peak as f64 - 3.0 * AT as f64) / 24.0, f64::from(apart))
}

/// How much audio the downlink must see behind a sample before it can say that sample, ms.
fn downlink_look_ahead() -> f64 {
    let mut link = Downlink::new(Format::Pcm24k, Companding::Ulaw);
    let mut out = Vec::new();
    let mut pushed = 0;
    while out.is_empty() && pushed < 24_000 {
        link.push(&[0, 0], &mut out);
        pushed += 1;
    }
    // The sample itself is not ahead of itself.
    (f64::from(pushed) - 1.0) / 24.0
}

fn missing_at_first() -> f64 {
    960.0 - uplinked(&[0xFF; 160]).len() as f64
}

fn pass_band(make: Make<'_>) -> (f64, f64) {
    let gains = |hz: usize| [level(make, hz, 8_000, hz, 24_000), level(make, hz, 24_000, hz, 8_000)];
    let worst = (100..=3_300).step_by(STEP).flat_map(gains).map(f64::abs).fold(0.0, f64::max);
    (worst, gains(3_400).into_iter().fold(f64::INFINITY, f64::min))
}

/// How far below a tone above 4 kHz its alias in the caller's band stays, at the worst frequency.
fn alias_rejection(make: Make<'_>, from: usize) -> f64 {
    let folded = |hz: usize| hz.abs_diff((hz + 4_000) / 8_000 * 8_000);
    // What folds to 0 or to 4 kHz has no phase of its own to be measured by.
    let seen = |hz: &usize| (STEP..4_000).contains(&folded(*hz));
    let levels =
        (from..12_000).step_by(STEP).filter(seen).map(|hz| -level(make, hz, 24_000, folded(hz), 8_000));
    levels.fold(f64::INFINITY, f64::min)
}

/// How far below a tone of the caller its images above 4 kHz stay, at the worst frequency.
fn image_rejection(make: Make<'_>, from: usize) -> f64 {
    let images = |hz: usize| [8_000 - hz, 8_000 + hz].map(|image| -level(make, hz, 8_000, image, 24_000));
    (100..=8_000 - from).step_by(STEP).flat_map(images).fold(f64::INFINITY, f64::min)
}

/// SINAD of a tone through 16 bits, both ways.
fn purity(make: Make<'_>) -> (f64, f64) {
    let sinad = |samples: &[i16], rate: usize| {
        let (tone, rest) = split(&samples[rate / 10..][..rate], 997.0, rate);
        db(tone / rest)
    };
    (
        sinad(&widened(make, &tone(997.0, 8_000, 1_200)), 24_000),
        sinad(&narrowed(make, &tone(997.0, 24_000, 1_200)), 8_000),
    )
}

/// SNR of the caller's voice after both filters, all linear, and with mu-law before and behind them.
fn round_trips() -> (f64, f64) {
    let snr = |sent: &[i16], got: &[i16]| {
        let power = |s: &mut dyn Iterator<Item = f64>| s.map(|x| x * x).sum::<f64>();
        let signal = power(&mut sent.iter().map(|s| f64::from(*s)));
        let noise = power(&mut sent.iter().zip(got).map(|(s, g)| f64::from(*s) - f64::from(*g)));
        db(signal / noise)
    };
    let voice = &golden::caller_voice()[..80_000];
    // 15 samples each way; the downlink takes its own out.
    let ours: Make<'_> = &|| Box::new(Bridge::default());
    let back = narrowed(ours, &widened(ours, voice));
    let linear = snr(&voice[..79_000], &back[30..]);
    let codes = encoded(Companding::Ulaw, voice);
    let heard = decoded(Companding::Ulaw, &codes);
    let mut out = Vec::new();
    let mut link = Downlink::new(Format::Pcm24k, Companding::Ulaw);
    link.push(&uplinked(&codes), &mut out);
    link.flush(&mut out);
    (linear, snr(&heard[..79_000], &decoded(Companding::Ulaw, &out)[15..]))
}

/// Where a click of 20 ms before comes out, and how much more had gone in than has come out at the worst, ms. A click
/// comes out at its largest, which is as exact as one sample of `to`.
fn delay(make: Make<'_>, from: usize, to: usize) -> f64 {
    let frame = from / 50;
    let mut click = vec![0; 30 * frame];
    click[2 * frame] = i16::MAX;
    let frames = converted(make, &click, from);
    let mut withheld = 0.0f64;
    let mut got = 0;
    for (n, frame) in frames.iter().enumerate() {
        got += frame.len();
        withheld = withheld.max((n + 1) as f64 * 20.0 - got as f64 * 1e3 / to as f64);
    }
    let heard = frames.concat();
    let peak = heard.iter().enumerate().max_by_key(|(_, sample)| sample.unsigned_abs()).map_or(0, |(n, _)| n);
    peak as f64 * 1e3 / to as f64 - 40.0 + withheld
}

/// SNR of two seconds of the caller's voice after both ways, at the gain and the lag that fit best. The lag is found
/// to a third of a sample: not every filter's delay is whole.
fn fitted_round_trip(make: Make<'_>) -> f64 {
    let voice = &golden::caller_voice()[..16_000];
    let back = narrowed(make, &widened(make, voice));
    let (sent, got) = (mocks::resample::up(voice), mocks::resample::up(&back));
    mocks::resample::best_lag(&sent[2_400..40_000], &got[2_400..], 1_200).snr_db
}

/// What every build of the bridge makes of [`Material`], on every processor, as SHA-256 over the bytes it would send.
pub const DIGESTS: [(&str, Companding, &str); 4] = [
    ("up", Companding::Ulaw, "6a1d2dc5d8da593cd755e2539a2f87207b9cc31f67a5ef908fcf6c00c4dc4fdd"),
    ("up", Companding::Alaw, "976f3c5b5b6db59c2545c9c4a0fb94901b4b79aa9f63950ea6f1eace424cee98"),
    ("down", Companding::Ulaw, "c97e117a456975fbcf90ef7125282c6349ae28659ac5339b4e7c19d0119eec18"),
    ("down", Companding::Alaw, "dbedefff63e67aae03dd6e20967ec46a77b624621fd0b6dd13e91a7b71021b8e"),
];

/// What [`DIGESTS`] are taken of: five seconds of noise of full scale, which reaches every code and every corner of
/// the arithmetic, and ten of a voice.
#[derive(Clone, Debug)]
pub struct Material {
    /// At 8 kHz, in the companding that was asked for.
    pub codes: Vec<u8>,
    /// At 24 kHz, little-endian.
    pub wide: Vec<u8>,
}

impl Material {
    /// For a caller who speaks `companding`.
    pub fn new(companding: Companding) -> Self {
        let mut state = 0x2545_F491u32;
        let mut noise = |samples: usize| -> Vec<i16> {
            let next = || {
                state ^= state << 13;
                state ^= state >> 17;
                state ^= state << 5;
                (state >> 16) as i16
            };
            std::iter::repeat_with(next).take(samples).collect()
        };
        let narrow = [&noise(40_000), &golden::caller_voice()[..80_000]].concat();
        let wide = [&noise(120_000), &golden::agent_voice()[..240_000]].concat();
        Self { codes: encoded(companding, &narrow), wide: bytes(&wide) }
    }

    /// What the model is sent.
    pub fn up(&self, companding: Companding) -> Vec<u8> {
        let (mut link, mut out) = (Uplink::new(companding, Format::Pcm24k), Vec::new());
        self.codes.chunks(160).for_each(|frame| link.push(frame, &mut out));
        out
    }

    /// What the caller is sent, whose audio comes in pieces of odd length.
    pub fn down(&self, companding: Companding) -> Vec<u8> {
        let (mut link, mut out) = (Downlink::new(Format::Pcm24k, companding), Vec::new());
        self.wide.chunks(4_801).for_each(|piece| link.push(piece, &mut out));
        link.flush(&mut out);
        out
    }
}

/// The digest of each of [`DIGESTS`] as this build makes it.
pub fn digests() -> [String; 4] {
    DIGESTS.map(|(way, companding, _)| {
        let material = Material::new(companding);
        golden::digest(&if way == "up" { material.up(companding) } else { material.down(companding) })
    })
}

fn other_digests() -> f64 {
    digests().iter().zip(DIGESTS).filter(|(ours, (_, _, recorded))| ours != recorded).count() as f64
}

/// Cuts the same input in 40 ways in each direction, and counts those that do not give the same bytes.
fn cuts_that_matter() -> f64 {
    let mut state = 0x2545_F491u32;
    let mut random = |most: usize| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        1 + state as usize % most
    };
    let codes = encoded(Companding::Ulaw, &golden::caller_voice()[..8_000]);
    let wide = bytes(&golden::agent_voice()[..24_000]);
    let down = |cut: &mut dyn FnMut() -> usize| {
        let (mut link, mut out) = (Downlink::new(Format::Pcm24k, Companding::Ulaw), Vec::new());
        in_pieces(&wide, cut, |piece| link.push(piece, &mut out));
        link.flush(&mut out);
        out
    };
    let up = |cut: &mut dyn FnMut() -> usize| {
        let (mut link, mut out) = (Uplink::new(Companding::Ulaw, Format::Pcm24k), Vec::new());
        in_pieces(&codes, cut, |piece| link.push(piece, &mut out));
        out
    };
    let (whole_down, whole_up) = (down(&mut || usize::MAX), up(&mut || usize::MAX));
    let mut wrong = 0;
    for most in 1..=40 {
        wrong += u32::from(down(&mut || random(most * most)) != whole_down);
        wrong += u32::from(up(&mut || random(most * most)) != whole_up);
    }
    f64::from(wrong)
}

fn in_pieces(all: &[u8], cut: &mut dyn FnMut() -> usize, mut takes: impl FnMut(&[u8])) {
    let mut rest = all;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(cut().min(rest.len()));
        takes(piece);
        rest = more;
    }
}

/// Every code, in both directions and both laws, through a session that speaks the caller's companding.
fn changed_in_passing() -> f64 {
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let changed = |got: &[u8]| {
        let unlike = all.iter().zip(got).filter(|(a, b)| a != b).count();
        unlike + all.len().abs_diff(got.len())
    };
    let mut sum = 0;
    for (companding, format) in [(Companding::Ulaw, Format::Pcmu), (Companding::Alaw, Format::Pcma)] {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        Uplink::new(companding, format).push(&all, &mut up);
        let mut link = Downlink::new(format, companding);
        link.push(&all, &mut down);
        link.flush(&mut down);
        sum += changed(&up) + changed(&down);
    }
    sum as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_missed_is_said_to_be() {
        let goal = |measured, bound| Goal { what: "x", unit: "dB", digits: 1, measured, bound };
        for (met, goal) in [
            (true, goal(1.0, Bound::Exactly(1.0))),
            (false, goal(1.001, Bound::Exactly(1.0))),
            (true, goal(70.8, Bound::AtLeast(70.0))),
            (false, goal(69.9, Bound::AtLeast(70.0))),
            (false, goal(f64::NAN, Bound::AtLeast(70.0))),
            (true, goal(0.0, Bound::AtMost(0.05))),
            (false, goal(0.06, Bound::AtMost(0.05))),
        ] {
            assert_eq!(goal.is_met(), met, "{goal:?}");
            assert_eq!(all_met(&[goal]), met);
            assert_eq!(table(&[goal]).contains("NOT MET"), !met);
        }
    }

    #[test]
    fn the_instruments_see_what_is_wrong() {
        // A repeated sample instead of a filter: its images are loud and its tone is impure.
        let sent = tone(1_000.0, 8_000, 400);
        let repeated: Vec<i16> = sent.iter().flat_map(|sample| [*sample; 3]).collect();
        let image = split(&repeated[..9_600], 7_000.0, 24_000).0;
        assert!(db(image / (FULL * FULL / 2.0)) > -20.0);
        let (tone, rest) = split(&repeated[..9_600], 1_000.0, 24_000);
        assert!(db(tone / rest) < 20.0);
    }
}
