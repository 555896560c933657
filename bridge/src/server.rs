//! The HTTP side: who is admitted, what is carried, and a clean end.

pub mod connections;
pub mod live;
pub mod operator;
mod request;
pub mod serve;
pub mod settings;
pub mod stats;
