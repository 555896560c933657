//! The sessions of a call: which followed which, and what each was told of those before it.

use crate::sim::trace::CallTrace;
use mocks::record::{ModelSight, Sighting};

/// What a session was told of those before it: the items written into it before anything else.
pub(crate) fn past(call: &CallTrace, m: usize) -> &[Sighting<ModelSight>] {
    let ready = |m: &mocks::record::ModelRecord| {
        m.sightings.iter().position(|seen| matches!(seen.what, ModelSight::SentSessionUpdated))
    };
    if !call.models[..m].iter().any(|before| ready(before).is_some()) {
        return &[];
    }
    let sightings = &call.models[m].sightings;
    let from = ready(&call.models[m]).map_or(sightings.len(), |at| at + 1);
    let live = |seen: &Sighting<ModelSight>| {
        matches!(seen.what, ModelSight::GotAppend { .. } | ModelSight::GotCreate { .. })
    };
    let len = sightings[from..].iter().position(live).unwrap_or(sightings.len() - from);
    &sightings[from..from + len]
}

/// What happened in a session beside what it was told of those before it.
pub(crate) fn news(call: &CallTrace, m: usize) -> impl Iterator<Item = &Sighting<ModelSight>> {
    let past = past(call, m).as_ptr_range();
    call.models[m].sightings.iter().filter(move |seen| !past.contains(&std::ptr::from_ref(*seen)))
}

/// The sessions of a call that the caller was given to, in order, each with the one it was followed by.
pub(crate) fn followed(call: &CallTrace) -> Vec<(usize, usize)> {
    let heard = |m: &usize| {
        call.models[*m].sightings.iter().any(|seen| matches!(seen.what, ModelSight::GotAppend { .. }))
    };
    let used: Vec<usize> = (0..call.models.len()).filter(heard).collect();
    used.windows(2).map(|pair| (pair[0], pair[1])).collect()
}
