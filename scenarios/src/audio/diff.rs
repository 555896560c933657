//! How two recordings of the same call differ, in numbers that tell one defect from another.
//!
//! The gate is equality; these numbers only explain. No single one of them is enough: a lost frame leaves the
//! segmental SNR where it was, a slip by one sample destroys every SNR and is one number as a lag, a wrong gain
//! looks like noise until it is named. Lag, likeness and gain are taken where the recordings differ, so that a
//! small spoiled part is not averaged away by a long good one.

use std::fmt;

/// The recordings may be shifted against each other by this much, ms: a frame.
const REACH_MS: usize = 20;
/// Lag and likeness are taken over at most this much of the differing part, s.
const LOOKED_AT_S: usize = 2;
/// Windows below this level say nothing about a codec: 50 dB below full scale.
const QUIET_RMS: f64 = 100.0;
/// What one window may add to the segmental SNR, dB.
const SEGMENT_DB: (f64, f64) = (-20.0, 80.0);
/// The agent has fallen silent when nothing is heard for so long, ms.
const SILENT_MS: usize = 60;
/// Samples up to this size are silence: the smallest steps of mu-law.
const SILENT: u16 = 8;

/// Linear audio with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Its file below `golden/calls`, without the ending.
    pub name: String,
    /// Samples a second.
    pub rate: u32,
    /// The audio; G.711 is kept decoded, which loses nothing but the sign of zero.
    pub samples: Vec<i16>,
}

/// How a recording differs from the one before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Samples a second of the two recordings.
    pub rates: (u32, u32),
    /// Samples in the two recordings.
    pub lengths: (usize, usize),
    /// The first sample that differs.
    pub first: usize,
    /// The last one.
    pub last: usize,
    /// How many differ; samples that only one recording has do.
    pub differing: usize,
    /// By how many samples the differing part came later than before.
    pub lag: isize,
    /// How alike the differing parts are at this lag, -1 to 1.
    pub likeness: f64,
    /// Level of the differing part at this lag against before, dB.
    pub gain_db: f64,
    /// Power of the recording before against the power of the difference, dB.
    pub snr_db: f64,
    /// The same for each 20 ms that are not quiet, from -20 to 80 dB, on average.
    pub segmental_db: f64,
    /// The worst of these 20 ms: which, and its SNR, dB.
    pub worst: (usize, f64),
    /// The greatest difference of two samples.
    pub greatest: u32,
    /// Level of the whole recordings, dB of full scale.
    pub level_dbfs: (f64, f64),
    /// For each interruption: when it was, and how long the agent was heard after it, before and now, ms.
    pub drained_ms: Vec<(f64, f64, f64)>,
}

impl Difference {
    /// Compares two recordings; `None` when they are the same, sample for sample. `interrupted` is when the caller
    /// took the floor, ms from the beginning.
    pub fn between(before: &Recording, after: &Recording, interrupted: &[f64]) -> Option<Self> {
        if (before.rate, &before.samples) == (after.rate, &after.samples) {
            return None;
        }
        let rate = before.rate.max(1);
        let (old, new) = (&before.samples[..], &after.samples[..]);
        let long = old.len().max(new.len());
        let differs = |n: &usize| old.get(*n) != new.get(*n);
        let first = (0..long).find(differs).unwrap_or(0);
        let last = (0..long).rev().find(differs).unwrap_or(0);
        let (lag, likeness, gain_db) = alignment(old, new, first, last, rate);
        let segments = segments(old, new, rate);
        let loud = segments.iter().filter(|(_, _, loud)| *loud).count();
        let sum: f64 = segments.iter().filter(|(_, _, loud)| *loud).map(|(_, snr, _)| snr).sum();
        let worst = segments.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or((0, 0.0), |w| (w.0, w.1));
        let error = |n: usize| i32::from(at(new, n)) - i32::from(at(old, n));
        let wrong: f64 = (0..long).map(|n| f64::from(error(n)).powi(2)).sum();
        let right: f64 = old.iter().map(|s| f64::from(*s).powi(2)).sum();
        Some(Self {
            rates: (before.rate, after.rate),
            lengths: (old.len(), new.len()),
            first,
            last,
            differing: (0..long).filter(differs).count(),
            lag,
            likeness,
            gain_db,
            snr_db: db(right / wrong),
            segmental_db: if loud == 0 { SEGMENT_DB.1 } else { sum / loud as f64 },
            worst,
            greatest: (0..long).map(|n| error(n).unsigned_abs()).max().unwrap_or(0),
            level_dbfs: (level_dbfs(old), level_dbfs(new)),
            drained_ms: interrupted
                .iter()
                .map(|ms| (*ms, drained_ms(old, *ms, rate), drained_ms(new, *ms, rate)))
                .collect(),
        })
    }

