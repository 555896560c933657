//! Settings of the process: defaults, then a TOML file, then the environment, then flags.
//!
//! Everything is checked before the bridge listens. What is missing or wrong is refused by name, with its value and
//! what would be right, and all of it at once.

use crate::audio::{Companding, FRAME_BYTES};
use crate::auth::stream_auth;
use crate::auth::webhook_replay;
use crate::base::secret::Secret;
use crate::base::url::{PublicUrl, Url, shown_url};
use crate::call::settings::{CallConfig, Person, Until};
use crate::call::settings::{END_CALL, TRANSFER_CALL};
use crate::export::journal;
use crate::export::logs;
use crate::export::metrics;
use crate::export::otlp;
use crate::export::store;
use crate::net::dial::ModelEndpoint;
use crate::net::tls;
use crate::net::tool_webhooks;
use crate::runtime::leg::BURST_MAX;
use crate::server::connections;
use crate::server::live;
use crate::server::operator;
use crate::server::settings;
use crate::server::stats::CallLimits;
use crate::wire::twiml::{self, After};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Deserializer, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// Longest wait that can be configured, ms: a week. No operator means more, and the clock can add it safely.
const WAIT_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1_000;
/// The longest time that a session is kept for the words of a caller who is gone: a draining server waits for it.
const LAST_WORDS_MS_MAX: u64 = 10_000;
/// Longest notice, bytes of mu-law: 30 seconds.
const NOTICE_MAX: usize = 30 * 8_000;
/// Twilio keeps this much audio of a call at most, ms: a longer lead is cut to it.
const LEAD_MS_MAX: u64 = 540_000;

/// Most that can be kept of journals, bytes, calls or days: what TOML can write.
const JOURNAL_BYTES_MAX: u64 = i64::MAX as u64;

/// What a caller hears when a call has to end early and `notice_file` names nothing else: 8 kHz mu-law.
pub fn notice() -> Arc<[u8]> {
    Arc::from(include_bytes!("../../assets/notice.ulaw").as_slice())
}

/// Settings of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    #[serde(deserialize_with = "parsed")]
    pub listen: SocketAddr,
    /// The address Twilio reaches this bridge at. Without it the webhook answers with the `Host` it was asked for.
    pub public_url: Option<PublicUrl>,
    /// Most calls at once; more are refused before the upgrade.
    pub max_calls: usize,
    /// New calls are refused while the process comes to its tasks this much later than it should, ms; 0 for never.
    pub loop_lag_ms_max: u64,
    /// How long running calls may go on after the signal to stop, ms.
    pub drain_ms: u64,
    /// Raw mu-law at 8 kHz to play instead of the bundled notice when a call has to end early.
    pub notice_file: Option<PathBuf>,
    /// The Twilio account, and what becomes of its calls.
    pub twilio: stream_auth::Settings,
    /// Who may place, end and transfer calls from outside.
    pub operator: operator::Settings,
    /// TLS on the listener itself, instead of a proxy before it.
    pub tls: tls::Settings,
    /// How many connections that are no calls there may be.
    pub connections: connections::Settings,
    /// The model's service.
    pub openai: ModelEndpoint,
    /// What is logged, and how.
    pub log: logs::Settings,
    /// Whether calls are journalled, where, and how much is kept.
    pub journal: journal::Settings,
    /// Whether figures are served, and where.
    pub metrics: metrics::Settings,
    /// Where transcripts are kept.
    pub store: store::Settings,
    /// Whether traces and logs are sent to a collector, and where.
    pub otlp: otlp::Settings,
    /// The page of the calls of this moment.
    pub live: live::Settings,
    /// Where functions are run.
    pub tools: tool_webhooks::Settings,
    /// Settings of each call.
    pub call: CallConfig,
    /// The notice itself, mu-law at 8 kHz.
    #[serde(skip, default = "notice")]
    pub notice: Arc<[u8]>,
    /// Keys of the release before in the file, each with the one that takes its place.
    #[serde(skip)]
    pub renamed: Vec<(&'static str, &'static str)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8084)),
            public_url: None,
            max_calls: 200,
            loop_lag_ms_max: 250,
            drain_ms: 600_000,
            notice_file: None,
            twilio: stream_auth::Settings::default(),
            operator: operator::Settings::default(),
            tls: tls::Settings::default(),
            connections: connections::Settings::default(),
            openai: ModelEndpoint::default(),
            log: logs::Settings::default(),
            journal: journal::Settings::default(),
            metrics: metrics::Settings::default(),
            store: store::Settings::default(),
            otlp: otlp::Settings::default(),
            live: live::Settings::default(),
            tools: tool_webhooks::Settings::default(),
            call: CallConfig::default(),
            notice: notice(),
            renamed: Vec::new(),
        }
    }
}

impl Config {
    /// What the server needs of it.
    pub fn server(&self) -> settings::Settings {
        settings::Settings {
            public_url: self.public_url.clone(),
            limits: CallLimits { max_calls: self.max_calls, loop_lag_ms_max: self.loop_lag_ms_max },
            drain_ms: self.drain_ms,
            twilio: self.twilio.clone(),
            operator_token: self.operator.token.clone(),
            connections: self.connections.clone(),
            model: Arc::new(self.openai.clone()),
            call: Arc::new(self.call.clone()),
            notice: self.notice.clone(),
        }
    }
}

fn parsed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listen(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address and a port, such as 0.0.0.0:8084"))
}

