//! A report in the making.

use super::outcome::{Outcome, Spread, Sum};
use super::run_view::RunView;
use crate::model::backend::Backend;
use crate::sim::trace::Trace;
use std::collections::{BTreeMap, BTreeSet};

/// What several runs came to, to be written as a page, as JUnit XML and as JSON.
///
/// The same runs give the same bytes: there is no date, no processor time and no path of this machine in them.
#[derive(Clone, Debug)]
pub struct Report {
    command: String,
    runs: Vec<Run>,
    backends: BTreeMap<Backend, Total>,
    reached: BTreeSet<&'static str>,
}

/// A run that is told in full.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) view: RunView,
}

/// What one backend did in all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Total {
    pub(crate) runs: usize,
    pub(crate) passed: usize,
    /// Simulated milliseconds.
    pub(crate) call_ms: u64,
    sum: Sum,
}

impl Total {
    pub(crate) const fn failed(&self) -> usize {
        self.runs - self.passed
    }

    pub(crate) fn spreads(&self) -> Vec<(&'static str, Spread)> {
        self.sum.spreads()
    }

    pub(crate) const fn stale_bytes(&self) -> usize {
        self.sum.stale_bytes
    }
}

impl Report {
    /// An empty report of what this command did.
    pub fn new(command: impl Into<String>) -> Self {
        let command = command.into();
        Self { command, runs: Vec::new(), backends: BTreeMap::new(), reached: BTreeSet::new() }
    }

    /// Tells this run in full.
    pub fn add(&mut self, trace: &Trace, outcome: &Outcome) {
        self.put(outcome.clone(), RunView::of(trace));
    }

    /// Tells this run in full, drawn before: on another thread, perhaps.
    pub fn put(&mut self, outcome: Outcome, view: RunView) {
        self.count(&outcome);
        self.backends.entry(outcome.backend).or_default().sum.add(&outcome);
        self.runs.push(Run { outcome, view });
    }

    /// Counts this run without telling anything of it.
    pub fn count(&mut self, outcome: &Outcome) {
        let total = self.backends.entry(outcome.backend).or_default();
        total.runs += 1;
        total.passed += usize::from(outcome.passed());
        total.call_ms += outcome.call_ms;
        self.reached.extend(&outcome.reached);
    }

    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn runs_mut(&mut self) -> &mut [Run] {
        &mut self.runs
    }

    pub(crate) const fn backends(&self) -> &BTreeMap<Backend, Total> {
        &self.backends
    }

    pub(crate) const fn reached(&self) -> &BTreeSet<&'static str> {
        &self.reached
    }

    pub(crate) fn passed(&self) -> bool {
        self.backends.values().all(|total| total.failed() == 0)
    }
}
