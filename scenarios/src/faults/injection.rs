//! For each oracle, a spoiled bridge that it must catch.
//!
//! An oracle nobody has seen fail is decoration. A fault sits between the bridge and the wire on the memory
//! backend and spoils one thing: it drops the `clear`, cuts 200 ms late, swaps two messages. It knows the two
//! vendors' messages and nothing else of the bridge, so it would spoil any bridge. What the wire cannot reach (the
//! transcript, the memory held, a panic) is spoiled in the trace instead.

use crate::base::output::word;
use crate::model::scenario::Scenario;
use crate::model::seed::Seed;
use crate::oracle::audio_attribution::BYTES_PER_MS;
use crate::oracle::{self, Violation};
use crate::sim::memory::{Memory, play_defective, play_spoiled};
use crate::sim::trace::Trace;
use crate::sim::{Act, BridgeOut, Defect, OutputFault, ScenarioRunner as _, Told};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::call::event::CallEvent;
use bridge::call::{Control, Leg};
use mocks::peer::At;
use mocks::record::{CallerObservation, Ending};
use serde_json::{Value, json};
use std::fmt;

/// The seed every fault is tried with.
pub const SEED: Seed = Seed(1);

/// How something is spoiled.
#[derive(Clone, Copy)]
pub enum How {
    /// The messages of the bridge, one call at a time.
    Wire(fn() -> Box<dyn OutputFault>),
    /// What the bridge hears and says, one call at a time.
    Head(fn() -> Box<dyn Defect>),
    /// The trace of a good run.
    Record(fn(Trace) -> Trace),
}

/// One way to be a bad bridge, and who must notice.
#[derive(Clone, Copy)]
pub struct Fault {
    /// What is done, in words.
    pub name: &'static str,
    /// The oracle that must notice.
    pub oracle: &'static str,
    /// The scenario in which it shows: a key of [`ground`].
    pub scenario: &'static str,
    /// How it is done.
    pub how: How,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} in {})", self.name, self.oracle, self.scenario)
    }
}