/// What the command line says.
#[derive(Debug, Default, Parser)]
#[command(
    name = "bridge",
    version,
    about = "Carry phone calls between Twilio Media Streams and an OpenAI Realtime model.",
    after_help = HELP,
    propagate_version = true
)]
pub struct Args {
    /// What to do; serving is the default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings in TOML; deploy/bridge.example.toml shows them all [env: BRIDGE_CONFIG].
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen [env: BRIDGE_LISTEN] [default: 0.0.0.0:8084].
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// The address Twilio reaches this bridge at [env: BRIDGE_PUBLIC_URL] [default: the Host it is asked for].
    #[arg(long, global = true, value_name = "URL")]
    pub public_url: Option<String>,
    /// Accept unsigned requests: for local work, and only on a loopback address.
    #[arg(long, global = true)]
    pub insecure_no_signature: bool,
    /// Where the model's WebSocket is [env: OPENAI_REALTIME_URL] [default: wss://api.openai.com/v1/realtime].
    #[arg(long, global = true, value_name = "URL")]
    pub openai_url: Option<String>,
    /// The model to talk to [env: OPENAI_MODEL] [default: gpt-realtime-2.1].
    #[arg(long, global = true, value_name = "NAME")]
    pub model: Option<String>,
    /// Audio towards the model: pcm24k, pcmu or pcma [env: BRIDGE_FORMAT] [default: pcm24k].
    #[arg(long, global = true, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Most calls at once [env: BRIDGE_MAX_CALLS] [default: 200].
    #[arg(long, global = true, value_name = "N")]
    pub max_calls: Option<String>,
    /// How long calls may go on after the signal to stop [env: BRIDGE_DRAIN_MS] [default: 600000].
    #[arg(long, global = true, value_name = "MS")]
    pub drain_ms: Option<String>,
    /// Raw 8 kHz mu-law to play when a call has to end early [env: BRIDGE_NOTICE_FILE] [default: bundled].
    #[arg(long, global = true, value_name = "FILE")]
    pub notice_file: Option<String>,
    /// Log lines as text or json [env: BRIDGE_LOG_FORMAT] [default: text].
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// error, warn, info, debug, trace, or filters such as info,bridge=debug [env: BRIDGE_LOG] [default: info].
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Where the page of the running calls is, or off [env: BRIDGE_LIVE_LISTEN] [default: 127.0.0.1:8085].
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub live_listen: Option<String>,
    /// Where the figures are, or off [env: BRIDGE_METRICS_LISTEN] [default: 127.0.0.1:8086].
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub metrics_listen: Option<String>,
    /// The folder of the call journals [env: BRIDGE_JOURNAL_DIR] [default: none, and no journals].
    #[arg(long, global = true, value_name = "DIR")]
    pub journal_dir: Option<String>,
    /// What journals hold of audio and words: hashes, or full, a recording [env: BRIDGE_JOURNAL_CONTENT] [default: hashes].
    #[arg(long, global = true, value_name = "CONTENT")]
    pub journal_content: Option<String>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve calls until SIGTERM or SIGINT (the default).
    Serve,
    /// Check the settings and print what would be in force, without serving.
    Check,
    /// Show a scripted call between mocks on one machine: no account, no key, no cost.
    Demo {
        /// Where mock-openai and mock-twilio are [default: beside this program].
        #[arg(long, value_name = "DIR")]
        mocks: Option<PathBuf>,
        /// Where to write what the caller heard.
        #[arg(long, value_name = "FILE", default_value = "heard.wav")]
        save: PathBuf,
        /// How many calls to play; without it one after the other until Ctrl-C.
        #[arg(long, value_name = "N")]
        calls: Option<u32>,
    },
    /// Place a call: Twilio rings the number and connects it, once answered, to the bridge that serves public_url.
    Call {
        /// Whom to call, such as +14155550123.
        #[arg(long, value_name = "NUMBER")]
        to: String,
        /// The number of the account to call from [default: TWILIO_NUMBER].
        #[arg(long, value_name = "NUMBER")]
        from: Option<String>,
    },
    /// Show stored calls; BRIDGE_STORE_URL or store.url says where they are.
    #[cfg(feature = "store")]
    Calls {
        /// What to show.
        #[command(subcommand)]
        calls: store::cli::Calls,
    },
}

impl Command {
    /// It needs to know where calls are stored, and nothing else.
    const fn only_reads(&self) -> bool {
        #[cfg(feature = "store")]
        if let Self::Calls { .. } = self {
            return true;
        }
        false
    }
}

const HELP: &str = "\
Secrets come from the environment or the file, never from a flag: OPENAI_API_KEY, the key of the
project that pays; TWILIO_AUTH_TOKEN, the account's primary auth token; BRIDGE_OPERATOR_TOKEN, for
operators, who may place and end calls; BRIDGE_TOOLS_SECRET, by which the functions' webhooks
know the bridge. NAME_FILE names a file that holds the secret instead. Also
TWILIO_ACCOUNT_SID and TWILIO_NUMBER; BRIDGE_STORE_URL, where transcripts are kept; and
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS and OTEL_SERVICE_NAME, where traces and
logs are sent. Flags win over the environment, the environment over the file, the file over the
defaults. An empty variable counts as unset.

Examples:
  OPENAI_API_KEY=sk-... TWILIO_AUTH_TOKEN=... bridge --public-url https://voice.example.com
  bridge --config /etc/bridge.toml --log-format json
  bridge check --config deploy/bridge.example.toml
  bridge call --to +14155550123
  bridge demo
  OPENAI_API_KEY=any bridge --insecure-no-signature --listen 127.0.0.1:8084 \
    --openai-url ws://127.0.0.1:9100/v1/realtime
  bridge calls list
  BRIDGE_STORE_URL=postgres://bridge:secret@db/bridge bridge calls export

Serves:
  /voice     the webhook of a Twilio number: TwiML that connects the call to /twilio
  /twilio    the WebSocket of Twilio Media Streams
  /stream-status   where Twilio tells what became of a stream
  /healthz   200 while the process lives and takes calls, 503 while draining
  /readyz    200 while one more call would be taken, else 503 and why
  /calls     POST: place a call; /calls/{CallSid}/hangup and /transfer (with the operator's token)
and, by default only on this machine:
  at live.listen, / the calls of this moment, /live/calls as JSON
  at metrics.listen, /metrics: figures for Prometheus; docs/guide/observability.md tells them all

Exit codes: 0 stopped after a signal, 1 failed while running, 2 refused its settings.";

/// Stores one overriding value.
type Store = fn(&mut Config, &str) -> Result<(), String>;
/// A flag, its value, the variable that stands in for it, and where it goes.
type Override<'a> = (&'static str, Option<&'a str>, &'static str, Store);

impl Args {
    fn overrides(&self) -> [Override<'_>; 14] {
        [
            ("--listen", self.listen.as_deref(), "BRIDGE_LISTEN", |config, text| {
                listen(text).map(|address| config.listen = address)
            }),
            ("--public-url", self.public_url.as_deref(), "BRIDGE_PUBLIC_URL", |config, text| {
                text.parse().map(|url| config.public_url = Some(url))
            }),
            ("--openai-url", self.openai_url.as_deref(), "OPENAI_REALTIME_URL", |config, text| {
                text.parse().map(|url| config.openai.url = url)
            }),
            ("--model", self.model.as_deref(), "OPENAI_MODEL", |config, text| {
                config.call.model = text.to_owned();
                Ok(())
            }),
            ("--format", self.format.as_deref(), "BRIDGE_FORMAT", |config, text| {
                word(text, "pcm24k, pcmu or pcma").map(|format| config.call.format = format)
            }),
            ("--max-calls", self.max_calls.as_deref(), "BRIDGE_MAX_CALLS", |config, text| {
                text.parse()
                    .map(|calls| config.max_calls = calls)
                    .map_err(|_| format!("{text:?} is not a number of calls"))
            }),
            ("--drain-ms", self.drain_ms.as_deref(), "BRIDGE_DRAIN_MS", |config, text| {
                text.parse()
                    .map(|ms| config.drain_ms = ms)
                    .map_err(|_| format!("{text:?} is not a number of milliseconds"))
            }),
            ("--notice-file", self.notice_file.as_deref(), "BRIDGE_NOTICE_FILE", |config, text| {
                config.notice_file = Some(text.into());
                Ok(())
            }),
            ("--log-format", self.log_format.as_deref(), "BRIDGE_LOG_FORMAT", |config, text| {
                word(text, "text or json").map(|format| config.log.format = format)
            }),
            ("--log-level", self.log_level.as_deref(), "BRIDGE_LOG", |config, text| {
                config.log.level = text.to_owned();
                Ok(())
            }),
            ("--live-listen", self.live_listen.as_deref(), "BRIDGE_LIVE_LISTEN", |config, text| {
                config.live.enabled = text != "off";
                let address = if text == "off" { Ok(config.live.listen) } else { listen(text) };
                address.map(|address| config.live.listen = address)
            }),
            ("--metrics-listen", self.metrics_listen.as_deref(), "BRIDGE_METRICS_LISTEN", |config, text| {
                config.metrics.enabled = text != "off";
                let address = if text == "off" { Ok(config.metrics.listen) } else { listen(text) };
                address.map(|address| config.metrics.listen = address)
            }),
            ("--journal-dir", self.journal_dir.as_deref(), "BRIDGE_JOURNAL_DIR", |config, text| {
                config.journal.dir = Some(text.into());
                Ok(())
            }),
            (
                "--journal-content",
                self.journal_content.as_deref(),
                "BRIDGE_JOURNAL_CONTENT",
                |config, text| word(text, "hashes or full").map(|content| config.journal.content = content),
            ),
        ]
    }
}

