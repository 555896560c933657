//! Strategies of proptest for scenarios: callers, models, the network, and whole worlds of them.
//!
//! [`crate::search::generate`] makes worlds in which every oracle can judge, each about something. These are wider and know
//! nothing of that: any step may follow any other, any model may do anything. What must hold in all of them is less,
//! [`SAFETY`], but it must hold without exception. A failing world shrinks as proptest shrinks everything: fewer steps,
//! fewer oddities, shorter times.
//!
//! Behind the feature `proptest`, so that `scn` does not carry it.

use crate::model::backend::Backend;
use crate::model::network::{LegConditions, NetworkConditions, Stall};
use crate::model::scenario::{CallPlan, Scenario, ToolScript};
use bridge::audio::Format;
use bridge::call::settings::{CallConfig, DialWhen, Dialect, ToolSpec};
use mocks::realtime::{
    Call, CancelledItems, CloseAfter, Dial, Dialect as Spoken, ErrorSpec, Happening, ModelScript, Opening,
    Outcome, TimedEvent, Turn,
};
use mocks::twilio::{CallerScript, CallerStep, EchoMarks, Idle};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

/// The oracles that hold in every world of [`scenarios`]. The others ask what the two ends of such a world cannot
/// always tell apart: an end by rubbish from an end by an error, unmarked audio from unheard audio.
pub const SAFETY: &[&str] = &[
    "no_stale_audio",
    "protocol_valid",
    "single_response",
    "format_confirmed",
    "marks_unique",
    "tool_calls_answered",
    "teardown",
    "one_stream_per_call",
    "scenario_expectations",
    "memory_bounded",
];

/// The longest call, ms.
const CALL_MS: u64 = 15_000;
/// The world ends then: the longest call, its slowest failure and the last words after it fit well below.
const LIMIT_MS: u64 = 90_000;
/// The function a bridge may have.
const FUNCTION: &str = "lookup_order";

/// Times up to this many milliseconds, in steps of a frame.
fn ms(most: u64) -> impl Strategy<Value = u64> + Clone {
    (0..=most / 20).prop_map(|frames| frames * 20)
}

/// One in ten has something of this.
fn rarely<T: std::fmt::Debug>(what: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    option::weighted(0.1, what)
}

/// People on the phone who do anything in any order, and media servers with any habits.
pub fn callers() -> impl Strategy<Value = CallerScript> {
    let habits = (rarely(ms(1_500)), rarely(Just(false)), rarely(ms(100)), rarely(Just(Idle::Dtx)));
    let playout = (rarely(ms(200)), any::<bool>(), rarely(marks()), rarely(Just(false)));
    (vec(step(), 0..10), end(), habits, playout).prop_map(|(mut steps, end, habits, playout)| {
        steps.push(end);
        let (start, connected, jitter, idle) = habits;
        let (gathers, in_flight_frame, marks, pong) = playout;
        let usual = CallerScript::default();
        CallerScript {
            steps,
            patience_ms: 4_000,
            hang_up_after_ms: Some(CALL_MS),
            start_after_ms: start.unwrap_or(usual.start_after_ms),
            send_connected: connected.unwrap_or(usual.send_connected),
            arrival_jitter_ms: jitter.unwrap_or(usual.arrival_jitter_ms),
            idle: idle.unwrap_or(usual.idle),
            play_out_ms: gathers.unwrap_or(usual.play_out_ms),
            in_flight_frame,
            echo_marks: marks.unwrap_or(usual.echo_marks),
            pong: pong.unwrap_or(usual.pong),
            ..usual
        }
    })
}

fn marks() -> impl Strategy<Value = EchoMarks> {
    prop_oneof![ms(2_000).prop_map(EchoMarks::Late), Just(EchoMarks::Never)]
}

