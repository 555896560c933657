//! TLS on the listener itself, for a bridge without a proxy that does it.
//!
//! Handshakes are made and bounded by [`crate::server::connections`]. The certificate can be read again while calls go on; a
//! file that cannot be read then leaves the old one in force.

use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// TLS on the listener itself. Both files, or neither; read again on SIGHUP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The certificate and those that vouch for it, PEM.
    pub cert_file: Option<PathBuf>,
    /// The certificate's key, PEM.
    pub key_file: Option<PathBuf>,
}

/// The certificate in force. A handle: clones see the same one.
#[derive(Clone, Debug)]
pub struct Certificate(Arc<Shown>);

#[derive(Debug)]
struct Shown {
    settings: Settings,
    key: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the files of these settings; `None` when they name none.
    ///
    /// # Errors
    /// When a file cannot be read, holds no certificate or key, or the two do not belong together.
    pub fn read(settings: &Settings) -> anyhow::Result<Option<Self>> {
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

    pub(crate) fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dial::trusting;
    use crate::server::connections::{self, HANDSHAKE, Limits, Tcp, tests::Comers};
    use crate::server::stats::Stats;
    use axum::Router;
    use axum::routing::get;
    use rustls::RootCertStore;
    use rustls::pki_types::ServerName;
    use std::io;
    use std::net::SocketAddr;
    use std::path::Path;
    use std::time::Duration;
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A certificate of our own for `localhost`, in two files of this folder, and what trusts it.
    fn issue(folder: &Path) -> (Settings, RootCertStore) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        (Settings { cert_file: Some(cert), key_file: Some(key) }, roots)
    }

    /// Serves a page with this certificate.
    async fn serve(settings: &Settings) -> (Certificate, SocketAddr) {
        let certificate = Certificate::read(settings).unwrap().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stats) = (tcp.local_addr().unwrap(), Stats::default());
        let pages = Router::new().route("/", get(|| async { "hello" }));
        let tls = Some(certificate.acceptor().unwrap());
        tokio::spawn(connections::serve(Tcp::new(tcp, stats.clone()), tls, pages, Limits::of(9), stats));
        (certificate, address)
    }

    async fn connect(
        address: SocketAddr,
        roots: RootCertStore,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        trusting(roots)?.connect(ServerName::try_from("localhost").unwrap(), tcp).await
    }

    #[tokio::test]
    async fn a_handshake_that_never_comes_holds_no_other_up() {
        let folder = TempDir::new().unwrap();
        let (settings, roots) = issue(folder.path());
        let (_certificate, address) = serve(&settings).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut garbage = TcpStream::connect(address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut connected = connect(address, roots).await.unwrap();
        connected.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut heard = String::new();
        connected.read_to_string(&mut heard).await.unwrap();
        assert!(heard.ends_with("hello"), "{heard}");
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_that_never_come_give_way_and_are_given_up() {
        let folder = TempDir::new().unwrap();
        let (settings, _) = issue(folder.path());
        let certificate = Certificate::read(&settings).unwrap().unwrap();
        let (comers, stats) = (Comers::of(42), Stats::default());
        let tls = Some(certificate.acceptor().unwrap());
        let pages = Router::new();
        let serving = connections::serve(comers.clone(), tls, pages, Limits::of(32), stats.clone());
        tokio::spawn(serving);
        tokio::time::sleep(HANDSHAKE / 2).await;
        assert_eq!((comers.accepted(), stats.connections_open(), stats.connections_evicted()), (42, 32, 10));
        tokio::time::sleep(HANDSHAKE / 2 + Duration::from_millis(10)).await;
        assert_eq!(stats.connections_open(), 0, "given up");
    }

    #[tokio::test]
    async fn a_certificate_is_read_again_and_a_bad_file_leaves_the_old_one() {
        let folder = TempDir::new().unwrap();
        let (settings, first) = issue(folder.path());
        let (certificate, address) = serve(&settings).await;
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
        let mixed = Settings { cert_file: one.cert_file, key_file: other.key_file };
        let error = Certificate::read(&mixed).unwrap_err().to_string();
        assert!(error.contains("does not belong to"), "{error}");
        assert!(Certificate::read(&Settings::default()).unwrap().is_none());
    }
}
