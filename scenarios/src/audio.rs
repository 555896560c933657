//! Fidelity: the goals of the audio path, measured, and recorded calls that must stay the same sample for sample.

pub mod diff;
pub mod diff_svg;
pub mod golden_audio;
pub mod quality;
