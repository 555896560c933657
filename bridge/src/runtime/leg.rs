//! One WebSocket of a call: a bounded queue of what is to be written, and a reader.
//!
//! The driver puts messages in and never waits for them. A queue that fills up is reported like anything else
//! that happens on a connection, and the call decides what to leave out. Reading and writing go on in the task of
//! the call itself, so nothing has to be stopped, collected or locked when a leg is dropped: it is simply gone.

use crate::base::clock;
use crate::call::LegChange;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::collections::VecDeque;
use std::fmt;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Messages that may wait in normal operation: five seconds of caller audio, or several bursts of answers.
const QUEUE_USUAL: usize = 256;
/// From here on the leg counts as clogged.
pub const QUEUE_HIGH: usize = QUEUE_USUAL / 2;
/// Below this it counts as flowing again.
pub const QUEUE_LOW: usize = QUEUE_USUAL / 4;
/// Messages that may wait at all. The call hears of a clogged leg only between two inputs, and one input may let
/// it send all that the pacing's lead allows: the configuration bounds that by [`BURST_MAX`].
pub const QUEUE_MAX: usize = 2 * BURST_MAX + QUEUE_USUAL;
/// Marks, and pieces of audio between them, that one input may send at most.
pub const BURST_MAX: usize = 4_096;

/// What is handed to the operating system at once, bytes: a message or two of a burst of audio. What waits in the
/// queue above can be taken back, what waits in the library cannot, and a `clear` has to wait behind it.
const BATCH_BYTES: usize = 2 * 1024;

/// Largest message from Twilio, bytes; a media message has about 400.
pub const CALLER_MESSAGE_MAX: usize = 64 * 1024;
/// Largest message from the model, bytes: above the 15 MiB that the protocol allows in the other direction.
pub const MODEL_MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// What a WebSocket reads at once, bytes. The library zeroes this much on each read; its default of 128 KiB would
/// cost more than all the rest of a call.
pub(crate) const READ_BUFFER: usize = 8 * 1024;

/// What the library may hold that the caller has not taken, bytes: above the largest message of ours, and no more. The
/// library answers pings by itself, whether the other side reads or not, and knows no limit of its own.
pub(crate) const CALLER_WRITE_MAX: usize = 1024 * 1024;
/// The same towards the model: above the 15 MiB that the protocol allows a message of ours.
pub(crate) const MODEL_WRITE_MAX: usize = 16 * 1024 * 1024;
/// Pings that may come while no pong can be written. Nothing of a network does that: each end pings every few seconds
/// at most, and a peer that sends and does not read is ended.
const PONGS_OWED_MAX: u32 = 64;

/// How the model's WebSocket is read and written.
pub(crate) fn model_limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .max_write_buffer_size(MODEL_WRITE_MAX)
        .max_message_size(Some(MODEL_MESSAGE_MAX))
        .max_frame_size(Some(MODEL_MESSAGE_MAX))
}

/// What our pings carry, to tell their pongs from stray ones.
pub const PING: &[u8] = b"bridge";

fn pong(payload: &[u8]) -> Arrived {
    if payload == PING { Arrived::Changed(LegChange::Pong) } else { Arrived::StrayPong }
}

/// A frame to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outgoing {
    /// A text frame.
    Text(String),
    /// A ping; its pong carries [`PING`] back.
    Ping,
    /// A close frame; nothing is written after it.
    Close(u16, &'static str),
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A text frame.
    Text(String),
    /// A binary frame of this many bytes.
    Binary(usize),
    /// A ping; the library answers it.
    Ping,
    /// A pong without a ping: it proves that the peer writes, not that it reads.
    StrayPong,
    /// Something about the connection. After `Closed` and `Lost` there is nothing left to poll.
    Changed(LegChange),
}

/// A WebSocket of one of the two libraries, and the translation of its frames.
pub(crate) trait Socket:
    Stream<Item = Result<Self::Frame, Self::Failure>> + Sink<Self::Frame, Error = Self::Failure> + Unpin + Send
{
    /// The library's frame.
    type Frame;
    /// The library's error.
    type Failure: fmt::Display;

    /// Reads the library's frame.
    fn arrived(frame: Self::Frame) -> Arrived;
    /// Makes the library's frame.
    fn outgoing(frame: Outgoing) -> Self::Frame;
}

