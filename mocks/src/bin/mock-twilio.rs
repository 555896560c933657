//! Phones a bridge over real TCP, the way Twilio would, and tells what was heard.

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Parser;
use mocks::attach::attach;
use mocks::peer::{At, Frame, Out, Peer};
use mocks::record::{CallerRecord, CallerSight};
use mocks::twilio::{Caller, CallerScript, CallerStep, Identity, in_words};
use mocks::ulaw;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, http::Uri};

/// The longest a bridge may take to answer the upgrade; a real call is lost after about this long.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Phone a bridge the way Twilio would, and tell what was heard.
///
/// Without --script the caller listens to the greeting, speaks for two seconds, listens to the answer and hangs
/// up. The exit status is 0 when the call took place and the bridge broke no rule of the protocol.
#[derive(Parser)]
#[command(after_help = "Examples:
  mock-twilio ws://127.0.0.1:8084/twilio
  mock-twilio ws://127.0.0.1:8084/twilio --script barge-in.toml --save heard.wav

A script:
  steps = [\"hears_start\", { hears_for = 1240 }, { says = 700 }, \"hears_start\", \"hears_end\", \"hangs_up\"]
  custom_parameters = { tenant = \"t-42\" }")]
struct Args {
    /// The bridge's stream URL, for example ws://127.0.0.1:8084/twilio. A query is dropped, as Twilio does.
    url: String,
    /// What the caller does, in TOML.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Save what was heard, pauses included, as a WAV file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Draws the noise of the line, the jitter and the ids of the call.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match call(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mock-twilio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the call. False when it took place, but not as it should.
async fn call(args: Args) -> anyhow::Result<bool> {
    let script = match &args.script {
        Some(file) => read_script(file)?,
        None => default_script(),
    };
    let (uri, address) = target(&args.url)?;
    let caller = Caller::new(script, identity(args.seed), args.seed);
    let clock = clock();
    let mut request = Request::builder().uri(uri.clone()).header("Host", address.as_str());
    for (name, value) in caller.upgrade_headers() {
        request = request.header(name, value);
    }
    let request = request.body(()).context("the upgrade request could not be built")?;
    let tcp = TcpStream::connect(&address)
        .await
        .with_context(|| format!("no bridge answers at {address}; is it running?"))?;
    tcp.set_nodelay(true).context("the TCP connection could not be set up")?;
    let config = WebSocketConfig::default().read_buffer_size(8 << 10);
    let mut narrator = Narrator { caller, said: 0, audio: Audio::default() };
    let upgrade = tokio_tungstenite::client_async_with_config(request, tcp, Some(config));
    let narrator = match tokio::time::timeout(HANDSHAKE, upgrade).await {
        Ok(Ok((socket, _response))) => attach(socket, narrator, &clock).await,
        Ok(Err(tungstenite::Error::Http(response))) => {
            narrator.caller.refused(response.status().as_u16(), clock());
            narrator.say();
            narrator
        }
        Ok(Err(error)) => return Err(anyhow!(error).context(format!("{address} did not open a WebSocket"))),
        Err(_elapsed) => bail!("{address} did not answer the upgrade within {} s", HANDSHAKE.as_secs()),
    };
    let record = narrator.caller.into_record();
    if let Some(file) = &args.save {
        save(&record, file).with_context(|| format!("{} could not be written", file.display()))?;
    }
    Ok(summarise(&record))
}

fn read_script(file: &Path) -> anyhow::Result<CallerScript> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is no caller script", file.display()))
}

fn default_script() -> CallerScript {
    CallerScript {
        patience_ms: 10_000,
        ..CallerScript::of([
            CallerStep::HearsStart,
            CallerStep::HearsEnd,
            CallerStep::Says(2_000),
            CallerStep::HearsStart,
            CallerStep::HearsEnd,
            CallerStep::HangsUp,
        ])
    }
}

/// The URL to ask for, and `host:port`.
fn target(url: &str) -> anyhow::Result<(Uri, String)> {
    let bare = url.split('?').next().unwrap_or(url);
    if bare != url {
        eprintln!("mock-twilio: the query of {url} is dropped, as Twilio does");
    }
    let uri: Uri = bare.parse().with_context(|| format!("{url} is no URL"))?;
    match uri.scheme_str() {
        Some("ws") => {}
        Some("wss") => {
            bail!("wss needs TLS, which this tool does not speak; give the bridge's own ws:// address")
        }
        Some(_) | None => bail!("{url} must begin with ws://, for example ws://127.0.0.1:8084/twilio"),
    }
    let host = uri.host().with_context(|| format!("{url} names no host"))?;
    ensure!(!host.is_empty(), "{url} names no host");
    let address = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    Ok((uri, address))
}

