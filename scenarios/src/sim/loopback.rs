//! The production server over real TCP, in real time, in this process: the sockets, timers and, if it is wanted, the
//! TLS that ships.
//!
//! It says what no simulation can: that the listener, [`TlsDial`], rustls and the system's own sockets carry a call.
//! It is slow (a call takes as long as it takes) and no two plays are the same to the microsecond, so a handful of
//! scenarios is played here, and the oracles grant what [`crate::oracle::real_time`] names. The network is this
//! machine's: a network made to order cannot be had.

use super::common::ScenarioRunner;
use super::real::{Clock, Lag, needs_a_made_network, on_this_machine};
use super::shell::{self, BRIDGE, Dialled, Ending, Invited, Net, Play};
use crate::model::backend::Backend;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::sim::trace::Trace;
use bridge::net::dial::{Dial as _, MaybeTls, TlsDial};
use mocks::net::{self, Throwaway, Url};
use mocks::peer::At;
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinSet;

/// What the certificate of a secure play is for; both legs are reached by it.
const NAME: &str = "localhost";
/// How often the world looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loopback {
    /// Both legs speak TLS, with a certificate that is made for the occasion.
    pub tls: bool,
}

impl ScenarioRunner for Loopback {
    fn kind(&self) -> Backend {
        Backend::Loopback
    }

    /// Plays a scenario to its end.
    ///
    /// # Panics
    /// When the scenario needs a network made to order, and when this machine has no socket left.
    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace {
        if let Some(what) = needs_a_made_network(scenario) {
            panic!("{} needs {what}, which real sockets do not have", scenario.name);
        }
        let scenario = on_this_machine(scenario);
        shell::on_a_fresh_thread(|| play(&scenario, seed, self.tls)).0
    }
}