    fn seconds(&self, sample: usize) -> f64 {
        sample as f64 / f64::from(self.rates.0.max(1))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rates, lengths, first, last, differing, lag, likeness, gain_db, .. } = self;
        let share = 100.0 * *differing as f64 / lengths.0.max(lengths.1).max(1) as f64;
        writeln!(
            f,
            "  first      sample {first} ({:+.4} s); the last at {:+.4} s",
            self.seconds(*first),
            self.seconds(*last)
        )?;
        writeln!(f, "  differing  {differing} samples ({share:.2} %), by {} at most", self.greatest)?;
        if rates.0 != rates.1 || lengths.0 != lengths.1 {
            writeln!(
                f,
                "  length     {} samples at {} Hz before, {} at {} Hz now",
                lengths.0, rates.0, lengths.1, rates.1
            )?;
        }
        let lag_ms = *lag as f64 * 1e3 / f64::from(rates.0.max(1));
        writeln!(
            f,
            "  there      lag {lag} samples ({lag_ms:+.3} ms), likeness {likeness:.3}, gain {gain_db:+.2} dB"
        )?;
        writeln!(f, "  all of it  SNR {:.1} dB, segmental {:.1} dB", self.snr_db, self.segmental_db)?;
        writeln!(
            f,
            "  worst      the 20 ms from {:+.2} s: {:.1} dB",
            self.worst.0 as f64 / 50.0,
            self.worst.1
        )?;
        write!(f, "  level      {:.2} dBFS before, {:.2} now", self.level_dbfs.0, self.level_dbfs.1)?;
        for (from, before, after) in &self.drained_ms {
            write!(f, "\n  drain      {before:.1} ms before, {after:.1} now, after {:+.3} s", from / 1e3)?;
        }
        Ok(())
    }
}

fn at(samples: &[i16], n: usize) -> i16 {
    samples.get(n).copied().unwrap_or(0)
}

fn db(ratio: f64) -> f64 {
    10.0 * ratio.log10()
}

fn power(samples: &[i16]) -> f64 {
    samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / samples.len().max(1) as f64
}

/// RMS, dB of full scale.
pub fn level_dbfs(samples: &[i16]) -> f64 {
    db(power(samples) / 32_768f64.powi(2))
}

/// RMS of the difference of each 20 ms, dB of full scale.
pub fn errors_dbfs(before: &[i16], after: &[i16], rate: u32) -> Vec<f64> {
    let window = window(rate);
    let long = before.len().max(after.len());
    let error = |n: usize| f64::from(at(after, n)) - f64::from(at(before, n));
    let wrong = |from: usize| (from..from + window).map(|n| error(n).powi(2)).sum::<f64>() / window as f64;
    (0..long).step_by(window).map(|from| db(wrong(from) / 32_768f64.powi(2))).collect()
}

fn window(rate: u32) -> usize {
    (rate as usize / 50).max(1)
}

/// For each 20 ms in which anything is to be heard: its number, its SNR, and whether it is not quiet.
fn segments(old: &[i16], new: &[i16], rate: u32) -> Vec<(usize, f64, bool)> {
    let window = window(rate);
    let long = old.len().max(new.len());
    (0..long.div_ceil(window))
        .filter_map(|segment| {
            let all = segment * window..(segment + 1) * window;
            let right: f64 = all.clone().map(|n| f64::from(at(old, n)).powi(2)).sum();
            let wrong: f64 = all.map(|n| (f64::from(at(new, n)) - f64::from(at(old, n))).powi(2)).sum();
            let snr = if wrong == 0.0 { SEGMENT_DB.1 } else { db(right / wrong) };
            let loud = right / window as f64 > QUIET_RMS * QUIET_RMS;
            (right + wrong > 0.0).then_some((segment, snr.clamp(SEGMENT_DB.0, SEGMENT_DB.1), loud))
        })
        .collect()
}

