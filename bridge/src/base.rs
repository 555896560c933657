//! What everything else is made of: clocks, secrets, addresses, text that is safe to show.

pub mod clock;
pub(crate) mod redact;
pub mod secret;
pub(crate) mod seldom;
pub(crate) mod text;
pub(crate) mod throttle;
pub mod url;
