//! Which scenarios can be played against a foreign bridge, and how.
//!
//! A scenario of the catalogue is written for our own bridge in a world that can be told what to do. What it needs is
//! read off it: a world made to order and settings of our own are left out, with the reason; a feature that this
//! bridge does not offer is not offered. The rest is played as it is, but for what no two bridges share: whether the
//! caller is greeted, the names of functions, the words in which a key is told.

use super::capabilities::{Capabilities, Function};
use crate::model::backend::Backend;
use crate::model::scenario::{CallPlan, Expect, Scenario};
use crate::model::seed::Seed;
use crate::sim;
use crate::sim::real::needs_a_made_network;
use bridge::audio::Format;
use bridge::call::settings::{self, CallConfig, ToolSpec};
use mocks::realtime::{Dial, Dialect, Happening, ModelScript, Opening, TimedEvent, Turn};
use mocks::twilio::{CallerScript, CallerStep, EchoMarks, MediaFormat};
use serde_json::Value;

/// "All at once": how far ahead a foreign bridge sends is its own affair.
const NO_PACING_MS: u64 = 540_000;
/// A greeting that a scenario did not reckon with.
const GREETING_MS: u64 = 1_500;
/// How much later everything happens behind such a greeting, ms: it, what comes before it, and the quiet after it.
const GREETED_MS: u64 = GREETING_MS + 1_000;
/// How much later everything happens when the caller has to speak first, ms: the words, and the end of the turn.
const SPOKEN_MS: u64 = 2_000;
/// The settings of our bridge that a scenario may name, because any bridge has something like them. A file that names
/// another is about our bridge.
const COMMON: &[&str] = &["barge_in", "dialect", "format", "greeting", "tools", "vad"];

/// What becomes of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub enum Fit {
    /// It is played.
    Play(Box<Part>),
    /// The bridge does not offer what it is about.
    NotOffered(String),
    /// It cannot be played against a foreign bridge at all.
    LeftOut(String),
}

/// A scenario that is played.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// As it is played.
    pub scenario: Scenario,
    /// Nothing else may be played at the same time: its model connections could not be told from others.
    pub alone: bool,
    /// How long it takes, ms, as simulated.
    pub takes_ms: u64,
}

/// What is asked of any bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// The longest call that is played, ms.
    pub longest_ms: u64,
    /// What neither vendor has been seen to do is played, too.
    pub strict: bool,
}

/// Fits a scenario to a bridge.
pub fn fit(scenario: &Scenario, offer: &Capabilities, demands: Demands) -> Fit {
    if let Some(why) = left_out(scenario) {
        return Fit::LeftOut(why);
    }
    if let Some(why) = unseen(scenario).filter(|_| !demands.strict) {
        return Fit::LeftOut(format!("{why} has never been seen to do it; --strict plays it"));
    }
    if let Some(why) = not_offered(scenario, offer) {
        return Fit::NotOffered(why);
    }
    let fitted = fitted(scenario, offer);
    let at_once = |call: &CallPlan| speaks_at_once(&call.caller) || is_noisy_at_once(&call.model);
    if offer.deaf_at_first && fitted.calls.iter().any(at_once) {
        return Fit::NotOffered("listening while it greets".into());
    }
    let takes_ms = sim::play(Backend::Memory, scenario, Seed(1)).call_ms();
    let longest = takes_ms / scenario.planned(Seed(1)).len().max(1) as u64;
    if longest > demands.longest_ms {
        let (s, most) = (longest / 1_000, demands.longest_ms / 1_000);
        return Fit::LeftOut(format!("takes {s} s in real time; --max-call-seconds is {most} s"));
    }
    let alone = !offer.names_its_calls && (scenario.planned(Seed(1)).len() > 1 || loses_its_model(scenario));
    Fit::Play(Box::new(Part { scenario: fitted, alone, takes_ms }))
}

