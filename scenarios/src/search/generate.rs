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
    /// Requests nobody answers.
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
    /// Marks that come late or never, an ear that gathers.
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
        let mut dice = Rng::of(seed, "swarm");
        // Some worlds are crowded with hazards, some nearly calm.
        let off = 40 + 10 * dice.below(5);
        let level = |dice: &mut Rng| match dice.below(100) {
            n if n < off => Level::Off,
            n if n < off + (100 - off) * 2 / 3 => Level::Mild,
            _ => Level::Wild,
        };
        let all = HAZARDS.iter().map(|(hazard, _)| (*hazard, level(&mut dice))).collect();
        let mut swarm = Self(all);
        if !swarm.allows_rubbish() {
            swarm.0.retain(|(hazard, _)| {
                !matches!(hazard, FaultClass::CallerRubbish | FaultClass::ModelRubbish)
            });
        }
        swarm
    }

    /// A call that fails for its own reasons must not look as if rubbish had ended it, or an error that ends nothing:
    /// whoever only sees the two ends cannot tell.
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

/// The scenario of this seed as this stage plays it: over pipes, with trouble that the others cannot make.
pub fn generate_for(seed: Seed, stage: Backend) -> Scenario {
    let mut scenario = generate(seed);
    if stage == Backend::Pipes {
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
    weather(&mut scenario, &swarm, &mut Rng::of(seed, "weather"));
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
fn hard_functions(scenario: &mut Scenario, level: Level, dice: &mut Rng) {
    let ends = dice.chance(20);
    scenario.bridge.hangup.end_call = ends;
    if dice.chance(30) {
        scenario.bridge.timeouts.tool_after_end_ms = dice.one(&[0, 100, 1_000]);
    }
    let mut endless = false;
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        model.refuses_early_outputs = dice.chance(30);
        for turn in model.turns.iter_mut().filter(|turn| !turn.calls.is_empty()) {
            if dice.strikes(level) {
                turn.done_after_ms = dice.ms(20, 800);
            }
            if dice.chance(12) {
                turn.refuses_outputs = 1 + u32::from(dice.chance(20));
            }
            if ends && dice.chance(30) {
                turn.calls.push(Call { name: END_CALL.into(), arguments: "{}".into(), call_id: None });
            }
            if dice.chance(10) {
                turn.repeat = dice.one(&[2, 3, 6, 30]);
                endless |= turn.repeat > 3;
            }
        }
        model.ignores_tool_choice = endless && dice.chance(40);
    }
    if endless {
        scenario.bridge.limits.same_calls = dice.one(&[1, 2, 5]);
        scenario.bridge.limits.function_rounds = dice.one(&[3, 5, 20]);
        scenario.bridge.timeouts.dead_air_ms = dice.one(&[6_000, 10_000, 60_000]);
    }
}

/// Errors that quote a key and have no code, and ends of responses that never began.
fn own_words(scenario: &mut Scenario, swarm: &Swarm, dice: &mut Rng) {
    let quoted = format!("Incorrect API key provided: {}.", masked(API_KEY));
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        if model.opening == Opening::BadKey && dice.chance(60) {
            model.opening = Opening::ErrorThenClose(Refusal {
                kind: "invalid_request_error".into(),
                code: None,
                message: quoted.clone(),
                close: 3_000,
                reason: dice.chance(50).then(|| quoted.clone()),
            });
        }
        for turn in &mut model.turns {
            if matches!(turn.status, Outcome::Failed(_)) && dice.chance(20) {
                turn.unannounced = true;
            }
        }
        if swarm.has(FaultClass::ModelRubbish) && dice.chance(20) {
            let at_ms = dice.ms(0, 10_000);
            model.events.push(TimedEvent { at_ms, does: Happening::DoneForUnknownResponse });
        }
    }
}

// ---------------------------------------------------------------------------------------------- the service

