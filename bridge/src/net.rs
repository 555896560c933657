//! The world as the bridge needs it: the way to the model, requests, functions, TLS.

pub mod dial;
pub mod http_client;
pub mod tls;
pub mod tool_webhooks;
pub mod tools;
pub mod twilio_rest;
