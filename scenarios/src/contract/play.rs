//! Plays a session: against the mock in memory, where a minute takes no time, or against any server over a socket.

use super::client::{Client, Limits};
use super::recording::{REFUSED, Recording, Redaction, Sender};
use super::script::Session;
use crate::sim::real::Clock;
use bridge::base::secret::Secret;
use mocks::attach::attach;
use mocks::net::{self, Roots, Throwaway, Url};
use mocks::peer::{At, Out, Peer};
use mocks::realtime::{Dialect, Model, ModelIdentity, ModelScript};
use serde_json::{Value, json};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Largest message of a server, bytes.
const MESSAGE_MAX: usize = 16 << 20;
/// Longest session in memory, ms of its own time.
const MEMORY_MS_MAX: u64 = 600_000;
/// Time of a session in memory. Only `expires_at` shows it.
const EPOCH: i64 = 1_795_000_000;
/// Which session a connection is for.
const REQUEST_ID: &str = "x-client-request-id";
/// How the service asks for a model when the address has no path.
const PATH: &str = "/v1/realtime";

/// How the key is shown to the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// `Authorization: Bearer KEY`.
    #[default]
    Bearer,
    /// `Authorization: Basic KEY`.
    Basic,
    /// A header of this name that holds the key and nothing else.
    Header(String),
}

impl std::str::FromStr for Scheme {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bearer" => Ok(Self::Bearer),
            "basic" => Ok(Self::Basic),
            name if http::HeaderName::from_bytes(name.as_bytes()).is_ok() => {
                Ok(Self::Header(name.to_owned()))
            }
            other => {
                Err(format!("`{other}` is no header; say bearer, basic, or a header's name such as api-key"))
            }
        }
    }
}

impl Scheme {
    fn header(&self, key: &str) -> (String, String) {
        match self {
            Self::Bearer => ("authorization".to_owned(), format!("Bearer {key}")),
            Self::Basic => ("authorization".to_owned(), format!("Basic {key}")),
            Self::Header(name) => (name.to_ascii_lowercase(), key.to_owned()),
        }
    }
}

/// A server, and how it is asked.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its address.
    pub url: Url,
    /// The key.
    pub key: Secret,
    /// How the key is shown.
    pub scheme: Scheme,
    /// The model.
    pub model: String,
    /// What is spoken with it.
    pub dialect: Dialect,
    /// Whose certificates are trusted.
    pub roots: Roots,
}

impl Server {
    /// The path and query of a session's upgrade.
    pub(super) fn target(&self, session: &Session) -> String {
        let (path, query) = self.url.target.split_once('?').unwrap_or((&self.url.target, ""));
        let path = if path == "/" { PATH } else { path };
        let model = session.connect.model.as_deref().unwrap_or(&self.model);
        let mut pairs: Vec<_> =
            query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("model=")).collect();
        let model = format!("model={model}");
        if model != "model=" {
            pairs.push(&model);
        }
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }

    /// The headers of a session's upgrade that are not the WebSocket's own.
    pub(super) fn headers(&self, session: &Session) -> Vec<(String, String)> {
        let key = session.connect.key.as_deref().unwrap_or(self.key.expose());
        let mut headers = vec![self.scheme.header(key)];
        headers.push((REQUEST_ID.to_owned(), format!("scn-contract-{}", session.name)));
        if self.dialect == Dialect::Beta {
            headers.push(("openai-beta".to_owned(), "realtime=v1".to_owned()));
        }
        let more = session.connect.headers.iter();
        headers.extend(more.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        headers
    }

    /// Where it is, without what may be a secret.
    pub fn place(&self) -> String {
        let path = self.url.target.split('?').next().unwrap_or_default();
        let scheme = if self.url.secure { "wss" } else { "ws" };
        format!("{scheme}://{}{}", self.url.authority(), if path == "/" { PATH } else { path })
    }

    /// What a recording of it says of itself.
    fn opening(&self, session: &Session, place: &str, connect_us: u64) -> Value {
        let model = session.connect.model.as_deref().unwrap_or(&self.model);
        let dialect = if self.dialect == Dialect::Beta { "beta" } else { "ga" };
        let script = &session.digest;
        json!({"url": place, "model": model, "dialect": dialect, "script": script, "connect_us": connect_us})
    }
}

