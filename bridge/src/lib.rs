//! Carries a phone call between Twilio Media Streams and an OpenAI Realtime model.
//!
//! In the order a 20 ms frame travels from the caller to the model and back:
//! * [`serve`]: the HTTP face; lets in, carries, drains. [`connections`]: what is bounded before that.
//! * [`leg`]: one WebSocket: a reader that is asked, a writer that is never waited for.
//! * [`twilio`]: Twilio's messages on the wire.
//! * [`driver`]: the one loop that owns a call, and the only reader of its clock.
//! * [`call`]: the call itself, as a value. Nothing in it can await, read a clock or draw a random number.
//! * [`audio`]: G.711, 8 kHz to 24 kHz and back.
//! * [`realtime`]: the model's events on the wire.
//! * [`payload`]: audio as text, on either wire.
//! * [`dial`], [`tools`], [`registry`]: the world as the call needs it: a byte stream to the model, functions, and
//!   who owns which phone call.
//! * [`door`]: who may come in; [`signature`], [`token`], [`twiml`], [`webhooks`]: what it is told by, what it answers,
//!   and what it has answered already.
//! * [`http`]: requests of ours to the world; [`rest`]: those to Twilio; [`operator`]: who may ask for them.
//! * [`tls`]: TLS on the listener itself.
//! * [`live`]: the calls of this moment on a page; [`demo`]: one to look at, without any account.
//! * [`config`], [`telemetry`]: settings in, log lines out; [`capacity`]: what the machine lets them be; `text`:
//!   strangers' words, made fit for a terminal.
//! * [`meter`], [`metrics`]: what goes through the legs, in numbers; and all there is to count, for Prometheus.
//! * [`store`]: transcripts that outlive their calls.
//! * [`otlp`]: traces and logs for a collector.
//! * [`journal`]: what went by on both legs, one file a call.

pub mod audio;
pub mod call;
pub mod capacity;
pub mod clock;
pub mod config;
pub mod connections;
pub mod demo;
pub mod dial;
pub mod door;
pub mod driver;
pub mod http;
pub mod journal;
pub mod leg;
pub mod live;
pub mod meter;
pub mod metrics;
pub mod observe;
pub mod operator;
#[cfg_attr(not(feature = "otlp"), path = "otlp/absent.rs")]
pub mod otlp;
pub mod payload;
pub mod realtime;
mod redact;
pub mod registry;
mod request;
pub mod rest;
pub mod secret;
mod seldom;
pub mod serve;
pub mod settings;
pub mod signature;
pub mod stats;
pub mod store;
pub mod telemetry;
mod text;
pub mod tls;
pub mod token;
pub mod tools;
pub mod twilio;
pub mod twiml;
pub mod url;
pub mod webhooks;
