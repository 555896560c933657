//! Carries a phone call between Twilio Media Streams and an OpenAI Realtime model.
//!
//! A folder imports from those below it in this list, never from one above; `tests/it/layers.rs` holds that.
//! * [`app`]: the program: settings, flags, the demonstration.
//! * [`export`]: journals, transcripts, traces, logs, metrics.
//! * [`server`]: the webhook, the upgrade, health, the operator's routes, the live page, a clean end.
//! * [`runtime`]: one call between its sockets. [`runtime::driver`] owns the call, [`runtime::leg`] a WebSocket.
//! * [`net`]: the way to the model, requests to Twilio and to functions, TLS.
//! * [`auth`]: Twilio's signatures, stream tokens, webhooks that were answered before.
//! * [`call`]: the call itself, as a value. Nothing in it can await, read a clock or draw a random number.
//! * [`wire`]: Twilio's messages, the model's events, TwiML, audio as base64.
//! * [`audio`]: G.711, 8 kHz to 24 kHz and back, keypad tones.
//! * [`base`]: clocks, secrets, addresses, text that is safe to show.
//!
//! A 20 ms frame of the caller goes `runtime::leg`, `runtime::driver`, `wire::twilio`, `call`, `call::uplink`, `audio`,
//! `wire::realtime`, `runtime::leg`; one of the model the same way back through `call::downlink`.

pub mod app;
pub mod audio;
pub mod auth;
pub mod base;
pub mod call;
pub mod export;
pub mod net;
pub mod runtime;
pub mod server;
pub mod wire;
