//! What must hold, asserted over every crate.
//!
//! * `tidy`: the architecture, read from the source tree.
//! * `codec`: two independent G.711s and two independent resamplers agree, and both match the standard.
//! * `conformance`: what the vendors write down, the bridge and the mocks read and write alike.
//! * `catalogue`: every scenario on both stages, judged by every oracle.
//! * `determinism`: same seed, same bytes: twice, on parallel threads, in two processes.
//! * `sabotage`: every oracle has been seen to fail.
//! * `timelines`: the timelines of chosen calls, as people read them, frozen.
//! * `readme`: the commands of the README exist.

mod catalogue;
mod codec;
mod conformance;
mod determinism;
mod readme;
mod sabotage;
mod tidy;
mod timelines;
