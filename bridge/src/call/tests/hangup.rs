//! The model ends the call, or puts the caller through.

use super::*;
use crate::call::settings::Person;

fn leaving(config: &mut CallConfig) {
    config.hangup.end_call = true;
    config.hangup.transfer = vec![Person { name: "desk".into(), number: "+14155550100".into() }];
}

fn calls(t: &mut Bench, response: &str, call_id: &str, name: &str, arguments: &str) {
    let item = serde_json::json!({"type": "function_call", "status": "completed", "call_id": call_id, "name": name,
        "arguments": arguments});
    t.model(
        &serde_json::json!({"type": "response.output_item.done", "response_id": response, "item": item})
            .to_string(),
    );
}

fn tool(t: &mut Bench, call_id: &str, output: Result<&str, &str>) {
    let output = output.map(str::to_owned).map_err(str::to_owned);
    t.call.handle_tool(ToolResult { call_id: call_id.into(), output }, t.now());
    t.drain();
}

/// The agent says goodbye for a second and ends the call.
fn goodbye() -> Bench {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 1_000);
    calls(&mut t, "r1", "call_1", "end_call", "");
    t.response_done("r1", "completed");
    t
}

const NOT_DONE: &str = r#"output call_1 {"error":"not done: the caller spoke first, and the call goes on"}"#;

#[test]
fn who_lists_nobody_offers_no_transfer() {
    let mut config = CallConfig::default();
    let ways = |config: &CallConfig| {
        ["end_call", "transfer_call"].map(|name| crate::call::hangup::way(name, &config.hangup).is_some())
    };
    assert_eq!(ways(&config), [false, false]);
    leaving(&mut config);
    assert_eq!(ways(&config), [true, true]);
}

#[test]
fn the_farewell_is_heard_to_its_end_before_the_call_is_ended() {
    let mut t = goodbye();
    t.expect_quiet();
    t.advance(999);
    t.expect_quiet();
    t.advance(1);
    t.expect("run call_1 end_call {}");
    tool(&mut t, "call_1", Ok("{}"));
    t.expect("output call_1 {}");
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1000), reason: String::new() });
    t.leg(Leg::Model, LegChange::Closed { code: Some(1000), reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::AgentHungUp));
}

#[test]
fn nobody_says_that_it_takes_a_moment_while_the_call_is_being_ended() {
    let mut t = Bench::live_with(|config| {
        with_filler(config);
        leaving(config);
        config.hangup.farewell_ms = 3_000;
    });
    t.response_begins("r1");
    t.model_says("r1", "item_7", 200);
    t.model(CALL);
    calls(&mut t, "r1", "call_2", "end_call", "");
    t.response_done("r1", "completed");
    t.sent.clear();
    t.advance(2_999);
    t.expect_quiet();
    t.advance(1);
    t.expect("run call_2 end_call {}");
    t.advance(2_000);
    t.expect_quiet();
}

#[test]
fn a_caller_who_speaks_first_keeps_the_call() {
    let mut t = goodbye();
    t.advance(500);
    t.model_detects_speech();
    t.expect("clear");
    t.expect("truncate item_7 500");
    t.expect(NOT_DONE);
    t.advance(30_000);
    assert!(t.sent.iter().all(|sent| !matches!(sent, Transmit::RunTool { .. })), "for good");
}

#[test]
fn a_key_press_keeps_the_call_too_even_when_only_the_last_mark_is_missing() {
    let mut t = goodbye();
    t.deaf = true;
    t.advance(1_050);
    t.twilio(r#"{"event":"dtmf","dtmf":{"digit":"5"},"streamSid":"MZ1"}"#);
    while let Some(next) = t.next() {
        if next == NOT_DONE {
            return;
        }
    }
    panic!("the function was not answered");
}

#[test]
fn marks_that_never_come_back_do_not_keep_the_call_for_ever() {
    let mut t = goodbye();
    t.deaf = true;
    t.advance(20_000);
    t.expect("run call_1 end_call {}");
}

#[test]
fn the_limit_ends_a_call_whose_farewell_has_no_end() {
    let mut t = Bench::live_with(|config| {
        leaving(config);
        config.hangup.farewell_ms = 4_000;
    });
    t.response_begins("r1");
    t.model_says("r1", "item_7", 60_000);
    calls(&mut t, "r1", "call_1", "end_call", "{}");
    t.advance(3_999);
    t.expect_quiet();
    t.advance(1);
    t.expect("run call_1 end_call {}");
}

#[test]
fn a_model_that_ends_the_call_without_a_word_is_told_to_say_goodbye() {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "end_call", "{}");
    t.expect_quiet();
    t.response_done("r1", "completed");
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.model_says("r2", "item_8", 600);
    t.response_done("r2", "completed");
    t.expect_quiet();
    t.advance(600);
    t.expect("run call_1 end_call {}");
}

