//! Makes a scenario of a seed: the same type that is written by hand, printed, stored and shrunk.
//!
//! A world that has a little of everything has little of anything: ten mild hazards hide each other. So each seed
//! switches most classes of hazard off, lets some happen now and then, and lets a few run wild. Over many seeds
//! every combination comes up, and each world is about something.
//!
//! Each concern draws from a stream of its own, so a new draw in one leaves the others of the same seed alone. A seed
//! still means another world after this file has changed; what is to be kept is the scenario, not the seed.

use crate::model::backend::Backend;
use crate::model::network::{LegConditions, Stall};
use crate::model::scenario::{CallPlan, Scenario, ToolScript};
use crate::model::seed::Seed;
use crate::sim::API_KEY;
use bridge::audio::Format;
use bridge::call::settings::END_CALL;
use bridge::call::settings::{
    CallConfig, DialWhen, Dialect, GreetingGuard, HoldMessage, Renewal, ToolSpec, Transcription, Until,
};
use mocks::realtime::{
    Call, CancelledItems, CloseAfter, Dial, Dialect as Spoken, ErrorSpec, Happening, ModelScript, Opening,
    Outcome, ReconnectScript, Refusal, Stall as Pause, TimedEvent, Transcription as Written, Turn, When,
    masked,
};
use mocks::twilio::{CallerScript, CallerStep, EchoMarks, Idle};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore as _;

/// Most turns of a conversation.
const TURNS_MAX: u64 = 5;
/// The world ends then: the longest call, its slowest failure and the last words after it fit well below.
const LIMIT_MS: u64 = 60_000;
/// How long a patient caller waits, and the longest call of one: longer than everything a bridge may wait for.
const PATIENT_MS: u64 = 45_000;
/// Answers may take as long as the model takes; how much of it the bridge takes is judged by itself.
const BUDGET_MS: u64 = 12_000;
/// The functions a generated bridge has.
const FUNCTIONS: [&str; 3] = ["lookup_order", "book_table", "transfer"];

/// A class of things that go wrong, or at least not as in a brochure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum FaultClass {
    /// The caller speaks at any moment, over the agent above all.
    Interruptions,
    /// Keys.
    Keys,
    /// The caller's end ends early, or without manners.
    RudeEnds,
    /// Answers in bursts, drips and with pauses.
    Rhythm,
    /// Several items in one response, silence after it, text instead of audio.
    Items,
    /// Function calls.
    Functions,
    /// Deltas after a cancel, a late `response.created`.
    Lateness,
    /// Responses that fail, stop short, or are silent.
    Failures,
    /// Requests without an answer.
    Silence,
    /// Speech that is none, and speech noticed twice.
    Noise,
    /// Long ways.
    Distance,
    /// Uneven ways.
    Jitter,
    /// Outages.
    Outages,
    /// Legs that are reset or go dark.
    Cuts,
    /// A far end that does not take what it is sent.
    SlowReader,
    /// A caller's end that sends what it should not.
    CallerRubbish,
    /// A model that sends what it should not.
    ModelRubbish,
    /// Marks that come late or never, a play-out that gathers.
    Marks,
    /// Silence that is left out, frames that are held up.
    Gaps,
    /// A session that is slow or impossible to open.
    Opening,
    /// A model that leaves.
    ModelLeaves,
    /// Settings other than the usual ones.
    Settings,
    /// The automatic parts of turn detection switched off.
    TurnFlags,
    /// Transcripts, late and failed ones, too.
    Words,
    /// Several calls at one time.
    Crowd,
    /// What only happens to bytes: pieces, hesitations, small windows, narrow lines. Only on pipes.
    Bytes,
    /// Sessions that end before their calls, and are renewed.
    Renewal,
}

/// Every class, and how a purpose names it.
const HAZARDS: &[(FaultClass, &str)] = &[
    (FaultClass::Interruptions, "interruptions"),
    (FaultClass::Keys, "keys"),
    (FaultClass::RudeEnds, "rude ends"),
    (FaultClass::Rhythm, "uneven answers"),
    (FaultClass::Items, "several items"),
    (FaultClass::Functions, "functions"),
    (FaultClass::Lateness, "late events"),
    (FaultClass::Failures, "failed answers"),
    (FaultClass::Silence, "unanswered requests"),
    (FaultClass::Noise, "noise"),
    (FaultClass::Distance, "long ways"),
    (FaultClass::Jitter, "jitter"),
    (FaultClass::Outages, "outages"),
    (FaultClass::Cuts, "cuts"),
    (FaultClass::SlowReader, "a slow reader"),
    (FaultClass::CallerRubbish, "rubbish of the caller"),
    (FaultClass::ModelRubbish, "rubbish of the model"),
    (FaultClass::Marks, "strange marks"),
    (FaultClass::Gaps, "gaps in the audio"),
    (FaultClass::Opening, "a hard opening"),
    (FaultClass::ModelLeaves, "a model that leaves"),
    (FaultClass::Settings, "odd settings"),
    (FaultClass::TurnFlags, "turns by hand"),
    (FaultClass::Words, "transcripts"),
    (FaultClass::Crowd, "several calls"),
    (FaultClass::Bytes, "trouble with single bytes"),
    (FaultClass::Renewal, "renewed sessions"),
];

/// How much of a hazard there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Off,
    Mild,
    Wild,
}

/// Which hazards this seed is about.
struct Swarm(Vec<(FaultClass, Level)>);

impl Swarm {
    fn draw(seed: Seed) -> Self {
        let mut rng = Rng::of(seed, "swarm");
        // Some worlds are crowded with hazards, some have hardly any.
        let off = 40 + 10 * rng.below(5);
        let level = |rng: &mut Rng| match rng.below(100) {
            n if n < off => Level::Off,
            n if n < off + (100 - off) * 2 / 3 => Level::Mild,
            _ => Level::Wild,
        };
        let all = HAZARDS.iter().map(|(hazard, _)| (*hazard, level(&mut rng))).collect();
        let mut swarm = Self(all);
        if !swarm.allows_rubbish() {
            swarm.0.retain(|(hazard, _)| {
                !matches!(hazard, FaultClass::CallerRubbish | FaultClass::ModelRubbish)
            });
        }
        swarm
    }

