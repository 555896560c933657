//! What a run says to people: the table, the failure you want to read at midnight, and the figures.
//!
//! Everything here is for the terminal. For the browser, for CI and for other programs there is [`Report`]: one page,
//! JUnit XML, JSON, and the audio of both ends.

mod files;
mod folder;
mod json;
mod junit;
mod outcome;
mod page;
mod run_view;
mod runs;
mod wavs;

pub(crate) use files::Files;
pub use folder::Folder;
pub use outcome::{Outcome, call_seconds_per_cpu_second, failure, missed, speed, summary, table};
pub use run_view::RunView;
pub use runs::Report;