/// Every fault.
pub fn all() -> Vec<Fault> {
    let wire = |oracle, scenario, name, make| Fault { name, oracle, scenario, how: How::Wire(make) };
    let head = |oracle, scenario, name, make| Fault { name, oracle, scenario, how: How::Head(make) };
    let record = |oracle, scenario, name, spoil| Fault { name, oracle, scenario, how: How::Record(spoil) };
    vec![
        wire("clear_on_barge_in", "barge_in", "drops the clear", || each(|m| m.unless(Message::is_clear))),
        wire("clear_on_barge_in", "barge_in", "clears 200 ms late", || {
            each(|m| if m.is_clear() { m.later(200) } else { m.unspoiled() })
        }),
        wire("clear_on_barge_in", "barge_in", "clears twice", || {
            each(|m| if m.is_clear() { m.times(2) } else { m.unspoiled() })
        }),
        wire("clear_on_barge_in", "turn", "clears when an answer is over", || {
            Box::new(ClearsNothing::default())
        }),
        wire("no_stale_audio", "barge_in", "sends an old message after the clear", || {
            Box::new(Stale::default())
        }),
        wire("truncation_position", "barge_in", "cuts 200 ms late", || each(|m| m.moved_cut(200))),
        wire("truncation_position", "barge_in", "cuts 200 ms early", || each(|m| m.moved_cut(-200))),
        wire("truncation_position", "barge_in", "cuts another item", || each(Message::cut_of_another)),
        wire("truncation_position", "barge_in", "never cuts", || each(|m| m.unless(Message::is_cut))),
        wire("truncation_position", "barge_in", "cuts twice", || {
            each(|m| if m.is_cut() { m.times(2) } else { m.unspoiled() })
        }),
        wire("downlink_intact", "turn", "swaps two media messages", swapped_media),
        wire("downlink_intact", "turn", "drops a media message", || media(400, 1, |_| vec![])),
        wire("downlink_intact", "turn", "sends a media message twice", || media(400, 1, |m| m.times(2))),
        wire("downlink_intact", "turn", "sends noise instead of a voice", || media(400, 1, Message::noise)),
        wire("downlink_intact", "pcmu", "drops a media message of a G.711 session", || {
            media(400, 1, |_| vec![])
        }),
        wire("downlink_intact", "turn", "never sends the end of an answer", || {
            media(1_200, usize::MAX, Message::swallow_media)
        }),
        wire("uplink_intact", "turn", "drops the caller's words", || appends(40, 45, |_| vec![])),
        wire("uplink_intact", "turn", "gives the caller's words twice", || appends(40, 45, |m| m.times(2))),
        wire("uplink_intact", "pcmu", "drops a frame of a G.711 session", || appends(40, 42, |_| vec![])),
        wire("uplink_intact", "turn", "never gives anything", || appends(0, usize::MAX, |_| vec![])),
        wire("pacing", "long", "sends everything at once", || Box::new(Burst::default())),
        wire("pacing", "long", "lets the ear run dry", || Box::new(Starve::default())),
        wire("response_latency", "turn", "holds its audio for 400 ms", || {
            each(|m| if m.out.is_text(Leg::Caller) { m.later(400) } else { m.unspoiled() })
        }),
        wire("no_dead_air", "patient", "never says a word", || each(Message::swallow_media)),
        head("greeting_guard", "protected", "ends the protected window late", || Box::new(LateMarks)),
        head("greeting_guard", "protected_pcmu", "ends the protected window early", || {
            Box::new(Leak::of(3_200, 3_500))
        }),
        wire("greeting_guard", "protected", "never ends the protected window", || {
            appends(0, usize::MAX, Message::silent)
        }),
        head("greeting_guard", "protected_pcmu", "lets a word through the protected window", || {
            Box::new(Leak::of(1_500, 1_800))
        }),
        wire("greeting_guard", "protected_pcmu", "silences a word behind the protected window", || {
            appends(200, 210, Message::silent)
        }),
        head("greeting_guard", "protected_key", "clears at a key in the protected window", || {
            Box::<ClearsAtKeys>::default()
        }),
        head("dtmf_delivered", "keys", "loses a key", || Box::<LosesAKey>::default()),
        wire("dtmf_delivered", "keys", "tells keys twice", || {
            each(|m| if m.is_user_text() { m.times(2) } else { m.unspoiled() })
        }),
        wire("dtmf_delivered", "keys", "tells keys two seconds late", || {
            each(|m| if m.is_user_text() { m.later(2_000) } else { m.unspoiled() })
        }),
        wire("dtmf_delivered", "keys", "tells no keys", || each(|m| m.unless(Message::is_user_text))),
        wire("protocol_valid", "turn", "adds a field Twilio does not know", || {
            each(Message::with_extra_field)
        }),
        wire("protocol_valid", "turn", "misspells an event to the model", || each(Message::misspelt)),
        wire("protocol_valid", "barge_in", "cuts behind the end", || each(|m| m.moved_cut(60_000))),
        wire("single_response", "long", "asks for a response during one", || {
            media(100, 1, |m| m.with_model_event(&json!({"type": "response.create"})))
        }),
        wire("format_confirmed", "turn", "sends audio before the session is ready", || {
            each(Message::with_early_audio)
        }),
        wire("format_confirmed", "turn", "asks for another format", || each(Message::with_other_format)),
        wire("marks_unique", "turn", "gives every mark the same name", || each(Message::with_common_mark)),
        wire("tool_calls_answered", "tool", "never answers a function call", || {
            each(|m| m.unless(Message::is_tool_output))
        }),
        wire("tool_calls_answered", "tool", "answers a function call twice", || {
            each(|m| if m.is_tool_output() { m.times(2) } else { m.unspoiled() })
        }),
        wire("tool_calls_answered", "tool", "never asks the model to go on", || {
            each(|m| m.unless(|m| m.has_type("response.create")))
        }),
        wire(
            "tool_calls_answered",
            "filler",
            "says that it takes a moment, and never asks for the answer",
            || each(|m| m.unless(|m| m.has_type("response.create") && !m.has_instructions())),
        ),
        wire("opening_order", "no_start", "waits for start for ever", || each(|m| m.unless_end(Leg::Caller))),
        wire("teardown", "turn", "never closes the model's connection", || {
            each(|m| m.unless_end(Leg::Model))
        }),
        wire("teardown", "turn", "closes the model's connection late", || {
            each(|m| m.late_end(Leg::Model, 5_000))
        }),
        record("teardown", "turn", "leaves a task behind", |mut trace| {
            trace.leftovers.push("a writer task of call 0".into());
            trace
        }),
        wire("survives_model_error", "error", "falls silent after an error", || each(Message::swallow_media)),
        wire("survives_model_error", "error", "hangs up after an error", || {
            Box::new(HangsUpAt::new(At::ms(2_500)))
        }),
        wire("survives_bad_input", "malformed", "hangs up after a malformed frame", || {
            Box::new(HangsUpAt::new(At::ms(1_500)))
        }),
        record("one_stream_per_call", "owner", "keeps the old stream of a call alive", |mut trace| {
            let until = trace.ended_at;
            for seen in &mut trace.calls[0].caller.observations {
                if let CallerObservation::Ended(Ending::ByPeer { .. }) = seen.what {
                    seen.at = until;
                }
            }
            trace.ended_at = until.plus_ms(1);
            trace
        }),
        head("stream_auth", "signed", "lets everybody in", || Box::new(LetsEverybodyIn)),
        head("stream_auth", "signed", "lets nobody in", || Box::new(LetsNobodyIn)),
        wire("stream_auth", "signed", "keeps a stranger's stream open", || {
            each(|m| m.unless_end(Leg::Caller))
        }),
        head("farewell_heard", "goodbye", "hangs up on the function call", || Box::new(HangsUpOnTheWish)),
        wire("farewell_heard", "second_thought", "hangs up on a caller who spoke first", || {
            each(|m| if m.is_clear() { m.and_close() } else { m.unspoiled() })
        }),
        head("farewell_heard", "goodbye", "never hangs up", || Box::new(NeverHangsUp)),
        head("session_renewal", "answer_at_the_limit", "gives the session up in mid-answer", || {
            Box::<LosesCount>::default()
        }),
        head("session_renewal", "words_at_the_limit", "gives the session up in mid-sentence", || {
            Box::new(DeafToSpeech)
        }),
        head("session_renewal", "renewal", "never renews a session", || Box::new(KnowsNoLimit)),
        wire("session_renewal", "renewal", "forgets what was said", || {
            each(|m| m.unless(|m| m.has_type("conversation.item.create")))
        }),
        head("session_renewal", "renewal", "tells the next session what nobody heard", || {
            Box::new(TellsTheUnheard::default())
        }),
        wire("session_renewal", "renewal", "greets in every session", || {
            in_the_second_session(|nth, m| {
                let greets = nth == 0 && m.is_append();
                if greets { m.with_model_event(&json!({"type": "response.create"})) } else { m.unspoiled() }
            })
        }),
        wire("session_renewal", "renewal", "sets the next session in another way", || {
            in_the_second_session(|_, m| {
                if !m.has_type("session.update") {
                    return m.unspoiled();
                }
                m.changed(Leg::Model, |json| json["session"]["instructions"] = json!("Be somebody else."))
            })
        }),
        wire("uplink_intact", "words_without_a_session", "loses what was said without a session", || {
            in_the_second_session(|nth, m| m.unless(|m| nth < 3 && m.is_append()))
        }),
        record("transcript", "barge_in", "writes down what was never heard", |mut trace| {
            said_in_full(&mut trace);
            trace
        }),
        record("transcript", "two_turns", "writes the lines in the order they came", |mut trace| {
            with_transcript(&mut trace, |lines| lines.reverse());
            trace
        }),
        record("memory_bounded", "turn", "holds a gigabyte", |mut trace| {
            for (_, event) in &mut trace.calls[0].bridge {
                if let CallEvent::Ended { counts, .. } = event {
                    counts.peak_held_bytes = 1 << 30;
                }
            }
            trace
        }),
        record("scenario_expectations", "turn", "panics", |mut trace| {
            trace.panics.push("index out of bounds".into());
            trace
        }),
        record("scenario_expectations", "turn", "never ends", |mut trace| {
            trace.cut = true;
            trace
        }),
        wire("scenario_expectations", "barge_in", "clears once more than wanted", || {
            each(|m| if m.is_clear() { m.times(2) } else { m.unspoiled() })
        }),
    ]
}

