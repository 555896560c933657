//! Two independent witnesses of a phone call.
//!
//! [`twilio`] is the caller's end: a Twilio Media Streams client with a person behind it. [`realtime`] is the
//! model's end: an OpenAI Realtime server with a scripted model behind it. Both are *pure*: they do no I/O,
//! read no clock and draw no randomness of their own; they are fed frames and times, and hand out frames.
//!
//! **The rule: nothing here imports the bridge.** Both mocks build and check JSON in their own way, own their
//! own G.711 tables and their own resampler, and keep a record of what they saw. A misread field on one side
//! therefore shows as a disagreement instead of passing twice.
//!
//! In the order a reader wants them:
//! * [`peer`]: the contract of a pure mock: frames and times in, frames out.
//! * [`record`]: what an end saw, when: the raw material of every judgement.
//! * [`twilio`]: the stream, the play-out clock, and the person with a script.
//! * [`realtime`]: the session, its rules and errors, and the model with a script.
//! * [`sound`]: recorded audio in a script.
//! * [`ulaw`], [`alaw`], [`resample`]: the witnesses' own audio arithmetic.
//! * [`attach`]: runs a pure mock over a real WebSocket; [`net`]: real TCP and TLS below it; [`cork`]: the upgrade and
//!   the first frame in one piece.
//! * [`webhook`]: the first question of a call, asked over a real connection.

pub mod alaw;
pub mod attach;
mod base64;
mod clip;
pub mod cork;
pub mod net;
pub mod peer;
pub mod realtime;
pub mod record;
pub mod resample;
pub mod sound;
pub mod twilio;
pub mod ulaw;
pub mod webhook;