    /// A call that fails for its own reasons must not look as if rubbish had ended it, or an error that ends nothing:
    /// the two ends do not show which it was.
    fn allows_rubbish(&self) -> bool {
        let ends_calls = [
            FaultClass::Failures,
            FaultClass::Silence,
            FaultClass::Opening,
            FaultClass::ModelLeaves,
            FaultClass::Renewal,
        ];
        !ends_calls.into_iter().any(|hazard| self.has(hazard))
    }

    fn level(&self, hazard: FaultClass) -> Level {
        self.0.iter().find(|(one, _)| *one == hazard).map_or(Level::Off, |(_, level)| *level)
    }

    fn has(&self, hazard: FaultClass) -> bool {
        self.level(hazard) != Level::Off
    }

    /// One sentence.
    fn purpose(&self) -> String {
        let named = |level| -> Vec<&str> {
            let named = HAZARDS.iter().filter(|(h, _)| *h != FaultClass::Bytes && self.level(*h) == level);
            named.map(|(_, name)| *name).collect()
        };
        let (mild, wild) = (named(Level::Mild), named(Level::Wild));
        match (wild.is_empty(), mild.is_empty()) {
            (true, true) => "A world in which nothing special happens.".to_owned(),
            (true, false) => format!("A world with some {}.", mild.join(", ")),
            (false, true) => format!("A world full of {}.", wild.join(", ")),
            (false, false) => format!("A world full of {}; with some {}.", wild.join(", "), mild.join(", ")),
        }
    }
}

/// One stream of random numbers, with the words a generator needs.
struct Rng(ChaCha8Rng);

impl Rng {
    fn of(seed: Seed, label: &str) -> Self {
        Self(seed.stream(&format!("generate/{label}")))
    }

    /// From 0 to `n` - 1.
    fn below(&mut self, n: u64) -> u64 {
        self.0.next_u64() % n.max(1)
    }

    /// So many times in a hundred.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Whether a hazard of this level strikes here. Draws once whatever the level is.
    fn strikes(&mut self, level: Level) -> bool {
        let drawn = self.below(100);
        match level {
            Level::Off => false,
            Level::Mild => drawn < 20,
            Level::Wild => drawn < 60,
        }
    }

    /// From `from` to `to`, in steps a reader likes; small values are as likely as large ones.
    fn ms(&mut self, from: u64, to: u64) -> u64 {
        let span = to.saturating_sub(from) + 1;
        // Half of all draws lie in the lowest quarter.
        let raw = from + if self.chance(50) { self.below(span.div_ceil(4)) } else { self.below(span) };
        let step = match raw {
            0..=99 => 10,
            100..=999 => 20,
            1_000..=4_999 => 100,
            _ => 500,
        };
        (raw / step * step).clamp(from, to)
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len() as u64) as usize;
        of[index].clone()
    }
}

/// The scenario of this seed as this backend plays it: over pipes, with trouble that the others cannot make.
pub fn generate_for(seed: Seed, backend: Backend) -> Scenario {
    let mut scenario = generate(seed);
    if backend == Backend::Pipes {
        bytes(&mut scenario, Swarm::draw(seed).level(FaultClass::Bytes), &mut Rng::of(seed, "bytes"));
    }
    scenario
}

/// The scenario of this seed. It is the same for ever, until this file changes.
pub fn generate(seed: Seed) -> Scenario {
    let swarm = Swarm::draw(seed);
    let mut scenario = Scenario {
        name: format!("generated/{seed}"),
        purpose: swarm.purpose(),
        budget_ms: BUDGET_MS,
        ..Scenario::default()
    };
    scenario.world.limit_ms = LIMIT_MS;
    settings(&mut scenario, &swarm, &mut Rng::of(seed, "settings"));
    protection(&mut scenario.bridge, &mut Rng::of(seed, "protection"));
    filler(&mut scenario.bridge, &mut Rng::of(seed, "filler"));
    let (mut caller, mut model) = (Rng::of(seed, "caller"), Rng::of(seed, "model"));
    let mut line = Rng::of(seed, "line");
    let calls = match swarm.level(FaultClass::Crowd) {
        Level::Off => 1,
        Level::Mild => 2,
        Level::Wild => 2 + caller.below(2),
    };
    for n in 0..calls {
        let mut plan = CallPlan {
            at_ms: if n == 0 { 0 } else { caller.ms(0, 6_000) },
            // Of two streams of one call the first is ended; rubbish must not look like the reason.
            call_sid: (calls > 1
                && !swarm.has(FaultClass::CallerRubbish)
                && !swarm.has(FaultClass::ModelRubbish)
                && caller.chance(15))
            .then(|| "CAtwostreamsofonecall".to_owned()),
            caller: a_caller(&swarm, &mut caller, scenario.bridge.barge_in),
            model: a_model(&swarm, &mut model, scenario.bridge.dialect),
            ..CallPlan::default()
        };
        a_line(&mut plan.caller, &swarm, &mut line);
        scenario.calls.push(plan);
    }
    // Most callers give up before the bridge does; what becomes of those who wait must be seen, too.
    if Rng::of(seed, "patience").chance(10) {
        for call in &mut scenario.calls {
            (call.caller.patience_ms, call.caller.hang_up_after_ms) = (PATIENT_MS, Some(PATIENT_MS));
            if scenario.bridge.greeting.is_some() {
                call.caller.steps.insert(0, CallerStep::HearsStart);
            }
        }
    }
    network(&mut scenario, &swarm, &mut Rng::of(seed, "weather"));
    renewals(&mut scenario, swarm.level(FaultClass::Renewal), &mut Rng::of(seed, "renewals"));
    next_sessions(&mut scenario, swarm.level(FaultClass::Renewal), &mut Rng::of(seed, "next sessions"));
    rare_ends(&mut scenario, &swarm, &mut Rng::of(seed, "rare ends"));
    if swarm.has(FaultClass::Functions) {
        hard_functions(
            &mut scenario,
            swarm.level(FaultClass::Functions),
            &mut Rng::of(seed, "hard functions"),
        );
    }
    own_words(&mut scenario, &swarm, &mut Rng::of(seed, "own words"));
    as_recorded(&mut scenario, &mut Rng::of(seed, "as recorded"));
    unrecorded(&mut scenario, &swarm, &mut Rng::of(seed, "unrecorded"));
    scenario
}

