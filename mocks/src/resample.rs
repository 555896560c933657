//! The witnesses' own resampler: a long windowed sinc, applied to whole recordings and without delay.
//!
//! It shares nothing with the bridge's filter but the two sample rates, and is slower and better, as a referee
//! may be.

use std::f64::consts::PI;

/// Half the filter's length, in samples at 8 kHz.
const REACH: isize = 40;
/// Where it cuts, Hz.
const CUTOFF: f64 = 3_750.0;

/// The filter at `t` samples of 8 kHz from its centre; unity gain for interpolation from 8 kHz.
fn kernel(t: f64) -> f64 {
    let reach = REACH as f64;
    if t.abs() >= reach {
        return 0.0;
    }
    let x = 2.0 * CUTOFF / 8_000.0;
    let sinc = if t == 0.0 { x } else { (PI * x * t).sin() / (PI * t) };
    // A Blackman-Harris window: side lobes below -92 dB.
    let phase = PI * (t + reach) / reach;
    let window =
        0.358_75 - 0.488_29 * phase.cos() + 0.141_28 * (2.0 * phase).cos() - 0.011_68 * (3.0 * phase).cos();
    sinc * window
}

fn to_sample(value: f64) -> i16 {
    value.round().clamp(-32_768.0, 32_767.0) as i16
}

/// 8 kHz to 24 kHz: three samples for each, without delay.
pub fn up(input: &[i16]) -> Vec<i16> {
    let phases: Vec<Vec<f64>> = (0..3)
        .map(|phase| (-REACH..=REACH).map(|k| kernel(f64::from(phase) / 3.0 - k as f64)).collect())
        .collect();
    let padded = padded(input, REACH as usize);
    (0..input.len())
        .flat_map(|n| {
            let window = &padded[n..n + 2 * REACH as usize + 1];
            phases.iter().map(move |taps| to_sample(taps.iter().zip(window).map(|(h, x)| h * x).sum()))
        })
        .collect()
}

/// 24 kHz to 8 kHz: one sample for three, rounded up, without delay.
pub fn down(input: &[i16]) -> Vec<i16> {
    let reach = 3 * REACH;
    let taps: Vec<f64> = (-reach..=reach).map(|k| kernel(k as f64 / 3.0) / 3.0).collect();
    let padded = padded(input, reach as usize);
    (0..input.len())
        .step_by(3)
        .map(|n| to_sample(taps.iter().zip(&padded[n..]).map(|(h, x)| h * x).sum()))
        .collect()
}

fn padded(input: &[i16], by: usize) -> Vec<f64> {
    let silence = std::iter::repeat_n(0.0, by);
    silence.clone().chain(input.iter().map(|&x| f64::from(x))).chain(silence).collect()
}

/// How a recording relates to a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Samples by which the recording is late.
    pub lag: isize,
    /// Its level over the reference's, as a factor.
    pub gain: f64,
    /// What remains after lag and gain, as a signal-to-noise ratio, dB.
    pub snr_db: f64,
}

/// Finds the lag within `max_lag` samples at which `heard` fits `reference` best.
pub fn best_lag(reference: &[i16], heard: &[i16], max_lag: usize) -> Fit {
    let limit = max_lag as isize;
    let mut best = Fit { lag: 0, gain: 0.0, snr_db: f64::NEG_INFINITY };
    for lag in -limit..=limit {
        let pairs = reference.iter().enumerate().filter_map(|(n, &x)| {
            let y = heard.get(usize::try_from(n as isize + lag).ok()?)?;
            Some((f64::from(x), f64::from(*y)))
        });
        let (xx, xy, yy) =
            pairs.fold((0.0, 0.0, 0.0), |(xx, xy, yy), (x, y)| (xx + x * x, xy + x * y, yy + y * y));
        if xx == 0.0 || yy == 0.0 {
            continue;
        }
        let gain = xy / xx;
        let noise = (yy - gain * xy).max(1e-9);
        let snr_db = 10.0 * (gain * xy / noise).log10();
        if snr_db > best.snr_db {
            best = Fit { lag, gain, snr_db };
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_and_down_again_is_where_it_was() {
        let voice = &golden::caller_voice()[..16_000];
        let again = down(&up(voice));
        assert_eq!(again.len(), voice.len());
        let fit = best_lag(&voice[100..15_900], &again[100..15_900], 4);
        assert_eq!(fit.lag, 0);
        assert!(fit.snr_db > 55.0 && (fit.gain - 1.0).abs() < 0.002, "{fit:?}");
    }

    #[test]
    fn what_8_khz_cannot_carry_does_not_fold_back() {
        let tone = |hz: f64| -> Vec<i16> {
            (0..24_000)
                .map(|n| ((2.0 * PI * hz * f64::from(n) / 24_000.0).sin() * 29_000.0).round() as i16)
                .collect()
        };
        let rms = |samples: &[i16]| {
            let middle = &samples[200..samples.len() - 200];
            (middle.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / middle.len() as f64).sqrt()
        };
        for (hz, least, most) in [
            (300.0, 20_450.0, 20_550.0),
            (3_300.0, 20_450.0, 20_550.0),
            (4_250.0, 0.0, 2.0),
            (9_000.0, 0.0, 2.0),
        ] {
            let level = rms(&down(&tone(hz)));
            assert!((least..most).contains(&level), "{hz} Hz comes out at {level:.1}");
        }
    }

    #[test]
    fn a_shift_is_found() {
        let voice = &golden::caller_voice()[..4_000];
        assert_eq!(best_lag(&voice[10..3_000], voice, 20).lag, 10);
    }
}
