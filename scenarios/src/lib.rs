//! Plays one scenario, as data, on every backend, and judges what the two ends really heard.
//!
//! A folder imports from those below it in this list, never from one above; `tests/it/layers.rs` holds that.
//! * [`cli`]: `scn`, one file a group of commands.
//! * [`contract`]: the mock of the model, compared with the real service or a recording of it.
//! * [`conform`]: any bridge, judged over real sockets by the same rules.
//! * [`faults`]: known bugs and injected faults: every oracle has been seen to fail.
//! * [`field`]: journals of production calls: read, imported as scenarios, replayed.
//! * [`search`]: a scenario made of a seed, one seed after the other, the smallest that fails alike, those that are kept.
//! * [`report`]: what a run came to, for a terminal, a browser, CI.
//! * [`audio`]: fidelity: goals, and golden audio.
//! * [`oracle`]: what must be true of every call; whose voice each byte was; milestones.
//! * [`sim`]: the backends: memory, a simulated network, pipes, loopback, a process; and the trace of a run.
//! * [`model`]: scenarios, network conditions, seeds, the catalogue.
//! * `base`: small things.
//!
//! This is the only crate that knows both the bridge and the two mocks.

pub mod audio;
pub(crate) mod base;
pub mod cli;
pub mod conform;
pub mod contract;
pub mod faults;
pub mod field;
pub mod model;
pub mod oracle;
pub mod report;
pub mod search;
pub mod sim;
