//! What several benches need: a model's network of pipes, a recorder of events, and the words of both ends of a
//! WebSocket.

#![allow(dead_code, reason = "each bench uses what it needs")]

use bridge::call::event::{CallEvent, EndReason};
use bridge::net::dial::Dial;
use bridge::runtime::observe::Observe;
use bridge::runtime::registry::CallKey;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Hands the model's end of every dialled pipe to the bench.
#[derive(Clone)]
pub(crate) struct Pipes(pub(crate) mpsc::UnboundedSender<DuplexStream>);

impl Dial for Pipes {
    type Stream = DuplexStream;

    async fn dial(&self) -> io::Result<DuplexStream> {
        let (here, there) = duplex(64 * 1024);
        self.0.send(there).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(here)
    }
}

/// Everything that happened on any call.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<CallEvent>>>);

impl Recorder {
    pub(crate) fn seen(&self) -> Vec<CallEvent> {
        self.0.lock().unwrap().clone()
    }
}

impl Observe for Recorder {
    fn event(&self, _call: CallKey, _now: Instant, event: &CallEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

pub(crate) fn ends(seen: &[CallEvent]) -> Vec<EndReason> {
    seen.iter()
        .filter_map(|event| if let CallEvent::Ended { reason, .. } = event { Some(*reason) } else { None })
        .collect()
}

/// Waits for something to come true, for a minute: even a busy machine is never that late.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come true in a minute");
}

pub(crate) async fn say<S>(socket: &mut WebSocketStream<S>, message: &Value)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// What the bridge has to bring to an end itself.
pub(crate) async fn given_up<T>(end: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), end).await.expect("the bridge gives it up")
}

/// Reads on to the close frame and answers it.
pub(crate) async fn close_of<S>(socket: &mut WebSocketStream<S>) -> Option<u16>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut code = None;
    while let Some(Ok(message)) = given_up(socket.next()).await {
        if let Message::Close(frame) = message {
            code = frame.map(|frame| frame.code.into());
        }
    }
    code
}

/// The head of an HTTP request.
pub(crate) async fn read_head(pipe: &mut DuplexStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(pipe.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// `start` of a stream whose TwiML had these parameters.
pub(crate) fn start_with(call_sid: &str, parameters: &Value) -> Value {
    json!({"event": "start", "sequenceNumber": "1", "streamSid": "MZ1", "start": {"streamSid": "MZ1",
        "accountSid": "AC1", "callSid": call_sid, "tracks": ["inbound"], "customParameters": parameters,
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}}})
}

/// 20 ms of silence.
pub(crate) fn media(chunk: u64) -> Value {
    let payload = "/".repeat(213) + "w=="; // 160 bytes of silence
    json!({"event": "media", "sequenceNumber": (chunk + 1).to_string(), "streamSid": "MZ1", "media": {
        "track": "inbound", "chunk": chunk.to_string(), "timestamp": (chunk * 20).to_string(), "payload": payload}})
}
