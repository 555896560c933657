//! The program's own log: a reader that stalls delays no call, and nothing secret is in it at any level.

#![expect(clippy::unwrap_used, reason = "a bench that breaks has to stop the test")]

mod common;

use common::{given_up, media, say, start_with};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "sk-proj-the-key-of-the-project";

/// The program in a process of its own, with its model, which do not outlive their test.
struct Bridge {
    child: Child,
    address: SocketAddr,
    model: TcpListener,
    _folder: tempfile::TempDir,
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

impl Bridge {
    /// Standard error is a pipe, and nothing reads it yet.
    async fn start(change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let model = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free_port().await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
        command
            .current_dir(folder.path())
            .env("OPENAI_API_KEY", KEY)
            .env("OPENAI_REALTIME_URL", format!("ws://{}/v1/realtime", model.local_addr().unwrap()))
            .env("BRIDGE_LIVE_LISTEN", "off")
            .args(["--insecure-no-signature", "--listen", &address.to_string()])
            .args(["--metrics-listen", &address.to_string()])
            .stderr(Stdio::piped());
        for unset in ["BRIDGE_STORE_URL", "BRIDGE_CONFIG", "OTEL_EXPORTER_OTLP_ENDPOINT", "NO_COLOR"] {
            command.env_remove(unset);
        }
        change(&mut command);
        let bridge = Self { child: command.spawn().unwrap(), address, model, _folder: folder };
        for _ in 0..500 {
            if bridge.get("/healthz").await.is_some_and(|text| text.starts_with("HTTP/1.1 200")) {
                return bridge;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the bridge does not listen");
    }

    async fn get(&self, path: &str) -> Option<String> {
        let asked = async {
            let mut tcp = TcpStream::connect(self.address).await.ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            tcp.write_all(request.as_bytes()).await.ok()?;
            let mut text = String::new();
            tcp.read_to_string(&mut text).await.ok()?;
            Some(text)
        };
        tokio::time::timeout(Duration::from_secs(30), asked).await.ok()?
    }

    /// A call between a caller and a model that are ready to talk.
    async fn call(&self, call_sid: &str, parameters: &Value) -> (Leg, Leg) {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let url = format!("ws://{}/twilio", self.address);
        let (mut caller, _) = tokio_tungstenite::client_async(url, tcp).await.unwrap();
        say(&mut caller, &json!({"event": "connected", "protocol": "Call", "version": "1.0.0"})).await;
        say(&mut caller, &start_with(call_sid, parameters)).await;
        say(&mut caller, &media(1)).await;
        let (tcp, _) = given_up(self.model.accept()).await.unwrap();
        let mut model = tokio_tungstenite::accept_async(tcp).await.unwrap();
        let format = json!({"format": {"type": "audio/pcm", "rate": 24000}});
        let session = json!({"id": "sess_1", "audio": {"input": format, "output": format}});
        say(&mut model, &json!({"type": "session.created", "session": session})).await;
        let update = given_up(model.next()).await.unwrap().unwrap();
        let mut session: Value = serde_json::from_str(update.to_text().unwrap()).unwrap();
        session["session"]["id"] = json!("sess_1");
        say(&mut model, &json!({"type": "session.updated", "session": session["session"]})).await;
        (caller, model)
    }

    async fn ended(&mut self) -> ExitStatus {
        for _ in 0..1_500 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the process does not end");
    }

    /// Reads standard error from now on, to its end.
    fn read_log(&mut self) -> std::thread::JoinHandle<String> {
        let mut stderr = self.child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut log = Vec::new();
            stderr.read_to_end(&mut log).unwrap();
            String::from_utf8(log).unwrap()
        })
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }
}

type Leg = WebSocketStream<TcpStream>;

/// 200 ms of a response's audio.
fn audio(response: &str, item: &str) -> Value {
    json!({"type": "response.output_audio.delta", "response_id": response, "item_id": item, "output_index": 0,
        "content_index": 0, "delta": "A".repeat(12_800)})
}

/// The model begins to answer.
async fn answers(model: &mut Leg, response: &str, item: &str) {
    say(model, &json!({"type": "response.created", "response": {"id": response, "status": "in_progress"}}))
        .await;
    let added = json!({"id": item, "type": "message", "role": "assistant", "content": []});
    say(model, &json!({"type": "response.output_item.added", "response_id": response, "output_index": 0, "item": added}))
        .await;
    say(model, &audio(response, item)).await;
}

/// What the caller is sent next, of this kind.
async fn hears(caller: &mut Leg, kind: &str) -> Value {
    loop {
        let message = given_up(caller.next()).await.unwrap().unwrap();
        let value: Option<Value> = message.to_text().ok().and_then(|text| serde_json::from_str(text).ok());
        if let Some(value) = value.filter(|value| value["event"] == kind) {
            return value;
        }
    }
}

fn lost_lines(metrics: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("bridge_log_lost_lines_total ")).unwrap();
    line.parse().unwrap()
}

