//! `scn contract`: shows that the mock of the model is true, or where it is not.
//!
//! The same scripted sessions ([`script`]) are played by one client ([`client`]) against the mock and against a server
//! ([`play`]): the mock itself over sockets, the real service, a clone, or a recording of either ([`recording`]). What
//! the mock says is the expectation; nothing is written down. `compare` finds what differs, [`tolerance`] says what
//! may, and [`report`] tells it. `docs/dev/contract.md` is written for people who have never seen this tree.

pub mod client;
pub mod compare;
pub mod difference;
pub mod play;
pub mod recording;
pub mod report;
pub mod script;
pub mod tolerance;

#[cfg(test)]
mod tests;

use self::client::{Budget, Limits};
use self::compare::{Known, Rules, compare};
use self::play::{Mock, Scheme, Server, expected, over_socket};
use self::recording::{REFUSED, Recording, Redaction, Sender};
use self::report::{Outcome, Report};
use self::script::{Session, Step};
use self::tolerance::Tolerances;
use crate::base::output::{put, say};
use crate::sim::real::Lag;
use anyhow::{Context as _, bail, ensure};
use bridge::base::secret::Secret;
use clap::ValueEnum;
use mocks::net::{Roots, Url};
use mocks::realtime::Dialect;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Where the key is when no file is named.
const KEY_VARIABLE: &str = "OPENAI_API_KEY";
/// The model that is asked for when none is named.
const MODEL: &str = "gpt-realtime-2.1";
/// Tokens of a second of the caller's audio, and of the model's.
const TOKENS_A_SECOND: (u64, u64) = (10, 20);
/// Price of a million tokens of audio of [`MODEL`], dollars: heard and spoken.
const PRICE: (f64, f64) = (32.0, 64.0);
/// Where the refusal of a whole account shows, by the code of its error.
const ACCOUNT: [&str; 6] = [
    "invalid_api_key",
    "insufficient_permissions",
    "insufficient_quota",
    "billing_hard_limit_reached",
    "account_deactivated",
    "model_not_found",
];

/// How to compare the mock with a server.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 nothing differs, 1 something differs, 2 it could not run.

Examples:
  scn contract                                         the mock over sockets, in a quarter of a minute
  scn contract --url wss://api.openai.com/v1/realtime  the real service, with the key in OPENAI_API_KEY
  scn contract turn --url wss://api.openai.com/v1/realtime --key-file key.txt --record golden/wire/own
  scn contract --against golden/wire/own               a recording, without a network
  scn contract --url wss://my.openai.azure.com/openai/v1/realtime --model my-deployment --auth api-key
  scn contract --list                                  the sessions, and what they would use")]
pub struct Options {
    /// Part of a session's name; every session when absent.
    pattern: Option<String>,
    /// The server; the mock of this build when absent. A path of / becomes /v1/realtime.
    #[arg(long, value_name = "URL", conflicts_with = "against")]
    url: Option<Url>,
    /// The file with the key; the variable OPENAI_API_KEY when absent.
    #[arg(long, value_name = "FILE", requires = "url")]
    key_file: Option<PathBuf>,
    /// How the key is shown: bearer, basic, or the name of a header such as api-key.
    #[arg(long, value_name = "SCHEME", default_value = "bearer", requires = "url")]
    auth: Scheme,
    /// The model that is asked for.
    #[arg(long, value_name = "NAME", default_value = MODEL, conflicts_with = "against")]
    model: String,
    /// Which generation of names is spoken.
    #[arg(long, value_enum, default_value_t = Spoken::Ga, conflicts_with = "against")]
    dialect: Spoken,
    /// Trust the certificates in this PEM file instead of the public authorities.
    #[arg(long, value_name = "FILE", requires = "url")]
    ca: Option<PathBuf>,
    /// Compare with this recording, or with every recording in this folder, instead of with a server.
    #[arg(long, value_name = "FILE|DIR")]
    against: Option<PathBuf>,
    /// Keep what was said, one file a session, in this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "against")]
    record: Option<PathBuf>,
    /// Keep the audio in the recordings, too.
    #[arg(long, requires = "record")]
    keep_audio: bool,
    /// Do not compare times.
    #[arg(long)]
    no_timing: bool,
    /// Tell what is tolerated, too, and why.
    #[arg(long)]
    tolerated: bool,
    /// Write the comparison as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the sessions and what they would use, and end.
    #[arg(long)]
    list: bool,
    /// How many sessions are played at one time.
    #[arg(long, value_name = "N", default_value = "4")]
    jobs: NonZeroUsize,
    /// The longest wait for the next event of a step, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=300))]
    step_seconds: u64,
    /// The longest run, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3600))]
    run_seconds: u64,
    /// The most audio of both directions together, seconds; a run that needs more is stopped.
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=3600))]
    max_audio_seconds: u64,
}