/// What a person, or a media server, does before the end.
fn step() -> impl Strategy<Value = CallerStep> {
    let ordinary = prop_oneof![
        4 => ms(2_000).prop_map(CallerStep::Waits),
        5 => ms(2_000).prop_map(CallerStep::Says),
        1 => ms(2_000).prop_map(CallerStep::StartsSaying),
        3 => Just(CallerStep::HearsStart),
        3 => ms(3_000).prop_map(CallerStep::HearsFor),
        2 => Just(CallerStep::HearsEnd),
    ];
    let keys = prop_oneof![
        "[0-9*#]{1,6}".prop_map(CallerStep::Presses),
        ("[0-9*#]{1,4}", ms(1_500)).prop_map(|(keys, gap_ms)| CallerStep::PressesAt { keys, gap_ms }),
    ];
    let line =
        prop_oneof![any::<bool>().prop_map(CallerStep::Dtx), ms(1_500).prop_map(CallerStep::PausesMedia),];
    let rubbish = prop_oneof![
        Just(CallerStep::SendsUnknownEvent),
        Just(CallerStep::SendsMediaWithWrongSid),
        Just(CallerStep::SendsBadBase64),
        Just(CallerStep::SendsPing),
        Just(CallerStep::RepeatsStart),
        Just(CallerStep::RepeatsFrame),
        (0usize..2_000).prop_map(CallerStep::SendsBinary),
        (0usize..20_000).prop_map(CallerStep::SendsOversized),
        "\\PC{0,30}".prop_map(CallerStep::SendsRaw),
        "[0-9/]{0,8}".prop_map(|name| CallerStep::RepeatsMark { name }),
    ];
    prop_oneof![18 => ordinary, 3 => keys, 2 => line, 2 => rubbish]
}

/// How a caller's end ends, with and without manners.
fn end() -> impl Strategy<Value = CallerStep> {
    prop_oneof![
        6 => Just(CallerStep::HangsUp),
        1 => Just(CallerStep::StopWithoutClose),
        1 => Just(CallerStep::ClosesWithoutStop),
        1 => Just(CallerStep::Drops),
        1 => Just(CallerStep::GoesDark),
        1 => Just(CallerStep::WaitsForClose),
    ]
}

/// Models that are reached, open, answer and leave in any way.
pub fn models() -> impl Strategy<Value = ModelScript> {
    let events = vec((ms(CALL_MS), happening()), 0..4);
    (vec(turn(), 0..6), events, opening(), leaves(), any::<bool>()).prop_map(
        |(turns, events, opening, leaves, extra_speech_started)| {
            let mut model = ModelScript { turns, ..ModelScript::default() };
            (model.dial, model.opening, model.dial_ms, model.created_after_ms, model.never_updates) = opening;
            (model.drops_after_ms, model.goes_dark_after_ms, model.close_after) = leaves;
            model.vad.extra_speech_started = extra_speech_started;
            model.events = events.into_iter().map(|(at_ms, does)| TimedEvent { at_ms, does }).collect();
            model.events.sort_by_key(|event| event.at_ms);
            model
        },
    )
}

fn opening() -> impl Strategy<Value = (Dial, Opening, u64, u64, bool)> {
    let dial = prop_oneof![
        16 => Just(Dial::Accepts),
        1 => Just(Dial::Refuses),
        1 => Just(Dial::Hangs),
        1 => Just(Dial::HangsInUpgrade),
        1 => select(vec![401, 429, 503]).prop_map(Dial::AnswersHttp),
    ];
    let session = prop_oneof![
        16 => Just(Opening::Normal),
        1 => Just(Opening::BadKey),
        1 => Just(Opening::UnknownModel),
        1 => Just(Opening::Silent),
    ];
    let late = |usual: u64| rarely(ms(2_500)).prop_map(move |late| late.unwrap_or(usual));
    (dial, session, late(0), late(20), proptest::bool::weighted(0.05))
}

fn leaves() -> impl Strategy<Value = (Option<u64>, Option<u64>, Option<CloseAfter>)> {
    let closes = (ms(CALL_MS), select(vec![1_000, 1_001, 1_011]));
    let closes = closes.prop_map(|(ms, code)| CloseAfter { ms, code, reason: String::new() });
    (rarely(ms(CALL_MS)), rarely(ms(CALL_MS)), rarely(closes))
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        ms(1_000).prop_map(|for_ms| Happening::FalseSpeech { for_ms }),
        Just(Happening::UnknownEvent),
        Just(Happening::Malformed),
        Just(Happening::Binary),
        error().prop_map(Happening::Error),
        Just(Happening::RateLimits),
        Just(Happening::Ping),
        Just(Happening::DeltaForUnknownResponse),
        Just(Happening::DoneForUnknownResponse),
        Just(Happening::ExtraFields),
    ]
}

