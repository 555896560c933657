//! Where a scenario is played. Each stage makes a [`Trace`] of it, and whoever reads the trace cannot tell which.
//!
//! * [`memory`]: the call as a value between two pure mocks, on one heap of timed messages. No network.
//! * [`simulated`]: the production server, driver and WebSockets included, in a simulated network.
//! * [`pipes`]: the same over byte pipes of our own, which can do to bytes what that network cannot.
//!
//! And in real time, over real sockets, where no two plays are quite the same:
//! * [`loopback`]: the production server in this process, over TCP, with and without TLS.
//! * [`attach`]: somebody else's process.

pub mod attach;
pub(crate) mod choice;
pub mod loopback;
pub mod memory;
pub mod pipes;
pub(crate) mod real;
mod shell;
pub mod simulated;

use crate::scenario::{Scenario, ToolScript};
use crate::seed::Seed;
use crate::trace::Trace;
use bridge::app::config::Config;
use bridge::base::secret::Secret;
use bridge::call::event::CallEvent;
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use bridge::call::{Control, Leg, LegChange, ToolResult};
use mocks::peer::At;
use mocks::twilio::{Credentials, Identity};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fmt;
use std::sync::Once;
use std::time::Duration;

/// Unix time at the beginning of every scenario, seconds: 2026-01-01T00:00:00Z.
pub const EPOCH_UNIX: i64 = 1_767_225_600;

/// The API key of the bridge.
pub(crate) const API_KEY: &str = "sk-scenario";
/// What the account of every scenario shares with the bridge.
const AUTH_TOKEN: &str = "scenario-auth-token";
/// Where the account reaches the bridge.
const PUBLIC_URL: &str = "https://bridge.example";
/// The same, as the bridge is asked for a call.
const WEBHOOK_URL: &str = "https://bridge.example/voice";
/// The same, as a stream is opened.
const STREAM_URL: &str = "wss://bridge.example/twilio";
/// How long Twilio takes for what it is asked by REST, when a scenario does not say otherwise, ms.
pub(crate) const CARRIER_MS: u64 = 150;
/// How long a caller's end waits for the answer to its upgrade request.
const UPGRADE_PATIENCE_MS: u64 = 10_000;

/// Which stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// See [`memory`].
    Memory,
    /// See [`simulated`].
    Simulated,
    /// See [`pipes`].
    Pipes,
    /// See [`loopback`].
    Loopback,
    /// See [`attach`].
    Attach,
}

impl StageKind {
    /// All on which a seed gives the same bytes every time, the fast ones at the ends.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Simulated, Self::Pipes];

    /// The word used in files, on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Simulated => "simulated",
            Self::Pipes => "pipes",
            Self::Loopback => "loopback",
            Self::Attach => "attach",
        }
    }

    /// Time passes by itself there, and no two plays are quite the same.
    pub const fn is_real(self) -> bool {
        matches!(self, Self::Loopback | Self::Attach)
    }
}

impl fmt::Display for StageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that plays scenarios.
pub trait Stage {
    /// Which one it is.
    fn kind(&self) -> StageKind;
    /// Plays a scenario to its end.
    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace;
}

/// Whether this program was built so that the stage can be trusted.
///
/// # Errors
/// When it was not. The message says what to do.
pub fn ready(kind: StageKind) -> anyhow::Result<()> {
    match kind {
        StageKind::Memory => Ok(()),
        StageKind::Simulated | StageKind::Pipes | StageKind::Loopback => shell::seeded(),
        StageKind::Attach => {
            anyhow::bail!(
                "somebody else's bridge is judged by `scn conform`; docs/dev/conformance.md tells how"
            )
        }
    }
}

/// Plays a scenario on a stage.
///
/// # Panics
/// When the stage is not [`ready`].
pub fn play(kind: StageKind, scenario: &Scenario, seed: Seed) -> Trace {
    match kind {
        StageKind::Memory => memory::Memory.play(scenario, seed),
        StageKind::Simulated => simulated::Simulated.play(scenario, seed),
        StageKind::Pipes => pipes::Pipes.play(scenario, seed),
        StageKind::Loopback => loopback::Loopback::default().play(scenario, seed),
        StageKind::Attach => panic!("a foreign bridge is played by `attach::Bridge`"),
    }
}

/// Plays a scenario on a stage, and says how much processor time its thread took, where the system tells.
///
/// # Panics
/// When the stage is not [`ready`].
pub fn play_timed(kind: StageKind, scenario: &Scenario, seed: Seed) -> (Trace, Option<Duration>) {
    match kind {
        StageKind::Memory => {
            let before = thread_cpu();
            let trace = memory::Memory.play(scenario, seed);
            let cpu = thread_cpu().zip(before).map(|(after, before)| after.saturating_sub(before));
            (trace, cpu)
        }
        StageKind::Simulated => simulated::play_timed(scenario, seed),
        StageKind::Pipes => pipes::play_timed(scenario, seed),
        StageKind::Loopback | StageKind::Attach => (play(kind, scenario, seed), None),
    }
}

