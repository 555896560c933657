//! Phones a bridge over real TCP, the way Twilio would, and tells what was heard.

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Parser;
use mocks::attach::attach;
use mocks::net::{self, Roots, Url};
use mocks::peer::{At, Frame, Out, Peer};
use mocks::record::{CallerObservation, CallerRecord};
use mocks::twilio::signature;
use mocks::twilio::{Caller, CallerScript, CallerStep, Identity, audible_bytes, in_words, recording};
use mocks::{resample, ulaw, webhook};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The longest a bridge may take to answer the upgrade; a real call is lost after about this long.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Phone a bridge the way Twilio would, and tell what was heard.
///
/// Without --script the caller listens to the greeting, speaks for two seconds (or plays the WAV file), listens to the
/// answer and hangs up. The exit status is 0 when the call took place, the bridge broke no rule of the protocol and as
/// much was heard as was wanted.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  mock-twilio ws://127.0.0.1:8084/twilio
  mock-twilio ws://127.0.0.1:8084/twilio --script barge-in.toml --save heard.wav
  mock-twilio ws://127.0.0.1:8084/twilio --wav question.wav --speaks-first --heard 500
  mock-twilio --start-url http://127.0.0.1:8084/voice --signature-token $TWILIO_AUTH_TOKEN
  mock-twilio wss://voice.example.com/twilio --signature-token $TWILIO_AUTH_TOKEN

A script:
  steps = [\"hears_start\", { hears_for = 1240 }, { says = 700 }, \"hears_start\", \"hears_end\", \"hangs_up\"]
  custom_parameters = { tenant = \"t-42\" }"
)]
struct Args {
    /// The bridge's stream URL, for example ws://127.0.0.1:8084/twilio. A query is dropped, as Twilio does.
    #[arg(required_unless_present = "start_url")]
    url: Option<Url>,
    /// Ask this webhook for TwiML first, and follow it; with a URL beside it, that is where the stream really is.
    #[arg(long, value_name = "URL")]
    start_url: Option<Url>,
    /// Scheme and host by which Twilio would know the bridge; this is what is signed.
    #[arg(long, value_name = "URL")]
    public_url: Option<Url>,
    /// Sign the webhook and the upgrade with this auth token.
    #[arg(long, value_name = "TOKEN", env = "TWILIO_AUTH_TOKEN", hide_env_values = true)]
    signature_token: Option<String>,
    /// Believe the certificates in this PEM file when the bridge is called with TLS.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// What the caller does, in TOML.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// What the caller says: a WAV file, 16 bit, mono, 8 or 24 kHz. A script plays it with { plays = \"wav\" }.
    #[arg(long, value_name = "FILE")]
    wav: Option<PathBuf>,
    /// The caller does not wait for a greeting.
    #[arg(long, conflicts_with = "script")]
    speaks_first: bool,
    /// A customParameter of `start`, as a `<Parameter>` of TwiML would make it; may be said several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    parameter: Vec<(String, String)>,
    /// Save what was heard, pauses included, as a WAV file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Fail unless at least this much was heard. Silence is not: sound counts from -42 dBFS on, with its short pauses.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    heard: u64,
    /// Draws the noise of the line, the jitter and the ids of the call.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
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
    // Known before the script is read, which may name it.
    let said = args.wav.as_deref().map(read_wav).transpose()?.map(|samples| recording("wav", samples));
    let script = match &args.script {
        Some(file) => read_script(file)?,
        None => default_script(args.speaks_first, said),
    };
    let roots = match &args.ca {
        Some(file) => {
            let pem = std::fs::read_to_string(file)
                .with_context(|| format!("{} could not be read", file.display()))?;
            Roots::of_pem(&pem).with_context(|| format!("{} cannot be believed", file.display()))?
        }
        None => Roots::public(),
    };
    let mut caller = Caller::new(script, identity(args.seed), args.seed);
    caller.carries(args.parameter.iter().cloned());
    let invited = invite(&args, &roots).await?;
    caller.carries(invited.parameters);
    let (said, place) = (invited.said, invited.place);
    let clock = clock();
    let mut request = Request::builder()
        .uri(format!("ws://{}{}", said.authority(), said.target))
        .header("Host", said.authority());
    for (name, value) in caller.upgrade_headers() {
        request = request.header(name, value);
    }
    if let Some(token) = &args.signature_token {
        request = request.header(webhook::SIGNATURE, signature(token, said.as_str(), &[]));
    }
    let request = request.body(()).context("the upgrade request could not be built")?;
    let stream = net::dial(&place, &roots)
        .await
        .with_context(|| format!("no bridge answers at {place}; is it running?"))?;
    let config = WebSocketConfig::default().read_buffer_size(8 << 10);
    let mut narrator = Narrator { caller, said: 0, audio: Audio::default() };
    let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    let narrator = match tokio::time::timeout(HANDSHAKE, upgrade).await {
        Ok(Ok((socket, _response))) => attach(socket, narrator, &clock).await,
        Ok(Err(tungstenite::Error::Http(response))) => {
            narrator.caller.refused(response.status().as_u16(), clock());
            narrator.say();
            narrator
        }
        Ok(Err(error)) => return Err(anyhow!(error).context(format!("{place} did not open a WebSocket"))),
        Err(_elapsed) => bail!("{place} did not answer the upgrade within {} s", HANDSHAKE.as_secs()),
    };
    let record = narrator.caller.into_record();
    if let Some(file) = &args.save {
        save(&record, file).with_context(|| format!("{} could not be written", file.display()))?;
    }
    Ok(summarise(&record, args.heard))
}

