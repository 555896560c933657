//! Calls of the field: what the bridge's flight recorder wrote, read back.
//!
//! * `read`: a file becomes a [`Recorded`] call; what is torn, missing or too new is said, not guessed.
//! * [`import`]: a recorded call becomes a scenario: what each end meant to do, to be shrunk and kept.
//! * [`replay`]: the same, with the recorded timing, against today's bridge: what it said then, and what it says now.

pub mod import;
mod read;
pub mod replay;

pub use read::{Damage, ReadError, Recorded, load, read};