/// An error that is not about any request. No oracle could tell a lie about one from the truth.
fn error() -> impl Strategy<Value = ErrorSpec> {
    select(vec![None, Some("rate_limit_exceeded"), Some("server_error")])
        .prop_map(|code| ErrorSpec { code: code.map(str::to_owned), ..ErrorSpec::default() })
}

/// One answer: how long, in what rhythm, and what is wrong with it.
fn turn() -> impl Strategy<Value = Turn> {
    let rhythm =
        (select(vec![5.0, 1.0, 1.5, 50.0]), rarely(ms(2_000)), rarely(ms(2_000)), rarely(1usize..5_000));
    let wrong = prop_oneof![
        12 => Just(None),
        1 => Just(Some(Wrong::Silent)),
        1 => Just(Some(Wrong::NeverCreated)),
        1 => Just(Some(Wrong::NeverAudio)),
        1 => Just(Some(Wrong::TextOnly)),
        1 => error().prop_map(|error| Some(Wrong::Error(error))),
        1 => error().prop_map(|error| Some(Wrong::Fails(error))),
        1 => Just(Some(Wrong::StopsShort)),
        1 => ms(1_500).prop_map(|ms| Some(Wrong::DropsAfter(ms))),
    ];
    let calls = vec((select(vec![FUNCTION, "unheard_of"]), select(vec!["{}", "", "not json"])), 0..3);
    let calls = rarely((calls, any::<bool>()));
    let items = vec![CancelledItems::Incomplete, CancelledItems::Completed, CancelledItems::LeftOpen];
    let cancel = (0u32..4, select(items), rarely(ms(1_500)), any::<bool>());
    let tail = (rarely(ms(3_000)), option::of(0usize..9), rarely(ms(2_000)));
    (vec(ms(3_000), 0..3), rhythm, (cancel, tail), wrong, calls).prop_map(
        |(items, rhythm, (cancel, tail), wrong, calls)| {
            let (speed, created, first_audio, delta_bytes) = rhythm;
            let usual = Turn::default();
            let mut turn = Turn {
                items,
                speed,
                created_ms: created.unwrap_or(usual.created_ms),
                first_audio_ms: first_audio.unwrap_or(usual.first_audio_ms),
                delta_bytes,
                ..usual
            };
            let late_done;
            (turn.late_deltas, turn.cancelled_items, late_done, turn.uncreated) = cancel;
            turn.late_done_ms = late_done.unwrap_or_default();
            let (silence, burst);
            (silence, turn.words_out_after, burst) = tail;
            turn.trailing_silence_ms = silence.unwrap_or_default();
            turn.burst_ms = burst.unwrap_or(turn.burst_ms);
            if let Some((calls, duplicate)) = calls {
                turn.duplicate_call = duplicate;
                turn.calls = calls
                    .into_iter()
                    .map(|(name, arguments)| Call {
                        name: name.into(),
                        arguments: arguments.into(),
                        call_id: None,
                    })
                    .collect();
            }
            match wrong {
                None => {}
                Some(Wrong::Silent) => turn.silent = true,
                Some(Wrong::NeverCreated) => turn.never_created = true,
                Some(Wrong::NeverAudio) => turn.never_audio = true,
                Some(Wrong::TextOnly) => turn.text_only = true,
                Some(Wrong::Error(error)) => turn.error = Some(error),
                Some(Wrong::Fails(error)) => turn.status = Outcome::Failed(error),
                Some(Wrong::StopsShort) => turn.status = Outcome::Incomplete("max_output_tokens".into()),
                Some(Wrong::DropsAfter(ms)) => turn.drop_after_ms = Some(ms),
            }
            turn
        },
    )
}

/// What may be wrong with an answer.
#[derive(Clone, Debug)]
enum Wrong {
    Silent,
    NeverCreated,
    NeverAudio,
    TextOnly,
    Error(ErrorSpec),
    Fails(ErrorSpec),
    StopsShort,
    DropsAfter(u64),
}

/// Network conditions that every backend can play: long ways, jitter, outages, cuts, a slow reader.
pub fn networks() -> impl Strategy<Value = NetworkConditions> {
    let usual = NetworkConditions::default();
    let reads = rarely(select(vec![200_000, 120_000, 60_000]));
    (leg(usual.caller), leg(usual.model), reads).prop_map(|(mut caller, model, reads)| {
        caller.reads_bytes_per_s = reads;
        NetworkConditions { caller, model }
    })
}