/// Reads a word that is one of an enum's.
fn word<T: for<'de> Deserialize<'de>>(text: &str, words: &str) -> Result<T, String> {
    let deserializer = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text);
    T::deserialize(deserializer).map_err(|_| format!("{text:?} is not {words}"))
}

/// Why the bridge does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// Every problem, in words.
    pub fn problems(&self) -> &[String] {
        &self.0
    }
}

impl Config {
    /// Puts the settings together and checks them all. `env` looks up a variable of the environment.
    ///
    /// # Errors
    /// Everything that is missing or wrong, by name.
    pub fn load(args: &Args, env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let file = args.config.clone().or_else(|| env("BRIDGE_CONFIG").map(PathBuf::from));
        let mut config = match file {
            Some(path) => {
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| ConfigError(vec![format!("cannot read {}: {error}", path.display())]))?;
                Self::from_toml(&text, &path)?
            }
            None => Self::default(),
        };
        let mut problems = Vec::new();
        for (variable, place) in [
            ("OPENAI_API_KEY", &mut config.openai.api_key),
            ("TWILIO_AUTH_TOKEN", &mut config.twilio.auth_token),
            ("BRIDGE_OPERATOR_TOKEN", &mut config.operator.token),
            ("BRIDGE_TOOLS_SECRET", &mut config.tools.secret),
        ] {
            match secret(&env, variable) {
                Ok(found) => *place = found.unwrap_or_else(|| std::mem::take(place)),
                Err(problem) => problems.push(problem),
            }
        }
        for (variable, place) in [
            ("TWILIO_ACCOUNT_SID", &mut config.twilio.account_sid),
            ("TWILIO_NUMBER", &mut config.twilio.number),
        ] {
            *place = env(variable).unwrap_or_else(|| std::mem::take(place));
        }
        config.twilio.insecure_no_signature |= args.insecure_no_signature;
        // A password may be in it, so there is no flag for it.
        if let Some(url) = env("BRIDGE_STORE_URL") {
            config.store.url = store::Url::new(url);
        }
        if let Some(endpoint) = env("OTEL_EXPORTER_OTLP_ENDPOINT") {
            config.otlp.endpoint = Some(endpoint);
        }
        if let Some(service) = env("OTEL_SERVICE_NAME") {
            config.otlp.service = service;
        }
        for pair in env("OTEL_EXPORTER_OTLP_HEADERS").iter().flat_map(|text| text.split(',')) {
            match pair.split_once('=') {
                Some((name, value)) => {
                    let (name, value) = (name.trim().to_ascii_lowercase(), Secret::new(value.trim()));
                    config.otlp.headers.insert(name, value);
                }
                None => problems.push("OTEL_EXPORTER_OTLP_HEADERS: write name=value,name=value".into()),
            }
        }
        for (flag, given, variable, store) in args.overrides() {
            let (name, value) = match (given, env(variable)) {
                (Some(value), _) => (flag, value.to_owned()),
                (None, Some(value)) => (variable, value),
                (None, None) => continue,
            };
            problems.extend(store(&mut config, &value).err().map(|problem| format!("{name}: {problem}")));
        }
        if let Some(path) = &config.notice_file {
            match read_notice(path) {
                Ok(notice) => config.notice = notice,
                Err(problem) => problems.push(format!("notice_file {}: {problem}", path.display())),
            }
        }
        if args.command.as_ref().is_some_and(Command::only_reads) {
            // Reading stored calls needs no keys.
            problems.extend(config.store.place().err());
        } else {
            config.check(&mut problems);
        }
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Result<Self, _> = toml::from_str(text);
        let mut config = config.map_err(|error| ConfigError(vec![toml_problem(&error, text, path)]))?;
        config.renamed = renamed_keys(text);
        Ok(config)
    }

    /// What is in force, as TOML, with secrets left out.
    ///
    /// # Errors
    /// When a function's parameters hold a JSON value that TOML has no word for.
    pub fn shown(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }

    fn check(&self, problems: &mut Vec<String>) {
        let mut refuse = |problem: String| problems.push(problem);
        let key = self.openai.api_key.expose();
        if key.is_empty() {
            refuse("OPENAI_API_KEY is missing: set it to the key of your OpenAI project".into());
        } else if !key.bytes().all(|b| b.is_ascii_graphic()) {
            refuse("OPENAI_API_KEY holds spaces or characters no key has: copy it again".into());
        } else if key == "***" {
            refuse(
                "OPENAI_API_KEY is ***, which stands for a key that is not shown: put the key itself".into(),
            );
        }
        if !(1..=100_000).contains(&self.max_calls) {
            refuse(format!("max_calls = {}: between 1 and 100000", self.max_calls));
        }
        if self.drain_ms > WAIT_MS_MAX {
            refuse(format!("drain_ms = {}: at most {WAIT_MS_MAX}, a week", self.drain_ms));
        }
        if let Err(error) = EnvFilter::try_new(&self.log.level) {
            refuse(format!(
                "log.level = {:?}: {error}; write one such as info or info,bridge=debug",
                self.log.level
            ));
        }
        let journal = &self.journal;
        for (name, value, least) in [
            ("journal.max_bytes_per_call", journal.max_bytes_per_call, 64 * 1024),
            ("journal.keep_calls", journal.keep_calls as u64, 1),
            ("journal.keep_bytes", journal.keep_bytes, journal.max_bytes_per_call.min(JOURNAL_BYTES_MAX)),
            ("journal.keep_days", journal.keep_days, 1),
        ] {
            if !(least..=JOURNAL_BYTES_MAX).contains(&value) {
                refuse(format!("{name} = {value}: between {least} and {JOURNAL_BYTES_MAX}"));
            }
        }
        self.live.check(&self.operator.token, &mut refuse);
        let offered: Vec<&str> = self.call.tools.iter().map(|tool| tool.name.as_str()).collect();
        self.tools.check(&offered, &mut refuse);
        check_face(self, &mut refuse);
        self.otlp.problem().into_iter().for_each(&mut refuse);
        if let Err(problem) = self.store.place() {
            refuse(problem);
        }
        for (name, value, least, most) in [
            ("store.queue_records", self.store.queue_records, 1_000, 10_000_000),
            ("store.queue_bytes", self.store.queue_bytes, 1 << 20, 16 << 30),
            ("store.call_bytes", self.store.call_bytes, 1 << 20, 1 << 30),
        ] {
            if !(least..=most).contains(&value) {
                refuse(format!("{name} = {value}: between {least} and {most}"));
            }
        }
        if self.metrics.enabled && self.live.enabled && self.metrics.listen == self.live.listen {
            refuse(format!(
                "metrics.listen and live.listen are both {}: name another one",
                self.metrics.listen
            ));
        }
        self.connections.check(&mut refuse);
        check_call(&self.call, &mut refuse);
    }
}

/// What is wrong with the settings of a call, beyond their types; nothing when they may be used.
pub fn problems_of(call: &CallConfig) -> Vec<String> {
    let mut problems = Vec::new();
    check_call(call, &mut |what| problems.push(what));
    problems
}

/// Keys of the release before, which are read for one more release, and those of today.
const RENAMED: [(&str, &str); 4] = [
    ("call.filler", "call.hold_message"),
    ("call.leaving", "call.hangup"),
    ("call.limits.held_ms", "call.limits.max_buffered_ms"),
    ("call.protection", "call.greeting_guard"),
];

