//! One connection as two directions of bytes, each under the weather of its leg.
//!
//! What TCP promises holds: bytes arrive in order and once, or the connection ends. What it does not promise is up to
//! the weather: when they arrive, in which pieces, how many may be on their way, and how the end comes. Nothing here
//! runs by itself: when something arrives is settled as it is sent, and whoever reads or writes looks at the clock.

use super::Clock;
use crate::seed::Seed;
use crate::trace::Network;
use crate::weather::{LegWeather, WayWeather};
use bridge::call::Leg;
use mocks::peer::At;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore as _;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A time that never comes.
const NEVER: At = At(u64::MAX);
/// What a narrow line carries at once, bytes: a usual segment.
const SEGMENT: usize = 1_460;
/// Least size of the pieces in which a handshake arrives, bytes: a WebSocket library takes one that arrives in more
/// than 64 reads of less than 128 bytes each for an attack.
const HANDSHAKE_PIECE: u64 = 128;
/// Where the header of a handshake ends.
const HEADER_END: &[u8] = b"\r\n\r\n";

/// Which direction of a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Uplink,
    Downlink,
}

/// One direction of a connection.
struct Lane {
    clock: Clock,
    leg: Arc<LegWeather>,
    way: Way,
    /// Writes on their way or unread at the most.
    writes_max: usize,
    jitter: ChaCha8Rng,
    pieces: ChaCha8Rng,
    hesitation: ChaCha8Rng,
    /// Written and not read.
    bytes: VecDeque<u8>,
    /// How many of them arrive when.
    segments: VecDeque<(At, usize)>,
    /// What was written is all on its way then.
    line_free: At,
    /// When the last of it arrives; nothing overtakes it.
    behind: At,
    /// When the reader learns that nothing more will come.
    fin: Option<At>,
    /// When the reader learns that the writer is gone and takes nothing any more.
    reset: Option<At>,
    /// Nobody reads any more.
    reader_gone: bool,
    /// The weather has closed this direction: what its writer still says goes nowhere.
    half_closed: bool,
    /// The writer waits for room.
    blocked: bool,
    /// How much of [`HEADER_END`] was read; all of it when the handshake is over.
    header: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    seen: Arc<Mutex<Network>>,
}

impl Lane {
    fn weather(&self) -> &WayWeather {
        match self.way {
            Way::Uplink => &self.leg.uplink,
            Way::Downlink => &self.leg.downlink,
        }
    }

    fn seen(&self) -> MutexGuard<'_, Network> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something sent at `sent` arrives, behind all that was sent before.
    fn arrives(&mut self, sent: At) -> At {
        if sent == NEVER {
            return NEVER;
        }
        let at = self.leg.arrives(sent, self.jitter.next_u64(), self.behind).unwrap_or(NEVER);
        self.behind = at;
        at
    }

    /// How many bytes a read or a write may move now, of so many.
    fn piece(&mut self, of: usize) -> usize {
        let Some(most) = self.weather().pieces_bytes else { return of };
        let least = if self.header < HEADER_END.len() { HANDSHAKE_PIECE } else { 1 };
        let piece = usize::try_from(least.max(1 + self.pieces.next_u64() % most)).unwrap_or(of);
        if piece < of {
            self.seen().pieces += 1;
        }
        piece.min(of)
    }

    /// Whether whoever could go on is told to try again.
    fn hesitates(&mut self, cx: &Context<'_>) -> bool {
        let percent = self.weather().hesitates_percent;
        let hesitates = percent > 0 && self.hesitation.next_u64() % 100 < percent;
        if hesitates {
            self.seen().hesitations += 1;
            // Nothing else would.
            cx.waker().wake_by_ref();
        }
        hesitates
    }

    fn room(&self) -> usize {
        if self.segments.len() >= self.writes_max {
            return 0;
        }
        let window =
            self.weather().window_bytes.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        window.saturating_sub(self.bytes.len())
    }

    /// Puts bytes on the line. `back` is the other direction, which carries the answer when nobody reads.
    fn send(&mut self, bytes: &[u8], back: &mut Self) {
        let now = self.clock.now();
        let rate = self.weather().bytes_per_s;
        for part in bytes.chunks(if rate.is_some() { SEGMENT } else { usize::MAX }) {
            let begins = self.line_free.max(now);
            self.line_free = rate.map_or(begins, |rate| At(begins.0 + part.len() as u64 * 1_000_000 / rate));
            if rate.is_some() {
                let queued = self.line_free.since(now);
                let mut seen = self.seen();
                seen.queued_us = seen.queued_us.max(queued);
            }
            let at = self.arrives(self.line_free);
            if self.reader_gone {
                back.resets(at);
                continue;
            }
            if self.segments.is_empty()
                && let Some(reader) = self.reader.take()
            {
                reader.wake();
            }
            self.bytes.extend(part);
            self.segments.push_back((at, part.len()));
        }
    }