/// What the oracle of a fault says to the spoiled run.
///
/// # Panics
/// When the fault names an oracle or a scenario that does not exist.
pub fn run(sabotage: &Fault) -> Vec<Violation> {
    let oracle = oracle::named(sabotage.oracle).expect("a fault names an oracle");
    let scenario = ground(sabotage.scenario).expect("a fault names a scenario");
    (oracle.check)(&play(sabotage, &scenario, SEED))
}

/// Plays any scenario in memory with this fault at work.
pub fn play(sabotage: &Fault, scenario: &Scenario, seed: Seed) -> Trace {
    match sabotage.how {
        How::Wire(make) => play_spoiled(scenario, seed, &|_| make()),
        How::Head(make) => play_defective(scenario, seed, &|_| {}, &|_| make()),
        How::Record(spoil) => spoil(Memory.play(scenario, seed)),
    }
}

/// The fault of this name, in words or as one.
///
/// # Errors
/// When there is none, with the names there are.
pub fn named(name: &str) -> Result<Fault, String> {
    let all = all();
    if let Some(found) = all.iter().find(|one| one.name == name || word(one.name) == name) {
        return Ok(*found);
    }
    let names: Vec<_> = all.iter().map(|one| word(one.name)).collect();
    Err(format!("no fault is called `{name}`; there are {}", names.join(", ")))
}

/// What all oracles say to the run that nobody spoiled.
///
/// # Panics
/// When the fault names a scenario that does not exist.
pub fn run_unspoiled(sabotage: &Fault) -> Vec<Violation> {
    let scenario = ground(sabotage.scenario).expect("a fault names a scenario");
    oracle::judge(&Memory.play(&scenario, SEED))
}

// --------------------------------------------------------------------------------------------- grounds

/// A small scenario in which something can be spoiled.
pub fn ground(name: &str) -> Option<Scenario> {
    let text = GROUNDS.iter().find(|(known, _)| *known == name)?.1;
    let scenario = Scenario::from_toml(&format!("sabotage/{name}"), text);
    Some(scenario.expect("the grounds are part of this file"))
}

/// The names of all grounds.
pub fn grounds() -> impl Iterator<Item = &'static str> {
    GROUNDS.iter().map(|(name, _)| *name)
}

