//! Audio at 8 kHz, prepared for comparing.

use mocks::{alaw, ulaw};
use std::borrow::Cow;
use std::sync::LazyLock;

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

/// Audio at 8 kHz, prepared for comparing.
#[derive(Debug)]
pub(super) enum Recording<'a> {
    /// G.711, compared by equality. Nothing is prepared: equal bytes explain nearly every window, and the power of the
    /// few others is summed when it is needed.
    Exact {
        /// The bytes.
        codes: Cow<'a, [u8]>,
        /// The square of each code's sample.
        squares: &'static Squares,
    },
    /// Samples, compared by correlation.
    Linear {
        /// The samples.
        samples: Vec<f32>,
        /// Sum of squares before each sample. Whole numbers: a sum of parts is the sum of the whole.
        energy: Vec<i64>,
    },
}

/// The square of the sample of each G.711 code.
pub(super) type Squares = [i32; 256];

static ULAW_SQUARES: LazyLock<Squares> = LazyLock::new(|| squares(ulaw::decode));
static ALAW_SQUARES: LazyLock<Squares> = LazyLock::new(|| squares(alaw::decode));

fn squares(decode: fn(u8) -> i16) -> Squares {
    let square = |code: usize| i32::from(decode(code as u8)).pow(2);
    std::array::from_fn(square)
}

/// The sum of squares of G.711 mu-law.
pub(crate) fn energy(codes: &[u8]) -> i64 {
    energy_of(codes, &ULAW_SQUARES)
}

fn energy_of(codes: &[u8], squares: &Squares) -> i64 {
    codes.iter().map(|code| i64::from(squares[usize::from(*code)])).sum()
}

impl<'a> Recording<'a> {
    pub(super) fn ulaw(codes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self::Exact { codes: codes.into(), squares: &ULAW_SQUARES }
    }

    pub(super) fn alaw(codes: impl Into<Cow<'a, [u8]>>) -> Self {
        Self::Exact { codes: codes.into(), squares: &ALAW_SQUARES }
    }

    pub(super) fn linear(samples: &[i16]) -> Self {
        let mut sum = 0;
        let mut energy = Vec::with_capacity(samples.len() + 1);
        energy.push(sum);
        energy.extend(samples.iter().map(|sample| {
            sum += i64::from(i32::from(*sample).pow(2));
            sum
        }));
        Self::Linear { samples: samples.iter().map(|sample| f32::from(*sample)).collect(), energy }
    }