/// What recorded sessions do now and then, whatever the world is about: silence after the words, words long before
/// their sound, a response a few milliseconds after the turn, limits that are not always told.
fn as_recorded(scenario: &mut Scenario, dice: &mut Rng) {
    let models =
        ["gpt-realtime-2.1", "gpt-realtime-2.1", "gpt-realtime-2", "gpt-realtime", "gpt-realtime-mini"];
    scenario.bridge.model = dice.one(&models).to_owned();
    let writers =
        ["gpt-4o-mini-transcribe", "gpt-realtime-whisper", "gpt-realtime-whisper", "gpt-transcribe"];
    let writer = dice.one(&writers);
    if let Some(transcription) = &mut scenario.bridge.transcription {
        transcription.model = writer.to_owned();
    }
    let usual = (ModelScript::default(), Turn::default());
    for model in scenario.calls.iter_mut().map(|call| &mut call.model) {
        if model.created_after_ms == usual.0.created_after_ms {
            model.created_after_ms = 3 + dice.below(7);
        }
        model.keeps_default_silence = dice.chance(5);
        for turn in &mut model.turns {
            match dice.below(10) {
                0..3 => turn.trailing_silence_ms = dice.ms(1_000, 3_000),
                3 => turn.trailing_silence_ms = dice.ms(20, 1_000),
                _ => {}
            }
            turn.words_out_after = match dice.below(10) {
                0..7 => Some(dice.below(9) as usize),
                7 => Some(1_000),
                _ => None,
            };
            if turn.created_ms == usual.1.created_ms {
                turn.created_ms = 1 + dice.below(12);
            }
            turn.rate_limits = dice.chance(70);
            for call in &mut turn.calls {
                if call.arguments.contains("42") && dice.chance(50) {
                    call.arguments = "{  \n  \"order\": 42  \n}  \n".into();
                }
            }
        }
    }
}

/// What no recording shows is one thing in one world and another in the next: the run after a cancel, above all. Where
/// answers are uneven, so is their beginning.
fn unrecorded(scenario: &mut Scenario, swarm: &Swarm, dice: &mut Rng) {
    let (late, rhythm) = (swarm.level(FaultClass::Lateness), swarm.level(FaultClass::Rhythm));
    for turn in scenario.calls.iter_mut().flat_map(|call| &mut call.model.turns) {
        if dice.strikes(rhythm) {
            turn.burst_ms = dice.one(&[0, 100, 300, 2_000]);
        }
        if dice.strikes(rhythm) {
            turn.first_delta_ms = Some(dice.one(&[20, 100, 188]));
        }
        if dice.strikes(late) {
            turn.late_gap_ms = dice.one(&[0, 1, 20, 60]);
        }
        if dice.strikes(late) {
            // Later, too, than a bridge that gave a silent response up would like to ask for the next one.
            turn.late_done_ms = dice.ms(20, 1_500);
        }
        let items = [CancelledItems::Incomplete, CancelledItems::Completed, CancelledItems::LeftOpen];
        turn.cancelled_items = dice.one(&items);
        turn.uncreated = dice.chance(30);
    }
}

// ---------------------------------------------------------------------------------------------- renewals

fn renewals(scenario: &mut Scenario, level: Level, dice: &mut Rng) {
    if level == Level::Off {
        return;
    }
    // Long enough for the last words, short enough for the calls of a world.
    let expires_after_s = 12 + dice.below(12);
    scenario.bridge.timeouts.before_expiry_ms = 1_000;
    scenario.bridge.renewal = Some(Renewal {
        before_ms: 20_000,
        quiet_ms: dice.one(&[100, 300, 1_000]),
        history_items: dice.one(&[200, 200, 200, 4, 0]),
        ..Renewal::default()
    });
    if dice.chance(70) {
        let model = "gpt-4o-mini-transcribe".into();
        scenario.bridge.transcription.get_or_insert(Transcription { model, language: None });
    }
    for call in &mut scenario.calls {
        call.model.expires_after_s = Some(expires_after_s);
        for _ in 0..3 {
            let mut again =
                ReconnectScript { expires_after_s: Some(expires_after_s + 40), ..ReconnectScript::default() };
            if dice.strikes(level) {
                let dials = [Dial::Refuses, Dial::Hangs, Dial::HangsInUpgrade, Dial::AnswersHttp(503)];
                again.dial = Some(dice.one(&dials));
            } else if dice.strikes(level) {
                again.dial_ms = Some(dice.ms(100, 2_500));
            } else if dice.strikes(level) {
                again.created_after_ms = Some(dice.ms(100, 2_500));
            }
            call.model.again.push(again);
        }
        // Somebody who has finished stays on the line for a while, so that there is something to renew.
        if dice.chance(60) {
            let at = call.caller.steps.len().saturating_sub(1);
            call.caller.steps.insert(at, CallerStep::Waits(dice.ms(2_000, 10_000)));
        }
    }
}

