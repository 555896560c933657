//! G.711 at 8 kHz on the caller's side, in either companding; the session's format on the model's.
//!
//! [`Uplink`] and [`Downlink`] keep the filter's state across frames and deltas of any length, odd byte counts
//! included: cutting the input differently never changes a byte of the output.

pub mod alaw;
pub mod dtmf;
pub mod resample;
pub mod ulaw;

use resample::{BLOCK, DELAY_8K, DELAY_24K, Down, Up};
use serde::{Deserialize, Serialize};

/// Bytes of G.711 in a frame.
pub const FRAME_BYTES: usize = 160;
/// How long a frame plays, ms.
pub const FRAME_MS: u32 = 20;

/// The variant of G.711 the caller leg speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Companding {
    /// Mu-law: North America, Japan, and Twilio everywhere.
    Ulaw,
    /// A-law: the rest of the world's carriers.
    Alaw,
}

impl Companding {
    /// The code of silence. (In mu-law 0x00 is the opposite: full scale.)
    pub const fn silence(self) -> u8 {
        match self {
            Self::Ulaw => 0xFF,
            Self::Alaw => 0xD5,
        }
    }

    /// Encodes a slice into the beginning of `codes`, as far as both reach.
    pub fn encode_slice(self, samples: &[i16], codes: &mut [u8]) {
        match self {
            Self::Ulaw => ulaw::encode_slice(samples, codes),
            Self::Alaw => alaw::encode_slice(samples, codes),
        }
    }

    /// Decodes a slice into the beginning of `samples`, as far as both reach.
    pub fn decode_slice(self, codes: &[u8], samples: &mut [i16]) {
        match self {
            Self::Ulaw => ulaw::decode_slice(codes, samples),
            Self::Alaw => alaw::decode_slice(codes, samples),
        }
    }

    /// Puts `codes` behind what `out` holds, in the other companding sample by sample, or untouched when it is the same.
    pub fn recode(self, codes: &[u8], to: Self, out: &mut Vec<u8>) {
        if self == to {
            return out.extend_from_slice(codes);
        }
        let mut samples = [0; BLOCK];
        let mut recoded = [0; BLOCK];
        for block in codes.chunks(BLOCK) {
            self.decode_slice(block, &mut samples);
            to.encode_slice(&samples[..block.len()], &mut recoded);
            out.extend_from_slice(&recoded[..block.len()]);
        }
    }
}

/// The audio format of a model session, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// G.711 mu-law, passed through untouched to and from a caller who speaks it.
    Pcmu,
    /// G.711 A-law, passed through untouched to and from a caller who speaks it.
    Pcma,
    /// 16-bit little-endian PCM at 24 kHz.
    #[default]
    Pcm24k,
}

impl Format {
    /// Its name in a session object.
    pub const fn wire_name(self) -> &'static str {
        match self {
            Self::Pcmu => "audio/pcmu",
            Self::Pcma => "audio/pcma",
            Self::Pcm24k => "audio/pcm",
        }
    }

    /// Bytes of one millisecond.
    pub const fn bytes_per_ms(self) -> u32 {
        match self {
            Self::Pcmu | Self::Pcma => 8,
            Self::Pcm24k => 48,
        }
    }
}

/// Caller to model. One for a call: its state is never reset, because the caller's audio never pauses.
///
/// With [`Format::Pcm24k`] the output is 1.875 ms late, constantly: a stream has no beginning to trim.
#[derive(Clone, Debug)]
pub struct Uplink {
    companding: Companding,
    way: UplinkWay,
}

#[derive(Clone, Debug)]
enum UplinkWay {
    Companded(Companding),
    Pcm24k(Box<Up>),
}

impl Uplink {
    /// From the caller's companding to `format`.
    pub fn new(companding: Companding, format: Format) -> Self {
        let way = match format {
            Format::Pcmu => UplinkWay::Companded(Companding::Ulaw),
            Format::Pcma => UplinkWay::Companded(Companding::Alaw),
            Format::Pcm24k => UplinkWay::Pcm24k(Box::default()),
        };
        Self { companding, way }
    }

    /// What the caller speaks.
    pub const fn companding(&self) -> Companding {
        self.companding
    }

