//! Connections that are no calls (yet): how many there may be, how long each may take for what, and who gives way.
//!
//! All listeners of the process are served here: Twilio's, the live page's and the one of the figures. Every connection
//! is accepted, for a queue of waiting clients cannot be told from a dead bridge. When there are too many, the one that
//! has sent nothing for longest is closed instead. A connection that became a WebSocket is a call's, and no longer
//! counted here.
//!
//! | what is bounded | by |
//! |---|---|
//! | connections of a listener, and of one public address | `Limits`; the oldest idle one gives way |
//! | a TLS handshake | `HANDSHAKE` |
//! | a request's header: time, and bytes with the line before it | `HEADER_TIMEOUT`, `HEADER_MAX` |
//! | an answer that the other side does not take | `WRITE_TIMEOUT` |
//! | a connection's life, and its idle time between two requests | `LIFE`, `HEADER_TIMEOUT` |

use crate::base::clock;
use crate::net::http_client::is_public;
use crate::server::stats::Stats;
use axum::Router;
use axum::http::StatusCode;
use axum::serve::Listener;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;

/// How long the header of a request may take, and how long a connection may stay idle between two.
pub(crate) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest header of a request with the line before it, bytes; Twilio's have one or two thousand.
pub(crate) const HEADER_MAX: usize = 16 * 1024;
/// Longest TLS handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long an answer may wait for the other side to take the whole of it.
pub(crate) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be used for one request after the other. What it is at then is finished.
pub(crate) const LIFE: Duration = Duration::from_secs(300);
/// Connections that were closed and whose tasks have yet to hear of it: none is taken while there are more. Their
/// descriptors are among those that the process holds for itself.
const LEAVING_MAX: usize = 8;
/// How long to wait when a connection cannot be taken: for want of descriptors, mostly.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How many connections that are no calls (yet) there may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// At once. When one more comes, the one that has said nothing for longest is closed.
    pub max: usize,
    /// Of them, from one public address (of IPv6: one network of 64 bits). The oldest idle one of the address gives way.
    /// Addresses of private networks have no such limit: a proxy's, mostly.
    pub per_peer: usize,
    /// Public addresses that many callers share, such as a proxy's: they have no such limit, either.
    pub shared_peers: Vec<IpAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max: 1_024, per_peer: 64, shared_peers: Vec::new() }
    }
}

impl Settings {
    /// What is wrong with them.
    pub(crate) fn check(&self, refuse: &mut impl FnMut(String)) {
        for (name, value) in [("connections.max", self.max), ("connections.per_peer", self.per_peer)] {
            if !(8..=1_000_000).contains(&value) {
                refuse(format!("{name} = {value}: between 8 and 1000000"));
            }
        }
    }
}

/// How many connections a listener may have.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) most: usize,
    pub(crate) per_peer: usize,
    pub(crate) shared_peers: Vec<IpAddr>,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        let Settings { max, per_peer, shared_peers } = settings.clone();
        Self { most: max, per_peer, shared_peers }
    }
}

impl Limits {
    /// For a listener that is the operator's own.
    pub(crate) const fn of(most: usize) -> Self {
        Self { most, per_peer: most, shared_peers: Vec::new() }
    }

    /// Whose share a connection from this address takes; `None` when it counts for no single peer.
    fn peer(&self, from: Option<IpAddr>) -> Option<IpAddr> {
        let from = from?.to_canonical();
        if !is_public(from) || self.shared_peers.iter().any(|shared| shared.to_canonical() == from) {
            return None;
        }
        Some(match from {
            IpAddr::V4(_) => from,
            // What one subscriber has, at the least.
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        })
    }
}

/// Where a connection comes from, as far as its listener knows.
pub trait Peer {
    /// Its address.
    fn ip(&self) -> Option<IpAddr>;
}

impl Peer for SocketAddr {
    fn ip(&self) -> Option<IpAddr> {
        Some(Self::ip(self))
    }
}

/// A pipe comes from nowhere.
impl Peer for () {
    fn ip(&self) -> Option<IpAddr> {
        None
    }
}

/// A TCP listener that waits a moment when a connection cannot be taken, and says so.
pub struct Tcp {
    listener: TcpListener,
    stats: Stats,
}

impl Tcp {
    /// Counts in `stats` what goes wrong.
    pub const fn new(listener: TcpListener, stats: Stats) -> Self {
        Self { listener, stats }
    }
}