/// Why a scenario cannot be played against any foreign bridge.
fn left_out(scenario: &Scenario) -> Option<String> {
    if let Some(what) = needs_a_made_network(scenario) {
        return Some(format!("not playable over real sockets: needs {what}"));
    }
    let settings = settings_beside_the_common_ones(&scenario.bridge);
    if !settings.is_empty() {
        return Some(format!("is about settings of the bundled bridge: {}", settings.join(", ")));
    }
    if !scenario.bridge.barge_in {
        return Some("is about a bridge that may not be interrupted".into());
    }
    let server = Scenario::default().server;
    if scenario.server != server {
        return Some("needs to tell the bridge how many calls it may take, or when to stop".into());
    }
    let usual = CallerScript::default();
    let callers = || scenario.calls.iter().map(|call| &call.caller);
    if callers().any(|caller| caller.echo_marks == EchoMarks::Never) {
        return Some("Twilio returns every mark".into());
    }
    if callers().any(|caller| caller.media_format != MediaFormat::default()) {
        return Some("Twilio announces mu-law alone".into());
    }
    if callers().any(|caller| caller.queue_limit_bytes != usual.queue_limit_bytes) {
        return Some("needs a buffer smaller than Twilio's".into());
    }
    let scripted =
        scenario.tools.iter().any(|tool| tool.never || tool.after_ms > 2_000 || tool.error.is_some());
    if scripted {
        return Some("needs functions that do as they are told".into());
    }
    let mut sids: Vec<_> = scenario.calls.iter().filter_map(|call| call.call_sid.as_ref()).collect();
    let named = sids.len();
    sids.sort_unstable();
    sids.dedup();
    if sids.len() < named {
        return Some(
            "two streams of one call at one time: Twilio ends the first before it begins the second".into(),
        );
    }
    None
}

/// Which end has never been seen to do what this scenario makes it do, if one has not.
fn unseen(scenario: &Scenario) -> Option<&'static str> {
    if scenario.calls.iter().any(|call| is_no_twilio(&call.caller)) {
        Some("Twilio")
    } else if scenario.calls.iter().any(|call| is_no_openai(&call.model)) {
        Some("OpenAI")
    } else {
        None
    }
}

/// A caller's end that sends messages twice, too early, of another stream, or late.
fn is_no_twilio(caller: &CallerScript) -> bool {
    let odd = |step: &CallerStep| {
        matches!(
            step,
            CallerStep::RepeatsStart
                | CallerStep::RepeatsFrame
                | CallerStep::RepeatsMark { .. }
                | CallerStep::SendsMediaWithWrongSid
        )
    };
    caller.media_before_start > 0
        || caller.start_repeats > 0
        || matches!(caller.echo_marks, EchoMarks::Late(_))
        || caller.steps.iter().any(odd)
}

/// A model that sends audio of a response it has not announced, calls a function in two items with one id, or says more
/// in one response than its tokens are enough for.
fn is_no_openai(model: &ModelScript) -> bool {
    /// The longest response of the service: 4,096 tokens of 50 ms.
    const LONGEST_MS: u64 = 205_000;
    let unknown = |event: &TimedEvent| matches!(event.does, Happening::DeltaForUnknownResponse);
    let odd = |turn: &Turn| turn.duplicate_call || turn.messages().iter().sum::<u64>() > LONGEST_MS;
    model.events.iter().any(unknown) || model.turns.iter().any(odd)
}

/// The names of settings that differ from their defaults and that not every bridge has.
fn settings_beside_the_common_ones(config: &CallConfig) -> Vec<String> {
    let table = |config: &CallConfig| toml::Table::try_from(config).unwrap_or_default();
    let (ours, usual) = (table(config), table(&CallConfig::default()));
    let differs = |(key, value): (&String, &toml::Value)| usual.get(key) != Some(value);
    let other = |key: &&String| !COMMON.contains(&key.as_str());
    let mut names: Vec<String> =
        ours.iter().filter(|pair| differs(*pair)).map(|(key, _)| key).filter(other).cloned().collect();
    let plain = settings::Vad {
        create_response: config.vad.create_response,
        interrupt_response: config.vad.interrupt_response,
        ..settings::Vad::default()
    };
    if config.vad != plain {
        names.push("vad".into());
    }
    names
}