/// Which generation of names is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spoken {
    /// Today's.
    Ga,
    /// The retired ones, which clones still speak.
    Beta,
}

impl From<Spoken> for Dialect {
    fn from(spoken: Spoken) -> Self {
        match spoken {
            Spoken::Ga => Self::Ga,
            Spoken::Beta => Self::Beta,
        }
    }
}

/// Compares the mock with a server or with recordings. True when nothing differs.
///
/// # Errors
/// When nothing could be compared.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let dialect = Dialect::from(options.dialect);
    let sessions = script::chosen(options.pattern.as_deref(), dialect)?;
    if options.list {
        say(&list(&sessions, options));
        return Ok(true);
    }
    let tolerances = Tolerances::read()?;
    let report = match &options.against {
        Some(path) => against(path, &sessions, &tolerances, !options.no_timing)?,
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let report = runtime.block_on(live(options, sessions, &tolerances));
            // What a server has left open holds nothing up.
            runtime.shutdown_background();
            report?
        }
    };
    if let Some(folder) = &options.record {
        let cannot = || format!("cannot write into {}", folder.display());
        std::fs::create_dir_all(folder).with_context(cannot)?;
        for seen in report.outcomes.iter().filter_map(|outcome| outcome.seen.as_ref()) {
            seen.write(folder)?;
        }
    }
    if let Some(path) = &options.json {
        put(path, report.json())?;
    }
    say(&report.text(options.tolerated));
    if report.differs() {
        return Ok(false);
    }
    ensure!(report.is_same(), "not every session could be played");
    say("nothing differs\n");
    Ok(true)
}

// ------------------------------------------------------------------------------------------ with a server

async fn live(options: &Options, sessions: Vec<Session>, tolerances: &Tolerances) -> anyhow::Result<Report> {
    let dialect = Dialect::from(options.dialect);
    let (server, mock) = match &options.url {
        Some(url) => (server(options, url)?, None),
        None => {
            let mock = Mock::serve(&sessions, dialect, false).await.context("the mock cannot be served")?;
            (mock.server(&options.model, dialect)?, Some(mock))
        }
    };
    let name = if mock.is_some() { "itself over a socket".to_owned() } else { server.place() };
    if mock.is_none() {
        eprintln!("{name}: {}", estimate(&sessions, &server));
        eprintln!(
            "it is stopped at {} s of audio and after {} s",
            options.max_audio_seconds, options.run_seconds
        );
    }
    let playing = Playing {
        limits: Limits {
            step_ms: options.step_seconds * 1_000,
            budget: Arc::new(Budget::new(options.max_audio_seconds * 1_000)),
            ..Limits::default()
        },
        redaction: Redaction::new(server.key.expose(), options.keep_audio),
        jobs: options.jobs.get(),
        longest: Duration::from_secs(options.run_seconds),
    };
    let report = playing.report(&sessions, &server, tolerances, !options.no_timing).await;
    if let Some(mock) = mock {
        mock.stop().await;
    }
    Ok(Report { server: name, ..report })
}

fn server(options: &Options, url: &Url) -> anyhow::Result<Server> {
    let key = match &options.key_file {
        Some(file) => {
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
        }
        None => std::env::var(KEY_VARIABLE).unwrap_or_default(),
    };
    let key = key.trim();
    let here = matches!(url.host.as_str(), "localhost" | "127.0.0.1" | "::1");
    if key.is_empty() && !here {
        bail!("there is no key: set {KEY_VARIABLE}, or name a file with --key-file");
    }
    ensure!(
        url.secure || here,
        "ws://{} is not encrypted, and the key would be readable on the way: use wss://",
        url.authority()
    );
    let roots = match &options.ca {
        Some(file) => {
            let pem =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Roots::of_pem(&pem).with_context(|| format!("{} cannot be trusted", file.display()))?
        }
        None => Roots::public(),
    };
    Ok(Server {
        url: url.clone(),
        key: Secret::new(if key.is_empty() { "any" } else { key }),
        scheme: options.auth.clone(),
        model: options.model.clone(),
        dialect: options.dialect.into(),
        roots,
    })
}