const GROUNDS: &[(&str, &str)] = &[
    (
        "turn",
        r#"
        purpose = "One turn, one answer."
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hangs_up"]
        [expect]
        end = "stopped"
        "#,
    ),
    (
        "pcmu",
        r#"
        purpose = "One turn, one answer, G.711 all the way."
        [bridge]
        format = "pcmu"
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hangs_up"]
        "#,
    ),
    (
        "two_turns",
        r#"
        purpose = "Two turns, two answers, transcribed."
        [bridge]
        transcription = { model = "whisper-1" }
        [[call]]
        caller.steps = [
            { waits = 500 }, { says = 1500 }, "hears_start", "hears_end",
            { says = 1000 }, "hears_start", "hears_end", "hangs_up",
        ]
        "#,
    ),
    (
        "long",
        r#"
        purpose = "One turn and a long answer."
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", { waits = 15000 }, "hangs_up"]
        model.turns = [{ answers = 8000 }]
        "#,
    ),
    (
        "barge_in",
        r#"
        purpose = "The caller interrupts a long answer and hears a short one."
        [[call]]
        caller.steps = [
            { waits = 500 }, { says = 1500 }, "hears_start", { hears_for = 2240 }, { says = 700 },
            "hears_start", "hears_end", "hangs_up",
        ]
        model.turns = [{ answers = 6000 }, { answers = 1500 }]
        [expect]
        end = "stopped"
        clears = 1
        "#,
    ),
    (
        "protected",
        r#"
        purpose = "A protected greeting, and a caller who speaks over it and over its end."
        [bridge]
        greeting = "Greet the caller."
        protection = { until = "heard" }
        [[call]]
        caller.steps = [
            "hears_start", { hears_for = 500 }, { says = 1000 }, { hears_for = 2500 }, { says = 1500 }, "hears_start",
            "hears_end", "hangs_up",
        ]
        model.turns = [{ answers = 3000 }, { answers = 1500 }]
        [expect]
        end = "stopped"
        clears = 0
        "#,
    ),
    (
        "protected_pcmu",
        r#"
        purpose = "The same, G.711 all the way."
        [bridge]
        format = "pcmu"
        greeting = "Greet the caller."
        protection = { until = "heard" }
        [[call]]
        caller.steps = [
            "hears_start", { hears_for = 500 }, { says = 1000 }, { hears_for = 2500 }, { says = 1500 }, "hears_start",
            "hears_end", "hangs_up",
        ]
        model.turns = [{ answers = 3000 }, { answers = 1500 }]
        [expect]
        end = "stopped"
        clears = 0
        "#,
    ),
    (
        "protected_key",
        r#"
        purpose = "A key over a protected greeting."
        [bridge]
        greeting = "Greet the caller."
        protection = { until = "heard" }
        [[call]]
        caller.steps = [
            "hears_start", { hears_for = 500 }, { presses = "5#" }, { hears_total = 4200 }, { waits = 600 }, "hangs_up",
        ]
        model.turns = [{ answers = 3000 }, { answers = 1500 }]
        [expect]
        end = "stopped"
        "#,
    ),
    (
        "patient",
        r#"
        purpose = "A caller who waits a minute for an answer."
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hangs_up"]
        caller.patience_ms = 60000
        "#,
    ),
    (
        "tool",
        r#"
        purpose = "The model calls a function and speaks about it."
        [[bridge.tools]]
        name = "lookup"
        timeout_ms = 1000
        [[tool]]
        name = "lookup"
        after_ms = 200
        output = "42"
        [[call]]
        caller.steps = [
            { waits = 500 }, { says = 1500 }, "hears_start", "hears_end", { waits = 3000 }, "hangs_up",
        ]
        caller.patience_ms = 10000
        model.turns = [{ calls = [{ name = "lookup" }] }, { answers = 1500 }]
        "#,
    ),
    (
        "filler",
        r#"
        purpose = "The model calls a function that takes its time, says so, and speaks about the output."
        [bridge]
        tools = [{ name = "lookup" }]
        filler.after_ms = 1000
        [[tool]]
        name = "lookup"
        after_ms = 4000
        output = "42"
        [[call]]
        caller.steps = [
            { waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hears_start", "hears_end", { waits = 3000 },
            "hangs_up",
        ]
        caller.patience_ms = 10000
        model.turns = [{ calls = [{ name = "lookup" }] }, { answers = 900 }, { answers = 1500 }]
        "#,
    ),
    (
        "keys",
        r#"
        purpose = "Two entries by key, each answered."
        [bridge]
        dtmf.quiet_ms = 800
        [[call]]
        caller.steps = [
            { waits = 500 }, { presses = "12#" }, "hears_start", "hears_end", { presses = "3" }, "hears_start", "hears_end",
            { waits = 2500 }, "hangs_up",
        ]
        "#,
    ),
    (
        "signed",
        r#"
        purpose = "A caller whose stream is the call's, and one whose stream is not."
        [server]
        signed = true
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hangs_up"]
        [[call]]
        at_ms = 500
        caller.credentials = "made_up_token"
        caller.hang_up_after_ms = 20000
        caller.steps = [{ waits = 500 }, { says = 1500 }, "waits_for_close"]
        [expect]
        ends = ["stopped", "unauthenticated"]
        "#,
    ),
    (
        "goodbye",
        r#"
        purpose = "The model says goodbye and ends the call."
        [bridge]
        leaving.end_call = true
        leaving.farewell_ms = 8000
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "waits_for_close"]
        caller.hang_up_after_ms = 40000
        model.turns = [{ answers = 2000, calls = [{ name = "end_call" }] }]
        [expect]
        end = "agent_hung_up"
        "#,
    ),
    (
        "second_thought",
        r#"
        purpose = "The model says goodbye, and the caller has another question."
        [bridge]
        leaving.end_call = true
        [[call]]
        caller.steps = [
            { waits = 500 }, { says = 1500 }, "hears_start", { hears_for = 800 }, { says = 900 }, "hears_start",
            "hears_end", "hangs_up",
        ]
        model.turns = [{ answers = 4000, speed = 6.0, calls = [{ name = "end_call" }] }, { answers = 1500 }]
        [expect]
        end = "stopped"
        "#,
    ),
    (
        "renewal",
        r#"
        purpose = "A session is renewed after an interruption."
        [bridge]
        greeting = "Greet the caller."
        transcription = { model = "whisper-1" }
        timeouts.before_expiry_ms = 9000
        renewal = { before_ms = 15000 }
        [[call]]
        caller.steps = [
            "hears_start", "hears_end", { says = 1000 }, "hears_start", { hears_for = 2000 }, { says = 700 },
            "hears_start", "hears_end", { waits = 10000 }, { says = 1000 }, "hears_start", "hears_end", "hangs_up",
        ]
        model.expires_after_s = 30
        model.again = [{ expires_after_s = 300 }]
        model.turns = [{ answers = 1200 }, { answers = 6000 }, { answers = 1500 }, { answers = 1000 }]
        [expect]
        renewals = 1
        "#,
    ),
    (
        "answer_at_the_limit",
        r#"
        purpose = "A long answer while the session nears its limit."
        [bridge]
        format = "pcmu"
        timeouts.before_expiry_ms = 9000
        renewal = { before_ms = 15000 }
        [[call]]
        caller.steps = [{ waits = 13000 }, { says = 1000 }, "hears_start", "hears_end", { waits = 2000 }, "hangs_up"]
        model.expires_after_s = 35
        model.turns = [{ answers = 8000 }]
        "#,
    ),
    (
        "words_at_the_limit",
        r#"
        purpose = "A long sentence of the caller while the session nears its limit."
        [bridge]
        timeouts.before_expiry_ms = 9000
        renewal = { before_ms = 15000 }
        [[call]]
        caller.steps = [{ waits = 17000 }, { says = 6000 }, "hears_start", "hears_end", { waits = 1000 }, "hangs_up"]
        model.expires_after_s = 35
        "#,
    ),
    (
        "words_without_a_session",
        r#"
        purpose = "The caller speaks while the session is renewed."
        [bridge]
        timeouts.before_expiry_ms = 9000
        renewal = { before_ms = 15000 }
        [[call]]
        caller.steps = [{ waits = 16500 }, { says = 1500 }, "hears_start", "hears_end", { waits = 500 }, "hangs_up"]
        caller.hang_up_after_ms = 40000
        model.expires_after_s = 30
        model.again = [{ dial_ms = 1900, expires_after_s = 300 }]
        "#,
    ),
    (
        "no_start",
        r#"
        purpose = "A stream that never starts."
        [[call]]
        caller.start_after_ms = 60000
        caller.steps = ["hangs_up"]
        "#,
    ),
    (
        "error",
        r#"
        purpose = "An error of the model that ends nothing, before its answer."
        [[call]]
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", "hangs_up"]
        model.events = [{ at_ms = 1000, does = { error = { type = "server_error" } } }]
        "#,
    ),
    (
        "malformed",
        r#"
        purpose = "A malformed frame of the caller."
        [[call]]
        caller.steps = [
            { waits = 500 }, "sends_bad_base64", { says = 1500 }, "hears_start", "hears_end", "hangs_up",
        ]
        "#,
    ),
    (
        "owner",
        r#"
        purpose = "Two streams of one call: the second takes over."
        backends = ["simulated"]
        [[call]]
        call_sid = "CA00000000000000000000000000000001"
        caller.steps = ["waits_for_close"]
        [[call]]
        call_sid = "CA00000000000000000000000000000001"
        at_ms = 3000
        caller.steps = [{ waits = 500 }, { says = 1500 }, "hears_start", "hears_end", { waits = 3000 }, "hangs_up"]
        "#,
    ),
];