impl Listener for Tcp {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((tcp, from)) => {
                    // Frames are small and due now.
                    if let Err(error) = tcp.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    return (tcp, from);
                }
                // It was there and has gone again: nothing of ours.
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    let counts = self.stats.connections();
                    counts.unaccepted.fetch_add(1, SeqCst);
                    if let Some(left_out) = counts.unaccepted_line.may() {
                        tracing::error!(%error, left_out, "a connection cannot be taken");
                    }
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

fn is_of_the_connection(error: &io::Error) -> bool {
    let kind = error.kind();
    [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted]
        .contains(&kind)
}

/// What a connection is at; the first ones give way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// In a handshake, or waiting for a request, or giving an answer that is ready.
    Idle,
    /// A request is looked at.
    Asked,
    /// An answer goes on and on, or the connection is about to become a call's. It does not give way.
    Kept,
}

/// One connection, as its own task and the listener see it.
#[derive(Debug)]
struct Connection {
    phase: Mutex<(Phase, Instant)>,
    /// It belongs to a call, which bounds how long it writes.
    upgraded: AtomicBool,
}

impl Connection {
    fn new() -> Self {
        Self { phase: Mutex::new((Phase::Idle, clock::now())), upgraded: AtomicBool::new(false) }
    }

    fn locked(&self) -> MutexGuard<'_, (Phase, Instant)> {
        // Nothing can panic while this is locked.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_at(&self, phase: Phase) {
        *self.locked() = (phase, clock::now());
    }
}

/// A connection in the listener's list.
struct Open {
    peer: Option<IpAddr>,
    connection: Arc<Connection>,
    task: AbortHandle,
}

/// Serves `pages` on all that `listener` accepts, until the future is dropped, and with it every connection.
pub(crate) async fn serve<L>(
    mut listener: L,
    tls: Option<TlsAcceptor>,
    pages: Router,
    limits: Limits,
    stats: Stats,
) -> Infallible
where
    L: Listener,
    L::Addr: Peer,
{
    let host = Host { http: http(), pages: TowerToHyperService::new(pages), tls, stats: stats.clone() };
    let mut crowd = Crowd { open: Vec::new(), limits, stats: stats.clone() };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(ended) = tasks.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => {
                        stats.count_panic(&error);
                        error.id()
                    }
                };
                crowd.leaves(|open| open.task.id() == id);
            }
            (io, from) = listener.accept(), if tasks.len() < crowd.open.len() + LEAVING_MAX => {
                let peer = crowd.limits.peer(from.ip());
                if crowd.has_room(peer) {
                    let connection = Arc::new(Connection::new());
                    let task = tasks.spawn(host.clone().carry(io, connection.clone()));
                    crowd.comes(Open { peer, connection, task });
                }
            }
        }
    }
}

/// The connections of one listener.
struct Crowd {
    /// In the order in which they came.
    open: Vec<Open>,
    limits: Limits,
    stats: Stats,
}

impl Crowd {
    fn comes(&mut self, open: Open) {
        self.open.push(open);
        self.stats.connections().open.fetch_add(1, SeqCst);
    }

    fn leaves(&mut self, is: impl Fn(&Open) -> bool) {
        if let Some(at) = self.open.iter().position(is) {
            self.open.remove(at).task.abort();
            self.stats.connections().open.fetch_sub(1, SeqCst);
        }
    }

    /// Sees to it that one more has room; false if that cannot be had.
    fn has_room(&mut self, peer: Option<IpAddr>) -> bool {
        let of_peer = |open: &Open| peer.is_some() && open.peer == peer;
        let share = self.open.iter().filter(|open| of_peer(open)).count() >= self.limits.per_peer;
        if !share && self.open.len() < self.limits.most {
            return true;
        }
        let oldest = self
            .open
            .iter()
            .filter(|open| !share || of_peer(open))
            .map(|open| (*open.connection.locked(), open.task.id()))
            .filter(|((phase, _), _)| *phase < Phase::Kept)
            .min_by_key(|(at, _)| *at);
        let counts = self.stats.connections();
        let count = if oldest.is_some() { &counts.evicted } else { &counts.turned_away };
        count.fetch_add(1, SeqCst);
        if let Some(left_out) = counts.crowded.may() {
            tracing::warn!(
                open = self.open.len(),
                from = peer.filter(|_| share).map(tracing::field::display),
                left_out,
                "too many connections: the oldest idle one gives way, see connections.max and per_peer"
            );
        }
        let Some((_, id)) = oldest else { return false };
        self.leaves(|open| open.task.id() == id);
        true
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stats.connections().open.fetch_sub(self.open.len(), SeqCst);
    }
}

