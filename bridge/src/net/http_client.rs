//! Requests of ours to the world: one connection each, one time limit, one size limit.
//!
//! How a connection is made is given from outside, like the way to the model: production resolves names, dials TCP
//! and speaks TLS; tests and simulations bring their own. Nothing is pooled: a request that must not happen twice is
//! never written to a connection that may have gone stale, and what failed before a byte was sent is known to.
//!
//! No redirect is followed: it would carry secrets to wherever an answer points.

use crate::net::dial::{MaybeTls, public_roots, trusting};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The server at the other end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// With TLS.
    pub secure: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Opens byte streams to servers.
pub trait Connect: Clone + Send + Sync + 'static {
    /// The byte stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens one. There is no time limit here: the request's own ends an attempt that takes too long.
    fn connect(&self, to: &Endpoint) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// Production: TCP, and TLS for `https`.
#[derive(Clone)]
pub struct TlsConnect {
    tls: TlsConnector,
    may: fn(IpAddr) -> bool,
}

impl TlsConnect {
    /// Trusts the certificate authorities compiled in.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new() -> io::Result<Self> {
        Self::trusting(public_roots())
    }

    /// Trusts `roots` alone: for a server with a certificate of one's own.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn trusting(roots: RootCertStore) -> io::Result<Self> {
        Ok(Self { tls: trusting(roots)?, may: |_| true })
    }

    /// Connects to addresses of the public internet alone, whatever a name resolves to: for addresses that
    /// people who are not the operator may write.
    #[must_use]
    pub const fn public_only(mut self) -> Self {
        self.may = is_public;
        self
    }

    /// Connects to addresses that `may` allows alone, whatever a name resolves to.
    #[must_use]
    pub const fn only(mut self, may: fn(IpAddr) -> bool) -> Self {
        self.may = may;
        self
    }
}

impl Connect for TlsConnect {
    type Stream = MaybeTls;

    async fn connect(&self, to: &Endpoint) -> io::Result<MaybeTls> {
        // What was looked at is what is dialled: resolving once more could give another address.
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in tokio::net::lookup_host((to.host.as_str(), to.port)).await? {
            if !(self.may)(address.ip()) {
                let why = "the address is not one of those allowed";
                last = io::Error::new(io::ErrorKind::PermissionDenied, why);
                continue;
            }
            match TcpStream::connect(address).await {
                Ok(tcp) => {
                    tcp.set_nodelay(true)?;
                    if !to.secure {
                        return Ok(MaybeTls::Plain(tcp));
                    }
                    let name = ServerName::try_from(to.host.clone()).map_err(io::Error::other)?;
                    return Ok(MaybeTls::Tls(Box::new(self.tls.connect(name, tcp).await?)));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Whether an address may belong to a service of one's own network: anything but addresses that belong to no host, and
/// link-local ones, at which clouds hand out the keys of a machine.
pub fn is_a_service(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let no_host = v4.is_unspecified() || v4.is_broadcast() || v4.is_multicast();
            // The last is where one cloud keeps what the others have among the link-local ones.
            !(no_host || v4.is_link_local() || v4.octets() == [100, 100, 100, 200])
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_a_service(v4.into()),
            None => {
                let keys = v6.segments() == [0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254];
                let tunnel = matches!(v6.segments(), [0x64, 0xFF9B, ..] | [0x2002, ..]);
                !(v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    || keys
                    || (tunnel && !is_public(address)))
            }
        },
    }
}

/// Whether an address is one of the public internet: not this machine, not this network, not a neighbour, not a
/// service of the host a container runs on.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let special =
                a == 0 || a >= 240 || (a == 192 && b == 0 && c == 0) || (a == 198 && (b & 0xFE) == 18);
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_documentation()
                || shared
                || special)
        }
        IpAddr::V6(v6) => {
            // Addresses that stand for one of version 4, in each of the ways.
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let embedded = |high: u16, low: u16| {
                let [one, two] = high.to_be_bytes();
                let [three, four] = low.to_be_bytes();
                is_public(IpAddr::from([one, two, three, four]))
            };
            match (a, b, c, d, e, f) {
                (0, 0, 0, 0, 0, 0xFFFF) | (0x64, 0xFF9B, 0, 0, 0, 0) => embedded(g, h),
                (0x2002, ..) => embedded(b, c),
                // All that is routed in public, without the tunnels and documentation inside of it.
                (0x2001, 0 | 0xDB8, ..) => false,
                _ => a & 0xE000 == 0x2000,
            }
        }
    }
}