/// A leg with what waits to be written on it.
pub(crate) struct LegIo<S> {
    socket: S,
    queue: VecDeque<(Outgoing, Option<Instant>)>,
    /// Since when what was handed to the library is inside the bridge, as far as that is measured.
    handed: Vec<Instant>,
    /// How long what is with the operating system was.
    took: Vec<Duration>,
    /// Frames were handed to the library and may not be with the operating system yet.
    flushing: bool,
    /// Pings that came since all that was to be written was with the operating system.
    pongs_owed: u32,
    clogged: bool,
    /// Why writing ended before its time.
    broken: Option<String>,
}

impl<S: Socket> LegIo<S> {
    /// Takes the socket over.
    pub(crate) const fn new(socket: S) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            handed: Vec::new(),
            took: Vec::new(),
            flushing: false,
            pongs_owed: 0,
            clogged: false,
            broken: None,
        }
    }

    /// Queues a frame; it is written when the leg is polled, and how long after `since` is measured. Returns what that
    /// did to the leg.
    pub(crate) fn send(&mut self, frame: Outgoing, since: Option<Instant>) -> Option<LegChange> {
        if self.broken.is_some() {
            return None; // polling tells how it ended
        }
        if self.queue.len() >= QUEUE_MAX {
            return Some(LegChange::Lost {
                why: format!("writer queue overflow: {QUEUE_MAX} messages wait"),
            });
        }
        self.queue.push_back((frame, since));
        if self.clogged || self.queue.len() < QUEUE_HIGH {
            return None;
        }
        self.clogged = true;
        Some(LegChange::Backpressured)
    }

    /// Forgets the messages that wait to be written. What was handed to the library cannot be taken back.
    pub(crate) fn withdraw(&mut self) {
        self.queue.retain(|(frame, _)| !matches!(frame, Outgoing::Text(_)));
    }

    /// Messages that wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How long what was written meanwhile was inside the bridge.
    pub(crate) const fn took(&mut self) -> &mut Vec<Duration> {
        &mut self.took
    }

    /// Writes what can be written, without reading.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>) {
        if self.broken.is_none()
            && let Err(error) = self.try_write(cx)
        {
            self.broken = Some(error.to_string());
            self.queue.clear();
        }
    }

    /// What happened next. `held` suspends reading; writing goes on all the same.
    pub(crate) fn poll(&mut self, held: bool, cx: &mut Context<'_>) -> Poll<Arrived> {
        self.poll_write(cx);
        if self.clogged && self.queue.len() < QUEUE_LOW && self.broken.is_none() {
            self.clogged = false;
            return Poll::Ready(Arrived::Changed(LegChange::Writable));
        }
        // What the other side said before the connection broke comes first, and tells more.
        if !held && let Poll::Ready(frame) = self.socket.poll_next_unpin(cx) {
            return Poll::Ready(match frame {
                Some(Ok(frame)) => self.read(S::arrived(frame), cx),
                Some(Err(error)) => lost(error.to_string()),
                None => lost("the connection ended without a close frame".to_owned()),
            });
        }
        match self.broken.take() {
            Some(why) => Poll::Ready(lost(why)),
            None => Poll::Pending,
        }
    }

    fn read(&mut self, arrived: Arrived, cx: &mut Context<'_>) -> Arrived {
        if arrived == Arrived::Ping {
            self.pongs_owed += 1;
            if self.pongs_owed > PONGS_OWED_MAX {
                return lost(format!("{PONGS_OWED_MAX} pings came and no pong was read"));
            }
        }
        if let Arrived::Changed(LegChange::Closed { .. }) = arrived {
            // The library has prepared the answer to a close frame; dropping the leg now must not keep it from
            // being written. Whether that works makes no difference to the call.
            let _ = self.socket.poll_flush_unpin(cx);
        }
        arrived
    }

    fn try_write(&mut self, cx: &mut Context<'_>) -> Result<(), S::Failure> {
        loop {
            if self.flushing {
                match self.socket.poll_flush_unpin(cx) {
                    Poll::Ready(flushed) => flushed?,
                    Poll::Pending => return Ok(()),
                }
                self.flushing = false;
                self.pongs_owed = 0;
                if !self.handed.is_empty() {
                    let now = clock::now();
                    self.took.extend(self.handed.drain(..).map(|since| now.saturating_duration_since(since)));
                }
            }
            if self.queue.is_empty() {
                if self.pongs_owed > 0 && self.socket.poll_flush_unpin(cx)?.is_ready() {
                    self.pongs_owed = 0;
                }
                return Ok(());
            }
            let mut bytes = 0;
            while bytes < BATCH_BYTES && !self.queue.is_empty() {
                self.flushing = true;
                match self.socket.poll_ready_unpin(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => break,
                }
                if let Some((frame, since)) = self.queue.pop_front() {
                    self.handed.extend(since);
                    bytes += match &frame {
                        Outgoing::Text(text) => text.len(),
                        Outgoing::Ping | Outgoing::Close(..) => 0,
                    };
                    self.socket.start_send_unpin(S::outgoing(frame))?;
                }
            }
        }
    }
}