/// What of a scenario this bridge does not offer.
fn not_offered(scenario: &Scenario, offer: &Capabilities) -> Option<String> {
    let config = &scenario.bridge;
    let wanted = match config.format {
        Format::Pcm24k => None,
        Format::Pcmu => Some("audio/pcmu"),
        Format::Pcma => Some("audio/pcma"),
    };
    let (input, output) = &offer.formats;
    if let Some(wanted) = wanted.filter(|wanted| input != wanted || output != wanted) {
        return Some(format!("{wanted} with the model"));
    }
    if config.dialect == settings::Dialect::Beta && !offer.beta {
        return Some("the retired dialect".into());
    }
    let about_greeting =
        scenario.name.starts_with("greeting/") || scenario.covers.iter().any(|word| word == "greeting");
    if config.greeting.is_some() && !offer.greets && (about_greeting || !opens_with_a_greeting(scenario)) {
        return Some("a greeting".into());
    }
    let calls = || scenario.calls.iter().flat_map(|call| &call.model.turns).flat_map(|turn| &turn.calls);
    if calls().next().is_some() && offer.functions.iter().all(Function::ends_the_call) {
        let none = offer.functions.is_empty();
        return Some(if none { "functions" } else { "functions that do not end the call" }.into());
    }
    let steps = || scenario.calls.iter().flat_map(|call| &call.caller.steps);
    if steps().any(|step| matches!(step, CallerStep::Presses(_) | CallerStep::PressesAt { .. }))
        && !offer.keypad
    {
        return Some("keys handed to the model".into());
    }
    if offer.silence_ms.is_none() {
        // Nothing but the greeting would ever be answered by a server that is told not to listen.
        return Some("turns found by the server".into());
    }
    // A bridge that asks for its answers, or cancels them, itself is played what any bridge is played; what is only
    // about such a bridge is not played to others.
    if !config.vad.create_response && offer.answers_by_itself {
        return Some("answers asked for by the bridge".into());
    }
    if !config.vad.interrupt_response && offer.interrupts_by_itself {
        return Some("interruptions made by the bridge".into());
    }
    None
}

/// It only begins with a greeting, and then goes on with what it is about. Noise that is taken for a turn is timed by
/// that greeting, and its answer would be taken for one to the words said instead of it.
fn opens_with_a_greeting(scenario: &Scenario) -> bool {
    let is_noise = |event: &TimedEvent| matches!(event.does, Happening::FalseSpeech { .. });
    scenario.calls.iter().all(|call| {
        matches!(call.caller.steps.as_slice(), [CallerStep::HearsStart, CallerStep::HearsEnd, _, ..])
            && !call.model.events.iter().any(is_noise)
    })
}

/// It begins quietly: nothing happens in it before a greeting could be over.
fn begins_quietly(caller: &CallerScript, model: &ModelScript) -> bool {
    let usual = ModelScript::default();
    matches!(caller.steps.first(), Some(CallerStep::Waits(_)))
        && caller.connected_after_ms == CallerScript::default().connected_after_ms
        && caller.start_after_ms == 0
        && model.dial == Dial::Accepts
        && model.opening == Opening::Normal
        && model.dial_ms == 0
        && model.created_after_ms == usual.created_after_ms
        && model.updated_after_ms == usual.updated_after_ms
        && model.echoes_format.is_none()
        && model.echoes.is_none()
        && model.refuses_update.is_none()
        && !model.never_updates
}

/// The caller says something before the agent's first words are over.
fn speaks_at_once(caller: &CallerScript) -> bool {
    let is_word = |step: &CallerStep| {
        matches!(
            step,
            CallerStep::Says(_)
                | CallerStep::StartsSaying(_)
                | CallerStep::Plays(_)
                | CallerStep::PlaysTones(_)
                | CallerStep::Presses(_)
                | CallerStep::PressesAt { .. }
        )
    };
    let over =
        caller.steps.iter().position(|step| matches!(step, CallerStep::HearsEnd)).unwrap_or(usize::MAX);
    caller.steps.iter().position(is_word).is_some_and(|word| word < over)
}

