//! The contract of a pure mock: one end of one WebSocket, as a value.
//!
//! **After each call of a `&mut self` method, drain [`Peer::poll_transmit`] to `None`.** Time is an argument
//! ([`At`]: microseconds since the scenario began) and never runs backwards. [`Peer::poll_timeout`] says when
//! to come back; an implementation must make progress when called at that time.

use std::fmt;

/// A point in scenario time: microseconds since the scenario began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(pub u64);

impl At {
    /// This many milliseconds after the scenario began.
    pub const fn ms(ms: u64) -> Self {
        Self(ms * 1_000)
    }

    /// The point `ms` milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1_000)
    }

    /// Microseconds from `earlier` to here; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whole milliseconds since the scenario began.
    pub const fn as_ms(self) -> u64 {
        self.0 / 1_000
    }
}

impl fmt::Display for At {
    /// `+4.180201s`: seconds with microseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// One WebSocket frame, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A text frame.
    Text(String),
    /// A binary frame.
    Binary(Vec<u8>),
    /// A ping; the mock answers with a pong itself.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close frame: code and reason, or `None` when the frame was empty.
    Close(Option<(u16, String)>),
}

/// What a mock wants done on its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Send this frame. After a `Close` nothing more is sent; the connection ends when the peer answers or goes.
    Frame(Frame),
    /// Drop the connection without a close frame (the TCP stream just ends).
    Drop,
    /// Stop reading from the connection until [`Out::ResumeReading`]: what arrives waits in the network.
    PauseReading,
    /// Read again.
    ResumeReading,
}

/// One end of one WebSocket, as a value. See the module for the contract.
pub trait Peer {
    /// The WebSocket is open (the 101 was sent or received).
    fn opened(&mut self, now: At);
    /// A frame arrived.
    fn handle(&mut self, frame: Frame, now: At);
    /// The connection ended without a close frame from the other side (end of stream, reset, refused).
    fn gone(&mut self, why: &str, now: At);
    /// The time of [`Peer::poll_timeout`] has come.
    fn handle_timeout(&mut self, now: At);
    /// The next thing to do on the connection, in order.
    fn poll_transmit(&mut self) -> Option<Out>;
    /// When to call [`Peer::handle_timeout`], if ever.
    fn poll_timeout(&self) -> Option<At>;
    /// Nothing more will happen here: the connection has ended and no timer is left.
    fn is_finished(&self) -> bool;
}
