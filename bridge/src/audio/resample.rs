//! 8 kHz to 24 kHz and back: one 91-tap linear-phase filter, in polyphase form, streaming.
//!
//! The prototype is a least-squares design (pass 0 to 3,400 Hz, stop from 4,250 Hz, stop weight 30, unity at
//! 1 kHz). Its delay is 45 samples at 24 kHz, which is exactly 15 at 8 kHz: 1.875 ms, whole at both rates.
//!
//! The output is the same on every machine and for every way of cutting the input: the constants are in the
//! source, every output is one chain of multiplications and additions in a fixed order, nothing is fused, and
//! the vector loops run across outputs. That is what makes byte-exact golden audio possible.

/// Half of a symmetric prototype, from its centre outwards.
type Half = [f32; TAPS / 2 + 1];

/// The prototype at 24 kHz.
#[rustfmt::skip]
const HALF: Half = [
    3.148_462_1e-1, 2.657_221e-1, 1.456_482_7e-1, 1.843_487_9e-2, -5.674_414_2e-2, -6.029_070_5e-2, -1.761_408_6e-2,
    2.552_705_4e-2, 3.695_108e-2, 1.631_459_4e-2, -1.254_045_4e-2, -2.498_97e-2, -1.463_146_2e-2, 5.537_974_8e-3,
    1.728_095_7e-2, 1.268_342_7e-2, -1.440_004_3e-3, -1.179_550_9e-2, -1.060_078_8e-2, -9.323_025_4e-4, 7.751_551_3e-3,
    8.512_653e-3, 2.171_598e-3, -4.775_756e-3, -6.535_093_3e-3, -2.644_502_4e-3, 2.646_448_3e-3, 4.761_548e-3,
    2.612_414_6e-3, -1.200_164_7e-3, -3.256_469_7e-3, -2.275_586_4e-3, 2.961_669e-4, 2.052_7e-3, 1.789_220_7e-3,
    1.951_515_4e-4, -1.152_459e-3, -1.269_287_2e-3, -3.935_339_5e-4, 5.310_915e-4, 7.951_424e-4, 4.068_161e-4,
    -1.403_940_3e-4, -4.099_939e-4, -3.357_330_5e-4, -1.279_601_3e-4,
];

/// Taps of the prototype.
const TAPS: usize = 91;
/// Delay at 8 kHz, samples.
pub(super) const DELAY_8K: usize = 15;
/// Delay at 24 kHz, samples.
pub(super) const DELAY_24K: usize = 45;
/// Taps of the longest phase.
const PHASE_TAPS: usize = TAPS.div_ceil(3);
/// Samples a phase must remember.
const HISTORY: usize = PHASE_TAPS - 1;
/// Samples at 8 kHz in one pass: a frame.
pub(super) const BLOCK: usize = 160;
/// Outputs computed side by side: as many as fit into the vector registers of every machine.
const LANES: usize = 32;

/// Tap `j` of phase `p` is tap `3 j + p` of a prototype, and zero beyond its end.
type Phases = [[f32; PHASE_TAPS]; 3];

static PHASES: Phases = phases(&HALF, 1.0);
/// The same for the interpolator: two of three of its inputs are zeros, and three times the gain makes up for them.
static LOUD_PHASES: Phases = phases(&HALF, 3.0);

const fn phases(half: &Half, gain: f32) -> Phases {
    let mut phases = [[0.0; PHASE_TAPS]; 3];
    let mut k = 0;
    while k < TAPS {
        phases[k % 3][k / 3] = half[k.abs_diff(DELAY_24K)] * gain;
        k += 1;
    }
    phases
}

/// The last samples of one phase, then the block.
type Line = [f32; HISTORY + BLOCK];

