//! Real sockets for the mocks: TCP, with TLS where it is asked for, whichever end dials.

use anyhow::{Context as _, bail};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_tungstenite::tungstenite::http::Uri;

/// The longest head of a request.
const HEAD_MAX: usize = 32 * 1024;

/// An address of `ws`, `wss`, `http` or `https`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// As it was written.
    text: String,
    /// TLS.
    pub secure: bool,
    /// Name or number, without brackets.
    pub host: String,
    /// The port, whether it was written or not.
    pub port: u16,
    /// Path and query; at least `/`.
    pub target: String,
}

impl FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let uri: Uri = text.parse().with_context(|| format!("{text} is no URL"))?;
        let secure = match uri.scheme_str() {
            Some("wss" | "https") => true,
            Some("ws" | "http") => false,
            Some(_) | None => bail!("{text} must begin with ws://, wss://, http:// or https://"),
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            bail!("{text} names no host");
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        Ok(Self { text: text.to_owned(), secure, host, port, target })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url {
    /// What a `Host` header says.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// The same without its query: Twilio drops the query of a stream's address.
    ///
    /// # Panics
    /// Never: what is left of a URL without its query is one.
    #[must_use]
    pub fn without_query(&self) -> Self {
        let text = self.text.split('?').next().unwrap_or_default();
        text.parse().expect("a URL without its query is a URL")
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Whose certificates are believed.
#[derive(Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// The authorities that browsers know.
    pub fn public() -> Self {
        Self(Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }))
    }

    /// These certificates and no others.
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn of_pem(pem: &str) -> anyhow::Result<Self> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            store.add(certificate.context("a certificate cannot be read")?)?;
        }
        if store.is_empty() {
            bail!("there is no certificate in it; a PEM file begins with -----BEGIN CERTIFICATE-----");
        }
        Ok(Self(Arc::new(store)))
    }

    /// For a client of one's own.
    pub fn store(&self) -> RootCertStore {
        (*self.0).clone()
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} roots", self.0.len())
    }
}

/// A certificate for this run alone, and the key to it.
#[derive(Clone)]
pub struct Throwaway {
    acceptor: TlsAcceptor,
    pem: String,
}

impl Throwaway {
    /// Made now, for these host names and addresses.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).context("no certificate can be made")?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), pem: made.cert.pem() })
    }

    /// The certificate, for the client that is to trust it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The server's side of a handshake.
    ///
    /// # Errors
    /// When the other side does not want it.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        let tls = self.acceptor.accept(tcp).await?;
        Ok(Stream { head: Vec::new(), inner: Inner::Server(Box::new(tls)) })
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Connects to where `url` points, with TLS if it says so.
///
/// # Errors
/// When no host answers there, or one with a certificate that is not trusted.
pub async fn dial(url: &Url, roots: &Roots) -> io::Result<Stream> {
    let tcp = TcpStream::connect((url.host.as_str(), url.port)).await?;
    // Frames are small and due now.
    tcp.set_nodelay(true)?;
    if !url.secure {
        return Ok(tcp.into());
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots.0.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    Ok(Stream { head: Vec::new(), inner: Inner::Client(Box::new(tls)) })
}

/// A TCP stream, with or without TLS, from either end.
pub struct Stream {
    /// What was read of it in advance.
    head: Vec<u8>,
    inner: Inner,
}

enum Inner {
    Plain(TcpStream),
    Client(Box<client::TlsStream<TcpStream>>),
    Server(Box<server::TlsStream<TcpStream>>),
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { head: Vec::new(), inner: Inner::Plain(tcp) }
    }
}

