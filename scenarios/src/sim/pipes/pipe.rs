//! One connection as two directions of bytes, each under the conditions of its leg.
//!
//! What TCP promises holds: bytes arrive in order and once, or the connection ends. What it does not promise is up to
//! the network: when they arrive, in which pieces, how many may be on their way, and how the end comes. Nothing here
//! runs by itself: when something arrives is settled as it is sent, and a reader or a writer looks at the clock.

use super::clock::Clock;
use crate::model::network::{DirectionConditions, LegConditions};
use crate::model::seed::Seed;
use crate::sim::trace::Network;
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
    leg: Arc<LegConditions>,
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
    /// The reader reads no more.
    reader_gone: bool,
    /// The network has closed this direction: what its writer still says goes nowhere.
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
    fn conditions(&self) -> &DirectionConditions {
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
        let Some(most) = self.conditions().pieces_bytes else { return of };
        let least = if self.header < HEADER_END.len() { HANDSHAKE_PIECE } else { 1 };
        let piece = usize::try_from(least.max(1 + self.pieces.next_u64() % most)).unwrap_or(of);
        if piece < of {
            self.seen().pieces += 1;
        }
        piece.min(of)
    }

    /// Whether a task that could go on is told to try again.
    fn hesitates(&mut self, cx: &Context<'_>) -> bool {
        let percent = self.conditions().hesitates_percent;
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
        let window = self
            .conditions()
            .window_bytes
            .map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        window.saturating_sub(self.bytes.len())
    }

    /// Puts bytes on the line. `back` is the other direction, which carries the answer when no reader is left.
    fn send(&mut self, bytes: &[u8], back: &mut Self) {
        let now = self.clock.now();
        let rate = self.conditions().bytes_per_s;
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
    pub(super) conditions: Arc<LegConditions>,
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
                leg: place.conditions.clone(),
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
        // What was not read keeps its room: the writer knows of nothing until the reset has arrived.
        reads.reader_gone = true;
        reads.reader = None;
        // So that it waits for the reset, and not for room that never comes.
        if let Some(writer) = reads.writer.take() {
            writer.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Runs a test on a clock that jumps; a task that waits for ever fails after a day of it.
    fn in_time(test: impl Future<Output = ()>) {
        let day = std::time::Duration::from_secs(86_400);
        let runtime = super::super::runtime(Seed(7));
        let ended = runtime.block_on(async { tokio::time::timeout(day, test).await });
        assert!(ended.is_ok(), "a task waits for ever");
    }

    /// A connection on the caller's leg, and what its network did.
    struct Bench {
        clock: Clock,
        bridge: Pipe,
        far: Pipe,
        seen: Arc<Mutex<Network>>,
    }

    async fn connect(conditions: LegConditions, writes_max: usize) -> Bench {
        let clock = Clock::start();
        let seen = Arc::new(Mutex::new(Network::default()));
        let mut dialling = Dialling::new(&Place {
            clock: clock.clone(),
            leg: Leg::Caller,
            conditions: Arc::new(conditions),
            writes_max,
            seed: Seed(7),
            label: "test",
            seen: seen.clone(),
        });
        tokio::time::sleep_until(clock.instant(dialling.made_at().unwrap())).await;
        let (bridge, far) = dialling.made();
        Bench { clock, bridge, far, seen }
    }

    fn downlink(downlink: DirectionConditions) -> LegConditions {
        LegConditions { downlink, ..LegConditions::ideal(20) }
    }

    async fn read(pipe: &mut Pipe) -> io::Result<usize> {
        pipe.read(&mut [0; 4_096]).await
    }

    /// Whether a write is taken now.
    async fn taken_at_once(pipe: &mut Pipe, bytes: &[u8]) -> Option<usize> {
        let write = std::future::poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut *pipe).poll_write(cx, bytes) {
                Poll::Ready(taken) => Some(taken.unwrap()),
                Poll::Pending => None,
            })
        });
        write.await
    }

    #[test]
    fn a_connection_and_each_message_take_one_way() {
        in_time(async {
            let Bench { clock, mut bridge, mut far, .. } = connect(LegConditions::ideal(20), 100).await;
            assert_eq!(clock.now(), At::ms(20));
            far.write_all(b"one").await.unwrap();
            far.write_all(b"two").await.unwrap();
            let mut heard = [0; 6];
            bridge.read_exact(&mut heard).await.unwrap();
            assert_eq!((&heard, clock.now()), (b"onetwo", At::ms(40)));
            bridge.write_all(b"back").await.unwrap();
            assert_eq!((read(&mut far).await.unwrap(), clock.now()), (4, At::ms(60)));
        });
    }

    #[test]
    fn bytes_stay_in_order_under_jitter_stalls_and_pieces() {
        in_time(async {
            let stalls = vec![crate::model::network::Stall { at_ms: 100, for_ms: 300 }];
            let way = DirectionConditions {
                pieces_bytes: Some(7),
                hesitates_percent: 50,
                ..DirectionConditions::IDEAL
            };
            let conditions = LegConditions { jitter_ms: 40, stalls, ..downlink(way) };
            let Bench { mut bridge, mut far, seen, .. } = connect(conditions, 10_000).await;
            let said: Vec<u8> = (0..5_000_u32).flat_map(u32::to_be_bytes).collect();
            let words = said.clone();
            tokio::spawn(async move {
                for part in words.chunks(100) {
                    bridge.write_all(part).await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            });
            let mut heard = Vec::new();
            far.read_to_end(&mut heard).await.unwrap();
            assert!(heard == said, "{} bytes of {}", heard.len(), said.len());
            let seen = seen.lock().unwrap();
            assert!(seen.pieces > 100 && seen.hesitations > 100, "{seen}");
        });
    }

    #[test]
    fn pieces_are_small_once_the_handshake_is_over_and_not_before() {
        in_time(async {
            let way = DirectionConditions { pieces_bytes: Some(5), ..DirectionConditions::IDEAL };
            let Bench { mut bridge, mut far, .. } = connect(downlink(way), 10_000).await;
            let header = format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", "A: b\r\n".repeat(60));
            bridge.write_all(header.as_bytes()).await.unwrap();
            let mut left = header.len();
            while left > 0 {
                let read = read(&mut far).await.unwrap();
                assert!(read >= left.min(128), "{read} of {left}");
                left -= read;
            }
            bridge.write_all(&[1; 300]).await.unwrap();
            let mut left = 300;
            while left > 0 {
                let read = read(&mut far).await.unwrap();
                assert!((1..=5).contains(&read), "{read}");
                left -= read;
            }
        });
    }

    #[test]
    fn a_task_that_hesitates_wakes_itself() {
        in_time(async {
            let way = DirectionConditions { hesitates_percent: 90, ..DirectionConditions::IDEAL };
            let Bench { clock, mut bridge, mut far, seen } = connect(downlink(way), 10_000).await;
            for _ in 0..100 {
                bridge.write_all(b"x").await.unwrap();
                assert_eq!(read(&mut far).await.unwrap(), 1);
            }
            assert!(seen.lock().unwrap().hesitations > 1_000);
            assert_eq!(clock.now(), At::ms(20 + 100 * 20), "it takes no time");
        });
    }

    #[test]
    fn a_narrow_line_passes_bytes_one_after_another() {
        in_time(async {
            let way = DirectionConditions {
                bytes_per_s: Some(14_600),
                window_bytes: Some(100_000),
                ..DirectionConditions::IDEAL
            };
            let Bench { clock, mut bridge, mut far, seen } = connect(downlink(way), 10_000).await;
            bridge.write_all(&[0; 4 * SEGMENT]).await.unwrap();
            for n in 1..=4 {
                assert_eq!((read(&mut far).await.unwrap(), clock.now()), (SEGMENT, At::ms(40 + n * 100)));
            }
            assert_eq!(seen.lock().unwrap().queued_us, 400_000);
            far.write_all(&[0; 4 * SEGMENT]).await.unwrap();
            assert_eq!(
                (read(&mut bridge).await.unwrap(), clock.now()),
                (4_096, At::ms(460)),
                "the other way is wide"
            );
        });
    }

    #[test]
    fn a_full_window_blocks_the_writer_until_the_reader_reads() {
        in_time(async {
            let way = DirectionConditions { window_bytes: Some(1_000), ..DirectionConditions::IDEAL };
            let Bench { clock, mut bridge, mut far, seen } = connect(downlink(way), 10_000).await;
            assert_eq!(
                taken_at_once(&mut bridge, &[0; 1_500]).await,
                Some(1_000),
                "as much as there is room for"
            );
            assert_eq!(taken_at_once(&mut bridge, &[0; 500]).await, None);
            let reader = tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(700)).await;
                read(&mut far).await.unwrap();
                far
            });
            bridge.write_all(&[0; 500]).await.unwrap();
            assert_eq!((clock.now(), seen.lock().unwrap().blocked), (At::ms(720), 1));
            drop(reader.await.unwrap());
        });
    }

    #[test]
    fn a_connection_holds_only_so_many_messages() {
        in_time(async {
            let Bench { mut bridge, mut far, .. } = connect(LegConditions::ideal(20), 2).await;
            for taken in [Some(1), Some(1), None] {
                assert_eq!(taken_at_once(&mut bridge, b"x").await, taken);
            }
            assert_eq!(read(&mut far).await.unwrap(), 2, "what has arrived is read together");
            assert_eq!(taken_at_once(&mut bridge, b"x").await, Some(1));
        });
    }

    #[test]
    fn a_reset_wakes_a_writer_who_waits_for_room() {
        in_time(async {
            let way = DirectionConditions { window_bytes: Some(100), ..DirectionConditions::IDEAL };
            let Bench { clock, mut bridge, far, seen } = connect(downlink(way), 10_000).await;
            bridge.write_all(&[0; 100]).await.unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                drop(far);
            });
            let failed = bridge.write_all(b"more").await.unwrap_err();
            assert_eq!(
                (failed.kind(), clock.now()),
                (io::ErrorKind::BrokenPipe, At::ms(540)),
                "one way after the drop"
            );
            assert_eq!(seen.lock().unwrap().resets_of_blocked, 1);
            let failed = read(&mut bridge).await.unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn an_end_that_has_read_everything_goes_with_an_end_of_file() {
        in_time(async {
            let Bench { clock, mut bridge, mut far, .. } = connect(LegConditions::ideal(20), 100).await;
            bridge.write_all(b"bye").await.unwrap();
            read(&mut far).await.unwrap();
            far.write_all(b"bye").await.unwrap();
            drop(far);
            assert_eq!(read(&mut bridge).await.unwrap(), 3, "what was written before still arrives");
            assert_eq!((read(&mut bridge).await.unwrap(), clock.now()), (0, At::ms(60)));
            bridge.write_all(b"is it read yet").await.unwrap();
            let failed = read_again(&mut bridge).await;
            assert_eq!(
                (failed.kind(), clock.now()),
                (io::ErrorKind::ConnectionReset, At::ms(100)),
                "there and back"
            );
        });
    }

    /// Reads ends of file until the reset behind them has come.
    async fn read_again(pipe: &mut Pipe) -> io::Error {
        loop {
            match read(pipe).await {
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
                Err(error) => return error,
            }
        }
    }

    #[test]
    fn a_half_that_is_closed_leaves_the_other_open() {
        in_time(async {
            let Bench { clock, mut bridge, mut far, seen } = connect(LegConditions::ideal(20), 100).await;
            far.write_all(b"last words").await.unwrap();
            tokio::spawn(far.half_close(At::ms(100)));
            tokio::time::sleep(std::time::Duration::from_millis(90)).await;
            far.write_all(b"said into the void").await.unwrap();
            assert_eq!(read(&mut bridge).await.unwrap(), 10);
            assert_eq!((read(&mut bridge).await.unwrap(), clock.now()), (0, At::ms(120)));
            bridge.write_all(b"still heard").await.unwrap();
            assert_eq!(read(&mut far).await.unwrap(), 11);
            assert_eq!(seen.lock().unwrap().heard_half_closed, 11);
        });
    }

    #[test]
    fn nothing_arrives_in_the_dark_not_even_the_end() {
        in_time(async {
            let conditions = LegConditions { blackhole_at_ms: Some(100), ..LegConditions::ideal(20) };
            let Bench { mut bridge, mut far, .. } = connect(conditions, 100).await;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            far.write_all(b"hello?").await.unwrap();
            drop(far);
            let hour = std::time::Duration::from_secs(3_600);
            assert!(tokio::time::timeout(hour, read(&mut bridge)).await.is_err());
        });
    }
}