/// The keys of the release before in a file.
fn renamed_keys(text: &str) -> Vec<(&'static str, &'static str)> {
    let Ok(file) = text.parse::<toml::Table>() else { return Vec::new() };
    let file = toml::Value::Table(file);
    let has = |key: &str| key.split('.').try_fold(&file, |table, part| table.get(part)).is_some();
    RENAMED.into_iter().filter(|(old, _)| has(old)).collect()
}

/// A secret of the environment, or of the file it names.
fn secret(env: &impl Fn(&str) -> Option<String>, variable: &str) -> Result<Option<Secret>, String> {
    let by_file = format!("{variable}_FILE");
    match (env(variable), env(&by_file)) {
        (Some(_), Some(_)) => Err(format!("{variable} and {by_file} are both set: keep one of them")),
        (Some(text), None) => Ok(Some(Secret::new(text))),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| format!("{by_file}: cannot read {path}: {error}"))?;
            match text.trim_end_matches(['\r', '\n']) {
                "" => Err(format!("{by_file}: {path} is empty")),
                text => Ok(Some(Secret::new(text))),
            }
        }
        (None, None) => Ok(None),
    }
}

/// Who may come in, and what is said to Twilio.
fn check_face(config: &Config, refuse: &mut impl FnMut(String)) {
    let twilio = &config.twilio;
    let keys = twilio.shared_keys.iter().map(|(id, key)| (format!("twilio.shared_keys.{id}"), key));
    let secrets = [
        ("TWILIO_AUTH_TOKEN".to_owned(), &twilio.auth_token),
        ("BRIDGE_OPERATOR_TOKEN".to_owned(), &config.operator.token),
    ];
    for (name, secret) in secrets.into_iter().chain(keys) {
        if secret.expose() == "***" {
            refuse(format!(
                "{name} is ***, which stands for a secret that is not shown: put the secret itself"
            ));
        } else if !secret.expose().bytes().all(|b| b.is_ascii_graphic()) {
            refuse(format!("{name} holds spaces or characters no secret has: copy it again"));
        }
    }
    if twilio.insecure_no_signature {
        if !config.listen.ip().is_loopback() {
            refuse(format!(
                "insecure_no_signature accepts unsigned requests, and listen = {} can be reached from outside: \
                 listen on 127.0.0.1, or give TWILIO_AUTH_TOKEN instead",
                config.listen
            ));
        }
    } else {
        if twilio.auth_token.is_empty() && twilio.shared_keys.is_empty() {
            refuse(
                "TWILIO_AUTH_TOKEN is missing: set it to the primary auth token of your Twilio account, or pass \
                 --insecure-no-signature with --listen 127.0.0.1:8084 for local work"
                    .into(),
            );
        }
        if config.public_url.is_none() {
            refuse(
                "public_url is missing: set BRIDGE_PUBLIC_URL to the address Twilio reaches this bridge at, such as \
                 https://voice.example.com; Twilio's signatures are made for it"
                    .into(),
            );
        }
    }
    if !(5..=3_600).contains(&twilio.token_life_s) {
        refuse(format!("twilio.token_life_s = {}: between 5 and 3600", twilio.token_life_s));
    }
    if i64::from(twilio.return_s) > webhook_replay::CALL_S {
        refuse(format!("twilio.return_s = {}: at most {}", twilio.return_s, webhook_replay::CALL_S));
    }
    let is_sid = |sid: &str| {
        sid.strip_prefix("AC")
            .is_some_and(|rest| rest.len() == 32 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if !twilio.account_sid.is_empty() && !is_sid(&twilio.account_sid) {
        refuse(format!(
            "twilio.account_sid = {:?}: AC and 32 hexadecimal digits, from Twilio's console",
            twilio.account_sid
        ));
    }
    if !twilio.number.is_empty() && !twiml::is_dialable(&twilio.number) {
        refuse(format!(
            "twilio.number = {:?}: a number with its country, such as +14155550123",
            twilio.number
        ));
    }
    match &twilio.after_stream {
        After::Hangup => {}
        After::Redirect(url) => {
            if Url::parse(url).is_none_or(|url| !matches!(url.scheme.as_str(), "http" | "https")) {
                let url = shown_url(url);
                refuse(format!("twilio.after_stream.redirect = {url:?}: an absolute https address"));
            }
        }
        After::Dial(to) => {
            if !twiml::is_dialable(to) {
                refuse(format!("twilio.after_stream.dial = {to:?}: a number such as +14155550100"));
            }
        }
    }
    if Url::parse(&twilio.api_url).is_none_or(|url| !matches!(url.scheme.as_str(), "http" | "https")) {
        let url = shown_url(&twilio.api_url);
        refuse(format!("twilio.api_url = {url:?}: an address such as https://api.twilio.com"));
    }
    if !config.operator.token.is_empty() && config.operator.token.expose().len() < 16 {
        refuse(
            "BRIDGE_OPERATOR_TOKEN is shorter than 16 characters: make one with: openssl rand -hex 32".into(),
        );
    }
    let can_ask_twilio = !twilio.account_sid.is_empty() && !twilio.auth_token.is_empty();
    if !config.call.hangup.transfer.is_empty() && !can_ask_twilio {
        refuse(
            "call.hangup.transfer needs TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN: Twilio is asked to transfer".into(),
        );
    }
    if !config.operator.token.is_empty() && !can_ask_twilio {
        refuse(
            "BRIDGE_OPERATOR_TOKEN needs TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN: calls are placed, ended and \
             transferred by Twilio"
                .into(),
        );
    }
    if config.loop_lag_ms_max > 60_000 {
        refuse(format!("loop_lag_ms_max = {}: at most 60000, or 0 for no limit", config.loop_lag_ms_max));
    }
    if config.tls.cert_file.is_some() != config.tls.key_file.is_some() {
        refuse("tls needs both cert_file and key_file, or neither".into());
    }
}

/// What the call's own settings must obey beyond their types.
fn check_call(call: &CallConfig, refuse: &mut impl FnMut(String)) {
    if call.model.is_empty() || call.model.contains(char::is_whitespace) {
        refuse(format!("call.model = {:?}: a model's name, such as gpt-realtime-2.1", call.model));
    }
    for (name, text) in [("call.voice", &call.voice), ("call.greeting", &call.greeting)] {
        if text.as_deref().is_some_and(|text| text.trim().is_empty()) {
            refuse(format!("{name} is empty: give it words, or leave it out"));
        }
    }
    if let Some(kind) = &call.noise_reduction
        && !["near_field", "far_field"].contains(&kind.as_str())
    {
        refuse(format!("call.noise_reduction = {kind:?}: near_field, far_field, or leave it out"));
    }
    if let Some(transcription) = &call.transcription {
        if transcription.model.trim().is_empty() {
            refuse("call.transcription.model is empty: a model's name, such as gpt-realtime-whisper".into());
        }
        if let Some(language) = &transcription.language
            && !(language.len() == 2 && language.bytes().all(|b| b.is_ascii_lowercase()))
        {
            refuse(format!("call.transcription.language = {language:?}: two small letters, such as en"));
        }
    }

    if !(0.0..=1.0).contains(&call.vad.threshold) {
        refuse(format!("call.vad.threshold = {}: between 0 and 1", call.vad.threshold));
    }
    for (name, value) in [
        ("call.vad.prefix_padding_ms", call.vad.prefix_padding_ms),
        ("call.vad.silence_duration_ms", call.vad.silence_duration_ms),
    ] {
        if value > 60_000 {
            refuse(format!("{name} = {value}: at most 60000"));
        }
    }

    let pacing = &call.pacing;
    let mut range = |name: &str, value: u64, least: u64, most: u64| {
        if !(least..=most).contains(&value) {
            refuse(format!("{name} = {value}: between {least} and {most}"));
        }
    };
    range("call.pacing.lead_ms", pacing.lead_ms, 20, WAIT_MS_MAX);
    range("call.pacing.mark_every_ms", pacing.mark_every_ms, 20, 60_000);
    range("call.dtmf.max_digits", call.dtmf.max_digits as u64, 1, 1_000);
    range("call.limits.backlog_ms", call.limits.backlog_ms, 20, 600_000);
    range("call.limits.max_buffered_ms", call.limits.max_buffered_ms, 1_000, 3_600_000);
    range("call.limits.gap_ms", call.limits.gap_ms, 0, 600_000);
    range("call.limits.transcript_items", call.limits.transcript_items as u64, 100, 1_000_000);
    range("call.limits.transcript_bytes", call.limits.transcript_bytes as u64, 1 << 20, 1 << 30);
    range("call.limits.tools_running", call.limits.tools_running as u64, 1, 1_000);
    range("call.limits.function_rounds", call.limits.function_rounds.into(), 1, 10_000);
    range("call.limits.same_calls", call.limits.same_calls.into(), 1, 10_000);
    let waits = &call.timeouts;
    range("call.timeouts.dead_air_ms", waits.dead_air_ms, 1_000, WAIT_MS_MAX);
    range("call.timeouts.tool_after_end_ms", waits.tool_after_end_ms, 0, 60_000);
    for (name, value) in [
        ("call.dtmf.quiet_ms", call.dtmf.quiet_ms),
        ("call.timeouts.start_ms", waits.start_ms),
        ("call.timeouts.first_media_ms", waits.first_media_ms),
        ("call.timeouts.dial_ms", waits.dial_ms),
        ("call.timeouts.session_created_ms", waits.session_created_ms),
        ("call.timeouts.session_updated_ms", waits.session_updated_ms),
        ("call.timeouts.first_audio_ms", waits.first_audio_ms),
        ("call.timeouts.caller_silent_ms", waits.caller_silent_ms),
        ("call.timeouts.media_pause_ms", waits.media_pause_ms),
        ("call.timeouts.mark_ms", waits.mark_ms),
        ("call.timeouts.clogged_ms", waits.clogged_ms),
        ("call.timeouts.ping_ms", waits.ping_ms),
        ("call.timeouts.pong_ms", waits.pong_ms),
        ("call.timeouts.call_ms", waits.call_ms),
        ("call.timeouts.before_expiry_ms", waits.before_expiry_ms),
        ("call.timeouts.notice_ms", waits.notice_ms),
        ("call.timeouts.closing_ms", waits.closing_ms),
        ("call.timeouts.retry_ms", waits.retry_ms),
    ] {
        range(name, value, 1, WAIT_MS_MAX);
    }
    range("call.timeouts.last_words_ms", waits.last_words_ms, 0, LAST_WORDS_MS_MAX);
    if let Some(protection) = &call.greeting_guard {
        range("call.greeting_guard.at_most_ms", protection.at_most_ms, 20, WAIT_MS_MAX);
    }
    range("call.hangup.farewell_ms", call.hangup.farewell_ms, 1, WAIT_MS_MAX);
    range("call.hangup.carrier_ms", call.hangup.carrier_ms, 1, WAIT_MS_MAX);
    if let Some(filler) = &call.hold_message {
        range("call.hold_message.after_ms", filler.after_ms, 100, WAIT_MS_MAX);
    }
    if let Some(renewal) = &call.renewal {
        range("call.renewal.before_ms", renewal.before_ms, 1, WAIT_MS_MAX);
        range("call.renewal.after_ms", renewal.after_ms.unwrap_or(1), 1, WAIT_MS_MAX);
        range("call.renewal.quiet_ms", renewal.quiet_ms, 100, 60_000);
        range("call.renewal.history_items", renewal.history_items as u64, 0, 1_000);
        range("call.renewal.history_bytes", renewal.history_bytes as u64, 0, 1_000_000);
        range("call.renewal.tries", renewal.tries.into(), 1, 10);
        range("call.renewal.try_ms", renewal.try_ms, 100, WAIT_MS_MAX);
    }
    for tool in &call.tools {
        range(&format!("timeout_ms of the function {:?}", tool.name), tool.timeout_ms, 1, WAIT_MS_MAX);
    }

    if pacing.mark_every_ms > pacing.lead_ms {
        refuse(format!(
            "call.pacing.mark_every_ms = {} is longer than call.pacing.lead_ms = {}: a mark is needed within the lead",
            pacing.mark_every_ms, pacing.lead_ms
        ));
    }
    let burst = pacing.lead_ms.min(LEAD_MS_MAX) / pacing.mark_every_ms.max(1);
    if burst > BURST_MAX as u64 {
        refuse(format!(
            "call.pacing: a mark every {} ms in a lead of {} ms makes {burst} messages in a burst, and {BURST_MAX} \
             is the most: mark less often, or lead less",
            pacing.mark_every_ms, pacing.lead_ms
        ));
    }
    if let Some(renewal) = &call.renewal {
        let longest_ms = renewal.longest_ms(waits);
        if longest_ms > call.limits.backlog_ms {
            refuse(format!(
                "call.renewal: {} tries of {} ms may take {longest_ms} ms in all, and what the caller says meanwhile is \
                 kept for call.limits.backlog_ms = {}: try less often or for a shorter time, or keep more",
                renewal.tries, renewal.try_ms, call.limits.backlog_ms
            ));
        }
        if call.transcription.is_none() {
            refuse(
                "call.renewal needs call.transcription: the next session is told in words what the caller said".into(),
            );
        }
    }
    if waits.caller_silent_ms <= waits.ping_ms {
        refuse(format!(
            "call.timeouts.caller_silent_ms = {} is not longer than call.timeouts.ping_ms = {}: a caller who only \
             listens would be cut off",
            waits.caller_silent_ms, waits.ping_ms
        ));
    }
    if call.greeting_guard.is_some_and(|protection| protection.until == Until::Heard)
        && call.greeting.is_none()
    {
        refuse(
            "call.greeting_guard.until = \"heard\" needs call.greeting: without one nothing is heard at the beginning. \
             Give it one, or write until = \"time\""
                .into(),
        );
    }
    if !"0123456789*#ABCD".contains(call.dtmf.terminator) {
        refuse(format!("call.dtmf.terminator = {:?}: a key, such as #", call.dtmf.terminator));
    }
    for (at, person) in call.hangup.transfer.iter().enumerate() {
        let Person { name, number } = person;
        if name.trim().is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            refuse(format!("call.hangup.transfer: the name {name:?}: 1 to 64 characters"));
        }
        if !twiml::is_dialable(number) {
            refuse(format!("call.hangup.transfer: {number:?} of {name:?}: a number such as +14155550100"));
        }
        if call.hangup.transfer[..at].iter().any(|earlier| earlier.name == *name) {
            refuse(format!("call.hangup.transfer: the name {name:?} is given twice"));
        }
    }
    for (at, tool) in call.tools.iter().enumerate() {
        if [END_CALL, TRANSFER_CALL].contains(&tool.name.as_str()) {
            refuse(format!("call.tools: {:?} is a function of the bridge's own: see call.hangup", tool.name));
        }
        let name = &tool.name;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
            refuse(format!("call.tools: the name {name:?}: 1 to 64 letters, digits, _ and -"));
        }
        if call.tools[..at].iter().any(|earlier| earlier.name == *name) {
            refuse(format!("call.tools: the name {name:?} is given twice"));
        }
        if !tool.parameters.is_object() {
            refuse(format!("call.tools: the parameters of {name:?}: a JSON schema, that is a table"));
        }
    }
}

