//! Plays one scenario, as data, on every stage, and judges what the two ends really heard.
//!
//! In the order a run goes:
//! * [`scenario`], [`weather`], [`seed`]: what is played; [`catalogue`]: what was written down to be played.
//! * [`generate`]: a scenario made of a seed; [`explore`]: one seed after the other.
//! * `strategy` (feature `proptest`): wider worlds, for properties that must hold in all of them.
//! * [`shrink`]: the smallest scenario that fails alike; [`regressions`]: those that are kept for ever.
//! * [`stage`]: where it is played, in memory, in a simulated network or over pipes; [`trace`]: what came of it.
//! * [`conform`]: somebody else's bridge, judged over real sockets by the same rules.
//! * [`contract`]: the mock of the model, compared with the real service or a recording of it.
//! * [`listen`]: whose voice each byte at the ear was; [`oracle`]: what must be true of every call.
//! * [`sabotage`]: every oracle has been seen to fail; [`milestones`]: what a suite must have reached.
//! * [`zoo`]: bugs of other people's bridges, planted around ours, and how soon they are found.
//! * [`recording`], [`compare`], [`picture`]: the audio of chosen calls is the same as before, sample for sample.
//! * [`journal`]: calls of the field: read, imported as scenarios, replayed against today's bridge.
//! * [`quality`]: the goals of the audio path, measured.
//! * [`cli`], [`report`], [`explain`]: for people.
//!
//! This is the only crate that knows both the bridge and its two witnesses.

pub mod backend;
pub mod catalogue;
pub mod cli;
pub mod compare;
pub mod conform;
pub mod contract;
pub mod explain;
pub mod explore;
pub mod generate;
mod glob;
pub mod journal;
pub mod listen;
pub mod milestones;
pub mod oracle;
pub(crate) mod output;
pub(crate) mod parallel;
pub mod picture;
pub mod quality;
pub mod recording;
pub mod regressions;
pub mod report;
pub mod sabotage;
pub mod scenario;
pub mod seed;
pub mod shrink;
pub mod stage;
#[cfg(feature = "proptest")]
pub mod strategy;
pub mod trace;
pub mod weather;
pub mod zoo;
