//! Small things that everything uses.

pub(crate) mod glob;
pub(crate) mod output;
pub(crate) mod parallel;