/// Sessions that took over, or were to, are no better than first ones: they are refused, slow, or leave.
fn next_sessions(scenario: &mut Scenario, level: Level, dice: &mut Rng) {
    for again in scenario.calls.iter_mut().flat_map(|call| &mut call.model.again) {
        if again.dial.is_some() || !dice.strikes(level) || dice.chance(50) {
            continue;
        }
        let ms = dice.ms(50, 12_000);
        match dice.below(7) {
            0 => again.drops_after_ms = Some(ms),
            1 => again.goes_dark_after_ms = Some(ms),
            2 | 3 => again.close_after = Some(a_close(ms, dice)),
            4 => again.refuses_update = Some("invalid_value".into()),
            5 => again.never_updates = Some(true),
            _ => again.updated_after_ms = Some(dice.ms(20, 3_000)),
        }
    }
}

/// Ends that nothing else leads to, in one world of twenty: a call that may not last, settings that are refused, audio
/// that nobody reads, a caller's end that goes on sending rubbish.
fn rare_ends(scenario: &mut Scenario, swarm: &Swarm, dice: &mut Rng) {
    let (end, which) = (dice.below(64), dice.below(scenario.calls.len() as u64) as usize);
    let Some(call) = scenario.calls.get_mut(which) else { return };
    match end {
        0 => scenario.bridge.timeouts.call_ms = dice.ms(500, 15_000),
        1 => call.model.refuses_update = Some("invalid_value".into()),
        2 => {
            let format = &mut call.caller.media_format;
            match dice.below(3) {
                0 => format.encoding = "audio/l16".into(),
                1 => format.sample_rate = 16_000,
                _ => format.channels = 2,
            }
        }
        3 if swarm.allows_rubbish() => {
            let limit = dice.below(12);
            scenario.bridge.limits.malformed = limit as u32;
            for n in 0..=limit {
                // Not behind the end of the script.
                let at = dice.below(call.caller.steps.len() as u64) as usize;
                call.caller.steps.insert(at, CallerStep::SendsRaw(n.to_string()));
            }
        }
        _ => {}
    }
}

// ---------------------------------------------------------------------------------------------- settings

fn settings(scenario: &mut Scenario, swarm: &Swarm, dice: &mut Rng) {
    let bridge = &mut scenario.bridge;
    if dice.chance(40) {
        bridge.greeting = Some("Greet the caller.".into());
    }
    if dice.chance(40) {
        bridge.format = Format::Pcmu;
    }
    // What fails must fail while the world lasts.
    bridge.timeouts.ping_ms = dice.one(&[1_000, 2_000]);
    bridge.timeouts.pong_ms = dice.one(&[2_000, 4_000]);
    bridge.timeouts.dial_ms = 3_000;
    bridge.timeouts.session_created_ms = 3_000;
    bridge.timeouts.session_updated_ms = 3_000;
    bridge.timeouts.first_audio_ms = dice.one(&[3_000, 5_000]);
    bridge.timeouts.clogged_ms = 4_000;
    if swarm.has(FaultClass::Words) {
        bridge.transcription = Some(Transcription { model: "gpt-4o-mini-transcribe".into(), language: None });
    }
    let flags = swarm.level(FaultClass::TurnFlags);
    bridge.vad.create_response = !dice.strikes(flags);
    bridge.vad.interrupt_response = !dice.strikes(flags);
    bridge.barge_in = !(dice.strikes(flags) && dice.chance(30));
    if swarm.has(FaultClass::Functions) {
        functions(scenario, swarm.level(FaultClass::Functions), dice);
    }
    odd_settings(&mut scenario.bridge, swarm.level(FaultClass::Settings), dice);
}

/// Some bridges do not believe the line at first.
fn protection(bridge: &mut CallConfig, dice: &mut Rng) {
    if dice.chance(15) {
        let until = if bridge.greeting.is_some() && dice.chance(70) { Until::Heard } else { Until::Time };
        let longest = if until == Until::Heard { 8_000 } else { 3_000 };
        bridge.greeting_guard = Some(GreetingGuard { until, at_most_ms: dice.ms(200, longest) });
    }
}

