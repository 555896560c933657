//! Bridges that are wrong on purpose: every oracle has been seen to fail.

pub mod injection;
pub mod known_bugs;
