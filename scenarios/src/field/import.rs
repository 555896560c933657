//! A journal becomes a scenario: not the messages of then, but what each end meant to do.
//!
//! A person who spoke two seconds into an answer speaks two seconds into whatever today's bridge plays; a model that
//! took 300 ms takes 300 ms after whatever today's bridge asks. So the scenario stays a fair test when the bridge
//! behaves otherwise than it did, the oracles keep their meaning, and the shrinker has something to work on. What a
//! script has no words for is left out and said.
//!
//! * `timeline`: the call as both ends lived it, worked out from the bridge's clock and the round trips it measured.
//! * `caller_script`: the caller's steps, anchored at what was heard.
//! * `model_script`: the model's turns, delays and failures.

#![expect(clippy::wildcard_enum_match_arm, reason = "a reader picks the lines it needs")]

mod caller_script;
mod model_script;
mod timeline;

use super::Recorded;
use crate::model::scenario::{CallPlan, Scenario, ToolScript};
use bridge::export::journal::lines::What;
use mocks::twilio::Credentials;
use timeline::Timeline;
pub use timeline::Timing;

/// Longest acceptable time to an answer in a call whose budget is not known.
const BUDGET_MS: u64 = 20_000;

/// What an import came to.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The scenario.
    pub scenario: Scenario,
    /// What it leaves out, and why.
    pub left_out: Vec<String>,
}

/// Makes a scenario of the journals of one process: usually one, or those of calls that met.
///
/// # Panics
/// Never on any journal; the settings of the first one are those of the scenario.
pub fn import(journals: &[Recorded], timing: Timing) -> Imported {
    let mut scenario = Scenario { name: "imported".into(), ..Scenario::default() };
    let mut left_out = Vec::new();
    let Some(first) = journals.first() else { return Imported { scenario, left_out } };
    scenario.bridge = first.header.call.clone();
    scenario.server.max_calls = first.header.max_calls;
    scenario.server.drain_ms = first.header.drain_ms;

    let journals: Vec<Recorded> = journals.iter().map(timeline::counted_on).collect();
    let timelines: Vec<_> = journals.iter().map(Timeline::of).collect();
    let earliest = timelines.iter().map(|timeline| timeline.dialled_us).min().unwrap_or_default();
    let mut longest_ms = 0;
    for (n, (journal, timeline)) in journals.iter().zip(&timelines).enumerate() {
        let mut say = |words: String| {
            let whose = if journals.len() > 1 { format!("call {n}: ") } else { String::new() };
            left_out.push(format!("{whose}{words}"));
        };
        if !journal.damage.is_none() {
            say(format!("the journal is damaged: {}", journal.damage));
        }
        let at_ms = u64::try_from(timeline.dialled_us.saturating_sub(earliest)).unwrap_or_default() / 1_000;
        let model = model_script::script(journal, timeline, &mut say);
        let caller = caller_script::script(journal, timeline, timing, &mut say);
        let shared = timelines.iter().filter(|other| other.call_sid == timeline.call_sid).count() > 1;
        scenario.calls.push(CallPlan {
            at_ms,
            call_sid: timeline.call_sid.clone().filter(|_| shared),
            caller,
            model,
            ..CallPlan::default()
        });
        // The scenario's clock begins when the first caller dials.
        let offset_us =
            timeline.dialled_us.saturating_sub(earliest).saturating_add(timeline.opened_after_us());
        network(&mut scenario, timeline, offset_us);
        tools(&mut scenario.tools, journal);
        for record in &journal.records {
            if let What::Asked { what } = &record.what {
                match what.as_str() {
                    "drain" => {
                        let at = u64::try_from(offset_us).unwrap_or_default() + record.us;
                        scenario.server.drain_at_ms.get_or_insert(at / 1_000);
                    }
                    "replaced" if journals.len() > 1 => {}
                    // Who showed what is not in a journal, only what became of it.
                    "welcome" => scenario.server.signed = true,
                    "turn_away" => {
                        scenario.server.signed = true;
                        if let Some(call) = scenario.calls.last_mut() {
                            call.caller.credentials = Credentials::MadeUpToken;
                        }
                    }
                    "replaced" => {
                        say("another stream took the call over: import its journal along with this one"
                            .into())
                    }
                    other => {
                        say(format!("this call was told to end from outside ({other}): no script says that"))
                    }
                }
            }
        }
        longest_ms = longest_ms.max(at_ms + timeline.length_us / 1_000);
    }
    scenario.world.limit_ms = scenario.world.limit_ms.max(longest_ms + 120_000);
    if timelines.iter().any(|timeline| timeline.clogged) {
        // How much the network held is not in a journal; a narrow one shows the same.
        scenario.world.tcp_capacity = 8;
    }
    scenario.purpose = purpose(&journals, &timelines);
    // How fast an answer had to be is not recorded; that it must come at all is another oracle's business.
    scenario.budget_ms = BUDGET_MS;
    Imported { scenario, left_out }
}

fn purpose(journals: &[Recorded], timelines: &[Timeline]) -> String {
    let seconds = timelines.iter().map(|timeline| timeline.length_us).max().unwrap_or_default() / 1_000_000;
    let ends: Vec<_> =
        timelines.iter().map(|timeline| timeline.end.as_deref().unwrap_or("unknown")).collect();
    let calls = if journals.len() == 1 { "a call".to_owned() } else { format!("{} calls", journals.len()) };
    format!("Imported from the journal of {calls} of {seconds} s that ended with {}.", ends.join(", "))
}

/// The network, as far as it showed.
fn network(scenario: &mut Scenario, timeline: &Timeline, offset_us: i64) {
    let network = &mut scenario.network;
    network.caller.latency_ms = timeline.caller_latency_us.div_ceil(1_000).max(5);
    network.model.latency_ms = timeline.model_latency_us.div_ceil(1_000).max(5);
    network.caller.jitter_ms = network.caller.jitter_ms.max(timeline.jitter_ms);
    for stall in &timeline.stalls {
        let at_ms = u64::try_from(stall.at_us + offset_us).unwrap_or_default() / 1_000;
        let for_ms = stall.for_us.div_ceil(1_000);
        network.caller.stalls.push(crate::model::network::Stall { at_ms, for_ms });
    }
}

/// What the functions did.
fn tools(tools: &mut Vec<ToolScript>, journal: &Recorded) {
    for (n, record) in journal.records.iter().enumerate() {
        let What::RunTool { call_id, name, .. } = &record.what else { continue };
        if tools.iter().any(|tool| tool.name == *name) {
            continue; // a script has one outcome for a function: that of its first run
        }
        let later = &journal.records[n..];
        let ended = later.iter().find_map(|later| match &later.what {
            What::ToolEnded { call_id: id, ok, output } if id == call_id => Some((later.us, *ok, output)),
            _ => None,
        });
        let mut script = ToolScript { name: name.clone(), ..ToolScript::default() };
        match ended {
            None => script.never = true,
            Some((us, ok, output)) => {
                script.after_ms = us.saturating_sub(record.us) / 1_000;
                let words = output.data.clone().unwrap_or_else(|| "x".repeat(output.len));
                if ok {
                    script.output = Some(words);
                } else {
                    script.error = Some(words);
                }
            }
        }
        tools.push(script);
    }
}