#[tokio::test]
async fn a_log_that_is_not_read_delays_no_call_and_no_end() {
    let mut bridge = Bridge::start(|command| {
        command.args(["--log-level", "debug"]);
    })
    .await;
    let (mut caller, mut model) = bridge.call("CA1", &json!({})).await;
    // Each of these is a line: far more than a pipe holds, and more than the queue.
    let unknown = json!({"type": format!("invented.{}", "x".repeat(700))}).to_string();
    let mut metrics = String::new();
    for _ in 0..500 {
        for _ in 0..200 {
            model.feed(Message::text(unknown.clone())).await.unwrap();
        }
        given_up(model.flush()).await.unwrap();
        metrics = bridge.get("/metrics").await.expect("figures are served");
        if lost_lines(&metrics) > 100.0 {
            break;
        }
    }
    assert!(lost_lines(&metrics) > 100.0, "{metrics}");
    // Nothing has read a byte of the log. Still health is answered, audio flows, and another call may come.
    assert!(bridge.get("/healthz").await.expect("health is answered").starts_with("HTTP/1.1 200"));
    answers(&mut model, "r1", "i1").await;
    hears(&mut caller, "media").await;
    let (mut second, mut its_model) = bridge.call("CA2", &json!({})).await;
    answers(&mut its_model, "r2", "i2").await;
    hears(&mut second, "media").await;

    // The reader returns: what waited comes, then one line for what did not, then what is new.
    let log = bridge.read_log();
    // What waits is read before the process ends, or the line of its end may find no room.
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((second, its_model, caller, model));
    bridge.signal("TERM");
    assert!(bridge.ended().await.success());
    let log = log.join().unwrap();
    assert!(log.contains("taking calls"), "{}", &log[..1_000]);
    assert!(!log.contains('\u{1b}'), "a pipe is no terminal");
    let told: Vec<_> = log.lines().filter(|line| line.contains("log lines were dropped")).collect();
    assert!((1..=3).contains(&told.len()), "{told:?}");
    assert!(log.lines().rev().take(3).any(|line| line.contains("stopped")), "the end is in the log");
}

#[tokio::test]
async fn a_log_that_is_never_read_does_not_keep_the_process_from_ending() {
    let mut bridge = Bridge::start(|command| {
        command.args(["--log-level", "debug"]);
    })
    .await;
    let (caller, mut model) = bridge.call("CA1", &json!({})).await;
    let unknown = json!({"type": format!("invented.{}", "x".repeat(700))}).to_string();
    for _ in 0..500 {
        model.feed(Message::text(unknown.clone())).await.unwrap();
    }
    given_up(model.flush()).await.unwrap();
    drop((caller, model));
    bridge.signal("TERM");
    assert!(bridge.ended().await.success());
}

/// A collector that keeps every byte it is sent.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken: Arc<Mutex<Vec<u8>>> = Arc::default();
    let keep = taken.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let keep = keep.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 65_536];
                let mut request: Vec<u8> = Vec::new();
                while let Ok(n @ 1..) = tcp.read(&mut buffer).await {
                    request.extend_from_slice(&buffer[..n]);
                    let head = String::from_utf8_lossy(&request).to_ascii_lowercase();
                    let length =
                        head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
                    let body = request.windows(4).position(|bytes| bytes == b"\r\n\r\n");
                    if let (Some(Ok(length)), Some(body)) = (length.map(str::parse::<usize>), body)
                        && request.len() >= body + 4 + length
                    {
                        keep.lock().unwrap().extend_from_slice(&request);
                        let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
                        request.clear();
                    }
                }
            });
        }
    });
    (address, taken)
}

