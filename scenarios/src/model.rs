//! What is played: scenarios, the network between the ends, seeds, and where they can be played.

pub mod backend;
pub mod catalogue;
pub mod network;
pub mod scenario;
pub mod seed;
