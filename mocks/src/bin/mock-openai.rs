//! Serves a scripted Realtime model over real TCP, the way OpenAI would, and tells what happens.

use anyhow::Context as _;
use clap::Parser;
use mocks::attach::attach;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{Dial, Model, ModelIdentity, ModelScript, in_words};
use mocks::record::{ModelRecord, ModelSight};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Serve a scripted Realtime model the way OpenAI would, and tell what happens.
///
/// Without --script the model answers every turn with one and a half seconds of speech. Every connection plays
/// the script from its beginning; connections are served in parallel and numbered from 0.
#[derive(Parser)]
#[command(after_help = "Examples:
  mock-openai
  mock-openai --listen 127.0.0.1:9100 --script long-answer.toml

Point the bridge at ws://127.0.0.1:9100/v1/realtime?model=gpt-realtime-2.1 with any bearer token.

A script:
  turns = [
    { answers = 4000, stall = { after_ms = 800, for_ms = 2000 } },
    { calls = [{ name = \"lookup_order\", arguments = '{\"order_id\":\"A-17\"}' }] },
    { status = { failed = { type = \"server_error\" } } },
  ]
  events = [{ at_ms = 5000, does = \"unknown_event\" }]")]
struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// What the model does, in TOML.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Colours the ids and words.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mock-openai: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let script = match &args.script {
        Some(file) => read_script(file)?,
        None => ModelScript::default(),
    };
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    println!("a scripted model answers at ws://{address}/v1/realtime?model=gpt-realtime-2.1");
    if script.dial == Dial::Refuses {
        println!("(the script refuses to be dialled: connections are dropped as soon as they are made)");
    }
    for index in 0.. {
        let (tcp, from) = listener.accept().await.context("no more connections can be accepted")?;
        let (script, seed) = (script.clone(), args.seed);
        tokio::spawn(async move {
            println!("{index} {} called by {from}", At(0));
            if let Err(error) = connection(tcp, script, index, seed).await {
                println!("{index} {error:#}");
            }
        });
    }
    Ok(())
}

fn read_script(file: &Path) -> anyhow::Result<ModelScript> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
    ModelScript::from_toml(&text).with_context(|| format!("{} is no model script", file.display()))
}

/// Plays one connection from the dial to the end.
async fn connection(tcp: TcpStream, script: ModelScript, index: u64, seed: u64) -> anyhow::Result<()> {
    tcp.set_nodelay(true).context("the TCP connection could not be set up")?;
    tokio::time::sleep(Duration::from_millis(script.dial_ms)).await;
    let status = match script.dial {
        Dial::Accepts => None,
        Dial::Refuses => return Ok(()),
        Dial::Hangs | Dial::HangsInUpgrade => {
            println!("{index} keeps the caller waiting, as the script says");
            std::future::pending::<()>().await;
            return Ok(());
        }
        Dial::AnswersHttp(status) => Some(status),
    };
    let identity = ModelIdentity { call_sid: String::new(), index, epoch_unix: unix_now() };
    let mut model = Model::new(script, identity, seed);
    // The library hands the request to a callback by type; its error type is as large as it is.
    #[expect(clippy::result_large_err, reason = "the signature is the library's")]
    let upgrade = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        if let Some(status) = status {
            let mut refusal = ErrorResponse::new(Some(format!("the script answers {status}")));
            *refusal.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return Err(refusal);
        }
        model.set_query(&request.uri().to_string());
        let headers = request.headers().iter();
        model.set_headers(
            headers.filter_map(|(name, value)| value.to_str().ok().map(|value| (name.as_str(), value))),
        );
        Ok(response)
    };
    // An append may carry 15 MiB of audio, a third more as base64.
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(32 << 20))
        .max_frame_size(Some(32 << 20));
    let socket = tokio_tungstenite::accept_hdr_async_with_config(tcp, upgrade, Some(config))
        .await
        .context("the connection did not become a WebSocket")?;
    let narrator = Narrator { model, index, said: 0, audio: Audio::default() };
    let mut narrator = attach(socket, narrator, clock()).await;
    narrator.say();
    summarise(index, narrator.model.record());
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the one clock of a connection over real TCP")]
fn clock() -> impl Fn() -> At {
    let began = tokio::time::Instant::now();
    move || At(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
}

#[expect(clippy::disallowed_methods, reason = "expires_at of a real session is in wall-clock time")]
fn unix_now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.ok().and_then(|since| i64::try_from(since.as_secs()).ok()).unwrap_or_default()
}

/// A model whose sightings are printed as they happen.
struct Narrator {
    model: Model,
    index: u64,
    said: usize,
    audio: Audio,
}

/// Audio in a row, told in one line.
#[derive(Default)]
struct Audio {
    since: Option<At>,
    heard: usize,
    spoken: usize,
}

impl Narrator {
    fn say(&mut self) {
        let record = self.model.record();
        for sighting in &record.sightings[self.said..] {
            if let ModelSight::GotAppend { len, .. } = &sighting.what {
                self.audio.since.get_or_insert(sighting.at);
                self.audio.heard += len;
            } else if let ModelSight::SentAudio { samples, .. } = &sighting.what {
                self.audio.since.get_or_insert(sighting.at);
                self.audio.spoken += samples;
            } else if !is_chatter(&sighting.what) {
                self.audio.tell(self.index, record);
                println!("{} {} {}", self.index, sighting.at, in_words(&sighting.what));
            }
        }
        self.said = record.sightings.len();
    }
}

/// The words run along with the audio, and pings with the clock; a line each would hide the call.
fn is_chatter(sight: &ModelSight) -> bool {
    matches!(sight, ModelSight::GotPing)
        || matches!(sight, ModelSight::SentOther { kind } if kind.ends_with(".delta"))
}

impl Audio {
    /// Tells the audio so far and begins anew.
    fn tell(&mut self, index: u64, record: &ModelRecord) {
        let Self { since: Some(since), heard, spoken } = std::mem::take(self) else { return };
        if heard > 0 {
            let per_ms = if record.input_format == "audio/pcm" { 48 } else { 8 };
            println!("{index} {since} got {} ms of audio", heard / per_ms);
        }
        if spoken > 0 {
            let rate = record.items.last().map_or(8_000, |item| item.rate as usize);
            println!("{index} {since} sent {} ms of audio", spoken * 1_000 / rate);
        }
    }
}

impl Peer for Narrator {
    fn opened(&mut self, now: At) {
        self.model.opened(now);
        self.say();
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.model.handle(frame, now);
        self.say();
    }

    fn gone(&mut self, why: &str, now: At) {
        self.model.gone(why, now);
        self.say();
    }

    fn handle_timeout(&mut self, now: At) {
        self.model.handle_timeout(now);
        self.say();
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.model.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.model.poll_timeout()
    }

    fn is_finished(&self) -> bool {
        self.model.is_finished()
    }
}

/// One line about the whole connection.
fn summarise(index: u64, record: &ModelRecord) {
    let count = |wanted: fn(&ModelSight) -> bool| record.sightings.iter().filter(|s| wanted(&s.what)).count();
    let responses = count(|what| matches!(what, ModelSight::SentResponseCreated { .. }));
    let refused = count(|what| matches!(what, ModelSight::SentError { rejected: Some(_), .. }));
    let cuts = count(|what| matches!(what, ModelSight::SentTruncated { .. }));
    let spoken_ms: usize =
        record.items.iter().map(|item| item.sent * 1_000 / item.rate.max(1) as usize).sum();
    let call = if record.call_sid.is_empty() { "no call id" } else { &record.call_sid };
    println!(
        "{index} over ({call}): {responses} responses, {spoken_ms} ms spoken, {cuts} cuts, \
         {refused} client events refused"
    );
}