/// How sessions are played with a server.
#[derive(Clone, Debug)]
pub struct Playing {
    /// How long is waited, and how much audio there may be.
    pub limits: Limits,
    /// What is left out of the recordings.
    pub redaction: Redaction,
    /// How many sessions are played at one time.
    pub jobs: usize,
    /// How long all of them may take.
    pub longest: Duration,
}

impl Playing {
    /// Plays them, and compares each with what the mock says.
    pub async fn report(
        &self,
        sessions: &[Session],
        server: &Server,
        tolerances: &Tolerances,
        timing: bool,
    ) -> Report {
        let lag = Lag::default();
        let watch = tokio::spawn(lag.clone().watch());
        let seen = self.all(sessions, server).await;
        watch.abort();
        let lag_ms = timing.then(|| lag.worst_us() as f64 / 1e3);
        let mut known = Known::golden();
        let expectations: Vec<_> = sessions.iter().map(|session| expected(session, server)).collect();
        expectations.iter().for_each(|expectation| known.learn_all(expectation));
        let pairs = sessions.iter().zip(&expectations).zip(seen);
        let outcomes = pairs.map(|((session, expectation), seen)| {
            judge(session, expectation, seen, Rules { tolerances, known: &known, lag_ms })
        });
        Report { server: server.place(), model: server.model.clone(), outcomes: outcomes.collect() }
    }

    /// The recording of each, or why there is none.
    async fn all(&self, sessions: &[Session], server: &Server) -> Vec<Result<Recording, String>> {
        let places = Arc::new(Semaphore::new(self.jobs.max(1)));
        let mut playing = JoinSet::new();
        for (index, session) in sessions.iter().cloned().enumerate() {
            let (this, server, places) = (self.clone(), server.clone(), places.clone());
            playing.spawn(async move {
                let _place = places.acquire_owned().await;
                let source = format!("scn contract {}: {}, {}", session.name, server.place(), server.model);
                let played = over_socket(&session, &server, this.limits, this.redaction, &source).await;
                (index, played.map_err(|why| why.to_string()))
            });
        }
        let late = || Err(format!("the run took longer than {} s", self.longest.as_secs()));
        let mut all: Vec<_> = sessions.iter().map(|_| late()).collect();
        let collect = async {
            while let Some(ended) = playing.join_next().await {
                match ended {
                    Ok((index, played)) => all[index] = played,
                    Err(error) => eprintln!("scn: a session failed in the harness itself: {error}"),
                }
            }
        };
        // What is not there in time stays late.
        let _in_time = tokio::time::timeout(self.longest, collect).await;
        all
    }
}

/// What came of a session.
fn judge(
    session: &Session,
    expectation: &Recording,
    seen: Result<Recording, String>,
    rules: Rules<'_>,
) -> Outcome {
    let name = session.name.clone();
    match seen {
        Err(why) => Outcome { session: name, seen: None, comparison: None, note: Some(why) },
        Ok(seen) => match refusal(session, &seen) {
            Some(why) => Outcome { session: name, seen: Some(seen), comparison: None, note: Some(why) },
            None => {
                let comparison = compare(expectation, &seen, rules);
                Outcome { session: name, seen: Some(seen), comparison: Some(comparison), note: None }
            }
        },
    }
}

/// Why a session says nothing about the mock: the account, the model or the address is refused.
fn refusal(session: &Session, seen: &Recording) -> Option<String> {
    if session.steps.first() != Some(&Step::Opens) {
        return None;
    }
    let first = seen.lines.iter().find(|line| line.from == Sender::Server)?;
    if first.kind() == REFUSED {
        return Some(format!("the upgrade was answered with HTTP {}", first.frame["status"]));
    }
    let error = &first.frame["error"];
    let code = error["code"].as_str().filter(|code| ACCOUNT.contains(code))?;
    Some(format!("refused with {code}: {}", error["message"].as_str().unwrap_or_default()))
}

// ------------------------------------------------------------------------------------------ with recordings

