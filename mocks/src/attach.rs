//! Runs a pure mock over a real WebSocket, whatever the bytes travel through.
//!
//! The mock never waits for the network: what it wants sent lies in a queue of its own here, so a bridge that
//! does not read cannot stop the clock of a caller or a model. Timers come first and are never early.
//!
//! One thing a WebSocket library takes out of our hands: tungstenite answers pings itself. A mock that answers
//! them, too, is not heard twice; for a mock that does not, the automatic pong is replaced by an unsolicited one
//! that answers nothing.

use crate::peer::{At, Frame, Out, Peer};
use futures_util::{Sink as _, Stream as _};
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message, error::ProtocolError};

/// How long the last frames of a finished mock may take to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// Plays `peer` over `socket` until it is finished or the connection has ended, and hands it back.
///
/// `clock` tells scenario time; it must run with tokio's clock. A connection that ends without a close frame is
/// told to the mock as [`Peer::gone`]. The socket is dropped on return.
pub async fn attach<S, P, C>(socket: WebSocketStream<S>, mut peer: P, clock: C) -> P
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: Peer,
    C: Fn() -> At,
{
    // The answer to the upgrade may still be on its way.
    let mut wire = Wire { socket, queue: VecDeque::new(), flushed: false, reading: true, broken: None };
    let mut sleep = pin!(None);
    let mut sleeps_until = None;
    peer.opened(clock());
    loop {
        match wire.take(&mut peer, None) {
            Next::Run => {}
            Next::Drop => {
                // What was sent before the drop left this end; whether it arrives is the network's affair.
                std::future::poll_fn(|cx| Poll::Ready(wire.poll_write(cx).is_ready())).await;
                return peer;
            }
        }
        if peer.is_finished() {
            // A bridge that does not read would keep us here for ever.
            let flush = std::future::poll_fn(|cx| wire.poll_write(cx));
            let _in_time = tokio::time::timeout(GOODBYE, flush).await;
            return peer;
        }
        let due = peer.poll_timeout();
        if let Some(at) = due
            && at <= clock()
        {
            peer.handle_timeout(clock());
            continue;
        }
        if due != sleeps_until {
            sleeps_until = due;
            sleep.set(due.map(|at| tokio::time::sleep(Duration::from_micros(at.since(clock())))));
        }
        let heard = std::future::poll_fn(|cx| {
            if let Some(timer) = sleep.as_mut().as_pin_mut()
                && timer.poll(cx).is_ready()
            {
                return Poll::Ready(Heard::Timer);
            }
            if let Poll::Ready(Err(error)) = wire.poll_write(cx) {
                wire.broken = Some(error.to_string());
            }
            wire.poll_read(cx)
        })
        .await;
        match heard {
            // The time is checked above; a timer that was early by a rounding is simply set again.
            Heard::Timer => {
                sleeps_until = None;
                sleep.set(None);
            }
            Heard::Message(message) => {
                let ping = match &message {
                    Message::Ping(payload) => Some(payload.to_vec()),
                    Message::Text(_)
                    | Message::Binary(_)
                    | Message::Pong(_)
                    | Message::Close(_)
                    | Message::Frame(_) => None,
                };
                if let Some(frame) = frame(message) {
                    peer.handle(frame, clock());
                }
                if let Next::Drop = wire.take(&mut peer, ping) {
                    std::future::poll_fn(|cx| Poll::Ready(wire.poll_write(cx).is_ready())).await;
                    return peer;
                }
            }
            Heard::Ended(why) => {
                peer.gone(&why, clock());
                return peer;
            }
        }
    }
}

/// What happened.
enum Heard {
    Timer,
    Message(Message),
    Ended(String),
}

/// What to do after the mock was asked.
enum Next {
    Run,
    Drop,
}