/// A whole call in which everything happens that must not be written down, and what was logged and sent meanwhile.
async fn everything_secret(level: &str) -> (String, String) {
    let (address, taken) = collector().await;
    let mut bridge = Bridge::start(|command| {
        let config = "[call.transcription]\nmodel = \"gpt-realtime-whisper\"\n[call.dtmf]\nquiet_ms = 100\n\
            [[call.tools]]\nname = \"book\"\n[tools]\nsecret = \"whsec_d2ViaG9vay1zZWNyZXQtMDEyMzQ1Njc4OTAxMjM0NTY=\"\n";
        std::fs::write(command.get_current_dir().unwrap().join("bridge.toml"), config).unwrap();
        command
            .args(["--config", "bridge.toml", "--log-level", level])
            .env("BRIDGE_JOURNAL_DIR", "journals")
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"));
    })
    .await;
    let log = bridge.read_log();
    let parameters = json!({"token": "tok-0123456789-secret", "customer": "customer-4711-secret"});
    let (mut caller, mut model) = bridge.call("CA1", &parameters).await;
    let kind = "conversation.item.input_audio_transcription.completed";
    say(&mut model, &json!({"type": kind, "item_id": "u1", "transcript": "my word is rutabaga"})).await;
    answers(&mut model, "r1", "i1").await;
    let words = json!({"type": "response.output_audio_transcript.delta", "response_id": "r1", "item_id": "i1",
        "output_index": 0, "content_index": 0, "delta": "you said kohlrabi"});
    say(&mut model, &words).await;
    let call = json!({"id": "fc1", "type": "function_call", "name": "book", "call_id": "c1",
        "arguments": "{\"number\":\"+14155550123\"}"});
    let done =
        json!({"type": "response.output_item.done", "response_id": "r1", "output_index": 1, "item": call});
    say(&mut model, &done).await;
    hears(&mut caller, "media").await;
    for digit in ["8", "6", "7", "5", "3", "0", "9", "#"] {
        let dtmf = json!({"event": "dtmf", "streamSid": "MZ1", "sequenceNumber": "9",
            "dtmf": {"track": "inbound_track", "digit": digit}});
        say(&mut caller, &dtmf).await;
    }
    // The model ends what the keys interrupted, and then they reach it: they have gone all the way.
    say(&mut model, &json!({"type": "response.done", "response": {"id": "r1", "status": "cancelled"}})).await;
    loop {
        let Some(Ok(message)) = given_up(model.next()).await else {
            bridge.child.kill().unwrap();
            panic!("{}", log.join().unwrap());
        };
        if message.to_text().is_ok_and(|text| text.contains("8 6 7 5 3 0 9")) {
            break;
        }
    }
    say(
        &mut caller,
        &json!({"event": "stop", "streamSid": "MZ1", "sequenceNumber": "20",
        "stop": {"accountSid": "AC1", "callSid": "CA1"}}),
    )
    .await;
    bridge.signal("TERM");
    drop(model);
    assert!(bridge.ended().await.success());
    let sent = String::from_utf8_lossy(&taken.lock().unwrap()).into_owned();
    (log.join().unwrap(), sent)
}

#[tokio::test]
async fn at_trace_no_key_word_number_or_token_is_logged_or_sent_to_a_collector() {
    for level in
        ["trace", "info,bridge=trace,tungstenite=trace,tokio_tungstenite=trace,hyper=trace,log=trace"]
    {
        let (log, sent) = everything_secret(level).await;
        assert!(log.contains("TRACE") && log.contains("keypad entry"), "{level}: {log}");
        assert!(sent.contains("call ended") && sent.contains("keypad entry"), "{level}");
        let secrets = [
            KEY,
            "sk-proj",
            "rutabaga",
            "kohlrabi",
            "4155550123",
            "8675309",
            "8 6 7 5 3 0 9",
            "tok-0123456789",
        ];
        for (what, text) in [("log", &log), ("collector", &sent)] {
            for secret in secrets.iter().chain(&["customer-4711", "d2ViaG9vay", "AAAAAAAAAAAAAAAA"]) {
                let found = text.find(secret);
                let around = found.map(|at| text[..at].chars().rev().take(300).collect::<String>());
                let around = around.map(|text| text.chars().rev().collect::<String>());
                assert!(found.is_none(), "{level}: {secret} is in the {what} behind {around:?}");
            }
        }
    }
}
