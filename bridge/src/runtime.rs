//! One call between its two sockets: the loop that owns it, and those who follow it.

pub mod codec;
pub mod driver;
pub mod journal;
pub mod leg;
pub mod meter;
pub mod observe;
pub mod registry;
