//! What is Twilio's, and whose stream a stream is.

pub mod signature;
pub mod stream_auth;
pub mod token;
pub mod webhook_replay;
