//! A scenario, as data: one TOML file says who calls, what the model does, what the network does, and what must
//! come of it.
//!
//! Everything has a default, so a file shows only what is particular about it, and what is written back is the
//! same short file. A misspelt field is refused by name.

use crate::model::backend::Backend;
use crate::model::network::NetworkConditions;
use crate::model::seed::Seed;
use bridge::call::settings::CallConfig;
use mocks::realtime::ModelScript;
use mocks::twilio::{CallerScript, Identity};
use serde::{Deserialize, Serialize};

/// A whole world: calls, network, settings, expectations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// `barge_in/mid_answer`: where the file lies in the catalogue, without its ending.
    #[serde(skip)]
    pub name: String,
    /// What it shows, in one sentence.
    pub purpose: String,
    /// Which behaviours it covers, in the words of the documentation.
    pub covers: Vec<String>,
    /// Where it can be played.
    #[serde(alias = "stages")]
    pub backends: Vec<Backend>,
    /// Settings of the bridge that differ from its defaults.
    pub bridge: CallConfig,
    /// Settings of the server around the calls.
    pub server: ServerKnobs,
    /// Settings of the world itself.
    pub world: WorldKnobs,
    /// The network.
    #[serde(alias = "weather")]
    pub network: NetworkConditions,
    /// The calls.
    #[serde(rename = "call")]
    pub calls: Vec<CallPlan>,
    /// The functions of the bridge, and what they do.
    #[serde(rename = "tool")]
    pub tools: Vec<ToolScript>,
    /// What must come of it.
    pub expect: Expect,
    /// Milestones this scenario was written to reach.
    pub milestones: Vec<String>,
    /// Longest acceptable time from the end of the caller's words to the first sound of the answer heard, ms.
    pub budget_ms: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            name: String::new(),
            purpose: String::new(),
            covers: Vec::new(),
            backends: Backend::ALL.to_vec(),
            bridge: CallConfig::default(),
            server: ServerKnobs::default(),
            world: WorldKnobs::default(),
            network: NetworkConditions::default(),
            calls: Vec::new(),
            tools: Vec::new(),
            expect: Expect::default(),
            milestones: Vec::new(),
            budget_ms: 1_200,
        }
    }
}

/// Settings of the server around the calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerKnobs {
    /// More calls at one time are refused with 503.
    pub max_calls: usize,
    /// How long running calls may go on once the server shuts down, ms.
    pub drain_ms: u64,
    /// Only what the account has signed is answered, and only a stream that shows its token is carried. Otherwise
    /// every stream is let in, and no webhook is asked.
    pub signed: bool,
    /// How long after its webhook a stream may come, seconds.
    pub token_life_s: u32,
    /// When the server is told to shut down, ms; never when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_at_ms: Option<u64>,
}

impl Default for ServerKnobs {
    fn default() -> Self {
        Self { max_calls: 1_000, drain_ms: 30_000, signed: false, token_life_s: 60, drain_at_ms: None }
    }
}

/// Settings of the world itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorldKnobs {
    /// Step of the simulated network's clock, microseconds; at most a fifth of the smallest latency.
    pub tick_us: u64,
    /// Messages a connection holds in each direction before its writer has to wait.
    pub tcp_capacity: usize,
    /// The world ends then whatever happens in it, ms.
    pub limit_ms: u64,
}

impl Default for WorldKnobs {
    fn default() -> Self {
        Self { tick_us: 1_000, tcp_capacity: 10_000, limit_ms: 180_000 }
    }
}

/// One call, or several that are alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CallPlan {
    /// When the caller's WebSocket is dialled, ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub at_ms: u64,
    /// How many such calls there are.
    #[serde(skip_serializing_if = "is_one")]
    pub repeat: u32,
    /// From one of them to the next, ms.
    #[serde(skip_serializing_if = "is_zero")]
    pub every_ms: u64,
    /// Twilio's id of the call; two calls that share it are two streams of one call. Made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_sid: Option<String>,
    /// The person, and Twilio's end.
    pub caller: CallerScript,
    /// The model, on each connection the bridge makes for this call.
    pub model: ModelScript,
}