/// Outputs that are refused, functions that are called without end, and calls that are left while one runs.
fn hard_functions(scenario: &mut Scenario, level: Level, rng: &mut Rng) {
    let ends = rng.chance(20);
    scenario.bridge.hangup.end_call = ends;
    if rng.chance(30) {
        scenario.bridge.timeouts.tool_after_end_ms = rng.one(&[0, 100, 1_000]);
    }
    let mut endless = false;
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        model.refuses_early_outputs = rng.chance(30);
        for turn in model.turns.iter_mut().filter(|turn| !turn.calls.is_empty()) {
            if rng.strikes(level) {
                turn.done_after_ms = rng.ms(20, 800);
            }
            if rng.chance(12) {
                turn.refuses_outputs = 1 + u32::from(rng.chance(20));
            }
            if ends && rng.chance(30) {
                turn.calls.push(Call { name: END_CALL.into(), arguments: "{}".into(), call_id: None });
            }
            if rng.chance(10) {
                turn.repeat = rng.one(&[2, 3, 6, 30]);
                endless |= turn.repeat > 3;
            }
        }
        model.ignores_tool_choice = endless && rng.chance(40);
    }
    if endless {
        scenario.bridge.limits.same_calls = rng.one(&[1, 2, 5]);
        scenario.bridge.limits.function_rounds = rng.one(&[3, 5, 20]);
        scenario.bridge.timeouts.dead_air_ms = rng.one(&[6_000, 10_000, 60_000]);
    }
}

/// Errors that quote a key and have no code, and ends of responses that never began.
fn own_words(scenario: &mut Scenario, swarm: &Swarm, rng: &mut Rng) {
    let quoted = format!("Incorrect API key provided: {}.", masked(API_KEY));
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        if model.opening == Opening::BadKey && rng.chance(60) {
            model.opening = Opening::ErrorThenClose(Refusal {
                kind: "invalid_request_error".into(),
                code: None,
                message: quoted.clone(),
                close: 3_000,
                reason: rng.chance(50).then(|| quoted.clone()),
            });
        }
        for turn in &mut model.turns {
            if matches!(turn.status, Outcome::Failed(_)) && rng.chance(20) {
                turn.unannounced = true;
            }
        }
        if swarm.has(FaultClass::ModelRubbish) && rng.chance(20) {
            let at_ms = rng.ms(0, 10_000);
            model.events.push(TimedEvent { at_ms, does: Happening::DoneForUnknownResponse });
        }
    }
}

// ---------------------------------------------------------------------------------------------- the service

/// What recorded sessions do now and then, whatever the world is about: silence after the words, words long before
/// their sound, a response a few milliseconds after the turn, limits that are not always told.
fn as_recorded(scenario: &mut Scenario, rng: &mut Rng) {
    let models =
        ["gpt-realtime-2.1", "gpt-realtime-2.1", "gpt-realtime-2", "gpt-realtime", "gpt-realtime-mini"];
    scenario.bridge.model = rng.one(&models).to_owned();
    let writers =
        ["gpt-4o-mini-transcribe", "gpt-realtime-whisper", "gpt-realtime-whisper", "gpt-transcribe"];
    let writer = rng.one(&writers);
    if let Some(transcription) = &mut scenario.bridge.transcription {
        transcription.model = writer.to_owned();
    }
    let usual = (ModelScript::default(), Turn::default());
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        if model.created_after_ms == usual.0.created_after_ms {
            model.created_after_ms = 3 + rng.below(7);
        }
        model.keeps_default_silence = rng.chance(5);
        for turn in &mut model.turns {
            match rng.below(10) {
                0..3 => turn.trailing_silence_ms = rng.ms(1_000, 3_000),
                3 => turn.trailing_silence_ms = rng.ms(20, 1_000),
                _ => {}
            }
            turn.words_out_after = match rng.below(10) {
                0..7 => Some(rng.below(9) as usize),
                7 => Some(1_000),
                _ => None,
            };
            if turn.created_ms == usual.1.created_ms {
                turn.created_ms = 1 + rng.below(12);
            }
            turn.rate_limits = rng.chance(70);
            for call in &mut turn.calls {
                if call.arguments.contains("42") && rng.chance(50) {
                    call.arguments = "{  \n  \"order\": 42  \n}  \n".into();
                }
            }
        }
    }
}

/// What no recording shows is one thing in one world and another in the next: the run after a cancel, above all. Where
/// answers are uneven, so is their beginning.
fn unrecorded(scenario: &mut Scenario, swarm: &Swarm, rng: &mut Rng) {
    let (late, rhythm) = (swarm.level(FaultClass::Lateness), swarm.level(FaultClass::Rhythm));
    for turn in scenario.calls.iter_mut().flat_map(|call| &mut call.model.turns) {
        if rng.strikes(rhythm) {
            turn.burst_ms = rng.one(&[0, 100, 300, 2_000]);
        }
        if rng.strikes(rhythm) {
            turn.first_delta_ms = Some(rng.one(&[20, 100, 188]));
        }
        if rng.strikes(late) {
            turn.late_gap_ms = rng.one(&[0, 1, 20, 60]);
        }
        if rng.strikes(late) {
            // Later, too, than a bridge that gave a silent response up would like to ask for the next one.
            turn.late_done_ms = rng.ms(20, 1_500);
        }
        let items = [CancelledItems::Incomplete, CancelledItems::Completed, CancelledItems::LeftOpen];
        turn.cancelled_items = rng.one(&items);
        turn.uncreated = rng.chance(30);
    }
}

