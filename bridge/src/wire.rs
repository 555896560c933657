//! The two protocols: messages in, messages out. Nothing here knows a call.

pub mod base64;
pub mod realtime;
pub mod twilio;
pub mod twiml;
