//! How the model is reached. Production speaks TLS over TCP; the simulator brings its own.

use crate::base::secret::Secret;
use crate::base::url::ModelUrl;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The model's service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelEndpoint {
    /// Where its WebSocket is.
    pub url: ModelUrl,
    /// The key of the project that pays. Better given as `OPENAI_API_KEY` than in a file.
    pub api_key: Secret,
}

/// Opens a byte stream to the model's server.
pub trait Dial: Clone + Send + Sync + 'static {
    /// The byte stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens one. There is no time limit here: the call's own timer ends an attempt that takes too long.
    fn dial(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// The production dialler: TCP, and TLS for `wss`.
#[derive(Clone)]
pub struct TlsDial {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl TlsDial {
    /// A dialler for `url`, trusting the certificate authorities compiled in.
    ///
    /// # Errors
    /// When the host of a `wss` URL is no name a certificate could carry.
    pub fn new(url: &ModelUrl) -> io::Result<Self> {
        Self::trusting(url, public_roots())
    }

    /// A dialler for `url`, trusting `roots` alone: for a server with a certificate of one's own.
    ///
    /// # Errors
    /// When the host of a `wss` URL is no name a certificate could carry.
    pub fn trusting(url: &ModelUrl, roots: RootCertStore) -> io::Result<Self> {
        let tls = if url.secure {
            let name = ServerName::try_from(url.host.clone()).map_err(io::Error::other)?;
            Some((trusting(roots)?, name))
        } else {
            None
        };
        Ok(Self { host: url.host.clone(), port: url.port, tls })
    }
}

/// TLS towards servers whose certificates `roots` vouch for.
pub(crate) fn trusting(roots: RootCertStore) -> io::Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The certificate authorities compiled in.
pub(crate) fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

impl Dial for TlsDial {
    type Stream = MaybeTls;

    async fn dial(&self) -> io::Result<MaybeTls> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        // Frames are small and due now.
        tcp.set_nodelay(true)?;
        Ok(match &self.tls {
            None => MaybeTls::Plain(tcp),
            Some((connector, name)) => MaybeTls::Tls(Box::new(connector.connect(name.clone(), tcp).await?)),
        })
    }
}

/// A TCP stream, with or without TLS.
pub enum MaybeTls {
    /// `ws`, for local work.
    Plain(TcpStream),
    /// `wss`.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl AsyncRead for MaybeTls {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn dial(url: &str) -> io::Result<MaybeTls> {
        TlsDial::new(&url.parse().unwrap())?.dial().await
    }

    #[tokio::test]
    async fn ws_is_plain_tcp_without_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/v1/realtime", listener.local_addr().unwrap());
        let (dialled, accepted) = tokio::join!(dial(&url), listener.accept());
        let (mut here, (mut there, _)) = (dialled.unwrap(), accepted.unwrap());
        assert!(matches!(&here, MaybeTls::Plain(tcp) if tcp.nodelay().unwrap()));
        here.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        there.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test]
    async fn wss_never_falls_back_to_plain_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("wss://localhost:{}/", listener.local_addr().unwrap().port());
        let server = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut hello = [0; 3];
            tcp.read_exact(&mut hello).await.unwrap();
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            hello
        };
        let (dialled, hello) = tokio::join!(dial(&url), server);
        assert_eq!(hello[0], 22, "a TLS handshake record");
        assert!(dialled.is_err());
    }

    #[tokio::test]
    async fn a_closed_port_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/", listener.local_addr().unwrap());
        drop(listener);
        assert_eq!(dial(&url).await.err().map(|e| e.kind()), Some(io::ErrorKind::ConnectionRefused));
    }
}