// ---------------------------------------------------------------------------------------------- renewals

fn renewals(scenario: &mut Scenario, level: Level, rng: &mut Rng) {
    if level == Level::Off {
        return;
    }
    // Long enough for the last words, short enough for the calls of a world.
    let expires_after_s = 12 + rng.below(12);
    scenario.bridge.timeouts.before_expiry_ms = 1_000;
    scenario.bridge.renewal = Some(Renewal {
        before_ms: 20_000,
        quiet_ms: rng.one(&[100, 300, 1_000]),
        history_items: rng.one(&[200, 200, 200, 4, 0]),
        ..Renewal::default()
    });
    if rng.chance(70) {
        let model = "gpt-4o-mini-transcribe".into();
        scenario.bridge.transcription.get_or_insert(Transcription { model, language: None });
    }
    for call in &mut scenario.calls {
        call.model.expires_after_s = Some(expires_after_s);
        for _ in 0..3 {
            let mut again =
                ReconnectScript { expires_after_s: Some(expires_after_s + 40), ..ReconnectScript::default() };
            if rng.strikes(level) {
                let dials = [Dial::Refuses, Dial::Hangs, Dial::HangsInUpgrade, Dial::AnswersHttp(503)];
                again.dial = Some(rng.one(&dials));
            } else if rng.strikes(level) {
                again.dial_ms = Some(rng.ms(100, 2_500));
            } else if rng.strikes(level) {
                again.created_after_ms = Some(rng.ms(100, 2_500));
            }
            call.model.again.push(again);
        }
        // A caller who has finished stays on the line for a while, so that there is something to renew.
        if rng.chance(60) {
            let at = call.caller.steps.len().saturating_sub(1);
            call.caller.steps.insert(at, CallerStep::Waits(rng.ms(2_000, 10_000)));
        }
    }
}

/// Sessions that took over, or were to, are no better than first ones: they are refused, slow, or leave.
fn next_sessions(scenario: &mut Scenario, level: Level, rng: &mut Rng) {
    for again in scenario.calls.iter_mut().flat_map(|call| &mut call.model.again) {
        if again.dial.is_some() || !rng.strikes(level) || rng.chance(50) {
            continue;
        }
        let ms = rng.ms(50, 12_000);
        match rng.below(7) {
            0 => again.drops_after_ms = Some(ms),
            1 => again.goes_dark_after_ms = Some(ms),
            2 | 3 => again.close_after = Some(a_close(ms, rng)),
            4 => again.refuses_update = Some("invalid_value".into()),
            5 => again.never_updates = Some(true),
            _ => again.updated_after_ms = Some(rng.ms(20, 3_000)),
        }
    }
}

/// Ends that nothing else leads to, in one world of twenty: a call that may not last, settings that are refused, audio
/// that the bridge cannot read, a caller's end that goes on sending rubbish.
fn rare_ends(scenario: &mut Scenario, swarm: &Swarm, rng: &mut Rng) {
    let (end, which) = (rng.below(64), rng.below(scenario.calls.len() as u64) as usize);
    let Some(call) = scenario.calls.get_mut(which) else { return };
    match end {
        0 => scenario.bridge.timeouts.call_ms = rng.ms(500, 15_000),
        1 => call.model.refuses_update = Some("invalid_value".into()),
        2 => {
            let format = &mut call.caller.media_format;
            match rng.below(3) {
                0 => format.encoding = "audio/l16".into(),
                1 => format.sample_rate = 16_000,
                _ => format.channels = 2,
            }
        }
        3 if swarm.allows_rubbish() => {
            let limit = rng.below(12);
            scenario.bridge.limits.malformed = limit as u32;
            for n in 0..=limit {
                // Not behind the end of the script.
                let at = rng.below(call.caller.steps.len() as u64) as usize;
                call.caller.steps.insert(at, CallerStep::SendsRaw(n.to_string()));
            }
        }
        _ => {}
    }
}

// ---------------------------------------------------------------------------------------------- settings

fn settings(scenario: &mut Scenario, swarm: &Swarm, rng: &mut Rng) {
    let bridge = &mut scenario.bridge;
    if rng.chance(40) {
        bridge.greeting = Some("Greet the caller.".into());
    }
    if rng.chance(40) {
        bridge.format = Format::Pcmu;
    }
    // What fails must fail while the world lasts.
    bridge.timeouts.ping_ms = rng.one(&[1_000, 2_000]);
    bridge.timeouts.pong_ms = rng.one(&[2_000, 4_000]);
    bridge.timeouts.dial_ms = 3_000;
    bridge.timeouts.session_created_ms = 3_000;
    bridge.timeouts.session_updated_ms = 3_000;
    bridge.timeouts.first_audio_ms = rng.one(&[3_000, 5_000]);
    bridge.timeouts.clogged_ms = 4_000;
    if swarm.has(FaultClass::Words) {
        bridge.transcription = Some(Transcription { model: "gpt-4o-mini-transcribe".into(), language: None });
    }
    let flags = swarm.level(FaultClass::TurnFlags);
    bridge.vad.create_response = !rng.strikes(flags);
    bridge.vad.interrupt_response = !rng.strikes(flags);
    bridge.barge_in = !(rng.strikes(flags) && rng.chance(30));
    if swarm.has(FaultClass::Functions) {
        functions(scenario, swarm.level(FaultClass::Functions), rng);
    }
    odd_settings(&mut scenario.bridge, swarm.level(FaultClass::Settings), rng);
}