impl Default for CallPlan {
    fn default() -> Self {
        Self {
            at_ms: 0,
            repeat: 1,
            every_ms: 0,
            call_sid: None,
            caller: CallerScript::default(),
            model: ModelScript::default(),
        }
    }
}

/// What one of the bridge's functions does when it is run. A function without a script fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ToolScript {
    /// Its name.
    pub name: String,
    /// How long it takes, ms.
    pub after_ms: u64,
    /// What it returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// How it fails instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It never returns.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub never: bool,
}

/// What must come of a scenario, beyond what must hold in every one. Absent means: not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expect {
    /// The name of the bridge's reason for the end of every call that was not refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// The same, call by call; `refused` for a call that was.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ends: Vec<String>,
    /// At least this many items of the model were heard in each call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_turns_min: Option<u32>,
    /// Exactly this many `clear` messages in each call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clears: Option<u32>,
    /// Exactly this many truncations in each call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncates: Option<u32>,
    /// Whether the caller was told that the call cannot go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<bool>,
    /// The text messages of the user that the model was given, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// Exactly this many function outputs in each call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_outputs: Option<u32>,
    /// The session of each call was followed by another exactly this often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewals: Option<u32>,
    /// Exactly this many calls of the scenario were refused before they began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<u32>,
}

/// One call of the scenario, with everything a backend needs to place it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedCall {
    /// Counts the calls of the scenario.
    pub index: usize,
    /// Which of [`Scenario::calls`] it comes from.
    pub plan: usize,
    /// When it begins, ms.
    pub at_ms: u64,
    /// Who calls.
    pub identity: Identity,
}