/// The model takes noise for speech before its first words are over.
fn is_noisy_at_once(model: &ModelScript) -> bool {
    /// From the settings to the first sound.
    const FIRST_SOUND_MS: u64 = 400;
    let first_words: u64 = model.turns.first().map_or(GREETING_MS, |turn| turn.messages().iter().sum());
    let noise = |event: &TimedEvent| matches!(event.does, Happening::FalseSpeech { .. });
    model.events.iter().any(|event| noise(event) && event.at_ms < first_words + FIRST_SOUND_MS)
}

/// The model's connection ends, or never begins, before the caller leaves.
fn loses_its_model(scenario: &Scenario) -> bool {
    let lost = |model: &ModelScript| {
        model.dial != Dial::Accepts
            || model.opening != Opening::Normal
            || model.close_after.is_some()
            || model.drops_after_ms.is_some()
            || model.goes_dark_after_ms.is_some()
            || model.expires_after_s.is_some()
            || model.refuses_update.is_some()
            || model.never_updates
            || model.echoes_format.is_some()
            || model.echoes.is_some()
            || model.turns.iter().any(|turn| turn.drop_after_ms.is_some() || turn.close_after.is_some())
            || model.events.iter().any(|event| matches!(event.does, Happening::Close { .. }))
    };
    scenario.calls.iter().any(|call| lost(&call.model))
}

/// The scenario as it is played against this bridge, with the tolerance on which it is judged.
fn fitted(scenario: &Scenario, offer: &Capabilities) -> Scenario {
    let mut fitted = scenario.clone();
    let written_for_a_greeting = scenario.bridge.greeting.is_some();
    let mut surprised = false;
    for call in &mut fitted.calls {
        if offer.greets && !written_for_a_greeting {
            call.model.turns.insert(0, Turn::answers(GREETING_MS));
            if begins_quietly(&call.caller, &call.model) {
                call.caller.steps.splice(0..0, [CallerStep::HearsStart, CallerStep::HearsEnd]);
                later(&mut call.model, GREETED_MS);
            } else {
                surprised = true;
            }
        }
        if !offer.greets && written_for_a_greeting {
            // The caller's own first words are answered by what was to be the greeting.
            call.caller.steps.splice(0..0, [CallerStep::Waits(500), CallerStep::Says(1_000)]);
            later(&mut call.model, SPOKEN_MS);
        }
        if offer.beta {
            call.model.dialect = Dialect::Beta;
        }
        rename_functions(&mut call.model, &scenario.bridge.tools, &offer.functions);
    }
    fitted.bridge = tolerance(&scenario.bridge, offer);
    fitted.milestones.clear();
    // A bridge that waits longer for the end of a turn answers later, and that is its own affair.
    let usual_ms = u64::from(settings::Vad::default().silence_duration_ms);
    fitted.budget_ms += offer.silence_ms.unwrap_or(usual_ms).saturating_sub(usual_ms);
    // Which of its own words a bridge uses, and how it gives up, is its own affair. What a caller must hear is not.
    let turns_heard = !surprised && !scenario.name.starts_with("model_failures/");
    fitted.expect = Expect {
        heard_turns_min: scenario.expect.heard_turns_min.filter(|_| turns_heard),
        // Not by name, but whether it is for the bridge to end the call.
        end: scenario.expect.end.clone(),
        ends: scenario.expect.ends.clone(),
        ..Expect::default()
    };
    fitted
}

/// What was to happen by the clock happens so much later.
fn later(model: &mut ModelScript, by_ms: u64) {
    for event in &mut model.events {
        event.at_ms += by_ms;
    }
    if let Some(close) = &mut model.close_after {
        close.ms += by_ms;
    }
    for ms in [&mut model.drops_after_ms, &mut model.goes_dark_after_ms].into_iter().flatten() {
        *ms += by_ms;
    }
    if let Some(s) = &mut model.expires_after_s {
        *s += by_ms.div_ceil(1_000);
    }
}