    pub(super) fn is_exact(&self) -> bool {
        matches!(self, Self::Exact { .. })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Exact { codes, .. } => codes.len(),
            Self::Linear { samples, .. } => samples.len(),
        }
    }

    /// The sum of squares.
    fn energy(&self, at: usize, len: usize) -> i64 {
        match self {
            Self::Exact { codes, squares } => energy_of(&codes[at..at + len], squares),
            Self::Linear { energy, .. } => energy[at + len] - energy[at],
        }
    }

    pub(super) fn power(&self, at: usize, len: usize) -> f64 {
        self.energy(at, len) as f64 / len.max(1) as f64
    }

    pub(super) fn is_quiet(&self, at: usize, len: usize) -> bool {
        self.power(at, len) < QUIET_RMS * QUIET_RMS
    }

    /// How alike two windows are, -1 to 1; equality (1 or 0) of exact recordings. One that is exact and one that is not
    /// are not alike.
    pub(super) fn alike(&self, at: usize, other: &Self, there: usize, len: usize) -> f32 {
        match (self, other) {
            (Self::Exact { codes: a, .. }, Self::Exact { codes: b, .. }) => {
                if a[at..at + len] == b[there..there + len] { 1.0 } else { 0.0 }
            }
            (Self::Linear { samples: x, .. }, Self::Linear { samples: y, .. }) => {
                let (a, b) = (self.power(at, len), other.power(there, len));
                if a < 1.0 || b < 1.0 {
                    return 0.0;
                }
                // The same voice at four times the power is not the same audio.
                if a > 4.0 * b || b > 4.0 * a {
                    return 0.0;
                }
                dot(&x[at..at + len], &y[there..there + len]) / ((a * b).sqrt() * len as f64) as f32
            }
            (Self::Exact { .. }, Self::Linear { .. }) | (Self::Linear { .. }, Self::Exact { .. }) => 0.0,
        }
    }

    /// Whether no window of this length that begins at `there` or one of the next positions, `count` in all, can be
    /// alike, because all are too weak or too strong. The sum of squares of what they share is a lower bound of each,
    /// that of all they cover an upper bound.
    pub(super) fn none_is_alike(
        &self,
        (at, len): (usize, usize),
        other: &Self,
        there: usize,
        count: usize,
    ) -> bool {
        match (self, other) {
            (Self::Linear { .. }, Self::Linear { .. }) => {
                let here = self.energy(at, len);
                let (least, most) =
                    (other.energy(there + count - 1, len - count + 1), other.energy(there, len + count - 1));
                here > 4 * most || least > 4 * here
            }
            (Self::Exact { .. }, _) | (_, Self::Exact { .. }) => false,
        }
    }

    /// Whether two windows may be alike at all, and a part of them (its beginning and its length) more than `least`. It
    /// goes without roots and quotients and refuses none that is: the product is the one of [`Self::alike`], and the
    /// two per cent granted are far more than all rounding.
    pub(super) fn may_be_alike(
        &self,
        (at, len): (usize, usize),
        other: &Self,
        there: usize,
        (begins, part): (usize, usize),
        least: f32,
    ) -> bool {
        let is_other_power = |a: i64, b: i64| a > 4 * b || b > 4 * a;
        match (self, other) {
            (Self::Exact { codes: a, .. }, Self::Exact { codes: b, .. }) => {
                a[at + begins] == b[there + begins]
            }
            (Self::Linear { samples: x, .. }, Self::Linear { samples: y, .. }) => {
                if is_other_power(self.energy(at, len), other.energy(there, len)) {
                    return false;
                }
                let (at, there) = (at + begins, there + begins);
                let (a, b) = (self.energy(at, part), other.energy(there, part));
                if is_other_power(a, b) {
                    return false;
                }
                let product = f64::from(dot(&x[at..at + part], &y[there..there + part]));
                product > 0.0 && product * product >= 0.98 * f64::from(least * least) * a as f64 * b as f64
            }
            (Self::Exact { .. }, Self::Linear { .. }) | (Self::Linear { .. }, Self::Exact { .. }) => false,
        }
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

/// How far the filter of [`narrowed`] looks to both sides, in samples at 24 kHz.
const REACH: usize = 36;

/// 24 kHz to 8 kHz without delay. Recognising a voice needs a shorter filter than measuring one, and whole numbers do:
/// the result is within two steps of 16 bits of the exact one. The referee's own resampler would take forty times as
/// long.
pub(crate) fn narrowed(wide: &[i16]) -> Vec<i16> {
    /// The taps, and zeros up to a multiple of the processor's vectors.
    const TAPS: usize = (2 * REACH + 1).next_multiple_of(16);
    /// Where the filter cuts, as a fraction of 24 kHz.
    const CUT: f64 = 3_700.0 / 24_000.0;
    /// One, as a tap: no sum of products leaves 32 bits.
    const ONE: i32 = 1 << 15;
    static FILTER: LazyLock<[i16; TAPS]> = LazyLock::new(|| {
        use std::f64::consts::PI;
        std::array::from_fn(|k| {
            let t = k as f64 - REACH as f64;
            let sinc = if t == 0.0 { 2.0 * CUT } else { (2.0 * PI * CUT * t).sin() / (PI * t) };
            let hann = if k > 2 * REACH { 0.0 } else { 0.5 + 0.5 * (PI * t / (REACH + 1) as f64).cos() };
            (sinc * hann * f64::from(ONE)).round() as i16
        })
    });
    let filter = &*FILTER;
    let mut padded = vec![0; wide.len() + REACH + TAPS];
    padded[REACH..REACH + wide.len()].copy_from_slice(wide);
    let one = |samples: &[i16; TAPS]| {
        let sum: i32 = filter.iter().zip(samples).map(|(tap, x)| i32::from(*tap) * i32::from(*x)).sum();
        ((sum + ONE / 2) >> 15).clamp(i16::MIN.into(), i16::MAX.into()) as i16
    };
    let windows = (0..wide.len()).step_by(3).map(|at| padded[at..].first_chunk().expect("the end is padded"));
    windows.map(one).collect()
}

/// [`narrowed`], but for what proves nothing anyway: where no sample within the filter's reach is louder than
/// 50, every third sample is taken as it is. Most of what a caller's line carries is the noise of an idle one.
pub(super) fn narrowed_where_loud(wide: &[i16]) -> Vec<i16> {
    /// Samples that are judged together: more than the filter's reach, and a multiple of three.
    const BLOCK: usize = 48;
    /// The taps add up to less than two, so that what is no louder is below [`QUIET_RMS`] with and without the filter.
    const FAINT: std::ops::RangeInclusive<i16> = -50..=50;
    let loud: Vec<bool> = wide.chunks(BLOCK).map(|block| block.iter().any(|x| !FAINT.contains(x))).collect();
    let is_near_loud =
        |block: usize| loud[block.saturating_sub(1)..loud.len().min(block + 2)].iter().any(|loud| *loud);
    let mut narrow = Vec::with_capacity(wide.len().div_ceil(3));
    let mut begins = 0;
    while begins < loud.len() {
        let is_loud = is_near_loud(begins);
        let ends = (begins..loud.len()).find(|block| is_near_loud(*block) != is_loud).unwrap_or(loud.len());
        let (from, to) = (begins * BLOCK, (ends * BLOCK).min(wide.len()));
        if is_loud {
            let around = from.saturating_sub(BLOCK)..wide.len().min(to + BLOCK);
            let skipped = (from - around.start) / 3;
            narrow.extend(narrowed(&wide[around]).into_iter().skip(skipped).take((to - from).div_ceil(3)));
        } else {
            narrow.extend(wide[from..to].iter().step_by(3));
        }
        begins = ends;
    }
    narrow
}

/// The master voice at 8 kHz.
static VOICE: LazyLock<Vec<i16>> = LazyLock::new(|| narrowed(golden::agent_voice()));

/// [`narrowed`], of an item whose audio may begin as the master voice does from this sample on. The same samples give
/// the same wherever they stand, so that the voice is filtered once, and of each item only what the filter reaches
/// from both ends of the voice.
pub(super) fn narrowed_voice(wide: &[i16], voice_offset: Option<usize>) -> Vec<i16> {
    let Some(from) = voice_offset.filter(|from| from % 3 == 0) else { return narrowed(wide) };
    let voice = golden::agent_voice().get(from..).unwrap_or_default();
    let step = 3 * 1_000;
    let pairs = wide.chunks_exact(step).zip(voice.chunks_exact(step));
    let same = pairs.take_while(|(a, b)| a == b).count() * step;
    if same <= 2 * REACH {
        return narrowed(wide);
    }
    let (first, end) = (REACH / 3, (same - REACH) / 3);
    let mut narrow = narrowed(&wide[..2 * REACH]);
    narrow.truncate(first);
    narrow.extend_from_slice(&VOICE[from / 3 + first..from / 3 + end]);
    narrow.extend_from_slice(&narrowed(&wide[3 * (end - first)..])[first..]);
    narrow
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_cut_from_the_voice_is_narrowed_like_any_other() {
        let voice = golden::agent_voice();
        let silence = [0; 4_321];
        for (from, len) in
            [(0, 9_000), (74_400, 30_001), (74_400, 100), (voice.len() / 3 * 3 - 7_500, 24_000)]
        {
            let mut wide: Vec<i16> = voice.iter().cycle().skip(from).take(len).copied().collect();
            assert!(narrowed_voice(&wide, Some(from)) == narrowed(&wide), "{from} {len}");
            wide.extend(silence);
            assert!(narrowed_voice(&wide, Some(from)) == narrowed(&wide), "{from} {len} and silence");
            assert!(narrowed_voice(&wide, Some(from + 3)) == narrowed(&wide), "it is not from there");
        }
    }

    #[test]
    fn what_is_loud_is_narrowed_like_all_and_what_is_faint_stays_faint() {
        let mut wide = vec![50; 10_000];
        wide.extend(&golden::agent_voice()[3_000..20_000]);
        wide.extend([-50; 4_321]);
        let (all, loud) = (narrowed(&wide), narrowed_where_loud(&wide));
        assert_eq!(all.len(), loud.len());
        for (n, (one, other)) in all.iter().zip(&loud).enumerate() {
            let is_faint = one.unsigned_abs() < 100 && other.unsigned_abs() < 100;
            assert!(one == other || is_faint, "{n}: {one} {other}");
        }
        assert!(loud.iter().any(|sample| sample.unsigned_abs() > 1_000), "it holds a voice");
        for len in [0, 1, 47, 48, 49, 100] {
            assert_eq!(narrowed_where_loud(&wide[9_990..9_990 + len]).len(), len.div_ceil(3));
        }
    }

    #[test]
    fn windows_that_are_alike_may_be_alike() {
        let voice = Recording::linear(&golden::agent_voice()[..24_000]);
        let codes = Recording::ulaw(ulaw::encode_all(&golden::agent_voice()[..24_000]));
        for recording in [&voice, &codes] {
            for (at, there) in (0..20_000).step_by(37).zip((0..20_000).rev().step_by(41)) {
                for there in [at, at + 1, there] {
                    let alike = recording.alike(at, recording, there, 160) > 0.0
                        && recording.alike(at + 16, recording, there + 16, 32) > 0.7;
                    let may_be = recording.may_be_alike((at, 160), recording, there, (16, 32), 0.7);
                    assert!(may_be || !alike, "{at} {there}");
                }
            }
        }
    }
}
