//! What must hold, asserted over every crate.
//!
//! * `tidy`: the architecture, read from the source tree.
//! * `codec`: two independent G.711s and two independent resamplers agree, and both match the standard.
//! * `conform`: the document about judging other people's bridges is up to date.
//! * `conformance`: what the vendors write down, the bridge and the mocks read and write alike.
//! * `contract`: the mock of the model is compared with servers over real sockets, in bounded time.
//! * `catalogue`: every scenario on every backend it names, judged by every oracle.
//! * `loopback`: a handful of calls over real TCP and TLS, in real time.
//! * `backends`: what one backend says of a scenario, the others say, too.
//! * `determinism`: same seed, same bytes: twice, on parallel threads, in two processes.
//! * `faults`: every oracle has been seen to fail.
//! * `deploy`: what is given to operators names what exists.
//! * `demo`: a call of `bridge demo`, by the programs themselves.
//! * `fuzz`: what strangers write is read as it was meant, for every input that is kept.
//! * `golden_calls`: chosen calls sound as they sounded, sample for sample.
//! * `quality`: the audio path meets its goals.
//! * `regressions`: every bug that was found and mended stays mended.
//! * `seeds`: generated worlds are valid, the same every time, and break no rule.
//! * `conform_misbehaving_bridges`: bridges with bad manners are judged in bounded time, and a decent one is blamed for nothing.
//! * `strategies`: in worlds drawn by proptest nothing panics, every call ends, and safety holds.
//! * `timelines`: the timelines of chosen calls, as people read them, frozen.
//! * `field_bug_walkthrough`: the walk-through from a call of the field to a regression can be walked.
//! * `known_bugs`: bugs of the field are caught by name, and found in generated worlds.
//! * `readme`: the commands of the README exist.

mod backends;
mod catalogue;
mod codec;
mod conform;
mod conform_misbehaving_bridges;
mod conformance;
mod contract;
mod demo;
mod deploy;
mod determinism;
mod faults;
mod field_bug_walkthrough;
mod fuzz;
mod golden_calls;
mod journals;
mod known_bugs;
mod layers;
mod loopback;
mod quality;
mod readme;
mod regressions;
mod seeds;
mod strategies;
mod tidy;
mod timelines;