/// To the nearest 16-bit sample, ties to even. No sum of a filter comes near 2^22, up to which this holds.
///
/// Adding 1.5 * 2^23 leaves no room for a fraction, and the integer stands in the low bits: the processor's own
/// rounding, without the library call that `round_ties_even` is on older ones. It is limited as an integer, because
/// that and the narrowing are one instruction for eight samples.
#[inline]
fn round(value: f32) -> i16 {
    const NO_FRACTION: f32 = 12_582_912.0;
    let whole = ((value + NO_FRACTION).to_bits() as i32).wrapping_sub(NO_FRACTION.to_bits() as i32);
    whole.clamp(i32::from(i16::MIN), i32::from(i16::MAX)) as i16
}

/// `sums[t] += taps[j] * line[from + HISTORY + t - j]` for `LANES` outputs, all taps in order.
#[inline]
fn convolve(mut sums: [f32; LANES], line: &Line, taps: &[f32; PHASE_TAPS], from: usize) -> [f32; LANES] {
    let reached = &line[from..from + HISTORY + LANES];
    for (j, tap) in taps.iter().enumerate() {
        // Said in fours, all sums stay in registers; said singly, the compiler moves them to memory and back.
        let (fours, _) = sums.as_chunks_mut::<4>();
        let (window, _) = reached[HISTORY - j..].as_chunks::<4>();
        for (four, xs) in fours.iter_mut().zip(window) {
            for (sum, x) in four.iter_mut().zip(xs) {
                *sum += *x * *tap;
            }
        }
    }
    sums
}

/// 8 kHz to 24 kHz, 45 samples late.
#[derive(Clone, Debug)]
pub struct Up {
    line: Line,
}

impl Default for Up {
    fn default() -> Self {
        Self::new()
    }
}

impl Up {
    /// A filter that has heard nothing but silence.
    pub const fn new() -> Self {
        Self { line: [0.0; HISTORY + BLOCK] }
    }

    /// Takes samples and hands out three times as many, in blocks.
    pub fn push(&mut self, input: &[i16], out: impl FnMut(&[i16])) {
        self.push_through(&LOUD_PHASES, input, out);
    }

    /// The same through any filter: a test must be able to spoil one.
    #[inline]
    fn push_through(&mut self, filter: &Phases, input: &[i16], mut out: impl FnMut(&[i16])) {
        for block in input.chunks(BLOCK) {
            let n = block.len();
            for (x, &sample) in self.line[HISTORY..].iter_mut().zip(block) {
                *x = f32::from(sample);
            }
            // Each phase for itself first: to round side by side and to interleave later is quicker than at once.
            let mut phases = [[0i16; BLOCK]; 3];
            // Lanes beyond the block compute from what an earlier block left behind, and are not handed out.
            for from in (0..n).step_by(LANES) {
                for (phase, taps) in phases.iter_mut().zip(filter) {
                    let sums = convolve([0.0; LANES], &self.line, taps, from);
                    for (sample, &sum) in phase[from..from + LANES].iter_mut().zip(&sums) {
                        *sample = round(sum);
                    }
                }
            }
            let [first, second, third] = &phases;
            let mut wide = [[0i16; 3]; BLOCK];
            for (((triple, &a), &b), &c) in wide.iter_mut().zip(first).zip(second).zip(third) {
                *triple = [a, b, c];
            }
            out(wide[..n].as_flattened());
            self.line.copy_within(n..n + HISTORY, 0);
        }
    }
}

/// 24 kHz to 8 kHz, 15 samples late.
#[derive(Clone, Debug)]
pub struct Down {
    /// Phase 0 has the newest sample of each group of three, phase 2 the oldest.
    lines: [Line; 3],
    /// Samples of the block so far; some may wait for their group of three to be complete.
    waiting: usize,
}

impl Default for Down {
    fn default() -> Self {
        Self::new()
    }
}

impl Down {
    /// An output belongs to the last sample of its group; the first group has only that one, so that the first
    /// output is about the first sample.
    const FIRST_GROUP: usize = 2;

    /// A filter that has heard nothing but silence.
    pub const fn new() -> Self {
        Self { lines: [[0.0; HISTORY + BLOCK]; 3], waiting: Self::FIRST_GROUP }
    }