fn identity(seed: u64) -> Identity {
    let sid = |kind: &str, salt: u64| {
        let half = |n: u64| seed.wrapping_add(n).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
        format!("{kind}{:016x}{:016x}", half(salt), half(salt + 0x51))
    };
    Identity { account_sid: sid("AC", 1), call_sid: sid("CA", 2), stream_sid: sid("MZ", 3) }
}

#[expect(clippy::disallowed_methods, reason = "the one clock of a call over real TCP")]
fn clock() -> impl Fn() -> At {
    let began = tokio::time::Instant::now();
    move || At(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
}

/// A caller whose sightings are printed as they happen.
struct Narrator {
    caller: Caller,
    said: usize,
    audio: Audio,
}

/// Audio messages in a row, told in one line.
#[derive(Default)]
struct Audio {
    since: Option<At>,
    messages: usize,
    bytes: usize,
}

impl Narrator {
    fn say(&mut self) {
        for sighting in &self.caller.record().sightings[self.said..] {
            match &sighting.what {
                CallerSight::SentMedia { .. } => {}
                CallerSight::GotMedia { len, .. } => {
                    self.audio.since.get_or_insert(sighting.at);
                    self.audio.messages += 1;
                    self.audio.bytes += len;
                }
                // Marks come with nearly every audio message; a line each would hide the call.
                CallerSight::GotMark { .. } | CallerSight::SentMark { flushed: false, .. } => {}
                CallerSight::Opened
                | CallerSight::Refused { .. }
                | CallerSight::SentConnected
                | CallerSight::SentStart
                | CallerSight::SentDtmf { .. }
                | CallerSight::SentMark { .. }
                | CallerSight::SentStop
                | CallerSight::SentRaw { .. }
                | CallerSight::SpeechBegan { .. }
                | CallerSight::SpeechEnded { .. }
                | CallerSight::GotClear { .. }
                | CallerSight::Warned { .. }
                | CallerSight::GotPing
                | CallerSight::WentQuiet { .. }
                | CallerSight::Step { .. }
                | CallerSight::StatusCallback { .. }
                | CallerSight::Ended(_) => {
                    let Audio { since, messages, bytes } = std::mem::take(&mut self.audio);
                    if let Some(since) = since {
                        println!("{since:>14}  got {} ms of audio in {messages} messages", bytes / 8);
                    }
                    println!("{:>14}  {}", sighting.at, in_words(&sighting.what));
                }
            }
        }
        self.said = self.caller.record().sightings.len();
    }
}

impl Peer for Narrator {
    fn opened(&mut self, now: At) {
        self.caller.opened(now);
        self.say();
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.caller.handle(frame, now);
        self.say();
    }

    fn gone(&mut self, why: &str, now: At) {
        self.caller.gone(why, now);
        self.say();
    }

    fn handle_timeout(&mut self, now: At) {
        self.caller.handle_timeout(now);
        self.say();
    }

    fn poll_transmit(&mut self) -> Option<Out> {
        self.caller.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<At> {
        self.caller.poll_timeout()
    }

    fn is_finished(&self) -> bool {
        self.caller.is_finished()
    }
}

/// Says what came of the call; false when it did not take place or the bridge broke a rule.
fn summarise(record: &CallerRecord) -> bool {
    let seconds = |bytes: usize| bytes as f64 / 8_000.0;
    let heard: usize = record.played.iter().map(|stretch| stretch.len).sum();
    let warnings =
        record.sightings.iter().filter(|sight| matches!(sight.what, CallerSight::Warned { .. })).count();
    let started = record.sightings.iter().any(|sight| matches!(sight.what, CallerSight::SentStart));
    println!();
    println!(
        "said {:.2} s in {} frames; got {:.2} s, heard {:.2} s in {} stretches; {warnings} warnings",
        seconds(record.spoken.len()),
        record.mic.len(),
        seconds(record.received.len()),
        seconds(heard),
        record.played.len(),
    );
    started && warnings == 0
}

/// Writes what was heard, with its pauses, from the first sound to the last.
fn save(record: &CallerRecord, file: &Path) -> anyhow::Result<()> {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(file, spec)?;
    let began = record.played.first().map_or(At(0), |stretch| stretch.at);
    let mut written = 0;
    for stretch in &record.played {
        let starts = stretch.at.since(began) / 125;
        for _ in written..starts {
            wav.write_sample(0_i16)?;
        }
        for byte in record.received.iter().skip(stretch.offset).take(stretch.len) {
            wav.write_sample(ulaw::decode(*byte))?;
        }
        written = written.max(starts) + stretch.len as u64;
    }
    wav.finalize()?;
    Ok(())
}