/// A request that is sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    /// A request to an absolute `http` or `https` address.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(method: Method, url: &str) -> Result<Self, Failure> {
        let uri: Uri = url.parse().map_err(|_| Failure::Address)?;
        endpoint(&uri).ok_or(Failure::Address)?;
        Ok(Self { method, uri, headers: HeaderMap::new(), body: Vec::new() })
    }

    /// Carries this body.
    #[must_use]
    pub fn body(mut self, kind: &'static str, body: Vec<u8>) -> Self {
        self.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        self.body = body;
        self
    }

    /// Carries this header, too.
    ///
    /// # Errors
    /// When the value fits no header: a line break in it would begin another one.
    pub fn header(mut self, name: HeaderName, value: &str) -> Result<Self, Failure> {
        let value = HeaderValue::from_str(value).map_err(|_| Failure::Header(name.clone()))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Carries this secret as `Authorization`; it is not shown in logs.
    ///
    /// # Errors
    /// When the secret fits no header.
    pub fn authorization(mut self, value: &str) -> Result<Self, Failure> {
        let mut value = HeaderValue::from_str(value).map_err(|_| Failure::Header(header::AUTHORIZATION))?;
        value.set_sensitive(true);
        self.headers.insert(header::AUTHORIZATION, value);
        Ok(self)
    }
}

fn endpoint(uri: &Uri) -> Option<Endpoint> {
    let secure = match uri.scheme_str()? {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    if uri.authority()?.as_str().contains('@') {
        return None;
    }
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return None;
    }
    Some(Endpoint {
        secure,
        host: host.to_owned(),
        port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
    })
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, whole.
    pub body: Vec<u8>,
}

/// Why there is no answer. The words carry neither address nor content.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The address is none.
    #[error("not an http or https address without a user in it")]
    Address,
    /// A value fits no header.
    #[error("a value fits no header {0}")]
    Header(HeaderName),
    /// No connection was made; nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The connection broke, or what came over it is no HTTP.
    #[error("the exchange failed: {0}")]
    Exchange(#[from] hyper::Error),
    /// The body could not be read.
    #[error("the answer broke off: {0}")]
    Body(axum::Error),
    /// The answer is too long.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// It took too long. `connected`: the request may have been sent.
    #[error("no answer within {0:?}")]
    Late(Duration, bool),
}

impl Failure {
    /// The server cannot have seen the request.
    pub const fn is_before_sending(&self) -> bool {
        matches!(self, Self::Address | Self::Header(_) | Self::Connect(_) | Self::Late(_, false))
    }
}

/// How often something is tried, and how long to wait before it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// Before the second one; twice as long before each further one.
    pub wait: Duration,
}

impl Retry {
    /// Tries once.
    pub const NEVER: Self = Self { attempts: 1, wait: Duration::ZERO };
}

/// Sends requests.
#[derive(Clone, Debug)]
pub struct Client<C> {
    connect: C,
    /// From looking up the name to the last byte of the answer.
    timeout: Duration,
    answer_max: usize,
}

impl<C: Connect> Client<C> {
    /// A client whose requests take `timeout` each at most, for answers of `answer_max` bytes at most.
    pub const fn new(connect: C, timeout: Duration, answer_max: usize) -> Self {
        Self { connect, timeout, answer_max }
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// When there is no whole answer in time. A status that names an error is an answer.
    pub async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let mut connected = false;
        let answered = tokio::time::timeout(self.timeout, self.exchange(request, &mut connected)).await;
        answered.unwrap_or(Err(Failure::Late(self.timeout, connected)))
    }