    /// Takes little-endian samples and hands out one for each complete group of three, in blocks.
    pub fn push(&mut self, input: &[[u8; 2]], out: impl FnMut(&[i16])) {
        self.push_through(&PHASES, input, out);
    }

    /// The same through any filter: a test must be able to spoil one.
    #[inline]
    fn push_through(&mut self, filter: &Phases, input: &[[u8; 2]], mut out: impl FnMut(&[i16])) {
        let mut rest = input;
        while let [first, more @ ..] = rest {
            if self.waiting.is_multiple_of(3) && rest.len() >= 3 {
                let (groups, _) = rest.as_chunks::<3>();
                let from = HISTORY + self.waiting / 3;
                let [newest, middle, oldest] = &mut self.lines;
                let room = newest[from..].iter_mut().zip(&mut middle[from..]).zip(&mut oldest[from..]);
                let mut taken = 0;
                for (&[a, b, c], ((newest, middle), oldest)) in groups.iter().zip(room) {
                    *oldest = f32::from(i16::from_le_bytes(a));
                    *middle = f32::from(i16::from_le_bytes(b));
                    *newest = f32::from(i16::from_le_bytes(c));
                    taken += 3;
                }
                self.waiting += taken;
                rest = &rest[taken..];
            } else {
                let line = &mut self.lines[2 - self.waiting % 3];
                line[HISTORY + self.waiting / 3] = f32::from(i16::from_le_bytes(*first));
                self.waiting += 1;
                rest = more;
            }
            if self.waiting == 3 * BLOCK {
                self.run(filter, &mut out);
            }
        }
        self.run(filter, &mut out);
    }

