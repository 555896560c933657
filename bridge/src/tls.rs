//! TLS on the listener itself, for whoever has no proxy to do it.
//!
//! A handshake never holds up `accept`: each goes on in a task of its own, for so long and no longer, and only what
//! has come through is handed out. The certificate can be read again while calls go on; a file that cannot be read
//! then leaves the old one in force.

use crate::config::Tls;
use anyhow::Context as _;
use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; further connections wait to be accepted.
const HANDSHAKES_MAX: usize = 256;

/// The certificate in force. A handle: clones see the same one.
#[derive(Clone, Debug)]
pub struct Certificate(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    settings: Tls,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files of these settings; `None` when they name none.
    ///
    /// # Errors
    /// When a file cannot be read, holds no certificate or key, or the two do not belong together.
    pub fn read(settings: &Tls) -> anyhow::Result<Option<Self>> {
        let (Some(cert), Some(key)) = (&settings.cert_file, &settings.key_file) else { return Ok(None) };
        let key = RwLock::new(Arc::new(load(cert, key)?));
        Ok(Some(Self(Arc::new(Shown { settings: settings.clone(), key }))))
    }

    /// Reads the files again. New connections get what is in them now.
    ///
    /// # Errors
    /// As [`Certificate::read`]; the old certificate stays in force.
    pub fn reload(&self) -> anyhow::Result<()> {
        let (Some(cert), Some(key)) = (&self.0.settings.cert_file, &self.0.settings.key_file) else {
            return Ok(());
        };
        let fresh = Arc::new(load(cert, key)?);
        *self.0.key.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(self.0.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn load(cert: &Path, key: &Path) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("tls.cert_file {}: not a PEM file of certificates", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "tls.cert_file {}: there is no certificate in it", cert.display());
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("tls.key_file {}: not a PEM file of a private key", key.display()))?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&private)
        .with_context(|| format!("tls.key_file {}: a key this bridge cannot sign with", key.display()))?;
    let pair = CertifiedKey::new(chain, signer);
    pair.keys_match().with_context(|| {
        format!("tls.key_file {} does not belong to tls.cert_file {}", key.display(), cert.display())
    })?;
    Ok(pair)
}

/// What comes of a handshake.
type Shaken<L> = io::Result<(TlsStream<<L as Listener>::Io>, <L as Listener>::Addr)>;

/// A listener whose connections have come through a handshake.
pub struct TlsListener<L: Listener> {
    tcp: L,
    acceptor: TlsAcceptor,
    handshakes: JoinSet<Shaken<L>>,
}

impl<L: Listener> TlsListener<L> {
    /// Speaks TLS with this certificate on what `tcp` accepts.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(tcp: L, certificate: &Certificate) -> anyhow::Result<Self> {
        Ok(Self { tcp, acceptor: certificate.acceptor()?, handshakes: JoinSet::new() })
    }
}

impl<L> Listener for TlsListener<L>
where
    L: Listener,
    L::Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    L::Addr: Send + 'static,
{
    type Io = TlsStream<L::Io>;
    type Addr = L::Addr;

    /// Dropped and asked anew it loses nothing: handshakes go on by themselves, and wait here when they are done.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(accepted)) => return accepted,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(error) => tracing::error!(%error, "a TLS handshake panicked"),
                },
                (io, from) = self.tcp.accept(), if self.handshakes.len() < HANDSHAKES_MAX => {
                    let handshake = self.acceptor.accept(io);
                    self.handshakes.spawn(async move {
                        match tokio::time::timeout(HANDSHAKE, handshake).await {
                            Ok(done) => Ok((done?, from)),
                            Err(_late) => Err(io::Error::new(io::ErrorKind::TimedOut, "too slow")),
                        }
                    });
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::trusting;
    use crate::serve::tests::Crowd;
    use rustls::RootCertStore;
    use rustls::pki_types::ServerName;
    use std::path::Path;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A certificate of our own for `localhost`, in two files of this folder, and what trusts it.
    fn issue(folder: &Path) -> (Tls, RootCertStore) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        (Tls { cert_file: Some(cert), key_file: Some(key) }, roots)
    }

    async fn listen(settings: &Tls) -> (TlsListener<TcpListener>, Certificate, std::net::SocketAddr) {
        let certificate = Certificate::read(settings).unwrap().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        (TlsListener::new(tcp, &certificate).unwrap(), certificate, address)
    }

    async fn connect(
        address: std::net::SocketAddr,
        roots: RootCertStore,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        trusting(roots)?.connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    #[tokio::test]
    async fn a_handshake_that_never_comes_holds_nobody_up() {
        let folder = TempDir::new().unwrap();
        let (settings, roots) = issue(folder.path());
        let (mut listener, _certificate, address) = listen(&settings).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let third = async { tokio::join!(connect(address, roots), listener.accept()) };
        // Well before the silent one is given up.
        let third = tokio::time::timeout(HANDSHAKE / 2, third).await;
        let (connected, (mut accepted, _from)) = third.expect("nobody is held up");
        let mut connected = connected.unwrap();
        connected.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        accepted.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_that_never_come_are_bounded_and_given_up() {
        let folder = TempDir::new().unwrap();
        let (settings, _) = issue(folder.path());
        let certificate = Certificate::read(&settings).unwrap().unwrap();
        let crowd = Crowd::of(HANDSHAKES_MAX + 10);
        let mut listener = TlsListener::new(crowd.clone(), &certificate).unwrap();
        assert!(
            tokio::time::timeout(HANDSHAKE / 2, listener.accept()).await.is_err(),
            "nobody comes through"
        );
        assert_eq!(crowd.accepted(), HANDSHAKES_MAX);
        assert!(tokio::time::timeout(HANDSHAKE, listener.accept()).await.is_err(), "nobody comes through");
        assert_eq!(
            crowd.accepted(),
            HANDSHAKES_MAX + 10,
            "whoever waited has a turn when the others are gone"
        );
    }

    #[tokio::test]
    async fn a_certificate_is_read_again_and_a_bad_file_leaves_the_old_one() {
        let folder = TempDir::new().unwrap();
        let (settings, first) = issue(folder.path());
        let (mut listener, certificate, address) = listen(&settings).await;
        tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        assert!(connect(address, first.clone()).await.is_ok());
        std::fs::write(settings.cert_file.as_ref().unwrap(), "no certificate").unwrap();
        let error = certificate.reload().unwrap_err().to_string();
        assert!(
            error.contains("there is no certificate in it") || error.contains("not a PEM file"),
            "{error}"
        );
        assert!(connect(address, first.clone()).await.is_ok(), "the old one is in force");
        let (_, second) = issue(folder.path()); // into the same files
        certificate.reload().unwrap();
        assert!(connect(address, second).await.is_ok());
        assert!(connect(address, first).await.is_err(), "the old one is not shown any more");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folders = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (one, _) = issue(folders.0.path());
        let (other, _) = issue(folders.1.path());
        let mixed = Tls { cert_file: one.cert_file, key_file: other.key_file };
        let error = Certificate::read(&mixed).unwrap_err().to_string();
        assert!(error.contains("does not belong to"), "{error}");
        assert!(Certificate::read(&Tls::default()).unwrap().is_none());
    }
}