/// Processor time of this thread: the first field of `/proc/thread-self/schedstat`, nanoseconds. It is exact where
/// the counters of `/proc/thread-self/stat` tick a hundred times a second.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// The settings of the bridge's process.
fn settings(scenario: &Scenario) -> Config {
    let mut config = Config::default();
    config.openai.api_key = Secret::new(API_KEY);
    config.max_calls = scenario.server.max_calls;
    config.drain_ms = scenario.server.drain_ms;
    // The simulated clock comes late by its own steps; that says nothing of the machine.
    config.loop_lag_ms_max = 0;
    config.twilio.insecure_no_signature = !scenario.server.signed;
    config.twilio.token_life_s = scenario.server.token_life_s;
    config.twilio.auth_token = Secret::new(AUTH_TOKEN);
    config.public_url = Some(PUBLIC_URL.parse().expect("the constant is an address"));
    config.call = scenario.bridge.clone();
    config
}

/// The function of this name, as the scenario wants it to end. The bridge's own two succeed unless it says otherwise.
fn function(scenario: &Scenario, name: &str) -> ToolScript {
    let usual = || {
        let name = name.to_owned();
        match takes_away(&name) {
            true => ToolScript {
                name,
                after_ms: CARRIER_MS,
                output: Some("done".into()),
                ..ToolScript::default()
            },
            false => ToolScript { name, error: Some("unknown function".into()), ..ToolScript::default() },
        }
    };
    scenario.tools.iter().find(|tool| tool.name == name).cloned().unwrap_or_else(usual)
}

/// Whether Twilio ends the stream of a call for which this function succeeds.
fn takes_away(name: &str) -> bool {
    matches!(name, END_CALL | TRANSFER_CALL)
}

/// The form of a call's webhook. `before`: the streams that were planned before its own; a call that had one comes back
/// through a redirect, and does not ring any more.
fn webhook_form<'a>(
    identity: &'a Identity,
    credentials: Credentials,
    mut before: impl Iterator<Item = &'a Identity>,
) -> [(&'static str, &'a str); 6] {
    let returns = before.any(|other| other.call_sid == identity.call_sid);
    let status = match returns && credentials != Credentials::ReplayedWebhook {
        true => "in-progress",
        false => "ringing",
    };
    [
        ("AccountSid", &identity.account_sid),
        ("CallSid", &identity.call_sid),
        ("CallStatus", status),
        ("Direction", "inbound"),
        ("From", "+14155550123"),
        ("To", "+15005550006"),
    ]
}

/// Something the bridge puts on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BridgeOut {
    /// A text frame.
    Text(Leg, String),
    /// A close frame with this code.
    Close(Leg, u16),
    /// The connection is dropped.
    Drop(Leg),
    /// A ping.
    Ping(Leg),
}

/// Spoils what one call's bridge says, to see whether anyone notices.
pub trait Saboteur {
    /// What goes on the wire instead of `out`, each with a delay in microseconds. Undelayed messages keep their
    /// order; a delayed one goes out when its time has come, behind whatever was sent before.
    fn spoil(&mut self, out: BridgeOut, now: At) -> Vec<(u64, BridgeOut)>;
}

/// Something the bridge is about to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A text frame arrived.
    Text(Leg, String),
    /// A binary frame of so many bytes arrived.
    Binary(Leg, usize),
    /// Something happened to a connection.
    Leg(Leg, LegChange),
    /// A function ended.
    Tool(ToolResult),
    /// The server wants something.
    Control(Control),
}

/// What a spoiled bridge does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Puts something on the wire.
    Say(BridgeOut),
    /// Believes that it was told something.
    Hear(Told),
    /// Asks the defect again, by [`Defect::wakes`].
    Wake,
}

/// A bug around one call's bridge: it stands between the bridge and both of its ends and sees both directions.
///
/// Each method answers with what happens instead, each act with a delay in microseconds. Undelayed acts happen at
/// once and in order, and are not shown to the defect again; a delayed one happens when its time has come. Whatever
/// the defect does not care about goes through.
pub trait Defect {
    /// The bridge says `out`.
    fn says(&mut self, out: BridgeOut, _now: At) -> Vec<(u64, Act)> {
        vec![(0, Act::Say(out))]
    }

    /// The bridge is to be told `told`.
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        vec![(0, Act::Hear(told))]
    }

    /// The time of an [`Act::Wake`] has come.
    fn wakes(&mut self, _now: At) -> Vec<(u64, Act)> {
        Vec::new()
    }

    /// The bridge writes down what happened.
    fn notes(&mut self, _event: &mut CallEvent, _now: At) {}
}

/// A saboteur is a defect that only speaks.
struct Mouth(Box<dyn Saboteur>);

impl Defect for Mouth {
    fn says(&mut self, out: BridgeOut, now: At) -> Vec<(u64, Act)> {
        self.0.spoil(out, now).into_iter().map(|(delay, out)| (delay, Act::Say(out))).collect()
    }
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

thread_local! {
    /// What panicked on this thread since [`watch_panics`], when it was called.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on panics of this thread are noted, with the place, wherever they are caught.
fn watch_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place =
                info.location().map(|at| format!(" at {}:{}", at.file(), at.line())).unwrap_or_default();
            let words = info.payload_as_str().unwrap_or("a panic without words");
            // A panic while another is noted, or while the thread ends, is not worth a third one.
            let _noted = PANICS.try_with(|panics| {
                if let Ok(mut panics) = panics.try_borrow_mut()
                    && let Some(panics) = &mut *panics
                {
                    panics.push(format!("{words}{place}"));
                }
            });
            usual(info);
        }));
    });
    PANICS.set(Some(Vec::new()));
}

/// What panicked on this thread since [`watch_panics`]; nothing more is noted.
fn panics_seen() -> Vec<String> {
    PANICS.take().unwrap_or_default()
}