/// One end of a connection, whichever side made it.
enum Socket {
    /// By the bridge's own dialler.
    Dialled(MaybeTls),
    /// By or for a mock, or for the bridge's listener.
    Met(net::Stream),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Dialled(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Met(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Dialled(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Met(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Dialled(stream) => Pin::new(stream).poll_flush(cx),
            Self::Met(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Dialled(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Met(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// This machine's own network. Clones see the same one.
#[derive(Clone)]
struct Ground {
    clock: Clock,
    bridge: Url,
    openai: Url,
    /// No process listens there.
    closed_port: SocketAddr,
    dial: TlsDial,
    roots: net::Roots,
    /// Which connection a dial from this port of the bridge belongs to.
    dialled: Arc<Mutex<BTreeMap<u16, Dialled>>>,
    known: Arc<Notify>,
}

impl Net for Ground {
    type Stream = Socket;

    fn now(&self) -> At {
        self.clock.now()
    }

    async fn dial_model(&self, dialled: Dialled) -> io::Result<Socket> {
        let stream = self.dial.dial().await?;
        let tcp = match &stream {
            MaybeTls::Plain(tcp) => tcp,
            MaybeTls::Tls(tls) => tls.get_ref().0,
        };
        let port = tcp.local_addr()?.port();
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner).insert(port, dialled);
        self.known.notify_waiters();
        Ok(Socket::Dialled(stream))
    }

    async fn dial_closed_port(&self) -> io::Result<Socket> {
        let tcp = TcpStream::connect(self.closed_port).await?;
        Ok(Socket::Met(tcp.into()))
    }

    async fn dial_bridge(&self, _call: usize) -> io::Result<Socket> {
        Ok(Socket::Met(net::dial(&self.bridge, &self.roots).await?))
    }

    fn openai_url(&self) -> String {
        self.openai.to_string()
    }

    async fn invite(&self, _call: usize) -> io::Result<Invited> {
        let url = format!("ws://{BRIDGE}/twilio");
        Ok(Invited { url, host: self.bridge.authority(), ..Invited::default() })
    }
}

impl Ground {
    /// Whose connection it is that came from this port; the dialler says so in a moment, if it has not.
    async fn whose(&self, port: u16) -> Dialled {
        loop {
            let said = self.known.notified();
            if let Some(dialled) = self.dialled.lock().unwrap_or_else(PoisonError::into_inner).get(&port) {
                return *dialled;
            }
            said.await;
        }
    }
}

/// A listener for the production server. The proxy that ends TLS in front of it in production is part of it here.
struct Listener(mpsc::UnboundedReceiver<Socket>);

impl axum::serve::Listener for Listener {
    type Io = Socket;
    type Addr = ();

    async fn accept(&mut self) -> (Socket, ()) {
        match self.0.recv().await {
            Some(socket) => (socket, ()),
            None => pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The sockets of a world.
struct Aligned {
    net: Ground,
    calling: TcpListener,
    dialled: TcpListener,
    tls: Option<Throwaway>,
}

async fn lay(tls: bool) -> anyhow::Result<Aligned> {
    let calling = TcpListener::bind("127.0.0.1:0").await?;
    let dialled = TcpListener::bind("127.0.0.1:0").await?;
    // Bound and let go: no process listens there, and no other is likely to in the next minute.
    let closed_port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let tls = tls.then(|| Throwaway::new(&[NAME])).transpose()?;
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    let url = |listener: &TcpListener, path: &str| -> anyhow::Result<Url> {
        format!("{scheme}://{NAME}:{}{path}", listener.local_addr()?.port()).parse()
    };
    let roots = match &tls {
        Some(tls) => net::Roots::of_pem(tls.pem())?,
        None => net::Roots::public(),
    };
    let openai = url(&dialled, "/v1/realtime")?;
    let model_url = openai.as_str().parse().map_err(anyhow::Error::msg)?;
    let net = Ground {
        clock: Clock::start(),
        bridge: url(&calling, "/twilio")?,
        dial: TlsDial::trusting(&model_url, roots.store())?,
        openai,
        closed_port,
        roots,
        dialled: Arc::default(),
        known: Arc::default(),
    };
    Ok(Aligned { net, calling, dialled, tls })
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("the system has room for one more reactor")
}

fn play(scenario: &Scenario, seed: Seed, tls: bool) -> Trace {
    let runtime = runtime();
    let laid = runtime.block_on(lay(tls)).unwrap_or_else(|error| panic!("no sockets: {error:#}"));
    let play = Play::new(laid.net.clone(), scenario, seed, None);
    let lag = Lag::default();
    let ended = {
        let world = run(play.clone(), laid, lag.clone());
        catch_unwind(AssertUnwindSafe(|| runtime.block_on(world)))
    };
    let at = play.net.now();
    let (finished, broken) = match ended {
        Ok(finished) => (finished, Vec::new()),
        Err(panic) => (None, vec![super::common::panic_text(&*panic)]),
    };
    let cut = finished.is_none() && broken.is_empty();
    let ending = Ending { at, finished, cut, broken };
    let mut trace = play.trace(Backend::Loopback, ending, || drop(runtime));
    trace.lag_us = lag.worst_us();
    trace
}

/// The world until every end is done and the server has stopped. Returns when every end was, if they ever were.
async fn run(play: Play<Ground>, laid: Aligned, lag: Lag) -> Option<At> {
    let Aligned { net, calling, dialled, tls } = laid;
    let mut world = JoinSet::new();
    let (to_bridge, arriving) = mpsc::unbounded_channel();
    let (shutdown, told) = oneshot::channel();
    world.spawn(lag.watch());
    world.spawn(shell::serve(play.clone(), Listener(arriving), told));
    world.spawn(meet(calling, tls.clone(), move |stream, _port| {
        // The server may have stopped; then no server takes the call, as in production.
        let _taken = to_bridge.send(Socket::Met(stream));
    }));
    {
        let (play, net) = (play.clone(), net.clone());
        world.spawn(meet(dialled, tls, move |stream, port| {
            let (play, net) = (play.clone(), net.clone());
            tokio::spawn(async move {
                let whose = net.whose(port).await;
                shell::model(play, Socket::Met(stream), whose).await;
            });
        }));
    }
    for planned in play.planned.iter().cloned() {
        world.spawn(shell::caller(play.clone(), planned));
    }
    let limit = At::ms(play.scenario.world.limit_ms);
    let mut shutdown = Some(shutdown);
    let mut stop = || {
        if let Some(shutdown) = shutdown.take() {
            // The server may be gone already; then there is nothing to shut down.
            let _received = shutdown.send(());
        }
    };
    let mut finished: Option<At> = None;
    let mut looks = pin!(tokio::time::interval(LOOK_EVERY));
    loop {
        looks.tick().await;
        let now = net.now();
        if play.scenario.server.drain_at_ms.is_some_and(|at| now >= At::ms(at)) {
            stop();
        }
        if finished.is_none() && play.all_done(now) {
            finished = Some(now);
            stop();
        }
        let patience = play.patience_ms();
        let stopped = finished.is_some() && play.shared().served.is_some();
        if stopped || finished.is_some_and(|since| now > since.plus_ms(patience)) {
            return finished;
        }
        if finished.is_none() && now > limit {
            return None;
        }
    }
}

/// Accepts connections, with TLS if there is a certificate, and hands each on with the port it came from.
async fn meet(
    listener: TcpListener,
    tls: Option<Throwaway>,
    take: impl Fn(net::Stream, u16) + Send + Sync + 'static,
) {
    let take = Arc::new(take);
    loop {
        let Ok((tcp, from)) = listener.accept().await else { continue };
        let (stream, take) = (net::receive(tcp, tls.as_ref()), take.clone());
        tokio::spawn(async move {
            if let Ok(stream) = stream.await {
                take(stream, from.port());
            }
        });
    }
}