fn read_notice(path: &Path) -> Result<Arc<[u8]>, String> {
    let convert = "make one with: ffmpeg -i words.wav -ar 8000 -ac 1 -f mulaw notice.ulaw";
    let mut bytes = std::fs::read(path).map_err(|error| format!("cannot read it: {error}; {convert}"))?;
    if bytes.starts_with(b"RIFF") {
        return Err(format!("this is a WAV file, not raw mu-law; {convert}"));
    }
    if bytes.is_empty() || bytes.len() > NOTICE_MAX {
        return Err(format!(
            "{} bytes; between 1 and {NOTICE_MAX}, which is 30 seconds; {convert}",
            bytes.len()
        ));
    }
    // A whole number of frames, the last filled with silence.
    bytes.resize(bytes.len().next_multiple_of(FRAME_BYTES), Companding::Ulaw.silence());
    Ok(bytes.into())
}

/// Where in the file, what, and what would be right.
fn toml_problem(error: &toml::de::Error, text: &str, path: &Path) -> String {
    let message = error.message();
    let Some(span) = error.span() else { return format!("{}: {message}", path.display()) };
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let place = format!("{}:{line}", path.display());
    let known: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, [unknown, known @ ..]) = (message.starts_with("unknown field"), known.as_slice()) {
        let nearest = known.iter().min_by_key(|key| strsim::levenshtein(key, unknown));
        return match nearest.filter(|key| strsim::levenshtein(key, unknown) <= unknown.len().div_ceil(2)) {
            Some(key) => format!("{place}: unknown key `{unknown}`; did you mean `{key}`?"),
            None => format!("{place}: unknown key `{unknown}`; the keys here are {}", known.join(", ")),
        };
    }
    let source = text.lines().nth(line - 1).unwrap_or_default();
    let key = source.split('=').next().unwrap_or_default().trim();
    let is_key_of_twilio =
        before.rfind("\n[").is_some_and(|at| before[at..].starts_with("\n[twilio.shared_keys"));
    if is_key_of_twilio
        || source.contains("shared_keys")
        || ["api_key", "auth_token", "token", "secret"].contains(&key)
    {
        return format!("{place}: {key}: {}", message.split(": ").next().unwrap_or(message));
    }
    match source.split_once('=') {
        Some((key, _)) => format!("{place}: {}: {message}", key.trim()),
        None => format!("{place}: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use tempfile::NamedTempFile;

    /// A file with this text, gone when dropped.
    fn file(text: &str) -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Loads with what every bridge needs beside the model's key.
    fn load(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        load_bare(
            flags,
            &[
                env,
                &[("TWILIO_AUTH_TOKEN", "twilio-token"), ("BRIDGE_PUBLIC_URL", "https://voice.example.com")],
            ]
            .concat(),
        )
    }

    fn load_bare(flags: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let args = Args::try_parse_from([&["bridge"], flags].concat()).unwrap();
        let env: Vec<(String, String)> =
            env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&args, |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
    }

    /// The problems of a file that is all the settings there are.
    fn problems(toml: &str) -> Vec<String> {
        let file = file(toml);
        let flag = file.path().to_str().unwrap();
        let problems = load(&["--config", flag], &[("OPENAI_API_KEY", "sk")]).unwrap_err().0;
        problems.into_iter().map(|problem| problem.replace(flag, "F")).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_key_is_all_that_is_needed() {
        let config = load(&[], &[("OPENAI_API_KEY", "sk-1")]).unwrap();
        assert_eq!(config.openai.api_key.expose(), "sk-1");
        assert_eq!(config.listen.to_string(), "0.0.0.0:8084");
        let missing = load(&[], &[("OPENAI_API_KEY", "")]).unwrap_err();
        assert_eq!(missing.0, ["OPENAI_API_KEY is missing: set it to the key of your OpenAI project"]);
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file =
            file("max_calls = 1\ndrain_ms = 1\nlisten = \"127.0.0.1:1\"\n[openai]\napi_key = \"sk-file\"");
        let flags = ["check", "--config", file.path().to_str().unwrap(), "--listen", "127.0.0.1:3"];
        let env = [("BRIDGE_LISTEN", "127.0.0.1:2"), ("BRIDGE_DRAIN_MS", "2"), ("BRIDGE_PUBLIC_URL", "")];
        let config = load(&[&flags[..], &["--insecure-no-signature"]].concat(), &env).unwrap();
        assert_eq!((config.max_calls, config.drain_ms), (1, 2));
        assert_eq!(config.listen.to_string(), "127.0.0.1:3");
        assert_eq!(config.openai.api_key.expose(), "sk-file");
        assert_eq!(config.public_url, None, "an empty variable is no setting");
    }

    #[test]
    fn without_a_secret_shared_with_twilio_nothing_is_served_and_the_words_say_what_to_do() {
        let key = ("OPENAI_API_KEY", "sk");
        let missing = load_bare(&[], &[key]).unwrap_err();
        let [token, url] = missing.problems() else { panic!("{missing}") };
        assert!(
            token.starts_with("TWILIO_AUTH_TOKEN is missing: set it to the primary auth token"),
            "{token}"
        );
        assert!(url.starts_with("public_url is missing: set BRIDGE_PUBLIC_URL"), "{url}");
        let open = load_bare(&["--insecure-no-signature"], &[key]).unwrap_err();
        assert!(open.problems()[0].contains("listen = 0.0.0.0:8084 can be reached from outside"), "{open}");
        for local in ["127.0.0.1:8084", "[::1]:0"] {
            assert!(load_bare(&["--insecure-no-signature", "--listen", local], &[key]).is_ok(), "{local}");
        }
    }

    #[test]
    fn a_secret_may_come_from_a_file() {
        let file_with_key = file("sk-from-a-file\n");
        let (path, nowhere) =
            (file_with_key.path().to_str().unwrap(), ("OPENAI_API_KEY_FILE", "/nowhere/key"));
        let config = load(&[], &[("OPENAI_API_KEY_FILE", path)]).unwrap();
        assert_eq!(config.openai.api_key.expose(), "sk-from-a-file");
        let both = load(&[], &[("OPENAI_API_KEY_FILE", path), ("OPENAI_API_KEY", "sk")]).unwrap_err();
        assert_eq!(both.0[0], "OPENAI_API_KEY and OPENAI_API_KEY_FILE are both set: keep one of them");
        let missing = load(&[], &[nowhere]).unwrap_err();
        assert!(missing.0[0].starts_with("OPENAI_API_KEY_FILE: cannot read /nowhere/key: "), "{missing}");
        let empty = file("\n");
        let empty = empty.path().to_str().unwrap();
        let empty = load(&[], &[("TWILIO_AUTH_TOKEN_FILE", empty), ("TWILIO_AUTH_TOKEN", "")]);
        assert!(empty.unwrap_err().0[0].contains("is empty"));
    }

    #[test]
    fn a_bad_override_names_where_it_came_from() {
        let env =
            [("OPENAI_API_KEY", "sk"), ("BRIDGE_MAX_CALLS", "many"), ("OPENAI_REALTIME_URL", "https://x/y")];
        let flags = ["--listen", "8084", "--log-format", "xml", "--journal-content", "some"];
        let error = load(&flags, &env).unwrap_err();
        assert_eq!(
            error.0,
            [
                "--listen: \"8084\" is not an IP address and a port, such as 0.0.0.0:8084",
                "OPENAI_REALTIME_URL: \"https://x/y\" has the scheme https; write a WebSocket URL such as \
                 wss://api.openai.com/v1/realtime",
                "BRIDGE_MAX_CALLS: \"many\" is not a number of calls",
                "--log-format: \"xml\" is not text or json",
                "--journal-content: \"some\" is not hashes or full",
            ]
        );
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        assert_eq!(
            problems("max_calls = 3\n[call.vad]\nthreshhold = 0.5\n"),
            ["F:3: unknown key `threshhold`; did you mean `threshold`?"]
        );
        assert_eq!(
            problems("[log]\nzzzzzzzz = 1\n"),
            ["F:2: unknown key `zzzzzzzz`; the keys here are format, level"]
        );
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused_with_its_key_and_line() {
        let wrong = problems("max_calls = 3\n[call.timeouts]\nstart_ms = \"5s\"\n");
        assert_eq!(wrong, ["F:3: start_ms: invalid type: string \"5s\", expected u64"]);
        let wrong = problems("public_url = \"ftp://x\"\n");
        assert_eq!(
            wrong,
            [
                "F:1: public_url: \"ftp://x\" has the scheme ftp; write an address such as https://voice.example.com"
            ]
        );
    }

    #[test]
    fn a_secret_is_in_no_message_and_no_dump() {
        let config = Config {
            openai: ModelEndpoint { api_key: Secret::new("sk-hidden"), ..ModelEndpoint::default() },
            ..Config::default()
        };
        let shown = config.shown().unwrap();
        assert!(shown.contains("api_key = \"***\""), "{shown}");
        assert!(!shown.contains("sk-hidden") && !format!("{config:?}").contains("sk-hidden"));
        let wrong = problems("[openai]\napi_key = [\"sk-hidden\"]\n").concat();
        assert!(wrong.contains("api_key") && !wrong.contains("hidden"), "{wrong}");
        let wrong = problems("[twilio]\nauth_token = [\"hidden\"]\n").concat();
        assert!(wrong.contains("auth_token") && !wrong.contains("hidden"), "{wrong}");
        let spaced = load(&[], &[("OPENAI_API_KEY", "sk-hid den")]).unwrap_err().to_string();
        assert!(!spaced.contains("hid"), "{spaced}");
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        let public_url = Some("https://voice.example.com/".parse().unwrap());
        let mut config = Config { public_url, ..Config::default() };
        config.call.greeting = Some("Say hello.".into());
        config.call.tools = vec![crate::call::settings::ToolSpec {
            name: "look_up".into(),
            description: "Looks up.".into(),
            parameters: serde_json::json!({"type": "object", "properties": {"id": {"type": "string"}}}),
            timeout_ms: 1_000,
        }];
        assert_eq!(Config::from_toml(&config.shown().unwrap(), Path::new("shown")).unwrap(), config);
    }

    #[test]
    fn a_collector_is_named_by_the_standard_variables_and_checked() {
        let env = |endpoint: &'static str, headers: &'static str| {
            move |name: &str| match name {
                "OPENAI_API_KEY" | "TWILIO_AUTH_TOKEN" => Some("sk-1".to_owned()),
                "BRIDGE_PUBLIC_URL" => Some("https://voice.example.com".to_owned()),
                "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.to_owned()),
                "OTEL_EXPORTER_OTLP_HEADERS" => Some(headers.to_owned()),
                _ => None,
            }
        };
        let config = Config::load(&Args::default(), env("http://c:4318", "X-Key=a=b, other=c")).unwrap();
        assert_eq!(config.otlp.headers["x-key"].expose(), "a=b");
        assert!(!config.shown().unwrap().contains("a=b"), "a header may be a key");
        for (endpoint, headers, problem) in [
            ("collector:4318", "", "otlp.endpoint = \"collector:4318\": an address such as"),
            ("http://c:4318", "no", "OTEL_EXPORTER_OTLP_HEADERS: write name=value"),
            ("http://c:4318", "a b=c", "otlp.headers: \"a b\" is no header"),
        ] {
            let error = Config::load(&Args::default(), env(endpoint, headers)).unwrap_err();
            assert!(error.problems()[0].starts_with(problem), "{error}");
        }
    }

    #[test]
    fn the_example_states_the_defaults() {
        let example = include_str!("../../../deploy/bridge.example.toml");
        assert_eq!(Config::from_toml(example, Path::new("example")).unwrap(), Config::default());
        for key in Config::default().shown().unwrap().lines().filter_map(|line| line.split_once(" = ")) {
            assert!(example.contains(&format!("{} = ", key.0)), "{} is not in the example", key.0);
        }
    }

    #[test]
    fn every_range_is_guarded() {
        let cases = [
            ("max_calls = 0", "max_calls = 0: between 1 and 100000"),
            ("[connections]\nmax = 7", "connections.max = 7: between 8 and 1000000"),
            ("[connections]\nper_peer = 0", "connections.per_peer = 0: between 8 and 1000000"),
            (
                "[metrics]\nlisten = \"127.0.0.1:8085\"",
                "metrics.listen and live.listen are both 127.0.0.1:8085: name another one",
            ),
            ("drain_ms = 604800001", "drain_ms = 604800001: at most 604800000, a week"),
            ("[journal]\nkeep_calls = 0", "journal.keep_calls = 0: between 1 and"),
            ("[journal]\nkeep_bytes = 1000000", "journal.keep_bytes = 1000000: between 67108864 and"),
            ("[log]\nlevel = \"bridge=loud\"", "log.level = \"bridge=loud\": error parsing level filter"),
            ("[call]\nmodel = \"\"", "call.model = \"\": a model's name"),
            ("[call]\nvoice = \" \"", "call.voice is empty"),
            ("[call]\nnoise_reduction = \"yes\"", "call.noise_reduction = \"yes\": near_field, far_field"),
            (
                "[call.transcription]\nmodel = \"w\"\nlanguage = \"English\"",
                "call.transcription.language = \"English\"",
            ),
            ("[call.vad]\nthreshold = 1.5", "call.vad.threshold = 1.5: between 0 and 1"),
            ("[call.vad]\nthreshold = nan", "call.vad.threshold = NaN: between 0 and 1"),
            (
                "[call.pacing]\nlead_ms = 100",
                "call.pacing.mark_every_ms = 200 is longer than call.pacing.lead_ms = 100",
            ),
            (
                "[call.pacing]\nlead_ms = 600000\nmark_every_ms = 20",
                "makes 27000 messages in a burst, and 4096",
            ),
            ("[call.pacing]\nmark_every_ms = 0", "call.pacing.mark_every_ms = 0: between 20 and 60000"),
            ("[call.timeouts]\ndial_ms = 0", "call.timeouts.dial_ms = 0: between 1 and 604800000"),
            (
                "[call.timeouts]\ncall_ms = 18446744073709551",
                "call.timeouts.call_ms = 18446744073709551: between",
            ),
            ("[call.timeouts]\ncaller_silent_ms = 5000", "is not longer than call.timeouts.ping_ms = 5000"),
            (
                "[call.greeting_guard]\nuntil = \"time\"\nat_most_ms = 19",
                "call.greeting_guard.at_most_ms = 19: between 20 and 604800000",
            ),
            ("[call.greeting_guard]", "call.greeting_guard.until = \"heard\" needs call.greeting"),
            ("[call.dtmf]\nterminator = \"x\"", "call.dtmf.terminator = 'x': a key"),
            ("[call.limits]\ntools_running = 0", "call.limits.tools_running = 0: between 1 and 1000"),
            ("[call.limits]\nfunction_rounds = 0", "call.limits.function_rounds = 0: between 1 and 10000"),
            ("[call.limits]\nsame_calls = 0", "call.limits.same_calls = 0: between 1 and 10000"),
            (
                "[call.timeouts]\ndead_air_ms = 999",
                "call.timeouts.dead_air_ms = 999: between 1000 and 604800000",
            ),
            (
                "[call.timeouts]\ntool_after_end_ms = 60001",
                "call.timeouts.tool_after_end_ms = 60001: between 0 and 60000",
            ),
            ("[[call.tools]]\nname = \"a b\"", "call.tools: the name \"a b\": 1 to 64 letters"),
            ("[[call.tools]]\nname = \"a\"\n[[call.tools]]\nname = \"a\"", "the name \"a\" is given twice"),
            ("[[call.tools]]\nname = \"a\"\nparameters = 3", "the parameters of \"a\": a JSON schema"),
            ("loop_lag_ms_max = 60001", "loop_lag_ms_max = 60001: at most 60000"),
            ("[twilio]\ntoken_life_s = 1", "twilio.token_life_s = 1: between 5 and 3600"),
            ("[twilio]\nreturn_s = 14401", "twilio.return_s = 14401: at most 14400"),
            ("[twilio]\naccount_sid = \"AC1\"", "twilio.account_sid = \"AC1\": AC and 32"),
            ("[twilio]\nnumber = \"0123\"", "twilio.number = \"0123\": a number with its country"),
            ("[twilio]\nafter_stream = { dial = \"911\" }", "twilio.after_stream.dial = \"911\""),
            ("[twilio]\nafter_stream = { redirect = \"/x\" }", "twilio.after_stream.redirect = \"/x\""),
            ("[twilio]\napi_url = \"api\"", "twilio.api_url = \"api\""),
            ("[twilio.shared_keys]\nk1 = \"***\"", "twilio.shared_keys.k1 is ***"),
            (
                "[twilio]\naccount_sid = \"AC0123456789abcdef0123456789abcdef\"\n[operator]\ntoken = \"short\"",
                "BRIDGE_OPERATOR_TOKEN is shorter than 16",
            ),
            (
                "[twilio]\naccount_sid = \"AC0123456789abcdef0123456789abcdef\"\n[operator]\ntoken = \"0123456789 abcdef\"",
                "BRIDGE_OPERATOR_TOKEN holds spaces",
            ),
            (
                "[operator]\ntoken = \"0123456789abcdef\"",
                "BRIDGE_OPERATOR_TOKEN needs TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN",
            ),
            ("[[call.tools]]\nname = \"end_call\"", "\"end_call\" is a function of the bridge's own"),
            (
                "[call]\ntranscription = { model = \"x\" }\n[call.renewal]\ntry_ms = 3000",
                "may take 12400 ms in all, and what the caller says meanwhile is kept for call.limits.backlog_ms = 10000",
            ),
            (
                "[call]\ntranscription = { model = \"x\" }\n[call.renewal]\nquiet_ms = 0",
                "call.renewal.quiet_ms = 0: between 100 and 60000",
            ),
            ("[call.renewal]", "call.renewal needs call.transcription"),
            ("[call.hangup]\nfarewell_ms = 0", "call.hangup.farewell_ms = 0: between 1 and"),
            ("[tls]\ncert_file = \"x\"", "tls needs both"),
            ("notice_file = \"/nowhere/notice.ulaw\"", "notice_file /nowhere/notice.ulaw: cannot read it"),
        ];
        for (toml, words) in cases {
            let found = problems(toml);
            assert!(found.len() == 1 && found[0].contains(words), "{toml:?} gave {found:#?}");
        }
    }

    #[test]
    fn keys_of_the_release_before_are_read_and_named() {
        let text = "[call.leaving]\nend_call = true\n[call.filler]\nafter_ms = 700\n[call.limits]\nheld_ms = 2000\n\
                    [call.protection]\nuntil = \"time\"\n";
        let config = Config::from_toml(text, Path::new("old.toml")).unwrap();
        assert_eq!(config.renamed, RENAMED);
        assert!(config.call.hangup.end_call && config.call.greeting_guard.is_some());
        assert_eq!(config.call.hold_message.map(|message| message.after_ms), Some(700));
        assert_eq!(config.call.limits.max_buffered_ms, 2_000);
        for (_, new) in RENAMED {
            let file = new.replacen("call.", "[call.", 1).replace(".limits.max", ".limits]\nmax");
            let today = if file.contains(']') { format!("{file} = 2000") } else { format!("{file}]") };
            let config = Config::from_toml(&today, Path::new("new.toml")).unwrap();
            assert_eq!(config.renamed, [], "{today}");
        }
        let both = "[call]\nhangup = {}\nleaving = {}";
        assert!(Config::from_toml(both, Path::new("both.toml")).is_err(), "one of the two is lost");
    }

    #[test]
    fn a_notice_is_filled_up_to_whole_frames() {
        assert!(notice().len() >= 8_000 && notice().len().is_multiple_of(FRAME_BYTES), "the bundled one");
        let notice = read_notice(file(&"x".repeat(161)).path()).unwrap();
        assert_eq!((notice.len(), notice[160], notice[161]), (320, b'x', 0xFF));
        assert!(read_notice(file("RIFF....WAVE").path()).unwrap_err().contains("WAV"));
        assert!(read_notice(file(&"x".repeat(NOTICE_MAX + 1)).path()).unwrap_err().contains("240001 bytes"));
    }

    #[test]
    fn no_message_shows_what_is_secret_in_a_url() {
        let url = "x-hidden://me:hidden@example.com/?api-key=hidden#hidden";
        for text in [
            format!("public_url = {url:?}\n"),
            format!("[openai]\nurl = {url:?}\n"),
            "[openai]\nurl = \"example.com?api-key=hidden\"\n".to_owned(),
            format!("[twilio]\napi_url = {url:?}\nafter_stream = {{ redirect = {url:?} }}\n"),
            format!("[otlp]\nendpoint = {url:?}\n"),
            format!("[tools.webhooks.a]\nurl = {url:?}\n"),
        ] {
            let said = problems(&text).join("\n").replace("x-hidden", "");
            assert!(!said.is_empty() && !said.contains("hidden"), "{text}: {said}");
        }
        let mut config = Config::default();
        config.openai.url = "wss://example.com/rt?api-key=hidden".parse().unwrap();
        config.twilio.after_stream = After::Redirect("https://me:hidden@example.com/".into());
        config.twilio.api_url = "https://me:hidden@example.com/".into();
        config.otlp.endpoint = Some("http://me:hidden@example.com/".into());
        assert!(!config.shown().unwrap().contains("hidden"), "{}", config.shown().unwrap());
        assert_eq!(config.openai.url.with_model("m"), "wss://example.com/rt?api-key=hidden&model=m");
    }
}