/// Some bridges do not believe the line at first.
fn protection(bridge: &mut CallConfig, rng: &mut Rng) {
    if rng.chance(15) {
        let until = if bridge.greeting.is_some() && rng.chance(70) { Until::Heard } else { Until::Time };
        let longest = if until == Until::Heard { 8_000 } else { 3_000 };
        bridge.greeting_guard = Some(GreetingGuard { until, at_most_ms: rng.ms(200, longest) });
    }
}

/// Some bridges say a word while a function takes its time.
fn filler(bridge: &mut CallConfig, rng: &mut Rng) {
    if !bridge.tools.is_empty() && rng.chance(30) {
        bridge.hold_message = Some(HoldMessage { after_ms: rng.ms(300, 2_500), ..HoldMessage::default() });
    }
}

fn functions(scenario: &mut Scenario, level: Level, rng: &mut Rng) {
    for name in FUNCTIONS {
        let timeout_ms = if rng.strikes(level) { rng.ms(500, 2_000) } else { 15_000 };
        scenario.bridge.tools.push(ToolSpec {
            name: name.into(),
            description: String::new(),
            parameters: serde_json::json!({"type": "object", "properties": {}}),
            timeout_ms,
        });
        let mut tool = ToolScript { name: name.into(), after_ms: rng.ms(0, 3_000), ..ToolScript::default() };
        if timeout_ms < 15_000 && rng.chance(30) {
            tool.never = true;
        } else if rng.strikes(level) {
            tool.error = Some("it is not available".into());
        } else {
            tool.output = Some(rng.one(&["{\"ok\":true}", "", "two rows"]).to_owned());
        }
        scenario.tools.push(tool);
    }
}

fn odd_settings(bridge: &mut CallConfig, level: Level, rng: &mut Rng) {
    if rng.strikes(level) {
        bridge.dialect = Dialect::Beta;
    }
    if rng.strikes(level) {
        bridge.dial = DialWhen::OnStart;
    }
    if rng.strikes(level) {
        bridge.pacing.lead_ms = rng.one(&[200, 400, 1_000, 2_000, 10_000, 540_000]);
    }
    if rng.strikes(level) {
        bridge.pacing.mark_every_ms = rng.one(&[20, 60, 100, 500, 1_000]);
    }
    if rng.strikes(level) {
        bridge.vad.silence_duration_ms = rng.one(&[200, 300, 400, 800, 1_200]);
    }
    if rng.strikes(level) {
        bridge.vad.prefix_padding_ms = rng.one(&[0, 100, 500]);
    }
    if rng.strikes(level) {
        bridge.dtmf.quiet_ms = rng.one(&[300, 800, 3_000]);
    }
    if rng.strikes(level) {
        bridge.dtmf.max_digits = rng.one(&[1, 3, 8]);
    }
    if rng.strikes(level) {
        bridge.dtmf.terminator = '*';
    }
    if rng.strikes(level) {
        bridge.timeouts.media_pause_ms = rng.one(&[200, 400, 1_500]);
    }
    if rng.strikes(level) {
        bridge.timeouts.mark_ms = rng.one(&[1_000, 2_000]);
    }
    if rng.strikes(level) {
        bridge.limits.tools_running = rng.one(&[1, 2]);
    }
}

// ---------------------------------------------------------------------------------------------- the caller

fn a_caller(swarm: &Swarm, rng: &mut Rng, barge_in: bool) -> CallerScript {
    let mut steps = Vec::new();
    if rng.chance(60) {
        steps.push(CallerStep::Waits(rng.ms(100, 2_000)));
    }
    for _ in 0..=rng.below(TURNS_MAX) {
        a_turn_of_the_caller(&mut steps, swarm, rng);
    }
    ends(&mut steps, swarm, rng);
    rubbish(&mut steps, swarm, rng);

    let mut caller = CallerScript {
        steps,
        patience_ms: rng.one(&[2_500, 4_000, 6_000]),
        hang_up_after_ms: Some(rng.one(&[12_000, 15_000, 18_000])),
        ..CallerScript::default()
    };
    let marks = swarm.level(FaultClass::Marks);
    // Without marks it is not known what was heard, so strange ones come where nothing is cut.
    if rng.strikes(marks)
        && !swarm.has(FaultClass::Interruptions)
        && !swarm.has(FaultClass::Noise)
        && !barge_in
    {
        caller.echo_marks = if rng.chance(30) { EchoMarks::Never } else { EchoMarks::Late(rng.ms(20, 600)) };
    }
    if rng.strikes(marks) {
        caller.play_out_ms = rng.one(&[20, 60, 100, 200]);
    }
    if rng.strikes(marks) {
        caller.in_flight_frame = true;
    }
    if rng.strikes(swarm.level(FaultClass::Gaps)) {
        caller.idle = Idle::Dtx;
    }
    if rng.strikes(swarm.level(FaultClass::Jitter)) {
        caller.arrival_jitter_ms = rng.ms(5, 100);
    }
    let opening = swarm.level(FaultClass::Opening);
    if rng.strikes(opening) {
        caller.start_after_ms = rng.ms(20, 1_500);
    }
    if rng.strikes(opening) {
        caller.send_connected = false;
    }
    caller
}

/// What recorded lines differ in, and what no recording shows.
fn a_line(caller: &mut CallerScript, swarm: &Swarm, rng: &mut Rng) {
    if rng.chance(50) {
        caller.idle_noise = rng.one(&[16, 24, 40, 72]);
    }
    if rng.chance(15) {
        caller.first_frame_late_ms = rng.ms(20, 400);
    }
    caller.empty_parameters = rng.chance(70);
    if rng.strikes(swarm.level(FaultClass::Marks)) {
        caller.flushed_after_ms = rng.ms(20, 600);
    }
    if rng.chance(20) {
        caller.dtmf_track = "inbound".into();
    }
}