// ------------------------------------------------------------------------------------------- faults

/// What is sent instead of one message, each with its delay in microseconds.
type Instead = Vec<(u64, BridgeOut)>;

/// One message of the bridge, on its way.
struct Message {
    out: BridgeOut,
}

impl BridgeOut {
    fn is_text(&self, leg: Leg) -> bool {
        matches!(self, Self::Text(on, _) if *on == leg)
    }
}

impl Message {
    fn json(&self, leg: Leg) -> Option<Value> {
        if let BridgeOut::Text(on, text) = &self.out
            && *on == leg
        {
            return serde_json::from_str(text).ok();
        }
        None
    }

    fn is_event(&self, event: &str) -> bool {
        self.json(Leg::Caller).is_some_and(|json| json["event"] == event)
    }

    fn has_type(&self, kind: &str) -> bool {
        self.json(Leg::Model).is_some_and(|json| json["type"] == kind)
    }

    fn has_instructions(&self) -> bool {
        self.json(Leg::Model).is_some_and(|json| json["response"]["instructions"].is_string())
    }

    fn is_media(&self) -> bool {
        self.is_event("media")
    }

    /// Bytes of audio for the ear in this message.
    fn audio_bytes(&self) -> usize {
        let payload =
            self.json(Leg::Caller).and_then(|json| BASE64.decode(json["media"]["payload"].as_str()?).ok());
        payload.map_or(0, |bytes| bytes.len())
    }

    /// The message, and a second later the end of the stream.
    fn and_close(self) -> Instead {
        vec![(0, self.out), (1_000_000, BridgeOut::Close(Leg::Caller, 1_000))]
    }

    fn is_clear(&self) -> bool {
        self.is_event("clear")
    }

    fn is_append(&self) -> bool {
        self.has_type("input_audio_buffer.append")
    }

    fn is_cut(&self) -> bool {
        self.has_type("conversation.item.truncate")
    }

    fn is_tool_output(&self) -> bool {
        self.json(Leg::Model).is_some_and(|json| json["item"]["type"] == "function_call_output")
    }

    fn is_user_text(&self) -> bool {
        self.json(Leg::Model).is_some_and(|json| json["item"]["role"] == "user")
    }

    fn ends(&self, leg: Leg) -> bool {
        matches!(self.out, BridgeOut::Close(on, _) | BridgeOut::Drop(on) if on == leg)
    }

    fn unspoiled(self) -> Instead {
        vec![(0, self.out)]
    }

    /// Nothing in place of such a message.
    fn unless(self, such: impl Fn(&Self) -> bool) -> Instead {
        if such(&self) { vec![] } else { self.unspoiled() }
    }

    fn later(self, ms: u64) -> Instead {
        vec![(ms * 1_000, self.out)]
    }

    fn times(self, n: usize) -> Instead {
        vec![(0, self.out); n]
    }

    fn swallow_media(self) -> Instead {
        self.unless(Self::is_media)
    }

    fn unless_end(self, leg: Leg) -> Instead {
        self.unless(|m| m.ends(leg))
    }

    fn late_end(self, leg: Leg, ms: u64) -> Instead {
        if self.ends(leg) { self.later(ms) } else { self.unspoiled() }
    }

    /// The message with its JSON changed.
    fn changed(self, leg: Leg, change: impl FnOnce(&mut Value)) -> Instead {
        match self.json(leg) {
            Some(mut json) => {
                change(&mut json);
                vec![(0, BridgeOut::Text(leg, json.to_string()))]
            }
            None => self.unspoiled(),
        }
    }

    fn moved_cut(self, by_ms: i64) -> Instead {
        if !self.is_cut() {
            return self.unspoiled();
        }
        self.changed(Leg::Model, |json| {
            let cut = json["audio_end_ms"].as_i64().unwrap_or(0) + by_ms;
            json["audio_end_ms"] = json!(cut.max(0));
        })
    }

    fn cut_of_another(self) -> Instead {
        if !self.is_cut() {
            return self.unspoiled();
        }
        self.changed(Leg::Model, |json| json["item_id"] = json!("item_of_somebody_else"))
    }

    /// The model is given silence instead.
    fn silent(self) -> Instead {
        self.changed(Leg::Model, |json| {
            let audio = json["audio"].as_str().and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
            // A frame of G.711 is 160 bytes; one of 16-bit audio at 24 kHz is 960, and all its bits are zero.
            let silence = if audio.len().is_multiple_of(960) { 0x00 } else { 0xFF };
            json["audio"] = json!(BASE64.encode(vec![silence; audio.len()]));
        })
    }

