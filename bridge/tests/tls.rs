//! The program itself with a certificate of its own: whom it speaks to, and when it reads its files again.

#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use bridge::net::dial::{Dial as _, TlsDial};
use common::given_up;
use rustls::RootCertStore;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ASKED: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A fresh certificate for `localhost`, in two files of this folder, and what trusts it.
fn issue(folder: &Path) -> RootCertStore {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    roots
}

/// Whether a server that `roots` vouch for is healthy.
async fn is_healthy(port: u16, roots: &RootCertStore) -> bool {
    let url = format!("wss://localhost:{port}/").parse().unwrap();
    let Ok(mut tls) = TlsDial::trusting(&url, roots.clone()).unwrap().dial().await else { return false };
    let mut answer = [0; 12];
    tls.write_all(ASKED).await.is_ok()
        && given_up(tls.read_exact(&mut answer)).await.is_ok()
        && &answer == b"HTTP/1.1 200"
}

async fn until_healthy(port: u16, roots: &RootCertStore, why: &str) {
    for _ in 0..1_500 {
        if is_healthy(port, roots).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{why}");
}

#[tokio::test]
async fn only_tls_is_spoken_and_a_hangup_signal_reads_the_certificate_again() {
    let folder = tempfile::TempDir::new().unwrap();
    let first = issue(folder.path());
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let config = format!(
        "listen = \"127.0.0.1:{port}\"\nlive = {{ enabled = false }}\ntwilio = {{ insecure_no_signature = true }}\n\
         openai = {{ api_key = \"sk-test\" }}\ntls = {{ cert_file = \"cert.pem\", key_file = \"key.pem\" }}\n"
    );
    std::fs::write(folder.path().join("bridge.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.current_dir(folder.path()).args(["--config", "bridge.toml"]).stderr(Stdio::null());
    let bridge = Running(command.env_remove("BRIDGE_STORE_URL").spawn().unwrap());
    until_healthy(port, &first, "the bridge speaks TLS").await;

    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    plain.write_all(ASKED).await.unwrap();
    let mut answer = Vec::new();
    let _either = given_up(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));

    let second = issue(folder.path()); // into the same files
    assert!(
        is_healthy(port, &first).await && !is_healthy(port, &second).await,
        "the bridge has not read it yet"
    );
    let told = Command::new("kill").args(["-HUP", &bridge.0.id().to_string()]).status().unwrap();
    assert!(told.success());
    until_healthy(port, &second, "the new certificate is shown").await;
    assert!(!is_healthy(port, &first).await, "and the old one is not");
}