/// Says something, and does something about what comes back.
fn a_turn_of_the_caller(steps: &mut Vec<CallerStep>, swarm: &Swarm, rng: &mut Rng) {
    let interrupts = swarm.level(FaultClass::Interruptions);
    let gaps = swarm.level(FaultClass::Gaps);
    let keys = swarm.level(FaultClass::Keys);
    if rng.strikes(gaps) {
        steps.push(match rng.below(3) {
            0 => CallerStep::Dtx(true),
            1 => CallerStep::Dtx(false),
            _ => CallerStep::PausesMedia(rng.ms(40, 2_000)),
        });
    }
    if rng.strikes(keys) {
        steps.push(presses(rng));
        if rng.chance(50) {
            steps.push(CallerStep::Waits(rng.ms(50, 1_000)));
        }
    }
    let words = rng.ms(120, 3_000);
    if rng.strikes(keys) {
        steps.push(CallerStep::StartsSaying(words));
        steps.push(CallerStep::Waits(rng.ms(20, 600)));
        steps.push(presses(rng));
        steps.push(CallerStep::Waits(words));
    } else {
        steps.push(CallerStep::Says(words));
    }
    if rng.strikes(interrupts) {
        // The caller goes on: within the sentence, or just when the turn seemed over.
        steps.push(CallerStep::Waits(rng.ms(100, 1_200)));
        steps.push(CallerStep::Says(rng.ms(100, 1_500)));
    }
    if !rng.strikes(interrupts) {
        steps.extend([CallerStep::HearsStart, CallerStep::HearsEnd]);
        return;
    }
    match rng.below(4) {
        0 => steps.push(CallerStep::HearsStart),
        1 => steps.push(CallerStep::HearsFor(rng.ms(20, 5_000))),
        2 => steps.extend([CallerStep::HearsStart, CallerStep::HearsFor(rng.ms(20, 2_000))]),
        _ => steps.push(CallerStep::Waits(rng.ms(0, 3_000))),
    }
    if rng.strikes(keys) {
        steps.push(presses(rng));
    }
}

fn presses(rng: &mut Rng) -> CallerStep {
    const KEYS: [char; 12] = ['1', '2', '3', '4', '5', '6', '7', '8', '9', '0', '*', '#'];
    let count = 1 + rng.below(5);
    let mut keys: String = (0..count).map(|_| rng.one(&KEYS[..10])).collect();
    match rng.below(4) {
        0 => keys.push('#'),
        1 => keys.push('*'),
        _ => {}
    }
    if rng.chance(30) {
        CallerStep::PressesAt { keys, gap_ms: rng.ms(40, 1_800) }
    } else {
        CallerStep::Presses(keys)
    }
}

fn ends(steps: &mut Vec<CallerStep>, swarm: &Swarm, rng: &mut Rng) {
    let rude = swarm.level(FaultClass::RudeEnds);
    if rng.strikes(rude) {
        // At any moment, and nothing after it is done.
        let at = rng.below(steps.len() as u64 + 1) as usize;
        steps.truncate(at);
        steps.push(CallerStep::Waits(rng.ms(0, 1_500)));
    }
    steps.push(if rng.strikes(rude) {
        rng.one(&[
            CallerStep::StopWithoutClose,
            CallerStep::ClosesWithoutStop,
            CallerStep::Drops,
            CallerStep::GoesDark,
            CallerStep::WaitsForClose,
        ])
    } else {
        CallerStep::HangsUp
    });
}

/// Things no caller's end should send, anywhere before the end.
fn rubbish(steps: &mut Vec<CallerStep>, swarm: &Swarm, rng: &mut Rng) {
    let level = swarm.level(FaultClass::CallerRubbish);
    let count = match level {
        Level::Off => 0,
        Level::Mild => 1,
        Level::Wild => 2 + rng.below(4),
    };
    for _ in 0..count {
        let step = match rng.below(11) {
            0 => CallerStep::SendsUnknownEvent,
            1 => CallerStep::SendsBinary(rng.ms(1, 2_000) as usize),
            2 => CallerStep::SendsMediaWithWrongSid,
            3 => CallerStep::SendsBadBase64,
            4 => CallerStep::SendsPing,
            5 => CallerStep::RepeatsStart,
            6 => CallerStep::RepeatsFrame,
            7 => CallerStep::RepeatsMark { name: rng.one(&["1", "1/1/200", "nobody sent this"]).to_owned() },
            8 => CallerStep::SendsRaw("{\"event\":\"media\",\"streamSid\":\"{streamSid}\"}".into()),
            9 => CallerStep::SendsRaw("not json".into()),
            _ => CallerStep::SendsOversized(rng.ms(1_000, 20_000) as usize),
        };
        let at = rng.below(steps.len() as u64) as usize;
        steps.insert(at, step);
    }
}

// ---------------------------------------------------------------------------------------------- the model

fn a_model(swarm: &Swarm, rng: &mut Rng, dialect: Dialect) -> ModelScript {
    let mut model = ModelScript {
        dialect: match dialect {
            Dialect::Ga => Spoken::Ga,
            Dialect::Beta => Spoken::Beta,
        },
        ..ModelScript::default()
    };
    for _ in 0..=rng.below(TURNS_MAX + 1) {
        model.turns.push(a_turn_of_the_model(swarm, rng));
    }
    let words = swarm.level(FaultClass::Words);
    for _ in 0..TURNS_MAX {
        if words == Level::Off {
            break;
        }
        let when = if rng.strikes(words) {
            let late = When::Late(rng.ms(1_000, 4_000));
            rng.one(&[When::Never, When::Fails, late, When::BeforeResponse])
        } else {
            When::Normal
        };
        let text = rng.strikes(words).then(|| rng.one(&["", "Yes.", "What do you mean by that?"]).to_owned());
        model.transcription.push(Written { when, text });
    }
    let noise = swarm.level(FaultClass::Noise);
    model.vad.extra_speech_started = rng.strikes(noise);
    if rng.strikes(noise) {
        model.vad.vad_latency_ms = rng.ms(20, 300);
    }
    for _ in 0..3 {
        if rng.strikes(noise) {
            let does = Happening::FalseSpeech { for_ms: rng.ms(60, 800) };
            model.events.push(TimedEvent { at_ms: rng.ms(0, 10_000), does });
        }
    }
    odd_events(&mut model, swarm.level(FaultClass::ModelRubbish), rng);
    hard_opening(&mut model, swarm.level(FaultClass::Opening), rng);
    leaves(&mut model, swarm.level(FaultClass::ModelLeaves), rng);
    model.events.sort_by_key(|event| event.at_ms);
    model
}