    fn noise(self) -> Instead {
        let len = self.audio_bytes();
        self.changed(Leg::Caller, |json| {
            json["media"]["payload"] = json!(BASE64.encode(vec![0x00; len]));
        })
    }

    fn with_extra_field(self) -> Instead {
        if self.is_media() {
            self.changed(Leg::Caller, |json| json["media"]["track"] = json!("outbound"))
        } else {
            self.unspoiled()
        }
    }

    fn misspelt(self) -> Instead {
        if self.is_append() {
            self.changed(Leg::Model, |json| json["type"] = json!("input_audio_bufer.append"))
        } else {
            self.unspoiled()
        }
    }

    fn with_common_mark(self) -> Instead {
        if self.is_event("mark") {
            self.changed(Leg::Caller, |json| json["mark"]["name"] = json!("responsePart"))
        } else {
            self.unspoiled()
        }
    }

    fn with_model_event(self, event: &Value) -> Instead {
        vec![(0, self.out), (0, BridgeOut::Text(Leg::Model, event.to_string()))]
    }

    fn with_early_audio(self) -> Instead {
        if !self.has_type("session.update") {
            return self.unspoiled();
        }
        let audio = BASE64.encode([0; 960]);
        let early = json!({"type": "input_audio_buffer.append", "audio": audio});
        vec![(0, BridgeOut::Text(Leg::Model, early.to_string())), (0, self.out)]
    }

    fn with_other_format(self) -> Instead {
        if !self.has_type("session.update") {
            return self.unspoiled();
        }
        self.changed(Leg::Model, |json| {
            for side in ["input", "output"] {
                json["session"]["audio"][side]["format"] = json!({"type": "audio/pcmu"});
            }
        })
    }
}

/// Spoils each message by itself.
fn each(spoil: impl FnMut(Message) -> Instead + 'static) -> Box<dyn OutputFault> {
    struct Each<F>(F);
    impl<F: FnMut(Message) -> Instead> OutputFault for Each<F> {
        fn spoil(&mut self, out: BridgeOut, _now: At) -> Instead {
            (self.0)(Message { out })
        }
    }
    Box::new(Each(spoil))
}

/// Spoils `times` media messages once `after_ms` of audio have gone, however the bridge slices it.
fn media(
    after_ms: usize,
    times: usize,
    mut spoil: impl FnMut(Message) -> Instead + 'static,
) -> Box<dyn OutputFault> {
    let mut bytes = 0;
    let mut spoiled = 0;
    each(move |message| {
        let len = message.audio_bytes();
        let gone = bytes >= after_ms * BYTES_PER_MS;
        bytes += len;
        if len == 0 || !gone || spoiled == times {
            return message.unspoiled();
        }
        spoiled += 1;
        spoil(message)
    })
}

/// Two media messages change places.
fn swapped_media() -> Box<dyn OutputFault> {
    let mut kept: Option<BridgeOut> = None;
    media(400, 2, move |message| match kept.take() {
        None => {
            kept = Some(message.out);
            vec![]
        }
        Some(first) => vec![(0, message.out), (0, first)],
    })
}

/// Spoils some of the appends, counted from 0.
fn appends(from: usize, to: usize, spoil: fn(Message) -> Instead) -> Box<dyn OutputFault> {
    let mut seen = 0;
    each(move |message| {
        if !message.is_append() {
            return message.unspoiled();
        }
        seen += 1;
        if (from..to).contains(&(seen - 1)) { spoil(message) } else { message.unspoiled() }
    })
}

/// Spoils what is said to the second session of a call; each message with how many appends went before it.
fn in_the_second_session(spoil: fn(usize, Message) -> Instead) -> Box<dyn OutputFault> {
    let (mut sessions, mut appends) = (0, 0);
    each(move |message| {
        sessions += usize::from(message.has_type("session.update"));
        if sessions < 2 {
            return message.unspoiled();
        }
        let before = appends;
        appends += usize::from(message.is_append());
        spoil(before, message)
    })
}

/// Clears an ear that has been empty for a while, once.
#[derive(Default)]
struct ClearsNothing {
    stream: String,
    /// When everything sent has been played.
    quiet_at: At,
    spoke: bool,
    cleared: bool,
}

impl OutputFault for ClearsNothing {
    fn spoil(&mut self, out: BridgeOut, now: At) -> Instead {
        /// Long enough for the last mark to be back, short enough for the caller to be still there.
        const IDLE_MS: u64 = 200;
        let message = Message { out };
        let len = message.audio_bytes();
        if let Some(json) = message.json(Leg::Caller).filter(|_| len > 0) {
            self.stream = json["streamSid"].as_str().unwrap_or_default().to_owned();
            self.spoke = true;
            self.quiet_at = At(self.quiet_at.max(now).0 + len as u64 * 125);
        }
        if !self.spoke || self.cleared || now < self.quiet_at.plus_ms(IDLE_MS) || !message.is_append() {
            return message.unspoiled();
        }
        self.cleared = true;
        let clear = json!({"event": "clear", "streamSid": self.stream});
        vec![(0, message.out), (0, BridgeOut::Text(Leg::Caller, clear.to_string()))]
    }
}

/// Remembers the voice and says a bit of it again after the `clear`.
#[derive(Default)]
struct Stale {
    last: Option<BridgeOut>,
}

impl OutputFault for Stale {
    fn spoil(&mut self, out: BridgeOut, _now: At) -> Instead {
        let message = Message { out };
        if message.is_media() {
            self.last = Some(message.out.clone());
        }
        if let Some(last) = self.last.clone().filter(|_| message.is_clear()) {
            return vec![(0, message.out), (20_000, last)];
        }
        message.unspoiled()
    }
}