/// A scenario file that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// It is not TOML, or names something that does not exist.
    #[error("{name}: {why}")]
    Unreadable {
        /// The scenario.
        name: String,
        /// Where and what.
        why: String,
    },
    /// It contradicts itself.
    #[error("{name}: {what}")]
    Unplayable {
        /// The scenario.
        name: String,
        /// What, and what to do.
        what: String,
    },
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// When the text is not TOML, names a field or value that does not exist, or describes a world that cannot be
    /// played. The message says where.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let mut scenario: Self = toml::from_str(text)
            .map_err(|error| ScenarioError::Unreadable { name: name.to_owned(), why: error.to_string() })?;
        name.clone_into(&mut scenario.name);
        match scenario.problem() {
            Some(what) => Err(ScenarioError::Unplayable { name: name.to_owned(), what }),
            None => Ok(scenario),
        }
    }

    /// Keys of the release before in the text of a scenario, each with the key of today.
    pub fn renamed_keys(text: &str) -> Vec<(&'static str, &'static str)> {
        let Ok(file) = text.parse::<toml::Table>() else { return Vec::new() };
        let networks = ["weather", "network"].into_iter().filter_map(|key| file.get(key)?.as_table());
        let legs = networks.flat_map(toml::Table::values).filter_map(toml::Value::as_table);
        let blackholes = legs.filter(|leg| leg.contains_key("dark_at_ms")).count();
        [
            (file.contains_key("stages"), ("stages", "backends")),
            (file.contains_key("weather"), ("weather", "network")),
            (blackholes > 0, ("dark_at_ms", "blackhole_at_ms")),
        ]
        .into_iter()
        .filter_map(|(has, keys)| has.then_some(keys))
        .collect()
    }

    /// The scenario as a file: only what differs from the defaults.
    pub fn to_toml(&self) -> String {
        let all = |scenario: &Self| {
            toml::Table::try_from(scenario).expect("a scenario holds nothing TOML has no word for")
        };
        let usual = all(&Self::default());
        let mut table = all(self);
        leave_out(&mut table, &usual);
        toml::to_string(&table).expect("a table can be written")
    }

    /// Every call, in the order of the file.
    pub fn planned(&self, seed: Seed) -> Vec<PlannedCall> {
        let mut planned = Vec::new();
        for (plan, call) in self.calls.iter().enumerate() {
            for n in 0..u64::from(call.repeat) {
                let index = planned.len();
                let id = |what: &str| {
                    let half = |n: u32| seed.number(&format!("id/{what}/{index}/{n}"));
                    format!("{what}{:016x}{:016x}", half(0), half(1))
                };
                planned.push(PlannedCall {
                    index,
                    plan,
                    at_ms: call.at_ms + n * call.every_ms,
                    identity: Identity {
                        account_sid: format!(
                            "AC{:016x}{:016x}",
                            seed.number("id/AC/0"),
                            seed.number("id/AC/1")
                        ),
                        call_sid: call.call_sid.clone().unwrap_or_else(|| id("CA")),
                        stream_sid: id("MZ"),
                    },
                });
            }
        }
        planned
    }

    /// Why it cannot be played, if it cannot.
    fn problem(&self) -> Option<String> {
        const MOST_CALLS: u64 = 10_000;
        let calls: u64 = self.calls.iter().map(|call| u64::from(call.repeat)).sum();
        let ends = u64::try_from(self.expect.ends.len()).unwrap_or(u64::MAX);
        let smallest = self.network.caller.latency_ms.min(self.network.model.latency_ms) * 1_000;
        if self.purpose.trim().is_empty() {
            Some("`purpose` is missing: say in one sentence what the scenario shows".into())
        } else if self.backends.is_empty() {
            Some("`backends` is empty: name `memory`, `simulated` and `pipes`, or some of them".into())
        } else if let Some(backend) = self.backends.iter().find(|backend| backend.is_real()) {
            Some(format!(
                "`backends` names `{backend}`, which is for tests and for `scn conform`: leave it out, a scenario that \
                 needs no network conditions is played there anyway"
            ))
        } else if calls == 0 {
            Some("there is no `[[call]]`: a scenario needs at least one".into())
        } else if calls > MOST_CALLS {
            Some(format!("{calls} calls are more than the {MOST_CALLS} a world can hold"))
        } else if self.world.tick_us == 0 || self.world.tick_us * 5 > smallest {
            Some(format!(
                "`world.tick_us` is {}, but must be 1 to {}: a fifth of the smallest latency",
                self.world.tick_us,
                smallest / 5
            ))
        } else if self.world.tcp_capacity == 0 {
            Some("`world.tcp_capacity` is 0: a connection must hold at least one message".into())
        } else if let Some(what) = self.network.problem() {
            Some(what)
        } else if let Some(what) = self.network.only_on_pipes().filter(|_| self.backends != [Backend::Pipes])
        {
            Some(format!("`{what}` can only be played on pipes: add `backends = [\"pipes\"]`"))
        } else if ends != 0 && ends != calls {
            Some(format!("`expect.ends` names {ends} ends for {calls} calls"))
        } else {
            self.tools.iter().find_map(|tool| {
                let outcomes = [tool.output.is_some(), tool.error.is_some(), tool.never];
                (outcomes.iter().filter(|has| **has).count() != 1).then(|| {
                    format!("tool `{}` needs exactly one of `output`, `error` and `never`", tool.name)
                })
            })
        }
    }
}

