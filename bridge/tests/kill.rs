//! The program itself, killed in the middle of a call without a word: what was said until then is there afterwards.

#![cfg(feature = "store")]
#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use common::say;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A bridge in a process of its own, which does not outlive its test.
struct Bridge {
    child: Child,
    address: SocketAddr,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn command(folder: &Path, model: SocketAddr, dead: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command
        .current_dir(folder)
        .env("OPENAI_API_KEY", "sk-test")
        .env("OPENAI_REALTIME_URL", format!("ws://{model}/v1/realtime"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{dead}"))
        .env("BRIDGE_JOURNAL_DIR", folder.join("journals"))
        .env("BRIDGE_LOG", "error")
        .env_remove("BRIDGE_STORE_URL")
        .env_remove("BRIDGE_CONFIG");
    command
}

async fn start(folder: &Path, model: SocketAddr, dead: SocketAddr) -> Bridge {
    let address = free_port().await;
    let mut command = command(folder, model, dead);
    let child = command
        .arg("--insecure-no-signature")
        .arg("--listen")
        .arg(address.to_string())
        .arg("--metrics-listen")
        .arg(address.to_string())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let bridge = Bridge { child, address };
    for _ in 0..500 {
        if get(address, "/healthz").await.is_some_and(|text| text.starts_with("HTTP/1.1 200")) {
            return bridge;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the bridge does not listen");
}

async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut tcp = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.ok()?;
    Some(text)
}

/// What `bridge calls` prints.
fn calls(folder: &Path, model: SocketAddr, arguments: &[&str]) -> String {
    // Reading stored calls needs no key.
    let mut command = command(folder, model, model);
    let output = command.env_remove("OPENAI_API_KEY").arg("calls").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_killed_bridge_leaves_what_was_said_and_the_next_one_closes_the_call() {
    let folder = tempfile::TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let model_address = listener.local_addr().unwrap();
    let dead = free_port().await; // where no collector listens
    let mut bridge = start(folder.path(), model_address, dead).await;

    let tcp = TcpStream::connect(bridge.address).await.unwrap();
    let url = format!("ws://{}/twilio", bridge.address);
    let (mut caller, _) = tokio_tungstenite::client_async(url, tcp).await.unwrap();
    say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
    say(
        &mut caller,
        &json!({"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": {
        "streamSid": "MZ1", "accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}}),
    )
    .await;
    let payload = "/".repeat(213) + "w==";
    let media = json!({"track": "inbound", "chunk": "1", "timestamp": "20", "payload": payload});
    say(&mut caller, &json!({"event": "media", "sequenceNumber": "2", "streamSid": "MZ1", "media": media}))
        .await;

    let (tcp, _) = listener.accept().await.unwrap();
    let mut model = tokio_tungstenite::accept_async(tcp).await.unwrap();
    let format = json!({"format": {"type": "audio/pcm", "rate": 24000}});
    let session = json!({"id": "sess_1", "audio": {"input": format, "output": format}});
    say(&mut model, &json!({"type": "session.created", "session": session})).await;
    assert!(model.next().await.unwrap().unwrap().is_text());
    say(&mut model, &json!({"type": "session.updated", "session": session})).await;
    let kind = "conversation.item.input_audio_transcription.completed";
    say(&mut model, &json!({"type": kind, "item_id": "u1", "transcript": "Where is my order?"})).await;

    // It is stored while the call goes on.
    let mut seen = String::new();
    for _ in 0..500 {
        if folder.path().join("bridge.db").exists() {
            seen = calls(folder.path(), model_address, &["export"]);
        }
        if seen.contains("Where is my order?") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stored: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!((&stored["call_sid"], &stored["reason"]), (&json!("CA1"), &Value::Null));
    let figures = get(bridge.address, "/metrics").await.unwrap();
    assert!(figures.contains("\nbridge_calls_active 1.0\n"), "{figures}");

    bridge.child.kill().unwrap(); // SIGKILL
    bridge.child.wait().unwrap();
    drop(bridge);
    let next = start(folder.path(), model_address, dead).await;
    let page = calls(folder.path(), model_address, &["show", "CA1"]);
    assert!(page.contains("end       process_died"), "{page}");
    assert!(page.contains("caller  Where is my order?\n"), "{page}");
    let list = calls(folder.path(), model_address, &["list"]);
    assert!(list.contains("process_died") && list.contains("CA1"), "{list}");
    drop(next);
}

#[tokio::test]
async fn a_spoilt_store_is_refused_by_name_before_any_call_is_taken() {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("bridge.db"), "no database at all".repeat(1_000)).unwrap();
    let nowhere = free_port().await;
    let mut command = command(folder.path(), nowhere, nowhere);
    command.env("BRIDGE_LOG", "info").args(["--insecure-no-signature", "--listen", "127.0.0.1:0"]);
    let output = command.output().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && log.contains("sqlite:bridge.db"), "{log}");
    assert!(!log.contains("taking calls"), "{log}");
}
