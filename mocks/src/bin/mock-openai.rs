//! Serves a scripted Realtime model over real TCP, the way OpenAI would, and tells what happens.

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use mocks::attach::attach;
use mocks::cork::Cork;
use mocks::net::{self, Throwaway};
use mocks::peer::{At, Frame, Out, Peer};
use mocks::realtime::{
    Call, CloseAfter, Dial, Dialect, ErrorSpec, Happening, Model, ModelIdentity, ModelScript, Opening,
    Outcome, Progress, SERVER_EVENTS, Stall, TimedEvent, Turn, in_words,
};
use mocks::record::{ModelObservation, ModelRecord};
use mocks::{alaw, ulaw};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Serve a scripted Realtime model the way OpenAI would, and tell what happens.
///
/// Without --script the model hears by energy, so that a microphone or any client can talk to it, and answers every
/// turn with speech in the pace of the service. Every connection plays the script from its beginning; connections are
/// served in parallel and numbered from 0.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  mock-openai
  mock-openai --listen 127.0.0.1:9100 --answers 4000 --tool lookup_order
  mock-openai --fault rate-limited --fault rubbish
  mock-openai --calls 1 --save heard --frames frames.ndjson
  mock-openai --script long-answer.toml

Point the bridge at ws://127.0.0.1:9100/v1/realtime?model=gpt-realtime-2.1 with any bearer token.

