//! Audio at 8 kHz, prepared for comparing.

use mocks::peer::At;
use mocks::{alaw, ulaw};
use std::sync::OnceLock;

/// Samples (and bytes of G.711) in 20 ms: the window that is compared at once.
pub const WINDOW: usize = 160;
/// G.711 bytes per millisecond.
pub const BYTES_PER_MS: usize = 8;
/// Level below which a window proves nothing: 50 dB below full scale.
pub(super) const QUIET_RMS: f64 = 100.0;
/// Constant delay that two resamplers may differ by, in samples at 8 kHz.
pub const DELAY: usize = 16;
/// The part of a window that is tried first in a search of everything.
pub(super) const PROBE: usize = 32;

/// A recording, prepared for comparing.
#[derive(Debug)]
pub(super) struct Recording {
    samples: Vec<f32>,
    /// Sum of squares before each sample.
    energy: Vec<f64>,
    /// The bytes, when only equality counts.
    pub(super) exact: Option<Vec<u8>>,
    /// First sample that is not quiet.
    pub(super) first_loud: usize,
    /// It cannot be heard before this.
    pub(super) from: At,
}

impl Recording {
    pub(super) fn new(samples: &[i16], exact: Option<Vec<u8>>, from: At) -> Self {
        let mut energy = Vec::with_capacity(samples.len() + 1);
        let mut sum = 0.0_f64;
        energy.push(sum);
        for &sample in samples {
            sum += f64::from(sample) * f64::from(sample);
            energy.push(sum);
        }
        let mut recording = Self {
            samples: samples.iter().map(|s| f32::from(*s)).collect(),
            energy,
            exact,
            first_loud: 0,
            from,
        };
        let mut at = 0;
        while at + PROBE < recording.len() && recording.is_quiet(at, PROBE) {
            at += PROBE;
        }
        recording.first_loud = at;
        recording
    }

    pub(super) fn of_ulaw(bytes: &[u8], exact: bool, from: At) -> Self {
        let samples: Vec<i16> = bytes.iter().map(|b| ulaw::decode(*b)).collect();
        Self::new(&samples, exact.then(|| bytes.to_vec()), from)
    }

    pub(super) fn of_alaw(bytes: &[u8], from: At) -> Self {
        Self::new(&alaw::decode_all(bytes), Some(bytes.to_vec()), from)
    }

    pub(super) fn len(&self) -> usize {
        self.samples.len()
    }

    pub(super) fn power(&self, at: usize, len: usize) -> f64 {
        (self.energy[at + len] - self.energy[at]) / len.max(1) as f64
    }

    pub(super) fn is_quiet(&self, at: usize, len: usize) -> bool {
        self.power(at, len) < QUIET_RMS * QUIET_RMS
    }

    /// How alike two windows are, -1 to 1; equality (1 or 0) when both recordings are exact.
    pub(super) fn alike(&self, at: usize, other: &Self, there: usize, len: usize) -> f32 {
        if let (Some(a), Some(b)) = (&self.exact, &other.exact) {
            return if a[at..at + len] == b[there..there + len] { 1.0 } else { 0.0 };
        }
        let (a, b) = (self.power(at, len), other.power(there, len));
        if a < 1.0 || b < 1.0 {
            return 0.0;
        }
        // The same voice at four times the power is not the same audio.
        if a > 4.0 * b || b > 4.0 * a {
            return 0.0;
        }
        dot(&self.samples[at..at + len], &other.samples[there..there + len])
            / ((a * b).sqrt() * len as f64) as f32
    }
}

/// The sum of products, in eight lanes so that it can be computed side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a.zip(b) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    rest + lanes.iter().sum::<f32>()
}

/// 24 kHz to 8 kHz without delay. Recognising a voice needs a shorter filter than measuring one, and this is most
/// of what listening costs: the referee's own resampler would take twenty times as long.
pub(crate) fn narrowed(wide: &[i16]) -> Vec<i16> {
    const REACH: usize = 36;
    /// Where the filter cuts, as a fraction of 24 kHz.
    const CUT: f64 = 3_700.0 / 24_000.0;
    static TAPS: OnceLock<Vec<f32>> = OnceLock::new();
    let taps = TAPS.get_or_init(|| {
        use std::f64::consts::PI;
        let tap = |k: usize| {
            let t = k as f64 - REACH as f64;
            let sinc = if t == 0.0 { 2.0 * CUT } else { (2.0 * PI * CUT * t).sin() / (PI * t) };
            let hann = 0.5 + 0.5 * (PI * t / (REACH + 1) as f64).cos();
            (sinc * hann) as f32
        };
        (0..=2 * REACH).map(tap).collect()
    });
    let mut padded = vec![0.0_f32; wide.len() + 2 * REACH];
    for (to, from) in padded[REACH..].iter_mut().zip(wide) {
        *to = f32::from(*from);
    }
    (0..wide.len()).step_by(3).map(|n| dot(taps, &padded[n..=n + 2 * REACH]).round() as i16).collect()
}