    /// Computes the complete groups and keeps the rest.
    fn run(&mut self, filter: &Phases, out: &mut impl FnMut(&[i16])) {
        let n = self.waiting / 3;
        if n == 0 {
            return;
        }
        let mut narrow = [0i16; BLOCK];
        for from in (0..n).step_by(LANES) {
            let mut sums = [0.0; LANES];
            for (line, taps) in self.lines.iter().zip(filter) {
                sums = convolve(sums, line, taps, from);
            }
            for (sample, &sum) in narrow[from..from + LANES].iter_mut().zip(&sums) {
                *sample = round(sum);
            }
        }
        out(&narrow[..n]);
        for line in &mut self.lines {
            // One more than the history: a group may be in the making.
            line.copy_within(n..(n + HISTORY + 1).min(HISTORY + BLOCK), 0);
        }
        self.waiting -= 3 * n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_is_the_middle_of_the_filter_at_both_rates() {
        assert_eq!(DELAY_24K, TAPS / 2);
        assert_eq!(DELAY_8K * 3, DELAY_24K);
    }

    #[test]
    fn rounding_goes_to_the_nearest_and_ties_to_even() {
        for (value, sample) in [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (-0.499, 0),
            (32_766.5, 32_766),
            (40_000.0, i16::MAX),
            (-32_767.5, i16::MIN),
            (-40_000.0, i16::MIN),
        ] {
            assert_eq!(round(value), sample, "{value}");
        }
        for whole in i16::MIN..=i16::MAX {
            assert_eq!(round(f32::from(whole)), whole);
        }
    }

    /// Samples of the recorded noise. The last bit of a small coefficient moves a sum by a millionth of a step of 16
    /// bits; with fewer samples some of them never tip a sum over to the next step.
    const NOISE: usize = 800_000;
    /// Where the noise begins. Most seeds need half as much again until every coefficient is seen.
    const NOISE_SEED: u32 = 0xB77B_A205;
    /// [`fingerprint`] of the noise, taken for 8 kHz, at 24 kHz.
    const NOISE_WIDENED: u64 = 0x65A0_F639_BEA7_0293;
    /// [`fingerprint`] of the noise, taken for 24 kHz, at 8 kHz.
    const NOISE_NARROWED: u64 = 0xF6FE_18FF_49C8_DC2D;

    /// Full scale, every value as likely as any other.
    fn noise() -> Vec<i16> {
        let mut state = NOISE_SEED;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 16) as i16
        };
        std::iter::repeat_with(next).take(NOISE).collect()
    }

    /// FNV-1a over little-endian samples.
    fn fingerprint(samples: &[i16]) -> u64 {
        samples
            .iter()
            .flat_map(|sample| sample.to_le_bytes())
            .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    }

    /// Frame by frame through a filter made of `half`, until `goes_on` has had enough.
    fn widened(half: &Half, input: &[i16], mut goes_on: impl FnMut(&[i16]) -> bool) {
        let (filter, mut up, mut more) = (phases(half, 3.0), Up::new(), true);
        for frame in input.chunks(BLOCK) {
            up.push_through(&filter, frame, |wide| more = goes_on(wide));
            if !more {
                return;
            }
        }
    }

    fn narrowed(half: &Half, input: &[i16], mut goes_on: impl FnMut(&[i16]) -> bool) {
        let (filter, mut down, mut more) = (phases(half, 1.0), Down::new(), true);
        for frame in input.chunks(3 * BLOCK) {
            let mut bytes = [[0; 2]; 3 * BLOCK];
            bytes.iter_mut().zip(frame).for_each(|(bytes, sample)| *bytes = sample.to_le_bytes());
            down.push_through(&filter, &bytes[..frame.len()], |narrow| more = goes_on(narrow));
            if !more {
                return;
            }
        }
    }

    #[test]
    fn noise_comes_out_as_it_was_recorded() {
        let noise = noise();
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        Up::new().push(&noise, |samples| wide.extend_from_slice(samples));
        let bytes: Vec<[u8; 2]> = noise.iter().map(|sample| sample.to_le_bytes()).collect();
        Down::new().push(&bytes, |samples| narrow.extend_from_slice(samples));
        let found = (fingerprint(&wide), fingerprint(&narrow));
        assert_eq!(found, (NOISE_WIDENED, NOISE_NARROWED), "{found:#018X?}");
    }

    /// Upwards alone would not do: three times a coefficient can round to the same with and without its last bit.
    #[test]
    fn no_bit_of_any_coefficient_can_change_without_changing_the_recorded_noise() {
        let noise = noise();
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        widened(&HALF, &noise, |samples| {
            wide.extend_from_slice(samples);
            true
        });
        narrowed(&HALF, &noise, |samples| {
            narrow.extend_from_slice(samples);
            true
        });
        assert_eq!((fingerprint(&wide), fingerprint(&narrow)), (NOISE_WIDENED, NOISE_NARROWED));
        /// Whether everything that comes out is as recorded.
        fn same(recorded: &[i16], run: impl FnOnce(&mut dyn FnMut(&[i16]) -> bool)) -> bool {
            let (mut rest, mut same) = (recorded, true);
            run(&mut |samples| {
                let (expected, later) = rest.split_at(samples.len());
                rest = later;
                same &= expected == samples;
                same
            });
            same && rest.is_empty()
        }
        assert!(same(&wide, |goes_on| widened(&HALF, &noise, goes_on)));
        assert!(same(&narrow, |goes_on| narrowed(&HALF, &noise, goes_on)));
        for (k, coefficient) in HALF.iter().enumerate() {
            for bit in 0..u32::BITS {
                let mut half = HALF;
                half[k] = f32::from_bits(coefficient.to_bits() ^ (1 << bit));
                let unseen = same(&narrow, |goes_on| narrowed(&half, &noise, goes_on))
                    && same(&wide, |goes_on| widened(&half, &noise, goes_on));
                assert!(!unseen, "bit {bit} of coefficient {k} does not show");
            }
        }
    }

    #[test]
    fn the_prototype_has_unity_gain_for_what_does_not_move() {
        let sum: f32 = PHASES.iter().flatten().sum();
        assert!((sum - 1.0).abs() < 0.002, "{sum}");
    }
}
