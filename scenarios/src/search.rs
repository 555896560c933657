//! Generated worlds: made of a seed, explored, shrunk, kept.

pub mod explore;
pub mod generate;
pub mod regressions;
pub mod shrink;
#[cfg(feature = "proptest")]
pub mod strategy;