fn leg(usual: LegConditions) -> impl Strategy<Value = LegConditions> {
    // Jitter or outages: with both on one way, what was sent before an interruption may come behind it.
    let uneven = prop_oneof![
        (0u64..100).prop_map(|jitter| (jitter, Vec::new())),
        vec((ms(CALL_MS), ms(2_000)), 0..3).prop_map(|stalls| (0, stalls)),
    ];
    let latency = rarely(select(vec![5, 60, 150, 400]));
    (latency, uneven, rarely(ms(CALL_MS)), rarely(ms(CALL_MS))).prop_map(
        move |(latency, (jitter_ms, stalls), cut_at_ms, blackhole_at_ms)| LegConditions {
            latency_ms: latency.unwrap_or(usual.latency_ms),
            jitter_ms,
            stalls: stalls.into_iter().map(|(at_ms, for_ms)| Stall { at_ms, for_ms }).collect(),
            cut_at_ms,
            blackhole_at_ms,
            ..usual.clone()
        },
    )
}

/// The bridge's settings, with waits short enough for a short world.
fn settings() -> impl Strategy<Value = CallConfig> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let format = select(vec![Format::Pcm24k, Format::Pcmu, Format::Pcma]);
    let pacing = (rarely(select(vec![200, 1_000, 10_000])), rarely(select(vec![20, 60, 1_000])));
    (flags, format, pacing, rarely(Just(Dialect::Beta))).prop_map(
        |(flags, format, (lead, every), dialect)| {
            let mut bridge = CallConfig { format, ..CallConfig::default() };
            let (greets, late_dial, barge_in, creates, interrupts) = flags;
            bridge.greeting = greets.then(|| "Greet the caller.".into());
            bridge.dial = if late_dial { DialWhen::OnStart } else { bridge.dial };
            (bridge.barge_in, bridge.vad.create_response, bridge.vad.interrupt_response) =
                (!barge_in, !creates, !interrupts);
            bridge.dialect = dialect.unwrap_or(bridge.dialect);
            bridge.pacing.lead_ms = lead.unwrap_or(bridge.pacing.lead_ms);
            bridge.pacing.mark_every_ms = every.unwrap_or(bridge.pacing.mark_every_ms);
            let waits = &mut bridge.timeouts;
            (waits.ping_ms, waits.pong_ms, waits.clogged_ms) = (1_000, 2_000, 4_000);
            (waits.dial_ms, waits.session_created_ms, waits.session_updated_ms) = (3_000, 3_000, 3_000);
            waits.first_audio_ms = 4_000;
            bridge
        },
    )
}

/// Whole worlds: one to three calls under any settings over any network.
pub fn scenarios() -> impl Strategy<Value = Scenario> {
    let calls = vec((ms(5_000), callers(), models()), 1..3);
    let tool = option::of((ms(3_000), proptest::bool::weighted(0.8)));
    (settings(), networks(), calls, tool).prop_map(|(bridge, network, calls, tool)| {
        let spoken = match bridge.dialect {
            Dialect::Ga => Spoken::Ga,
            Dialect::Beta => Spoken::Beta,
        };
        let mut scenario = Scenario {
            name: "strategy/world".into(),
            purpose: "Whatever happens, nothing panics and every call ends.".into(),
            // An answer that takes the whole call must not be late.
            budget_ms: CALL_MS,
            backends: Backend::ALL.to_vec(),
            bridge,
            network,
            ..Scenario::default()
        };
        scenario.world.limit_ms = LIMIT_MS;
        for (at_ms, caller, model) in calls {
            let model = ModelScript { dialect: spoken, ..model };
            scenario.calls.push(CallPlan { at_ms, caller, model, ..CallPlan::default() });
        }
        if let Some((after_ms, works)) = tool {
            let (output, error) =
                if works { (Some("{}".into()), None) } else { (None, Some("it is down".into())) };
            scenario.tools.push(ToolScript { name: FUNCTION.into(), after_ms, output, error, never: false });
            scenario.bridge.tools.push(ToolSpec {
                name: FUNCTION.into(),
                description: String::new(),
                parameters: serde_json::json!({"type": "object", "properties": {}}),
                timeout_ms: 2_000,
            });
        }
        scenario
    })
}