/// The socket with what waits to be sent.
struct Wire<S> {
    socket: WebSocketStream<S>,
    queue: VecDeque<Message>,
    flushed: bool,
    reading: bool,
    /// Writing has failed; what is left to read may still tell why.
    broken: Option<String>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// Takes over what the mock wants done. `ping` is the ping it was just given, if it was one.
    fn take<P: Peer>(&mut self, peer: &mut P, ping: Option<Vec<u8>>) -> Next {
        let mut unanswered = ping;
        while let Some(out) = peer.poll_transmit() {
            match out {
                Out::Frame(Frame::Pong(payload)) if unanswered.as_ref() == Some(&payload) => {
                    unanswered = None
                }
                Out::Frame(frame) => self.queue.push_back(message(frame)),
                Out::Drop => return Next::Drop,
                Out::PauseReading => self.reading = false,
                Out::ResumeReading => self.reading = true,
            }
        }
        if unanswered.is_some() {
            // A failure shows again at the next write, where it is dealt with.
            let _replaced = Pin::new(&mut self.socket).start_send(Message::Pong(Vec::new().into()));
            self.flushed = false;
        }
        Next::Run
    }

    /// Sends as much of the queue as the network takes. Ready when all of it has left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(()));
        }
        while !self.queue.is_empty() {
            ready!(Pin::new(&mut self.socket).poll_ready(cx))?;
            let Some(message) = self.queue.pop_front() else { break };
            self.flushed = false;
            match Pin::new(&mut self.socket).start_send(message) {
                Ok(()) => {}
                Err(Error::WriteBufferFull(message)) => {
                    self.queue.push_front(*message);
                    ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
                }
                // The close frame of the other end crossed what was on its way.
                Err(Error::Protocol(ProtocolError::SendAfterClosing)) => {}
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => self.queue.clear(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.flushed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// The next message, or the end; nothing while the mock does not read, unless writing has failed.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Heard> {
        if !self.reading {
            return match &self.broken {
                Some(why) => Poll::Ready(Heard::Ended(why.clone())),
                None => Poll::Pending,
            };
        }
        match Pin::new(&mut self.socket).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => {
                // Reading a ping or a close queues its answer inside the library.
                self.flushed &= !(message.is_ping() || message.is_close());
                Poll::Ready(Heard::Message(message))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Heard::Ended(error.to_string())),
            Poll::Ready(None) => Poll::Ready(Heard::Ended("the connection ended".into())),
            Poll::Pending => match &self.broken {
                Some(why) => Poll::Ready(Heard::Ended(why.clone())),
                None => Poll::Pending,
            },
        }
    }
}

fn frame(message: Message) -> Option<Frame> {
    match message {
        Message::Text(text) => Some(Frame::Text(text.as_str().to_owned())),
        Message::Binary(bytes) => Some(Frame::Binary(bytes.to_vec())),
        Message::Ping(payload) => Some(Frame::Ping(payload.to_vec())),
        Message::Pong(payload) => Some(Frame::Pong(payload.to_vec())),
        Message::Close(close) => {
            Some(Frame::Close(close.map(|close| (close.code.into(), close.reason.as_str().to_owned()))))
        }
        // Raw frames are something one can send, never something one reads.
        Message::Frame(_) => None,
    }
}