/// HTTP as all listeners speak it.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_MAX);
    http
}

/// What every connection of a listener is served with.
#[derive(Clone)]
struct Host {
    http: http1::Builder,
    pages: TowerToHyperService<Router>,
    tls: Option<TlsAcceptor>,
    stats: Stats,
}

impl Host {
    async fn carry<Io>(self, io: Io, connection: Arc<Connection>)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(tls) = self.tls.clone() else { return self.speak(io, connection).await };
        match tokio::time::timeout(HANDSHAKE, tls.accept(io)).await {
            Ok(Ok(io)) => self.speak(io, connection).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
            Err(_late) => tracing::debug!("a TLS handshake took too long"),
        }
    }

    async fn speak<Io>(self, io: Io, connection: Arc<Connection>)
    where
        Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Bounded { io, connection: connection.clone(), unread: None });
        let service = service_fn(|request: hyper::Request<Incoming>| {
            connection.is_at(Phase::Asked);
            let answer = self.pages.call(request);
            let (connection, stats) = (connection.clone(), &self.stats);
            async move {
                let begins = stats.connections().entrance.lock().await;
                tokio::task::yield_now().await;
                drop(begins);
                let answer = answer.await;
                let goes_on = answer.as_ref().is_ok_and(|answer| {
                    answer.status() == StatusCode::SWITCHING_PROTOCOLS
                        || answer.body().size_hint().exact().is_none()
                });
                connection.is_at(if goes_on { Phase::Kept } else { Phase::Idle });
                answer
            }
        });
        let mut served = pin!(self.http.serve_connection(io, service).with_upgrades());
        let ended = tokio::select! {
            biased;
            ended = served.as_mut() => ended,
            () = tokio::time::sleep(LIFE) => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        // A connection that has become a call is no longer bounded here.
        connection.upgraded.store(true, SeqCst);
        if let Err(error) = ended {
            if is_unread(&error) {
                let counts = self.stats.connections();
                counts.unread.fetch_add(1, SeqCst);
                if let Some(left_out) = counts.unread_line.may() {
                    tracing::warn!(left_out, "a connection was closed: its answers were not read");
                }
            }
            tracing::debug!(%error, "a connection ended badly");
        }
    }
}

fn is_unread(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|source| source.get_ref().is_some_and(|inner| inner.is::<Unread>()))
}

#[derive(Debug, thiserror::Error)]
#[error("what was written was not read in time")]
struct Unread;

/// A byte stream whose other side has [`WRITE_TIMEOUT`] to take what waits for it, the whole of it: who takes a byte now
/// and then is not waited for, either.
struct Bounded<Io> {
    io: Io,
    connection: Arc<Connection>,
    unread: Option<Pin<Box<Sleep>>>,
}