fn a_turn_of_the_model(swarm: &Swarm, rng: &mut Rng) -> Turn {
    let mut turn = Turn::answers(rng.ms(200, 6_000));
    let rhythm = swarm.level(FaultClass::Rhythm);
    if rng.strikes(rhythm) {
        turn.speed = rng.one(&[1.0, 1.5, 3.0, 10.0, 50.0]);
    }
    if rng.strikes(rhythm) {
        turn.first_audio_ms = rng.ms(20, 1_500);
    }
    if rng.strikes(rhythm) {
        turn.delta_ms = rng.one(&[20, 50, 100, 400, 1_000]);
    } else if rng.strikes(rhythm) {
        turn.delta_bytes = Some(rng.one(&[101, 333, 961, 2_401, 4_799]));
    } else if rng.strikes(rhythm) {
        turn.one_delta = true;
    }
    if rng.strikes(rhythm) {
        turn.stall = Some(Pause { after_ms: rng.ms(50, 2_000), for_ms: rng.ms(100, 2_500) });
    }
    let items = swarm.level(FaultClass::Items);
    if rng.strikes(items) {
        turn.answers = None;
        turn.items = (0..2 + rng.below(2)).map(|_| rng.ms(100, 2_000)).collect();
    }
    if rng.strikes(items) {
        turn.trailing_silence_ms = rng.ms(100, 1_000);
    }
    if swarm.has(FaultClass::Items) && rng.chance(5) {
        turn.text_only = true;
    }
    let functions = swarm.level(FaultClass::Functions);
    if rng.strikes(functions) {
        let more = u64::from(rng.chance(30));
        for _ in 0..=more {
            let name = if rng.chance(10) { "unheard_of".to_owned() } else { rng.one(&FUNCTIONS).to_owned() };
            let arguments = rng.one(&["{}", "{\"order\":42}", "", "not json"]).to_owned();
            turn.calls.push(Call { name, arguments, call_id: None });
        }
        if rng.chance(60) {
            turn.answers = None;
            turn.items.clear();
        }
        turn.duplicate_call = rng.chance(10);
    }
    let late = swarm.level(FaultClass::Lateness);
    if rng.strikes(late) {
        turn.created_ms = rng.ms(20, 2_000);
    }
    if rng.strikes(late) {
        turn.late_deltas = rng.below(6) as u32;
    }

    if rng.strikes(swarm.level(FaultClass::Failures)) && rng.chance(60) {
        match rng.below(5) {
            0 => turn.status = Outcome::Failed(an_error(rng)),
            1 => turn.status = Outcome::Incomplete("max_output_tokens".into()),
            2 => turn.status = Outcome::Incomplete("content_filter".into()),
            3 => turn.silent = true,
            _ => turn.error = Some(an_error(rng)),
        }
    }
    if rng.strikes(swarm.level(FaultClass::Silence)) && rng.chance(50) {
        if rng.chance(50) {
            turn.never_created = true;
        } else {
            turn.never_audio = true;
        }
    }
    turn
}

fn an_error(rng: &mut Rng) -> ErrorSpec {
    let code = rng.one(&[None, Some("rate_limit_exceeded"), Some("server_error")]);
    ErrorSpec { code: code.map(str::to_owned), ..ErrorSpec::default() }
}

fn odd_events(model: &mut ModelScript, level: Level, rng: &mut Rng) {
    let count = match level {
        Level::Off => 0,
        Level::Mild => 1,
        Level::Wild => 2 + rng.below(4),
    };
    for _ in 0..count {
        let does = match rng.below(8) {
            0 => Happening::UnknownEvent,
            1 => Happening::Malformed,
            2 => Happening::Binary,
            3 => Happening::Error(an_error(rng)),
            4 => Happening::RateLimits,
            5 => Happening::Ping,
            6 => Happening::DeltaForUnknownResponse,
            _ => Happening::ExtraFields,
        };
        model.events.push(TimedEvent { at_ms: rng.ms(0, 10_000), does });
    }
}

fn hard_opening(model: &mut ModelScript, level: Level, rng: &mut Rng) {
    if rng.strikes(level) {
        model.dial_ms = rng.ms(50, 2_500);
    }
    if rng.strikes(level) {
        model.created_after_ms = rng.ms(0, 2_500);
    }
    if rng.strikes(level) {
        model.updated_after_ms = rng.ms(0, 2_500);
    }
    if !(rng.strikes(level) && rng.chance(30)) {
        return;
    }
    match rng.below(8) {
        0 => model.dial = Dial::Refuses,
        1 => model.dial = Dial::Hangs,
        2 => model.dial = Dial::HangsInUpgrade,
        3 => model.dial = Dial::AnswersHttp(rng.one(&[401, 429, 503])),
        4 => model.opening = Opening::BadKey,
        5 => model.opening = Opening::UnknownModel,
        6 => model.opening = Opening::Silent,
        _ => model.never_updates = true,
    }
}

fn leaves(model: &mut ModelScript, level: Level, rng: &mut Rng) {
    if !rng.strikes(level) {
        return;
    }
    let ms = rng.ms(50, 12_000);
    match rng.below(4) {
        0 => model.drops_after_ms = Some(ms),
        1 => model.goes_dark_after_ms = Some(ms),
        2 => model.close_after = Some(a_close(ms, rng)),
        _ => {
            let turn = rng.below(model.turns.len() as u64) as usize;
            if let Some(turn) = model.turns.get_mut(turn) {
                turn.drop_after_ms = Some(rng.ms(0, 2_000));
            }
        }
    }
}