/// Gathers the voice for six seconds and lets go of it at once.
#[derive(Default)]
struct Burst {
    until: Option<At>,
}

impl OutputFault for Burst {
    fn spoil(&mut self, out: BridgeOut, now: At) -> Instead {
        const GATHER_MS: u64 = 6_000;
        let message = Message { out };
        if !message.out.is_text(Leg::Caller) {
            return message.unspoiled();
        }
        let until = *self.until.get_or_insert(now.plus_ms(GATHER_MS));
        vec![(until.since(now), message.out)]
    }
}

/// Holds the voice back in the middle, for longer than any lead.
#[derive(Default)]
struct Starve {
    sent: usize,
    since: Option<At>,
}

impl OutputFault for Starve {
    fn spoil(&mut self, out: BridgeOut, now: At) -> Instead {
        const HELD_MS: u64 = 5_000;
        let message = Message { out };
        self.sent += message.audio_bytes();
        if self.sent < 2_000 * BYTES_PER_MS || !message.out.is_text(Leg::Caller) {
            return message.unspoiled();
        }
        let since = *self.since.get_or_insert(now);
        vec![(since.plus_ms(HELD_MS).since(now), message.out)]
    }
}

/// Whoever is turned away comes in.
struct LetsEverybodyIn;

impl Defect for LetsEverybodyIn {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let turned_away = matches!(told, Told::Control(Control::Rejected { .. }));
        vec![(0, Act::Hear(if turned_away { Told::Control(Control::Admitted) } else { told }))]
    }
}

/// Whoever may come in is turned away.
struct LetsNobodyIn;

impl Defect for LetsNobodyIn {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let welcome = told == Told::Control(Control::Admitted);
        let turned_away = Told::Control(Control::Rejected { why: "another account" });
        vec![(0, Act::Hear(if welcome { turned_away } else { told }))]
    }
}

/// The event of a text frame of the caller's end.
fn caller_event(told: &Told) -> Value {
    let Told::Text(Leg::Caller, text) = told else { return Value::Null };
    serde_json::from_str(text).unwrap_or_default()
}

/// Hears of every mark later than it came back.
struct LateMarks;

impl Defect for LateMarks {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        const LATE_US: u64 = 300_000;
        let is_mark = caller_event(&told)["event"] == "mark";
        vec![(if is_mark { LATE_US } else { 0 }, Act::Hear(told))]
    }
}

/// Gives a G.711 session the caller's own bytes between two moments, whatever the bridge made of them.
struct Leak {
    from: At,
    to: At,
    heard: Value,
}

impl Leak {
    fn of(from_ms: u64, to_ms: u64) -> Self {
        Self { from: At::ms(from_ms), to: At::ms(to_ms), heard: Value::Null }
    }
}

impl Defect for Leak {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let event = caller_event(&told);
        if event["event"] == "media" {
            self.heard = event["media"]["payload"].clone();
        }
        vec![(0, Act::Hear(told))]
    }

    fn says(&mut self, out: BridgeOut, now: At) -> Vec<(u64, Act)> {
        let message = Message { out };
        let instead = if message.is_append() && (self.from..self.to).contains(&now) {
            message.changed(Leg::Model, |json| json["audio"] = self.heard.clone())
        } else {
            message.unspoiled()
        };
        instead.into_iter().map(|(delay, out)| (delay, Act::Say(out))).collect()
    }
}

/// Silences the ear at every key.
#[derive(Default)]
struct ClearsAtKeys {
    stream: Value,
}

impl Defect for ClearsAtKeys {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let event = caller_event(&told);
        if !event["streamSid"].is_null() {
            self.stream = event["streamSid"].clone();
        }
        let clear = json!({"event": "clear", "streamSid": self.stream}).to_string();
        let mut acts = vec![(0, Act::Hear(told))];
        if event["event"] == "dtmf" {
            acts.push((0, Act::Say(BridgeOut::Text(Leg::Caller, clear))));
        }
        acts
    }
}

/// Does not hear the second key.
#[derive(Default)]
struct LosesAKey {
    keys: usize,
}

impl Defect for LosesAKey {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let is_key = caller_event(&told)["event"] == "dtmf";
        self.keys += usize::from(is_key);
        if is_key && self.keys == 2 { Vec::new() } else { vec![(0, Act::Hear(told))] }
    }
}

/// Whether this is the model, calling a function of the bridge's own.
fn is_wish(told: &Told) -> bool {
    let Told::Text(Leg::Model, text) = told else { return false };
    let event: Value = serde_json::from_str(text).unwrap_or_default();
    event["type"] == "response.output_item.done" && event["item"]["type"] == "function_call"
}

/// Closes the stream as soon as the model wants the call to end.
struct HangsUpOnTheWish;

impl Defect for HangsUpOnTheWish {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let mut acts = Vec::new();
        if is_wish(&told) {
            acts.push((0, Act::Say(BridgeOut::Close(Leg::Caller, 1_000))));
        }
        acts.push((0, Act::Hear(told)));
        acts
    }
}

/// Does not hear that the model wants the call to end.
struct NeverHangsUp;

impl Defect for NeverHangsUp {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let Told::Text(Leg::Model, text) = &told else { return vec![(0, Act::Hear(told))] };
        let mut event: Value = serde_json::from_str(text).unwrap_or_default();
        if is_wish(&told) {
            return Vec::new();
        }
        if event["type"] == "response.done" {
            event["response"]["output"] = json!([]);
            return vec![(0, Act::Hear(Told::Text(Leg::Model, event.to_string())))];
        }
        vec![(0, Act::Hear(told))]
    }
}

/// The JSON of what is told on this leg.
fn told_on(leg: Leg, told: &Told) -> Option<Value> {
    let Told::Text(on, text) = told else { return None };
    (*on == leg).then(|| serde_json::from_str(text).ok())?
}