    /// Takes the caller's G.711 and puts it, in the session's format, behind what `out` holds.
    pub fn push(&mut self, codes: &[u8], out: &mut Vec<u8>) {
        match &mut self.way {
            UplinkWay::Companded(to) => self.companding.recode(codes, *to, out),
            UplinkWay::Pcm24k(up) => {
                out.reserve(codes.len() * 6);
                let mut samples = [0; BLOCK];
                let mut bytes = [[0; 2]; 3 * BLOCK];
                for block in codes.chunks(BLOCK) {
                    self.companding.decode_slice(block, &mut samples);
                    up.push(&samples[..block.len()], |wide| {
                        bytes.iter_mut().zip(wide).for_each(|(bytes, sample)| *bytes = sample.to_le_bytes());
                        out.extend_from_slice(bytes[..wide.len()].as_flattened());
                    });
                }
            }
        }
    }
}

/// Model to caller. One for an item: it begins with the item's first byte and ends with [`Downlink::flush`].
///
/// The filter's delay is taken out: the first sample out belongs to the first sample in, and after the flush
/// `n` samples at 24 kHz have become exactly `n / 3`, rounded up, at 8 kHz.
#[derive(Clone, Debug)]
pub struct Downlink {
    companding: Companding,
    way: DownlinkWay,
}

#[derive(Clone, Debug)]
enum DownlinkWay {
    Companded(Companding),
    Pcm24k(Box<FromPcm>),
}

#[derive(Clone, Debug)]
struct FromPcm {
    down: Down,
    /// The first half of a sample whose second half is in the next delta.
    half: Option<u8>,
    /// Outputs of the filter that came before the first sample's own.
    early: usize,
    started: bool,
}

impl Downlink {
    /// From `format` to the caller's companding.
    pub fn new(format: Format, companding: Companding) -> Self {
        let way = match format {
            Format::Pcmu => DownlinkWay::Companded(Companding::Ulaw),
            Format::Pcma => DownlinkWay::Companded(Companding::Alaw),
            Format::Pcm24k => DownlinkWay::Pcm24k(Box::new(FromPcm::new())),
        };
        Self { companding, way }
    }

    /// What the caller hears.
    pub const fn companding(&self) -> Companding {
        self.companding
    }

    /// Takes any number of bytes and puts the caller's G.711 behind what `out` holds.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match &mut self.way {
            DownlinkWay::Companded(from) => from.recode(bytes, self.companding, out),
            DownlinkWay::Pcm24k(state) => state.push(bytes, self.companding, out),
        }
    }

    /// The item is complete: puts what is still in the filter behind what `out` holds, and begins anew.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        match &mut self.way {
            DownlinkWay::Companded(_) => {}
            DownlinkWay::Pcm24k(state) => {
                if state.started {
                    // A dangling first half of a sample is no sample.
                    state.feed(&[[0; 2]; DELAY_24K], self.companding, out);
                }
                **state = FromPcm::new();
            }
        }
    }

    /// What is still in the filter will not be heard: forgets it and begins anew.
    pub fn reset(&mut self) {
        match &mut self.way {
            DownlinkWay::Companded(_) => {}
            DownlinkWay::Pcm24k(state) => **state = FromPcm::new(),
        }
    }
}

impl FromPcm {
    const fn new() -> Self {
        Self { down: Down::new(), half: None, early: DELAY_8K, started: false }
    }

    fn push(&mut self, bytes: &[u8], companding: Companding, out: &mut Vec<u8>) {
        let mut bytes = bytes;
        out.reserve(bytes.len() / 6 + 1);
        if let (Some(low), [high, rest @ ..]) = (self.half, bytes) {
            self.half = None;
            bytes = rest;
            self.feed(&[[low, *high]], companding, out);
        }
        let (samples, odd) = bytes.as_chunks();
        if let [low] = odd {
            self.half = Some(*low);
        }
        self.feed(samples, companding, out);
    }