/// Lag, likeness and gain of the part that differs. The smallest lag of several equally good ones.
fn alignment(old: &[i16], new: &[i16], first: usize, last: usize, rate: u32) -> (isize, f64, f64) {
    let reach = (REACH_MS * rate as usize / 1_000) as isize;
    let end = (last + 1).max(first + window(rate)).min(first + LOOKED_AT_S * rate as usize);
    let wide = |samples: &[i16], n: isize| {
        usize::try_from(n).ok().and_then(|n| samples.get(n)).map_or(0.0, |s| f64::from(*s))
    };
    let part: Vec<f64> = (first..end).map(|n| wide(new, n as isize)).collect();
    // What the part may have been, with room on both sides.
    let around: Vec<f64> = (first as isize - reach..end as isize + reach).map(|n| wide(old, n)).collect();
    let energy: f64 = part.iter().map(|x| x * x).sum();
    let mut best = (0, 0.0, f64::NEG_INFINITY);
    for step in 0..=2 * reach {
        let lag = if step % 2 == 0 { step / 2 } else { -(step + 1) / 2 };
        let from = (reach - lag) as usize;
        let there = &around[from..from + part.len()];
        let theirs: f64 = there.iter().map(|x| x * x).sum();
        let gain = db(energy / theirs);
        if energy == 0.0 || theirs == 0.0 {
            if step == 0 {
                best.2 = gain;
            }
            continue;
        }
        let likeness = part.iter().zip(there).map(|(x, y)| x * y).sum::<f64>() / (energy * theirs).sqrt();
        if likeness > best.1 + 1e-9 {
            best = (lag, likeness, gain);
        }
    }
    best
}

/// How long sound went on after `from_ms`, until the first 60 ms of silence.
fn drained_ms(samples: &[i16], from_ms: f64, rate: u32) -> f64 {
    let per_ms = rate as usize / 1_000;
    let from = ((from_ms * per_ms as f64) as usize).min(samples.len());
    let mut last = 0;
    for (n, sample) in samples[from..].iter().enumerate() {
        if sample.unsigned_abs() > SILENT {
            last = n + 1;
        } else if n >= last + SILENT_MS * per_ms {
            break;
        }
    }
    last as f64 / per_ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording(samples: Vec<i16>) -> Recording {
        Recording { name: "x".into(), rate: 8_000, samples }
    }

    fn voice() -> Vec<i16> {
        golden::caller_voice()[..16_000].to_vec()
    }

    #[test]
    fn equal_recordings_do_not_differ() {
        assert_eq!(Difference::between(&recording(voice()), &recording(voice()), &[]), None);
        assert_eq!(Difference::between(&recording(vec![]), &recording(vec![]), &[]), None);
    }

    #[test]
    fn a_recording_that_ends_early_differs_from_there_on() {
        let short = recording(voice()[..12_000].to_vec());
        let d = Difference::between(&recording(voice()), &short, &[]).unwrap();
        assert_eq!((d.first, d.last, d.differing), (12_000, 15_999, 4_000));
        assert!(d.to_string().contains("16000 samples at 8000 Hz before, 12000"), "{d}");
        assert!(Difference::between(&recording(vec![]), &short, &[]).is_some());
    }

    #[test]
    fn a_lag_has_the_sign_of_lateness() {
        let mut late = vec![0; 7];
        late.extend(&voice()[..15_993]);
        let d = Difference::between(&recording(voice()), &recording(late), &[]).unwrap();
        assert_eq!(d.lag, 7, "{d}");
        let early = voice()[5..].to_vec();
        let d = Difference::between(&recording(voice()), &recording(early), &[]).unwrap();
        assert_eq!(d.lag, -5, "{d}");
    }

    #[test]
    fn what_was_heard_after_an_interruption_ends_with_the_last_sound() {
        let mut samples = voice();
        samples[8_000..12_000].fill(0);
        assert!((drained_ms(&samples, 900.0, 8_000) - 100.0).abs() < 1.0);
        assert_eq!(drained_ms(&samples, 1_100.0, 8_000), 0.0);
    }
}
