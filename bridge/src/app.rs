//! The program: settings from file, environment and flags; what the machine lets them be; a demonstration.

pub mod capacity;
pub mod config;
pub mod demo;