/// Calls the functions that the bridge has, in the place of `ours`, with arguments they take. What is no function of
/// ours, and what are no arguments, is meant to be so.
fn rename_functions(model: &mut ModelScript, ours: &[ToolSpec], offered: &[Function]) {
    let offered: Vec<_> = offered.iter().filter(|function| !function.ends_the_call()).collect();
    for call in model.turns.iter_mut().flat_map(|turn| &mut turn.calls) {
        let Some(place) = ours.iter().position(|tool| tool.name == call.name) else { continue };
        let Some(function) = offered.get(place % offered.len().max(1)) else { continue };
        if function.name == call.name {
            continue;
        }
        call.name.clone_from(&function.name);
        if serde_json::from_str::<Value>(&call.arguments).is_ok() {
            call.arguments.clone_from(&function.arguments);
        }
    }
}

/// Our bridge's settings as far as they stand for what this bridge was seen to do.
fn tolerance(written: &CallConfig, offer: &Capabilities) -> CallConfig {
    let mut config = CallConfig {
        greeting: offer.greets.then(|| "Greet the caller.".to_owned()),
        format: match offer.formats.1.as_str() {
            "audio/pcmu" => Format::Pcmu,
            "audio/pcma" => Format::Pcma,
            _ => Format::Pcm24k,
        },
        tools: written.tools.clone(),
        ..CallConfig::default()
    };
    config.pacing.lead_ms = NO_PACING_MS;
    config.vad.create_response = offer.answers_by_itself;
    config.vad.interrupt_response = offer.interrupts_by_itself;
    if let Some(ms) = offer.silence_ms {
        config.vad.silence_duration_ms = u32::try_from(ms).unwrap_or(u32::MAX);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::catalogue;

    fn offer() -> Capabilities {
        Capabilities {
            formats: ("audio/pcmu".into(), "audio/pcmu".into()),
            marks: true,
            silence_ms: Some(500),
            answers_by_itself: true,
            interrupts_by_itself: true,
            ..Capabilities::default()
        }
    }

    fn fit_of(name: &str, offer: &Capabilities) -> Fit {
        fit(&catalogue::find(name)[0], offer, Demands { longest_ms: 60_000, strict: false })
    }

    #[track_caller]
    fn part_of(name: &str, offer: &Capabilities) -> Part {
        match fit_of(name, offer) {
            Fit::Play(part) => *part,
            other @ (Fit::NotOffered(_) | Fit::LeftOut(_)) => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_needs_weather_or_our_settings_is_left_out_with_a_reason() {
        for (name, word) in [
            ("network/jitter", "real sockets"),
            ("limits/backlog", "settings of the bundled bridge: limits"),
            ("server/full", "how many calls"),
            ("misbehaviour/start_comes_again", "Twilio has never been seen"),
            ("misbehaviour/a_frame_comes_twice", "Twilio has never been seen"),
            ("misbehaviour/marks_nobody_sent", "Twilio has never been seen"),
            ("misbehaviour/audio_of_an_unknown_response", "OpenAI has never been seen"),
            ("tools/called_twice_with_one_id", "OpenAI has never been seen"),
            ("limits/more_audio_than_twilio_holds", "OpenAI has never been seen"),
            ("misbehaviour/marks_come_late", "Twilio has never been seen"),
            ("tools/never_returns", "do as they are told"),
            ("server/second_stream_of_a_call", "two streams"),
            ("transcription/late", "transcription"),
            ("barge_in/not_allowed", "may not be interrupted"),
        ] {
            let Fit::LeftOut(why) = fit_of(name, &offer()) else {
                panic!("{name}: {:?}", fit_of(name, &offer()))
            };
            assert!(why.contains(word), "{name}: {why}");
        }
    }

    #[test]
    fn what_was_never_seen_is_played_on_demand() {
        let demands = Demands { longest_ms: 60_000, strict: true };
        let functions = vec![Function { name: "lookup_order".into(), ..Function::default() }];
        let offer = Capabilities { functions, ..offer() };
        for name in [
            "misbehaviour/marks_come_late",
            "misbehaviour/a_frame_comes_twice",
            "tools/called_twice_with_one_id",
        ] {
            let fit = fit(&catalogue::find(name)[0], &offer, demands);
            assert!(matches!(fit, Fit::Play(_)), "{name}: {fit:?}");
        }
    }

    #[test]
    fn what_a_bridge_does_not_offer_is_no_failure() {
        let plain = offer();
        for (name, word) in [
            ("greeting/plain", "a greeting"),
            ("barge_in/noise_while_nothing_plays", "a greeting"),
            ("dtmf/one_key", "keys"),
            ("tools/one_call", "functions"),
            ("audio/pcma_model", "audio/pcma"),
            ("turns/beta_dialect", "dialect"),
            ("turns/response_asked_for_by_the_bridge", "asked for by the bridge"),
            ("barge_in/cancelled_by_the_bridge", "interruptions"),
        ] {
            let Fit::NotOffered(what) = fit_of(name, &plain) else {
                panic!("{name}: {:?}", fit_of(name, &plain))
            };
            assert!(what.contains(word), "{name}: {what}");
        }
    }

    #[test]
    fn a_greeting_is_waited_for_or_done_without() {
        let greeting = Capabilities { greets: true, ..offer() };
        let part = part_of("turns/one", &greeting);
        assert_eq!(part.scenario.calls[0].caller.steps[..2], [CallerStep::HearsStart, CallerStep::HearsEnd]);
        assert_eq!(part.scenario.calls[0].model.turns[0], Turn::answers(GREETING_MS));
        let part = part_of("barge_in/mid_answer", &offer());
        assert_eq!(part.scenario.calls[0].caller.steps[1], CallerStep::Says(1_000));
        assert!(part.scenario.bridge.greeting.is_none());
    }

    #[test]
    fn who_waits_longer_for_the_end_of_a_turn_may_answer_later() {
        let patient = Capabilities { silence_ms: Some(800), ..offer() };
        let budgets = [part_of("turns/one", &offer()), part_of("turns/one", &patient)];
        assert_eq!(budgets.map(|part| part.scenario.budget_ms), [1_200, 1_500]);
    }

    #[test]
    fn who_is_deaf_while_it_greets_is_not_spoken_over() {
        let deaf = Capabilities { greets: true, deaf_at_first: true, ..offer() };
        let name = "greeting/interrupted";
        assert_eq!(fit_of(name, &deaf), Fit::NotOffered("listening while it greets".into()));
        let noise = "barge_in/in_the_first_frame";
        assert_eq!(fit_of(noise, &deaf), Fit::NotOffered("listening while it greets".into()));
        part_of("turns/one", &deaf);
    }

    #[test]
    fn functions_are_called_by_the_names_they_have() {
        let function = |name: &str| Function { name: name.into(), arguments: r#"{"city":"example"}"#.into() };
        let functions = ["end_call", "weather", "time"].map(function).to_vec();
        let offer = Capabilities { functions, ..offer() };
        let calls = |name: &str| -> Vec<(String, String)> {
            let part = part_of(name, &offer);
            let calls = part.scenario.calls[0].model.turns.iter().flat_map(|turn| &turn.calls);
            calls.map(|call| (call.name.clone(), call.arguments.clone())).collect()
        };
        let city = |name: &str| (name.to_owned(), r#"{"city":"example"}"#.to_owned());
        assert_eq!(calls("tools/chain"), ["weather", "time"].map(city));
        assert_eq!(calls("tools/unknown_function")[0].0, "open_the_pod_bay_doors");
        let [(name, arguments)] = &calls("tools/invalid_arguments")[..] else { panic!("one call") };
        assert_eq!(name, "weather");
        assert!(serde_json::from_str::<Value>(arguments).is_err(), "{arguments}");

        let leaving = Capabilities { functions: vec![function("end_call")], ..offer.clone() };
        let Fit::NotOffered(what) = fit_of("tools/one_call", &leaving) else { panic!("it would hang up") };
        assert!(what.contains("do not end the call"), "{what}");
    }

    #[test]
    fn who_does_not_name_his_calls_is_played_alone_where_models_are_lost() {
        assert!(part_of("model_failures/drops_mid_answer", &offer()).alone);
        assert!(!part_of("turns/one", &offer()).alone);
        let naming = Capabilities { names_its_calls: true, ..offer() };
        assert!(!part_of("model_failures/drops_mid_answer", &naming).alone);
    }
}