/// Some bridges say a word while a function takes its time.
fn filler(bridge: &mut CallConfig, dice: &mut Rng) {
    if !bridge.tools.is_empty() && dice.chance(30) {
        bridge.hold_message = Some(HoldMessage { after_ms: dice.ms(300, 2_500), ..HoldMessage::default() });
    }
}

fn functions(scenario: &mut Scenario, level: Level, dice: &mut Rng) {
    for name in FUNCTIONS {
        let timeout_ms = if dice.strikes(level) { dice.ms(500, 2_000) } else { 15_000 };
        scenario.bridge.tools.push(ToolSpec {
            name: name.into(),
            description: String::new(),
            parameters: serde_json::json!({"type": "object", "properties": {}}),
            timeout_ms,
        });
        let mut tool = ToolScript { name: name.into(), after_ms: dice.ms(0, 3_000), ..ToolScript::default() };
        if timeout_ms < 15_000 && dice.chance(30) {
            tool.never = true;
        } else if dice.strikes(level) {
            tool.error = Some("it is not available".into());
        } else {
            tool.output = Some(dice.one(&["{\"ok\":true}", "", "two rows"]).to_owned());
        }
        scenario.tools.push(tool);
    }
}

fn odd_settings(bridge: &mut CallConfig, level: Level, dice: &mut Rng) {
    if dice.strikes(level) {
        bridge.dialect = Dialect::Beta;
    }
    if dice.strikes(level) {
        bridge.dial = DialWhen::OnStart;
    }
    if dice.strikes(level) {
        bridge.pacing.lead_ms = dice.one(&[200, 400, 1_000, 2_000, 10_000, 540_000]);
    }
    if dice.strikes(level) {
        bridge.pacing.mark_every_ms = dice.one(&[20, 60, 100, 500, 1_000]);
    }
    if dice.strikes(level) {
        bridge.vad.silence_duration_ms = dice.one(&[200, 300, 400, 800, 1_200]);
    }
    if dice.strikes(level) {
        bridge.vad.prefix_padding_ms = dice.one(&[0, 100, 500]);
    }
    if dice.strikes(level) {
        bridge.dtmf.quiet_ms = dice.one(&[300, 800, 3_000]);
    }
    if dice.strikes(level) {
        bridge.dtmf.max_digits = dice.one(&[1, 3, 8]);
    }
    if dice.strikes(level) {
        bridge.dtmf.terminator = '*';
    }
    if dice.strikes(level) {
        bridge.timeouts.media_pause_ms = dice.one(&[200, 400, 1_500]);
    }
    if dice.strikes(level) {
        bridge.timeouts.mark_ms = dice.one(&[1_000, 2_000]);
    }
    if dice.strikes(level) {
        bridge.limits.tools_running = dice.one(&[1, 2]);
    }
}

// ---------------------------------------------------------------------------------------------- the caller

fn a_caller(swarm: &Swarm, dice: &mut Rng, barge_in: bool) -> CallerScript {
    let mut steps = Vec::new();
    if dice.chance(60) {
        steps.push(CallerStep::Waits(dice.ms(100, 2_000)));
    }
    for _ in 0..=dice.below(TURNS_MAX) {
        a_turn_of_the_caller(&mut steps, swarm, dice);
    }
    ends(&mut steps, swarm, dice);
    rubbish(&mut steps, swarm, dice);

    let mut caller = CallerScript {
        steps,
        patience_ms: dice.one(&[2_500, 4_000, 6_000]),
        hang_up_after_ms: Some(dice.one(&[12_000, 15_000, 18_000])),
        ..CallerScript::default()
    };
    let marks = swarm.level(FaultClass::Marks);
    // Nobody can say what was heard without marks, so strange ones come where nothing is cut.
    if dice.strikes(marks)
        && !swarm.has(FaultClass::Interruptions)
        && !swarm.has(FaultClass::Noise)
        && !barge_in
    {
        caller.echo_marks =
            if dice.chance(30) { EchoMarks::Never } else { EchoMarks::Late(dice.ms(20, 600)) };
    }
    if dice.strikes(marks) {
        caller.play_out_ms = dice.one(&[20, 60, 100, 200]);
    }
    if dice.strikes(marks) {
        caller.in_flight_frame = true;
    }
    if dice.strikes(swarm.level(FaultClass::Gaps)) {
        caller.idle = Idle::Dtx;
    }
    if dice.strikes(swarm.level(FaultClass::Jitter)) {
        caller.arrival_jitter_ms = dice.ms(5, 100);
    }
    let opening = swarm.level(FaultClass::Opening);
    if dice.strikes(opening) {
        caller.start_after_ms = dice.ms(20, 1_500);
    }
    if dice.strikes(opening) {
        caller.send_connected = false;
    }
    caller
}

