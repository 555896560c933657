//! What stands in for the exporter in a bridge that was built without the feature `otlp`: nothing that could be had.

mod settings;

pub use settings::Settings;

use crate::call::event::CallEvent;
use crate::runtime::observe::Observe;
use crate::runtime::registry::CallKey;
use std::time::Instant;
use tracing::Subscriber;
use tracing_subscriber::layer::Layer;

/// What became of spans and log records so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Taken by the collector.
    pub sent: u64,
    /// Found no room, or could not be sent.
    pub lost: u64,
}

/// There is none.
#[derive(Clone, Copy, Debug)]
pub enum StatsHandle {}

/// There is none.
#[derive(Clone, Copy, Debug)]
pub enum TraceCalls {}

/// There is none.
#[derive(Clone, Copy, Debug)]
pub enum LogLayer {}

/// There is none.
#[derive(Clone, Copy, Debug)]
pub enum Exporter {}

/// Opens nothing.
///
/// # Errors
/// When there should be something.
pub fn open(settings: &Settings, _model: &str) -> anyhow::Result<Option<Exporter>> {
    anyhow::ensure!(
        settings.endpoint.is_none(),
        "otlp.endpoint is set, but this bridge was built without otlp"
    );
    Ok(None)
}

impl StatsHandle {
    /// Figures.
    pub const fn snapshot(&self) -> Stats {
        match *self {}
    }
}

impl Exporter {
    /// Makes a trace of every call.
    pub const fn calls(&self) -> TraceCalls {
        match *self {}
    }

    /// Makes a record of every log line.
    pub const fn logs(&self) -> LogLayer {
        match *self {}
    }

    /// Figures.
    pub const fn gauge(&self) -> StatsHandle {
        match *self {}
    }

    /// Sends what waits.
    pub const fn stop(self) -> Stats {
        match self {}
    }
}

impl Observe for TraceCalls {
    fn event(&self, _call: CallKey, _now: Instant, _event: &CallEvent) {
        match *self {}
    }
}

impl<S: Subscriber> Layer<S> for LogLayer {}
