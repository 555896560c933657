//! The caller's speech on its way to the model: which frames are loud enough to be told apart, and where each lies in
//! what the model was given.

use super::case::CallUnderTest;
use crate::oracle::audio_attribution::{DELAY, Given, energy};
use mocks::record::MicFrame;

/// From the last frame to the end of a call, the bridge may not have had time: one turn of its loop and a batch.
pub(crate) const ON_ITS_WAY_US: u64 = 60_000;

/// How much of what the microphone sent had been given to the sessions before this one.
pub(crate) fn given_before(case: &CallUnderTest<'_>, m: usize) -> usize {
    let given = case.attribution.given[..m].iter().flatten();
    given.filter_map(|given| given.spoken.map(|spoken| spoken + given.len)).max().unwrap_or(0)
}

/// Where a frame of speech lies in what the model was given.
pub(crate) struct Anchor {
    pub(crate) frame: usize,
    pub(crate) given: usize,
}

/// The frames of speech that were recognised in what the model was given.
pub(crate) fn anchors(case: &CallUnderTest<'_>, from_mic: &[&Given]) -> Vec<Anchor> {
    let mic = &case.call.caller.mic;
    let mut anchors: Vec<Anchor> = Vec::new();
    for given in from_mic {
        let Some(spoken) = given.spoken else { continue };
        let first = mic.partition_point(|frame| frame.offset + DELAY < spoken);
        for (i, frame) in mic.iter().enumerate().skip(first) {
            if frame.offset + frame.len > spoken + given.len + DELAY {
                break;
            }
            let newer = anchors.last().is_none_or(|last| last.frame < i);
            if frame.speech && newer && spoken_is_loud(case, frame) {
                anchors
                    .push(Anchor { frame: i, given: (given.offset + frame.offset).saturating_sub(spoken) });
            }
        }
    }
    anchors
}

pub(crate) fn spoken_is_loud(case: &CallUnderTest<'_>, frame: &MicFrame) -> bool {
    let bytes = &case.call.caller.spoken[frame.offset..frame.offset + frame.len];
    energy(bytes) as f64 / frame.len as f64 > 250_000.0
}
