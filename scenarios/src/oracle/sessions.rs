//! The sessions of a call: which followed which, and what each was told of those before it.

use crate::sim::trace::CallTrace;
use mocks::record::{ModelObservation, Observation};

/// What a session was told of those before it: the items written into it before anything else.
pub(crate) fn past(call: &CallTrace, m: usize) -> &[Observation<ModelObservation>] {
    let ready = |m: &mocks::record::ModelRecord| {
        m.observations.iter().position(|seen| matches!(seen.what, ModelObservation::SentSessionUpdated))
    };
    if !call.models[..m].iter().any(|before| ready(before).is_some()) {
        return &[];
    }
    let observations = &call.models[m].observations;
    let from = ready(&call.models[m]).map_or(observations.len(), |at| at + 1);
    let live = |seen: &Observation<ModelObservation>| {
        matches!(seen.what, ModelObservation::GotAppend { .. } | ModelObservation::GotCreate { .. })
    };
    let len = observations[from..].iter().position(live).unwrap_or(observations.len() - from);
    &observations[from..from + len]
}

/// What happened in a session beside what it was told of those before it.
pub(crate) fn news(call: &CallTrace, m: usize) -> impl Iterator<Item = &Observation<ModelObservation>> {
    let past = past(call, m).as_ptr_range();
    call.models[m].observations.iter().filter(move |seen| !past.contains(&std::ptr::from_ref(*seen)))
}

/// The sessions of a call that the caller was given to, in order, each with the one it was followed by.
pub(crate) fn followed(call: &CallTrace) -> Vec<(usize, usize)> {
    let heard = |m: &usize| {
        call.models[*m]
            .observations
            .iter()
            .any(|seen| matches!(seen.what, ModelObservation::GotAppend { .. }))
    };
    let used: Vec<usize> = (0..call.models.len()).filter(heard).collect();
    used.windows(2).map(|pair| (pair[0], pair[1])).collect()
}
