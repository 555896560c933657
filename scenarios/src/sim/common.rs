//! What every backend gives its worlds: the account, the settings of the process, functions, and a watch over panics.

use crate::model::backend::Backend;
use crate::model::scenario::{Scenario, ToolScript};
use crate::model::seed::Seed;
use crate::sim::trace::Trace;
use bridge::app::config::Config;
use bridge::base::secret::Secret;
use bridge::call::settings::{END_CALL, TRANSFER_CALL};
use mocks::twilio::{Credentials, Identity};
use std::cell::RefCell;
use std::sync::Once;
use std::time::Duration;

/// Unix time at the beginning of every scenario, seconds: 2026-01-01T00:00:00Z.
pub const EPOCH_UNIX: i64 = 1_767_225_600;

/// The API key of the bridge.
pub(crate) const API_KEY: &str = "sk-scenario";
/// What the account of every scenario shares with the bridge.
pub(super) const AUTH_TOKEN: &str = "scenario-auth-token";
/// Where the account reaches the bridge.
pub(super) const PUBLIC_URL: &str = "https://bridge.example";
/// The same, as the bridge is asked for a call.
pub(super) const WEBHOOK_URL: &str = "https://bridge.example/voice";
/// The same, as a stream is opened.
pub(super) const STREAM_URL: &str = "wss://bridge.example/twilio";
/// How long Twilio takes for what it is asked by REST, when a scenario does not say otherwise, ms.
pub(crate) const CARRIER_MS: u64 = 150;
/// How long a caller's end waits for the answer to its upgrade request.
pub(super) const UPGRADE_PATIENCE_MS: u64 = 10_000;

/// Something that plays scenarios.
pub trait ScenarioRunner {
    /// Which one it is.
    fn kind(&self) -> Backend;
    /// Plays a scenario to its end.
    fn play(&self, scenario: &Scenario, seed: Seed) -> Trace;
}

/// The settings of the bridge's process.
pub(super) fn settings(scenario: &Scenario) -> Config {
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
pub(super) fn function(scenario: &Scenario, name: &str) -> ToolScript {
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
pub(super) fn takes_away(name: &str) -> bool {
    matches!(name, END_CALL | TRANSFER_CALL)
}

/// The form of a call's webhook. `before`: the streams that were planned before its own; a call that had one comes back
/// through a redirect, and does not ring any more.
pub(super) fn webhook_form<'a>(
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

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}

thread_local! {
    /// What panicked on this thread since [`watch_panics`], when it was called.
    static PANICS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on panics of this thread are noted, with the place, wherever they are caught.
pub(super) fn watch_panics() {
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
pub(super) fn panics_seen() -> Vec<String> {
    PANICS.take().unwrap_or_default()
}

/// Processor time of this thread: the first field of `/proc/thread-self/schedstat`, nanoseconds. It is exact where
/// the counters of `/proc/thread-self/stat` tick a hundred times a second.
pub(crate) fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Processor time of this process, user and system, all its threads together: `utime` and `stime` of
/// `/proc/self/stat`, in hundredths of a second.
pub(crate) fn process_cpu() -> Option<Duration> {
    /// Hundredths of a second that `utime` and `stime` count (`proc(5)`).
    const TICK: Duration = Duration::from_millis(10);
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything, so that fields are counted from behind it; `utime` is the fourteenth.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<u32>);
    Some(TICK * (fields.next()?.ok()? + fields.next()?.ok()?))
}