    fn feed(&mut self, samples: &[[u8; 2]], companding: Companding, out: &mut Vec<u8>) {
        let Self { down, early, started, .. } = self;
        *started |= !samples.is_empty();
        let mut codes = [0; BLOCK];
        down.push(samples, |narrow| {
            let skipped = narrow.len().min(*early);
            *early -= skipped;
            let heard = &narrow[skipped..];
            companding.encode_slice(heard, &mut codes);
            out.extend_from_slice(&codes[..heard.len()]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::f64::consts::PI;

    fn tone(hz: f64, rate: f64, amplitude: f64, samples: usize) -> Vec<i16> {
        (0..samples).map(|n| ((2.0 * PI * hz * n as f64 / rate).sin() * amplitude).round() as i16).collect()
    }

    /// Amplitude of the component at `hz`, and what remains after it is taken out, both as power.
    fn split(samples: &[i16], hz: f64, rate: f64) -> (f64, f64) {
        let n = samples.len() as f64;
        let (mut re, mut im, mut power) = (0.0, 0.0, 0.0);
        for (i, &s) in samples.iter().enumerate() {
            let phase = 2.0 * PI * hz * i as f64 / rate;
            re += f64::from(s) * phase.cos();
            im += f64::from(s) * phase.sin();
            power += f64::from(s).powi(2);
        }
        let signal = 2.0 * (re * re + im * im) / (n * n);
        (signal, (power / n - signal).max(1e-9))
    }

    fn upsampled(samples: &[i16]) -> Vec<i16> {
        let mut out = Vec::new();
        Up::new().push(samples, |s| out.extend_from_slice(s));
        out
    }

    fn downsampled(samples: &[i16]) -> Vec<i16> {
        let mut out = Vec::new();
        let bytes: Vec<[u8; 2]> = samples.iter().map(|s| s.to_le_bytes()).collect();
        Down::new().push(&bytes, |s| out.extend_from_slice(s));
        out
    }

    fn db(ratio: f64) -> f64 {
        10.0 * ratio.log10()
    }

    const FULL: f64 = 29_204.0; // -1 dBFS

    #[test]
    fn a_tone_keeps_its_purity_both_ways() {
        let up = upsampled(&tone(997.0, 8_000.0, FULL, 9_000));
        let (signal, noise) = split(&up[3_000..27_000], 997.0, 24_000.0);
        assert!(db(signal / noise) >= 90.0, "up: {:.1} dB", db(signal / noise));
        let down = downsampled(&tone(997.0, 24_000.0, FULL, 27_000));
        let (signal, noise) = split(&down[1_000..9_000], 997.0, 8_000.0);
        assert!(db(signal / noise) >= 90.0, "down: {:.1} dB", db(signal / noise));
    }

    #[test]
    fn the_band_of_speech_passes_and_what_lies_beyond_does_not() {
        let gain_down = |hz: f64, seen_at: f64| {
            let down = downsampled(&tone(hz, 24_000.0, FULL, 27_000));
            db(split(&down[1_000..9_000], seen_at, 8_000.0).0 / (FULL * FULL / 2.0))
        };
        for hz in [100.0, 500.0, 1_000.0, 2_000.0, 3_000.0, 3_300.0] {
            assert!(gain_down(hz, hz).abs() <= 0.05, "{hz} Hz: {:.3} dB", gain_down(hz, hz));
        }
        assert!(gain_down(3_400.0, 3_400.0) >= -0.1);
        for (hz, bound) in
            [(4_300.0, -64.0), (4_600.0, -70.0), (5_500.0, -70.0), (7_000.0, -70.0), (11_000.0, -70.0)]
        {
            let folded = (hz - (hz / 8_000.0f64).round() * 8_000.0).abs();
            assert!(gain_down(hz, folded) <= bound, "{hz} Hz folds back at {:.1} dB", gain_down(hz, folded));
        }
        // Upwards: the image of f lies at 8,000 - f.
        for (hz, bound) in [(3_400.0, -70.0), (3_000.0, -70.0), (1_000.0, -70.0)] {
            let up = upsampled(&tone(hz, 8_000.0, FULL, 9_000));
            let image = db(split(&up[3_000..27_000], 8_000.0 - hz, 24_000.0).0 / (FULL * FULL / 2.0));
            assert!(image <= bound, "image of {hz} Hz at {image:.1} dB");
        }
    }

    #[test]
    fn the_delay_is_whole_and_constant() {
        let mut impulse = vec![0i16; 200];
        impulse[100] = 30_000;
        let up = upsampled(&impulse);
        let peak = up.iter().enumerate().max_by_key(|(_, s)| s.unsigned_abs()).map(|(n, _)| n);
        assert_eq!(peak, Some(300 + DELAY_24K));
    }

    fn down_in_one(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut down = Downlink::new(Format::Pcm24k, Companding::Ulaw);
        down.push(bytes, &mut out);
        down.flush(&mut out);
        out
    }

    #[test]
    fn an_item_keeps_its_length_and_its_place() {
        for samples in [1usize, 2, 3, 4, 479, 480, 481, 24_000] {
            let bytes: Vec<u8> =
                tone(440.0, 24_000.0, 9_000.0, samples).into_iter().flat_map(i16::to_le_bytes).collect();
            assert_eq!(down_in_one(&bytes).len(), samples.div_ceil(3), "{samples} samples");
        }
        let mut impulse = vec![0i16; 900];
        impulse[450] = 30_000;
        let bytes: Vec<u8> = impulse.into_iter().flat_map(i16::to_le_bytes).collect();
        let heard: Vec<i16> = down_in_one(&bytes).into_iter().map(ulaw::decode).collect();
        let peak = heard.iter().enumerate().max_by_key(|(_, s)| s.unsigned_abs()).map(|(n, _)| n);
        assert_eq!(peak, Some(150));
    }

    #[test]
    fn an_unused_item_flushes_nothing() {
        assert_eq!(down_in_one(&[]), Vec::<u8>::new());
        assert_eq!(down_in_one(&[7]), Vec::<u8>::new());
    }

    #[test]
    fn an_item_after_a_reset_or_a_flush_sounds_like_the_first() {
        let bytes: Vec<u8> =
            tone(700.0, 24_000.0, 9_000.0, 1_000).into_iter().flat_map(i16::to_le_bytes).collect();
        let first = down_in_one(&bytes);
        let mut down = Downlink::new(Format::Pcm24k, Companding::Ulaw);
        let mut out = Vec::new();
        down.push(&bytes[..777], &mut out);
        down.reset();
        for _ in 0..2 {
            out.clear();
            down.push(&bytes, &mut out);
            down.flush(&mut out);
            assert_eq!(out, first);
        }
    }

    #[test]
    fn the_same_law_on_both_legs_is_passed_through_untouched() {
        let every_code: Vec<u8> = (0..=255).collect();
        for (companding, format) in [(Companding::Ulaw, Format::Pcmu), (Companding::Alaw, Format::Pcma)] {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            Uplink::new(companding, format).push(&every_code, &mut up);
            let mut downlink = Downlink::new(format, companding);
            downlink.push(&every_code, &mut down);
            downlink.flush(&mut down);
            assert_eq!((&up, &down), (&every_code, &every_code), "{companding:?}");
        }
    }

    #[test]
    fn another_law_is_converted_sample_by_sample() {
        let every_code: Vec<u8> = (0..=255).cycle().take(777).collect();
        let to_alaw: Vec<u8> = every_code.iter().map(|&code| alaw::encode(ulaw::decode(code))).collect();
        let to_ulaw: Vec<u8> = every_code.iter().map(|&code| ulaw::encode(alaw::decode(code))).collect();
        for (companding, format, up_to, down_to) in [
            (Companding::Ulaw, Format::Pcma, &to_alaw, &to_ulaw),
            (Companding::Alaw, Format::Pcmu, &to_ulaw, &to_alaw),
        ] {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            Uplink::new(companding, format).push(&every_code, &mut up);
            let mut downlink = Downlink::new(format, companding);
            downlink.push(&every_code, &mut down);
            downlink.flush(&mut down);
            assert_eq!((&up, &down), (up_to, down_to), "{companding:?}");
        }
    }

    #[test]
    fn an_a_law_caller_of_a_pcm_session_hears_and_is_heard_alike() {
        let spoken = tone(997.0, 8_000.0, 9_000.0, 9_000);
        let mut codes = vec![0; spoken.len()];
        Companding::Alaw.encode_slice(&spoken, &mut codes);
        let mut wide = Vec::new();
        Uplink::new(Companding::Alaw, Format::Pcm24k).push(&codes, &mut wide);
        let mut heard = Vec::new();
        let mut downlink = Downlink::new(Format::Pcm24k, Companding::Alaw);
        downlink.push(&wide, &mut heard);
        downlink.flush(&mut heard);
        let mut samples = vec![0; heard.len()];
        Companding::Alaw.decode_slice(&heard, &mut samples);
        assert_eq!(samples.len(), spoken.len());
        let (signal, noise) = split(&samples[1_000..9_000], 997.0, 8_000.0);
        assert!(db(signal / noise) >= 33.0, "{:.1} dB", db(signal / noise));
        assert!(db(signal / (9_000.0f64 * 9_000.0 / 2.0)).abs() < 0.1);
    }

    #[test]
    fn silence_stays_silence() {
        let mut out = Vec::new();
        Uplink::new(Companding::Ulaw, Format::Pcm24k).push(&[0xFF; 1_000], &mut out);
        assert!(out.iter().all(|&byte| byte == 0));
        assert!(down_in_one(&[0; 6_000]).iter().all(|&code| code == Companding::Ulaw.silence()));
        for (companding, other) in
            [(Companding::Ulaw, Companding::Alaw), (Companding::Alaw, Companding::Ulaw)]
        {
            let mut zero = [0];
            companding.encode_slice(&[0], &mut zero);
            assert_eq!(zero, [companding.silence()]);
            let mut quiet = Vec::new();
            companding.recode(&[companding.silence()], other, &mut quiet);
            let mut sample = [0];
            other.decode_slice(&quiet, &mut sample);
            assert!(sample[0].abs() <= 8, "{companding:?} silence becomes {}", sample[0]);
        }
    }

    #[test]
    fn full_scale_is_clipped_and_never_wraps() {
        let square: Vec<i16> =
            (0..2_400).map(|n| if n / 12 % 2 == 0 { i16::MAX } else { i16::MIN }).collect();
        let down = downsampled(&square);
        assert!(down.contains(&i16::MAX) && down.contains(&i16::MIN));
        // A wrapped sample would stand at the other end of the scale between two neighbours at this one.
        let wraps = down.windows(3).filter(|w| w[0] > 20_000 && w[1] < -20_000 && w[2] > 20_000).count();
        assert_eq!(wraps, 0);
    }

    /// FNV-1a of everything a fixed pseudo-random input becomes. One number for every processor and every build.
    #[test]
    fn the_bytes_are_the_same_on_every_machine() {
        let mut state = 0x2545_F491u32;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 16) as u8
        };
        let codes: Vec<u8> = (0..24_000).map(|_| random()).collect();
        let mut up = Vec::new();
        Uplink::new(Companding::Ulaw, Format::Pcm24k).push(&codes, &mut up);
        let bytes: Vec<u8> = (0..144_000).map(|_| random()).collect();
        let fnv = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0xCBF2_9CE4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
        };
        assert_eq!(
            format!("{:016x} {:016x}", fnv(&up), fnv(&down_in_one(&bytes))),
            "fc5135e630e9222c 9d4003ab723e2191"
        );
    }

    proptest! {
        #[test]
        fn cutting_differently_changes_nothing_down(
            bytes in prop::collection::vec(any::<u8>(), 0..6_000),
            cuts in prop::collection::vec(1usize..700, 1..60),
        ) {
            let mut out = Vec::new();
            let mut down = Downlink::new(Format::Pcm24k, Companding::Ulaw);
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at((*cut).min(rest.len()));
                down.push(piece, &mut out);
                rest = more;
            }
            down.flush(&mut out);
            prop_assert_eq!(out, down_in_one(&bytes));
        }

        #[test]
        fn cutting_differently_changes_nothing_up(
            codes in prop::collection::vec(any::<u8>(), 0..2_000),
            cut in 1usize..400,
        ) {
            let mut whole = Vec::new();
            Uplink::new(Companding::Ulaw, Format::Pcm24k).push(&codes, &mut whole);
            let mut pieces = Vec::new();
            let mut up = Uplink::new(Companding::Ulaw, Format::Pcm24k);
            codes.chunks(cut).for_each(|piece| up.push(piece, &mut pieces));
            prop_assert_eq!(whole.len(), codes.len() * 6);
            prop_assert_eq!(whole, pieces);
        }
    }
}