/// A session that could not be played.
#[derive(Debug)]
pub struct Unreached(pub String);

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// ------------------------------------------------------------------------------------------ in memory

/// What the mock says in a session. The same in every run.
pub fn expected(session: &Session, server: &Server) -> Recording {
    let mut model = mock(session.mock(server.dialect), 0, EPOCH);
    let target = server.target(session);
    model.set_query(&target);
    let headers = server.headers(session);
    model.set_headers(headers.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    in_memory(session, server, Limits::default(), model)
}

fn mock(script: ModelScript, index: u64, epoch_unix: i64) -> Model {
    Model::new(script, ModelIdentity { call_sid: String::new(), index, epoch_unix }, 1)
}

/// Plays a session with this peer at the other end, on a clock that does not wait.
pub fn in_memory(session: &Session, server: &Server, limits: Limits, mut peer: impl Peer) -> Recording {
    let redaction = Redaction::new("", false);
    let opening = server.opening(session, "the mock in memory", 0);
    let source = format!("scn contract: {}", session.name);
    let mut client = Client::new(session, server.dialect, limits, redaction, &source, &opening);
    let mut now = At(0);
    peer.opened(now);
    client.opened(now);
    loop {
        while deliver(&mut client, &mut peer, now) | deliver(&mut peer, &mut client, now) {}
        if client.is_finished() {
            return client.into_recording();
        }
        let due = [client.poll_timeout(), peer.poll_timeout()].into_iter().flatten().min();
        let Some(due) = due.filter(|due| due.as_ms() < MEMORY_MS_MAX) else {
            client.gone("nothing more happens", now);
            return client.into_recording();
        };
        now = now.max(due);
        if peer.poll_timeout().is_some_and(|at| at <= now) {
            peer.handle_timeout(now);
        }
        while deliver(&mut peer, &mut client, now) {}
        if client.poll_timeout().is_some_and(|at| at <= now) {
            client.handle_timeout(now);
        }
    }
}

/// Hands over what one end wants sent. True when there was something.
fn deliver(from: &mut impl Peer, to: &mut impl Peer, now: At) -> bool {
    let mut some = false;
    while let Some(out) = from.poll_transmit() {
        some = true;
        match out {
            Out::Frame(frame) => to.handle(frame, now),
            Out::Drop => to.gone("the connection ended", now),
            Out::PauseReading | Out::ResumeReading => {}
        }
    }
    some
}

// ------------------------------------------------------------------------------------------ over a socket

/// Plays a session with a server.
///
/// # Errors
/// When it cannot be reached, or does not take the upgrade at all.
pub async fn over_socket(
    session: &Session,
    server: &Server,
    limits: Limits,
    redaction: Redaction,
    source: &str,
) -> Result<Recording, Unreached> {
    let clock = Clock::start();
    let dialled = tokio::time::timeout(Duration::from_millis(limits.dial_ms), upgrade(session, server)).await;
    let dialled = dialled
        .unwrap_or_else(|_| Err(Refusal::Unreached(format!("no answer within {} ms", limits.dial_ms))));
    let place = server.place();
    let opening = server.opening(session, &place, clock.now().0);
    match dialled {
        Ok(socket) => {
            let client = Client::new(session, server.dialect, limits, redaction, source, &opening);
            Ok(attach(socket, client, move || clock.now()).await.into_recording())
        }
        Err(Refusal::Http(status)) => {
            let mut recording = Recording::new(&session.name);
            let frame = json!({"type": REFUSED, "session": session.name, "url": place, "status": status});
            recording.put(source, Sender::Server, clock.now().0, None, frame);
            Ok(recording)
        }
        Err(Refusal::Unreached(why)) => {
            let why = redaction.hidden(&why).unwrap_or(why);
            Err(Unreached(format!("{place} cannot be reached: {why}")))
        }
    }
}

enum Refusal {
    Http(u16),
    Unreached(String),
}

async fn upgrade(session: &Session, server: &Server) -> Result<WebSocketStream<net::Stream>, Refusal> {
    let unreached = |error: &dyn fmt::Display| Refusal::Unreached(error.to_string());
    let stream = net::dial(&server.url, &server.roots).await.map_err(|error| unreached(&error))?;
    let scheme = if server.url.secure { "wss" } else { "ws" };
    let mut request = http::Request::builder()
        .uri(format!("{scheme}://{}{}", server.url.authority(), server.target(session)))
        .header("host", server.url.authority())
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    for (name, value) in server.headers(session) {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(|_| {
        // The library would show the header, and with it the key.
        Refusal::Unreached("the key or the address cannot stand in a request".to_owned())
    })?;
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(MESSAGE_MAX))
        .max_frame_size(Some(MESSAGE_MAX));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => Err(Refusal::Http(response.status().as_u16())),
        Err(error) => Err(unreached(&error)),
    }
}