impl<Io> Bounded<Io> {
    fn bound<T>(&mut self, done: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if done.is_ready() || self.connection.upgraded.load(SeqCst) {
            return done;
        }
        let unread = self.unread.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_TIMEOUT)));
        unread.as_mut().poll(cx).map(|()| Err(io::Error::new(io::ErrorKind::TimedOut, Unread)))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Bounded<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Bounded<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, buf);
        self.bound(done, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.bound(done, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// Flushed is what hyper does when all it has was written.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        if done.is_ready() {
            self.unread = None;
        }
        self.bound(done, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_shutdown(cx);
        self.bound(done, cx)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use std::future::pending;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    /// So many connections, all at once, on which nothing comes but what a test writes.
    #[derive(Clone)]
    pub(crate) struct Comers {
        most: Arc<AtomicUsize>,
        from: fn(usize) -> &'static str,
        came: Arc<Mutex<Vec<Option<DuplexStream>>>>,
    }

    impl Comers {
        pub(crate) fn of(most: usize) -> Self {
            let most = Arc::new(AtomicUsize::new(most));
            Self { most, from: |_| "10.0.0.1", came: Arc::default() }
        }

        /// How many were accepted.
        pub(crate) fn accepted(&self) -> usize {
            self.came.lock().unwrap().len()
        }

        fn end(&self, at: usize) -> DuplexStream {
            self.came.lock().unwrap()[at].take().expect("taken once")
        }
    }

    impl Listener for Comers {
        type Io = DuplexStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
            while self.accepted() >= self.most.load(SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let (here, there) = duplex(64);
            let from = (self.from)(self.accepted()).parse::<IpAddr>().unwrap();
            self.came.lock().unwrap().push(Some(there));
            (here, SocketAddr::from((from, 1)))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }
    }

    fn pages() -> Router {
        let endless = || async { Body::from_stream(futures_util::stream::pending::<io::Result<String>>()) };
        Router::new()
            .route("/", get(|| async { "hello" }))
            .route("/long", get(|| async { "x".repeat(1_000) }))
            .route("/slow", get(|| async { pending::<&str>().await }))
            .route("/endless", get(endless))
    }

    fn served(comers: &Comers, limits: Limits) -> Stats {
        let stats = Stats::default();
        tokio::spawn(serve(comers.clone(), None, pages(), limits, stats.clone()));
        stats
    }

    async fn passes(time: Duration) {
        tokio::time::sleep(time).await;
    }

    const MOMENT: Duration = Duration::from_millis(20);

    fn request(path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
    }

    /// Whether the connection is open and has an answer for one more request.
    async fn answers(end: &mut DuplexStream) -> bool {
        let answered = async {
            end.write_all(&request("/")).await.ok()?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"hello") {
                answer.push(end.read_u8().await.ok()?);
            }
            Some(())
        };
        tokio::time::timeout(Duration::from_secs(1), answered).await.ok().flatten().is_some()
    }

    /// Whether the other side has closed.
    async fn is_closed(end: &mut DuplexStream) -> bool {
        let mut rest = Vec::new();
        tokio::time::timeout(MOMENT, end.read_to_end(&mut rest)).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_say_nothing_give_way_and_are_given_up() {
        let comers = Comers::of(42);
        let stats = served(&comers, Limits::of(32));
        passes(HEADER_TIMEOUT / 2).await;
        assert_eq!((comers.accepted(), stats.connections_open(), stats.connections_evicted()), (42, 32, 10));
        assert!(is_closed(&mut comers.end(9)).await, "the oldest ones");
        assert!(answers(&mut comers.end(10)).await && answers(&mut comers.end(41)).await);
        passes(HEADER_TIMEOUT + MOMENT).await;
        assert_eq!(
            stats.connections_open(),
            0,
            "a connection that sends nothing, or nothing more, is given up"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_to_send_goes_last_and_an_endless_answer_stays() {
        let comers = Comers::of(4);
        let stats = served(&comers, Limits::of(4));
        passes(MOMENT).await;
        let (mut asked, mut watching) = (comers.end(0), comers.end(1));
        watching.write_all(&request("/endless")).await.unwrap();
        passes(MOMENT).await;
        assert!(answers(&mut asked).await);
        comers.most.fetch_add(2, SeqCst);
        passes(MOMENT).await;
        assert!(is_closed(&mut comers.end(2)).await && is_closed(&mut comers.end(3)).await);
        assert!(answers(&mut asked).await, "the oldest of all, but not the most idle");
        comers.most.fetch_add(3, SeqCst);
        passes(MOMENT).await;
        assert!(!answers(&mut asked).await, "three more are too many");
        let mut there = [0; 12];
        watching.read_exact(&mut there).await.unwrap();
        assert_eq!((&there, stats.connections_open()), (b"HTTP/1.1 200", 4));
        assert!(!is_closed(&mut watching).await);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_are_never_done_give_way_behind_the_idle_and_endless_ones_turn_others_away() {
        let comers = Comers::of(3);
        let stats = served(&comers, Limits::of(3));
        passes(MOMENT).await;
        let (mut slow, mut one, mut two) = (comers.end(0), comers.end(1), comers.end(2));
        slow.write_all(&request("/slow")).await.unwrap();
        passes(MOMENT).await;
        comers.most.fetch_add(1, SeqCst);
        passes(MOMENT).await;
        assert!(is_closed(&mut one).await && !is_closed(&mut slow).await, "it is at work, the other is idle");
        let mut three = comers.end(3);
        for end in [&mut two, &mut three] {
            end.write_all(&request("/endless")).await.unwrap();
        }
        passes(MOMENT).await;
        comers.most.fetch_add(1, SeqCst);
        passes(MOMENT).await;
        assert!(is_closed(&mut slow).await, "a request at work does not keep others out");
        let mut four = comers.end(4);
        four.write_all(&request("/endless")).await.unwrap();
        passes(MOMENT).await;
        comers.most.fetch_add(1, SeqCst);
        passes(MOMENT).await;
        assert!(is_closed(&mut comers.end(5)).await, "no connection can give way");
        assert_eq!((stats.connections_open(), stats.connections_evicted()), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn one_public_address_has_its_share_and_a_private_one_has_none() {
        let mut comers = Comers::of(20);
        comers.from = |n| if n < 10 { "8.8.8.8" } else { "10.0.0.1" };
        let stats = served(&comers, Limits { most: 99, per_peer: 4, shared_peers: Vec::new() });
        passes(MOMENT).await;
        assert_eq!((stats.connections_open(), stats.connections_evicted()), (14, 6));
        assert!(is_closed(&mut comers.end(5)).await && answers(&mut comers.end(6)).await);

        let networks: fn(usize) -> &'static str =
            |n| if n < 10 { "2001:4860::1:2:3:4" } else { "2001:4860::5:6:7:8" };
        for (shared, open) in [(vec![], 4), (vec!["2001:4860::5:6:7:8".parse().unwrap()], 14)] {
            let mut comers = Comers::of(20);
            comers.from = networks;
            let stats = served(&comers, Limits { most: 99, per_peer: 4, shared_peers: shared });
            passes(MOMENT).await;
            assert_eq!(stats.connections_open(), open, "one network, unless it is said to be shared");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_not_read_end_their_connection_however_slowly_they_are_read() {
        let comers = Comers::of(2);
        let stats = served(&comers, Limits::of(9));
        passes(MOMENT).await;
        let (mut silent, trickle) = (comers.end(0), comers.end(1));
        silent.write_all(&request("/long")).await.unwrap();
        // Requests one behind the other, and a byte of their answers now and then.
        let (mut reads, mut writes) = tokio::io::split(trickle);
        let asking = tokio::spawn(async move { while writes.write_all(&request("/long")).await.is_ok() {} });
        for _ in 0..9 {
            passes(Duration::from_secs(1)).await;
            reads.read_u8().await.unwrap();
            assert_eq!(stats.connections_unread(), 0);
        }
        passes(Duration::from_secs(2)).await;
        assert_eq!((stats.connections_unread(), stats.connections_open()), (2, 0));
        asking.await.unwrap();
    }

    #[tokio::test]
    async fn however_many_requests_come_at_once_others_have_their_turn_in_between() {
        const REQUESTS: usize = 50;
        let (comers, stats) = (Comers::of(REQUESTS), Stats::default());
        let begun = Arc::new(AtomicUsize::new(0));
        let counts = begun.clone();
        let pages = Router::new().route(
            "/",
            get(move || {
                counts.fetch_add(1, SeqCst);
                std::future::ready("hello")
            }),
        );
        tokio::spawn(serve(comers.clone(), None, pages, Limits::of(REQUESTS), stats.clone()));
        while stats.connections_open() < REQUESTS {
            passes(Duration::from_millis(1)).await;
        }
        let mut ends: Vec<_> = (0..REQUESTS).map(|at| comers.end(at)).collect();
        for end in &mut ends {
            end.write_all(&request("/")).await.unwrap();
        }
        let (mut most, mut turns) = (0, 0);
        while begun.load(SeqCst) < REQUESTS {
            let before = begun.load(SeqCst);
            tokio::task::yield_now().await;
            most = most.max(begun.load(SeqCst) - before);
            turns += 1;
            assert!(turns < 100_000, "they do not begin");
        }
        assert!(most <= 2, "{most} began while another task was due");
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_a_length_and_a_connection_a_life() {
        let comers = Comers::of(2);
        let stats = served(&comers, Limits::of(9));
        passes(MOMENT).await;
        let (long, mut lasting) = (comers.end(0), comers.end(1));
        let (mut reads, mut writes) = tokio::io::split(long);
        let header = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}", "x".repeat(2 * HEADER_MAX));
        let mut answer = String::new();
        let (_cut, _read) =
            tokio::join!(writes.write_all(header.as_bytes()), reads.read_to_string(&mut answer));
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let began = clock::now();
        while answers(&mut lasting).await {
            passes(HEADER_TIMEOUT / 2).await;
        }
        let lasted = clock::now().saturating_duration_since(began);
        assert!((LIFE..LIFE + HEADER_TIMEOUT).contains(&lasted), "{lasted:?}");
        assert_eq!(stats.connections_open(), 0);
    }
}