A script:
  turns = [
    { answers = 4000, stall = { after_ms = 800, for_ms = 2000 } },
    { calls = [{ name = \"lookup_order\", arguments = '{\"order_id\":\"A-17\"}' }] },
    { status = { failed = { type = \"server_error\" } } },
  ]
  events = [{ at_ms = 5000, does = \"unknown_event\" }]"
)]
struct Args {
    /// Where to listen; port 0 takes any that is free.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
    listen: SocketAddr,
    /// What the model does, in TOML.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Every answer of the script's default turn lasts so long.
    #[arg(long, value_name = "MS", default_value_t = 1_500, conflicts_with = "script")]
    answers: u64,
    /// So much silence follows the words of every answer; when absent, one to three seconds follow three answers of
    /// ten, as in the field.
    #[arg(long, value_name = "MS", conflicts_with = "script")]
    trailing_silence: Option<u64>,
    /// Audio comes so many times faster than it plays; 1 is real time.
    #[arg(long, value_name = "TIMES", default_value_t = 5.0, conflicts_with = "script")]
    speed: f64,
    /// The first turn calls this function, with these arguments if there are any: NAME or NAME={\"order\":1}.
    #[arg(long, value_name = "NAME[=JSON]", conflicts_with = "script")]
    tool: Vec<String>,
    /// What goes wrong; may be said several times.
    #[arg(long, value_enum)]
    fault: Vec<Fault>,
    /// Speak the retired dialect.
    #[arg(long)]
    beta: bool,
    /// Serve with TLS, and write the certificate that clients have to believe into this file.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
    /// Write every frame of both directions to this file, a JSON object a line.
    #[arg(long, value_name = "FILE")]
    frames: Option<PathBuf>,
    /// Save what the model heard on each connection as a WAV file in this folder.
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// End after so many connections.
    #[arg(long, value_name = "N")]
    calls: Option<u64>,
    /// List every event the model can say, and end.
    #[arg(long)]
    events: bool,
    /// Colours the ids and words.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What can be made to go wrong without a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// Connections are reset as soon as they are made.
    Refuses,
    /// The upgrade is never answered.
    Hangs,
    /// The upgrade is answered with 503.
    Http503,
    /// The upgrade is answered with 429.
    Http429,
    /// The key is refused after the upgrade, as the service does.
    BadKey,
    /// The model is refused.
    UnknownModel,
    /// `session.created` never comes.
    NeverCreated,
    /// `session.update` is never answered.
    NeverUpdated,
    /// `session.update` is refused.
    RefusesUpdate,
    /// The first response is asked for in vain.
    NeverAnswers,
    /// The first response is created and then says nothing.
    Mute,
    /// The first response fails.
    Fails,
    /// The first response fails for want of quota in this minute.
    RateLimited,
    /// The first response stops short.
    Incomplete,
    /// An error event in the middle of the first answer.
    ErrorInAnswer,
    /// The connection is dropped in the middle of the first answer.
    DropsInAnswer,
    /// The connection is closed with 1011 in the middle of the first answer.
    ClosesInAnswer,
    /// The first answer stalls for two seconds.
    Stalls,
    /// After five seconds the model says and hears nothing any more.
    GoesDark,
    /// After ten seconds the session expires.
    Expires,
    /// Unknown events, fields and frames come in between.
    Rubbish,
    /// Deltas still come after a cancel.
    LateDeltas,
}

impl Fault {
    fn into_script(self, script: &mut ModelScript) {
        let failed = |code: &str, message: &str| {
            Outcome::Failed(ErrorSpec {
                kind: "server_error".into(),
                code: Some(code.to_owned()),
                message: message.to_owned(),
            })
        };
        if script.turns.is_empty() {
            script.turns.push(Turn::default());
        }
        let first = &mut script.turns[0];
        match self {
            Self::Refuses => script.dial = Dial::Refuses,
            Self::Hangs => script.dial = Dial::HangsInUpgrade,
            Self::Http503 => script.dial = Dial::AnswersHttp(503),
            Self::Http429 => script.dial = Dial::AnswersHttp(429),
            Self::BadKey => script.opening = Opening::BadKey,
            Self::UnknownModel => script.opening = Opening::UnknownModel,
            Self::NeverCreated => script.opening = Opening::Silent,
            Self::NeverUpdated => script.never_updates = true,
            Self::RefusesUpdate => script.refuses_update = Some("invalid_value".into()),
            Self::NeverAnswers => first.never_created = true,
            Self::Mute => first.never_audio = true,
            Self::Fails => first.status = failed("server_error", "The server had an error."),
            Self::RateLimited => {
                first.status = failed("rate_limit_exceeded", "Rate limit reached. Please try again in 1s.");
            }
            Self::Incomplete => first.status = Outcome::Incomplete("max_output_tokens".into()),
            Self::ErrorInAnswer => first.error = Some(ErrorSpec::default()),
            Self::DropsInAnswer => first.drop_after_ms = Some(700),
            Self::ClosesInAnswer => {
                first.close_after =
                    Some(CloseAfter { ms: 700, code: 1_011, reason: "keepalive ping timeout".into() });
            }
            Self::Stalls => first.stall = Some(Stall { after_ms: 500, for_ms: 2_000 }),
            Self::GoesDark => script.goes_dark_after_ms = Some(5_000),
            Self::Expires => script.expires_after_s = Some(10),
            Self::Rubbish => {
                let odd = [
                    Happening::UnknownEvent,
                    Happening::ExtraFields,
                    Happening::Malformed,
                    Happening::Binary,
                    Happening::DeltaForUnknownResponse,
                ];
                let timed = (1..).map(|n| n * 1_500).zip(odd);
                script.events.extend(timed.map(|(at_ms, does)| TimedEvent { at_ms, does }));
            }
            Self::LateDeltas => {
                for turn in &mut script.turns {
                    turn.late_deltas = 20;
                }
            }
        }
    }
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

/// What every connection shares.
struct House {
    script: ModelScript,
    seed: u64,
    tls: Option<Throwaway>,
    frames: Option<Mutex<File>>,
    save: Option<PathBuf>,
    /// How far the calls have got, by the name the bridge has for them.
    calls: Mutex<BTreeMap<String, Progress>>,
}

impl House {
    fn calls(&self) -> MutexGuard<'_, BTreeMap<String, Progress>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(args: Args) -> anyhow::Result<()> {
    if args.events {
        SERVER_EVENTS.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let script = script(&args)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}; choose another address with --listen", args.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let tls = match &args.certificate {
        Some(file) => {
            let tls = Throwaway::new(&["localhost", &address.ip().to_string()])?;
            std::fs::write(file, tls.pem()).with_context(|| format!("cannot write {}", file.display()))?;
            Some(tls)
        }
        None => None,
    };
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    println!("a scripted model answers at {scheme}://{address}/v1/realtime?model=gpt-realtime-2.1");
    if script.dial == Dial::Refuses {
        println!("(it refuses to be dialled: connections are reset as soon as they are made)");
    }
    let frames = match &args.frames {
        Some(file) => {
            let file = File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
            Some(Mutex::new(file))
        }
        None => None,
    };
    if let Some(folder) = &args.save {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let house =
        Arc::new(House { script, seed: args.seed, tls, frames, save: args.save, calls: Mutex::default() });
    let mut calls = JoinSet::new();
    for index in 0..args.calls.unwrap_or(u64::MAX) {
        let (tcp, from) = listener.accept().await.context("no more connections can be accepted")?;
        let house = house.clone();
        calls.spawn(async move {
            println!("{index} {} called by {from}", At(0));
            if let Err(error) = connection(&house, tcp, index).await {
                println!("{index} {error:#}");
            }
        });
        // Those that have ended are forgotten.
        while calls.try_join_next().is_some() {}
    }
    calls.join_all().await;
    Ok(())
}

/// The script of the file, or the default persona with what the flags say of it.
fn script(args: &Args) -> anyhow::Result<ModelScript> {
    /// More turns than any call has.
    const TURNS: usize = 1_000;
    let mut script = match &args.script {
        Some(file) => read_script(file)?,
        None => {
            let turn = |n: usize| {
                let (silence_ms, rate_limits) = habits(args.seed, n as u64);
                Turn {
                    speed: args.speed,
                    trailing_silence_ms: args.trailing_silence.unwrap_or(silence_ms),
                    rate_limits,
                    ..Turn::answers(args.answers)
                }
            };
            ModelScript { turns: (0..TURNS).map(turn).collect(), ..ModelScript::default() }
        }
    };
    if !args.tool.is_empty() {
        let calls = args.tool.iter().map(|tool| {
            let (name, arguments) = tool.split_once('=').unwrap_or((tool, "{}"));
            Call { name: name.to_owned(), arguments: arguments.to_owned(), call_id: None }
        });
        script.turns.insert(0, Turn { calls: calls.collect(), ..Turn::default() });
    }
    if args.beta {
        script.dialect = Dialect::Beta;
    }
    for fault in &args.fault {
        fault.into_script(&mut script);
    }
    Ok(script)
}

/// What differs from one answer of the service to the next: the silence after its words, ms, and whether the limits are
/// told after it.
const fn habits(seed: u64, turn: u64) -> (u64, bool) {
    let mixed = (seed ^ turn.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let drawn = mixed ^ (mixed >> 32);
    let silence_ms = if drawn % 10 < 3 { 1_000 + drawn / 10 % 2_001 } else { 0 };
    (silence_ms, !(drawn / 30_000).is_multiple_of(4))
}

fn read_script(file: &Path) -> anyhow::Result<ModelScript> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
    ModelScript::from_toml(&text).with_context(|| format!("{} is no model script", file.display()))
}

/// Plays one connection from the dial to the end.
async fn connection(house: &House, tcp: TcpStream, index: u64) -> anyhow::Result<()> {
    let House { script, seed, tls, .. } = house;
    let script = script.clone();
    tokio::time::sleep(Duration::from_millis(script.dial_ms)).await;
    if script.dial == Dial::Refuses {
        net::Stream::from(tcp).reset();
        return Ok(());
    }
    let stream = net::receive(tcp, tls.as_ref()).await.context("the connection could not be set up")?;
    let status = match script.dial {
        Dial::Accepts | Dial::Refuses => None,
        Dial::Hangs | Dial::HangsInUpgrade => {
            println!("{index} keeps the caller waiting, as the script says");
            std::future::pending::<()>().await;
            return Ok(());
        }
        Dial::AnswersHttp(status) => Some(status),
    };
    let identity = ModelIdentity { call_sid: String::new(), index, epoch_unix: unix_now() };
    let mut model = Model::new(script, identity, *seed);
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
        // Another connection of a call goes on where the one before has stopped.
        if let Some(progress) = house.calls().get(&model.record().call_sid) {
            model.goes_on(*progress);
        }
        Ok(response)
    };
    // An append may carry 15 MiB of audio, a third more as base64.
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(32 << 20))
        .max_frame_size(Some(32 << 20));
    // What the model has to say at once leaves with the answer to the upgrade; a refusal of the upgrade is all of it.
    let stream = if status.is_none() { Cork::new(stream) } else { Cork::open(stream) };
    let mut socket = tokio_tungstenite::accept_hdr_async_with_config(stream, upgrade, Some(config))
        .await
        .context("the connection did not become a WebSocket")?;
    socket.get_mut().draw();
    let frames = house.frames.as_ref();
    let narrator = Narrator { model, index, said: 0, audio: Audio::default(), frames };
    let mut narrator = attach(socket, narrator, clock()).await;
    if !narrator.model.record().call_sid.is_empty() {
        let call_sid = narrator.model.record().call_sid.clone();
        house.calls().insert(call_sid, narrator.model.progress());
    }
    narrator.say();
    let record = narrator.model.record();
    summarise(index, record);
    if let Some(folder) = &house.save {
        let file = folder.join(format!("{index}-heard.wav"));
        save(record, &file).with_context(|| format!("{} could not be written", file.display()))?;
    }
    Ok(())
}

/// Writes what the model heard, as it was given to it.
fn save(record: &ModelRecord, file: &Path) -> anyhow::Result<()> {
    let (rate, samples): (u32, Vec<i16>) = match record.input_format.as_str() {
        "audio/pcmu" => (8_000, record.appended.iter().map(|byte| ulaw::decode(*byte)).collect()),
        "audio/pcma" => (8_000, alaw::decode_all(&record.appended)),
        _ => {
            let pairs = record.appended.chunks_exact(2);
            (24_000, pairs.map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect())
        }
    };
    let sample_format = hound::SampleFormat::Int;
    let spec = hound::WavSpec { channels: 1, sample_rate: rate, bits_per_sample: 16, sample_format };
    let mut wav = hound::WavWriter::create(file, spec)?;
    for sample in samples {
        wav.write_sample(sample)?;
    }
    wav.finalize()?;
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

/// A model whose observations are printed as they happen.
struct Narrator<'a> {
    model: Model,
    index: u64,
    said: usize,
    audio: Audio,
    /// Where every frame is written.
    frames: Option<&'a Mutex<File>>,
}

/// Audio in a row, told in one line.
#[derive(Default)]
struct Audio {
    since: Option<At>,
    heard: usize,
    spoken: usize,
}

impl Narrator<'_> {
    /// Writes a frame of text down, if there is a file for them.
    fn write(&self, direction: &str, frame: &Frame) {
        let (Some(file), Frame::Text(text)) = (self.frames, frame) else { return };
        let event: Value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()));
        let line = json!({"connection": self.index, "dir": direction, "event": event});
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // The mock goes on when the disk is full; a file that ends early shows it.
        let _best_effort = writeln!(file, "{line}");
    }

    fn say(&mut self) {
        let record = self.model.record();
        for sighting in &record.observations[self.said..] {
            if let ModelObservation::GotAppend { len, .. } = &sighting.what {
                self.audio.since.get_or_insert(sighting.at);
                self.audio.heard += len;
            } else if let ModelObservation::SentAudio { samples, .. } = &sighting.what {
                self.audio.since.get_or_insert(sighting.at);
                self.audio.spoken += samples;
            } else if !is_chatter(&sighting.what) {
                self.audio.tell(self.index, record);
                println!("{} {} {}", self.index, sighting.at, in_words(&sighting.what));
            }
        }
        self.said = record.observations.len();
    }
}

/// The words run along with the audio, and pings with the clock; a line each would hide the call.
fn is_chatter(sight: &ModelObservation) -> bool {
    matches!(sight, ModelObservation::GotPing)
        || matches!(sight, ModelObservation::SentOther { kind } if kind.ends_with(".delta"))
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

impl Peer for Narrator<'_> {
    fn opened(&mut self, now: At) {
        self.model.opened(now);
        self.say();
    }

    fn handle(&mut self, frame: Frame, now: At) {
        self.write("in", &frame);
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
        let out = self.model.poll_transmit()?;
        if let Out::Frame(frame) = &out {
            self.write("out", frame);
        }
        Some(out)
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
    let count = |wanted: fn(&ModelObservation) -> bool| {
        record.observations.iter().filter(|s| wanted(&s.what)).count()
    };
    let responses = count(|what| matches!(what, ModelObservation::SentResponseCreated { .. }));
    let refused = count(|what| matches!(what, ModelObservation::SentError { rejected: Some(_), .. }));
    let cuts = count(|what| matches!(what, ModelObservation::SentTruncated { .. }));
    let spoken_ms: usize =
        record.items.iter().map(|item| item.sent * 1_000 / item.rate.max(1) as usize).sum();
    let call = if record.call_sid.is_empty() { "no call id" } else { &record.call_sid };
    println!(
        "{index} over ({call}): {responses} responses, {spoken_ms} ms spoken, {cuts} cuts, \
         {refused} client events refused"
    );
}