impl Stream {
    /// The head of the request that is about to be read, which stays to be read.
    ///
    /// # Errors
    /// When the stream ends before its head does, or the head does not end.
    pub async fn peek_head(&mut self) -> io::Result<String> {
        let mut buffer = [0; 2048];
        loop {
            if let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") {
                return Ok(String::from_utf8_lossy(&self.head[..end + 2]).into_owned());
            }
            if self.head.len() > HEAD_MAX {
                return Err(io::Error::other("the head of a request does not end"));
            }
            let read = match &mut self.inner {
                Inner::Plain(tcp) => tcp.read(&mut buffer).await?,
                Inner::Client(tls) => tls.read(&mut buffer).await?,
                Inner::Server(tls) => tls.read(&mut buffer).await?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.head.extend_from_slice(&buffer[..read]);
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.inner {
            Inner::Plain(tcp) => tcp,
            Inner::Client(tls) => tls.get_ref().0,
            Inner::Server(tls) => tls.get_ref().0,
        }
    }

    /// The stream ends with a reset, as if no process had ever listened.
    pub fn reset(self) {
        // A socket that cannot be told is closed the usual way, which is nearly as rude.
        let _best_effort = self.tcp().set_zero_linger();
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.head.is_empty() {
            let some = this.head.len().min(buf.remaining());
            buf.put_slice(&this.head[..some]);
            this.head.drain(..some);
            return Poll::Ready(Ok(()));
        }
        match &mut this.inner {
            Inner::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Client(stream) => Pin::new(stream).poll_read(cx, buf),
            Inner::Server(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Client(stream) => Pin::new(stream).poll_write(cx, buf),
            Inner::Server(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Client(stream) => Pin::new(stream).poll_flush(cx),
            Inner::Server(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Client(stream) => Pin::new(stream).poll_shutdown(cx),
            Inner::Server(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Accepts connections with a throwaway certificate, or without one.
///
/// # Errors
/// When the handshake fails.
pub fn receive(
    tcp: TcpStream,
    tls: Option<&Throwaway>,
) -> impl Future<Output = io::Result<Stream>> + Send + use<> {
    let tls = tls.cloned();
    async move {
        tcp.set_nodelay(true)?;
        match tls {
            Some(tls) => tls.accept(tcp).await,
            None => Ok(tcp.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    #[test]
    fn addresses_are_taken_apart() {
        let url: Url = "wss://voice.example.com/media?a=1".parse().unwrap();
        assert_eq!((url.secure, url.host.as_str(), url.port), (true, "voice.example.com", 443));
        assert_eq!((url.target.as_str(), url.authority().as_str()), ("/media?a=1", "voice.example.com"));
        assert_eq!(url.without_query().to_string(), "wss://voice.example.com/media");
        let url: Url = "ws://[::1]:5050".parse().unwrap();
        assert_eq!(
            (url.host.as_str(), url.target.as_str(), url.authority().as_str()),
            ("::1", "/", "[::1]:5050")
        );
        for bad in ["ftp://a", "nowhere", "ws://"] {
            assert!(bad.parse::<Url>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_throwaway_certificate_is_believed_by_those_who_have_it_alone() {
        let tls = Throwaway::new(&["localhost"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
        let serve = async {
            let mut heads = Vec::new();
            for _ in 0..2 {
                let (tcp, _) = listener.accept().await.unwrap();
                match receive(tcp, Some(&tls)).await {
                    Ok(mut stream) => heads.push(stream.peek_head().await.ok()),
                    Err(_) => heads.push(None),
                }
            }
            heads
        };
        let call = async {
            let mut stream = dial(&url, &Roots::of_pem(tls.pem()).unwrap()).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nrest").await.unwrap();
            stream.flush().await.unwrap();
            (dial(&url, &Roots::public()).await.is_err(), stream)
        };
        let (heads, (refused, _stream)) = tokio::join!(serve, call);
        assert_eq!(heads, [Some("GET / HTTP/1.1\r\nHost: a\r\n".to_owned()), None]);
        assert!(refused);
    }

    #[tokio::test]
    async fn what_was_looked_at_is_still_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("ws://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let roots = Roots::public();
        let (near, far) = tokio::join!(dial(&url, &roots), listener.accept());
        near.unwrap().write_all(b"GET /x HTTP/1.1\r\n\r\nmore").await.unwrap();
        let mut far = receive(far.unwrap().0, None).await.unwrap();
        assert_eq!(far.peek_head().await.unwrap(), "GET /x HTTP/1.1\r\n");
        let mut all = String::new();
        far.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "GET /x HTTP/1.1\r\n\r\nmore");
    }
}