/// What recorded lines differ in, and what no recording shows.
fn a_line(caller: &mut CallerScript, swarm: &Swarm, dice: &mut Rng) {
    if dice.chance(50) {
        caller.idle_noise = dice.one(&[16, 24, 40, 72]);
    }
    if dice.chance(15) {
        caller.first_frame_late_ms = dice.ms(20, 400);
    }
    caller.empty_parameters = dice.chance(70);
    if dice.strikes(swarm.level(FaultClass::Marks)) {
        caller.flushed_after_ms = dice.ms(20, 600);
    }
    if dice.chance(20) {
        caller.dtmf_track = "inbound".into();
    }
}

/// Says something, and does something about what comes back.
fn a_turn_of_the_caller(steps: &mut Vec<CallerStep>, swarm: &Swarm, dice: &mut Rng) {
    let interrupts = swarm.level(FaultClass::Interruptions);
    let gaps = swarm.level(FaultClass::Gaps);
    let keys = swarm.level(FaultClass::Keys);
    if dice.strikes(gaps) {
        steps.push(match dice.below(3) {
            0 => CallerStep::Dtx(true),
            1 => CallerStep::Dtx(false),
            _ => CallerStep::PausesMedia(dice.ms(40, 2_000)),
        });
    }
    if dice.strikes(keys) {
        steps.push(presses(dice));
        if dice.chance(50) {
            steps.push(CallerStep::Waits(dice.ms(50, 1_000)));
        }
    }
    let words = dice.ms(120, 3_000);
    if dice.strikes(keys) {
        steps.push(CallerStep::StartsSaying(words));
        steps.push(CallerStep::Waits(dice.ms(20, 600)));
        steps.push(presses(dice));
        steps.push(CallerStep::Waits(words));
    } else {
        steps.push(CallerStep::Says(words));
    }
    if dice.strikes(interrupts) {
        // The caller goes on: within the sentence, or just when the turn seemed over.
        steps.push(CallerStep::Waits(dice.ms(100, 1_200)));
        steps.push(CallerStep::Says(dice.ms(100, 1_500)));
    }
    if !dice.strikes(interrupts) {
        steps.extend([CallerStep::HearsStart, CallerStep::HearsEnd]);
        return;
    }
    match dice.below(4) {
        0 => steps.push(CallerStep::HearsStart),
        1 => steps.push(CallerStep::HearsFor(dice.ms(20, 5_000))),
        2 => steps.extend([CallerStep::HearsStart, CallerStep::HearsFor(dice.ms(20, 2_000))]),
        _ => steps.push(CallerStep::Waits(dice.ms(0, 3_000))),
    }
    if dice.strikes(keys) {
        steps.push(presses(dice));
    }
}

fn presses(dice: &mut Rng) -> CallerStep {
    const KEYS: [char; 12] = ['1', '2', '3', '4', '5', '6', '7', '8', '9', '0', '*', '#'];
    let count = 1 + dice.below(5);
    let mut keys: String = (0..count).map(|_| dice.one(&KEYS[..10])).collect();
    match dice.below(4) {
        0 => keys.push('#'),
        1 => keys.push('*'),
        _ => {}
    }
    if dice.chance(30) {
        CallerStep::PressesAt { keys, gap_ms: dice.ms(40, 1_800) }
    } else {
        CallerStep::Presses(keys)
    }
}