#[test]
fn a_farewell_that_fails_ends_the_call_without_one() {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "end_call", "{}");
    t.response_done("r1", "completed");
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.response_done("r2", "failed");
    t.expect("run call_1 end_call {}");
}

#[test]
fn without_a_farewell_in_the_settings_the_call_ends_as_it_is() {
    let mut t = Bench::live_with(|config| {
        leaving(config);
        config.hangup.farewell = None;
    });
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "end_call", "{}");
    t.response_done("r1", "completed");
    t.expect("run call_1 end_call {}");
}

#[test]
fn the_number_is_the_operators_and_a_name_nobody_gave_is_refused() {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 200);
    calls(&mut t, "r1", "call_1", "transfer_call", r#"{"to":"+19005550000"}"#);
    calls(&mut t, "r1", "call_2", "transfer_call", r#"{"to":"desk","number":"+19005550000"}"#);
    t.response_done("r1", "completed");
    t.expect(r#"output call_1 {"error":"there is nobody of that name to put the caller through to"}"#);
    t.expect("create 1"); // somebody has to say that the first did not work
    t.requested_response_begins("r2", 1);
    t.model_says("r2", "item_8", 200);
    t.response_done("r2", "completed");
    t.advance(400);
    t.expect(r#"run call_2 transfer_call {"to":"desk","number":"+14155550100"}"#);
}

#[test]
fn a_transfer_that_fails_is_told_to_the_model_and_the_call_goes_on() {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 200);
    calls(&mut t, "r1", "call_1", "transfer_call", r#"{"to":"desk"}"#);
    t.response_done("r1", "completed");
    t.advance(200);
    t.expect(r#"run call_1 transfer_call {"to":"desk","number":"+14155550100"}"#);
    tool(&mut t, "call_1", Err("busy"));
    t.expect(r#"output call_1 {"error":"busy"}"#);
    t.expect("create 1");
    assert_eq!(t.end_reason(), None);
}

#[test]
fn a_hang_up_that_fails_or_hangs_closes_the_stream_all_the_same() {
    let mut t = goodbye();
    t.advance(1_000);
    t.expect("run call_1 end_call {}");
    tool(&mut t, "call_1", Err("no"));
    t.expect(r#"output call_1 {"error":"no"}"#);
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
    let mut t = goodbye();
    t.advance(11_000);
    t.expect("run call_1 end_call {}");
    t.expect("stop running call_1");
    t.expect(r#"output call_1 {"error":"the function took too long"}"#);
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
}

#[test]
fn a_stop_that_overtakes_the_answer_has_the_reason_of_what_was_asked() {
    for (name, arguments, reason) in [
        ("end_call", "{}", EndReason::AgentHungUp),
        ("transfer_call", r#"{"to":"desk"}"#, EndReason::Transferred),
    ] {
        let mut t = Bench::live_with(leaving);
        t.response_begins("r1");
        t.model_says("r1", "item_7", 200);
        calls(&mut t, "r1", "call_1", name, arguments);
        t.response_done("r1", "completed");
        t.advance(200);
        t.twilio(r#"{"event":"stop","stop":{},"streamSid":"MZ1"}"#);
        t.leg(Leg::Caller, LegChange::Closed { code: Some(1000), reason: String::new() });
        t.leg(Leg::Model, LegChange::Closed { code: Some(1000), reason: String::new() });
        tool(&mut t, "call_1", Ok("{}"));
        assert_eq!(t.end_reason(), Some(reason), "{name}");
    }
}

#[test]
fn a_second_wish_to_leave_is_refused_and_nothing_is_offered_by_default() {
    let mut t = goodbye();
    t.response_begins("r2");
    calls(&mut t, "r2", "call_2", "end_call", "{}");
    t.response_done("r2", "completed");
    t.expect(r#"output call_2 {"error":"the call is being ended or put through already"}"#);
    let mut t = Bench::live();
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "end_call", "{}");
    t.response_done("r1", "completed");
    t.expect(r#"output call_1 {"error":"there is no such function"}"#);
}

#[test]
fn a_transfer_without_usable_arguments_is_told_what_is_wrong() {
    for arguments in ["desk", "", r#"["desk"]"#] {
        let mut t = Bench::live_with(leaving);
        t.response_begins("r1");
        calls(&mut t, "r1", "call_1", "transfer_call", arguments);
        t.response_done("r1", "completed");
        let why = match arguments {
            "" => "there is nobody of that name to put the caller through to",
            _ => "the arguments are not a JSON object",
        };
        t.expect(&format!(r#"output call_1 {{"error":"{why}"}}"#));
        let told = |event: &CallEvent| matches!(event, CallEvent::ToolAnswered { why: Some(said), .. } if *said == why);
        assert!(t.events.iter().any(told), "{:?}", t.events);
    }
}

#[test]
fn a_hang_up_needs_no_arguments() {
    let mut t = Bench::live_with(leaving);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 200);
    calls(&mut t, "r1", "call_1", "end_call", "now");
    t.response_done("r1", "completed");
    t.advance(200);
    t.expect("run call_1 end_call {}");
}

fn leaving_with_lookup(config: &mut CallConfig) {
    leaving(config);
    with_lookup(config);
    config.hangup.farewell_ms = 2_500;
}

/// The agent says goodbye, looks something up, and ends the call, all in one response.
fn goodbye_with_a_function() -> Bench {
    let mut t = Bench::live_with(leaving_with_lookup);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 200);
    t.model(CALL);
    calls(&mut t, "r1", "call_2", "end_call", "{}");
    t.response_done("r1", "completed");
    t.sent.clear();
    t.advance(1_000);
    t.expect_quiet(); // the farewell was heard, and the function runs
    t
}

#[test]
fn a_function_of_the_same_response_is_finished_before_the_call_is_left() {
    let mut t = goodbye_with_a_function();
    tool(&mut t, "call_1", Ok("{}"));
    t.expect("output call_1 {}");
    t.expect("create 1");
    t.requested_response_begins("r2", 1);
    t.model_says("r2", "item_8", 100);
    t.response_done("r2", "completed");
    t.advance(100);
    t.expect("run call_2 end_call {}");
}

#[test]
fn a_function_that_outlasts_the_farewell_is_finished_behind_the_call() {
    let mut t = goodbye_with_a_function();
    t.advance(1_500);
    t.expect("run call_2 end_call {}");
    tool(&mut t, "call_2", Ok("{}"));
    t.expect("output call_2 {}");
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
    for leg in [Leg::Caller, Leg::Model] {
        t.leg(leg, LegChange::Closed { code: Some(1000), reason: String::new() });
    }
    assert_eq!(t.end_reason(), None, "the record of the call is not whole yet");
    tool(&mut t, "call_1", Ok("{}"));
    t.expect_quiet();
    let outcome = |event: &CallEvent| {
        let CallEvent::ToolAnswered { call_id, outcome, .. } = event else { return None };
        (call_id == "call_1").then_some(*outcome)
    };
    assert_eq!(t.events.iter().find_map(outcome), Some(ToolOutcome::Done));
    assert_eq!(t.end_reason(), Some(EndReason::AgentHungUp));
    assert!(t.call.is_over());
}

#[test]
fn a_caller_who_hangs_up_before_the_farewell_leaves_no_call_unanswered() {
    let mut t = goodbye();
    t.twilio(r#"{"event":"stop","stop":{},"streamSid":"MZ1"}"#);
    let refused = |event: &CallEvent| matches!(event, CallEvent::ToolAnswered { call_id, outcome: ToolOutcome::Refused, .. } if call_id == "call_1");
    assert!(t.events.iter().any(refused), "{:?}", t.events);
}