fn message(frame: Frame) -> Message {
    match frame {
        Frame::Text(text) => Message::Text(text.into()),
        Frame::Binary(bytes) => Message::Binary(bytes.into()),
        Frame::Ping(payload) => Message::Ping(payload.into()),
        Frame::Pong(payload) => Message::Pong(payload.into()),
        Frame::Close(close) => Message::Close(
            close.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() }),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    /// Says `hello` after 5 ms and every 5 ms; notes what it is told.
    #[derive(Default)]
    struct Clockwork {
        outs: VecDeque<Out>,
        due: Option<At>,
        early: bool,
        ticks: u32,
        heard: Vec<Frame>,
        gone: Option<String>,
        over: bool,
        plan: Vec<(u32, Out)>,
        pongs: bool,
    }

    impl Peer for Clockwork {
        fn opened(&mut self, now: At) {
            self.due = Some(now.plus_ms(5));
        }

        fn handle(&mut self, frame: Frame, _now: At) {
            match &frame {
                Frame::Ping(payload) if self.pongs => {
                    self.outs.push_back(Out::Frame(Frame::Pong(payload.clone())));
                }
                Frame::Close(_) => {
                    self.outs.push_back(Out::Frame(Frame::Close(None)));
                    self.over = true;
                }
                Frame::Ping(_) | Frame::Text(_) | Frame::Binary(_) | Frame::Pong(_) => {}
            }
            self.heard.push(frame);
        }

        fn gone(&mut self, why: &str, _now: At) {
            self.gone = Some(why.to_owned());
            self.over = true;
        }

        fn handle_timeout(&mut self, now: At) {
            self.early |= self.due.is_none_or(|due| now < due);
            self.due = Some(now.plus_ms(5));
            self.ticks += 1;
            self.outs.push_back(Out::Frame(Frame::Text("hello".into())));
            let ticks = self.ticks;
            self.outs.extend(self.plan.iter().filter(|(at, _)| *at == ticks).map(|(_, out)| out.clone()));
        }

        fn poll_transmit(&mut self) -> Option<Out> {
            self.outs.pop_front()
        }

        fn poll_timeout(&self) -> Option<At> {
            self.due
        }

        fn is_finished(&self) -> bool {
            self.over && self.outs.is_empty()
        }
    }

    async fn pair(buffer: usize) -> (WebSocketStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(buffer);
        (
            WebSocketStream::from_raw_socket(near, Role::Client, None).await,
            WebSocketStream::from_raw_socket(far, Role::Server, None).await,
        )
    }

    #[expect(clippy::disallowed_methods, reason = "a test of real time needs a real clock")]
    fn clock() -> impl Fn() -> At {
        let began = tokio::time::Instant::now();
        move || At(began.elapsed().as_micros() as u64)
    }

    async fn next(socket: &mut WebSocketStream<DuplexStream>) -> Option<Result<Message, Error>> {
        std::future::poll_fn(|cx| Pin::new(&mut *socket).poll_next(cx)).await
    }

    async fn send(socket: &mut WebSocketStream<DuplexStream>, message: Message) {
        Pin::new(&mut *socket).start_send(message).unwrap();
        std::future::poll_fn(|cx| Pin::new(&mut *socket).poll_flush(cx)).await.unwrap();
    }

    #[tokio::test]
    async fn frames_travel_both_ways_and_no_timer_is_early() {
        let (near, mut far) = pair(65_536).await;
        let running = tokio::spawn(attach(near, Clockwork::default(), clock()));
        send(&mut far, Message::Text("a".into())).await;
        send(&mut far, Message::Binary(vec![1, 2].into())).await;
        for _ in 0..3 {
            assert_eq!(next(&mut far).await.unwrap().unwrap(), Message::Text("hello".into()));
        }
        send(&mut far, Message::Close(Some(CloseFrame { code: 1008.into(), reason: "no".into() }))).await;
        let peer = running.await.unwrap();
        assert_eq!(
            peer.heard,
            [Frame::Text("a".into()), Frame::Binary(vec![1, 2]), Frame::Close(Some((1008, "no".into())))]
        );
        assert!(peer.ticks >= 3 && !peer.early && peer.gone.is_none());
    }

    #[tokio::test]
    async fn the_other_end_gets_its_close_answered() {
        let (near, mut far) = pair(65_536).await;
        let running = tokio::spawn(attach(near, Clockwork::default(), clock()));
        send(&mut far, Message::Close(None)).await;
        let mut last = None;
        while let Some(Ok(message)) = next(&mut far).await {
            last = Some(message);
        }
        assert!(matches!(last, Some(Message::Close(_))), "{last:?}");
        assert!(running.await.unwrap().gone.is_none());
    }

    #[tokio::test]
    async fn an_end_without_a_close_frame_is_told() {
        let (near, far) = pair(65_536).await;
        drop(far);
        let peer = attach(near, Clockwork::default(), clock()).await;
        assert!(peer.gone.is_some() && peer.heard.is_empty());
    }

    #[tokio::test]
    async fn a_drop_ends_the_connection_without_a_close_frame() {
        let (near, mut far) = pair(65_536).await;
        let peer = Clockwork { plan: vec![(2, Out::Drop)], ..Clockwork::default() };
        let peer = attach(near, peer, clock()).await;
        assert_eq!(peer.ticks, 2);
        let mut texts = 0;
        loop {
            match next(&mut far).await {
                Some(Ok(Message::Text(_))) => texts += 1,
                Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(texts, 2, "what was sent before the drop arrives");
    }

    #[tokio::test]
    async fn an_end_that_does_not_read_cannot_stop_the_clock() {
        let (near, far) = pair(64).await;
        let peer = Clockwork { plan: vec![(60, Out::Drop)], ..Clockwork::default() };
        let peer = attach(near, peer, clock()).await;
        assert_eq!(peer.ticks, 60, "sixty texts do not fit in 64 bytes");
        drop(far);
    }

    #[tokio::test]
    async fn nothing_is_read_while_reading_is_paused() {
        let (near, mut far) = pair(65_536).await;
        let plan = vec![(1, Out::PauseReading), (20, Out::ResumeReading)];
        let peer = Clockwork { plan, ..Clockwork::default() };
        let running = tokio::spawn(attach(near, peer, clock()));
        next(&mut far).await.unwrap().unwrap();
        send(&mut far, Message::Ping(b"p".to_vec().into())).await;
        let mut before = 1;
        loop {
            let message = next(&mut far).await.unwrap().unwrap();
            if message.is_pong() {
                break;
            }
            assert!(message.is_text(), "{message:?}");
            before += 1;
        }
        assert!(before >= 20, "the pong came after {before} texts");
        send(&mut far, Message::Close(None)).await;
        running.await.unwrap();
    }

    #[tokio::test]
    async fn a_ping_is_answered_once_or_not_at_all() {
        for (pongs, expected) in [(true, b"abc".to_vec()), (false, Vec::new())] {
            let (near, mut far) = pair(65_536).await;
            let peer = Clockwork { pongs, ..Clockwork::default() };
            let running = tokio::spawn(attach(near, peer, clock()));
            send(&mut far, Message::Ping(b"abc".to_vec().into())).await;
            send(&mut far, Message::Text("after".into())).await;
            let mut pongs = Vec::new();
            for _ in 0..4 {
                let message = next(&mut far).await.unwrap().unwrap();
                if message.is_pong() {
                    pongs.push(message.into_data().to_vec());
                }
            }
            assert_eq!(pongs, [expected]);
            send(&mut far, Message::Close(None)).await;
            running.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_arrives_together_with_the_handshake_is_not_lost() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, mut far) = tokio::io::duplex(65_536);
        let server = tokio::spawn(async move {
            let mut request = vec![0; 4_096];
            let len = far.read(&mut request).await.unwrap();
            let request = String::from_utf8(request[..len].to_vec()).unwrap();
            let key = request.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let mut answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .into_bytes();
            answer.extend([0x81, 5, b'e', b'a', b'r', b'l', b'y', 0x88, 0]);
            far.write_all(&answer).await.unwrap();
            far
        });
        let (near, _response) = tokio_tungstenite::client_async("ws://bridge/twilio", near).await.unwrap();
        let peer = attach(near, Clockwork::default(), clock()).await;
        assert_eq!(peer.heard, [Frame::Text("early".into()), Frame::Close(None)]);
        drop(server.await.unwrap());
    }

    #[tokio::test]
    async fn a_broken_frame_is_told_as_the_end() {
        let (near, mut far) = tokio::io::duplex(1_024);
        let near = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        // A masked frame from a server is forbidden.
        tokio::io::AsyncWriteExt::write_all(&mut far, &[0x81, 0x81, 0, 0, 0, 0, b'x']).await.unwrap();
        let peer = attach(near, Clockwork::default(), clock()).await;
        assert!(peer.gone.unwrap().to_lowercase().contains("mask"));
    }
}
