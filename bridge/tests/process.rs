//! The program itself, as a process that others send signals to and fill up with connections: its calls go on.

#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use common::{given_up, media, say, start_with};
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Socket = WebSocketStream<TcpStream>;

#[tokio::test]
async fn a_hangup_signal_without_a_certificate_ends_no_call_not_even_while_draining() {
    let t = Bench::start("", &[]).await;
    let (mut caller, mut model) = t.call().await;
    t.signal("HUP");
    t.says("SIGHUP: there is no certificate to read again").await;
    t.is_carried(&mut caller, &mut model).await;
    t.signal("TERM");
    t.says("SIGTERM: draining").await;
    t.signal("HUP");
    t.says_so_often("SIGHUP: there is no certificate to read again", 2).await;
    t.is_carried(&mut caller, &mut model).await;
    hang_up(&mut caller).await;
    assert_eq!(t.ended().await, Some(0), "it drained, and was not killed");
}

#[tokio::test]
async fn behind_a_sigterm_it_takes_two_interrupts_to_cut_the_calls() {
    let t = Bench::start("", &[]).await;
    let (mut caller, mut model) = t.call().await;
    t.signal("TERM");
    t.says("SIGTERM: draining").await;
    t.signal("INT");
    t.says("SIGINT: draining; once more ends the calls").await;
    t.is_carried(&mut caller, &mut model).await;
    t.signal("INT");
    assert_eq!(t.ended().await, Some(1), "the second one means it");
    while let Some(Ok(_)) = given_up(caller.next()).await {}
}

/// Connections on which nothing is said, as many of `most` as the system lets in.
async fn silent(address: SocketAddr, most: usize) -> Vec<TcpStream> {
    let mut silent = Vec::new();
    for _ in 0..most {
        silent.extend(TcpStream::connect(address).await.ok());
    }
    silent
}

#[tokio::test]
async fn a_process_with_few_descriptors_keeps_those_of_its_calls() {
    // 64 of its own, 4 for each of 4 calls, and 48 connections.
    let t = Bench::start("ulimit -n 128;", &["--max-calls", "4"]).await;
    t.says("connections.max does not fit the limit of open files, and is lowered").await;
    let mut calls = vec![t.call().await];
    let crowd = silent(t.address, 300).await;
    assert_eq!(crowd.len(), 300);
    for _ in 1..4 {
        calls.push(t.call().await); // through the crowd, with a socket to the model, and a journal
    }
    for (caller, model) in &mut calls {
        t.is_carried(caller, model).await;
    }
    let figures = get(t.address, "/metrics").await.unwrap();
    assert!(figures.contains("\nbridge_connections_unaccepted_total 0.0\n"), "{figures}");
    assert!(!figures.contains("\nbridge_connections_evicted_total 0.0\n"), "{figures}");
    assert!(t.log().lines().filter(|line| line.contains("too many connections")).count() < 30, "{}", t.log());
    for (mut caller, _) in calls {
        hang_up(&mut caller).await;
    }
    t.signal("TERM");
    assert_eq!(t.ended().await, Some(0));
}

#[tokio::test]
async fn a_process_whose_calls_could_not_all_have_their_descriptors_does_not_start() {
    let folder = TempDir::new().unwrap();
    let mut command = command("ulimit -n 256;", folder.path());
    let output = command.args(["--listen", "127.0.0.1:0", "--metrics-listen", "off"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("max_calls = 200 may need 880 open files, and this process may have 256"),
        "{said}"
    );
    assert!(said.contains("LimitNOFILE") && !said.contains("taking calls"), "{said}");
}

// ------------------------------------------------------------------------------------------------ the bench

/// A bridge in a process of its own, which does not outlive its test, and the model it calls.
struct Bench {
    child: RefCell<Child>,
    folder: TempDir,
    address: SocketAddr,
    model: TcpListener,
    /// What the caller said last.
    chunk: Cell<u64>,
    calls: Cell<u64>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.get_mut().kill();
        let _ = self.child.get_mut().wait();
    }
}

async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A shell that does `before` and becomes the bridge.
fn command(before: &str, folder: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{before} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_bridge")]);
    command
        .current_dir(folder)
        .env("OPENAI_API_KEY", "sk-test")
        .env("BRIDGE_STORE_URL", "sqlite:bridge.db")
        .env("BRIDGE_JOURNAL_DIR", "journals");
    command.env_remove("BRIDGE_CONFIG").args(["--insecure-no-signature", "--live-listen", "off"]);
    command
}

impl Bench {
    async fn start(before: &str, arguments: &[&str]) -> Self {
        let (folder, address) = (TempDir::new().unwrap(), free_port().await);
        let model = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = command(before, folder.path())
            .args(["--listen", &address.to_string(), "--metrics-listen", &address.to_string()])
            .args(["--openai-url", &format!("ws://{}/v1/realtime", model.local_addr().unwrap())])
            .args(arguments)
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let t =
            Self { child: child.into(), folder, address, model, chunk: Cell::new(1), calls: Cell::new(0) };
        for _ in 0..1_500 {
            if get(address, "/healthz").await.is_some_and(|text| text.starts_with("HTTP/1.1 200")) {
                return t;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the bridge does not listen: {}", t.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    async fn says(&self, words: &str) {
        self.says_so_often(words, 1).await;
    }

    async fn says_so_often(&self, words: &str, times: usize) {
        for _ in 0..1_500 {
            if self.log().matches(words).count() >= times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not say {words:?}: {}", self.log());
    }

    fn signal(&self, name: &str) {
        let id = self.child.borrow().id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// The exit code; a process that was killed by a signal has none.
    async fn ended(&self) -> Option<i32> {
        for _ in 0..1_500 {
            if let Some(status) = self.child.borrow_mut().try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not end: {}", self.log());
    }

    /// A call whose two ends hear each other.
    async fn call(&self) -> (Socket, Socket) {
        self.calls.set(self.calls.get() + 1);
        let call_sid = format!("CA{}", self.calls.get());
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}/twilio", self.address);
        let (mut caller, _) = given_up(tokio_tungstenite::client_async(url, tcp)).await.unwrap();
        say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        say(&mut caller, &start_with(&call_sid, &json!({}))).await;
        say(&mut caller, &media(1)).await;
        let (tcp, _) = given_up(self.model.accept()).await.unwrap();
        let mut model = given_up(tokio_tungstenite::accept_async(tcp)).await.unwrap();
        let format = json!({"format": {"type": "audio/pcm", "rate": 24000}});
        let created = json!({"id": "sess_1", "audio": {"input": format, "output": format}});
        say(&mut model, &json!({"type": "session.created", "session": created})).await;
        let asked = until_type(&mut model, "session.update").await;
        say(&mut model, &json!({"type": "session.updated", "session": asked["session"]})).await;
        until_type(&mut model, "input_audio_buffer.append").await;
        (caller, model)
    }

    /// What the caller says still comes to the model.
    async fn is_carried(&self, caller: &mut Socket, model: &mut Socket) {
        self.chunk.set(self.chunk.get() + 1);
        say(caller, &media(self.chunk.get())).await;
        until_type(model, "input_audio_buffer.append").await;
    }
}

async fn until_type(socket: &mut Socket, wanted: &str) -> Value {
    loop {
        if let Message::Text(text) = given_up(socket.next()).await.unwrap().unwrap() {
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["type"] == wanted {
                return message;
            }
        }
    }
}

async fn hang_up(caller: &mut Socket) {
    say(caller, &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "9", "stop": {}})).await;
}

async fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut tcp = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.ok()?;
    Some(text)
}