/// Where the call goes.
struct Invited {
    /// The address Twilio would ask for, which is signed.
    said: Url,
    /// Where that really is.
    place: Url,
    /// What TwiML wants to be in `start`.
    parameters: BTreeMap<String, String>,
}

async fn invite(args: &Args, roots: &Roots) -> anyhow::Result<Invited> {
    let public = |url: &Url, scheme: [&str; 2]| -> anyhow::Result<Url> {
        let Some(public) = &args.public_url else { return Ok(url.clone()) };
        format!("{}://{}{}", scheme[usize::from(public.secure)], public.authority(), url.target).parse()
    };
    let (said, parameters) = match (&args.start_url, &args.url) {
        (Some(start), _) => {
            let known_as = public(start, ["http", "https"])?;
            let token = args.signature_token.as_deref();
            let found = webhook::ask(start, &known_as, token, &identity(args.seed), roots).await?;
            println!("TwiML connects the call to {}", found.stream);
            if !found.skipped.is_empty() {
                println!("(before that it wants {}, which a mock does not do)", found.skipped.join(", "));
            }
            (found.stream, found.parameters)
        }
        (None, Some(url)) => (public(url, ["ws", "wss"])?, BTreeMap::new()),
        (None, None) => bail!("neither a stream URL nor --start-url is given"),
    };
    let bare = said.without_query();
    if bare != said {
        eprintln!("mock-twilio: the query of {said} is dropped, as Twilio does");
    }
    let place = match &args.url {
        Some(url) => {
            let scheme = if url.secure { "wss" } else { "ws" };
            format!("{scheme}://{}{}", url.authority(), bare.target).parse()?
        }
        None => bare.clone(),
    };
    Ok(Invited { said: bare, place, parameters })
}

fn read_script(file: &Path) -> anyhow::Result<CallerScript> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("{} could not be read", file.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is no caller script", file.display()))
}