fn ends(steps: &mut Vec<CallerStep>, swarm: &Swarm, dice: &mut Rng) {
    let rude = swarm.level(FaultClass::RudeEnds);
    if dice.strikes(rude) {
        // At any moment, and nothing after it is done.
        let at = dice.below(steps.len() as u64 + 1) as usize;
        steps.truncate(at);
        steps.push(CallerStep::Waits(dice.ms(0, 1_500)));
    }
    steps.push(if dice.strikes(rude) {
        dice.one(&[
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
fn rubbish(steps: &mut Vec<CallerStep>, swarm: &Swarm, dice: &mut Rng) {
    let level = swarm.level(FaultClass::CallerRubbish);
    let count = match level {
        Level::Off => 0,
        Level::Mild => 1,
        Level::Wild => 2 + dice.below(4),
    };
    for _ in 0..count {
        let step = match dice.below(11) {
            0 => CallerStep::SendsUnknownEvent,
            1 => CallerStep::SendsBinary(dice.ms(1, 2_000) as usize),
            2 => CallerStep::SendsMediaWithWrongSid,
            3 => CallerStep::SendsBadBase64,
            4 => CallerStep::SendsPing,
            5 => CallerStep::RepeatsStart,
            6 => CallerStep::RepeatsFrame,
            7 => CallerStep::RepeatsMark { name: dice.one(&["1", "1/1/200", "nobody sent this"]).to_owned() },
            8 => CallerStep::SendsRaw("{\"event\":\"media\",\"streamSid\":\"{streamSid}\"}".into()),
            9 => CallerStep::SendsRaw("not json".into()),
            _ => CallerStep::SendsOversized(dice.ms(1_000, 20_000) as usize),
        };
        let at = dice.below(steps.len() as u64) as usize;
        steps.insert(at, step);
    }
}

// ---------------------------------------------------------------------------------------------- the model

fn a_model(swarm: &Swarm, dice: &mut Rng, dialect: Dialect) -> ModelScript {
    let mut model = ModelScript {
        dialect: match dialect {
            Dialect::Ga => Spoken::Ga,
            Dialect::Beta => Spoken::Beta,
        },
        ..ModelScript::default()
    };
    for _ in 0..=dice.below(TURNS_MAX + 1) {
        model.turns.push(a_turn_of_the_model(swarm, dice));
    }
    let words = swarm.level(FaultClass::Words);
    for _ in 0..TURNS_MAX {
        if words == Level::Off {
            break;
        }
        let when = if dice.strikes(words) {
            let late = When::Late(dice.ms(1_000, 4_000));
            dice.one(&[When::Never, When::Fails, late, When::BeforeResponse])
        } else {
            When::Normal
        };
        let text =
            dice.strikes(words).then(|| dice.one(&["", "Yes.", "What do you mean by that?"]).to_owned());
        model.transcription.push(Written { when, text });
    }
    let noise = swarm.level(FaultClass::Noise);
    model.vad.extra_speech_started = dice.strikes(noise);
    if dice.strikes(noise) {
        model.vad.vad_latency_ms = dice.ms(20, 300);
    }
    for _ in 0..3 {
        if dice.strikes(noise) {
            let does = Happening::FalseSpeech { for_ms: dice.ms(60, 800) };
            model.events.push(TimedEvent { at_ms: dice.ms(0, 10_000), does });
        }
    }
    odd_events(&mut model, swarm.level(FaultClass::ModelRubbish), dice);
    hard_opening(&mut model, swarm.level(FaultClass::Opening), dice);
    leaves(&mut model, swarm.level(FaultClass::ModelLeaves), dice);
    model.events.sort_by_key(|event| event.at_ms);
    model
}

fn a_turn_of_the_model(swarm: &Swarm, dice: &mut Rng) -> Turn {
    let mut turn = Turn::answers(dice.ms(200, 6_000));
    let rhythm = swarm.level(FaultClass::Rhythm);
    if dice.strikes(rhythm) {
        turn.speed = dice.one(&[1.0, 1.5, 3.0, 10.0, 50.0]);
    }
    if dice.strikes(rhythm) {
        turn.first_audio_ms = dice.ms(20, 1_500);
    }
    if dice.strikes(rhythm) {
        turn.delta_ms = dice.one(&[20, 50, 100, 400, 1_000]);
    } else if dice.strikes(rhythm) {
        turn.delta_bytes = Some(dice.one(&[101, 333, 961, 2_401, 4_799]));
    } else if dice.strikes(rhythm) {
        turn.one_delta = true;
    }
    if dice.strikes(rhythm) {
        turn.stall = Some(Pause { after_ms: dice.ms(50, 2_000), for_ms: dice.ms(100, 2_500) });
    }
    let items = swarm.level(FaultClass::Items);
    if dice.strikes(items) {
        turn.answers = None;
        turn.items = (0..2 + dice.below(2)).map(|_| dice.ms(100, 2_000)).collect();
    }
    if dice.strikes(items) {
        turn.trailing_silence_ms = dice.ms(100, 1_000);
    }
    if swarm.has(FaultClass::Items) && dice.chance(5) {
        turn.text_only = true;
    }
    let functions = swarm.level(FaultClass::Functions);
    if dice.strikes(functions) {
        let more = u64::from(dice.chance(30));
        for _ in 0..=more {
            let name =
                if dice.chance(10) { "unheard_of".to_owned() } else { dice.one(&FUNCTIONS).to_owned() };
            let arguments = dice.one(&["{}", "{\"order\":42}", "", "not json"]).to_owned();
            turn.calls.push(Call { name, arguments, call_id: None });
        }
        if dice.chance(60) {
            turn.answers = None;
            turn.items.clear();
        }
        turn.duplicate_call = dice.chance(10);
    }
    let late = swarm.level(FaultClass::Lateness);
    if dice.strikes(late) {
        turn.created_ms = dice.ms(20, 2_000);
    }
    if dice.strikes(late) {
        turn.late_deltas = dice.below(6) as u32;
    }

    if dice.strikes(swarm.level(FaultClass::Failures)) && dice.chance(60) {
        match dice.below(5) {
            0 => turn.status = Outcome::Failed(an_error(dice)),
            1 => turn.status = Outcome::Incomplete("max_output_tokens".into()),
            2 => turn.status = Outcome::Incomplete("content_filter".into()),
            3 => turn.silent = true,
            _ => turn.error = Some(an_error(dice)),
        }
    }
    if dice.strikes(swarm.level(FaultClass::Silence)) && dice.chance(50) {
        if dice.chance(50) {
            turn.never_created = true;
        } else {
            turn.never_audio = true;
        }
    }
    turn
}

fn an_error(dice: &mut Rng) -> ErrorSpec {
    let code = dice.one(&[None, Some("rate_limit_exceeded"), Some("server_error")]);
    ErrorSpec { code: code.map(str::to_owned), ..ErrorSpec::default() }
}

fn odd_events(model: &mut ModelScript, level: Level, dice: &mut Rng) {
    let count = match level {
        Level::Off => 0,
        Level::Mild => 1,
        Level::Wild => 2 + dice.below(4),
    };
    for _ in 0..count {
        let does = match dice.below(8) {
            0 => Happening::UnknownEvent,
            1 => Happening::Malformed,
            2 => Happening::Binary,
            3 => Happening::Error(an_error(dice)),
            4 => Happening::RateLimits,
            5 => Happening::Ping,
            6 => Happening::DeltaForUnknownResponse,
            _ => Happening::ExtraFields,
        };
        model.events.push(TimedEvent { at_ms: dice.ms(0, 10_000), does });
    }
}

fn hard_opening(model: &mut ModelScript, level: Level, dice: &mut Rng) {
    if dice.strikes(level) {
        model.dial_ms = dice.ms(50, 2_500);
    }
    if dice.strikes(level) {
        model.created_after_ms = dice.ms(0, 2_500);
    }
    if dice.strikes(level) {
        model.updated_after_ms = dice.ms(0, 2_500);
    }
    if !(dice.strikes(level) && dice.chance(30)) {
        return;
    }
    match dice.below(8) {
        0 => model.dial = Dial::Refuses,
        1 => model.dial = Dial::Hangs,
        2 => model.dial = Dial::HangsInUpgrade,
        3 => model.dial = Dial::AnswersHttp(dice.one(&[401, 429, 503])),
        4 => model.opening = Opening::BadKey,
        5 => model.opening = Opening::UnknownModel,
        6 => model.opening = Opening::Silent,
        _ => model.never_updates = true,
    }
}

fn leaves(model: &mut ModelScript, level: Level, dice: &mut Rng) {
    if !dice.strikes(level) {
        return;
    }
    let ms = dice.ms(50, 12_000);
    match dice.below(4) {
        0 => model.drops_after_ms = Some(ms),
        1 => model.goes_dark_after_ms = Some(ms),
        2 => model.close_after = Some(a_close(ms, dice)),
        _ => {
            let turn = dice.below(model.turns.len() as u64) as usize;
            if let Some(turn) = model.turns.get_mut(turn) {
                turn.drop_after_ms = Some(dice.ms(0, 2_000));
            }
        }
    }
}

fn a_close(ms: u64, dice: &mut Rng) -> CloseAfter {
    CloseAfter { ms, code: dice.one(&[1_000, 1_001, 1_011]), reason: String::new() }
}

// ---------------------------------------------------------------------------------------------- the weather

fn weather(scenario: &mut Scenario, swarm: &Swarm, dice: &mut Rng) {
    let distance = swarm.level(FaultClass::Distance);
    let jitter = swarm.level(FaultClass::Jitter);
    let outages = swarm.level(FaultClass::Outages);
    for leg in [&mut scenario.weather.caller, &mut scenario.weather.model] {
        if dice.strikes(distance) {
            leg.latency_ms = dice.one(&[5, 60, 100, 150, 250]);
        }
        if dice.strikes(jitter) {
            leg.jitter_ms = dice.one(&[2, 5, 10, 20, 40]);
        }
        outage(leg, outages, dice);
    }
    let cuts = swarm.level(FaultClass::Cuts);
    if dice.strikes(cuts) {
        let at = dice.ms(100, 12_000);
        let leg = if dice.chance(50) { &mut scenario.weather.caller } else { &mut scenario.weather.model };
        if dice.chance(50) {
            leg.cut_at_ms = Some(at);
        } else {
            leg.dark_at_ms = Some(at);
        }
    }
    if dice.strikes(swarm.level(FaultClass::SlowReader)) {
        // Mu-law in base64 and JSON takes about 13,000 bytes a second. With less the ear falls behind without end,
        // and how long a `clear` then takes is nobody's fault; with this much a burst takes its time.
        scenario.weather.caller.reads_bytes_per_s = Some(dice.one(&[60_000, 120_000, 200_000]));
    }
    tell_apart(scenario);
}

/// Takes away what would leave nobody able to tell one hazard from another: a slow reader's delay from an outage's, what
/// was lost in the dark from what was late, one outage's aftermath from the next one's, late marks from an empty ear.
fn tell_apart(scenario: &mut Scenario) {
    let weather = &mut scenario.weather;
    let slow = weather.caller.reads_bytes_per_s.is_some();
    let both = !weather.caller.stalls.is_empty() && !weather.model.stalls.is_empty();
    for leg in [&mut weather.caller, &mut weather.model] {
        if slow || leg.dark_at_ms.is_some() {
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

fn bytes(scenario: &mut Scenario, level: Level, dice: &mut Rng) {
    let slow = scenario.weather.caller.reads_bytes_per_s.is_some();
    for (leg, narrow) in [(&mut scenario.weather.caller, !slow), (&mut scenario.weather.model, false)] {
        for way in [&mut leg.uplink, &mut leg.downlink] {
            if dice.strikes(level) {
                way.pieces_bytes = Some(dice.one(&[100, 1_000, 5_000]));
            }
            if dice.strikes(level) {
                way.hesitates_percent = dice.one(&[10, 50, 80]);
            }
            // Speech takes 13,000 bytes a second. A queue in front of a slow reader would be as long as both, and how
            // long a model's word waits in front of its line nobody can see from outside.
            if dice.strikes(level) && narrow {
                way.window_bytes = Some(dice.one(&[16_000, 64_000]));
                way.bytes_per_s = Some(dice.one(&[80_000, 200_000, 400_000]));
            }
        }
    }
    if scenario.weather.only_on_pipes().is_some() {
        scenario.stages = vec![Backend::Pipes];
        scenario.purpose = format!("{} There is trouble with single bytes.", scenario.purpose);
    }
}

fn outage(leg: &mut LegConditions, level: Level, dice: &mut Rng) {
    let mut at_ms = 0;
    for _ in 0..3 {
        at_ms += dice.ms(200, 5_000);
        let for_ms = dice.ms(20, 1_500);
        if dice.strikes(level) {
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
            let weather = &scenario.weather;
            if !swarm.has(FaultClass::Outages) {
                assert!(weather.caller.stalls.is_empty() && weather.model.stalls.is_empty());
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
        let mut dice = Rng::of(Seed(1), "test");
        for _ in 0..1_000 {
            let ms = dice.ms(20, 5_000);
            assert!((20..=5_000).contains(&ms) && ms.is_multiple_of(10), "{ms}");
        }
    }
}