    /// Sends a request until the outcome is one that `again` does not want repeated, as often as `retry` says.
    ///
    /// # Errors
    /// As [`Client::send`], of the last attempt.
    pub async fn send_until(
        &self,
        request: &Request,
        retry: Retry,
        again: impl Fn(&Result<Answer, Failure>) -> bool + Send,
    ) -> Result<Answer, Failure> {
        let mut wait = retry.wait;
        let mut attempt = 1;
        loop {
            let outcome = self.send(request).await;
            if attempt >= retry.attempts || !again(&outcome) {
                return outcome;
            }
            drop(outcome);
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2);
            attempt += 1;
        }
    }

    async fn exchange(&self, request: &Request, connected: &mut bool) -> Result<Answer, Failure> {
        let to = endpoint(&request.uri).ok_or(Failure::Address)?;
        let stream = self.connect.connect(&to).await.map_err(Failure::Connect)?;
        *connected = true;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Driven beside the exchange and dropped with it: nothing of it outlives the request.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(async {
            let answer = sender.send_request(self.outgoing(request)?).await?;
            let (head, body) = answer.into_parts();
            let body = read(Body::new(body), self.answer_max).await?;
            Ok(Answer { status: head.status, headers: head.headers, body })
        });
        let mut open = true;
        poll_fn(|cx| {
            if open && connection.as_mut().poll(cx).is_ready() {
                open = false; // what broke it, the exchange hears as well
            }
            exchange.as_mut().poll(cx)
        })
        .await
    }

    fn outgoing(&self, request: &Request) -> Result<hyper::Request<Body>, Failure> {
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let host = request.uri.authority().map_or("", |authority| authority.as_str());
        let mut outgoing = hyper::Request::new(Body::from(request.body.clone()));
        *outgoing.method_mut() = request.method.clone();
        *outgoing.uri_mut() = target.parse().map_err(|_| Failure::Address)?;
        *outgoing.headers_mut() = request.headers.clone();
        let headers = outgoing.headers_mut();
        headers.insert(header::HOST, HeaderValue::from_str(host).map_err(|_| Failure::Address)?);
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("bridge/", env!("CARGO_PKG_VERSION"))),
        );
        Ok(outgoing)
    }
}

