//! What leaves the process beside audio: journals, transcripts, traces, logs, metrics.

pub mod journal;
pub mod logs;
pub mod metrics;
#[cfg_attr(not(feature = "otlp"), path = "export/otlp/absent.rs")]
pub mod otlp;
pub mod store;
pub(crate) mod worker;
