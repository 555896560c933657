//! What everything else is made of: clocks, secrets, addresses, text that is safe to show.

pub mod clock;
pub(crate) mod log_limit;
pub(crate) mod random;
pub(crate) mod redact;
pub mod secret;
pub(crate) mod text;
pub mod url;