/// Reads a body of `most` bytes at most.
async fn read(mut body: Body, most: usize) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    if body.size_hint().lower() > most as u64 {
        return Err(Failure::TooLong(most));
    }
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Some(data) = frame.map_err(Failure::Body)?.data_ref() {
            if whole.len() + data.len() > most {
                return Err(Failure::TooLong(most));
            }
            whole.extend_from_slice(data);
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// Leads every connection to one handler.
    #[derive(Clone)]
    struct To<F>(F, Arc<AtomicUsize>);

    impl<F, A> Connect for To<F>
    where
        F: Fn(usize, DuplexStream) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        type Stream = DuplexStream;

        async fn connect(&self, _to: &Endpoint) -> io::Result<DuplexStream> {
            let n = self.1.fetch_add(1, SeqCst);
            let (here, there) = duplex(64 * 1024);
            tokio::spawn((self.0)(n, there));
            Ok(here)
        }
    }

    fn client<F, A>(handler: F) -> (Client<To<F>>, Arc<AtomicUsize>)
    where
        F: Fn(usize, DuplexStream) -> A + Clone + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let dialled = Arc::new(AtomicUsize::new(0));
        (Client::new(To(handler, dialled.clone()), Duration::from_secs(5), 1_000), dialled)
    }

    async fn request_of(stream: &mut DuplexStream) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(bytes).unwrap().to_lowercase()
    }

    async fn answers(mut stream: DuplexStream, answer: &str) {
        request_of(&mut stream).await;
        stream.write_all(answer.as_bytes()).await.unwrap();
    }

    fn get() -> Request {
        Request::new(Method::GET, "https://api.example.com:8443/a/b?c=%20d").unwrap()
    }

    #[tokio::test]
    async fn a_request_says_what_it_was_given_and_an_answer_is_read_whole() {
        let (client, _) = client(|_, mut stream: DuplexStream| async move {
            let head = request_of(&mut stream).await;
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            assert!(head.starts_with("post /a/b?c=%20d http/1.1\r\n"), "{head}");
            for line in [
                "host: api.example.com:8443",
                "authorization: basic x",
                "content-length: 5",
                "connection: close",
            ] {
                assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
            }
            assert_eq!(&body, b"a=b+c");
            let answer = "HTTP/1.1 201 Created\r\nContent-Length: 4\r\nX-A: 1\r\n\r\ndone";
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let request = Request::new(Method::POST, "https://api.example.com:8443/a/b?c=%20d")
            .unwrap()
            .body("application/x-www-form-urlencoded", b"a=b+c".to_vec())
            .authorization("Basic x")
            .unwrap();
        assert!(!format!("{request:?}").contains("Basic x"), "secrets are not shown");
        let answer = client.send(&request).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (201, b"done".as_slice()));
        assert_eq!(answer.headers["x-a"], "1");
    }

    #[tokio::test]
    async fn an_answer_beyond_the_limit_is_refused_however_it_is_framed() {
        for answer in [
            format!("HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n{}", "x".repeat(1_001)),
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{}\r\n0\r\n\r\n",
                "x".repeat(1_001)
            ),
            format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1_001)),
        ] {
            let (client, _) = client(move |_, stream| {
                let answer = answer.clone();
                async move { answers(stream, &answer).await }
            });
            assert!(matches!(client.send(&get()).await, Err(Failure::TooLong(1_000))));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_never_answers_is_given_up() {
        let (client, _) = client(|_, stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        let failure = client.send(&get()).await.unwrap_err();
        assert!(matches!(failure, Failure::Late(..)) && !failure.is_before_sending(), "{failure}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_as_often_as_allowed_and_no_more() {
        let busy = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
        let retry = Retry { attempts: 3, wait: Duration::from_millis(100) };
        let again =
            |outcome: &Result<Answer, Failure>| outcome.as_ref().is_ok_and(|a| a.status.is_server_error());
        let (client, dialled) = client(move |_, stream| answers(stream, busy));
        assert_eq!(client.send_until(&get(), retry, again).await.unwrap().status.as_u16(), 503);
        assert_eq!(dialled.load(SeqCst), 3);
        assert_eq!(client.send_until(&get(), Retry::NEVER, again).await.unwrap().status.as_u16(), 503);
        assert_eq!(dialled.load(SeqCst), 4);
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_an_error_that_may_have_been_sent() {
        let (client, _) = client(|_, mut stream| async move {
            request_of(&mut stream).await;
        });
        let failure = client.send(&get()).await.unwrap_err();
        assert!(matches!(failure, Failure::Exchange(_)) && !failure.is_before_sending(), "{failure}");
        let closed = Client::new(TlsConnect::new().unwrap(), Duration::from_secs(5), 10);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let failure = closed.send(&Request::new(Method::GET, &url).unwrap()).await.unwrap_err();
        assert!(failure.is_before_sending(), "{failure}");
    }

    #[tokio::test]
    async fn a_redirect_is_an_answer_and_is_not_followed() {
        let away = "HTTP/1.1 302 Found\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n";
        let (client, dialled) = client(move |_, stream| answers(stream, away));
        assert_eq!(client.send(&get()).await.unwrap().status.as_u16(), 302);
        assert_eq!(dialled.load(SeqCst), 1);
    }

    #[test]
    fn a_line_break_makes_no_header() {
        let name = HeaderName::from_static("x-call");
        assert!(matches!(get().header(name, "CA1\r\nX-Admin: yes"), Err(Failure::Header(_))));
        assert!(matches!(get().authorization("a\nb"), Err(Failure::Header(_))));
    }

    #[test]
    fn only_http_addresses_without_a_user_are_taken() {
        for bad in ["", "/path", "ftp://x/", "https://user@x/", "https:///", "wss://x/", "https://a b/"] {
            assert!(Request::new(Method::GET, bad).is_err(), "{bad}");
        }
        let v6 = endpoint(&"http://[::1]/x".parse().unwrap()).unwrap();
        assert_eq!(v6, Endpoint { secure: false, host: "::1".into(), port: 80 });
    }

    #[tokio::test]
    async fn a_client_for_the_public_internet_dials_no_neighbour() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let client = Client::new(TlsConnect::new().unwrap().public_only(), Duration::from_secs(5), 10);
        let failure = client.send(&Request::new(Method::GET, &url).unwrap()).await.unwrap_err();
        assert!(failure.to_string().contains("not one of those allowed"), "{failure}");
    }

    #[test]
    fn every_address_that_is_not_public_is_known() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in
            ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