/// Removes from `table` what is the same in `usual`.
fn leave_out(table: &mut toml::Table, usual: &toml::Table) {
    table.retain(|key, value| match (value, usual.get(key)) {
        (toml::Value::Table(inner), Some(toml::Value::Table(usual))) => {
            leave_out(inner, usual);
            !inner.is_empty()
        }
        (value, Some(usual)) => value != usual,
        (_, None) => true,
    });
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_one(value: &u32) -> bool {
    *value == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use mocks::twilio::CallerStep;

    const TEXT: &str = r#"
        purpose = "Two streams of one call."
        covers = ["owner"]
        backends = ["memory"]

        [bridge]
        greeting = "Hello."
        format = "pcmu"
        timeouts.dial_ms = 500

        [[bridge.tools]]
        name = "lookup"

        [server]
        drain_at_ms = 9000

        [network.caller]
        jitter_ms = 8
        stalls = [{ at_ms = 100, for_ms = 300 }]

        [[call]]
        call_sid = "CA00"
        caller.steps = ["hears_end", { says = 500 }, "hangs_up"]

        [[call]]
        call_sid = "CA00"
        at_ms = 4000
        repeat = 3
        every_ms = 250
        caller.steps = ["hangs_up"]
        model.turns = [{ answers = 4000, speed = 3.0 }]

        [[tool]]
        name = "lookup"
        after_ms = 300
        output = "42"

        [expect]
        ends = ["replaced", "replaced", "replaced", "stopped"]
        notice = false
    "#;

    #[test]
    fn keys_of_the_release_before_are_read_and_named() {
        let old = "purpose = \"x.\"\nstages = [\"memory\"]\nweather.model.dark_at_ms = 5\n[[call]]\ncaller.steps = []";
        let new = "purpose = \"x.\"\nbackends = [\"memory\"]\nnetwork.model.blackhole_at_ms = 5\n[[call]]\ncaller.steps = []";
        assert_eq!(Scenario::from_toml("t", old), Scenario::from_toml("t", new));
        let renamed = [("stages", "backends"), ("weather", "network"), ("dark_at_ms", "blackhole_at_ms")];
        assert_eq!(Scenario::renamed_keys(old), renamed);
        assert_eq!(Scenario::renamed_keys(new), []);
    }

    #[test]
    fn a_scenario_survives_toml() {
        let scenario = Scenario::from_toml("test/owner", TEXT).unwrap();
        assert_eq!(scenario.bridge.timeouts.dial_ms, 500);
        assert_eq!(scenario.bridge.timeouts.start_ms, CallConfig::default().timeouts.start_ms);
        assert_eq!(scenario.calls[0].caller.steps[1], CallerStep::Says(500));
        let written = scenario.to_toml();
        assert_eq!(Scenario::from_toml("test/owner", &written).unwrap(), scenario, "{written}");
        for usual in ["limit_ms", "start_ms", "budget_ms", "max_calls", "[network.model]"] {
            assert!(!written.contains(usual), "`{usual}` is a default:\n{written}");
        }
    }

    #[test]
    fn repeats_are_placed_one_after_another() {
        let planned = Scenario::from_toml("t", TEXT).unwrap().planned(Seed(1));
        assert_eq!(planned.iter().map(|call| call.at_ms).collect::<Vec<_>>(), [0, 4_000, 4_250, 4_500]);
        assert!(planned.iter().all(|call| call.identity.call_sid == "CA00"));
        let mut streams: Vec<_> = planned.iter().map(|call| call.identity.stream_sid.clone()).collect();
        assert!(streams.iter().all(|sid| sid.len() == 34 && sid.starts_with("MZ")));
        streams.dedup();
        assert_eq!(streams.len(), 4);
    }

    #[test]
    fn what_cannot_be_played_is_refused_with_a_reason() {
        let call = "[[call]]\ncaller.steps = []\n";
        for (text, word) in [
            (call.to_owned(), "purpose"),
            ("purpose = \"x.\"".into(), "[[call]]"),
            (format!("purpose = \"x.\"\nbackends = [\"loopback\"]\n{call}"), "`loopback`"),
            (format!("purpose = \"x.\"\nbackends = []\n{call}"), "backends"),
            (format!("purpose = \"x.\"\nworld.tick_us = 5000\n{call}"), "tick_us"),
            (format!("purpose = \"x.\"\nexpect.ends = [\"stopped\", \"stopped\"]\n{call}"), "expect.ends"),
            (format!("purpose = \"x.\"\n{call}[[tool]]\nname = \"t\""), "tool `t`"),
            (format!("purpose = \"x.\"\nweather.caller.latency = 5\n{call}"), "latency"),
            (
                format!("purpose = \"x.\"\nweather.caller.half_close_at_ms = 5\n{call}"),
                "backends = [\"pipes\"]",
            ),
            (
                format!(
                    "purpose = \"x.\"\nbackends = [\"memory\", \"pipes\"]\nweather.model.downlink.window_bytes = 5\n{call}"
                ),
                "`network.model.downlink`",
            ),
            (
                format!(
                    "purpose = \"x.\"\nbackends = [\"pipes\"]\nweather.model.uplink.bytes_per_s = 5\n{call}"
                ),
                "`network.model.uplink`: `bytes_per_s` needs",
            ),
            (format!("purpose = \"x.\"\nbridge.gretting = \"Hi\"\n{call}"), "gretting"),
        ] {
            let error = Scenario::from_toml("t", &text).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with("t: "), "{error}");
        }
    }
}