/// Plays all but the beginning of an answer without counting it.
#[derive(Default)]
struct LosesCount {
    stream: String,
    /// Characters of base64 that were counted: 10,668 are a second of G.711.
    counted: usize,
}

impl Defect for LosesCount {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        if let Some(stream) =
            told_on(Leg::Caller, &told).and_then(|json| json["streamSid"].as_str().map(String::from))
        {
            self.stream = stream;
        }
        let delta = told_on(Leg::Model, &told)
            .filter(|json| json["type"] == "response.output_audio.delta")
            .and_then(|json| json["delta"].as_str().map(String::from));
        let Some(payload) = delta.filter(|_| self.counted > 10_668) else {
            let delta = told_on(Leg::Model, &told).and_then(|json| json["delta"].as_str().map(str::len));
            self.counted += delta.unwrap_or(0);
            return vec![(0, Act::Hear(told))];
        };
        let media = json!({"event": "media", "streamSid": self.stream, "media": {"payload": payload}});
        vec![(0, Act::Say(BridgeOut::Text(Leg::Caller, media.to_string())))]
    }
}

/// Does not hear that the caller speaks, before it is over.
struct DeafToSpeech;

impl Defect for DeafToSpeech {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let is_speech = told_on(Leg::Model, &told)
            .is_some_and(|json| json["type"] == "input_audio_buffer.speech_started");
        if is_speech { Vec::new() } else { vec![(0, Act::Hear(told))] }
    }
}

/// Does not read when a session ends.
struct KnowsNoLimit;

impl Defect for KnowsNoLimit {
    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        let Some(mut event) = told_on(Leg::Model, &told) else { return vec![(0, Act::Hear(told))] };
        if let Some(session) = event["session"].as_object_mut() {
            session.remove("expires_at");
        }
        vec![(0, Act::Hear(Told::Text(Leg::Model, event.to_string())))]
    }
}

/// Remembers what the agent said whole, and tells the next session that.
#[derive(Default)]
struct TellsTheUnheard {
    said: Vec<String>,
    /// What is being said.
    item: String,
}

impl Defect for TellsTheUnheard {
    fn says(&mut self, out: BridgeOut, _now: At) -> Vec<(u64, Act)> {
        let message = Message { out };
        let Some(item) = message.json(Leg::Model).filter(|json| json["item"]["role"] == "assistant") else {
            return vec![(0, Act::Say(message.out))];
        };
        let heard = item["item"]["content"][0]["text"].as_str().unwrap_or_default().to_owned();
        let whole = self.said.iter().find(|said| said.starts_with(&heard)).unwrap_or(&heard).clone();
        let instead = message.changed(Leg::Model, |json| json["item"]["content"][0]["text"] = json!(whole));
        instead.into_iter().map(|(delay, out)| (delay, Act::Say(out))).collect()
    }

    fn hears(&mut self, told: Told, _now: At) -> Vec<(u64, Act)> {
        if let Some(event) = told_on(Leg::Model, &told)
            && event["type"] == "response.output_audio_transcript.delta"
        {
            let item = event["item_id"].as_str().unwrap_or_default();
            let delta = event["delta"].as_str().unwrap_or_default();
            match self.said.last_mut().filter(|_| self.item == item) {
                Some(said) => said.push_str(delta),
                None => self.said.push(delta.to_owned()),
            }
            item.clone_into(&mut self.item);
        }
        vec![(0, Act::Hear(told))]
    }
}

/// Ends the call at a time, whatever is going on.
struct HangsUpAt {
    at: At,
    done: bool,
}

impl HangsUpAt {
    fn new(at: At) -> Self {
        Self { at, done: false }
    }
}

impl OutputFault for HangsUpAt {
    fn spoil(&mut self, out: BridgeOut, now: At) -> Instead {
        if now < self.at || self.done {
            return vec![(0, out)];
        }
        self.done = true;
        vec![(0, out), (0, BridgeOut::Close(Leg::Caller, 1_011))]
    }
}

// ---------------------------------------------------------------------------------------- spoilt traces

fn with_transcript(trace: &mut Trace, change: impl Fn(&mut Vec<bridge::call::event::Line>)) {
    for (_, event) in &mut trace.calls[0].bridge {
        if let CallEvent::Ended { transcript, .. } = event {
            change(transcript);
        }
    }
}

/// Every line of the agent as the model generated it.
fn said_in_full(trace: &mut Trace) {
    let items: Vec<_> = trace.calls[0].models.iter().flat_map(|m| &m.items).cloned().collect();
    with_transcript(trace, |lines| {
        for line in lines {
            if let Some(item) = items.iter().find(|item| item.id == line.item) {
                line.text.clone_from(&item.transcript);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_saboteur_names_an_oracle_and_a_ground() {
        for sabotage in all() {
            assert!(oracle::named(sabotage.oracle).is_some(), "{sabotage:?}");
            assert!(ground(sabotage.scenario).is_some(), "{sabotage:?}");
        }
    }

    #[test]
    fn a_saboteur_is_found_by_its_words_or_by_one_word() {
        for sabotage in all() {
            assert_eq!(named(&word(sabotage.name)).unwrap().name, sabotage.name);
            assert_eq!(named(sabotage.name).unwrap().name, sabotage.name);
            assert!(!word(sabotage.name).contains([' ', '\'', '"']), "{sabotage:?} needs quotes");
        }
        assert!(named("sings").unwrap_err().contains("drops-the-clear"));
    }

    #[test]
    fn every_oracle_has_a_saboteur() {
        let all = all();
        for oracle in oracle::ALL {
            assert!(all.iter().any(|s| s.oracle == oracle.name), "{}", oracle.name);
        }
    }
}