/// Compares the mock with recordings.
///
/// # Errors
/// When there is none, or one cannot be read.
pub fn against(
    path: &Path,
    sessions: &[Session],
    tolerances: &Tolerances,
    timing: bool,
) -> anyhow::Result<Report> {
    let mut files = Vec::new();
    if path.is_dir() {
        let cannot = || format!("cannot read {}", path.display());
        for entry in std::fs::read_dir(path).with_context(cannot)? {
            let file = entry.with_context(cannot)?.path();
            files.extend(file.extension().is_some_and(|ending| ending == "jsonl").then_some(file));
        }
        files.sort();
    } else {
        files.push(path.to_owned());
    }
    ensure!(!files.is_empty(), "{} holds no recording (*.jsonl)", path.display());
    let (mut known, mut pairs, mut model) = (Known::golden(), Vec::new(), String::new());
    for file in &files {
        let cannot = || format!("{} is no recording", file.display());
        let text = std::fs::read_to_string(file).with_context(cannot)?;
        let seen = Recording::from_ndjson(&text).with_context(cannot)?;
        let Some(session) = sessions.iter().find(|session| session.name == seen.session) else { continue };
        let first = &seen.lines[0].frame;
        let dialect = if first["dialect"] == "beta" { Dialect::Beta } else { Dialect::Ga };
        let recorded = first["model"].as_str().filter(|_| session.connect.model.is_none());
        if let Some(recorded) = recorded {
            recorded.clone_into(&mut model);
        }
        let server = Server {
            url: "ws://localhost/v1/realtime".parse()?,
            key: Secret::new("any"),
            scheme: Scheme::Bearer,
            model: recorded.unwrap_or(MODEL).to_owned(),
            dialect,
            roots: Roots::public(),
        };
        let expectation = expected(session, &server);
        known.learn_all(&expectation);
        let note = (first["script"] != session.digest.as_str())
            .then(|| "recorded with another version of the session: record it again".to_owned());
        pairs.push((session, expectation, seen, note));
    }
    ensure!(!pairs.is_empty(), "{} holds no recording of a chosen session", path.display());
    let rules = Rules { tolerances, known: &known, lag_ms: timing.then_some(0.0) };
    let outcomes = pairs.into_iter().map(|(session, expectation, seen, note)| {
        let outcome = judge(session, &expectation, Ok(seen), rules);
        Outcome { note: outcome.note.or(note), ..outcome }
    });
    Ok(Report { server: path.display().to_string(), model, outcomes: outcomes.collect() })
}

// ------------------------------------------------------------------------------------------ the cost

/// Seconds of audio that a run of these sessions uses: the caller's, and the model's.
pub fn audio_s(sessions: &[Session], server: &Server) -> (f64, u64) {
    let sent = |session: &Session| expected(session, server).audio_ms().0;
    let caller_ms: u64 = sessions.iter().filter(|session| session.speaks()).map(sent).sum();
    (caller_ms as f64 / 1e3, sessions.iter().map(|session| session.reply_s).sum())
}

fn estimate(sessions: &[Session], server: &Server) -> String {
    let (caller_s, model_s) = audio_s(sessions, server);
    let heard = caller_s * TOKENS_A_SECOND.0 as f64;
    let spoken = (model_s * TOKENS_A_SECOND.1) as f64;
    let dollars = (heard * PRICE.0 + spoken * PRICE.1) / 1e6;
    format!(
        "{} sessions use about {caller_s:.0} s of caller audio and {model_s} s of model audio: some {:.0} audio tokens, \
         or ${dollars:.2} at the list price of {MODEL} in 2026",
        sessions.len(),
        heard + spoken
    )
}

fn list(sessions: &[Session], options: &Options) -> String {
    let width = sessions.iter().map(|session| session.name.len()).max().unwrap_or(0);
    let mut out: String =
        sessions.iter().map(|session| format!("{:<width$}  {}\n", session.name, session.about)).collect();
    let url = "ws://localhost/v1/realtime".parse();
    if let Ok(url) = url {
        let server = Server {
            url,
            key: Secret::new("any"),
            scheme: Scheme::Bearer,
            model: options.model.clone(),
            dialect: options.dialect.into(),
            roots: Roots::public(),
        };
        out.push_str(&format!("\n{}\n", estimate(sessions, &server)));
    }
    out
}