/// The samples of a WAV file at 8 kHz.
fn read_wav(file: &Path) -> anyhow::Result<Vec<i16>> {
    let shown = file.display();
    let mut wav = hound::WavReader::open(file).with_context(|| format!("{shown} could not be read"))?;
    let spec = wav.spec();
    ensure!(
        spec.channels == 1 && spec.bits_per_sample == 16 && matches!(spec.sample_rate, 8_000 | 24_000),
        "{shown} has {} channels of {} bit at {} Hz; it must be mono, 16 bit, 8000 or 24000 Hz",
        spec.channels,
        spec.bits_per_sample,
        spec.sample_rate
    );
    let samples: Vec<i16> =
        wav.samples().collect::<Result<_, _>>().with_context(|| format!("{shown} is cut short"))?;
    Ok(if spec.sample_rate == 8_000 { samples } else { resample::down(&samples) })
}

fn default_script(speaks_first: bool, said: Option<CallerStep>) -> CallerScript {
    let greeting = [CallerStep::HearsStart, CallerStep::HearsEnd];
    let steps = if speaks_first { vec![CallerStep::Waits(500)] } else { greeting.into() };
    let rest = [
        said.unwrap_or(CallerStep::Says(2_000)),
        CallerStep::HearsStart,
        CallerStep::HearsEnd,
        CallerStep::HangsUp,
    ];
    CallerScript { patience_ms: 10_000, ..CallerScript::of(steps.into_iter().chain(rest)) }
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

/// A caller whose observations are printed as they happen.
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
        for sighting in &self.caller.record().observations[self.said..] {
            match &sighting.what {
                CallerObservation::SentMedia { .. } => {}
                CallerObservation::GotMedia { len, .. } => {
                    self.audio.since.get_or_insert(sighting.at);
                    self.audio.messages += 1;
                    self.audio.bytes += len;
                }
                // Marks come with nearly every audio message; a line each would hide the call.
                CallerObservation::GotMark { .. } | CallerObservation::SentMark { flushed: false, .. } => {}
                CallerObservation::Opened
                | CallerObservation::Refused { .. }
                | CallerObservation::SentConnected
                | CallerObservation::SentStart
                | CallerObservation::SentDtmf { .. }
                | CallerObservation::SentMark { .. }
                | CallerObservation::SentStop
                | CallerObservation::SentRaw { .. }
                | CallerObservation::SpeechBegan { .. }
                | CallerObservation::SpeechEnded { .. }
                | CallerObservation::GotClear { .. }
                | CallerObservation::Warned { .. }
                | CallerObservation::GotPing
                | CallerObservation::WentQuiet { .. }
                | CallerObservation::Step { .. }
                | CallerObservation::StatusCallback { .. }
                | CallerObservation::Ended(_) => {
                    let Audio { since, messages, bytes } = std::mem::take(&mut self.audio);
                    if let Some(since) = since {
                        println!("{since:>14}  got {} ms of audio in {messages} messages", bytes / 8);
                    }
                    println!("{:>14}  {}", sighting.at, in_words(&sighting.what));
                }
            }
        }
        self.said = self.caller.record().observations.len();
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
fn summarise(record: &CallerRecord, wanted_ms: u64) -> bool {
    let seconds = |bytes: usize| bytes as f64 / 8_000.0;
    let played: usize = record.played.iter().map(|stretch| stretch.len).sum();
    let warnings = record
        .observations
        .iter()
        .filter(|sight| matches!(sight.what, CallerObservation::Warned { .. }))
        .count();
    let started = record.observations.iter().any(|sight| matches!(sight.what, CallerObservation::SentStart));
    println!();
    let audible = audible_bytes(record);
    println!(
        "said {:.2} s in {} frames; got {:.2} s, played {:.2} s in {} stretches, heard {:.2} s; {warnings} warnings",
        seconds(record.spoken.len()),
        record.mic.len(),
        seconds(record.received.len()),
        seconds(played),
        record.played.len(),
        seconds(audible),
    );
    if (audible as u64) < wanted_ms * 8 {
        println!("{wanted_ms} ms were to be heard; what was played has {} ms of sound", audible / 8);
        return false;
    }
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