// ------------------------------------------------------------------------------------------ the mock over sockets

/// The mock behind a listener of this machine, each connection with the script of the session it is for.
pub struct Mock {
    address: SocketAddr,
    tls: Option<Throwaway>,
    tasks: JoinSet<()>,
}

impl Mock {
    /// Serves these sessions with what `script` makes of each.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn serve(sessions: &[Session], dialect: Dialect, tls: bool) -> io::Result<Self> {
        let scripts = sessions.iter().map(|session| (session.name.clone(), session.mock(dialect))).collect();
        Self::serve_scripts(scripts, tls).await
    }

    /// Serves these scripts, each to the session of its name.
    ///
    /// # Errors
    /// When there is no port, or no certificate can be made.
    pub async fn serve_scripts(scripts: Vec<(String, ModelScript)>, tls: bool) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let tls = if tls { Some(Throwaway::new(&["localhost"]).map_err(io::Error::other)?) } else { None };
        let mut tasks = JoinSet::new();
        let scripts: Arc<[_]> = scripts.into();
        let acceptor = tls.clone();
        tasks.spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                calls.spawn(connection(tcp, acceptor.clone(), scripts.clone()));
                while calls.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, tls, tasks })
    }

    /// How it is asked.
    ///
    /// # Errors
    /// When its own certificate cannot be read.
    pub fn server(&self, model: &str, dialect: Dialect) -> anyhow::Result<Server> {
        let (scheme, roots) = match &self.tls {
            Some(tls) => ("wss", Roots::of_pem(tls.pem())?),
            None => ("ws", Roots::public()),
        };
        Ok(Server {
            url: format!("{scheme}://localhost:{}{PATH}", self.address.port()).parse()?,
            key: Secret::new("any"),
            scheme: Scheme::Bearer,
            model: model.to_owned(),
            dialect,
            roots,
        })
    }

    /// No longer serves anyone.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn connection(tcp: TcpStream, tls: Option<Throwaway>, scripts: Arc<[(String, ModelScript)]>) {
    let clock = Clock::start();
    let Ok(stream) = net::receive(tcp, tls.as_ref()).await else { return };
    let mut model = None;
    // The library hands the request to a callback by type; its error type is as large as it is.
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let judge = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        let headers = request.headers().iter();
        let headers: Vec<_> = headers
            .filter_map(|(name, value)| value.to_str().ok().map(|value| (name.as_str(), value)))
            .collect();
        let name = headers.iter().find(|(name, _)| *name == REQUEST_ID).map_or("", |(_, value)| value);
        let name = name.trim_start_matches("scn-contract-");
        let script = scripts.iter().find(|(session, _)| session == name).map(|(_, script)| script.clone());
        let mut made = mock(script.unwrap_or_default(), 0, EPOCH);
        made.set_query(&request.uri().to_string());
        made.set_headers(headers);
        model = Some(made);
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, judge).await else { return };
    if let Some(model) = model {
        attach(socket, model, move || clock.now()).await;
    }
}
