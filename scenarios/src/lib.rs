//! Plays one scenario, as data, on every stage, and judges what the two ends really heard.
//!
//! In the order a run goes:
//! * [`scenario`], [`weather`], [`seed`]: what is played; [`catalogue`]: what was written down to be played.
//! * [`stage`]: where it is played, in memory or in a simulated network; [`trace`]: what came of it.
//! * [`listen`]: whose voice each byte at the ear was; [`oracle`]: what must be true of every call.
//! * [`sabotage`]: every oracle has been seen to fail; [`milestones`]: what a suite must have reached.
//! * [`cli`], [`report`], [`explain`]: for people.
//!
//! This is the only crate that knows both the bridge and its two witnesses.

pub mod catalogue;
pub mod cli;
pub mod explain;
pub mod listen;
pub mod milestones;
pub mod oracle;
pub mod report;
pub mod sabotage;
pub mod scenario;
pub mod seed;
pub mod stage;
pub mod trace;
pub mod weather;