    /// Moves what has arrived by now into `buf`, in pieces.
    fn receive(&mut self, now: At, buf: &mut ReadBuf<'_>) {
        let arrived: usize = self.segments.iter().take_while(|(at, _)| *at <= now).map(|(_, len)| len).sum();
        let mut left = self.piece(arrived.min(buf.remaining()));
        let mut taken = 0;
        while left > 0
            && let Some((_, len)) = self.segments.front_mut()
        {
            let part = left.min(*len);
            *len -= part;
            (left, taken) = (left - part, taken + part);
            if *len == 0 {
                self.segments.pop_front();
            }
        }
        let (front, back) = self.bytes.as_slices();
        let of_front = taken.min(front.len());
        for bytes in [&front[..of_front], &back[..taken - of_front]] {
            buf.put_slice(bytes);
        }
        if self.header < HEADER_END.len() {
            self.follow_header(taken);
        }
        self.bytes.drain(..taken);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    /// Looks for the end of the handshake in the next `taken` bytes.
    fn follow_header(&mut self, taken: usize) {
        for byte in self.bytes.iter().take(taken) {
            self.header = if HEADER_END.get(self.header) == Some(byte) {
                self.header + 1
            } else {
                usize::from(*byte == HEADER_END[0])
            };
            if self.header == HEADER_END.len() {
                return;
            }
        }
    }

    /// Nothing more will be sent.
    fn close(&mut self) {
        if self.fin.is_none() {
            let sent = self.line_free.max(self.clock.now());
            self.fin = Some(self.arrives(sent));
            self.wake_reader();
        }
    }

    /// A reset is sent at this time, if at all.
    fn resets(&mut self, sent: At) {
        let at = self.arrives(sent);
        if at != NEVER && self.reset.is_none_or(|before| at < before) {
            self.reset = Some(at);
            self.wake_reader();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// Both directions.
struct Connection {
    /// What the bridge reads, then what it writes.
    lanes: [Lane; 2],
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Bridge,
    Far,
}

impl Connection {
    /// What this end reads, and what it writes.
    const fn of(&mut self, side: Side) -> (&mut Lane, &mut Lane) {
        let [to_bridge, to_far] = &mut self.lanes;
        match side {
            Side::Bridge => (to_bridge, to_far),
            Side::Far => (to_far, to_bridge),
        }
    }
}

/// A connection that is being made.
pub(super) struct Dialling {
    connection: Connection,
    dialler: Side,
}

/// Where a connection belongs.
pub(super) struct Place<'a> {
    pub(super) clock: Clock,
    pub(super) leg: Leg,
    pub(super) weather: Arc<LegWeather>,
    pub(super) writes_max: usize,
    pub(super) seed: Seed,
    /// Names its random streams.
    pub(super) label: &'a str,
    pub(super) seen: Arc<Mutex<Network>>,
}

impl Dialling {
    /// A connection of this leg. The caller's end dials the bridge, and the bridge the model.
    pub(super) fn new(place: &Place<'_>) -> Self {
        let (to_bridge, to_far, dialler) = match place.leg {
            Leg::Caller => (Way::Uplink, Way::Downlink, Side::Far),
            Leg::Model => (Way::Downlink, Way::Uplink, Side::Bridge),
        };
        let lane = |way| {
            let stream = |concern: &str| place.seed.stream(&format!("{}/{way:?}/{concern}", place.label));
            Lane {
                clock: place.clock.clone(),
                leg: place.weather.clone(),
                way,
                writes_max: place.writes_max,
                jitter: stream("jitter"),
                pieces: stream("pieces"),
                hesitation: stream("hesitation"),
                bytes: VecDeque::new(),
                segments: VecDeque::new(),
                line_free: At(0),
                behind: At(0),
                fin: None,
                reset: None,
                reader_gone: false,
                half_closed: false,
                blocked: false,
                header: 0,
                reader: None,
                writer: None,
                seen: place.seen.clone(),
            }
        };
        Self { connection: Connection { lanes: [lane(to_bridge), lane(to_far)] }, dialler }
    }

    /// When the connection is made: one way later. `None` when it never is.
    pub(super) fn made_at(&mut self) -> Option<At> {
        let (_reads, writes) = self.connection.of(self.dialler);
        let now = writes.clock.now();
        Some(writes.arrives(now)).filter(|at| *at != NEVER)
    }

    /// The bridge's end, and the far end.
    pub(super) fn made(self) -> (Pipe, Pipe) {
        let connection = Arc::new(Mutex::new(self.connection));
        let pipe = |side| Pipe {
            connection: connection.clone(),
            side,
            reading: Alarm::default(),
            writing: Alarm::default(),
        };
        (pipe(Side::Bridge), pipe(Side::Far))
    }
}

impl Pipe {
    /// Closes the direction in which this end writes, at its time, if the connection is still there. This end is not
    /// told, and goes on reading.
    pub(super) fn half_close(&self, at: At) -> impl Future<Output = ()> + Send + use<> {
        let (connection, side) = (Arc::downgrade(&self.connection), self.side);
        let clock = locked(&self.connection).of(side).0.clock.clone();
        async move {
            tokio::time::sleep_until(clock.instant(at)).await;
            if let Some(connection) = connection.upgrade() {
                let mut connection = locked(&connection);
                let (_reads, writes) = connection.of(side);
                writes.close();
                writes.half_closed = true;
                if let Some(writer) = writes.writer.take() {
                    writer.wake();
                }
            }
        }
    }
}

/// Wakes a task when something arrives.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Pending until `at`.
    fn poll(&mut self, at: At, clock: &Clock, cx: &mut Context<'_>) -> Poll<()> {
        if at == NEVER {
            return Poll::Pending;
        }
        let at = clock.instant(at);
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}

/// One end of a connection.
pub(super) struct Pipe {
    connection: Arc<Mutex<Connection>>,
    side: Side,
    reading: Alarm,
    writing: Alarm,
}

fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { connection, side, reading, .. } = self.get_mut();
        let mut connection = locked(connection);
        let (reads, writes) = connection.of(*side);
        loop {
            let now = reads.clock.now();
            let arrives = reads.segments.front().map_or(NEVER, |(at, _)| *at);
            let fin = reads.fin.unwrap_or(NEVER);
            if arrives <= now {
                if reads.hesitates(cx) {
                    return Poll::Pending;
                }
                reads.receive(now, buf);
                if writes.half_closed {
                    reads.seen().heard_half_closed += buf.filled().len() as u64;
                }
                return Poll::Ready(Ok(()));
            }
            if reads.reset.is_some_and(|at| at <= now) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if fin <= now {
                return Poll::Ready(Ok(()));
            }
            reads.reader = Some(cx.waker().clone());
            let next = arrives.min(fin).min(reads.reset.unwrap_or(NEVER));
            if reading.poll(next, &reads.clock, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { connection, side, writing, .. } = self.get_mut();
        let mut connection = locked(connection);
        let (reads, writes) = connection.of(*side);
        loop {
            let now = writes.clock.now();
            if reads.reset.is_some_and(|at| at <= now) {
                if std::mem::take(&mut writes.blocked) {
                    writes.seen().resets_of_blocked += 1;
                }
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            if writes.half_closed {
                return Poll::Ready(Ok(buf.len()));
            }
            if writes.fin.is_some() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let room = writes.room().min(buf.len());
            if room == 0 && !buf.is_empty() {
                if !std::mem::replace(&mut writes.blocked, true) {
                    writes.seen().blocked += 1;
                }
                writes.writer = Some(cx.waker().clone());
                let next = reads.reset.unwrap_or(NEVER);
                if writing.poll(next, &writes.clock, cx).is_pending() {
                    return Poll::Pending;
                }
                continue;
            }
            if writes.hesitates(cx) {
                return Poll::Pending;
            }
            writes.blocked = false;
            let taken = writes.piece(room);
            writes.send(&buf[..taken], reads);
            return Poll::Ready(Ok(taken));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut connection = locked(&self.connection);
        let (_reads, writes) = connection.of(self.side);
        writes.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    /// What was written still arrives; what was not read, or comes after this, is answered with a reset.
    fn drop(&mut self) {
        let mut connection = locked(&self.connection);
        let (reads, writes) = connection.of(self.side);
        let now = reads.clock.now();
        writes.close();
        if let Some((first, _)) = reads.segments.front() {
            writes.resets((*first).max(now));
        }
        reads.reader_gone = true;
        reads.bytes.clear();
        reads.segments.clear();
        reads.reader = None;
        if let Some(writer) = reads.writer.take() {
            writer.wake();
        }
    }
}