const fn lost(why: String) -> Arrived {
    Arrived::Changed(LegChange::Lost { why })
}

fn closed(close: Option<(u16, String)>) -> Arrived {
    let (code, reason) = close.map_or((None, String::new()), |(code, reason)| (Some(code), reason));
    Arrived::Changed(LegChange::Closed { code, reason })
}

impl Socket for axum::extract::ws::WebSocket {
    type Frame = axum::extract::ws::Message;
    type Failure = axum::Error;

    fn arrived(frame: Self::Frame) -> Arrived {
        use axum::extract::ws::Message;
        match frame {
            Message::Text(text) => Arrived::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => Arrived::Binary(bytes.len()),
            Message::Ping(_) => Arrived::Ping,
            Message::Pong(payload) => pong(&payload),
            Message::Close(close) => closed(close.map(|c| (c.code, c.reason.to_string()))),
        }
    }

    fn outgoing(frame: Outgoing) -> Self::Frame {
        use axum::extract::ws::{CloseFrame, Message};
        match frame {
            Outgoing::Text(text) => Message::Text(text.into()),
            Outgoing::Ping => Message::Ping(PING.into()),
            Outgoing::Close(code, reason) => Message::Close(Some(CloseFrame { code, reason: reason.into() })),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for WebSocketStream<T> {
    type Frame = tokio_tungstenite::tungstenite::Message;
    type Failure = tokio_tungstenite::tungstenite::Error;

    fn arrived(frame: Self::Frame) -> Arrived {
        use tokio_tungstenite::tungstenite::Message;
        match frame {
            Message::Text(text) => Arrived::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => Arrived::Binary(bytes.len()),
            Message::Ping(_) => Arrived::Ping,
            Message::Pong(payload) => pong(&payload),
            Message::Close(close) => closed(close.map(|c| (u16::from(c.code), c.reason.to_string()))),
            Message::Frame(raw) => Arrived::Binary(raw.len()), // never read, only written
        }
    }

    fn outgoing(frame: Outgoing) -> Self::Frame {
        use tokio_tungstenite::tungstenite::Message;
        use tokio_tungstenite::tungstenite::protocol::CloseFrame;
        match frame {
            Outgoing::Text(text) => Message::Text(text.into()),
            Outgoing::Ping => Message::Ping(PING.into()),
            Outgoing::Close(code, reason) => {
                Message::Close(Some(CloseFrame { code: code.into(), reason: reason.into() }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

    type Peer = WebSocketStream<DuplexStream>;

    /// A leg and its other end, over a pipe that holds `bytes` in each direction.
    async fn leg(bytes: usize) -> (LegIo<Peer>, Peer) {
        let (here, there) = duplex(bytes);
        let limits = WebSocketConfig::default().max_message_size(Some(1_000)).max_frame_size(Some(1_000));
        let leg = WebSocketStream::from_raw_socket(here, Role::Client, Some(limits)).await;
        (LegIo::new(leg), WebSocketStream::from_raw_socket(there, Role::Server, None).await)
    }

    async fn next(leg: &mut LegIo<Peer>, held: bool) -> Arrived {
        poll_fn(|cx| leg.poll(held, cx)).await
    }

    async fn poll_once(leg: &mut LegIo<Peer>, held: bool) -> Option<Arrived> {
        poll_fn(|cx| {
            Poll::Ready(match leg.poll(held, cx) {
                Poll::Ready(arrived) => Some(arrived),
                Poll::Pending => None,
            })
        })
        .await
    }

    fn text(n: usize) -> Outgoing {
        Outgoing::Text(format!("{n:0>100}"))
    }

    #[tokio::test]
    async fn what_is_queued_arrives_in_order_and_the_close_comes_last() {
        let (mut leg, mut peer) = leg(64 * 1024).await;
        for n in 0..3 {
            assert_eq!(leg.send(text(n), None), None);
        }
        assert_eq!(leg.send(Outgoing::Close(1000, "bye"), None), None);
        assert_eq!(poll_once(&mut leg, false).await, None);
        for n in 0..3 {
            assert_eq!(
                peer.next().await.unwrap().unwrap().into_text().unwrap().as_str(),
                format!("{n:0>100}")
            );
        }
        let close = peer.next().await.unwrap().unwrap();
        assert_eq!(close, Message::Close(Some(CloseFrame { code: 1000.into(), reason: "bye".into() })));
        assert!(peer.next().await.is_none(), "the answer to the close is written");
        let answer = LegChange::Closed { code: Some(1000), reason: "bye".into() };
        assert_eq!(next(&mut leg, false).await, Arrived::Changed(answer));
    }

    #[tokio::test]
    async fn what_is_withdrawn_is_not_written_and_what_follows_is() {
        let (mut leg, mut peer) = leg(64 * 1024).await;
        (0..3).for_each(|n| assert_eq!(leg.send(text(n), None), None));
        leg.withdraw();
        assert_eq!(leg.send(text(3), None), None);
        assert_eq!(poll_once(&mut leg, false).await, None);
        assert_eq!(peer.next().await.unwrap().unwrap().into_text().unwrap().as_str(), format!("{:0>100}", 3));
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_clogs_the_leg_once_and_reading_frees_it_once() {
        let (mut leg, mut peer) = leg(1_024).await;
        let mut changes = Vec::new();
        for n in 0..QUEUE_USUAL {
            let frame = Outgoing::Text("x".repeat(1_000));
            changes.extend(leg.send(frame, None).map(|change| (n, change)));
        }
        assert_eq!(changes, [(QUEUE_HIGH - 1, LegChange::Backpressured)]);
        assert_eq!(poll_once(&mut leg, false).await, None, "nothing flows yet");
        let reader = tokio::spawn(async move {
            for _ in 0..QUEUE_USUAL {
                peer.next().await.unwrap().unwrap();
            }
            peer
        });
        assert_eq!(next(&mut leg, false).await, Arrived::Changed(LegChange::Writable));
        assert!(leg.queue.len() < QUEUE_LOW);
        while !leg.queue.is_empty() || leg.flushing {
            assert_eq!(poll_once(&mut leg, false).await, None);
            tokio::task::yield_now().await;
        }
        drop(reader.await.unwrap());
    }

    #[tokio::test]
    async fn a_queue_that_is_not_emptied_ends_the_leg_instead_of_growing() {
        let (mut leg, _peer) = leg(1_024).await;
        let last = (0..=QUEUE_MAX).filter_map(|n| leg.send(text(n), None)).last();
        assert!(matches!(last, Some(LegChange::Lost { why }) if why.contains("overflow")));
        assert_eq!(leg.queue.len(), QUEUE_MAX);
    }

    #[tokio::test]
    async fn a_held_leg_still_writes_and_loses_nothing_it_did_not_read() {
        let (mut leg, mut peer) = leg(64 * 1024).await;
        peer.send(Message::text("one")).await.unwrap();
        leg.send(text(1), None);
        assert_eq!(poll_once(&mut leg, true).await, None);
        assert!(peer.next().await.unwrap().unwrap().is_text());
        assert_eq!(next(&mut leg, false).await, Arrived::Text("one".into()));
    }

    #[tokio::test]
    async fn the_answer_to_a_close_is_written_even_if_the_leg_is_dropped_at_once() {
        let (mut leg, mut peer) = leg(64 * 1024).await;
        peer.close(Some(CloseFrame { code: 1011.into(), reason: "oops".into() })).await.unwrap();
        let closed = LegChange::Closed { code: Some(1011), reason: "oops".into() };
        assert_eq!(next(&mut leg, false).await, Arrived::Changed(closed));
        drop(leg);
        assert!(matches!(peer.next().await, Some(Ok(Message::Close(_)))), "answered");
    }

    #[tokio::test]
    async fn an_oversized_message_and_a_vanished_peer_are_losses_with_words() {
        let (mut big, mut peer) = leg(64 * 1024).await;
        peer.send(Message::text("x".repeat(2_000))).await.unwrap();
        let Arrived::Changed(LegChange::Lost { why }) = next(&mut big, false).await else {
            panic!("too long")
        };
        assert!(why.contains("2000"), "{why}");

        let (mut cut, peer) = leg(64 * 1024).await;
        drop(peer);
        assert!(matches!(next(&mut cut, false).await, Arrived::Changed(LegChange::Lost { .. })));
    }

    #[tokio::test]
    async fn a_message_beyond_the_models_limit_is_a_loss_whole_or_in_pieces() {
        let head = |first: u8, len: usize| [&[first, 127], (len as u64).to_be_bytes().as_slice()].concat();
        let piece = |first| [head(first, 1 << 20), vec![b' '; 1 << 20]].concat();
        let in_pieces = [piece(0x01), piece(0x00).repeat(MODEL_MESSAGE_MAX >> 20)].concat();
        for frames in [head(0x81, MODEL_MESSAGE_MAX + 1), in_pieces] {
            let (here, mut there) = duplex(MODEL_MESSAGE_MAX * 2);
            let socket = WebSocketStream::from_raw_socket(here, Role::Client, Some(model_limits())).await;
            let mut leg = LegIo::new(socket);
            there.write_all(&frames).await.unwrap();
            let mut arrived = None;
            for _ in 0..10_000 {
                arrived = poll_once(&mut leg, false).await;
                if arrived.is_some() {
                    break;
                }
                tokio::task::yield_now().await; // the pipe lets others go first, now and then
            }
            let Some(Arrived::Changed(LegChange::Lost { why })) = arrived else { panic!("{arrived:?}") };
            assert!(why.contains(&MODEL_MESSAGE_MAX.to_string()), "{why}");
        }
    }

    #[tokio::test]
    async fn a_held_leg_notices_that_it_cannot_write() {
        let (mut leg, peer) = leg(64 * 1024).await;
        drop(peer);
        leg.send(text(1), None);
        assert!(matches!(next(&mut leg, true).await, Arrived::Changed(LegChange::Lost { .. })));
    }

    #[tokio::test]
    async fn pings_whose_pongs_are_not_read_end_the_leg_instead_of_filling_memory() {
        let (mut leg, mut peer) = leg(1_024).await;
        let mut pings = 0;
        let why = loop {
            peer.feed(Message::Ping(vec![b'p'; 125].into())).await.unwrap();
            peer.flush().await.unwrap();
            pings += 1;
            match next(&mut leg, false).await {
                Arrived::Ping => assert!(pings < 1_000, "pongs owed are not counted"),
                Arrived::Changed(LegChange::Lost { why }) => break why,
                other
                @ (Arrived::Text(_) | Arrived::Binary(_) | Arrived::StrayPong | Arrived::Changed(_)) => {
                    panic!("{other:?}")
                }
            }
        };
        assert!(why.contains("pings came and no pong was read"), "{why}");
        // What the pipe took is not owed.
        assert!((PONGS_OWED_MAX..PONGS_OWED_MAX + 20).contains(&pings), "{pings}");
    }

    #[tokio::test]
    async fn pings_whose_pongs_are_read_go_on_for_ever() {
        let (mut leg, mut peer) = leg(1_024).await;
        for _ in 0..10 * PONGS_OWED_MAX {
            peer.send(Message::Ping("p".into())).await.unwrap();
            assert_eq!(next(&mut leg, false).await, Arrived::Ping);
            assert_eq!(poll_once(&mut leg, false).await, None);
            assert_eq!(peer.next().await.unwrap().unwrap(), Message::Pong("p".into()));
        }
    }

    #[tokio::test]
    async fn pings_are_answered_and_pongs_reported() {
        let (mut leg, mut peer) = leg(64 * 1024).await;
        peer.send(Message::Ping("hi".into())).await.unwrap();
        assert_eq!(next(&mut leg, false).await, Arrived::Ping);
        assert_eq!(poll_once(&mut leg, false).await, None);
        assert_eq!(peer.next().await.unwrap().unwrap(), Message::Pong("hi".into()));
        leg.send(Outgoing::Ping, None);
        assert_eq!(poll_once(&mut leg, false).await, None);
        assert_eq!(peer.next().await.unwrap().unwrap(), Message::Ping(PING.into()));
        peer.flush().await.unwrap();
        assert_eq!(next(&mut leg, false).await, Arrived::Changed(LegChange::Pong));
    }
}