fn a_close(ms: u64, rng: &mut Rng) -> CloseAfter {
    CloseAfter { ms, code: rng.one(&[1_000, 1_001, 1_011]), reason: String::new() }
}

// ---------------------------------------------------------------------------------------------- the network

fn network(scenario: &mut Scenario, swarm: &Swarm, rng: &mut Rng) {
    let distance = swarm.level(FaultClass::Distance);
    let jitter = swarm.level(FaultClass::Jitter);
    let outages = swarm.level(FaultClass::Outages);
    for leg in [&mut scenario.network.caller, &mut scenario.network.model] {
        if rng.strikes(distance) {
            leg.latency_ms = rng.one(&[5, 60, 100, 150, 250]);
        }
        if rng.strikes(jitter) {
            leg.jitter_ms = rng.one(&[2, 5, 10, 20, 40]);
        }
        outage(leg, outages, rng);
    }
    let cuts = swarm.level(FaultClass::Cuts);
    if rng.strikes(cuts) {
        let at = rng.ms(100, 12_000);
        let leg = if rng.chance(50) { &mut scenario.network.caller } else { &mut scenario.network.model };
        if rng.chance(50) {
            leg.cut_at_ms = Some(at);
        } else {
            leg.blackhole_at_ms = Some(at);
        }
    }
    if rng.strikes(swarm.level(FaultClass::SlowReader)) {
        // Mu-law in base64 and JSON takes about 13,000 bytes a second. With less, playback falls behind without
        // end, and how long a `clear` then takes is no fault of the bridge; with this much a burst takes its time.
        scenario.network.caller.reads_bytes_per_s = Some(rng.one(&[60_000, 120_000, 200_000]));
    }
    tell_apart(scenario);
}

/// Takes away what would hide one hazard behind another: a slow reader's delay behind an outage's, what was lost
/// in the dark behind what was late, one outage's aftermath behind the next one's, late marks behind an idle play-out.
fn tell_apart(scenario: &mut Scenario) {
    let network = &mut scenario.network;
    let slow = network.caller.reads_bytes_per_s.is_some();
    let both = !network.caller.stalls.is_empty() && !network.model.stalls.is_empty();
    for leg in [&mut network.caller, &mut network.model] {
        if slow || leg.blackhole_at_ms.is_some() {
            leg.jitter_ms = 0;
            leg.stalls.clear();
        }
        leg.stalls.truncate(if both { 1 } else { 2 });
    }
    let late = |call: &CallPlan| call.caller.echo_marks != EchoMarks::default();
    if scenario.calls.iter().any(late) {
        scenario.bridge.pacing.lead_ms = scenario.bridge.pacing.lead_ms.max(1_000);
    }
}

fn bytes(scenario: &mut Scenario, level: Level, rng: &mut Rng) {
    let slow = scenario.network.caller.reads_bytes_per_s.is_some();
    for (leg, narrow) in [(&mut scenario.network.caller, !slow), (&mut scenario.network.model, false)] {
        for way in [&mut leg.uplink, &mut leg.downlink] {
            if rng.strikes(level) {
                way.pieces_bytes = Some(rng.one(&[100, 1_000, 5_000]));
            }
            if rng.strikes(level) {
                way.hesitates_percent = rng.one(&[10, 50, 80]);
            }
            // Speech takes 13,000 bytes a second. A queue in front of a slow reader would be as long as both, and how
            // long a model's word waits in front of its line cannot be seen from outside.
            if rng.strikes(level) && narrow {
                way.window_bytes = Some(rng.one(&[16_000, 64_000]));
                way.bytes_per_s = Some(rng.one(&[80_000, 200_000, 400_000]));
            }
        }
    }
    if scenario.network.only_on_pipes().is_some() {
        scenario.backends = vec![Backend::Pipes];
        scenario.purpose = format!("{} There is trouble with single bytes.", scenario.purpose);
    }
}

fn outage(leg: &mut LegConditions, level: Level, rng: &mut Rng) {
    let mut at_ms = 0;
    for _ in 0..3 {
        at_ms += rng.ms(200, 5_000);
        let for_ms = rng.ms(20, 1_500);
        if rng.strikes(level) {
            leg.stalls.push(Stall { at_ms, for_ms });
        }
        at_ms += for_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SEEDS: std::ops::Range<u64> = 1..400;

    #[test]
    fn every_hazard_is_sometimes_off_sometimes_mild_and_sometimes_wild() {
        let levels: BTreeSet<_> = SEEDS.flat_map(|seed| Swarm::draw(Seed(seed)).0).collect();
        assert_eq!(levels.len(), HAZARDS.len() * 3);
    }

    #[test]
    fn what_is_off_does_not_happen() {
        for seed in SEEDS.map(Seed) {
            let (swarm, scenario) = (Swarm::draw(seed), generate(seed));
            let network = &scenario.network;
            if !swarm.has(FaultClass::Outages) {
                assert!(network.caller.stalls.is_empty() && network.model.stalls.is_empty());
            }
            if !swarm.has(FaultClass::Crowd) {
                assert_eq!(scenario.calls.len(), 1);
            }
            if !swarm.has(FaultClass::Bytes) {
                assert_eq!(generate_for(seed, Backend::Pipes), scenario);
            }
            if !swarm.has(FaultClass::Functions) {
                assert!(scenario.tools.is_empty());
                assert!(scenario.calls.iter().all(|c| c.model.turns.iter().all(|t| t.calls.is_empty())));
            }
        }
    }

    #[test]
    fn numbers_are_round() {
        let mut rng = Rng::of(Seed(1), "test");
        for _ in 0..1_000 {
            let ms = rng.ms(20, 5_000);
            assert!((20..=5_000).contains(&ms) && ms.is_multiple_of(10), "{ms}");
        }
    }
}
