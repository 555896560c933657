//! Function calls that are refused, repeated, too many, or not finished when the call is.

use super::*;

fn with_two(config: &mut CallConfig) {
    with_lookup(config);
    let book = settings::ToolSpec { name: "book".into(), timeout_ms: 12_000, ..config.tools[0].clone() };
    config.tools.push(book);
}

fn calls(t: &mut Bench, response: &str, call_id: &str, name: &str, arguments: &str) {
    let item = serde_json::json!({"type": "function_call", "status": "completed", "call_id": call_id, "name": name,
        "arguments": arguments});
    t.model(
        &serde_json::json!({"type": "response.output_item.done", "response_id": response, "item": item})
            .to_string(),
    );
}

/// A response that calls one function and nothing else.
fn round(t: &mut Bench, response: &str, number: u64, call_id: &str, arguments: &str) {
    t.requested_response_begins(response, number);
    calls(t, response, call_id, "lookup", arguments);
    t.response_done(response, "completed");
}

fn ends(t: &mut Bench, call_id: &str, output: &str) {
    t.call.handle_tool(ToolResult { call_id: call_id.into(), output: Ok(output.into()) }, t.now());
    t.drain();
}

fn refuses(t: &mut Bench, event_id: &str) {
    t.model(&format!(
        r#"{{"type":"error","error":{{"type":"invalid_request_error","code":"invalid_tool_call_id","message":"","event_id":{event_id}}}}}"#
    ));
}

fn outcomes(t: &Bench) -> Vec<(&str, ToolOutcome)> {
    let mut answered = Vec::new();
    for event in &t.events {
        if let CallEvent::ToolAnswered { call_id, outcome, .. } = event {
            answered.push((call_id.as_str(), *outcome));
        }
    }
    answered
}

fn is_told(t: &Bench, reason: EndReason) -> bool {
    t.events.contains(&CallEvent::Notice { reason })
}

// ---------------------------------------------------------------------------------- refused outputs

#[test]
fn an_output_waits_for_the_end_of_its_response_but_not_for_ever() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    t.expect("run call_1 lookup {}");
    ends(&mut t, "call_1", "1");
    t.advance(4_999);
    t.expect_quiet();
    t.advance(1);
    t.expect("output call_1 1");
}

#[test]
fn a_refused_output_is_sent_once_more_and_the_repeated_call_is_not_run_again() {
    for event_id in [r#""output_1""#, "null"] {
        let mut t = Bench::live_with(with_lookup);
        t.response_begins("r1");
        calls(&mut t, "r1", "call_1", "lookup", r#"{"id":7}"#);
        t.response_done("r1", "completed");
        ends(&mut t, "call_1", "shipped");
        t.sent.clear();
        refuses(&mut t, event_id);
        t.expect("output call_1 shipped");
        t.expect_quiet(); // the response that was asked for is on its way
        t.requested_response_begins("r2", 1);
        calls(&mut t, "r2", "call_2", "lookup", r#" { "id" : 7 } "#);
        t.response_done("r2", "completed");
        t.expect("output call_2 shipped");
        t.expect("create 2");
        t.expect_quiet();
        assert_eq!(outcomes(&t), [("call_1", ToolOutcome::Done), ("call_2", ToolOutcome::Reused)]);
        assert_eq!(t.call.cx.counts.refused_outputs, 1);
        // With other arguments it is another call.
        t.requested_response_begins("r3", 2);
        calls(&mut t, "r3", "call_3", "lookup", r#"{"id":8}"#);
        t.expect(r#"run call_3 lookup {"id":8}"#);
    }
}

#[test]
fn an_output_that_is_refused_twice_is_let_be_but_still_answers_the_repeated_call() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    t.response_done("r1", "completed");
    ends(&mut t, "call_1", "shipped");
    t.sent.clear();
    refuses(&mut t, "null");
    t.expect("output call_1 shipped");
    refuses(&mut t, "null");
    t.expect_quiet();
    refuses(&mut t, r#""output_9""#);
    t.expect_quiet();
    t.requested_response_begins("r2", 1);
    calls(&mut t, "r2", "call_2", "lookup", "");
    t.response_done("r2", "completed");
    t.expect("output call_2 shipped");
}

#[test]
fn a_refused_output_answers_a_call_of_the_next_two_turns_and_of_none_behind() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    t.response_done("r1", "completed");
    ends(&mut t, "call_1", "shipped");
    refuses(&mut t, "null");
    t.requested_response_begins("r2", 1);
    t.response_done("r2", "cancelled");
    for (response, call_id) in [("r3", "call_3"), ("r4", "call_4"), ("r5", "call_5")] {
        t.model_detects_speech();
        t.model_detects_silence();
        t.response_begins(response);
        t.sent.clear();
        calls(&mut t, response, call_id, "lookup", "{}");
        t.response_done(response, "completed");
    }
    t.expect("run call_5 lookup {}");
    let reused = [("call_3", ToolOutcome::Reused), ("call_4", ToolOutcome::Reused)];
    assert_eq!(outcomes(&t), [("call_1", ToolOutcome::Done), reused[0], reused[1]]);
}

#[test]
fn of_two_refused_runs_of_one_call_each_is_reused() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    calls(&mut t, "r1", "call_2", "lookup", "{}");
    t.response_done("r1", "completed");
    ends(&mut t, "call_1", "1");
    ends(&mut t, "call_2", "2");
    refuses(&mut t, r#""output_1""#);
    refuses(&mut t, r#""output_2""#);
    round(&mut t, "r2", 1, "call_3", "{}");
    t.model(r#"{"type":"conversation.item.added","item":{"id":"i","type":"function_call_output","call_id":"call_3"}}"#);
    round(&mut t, "r3", 2, "call_4", "{}");
    let ran = [("call_1", ToolOutcome::Done), ("call_2", ToolOutcome::Done)];
    let reused = [("call_3", ToolOutcome::Reused), ("call_4", ToolOutcome::Reused)];
    assert_eq!(outcomes(&t), [ran, reused].concat());
}

#[test]
fn a_call_made_beside_the_refusal_does_not_repeat_it() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    t.response_done("r1", "completed");
    t.model_detects_speech();
    t.model_detects_silence();
    t.response_begins("r2");
    ends(&mut t, "call_1", "1");
    refuses(&mut t, "null");
    calls(&mut t, "r2", "call_2", "lookup", "{}");
    t.response_done("r2", "completed");
    t.model(r#"{"type":"conversation.item.added","item":{"id":"i","type":"function_call_output","call_id":"call_2"}}"#);
    round(&mut t, "r3", 1, "call_3", "{}");
    let reused = [("call_2", ToolOutcome::Reused), ("call_3", ToolOutcome::Reused)];
    assert_eq!(outcomes(&t), [("call_1", ToolOutcome::Done), reused[0], reused[1]]);
}

#[test]
fn a_taken_output_is_not_blamed_for_a_later_refusal() {
    let mut t = Bench::live_with(with_lookup);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "lookup", "{}");
    t.response_done("r1", "completed");
    ends(&mut t, "call_1", "1");
    t.model(r#"{"type":"conversation.item.added","item":{"id":"i","type":"function_call_output","call_id":"call_1"}}"#);
    t.sent.clear();
    refuses(&mut t, "null");
    t.expect_quiet();
}

// ------------------------------------------------------------------------------- the turn in between

#[test]
fn the_answer_to_a_new_turn_does_not_wait_for_an_older_turns_function() {
    let mut t = Bench::live_with(with_two);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    t.response_done("r1", "completed");
    t.advance(500);
    t.model_detects_speech();
    t.advance(500);
    t.model_detects_silence();
    t.response_begins("r2");
    calls(&mut t, "r2", "call_2", "lookup", "{}");
    t.response_done("r2", "completed");
    t.sent.clear();
    t.advance(150);
    ends(&mut t, "call_2", "2");
    t.expect("output call_2 2");
    t.expect("create 1");
    t.requested_response_begins("r3", 1);
    t.model_says("r3", "item_9", 100);
    t.response_done("r3", "completed");
    t.advance(4_000);
    ends(&mut t, "call_1", "1");
    t.expect("output call_1 1");
    t.expect("create 2");
}

#[test]
fn a_turn_nobody_answers_is_asked_about_though_an_older_turns_function_runs() {
    let mut t = Bench::live_with(with_two);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    t.response_done("r1", "completed");
    t.model_detects_speech();
    t.model_detects_silence();
    t.sent.clear();
    t.advance(8_000);
    t.expect_quiet();
    t.advance(500);
    t.expect("create 1");
}

// -------------------------------------------------------------------------------- functions without end

#[test]
fn the_same_call_again_and_again_is_stopped_and_then_the_caller_is_told() {
    let mut t = Bench::live_with(|config| {
        with_lookup(config);
        config.limits.same_calls = 2;
    });
    t.response_begins("r0");
    calls(&mut t, "r0", "call_0", "lookup", "{}");
    t.response_done("r0", "completed");
    ends(&mut t, "call_0", "no");
    round(&mut t, "r1", 1, "call_1", "{ }");
    ends(&mut t, "call_1", "no");
    t.sent.clear();
    round(&mut t, "r2", 2, "call_2", "{}");
    t.expect(
        r#"output call_2 {"error":"not run: it was called too often with these arguments; tell the caller what is known"}"#,
    );
    let Some(Transmit::Model(ClientEvent::CreateResponse { may_call: false, .. })) = t.sent.pop_front()
    else {
        panic!("the next response may call nothing")
    };
    assert!(t.events.contains(&CallEvent::ToolLoop { rounds: 3 }));
    assert_eq!(t.call.cx.counts.tool_loops, 1);
    round(&mut t, "r3", 3, "call_3", r#"{"other":1}"#);
    assert!(is_told(&t, EndReason::ResponseFailed));
}

#[test]
fn too_many_rounds_are_stopped_whatever_they_call() {
    let mut t = Bench::live_with(|config| {
        with_lookup(config);
        config.limits.function_rounds = 4;
    });
    t.response_begins("r0");
    t.response_done("r0", "cancelled");
    t.key('#');
    for n in 1..=4 {
        round(&mut t, &format!("r{n}"), n, &format!("call_{n}"), &format!("{n}"));
        round(&mut t, &format!("x{n}"), n + 100, "refused as unknown", "{}");
    }
    assert_eq!(t.call.cx.counts.tool_loops, 0, "what has no number of ours is no round");
    t.sent.clear();
    round(&mut t, "r5", 5, "call_5", "{}");
    t.expect(
        r#"output call_5 {"error":"not run: too many functions were called in a row; tell the caller what is known"}"#,
    );
    // The caller's next turn begins anew.
    t.model_detects_speech();
    t.model_detects_silence();
    t.requested_response_begins("r6", 6);
    t.response_done("r6", "cancelled");
    t.response_begins("r7");
    t.sent.clear();
    calls(&mut t, "r7", "call_7", "lookup", "{}");
    t.expect("run call_7 lookup {}");
}

#[test]
fn several_equal_calls_of_one_response_are_one_round() {
    let mut t = Bench::live_with(|config| {
        with_lookup(config);
        config.limits.same_calls = 1;
    });
    t.response_begins("r1");
    for call_id in ["call_1", "call_2", "call_3"] {
        calls(&mut t, "r1", call_id, "lookup", "{}");
        t.expect(&format!("run {call_id} lookup {{}}"));
    }
    assert_eq!(t.call.cx.counts.tool_loops, 0);
}

// -------------------------------------------------------------------------------------------- silence

#[test]
fn functions_one_after_another_do_not_put_the_filler_off() {
    let mut t = Bench::live_with(|config| {
        with_filler(config);
        config.hold_message.as_mut().unwrap().after_ms = 3_000;
    });
    t.model_detects_speech();
    t.model_detects_silence();
    t.response_begins("r0");
    calls(&mut t, "r0", "call_0", "lookup", "0");
    t.response_done("r0", "completed");
    calls(&mut t, "r0", "call_x", "lookup", "{}");
    t.sent.clear();
    t.advance(2_500);
    ends(&mut t, "call_x", "0");
    t.sent.clear();
    round(&mut t, "r1", 1, "call_1", r#"{"step":1}"#);
    t.sent.clear();
    t.advance(499);
    t.expect_quiet();
    t.advance(1);
    t.expect("create 2"); // three seconds after the caller's turn, half a second into the second function
}

#[test]
fn a_caller_is_not_left_in_silence_whatever_functions_are_called() {
    let mut t = Bench::live_with(|config| {
        with_lookup(config);
        config.timeouts.dead_air_ms = 12_000;
    });
    t.model_detects_speech();
    t.model_detects_silence();
    t.response_begins("r0");
    calls(&mut t, "r0", "call_0", "lookup", r#"{"step":0}"#);
    t.response_done("r0", "completed");
    for n in 1..=4 {
        t.advance(2_500);
        ends(&mut t, &format!("call_{}", n - 1), "go on");
        round(&mut t, &format!("r{n}"), n, &format!("call_{n}"), &format!(r#"{{"step":{n}}}"#));
    }
    t.advance(1_999);
    assert!(!is_told(&t, EndReason::ResponseFailed));
    t.advance(1);
    assert!(is_told(&t, EndReason::ResponseFailed));
}

#[test]
fn the_time_of_one_function_is_not_cut_short_by_the_silence() {
    let mut t = Bench::live_with(|config| {
        with_two(config);
        config.timeouts.dead_air_ms = 2_000;
    });
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    t.response_done("r1", "completed");
    t.advance(11_999);
    assert!(!is_told(&t, EndReason::ResponseFailed));
}

// ------------------------------------------------------------------------------------- the end of the call

#[test]
fn a_caller_who_hangs_up_stops_no_function_and_its_outcome_is_told() {
    let mut t = Bench::live_with(with_two);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    calls(&mut t, "r1", "call_2", "lookup", "{}");
    t.sent.clear();
    t.advance(100);
    t.twilio(r#"{"event":"stop","streamSid":"MZ1","stop":{}}"#);
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
    t.expect_quiet();
    for leg in [Leg::Caller, Leg::Model] {
        t.leg(leg, LegChange::Closed { code: Some(1000), reason: String::new() });
    }
    t.advance(1_000);
    ends(&mut t, "call_1", "booked");
    assert!(!t.call.is_over());
    t.advance(1_900);
    t.expect("stop running call_2");
    assert_eq!(outcomes(&t), [("call_1", ToolOutcome::Done), ("call_2", ToolOutcome::TimedOut)]);
    assert!(t.call.is_over());
    let lasted = |event: &CallEvent| {
        if let CallEvent::Ended { lasted, .. } = event { Some(*lasted) } else { None }
    };
    assert_eq!(t.events.iter().find_map(lasted), Some(ms(100)), "the call itself was over long before");
}

#[test]
fn functions_of_a_call_that_is_over_have_a_limit_of_their_own() {
    let mut t = Bench::live_with(|config| {
        with_two(config);
        config.timeouts.tool_after_end_ms = 700;
    });
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    t.leg(Leg::Caller, LegChange::Lost { why: "reset".into() });
    t.leg(Leg::Model, LegChange::Closed { code: Some(1000), reason: String::new() });
    t.advance(699);
    assert_eq!(outcomes(&t), []);
    t.advance(1);
    assert_eq!(outcomes(&t), [("call_1", ToolOutcome::TimedOut)]);
    assert!(t.call.is_over());
}

#[test]
fn a_function_goes_on_while_the_caller_is_told_that_the_call_ends() {
    let mut t = Bench::live_with(with_two);
    t.response_begins("r1");
    calls(&mut t, "r1", "call_1", "book", "{}");
    t.leg(Leg::Model, LegChange::Lost { why: "reset".into() });
    t.advance(300);
    ends(&mut t, "call_1", "booked");
    assert_eq!(outcomes(&t), [("call_1", ToolOutcome::Done)]);
}

// ------------------------------------------------------------------------------------ a server's own words

#[test]
fn an_end_of_a_response_that_never_began_is_counted_and_what_it_was_to_answer_is_asked_again() {
    let done = |status: &str, metadata: &str| {
        format!(
            r#"{{"type":"response.done","response":{{"id":"ghost","status":"{status}","metadata":{metadata},"output":[]}}}}"#
        )
    };
    let asked = || {
        let mut t = Bench::live();
        t.model_detects_speech();
        t.model_detects_silence();
        t.sent.clear();
        t
    };
    let mut t = asked();
    t.model(&done("failed", "null"));
    assert_eq!(t.call.cx.counts.unannounced, 1);
    t.advance(500);
    t.expect("create 1");
    t.model(&done("failed", r#"{"bridge_request":"1"}"#));
    assert!(is_told(&t, EndReason::ResponseFailed), "it failed twice in a row");

    let mut t = asked();
    t.model_detects_speech();
    t.model(&done("cancelled", "null"));
    t.advance(3_000);
    assert!(t.sent.iter().all(|sent| !matches!(sent, Transmit::Model(ClientEvent::CreateResponse { .. }))));

    let mut t = Bench::live();
    t.model(&done("failed", "null"));
    t.advance(3_000);
    t.expect_quiet();
    assert_eq!(t.call.cx.counts.unannounced, 1);
}

#[test]
fn no_part_of_a_key_is_told_of_an_error_without_a_code() {
    const TEXT: &str = "Incorrect API key provided: sk-pr********x7Qz.";
    let leaks = |t: &Bench| t.events.iter().any(|event| format!("{event:?}").contains("x7Qz"));
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(&format!(
        r#"{{"type":"error","error":{{"type":"invalid_request_error","code":null,"message":"{TEXT}"}}}}"#
    ));
    assert!(is_told(&t, EndReason::ModelRefused) && !leaks(&t), "{:?}", t.events);

    let mut t = Bench::live();
    t.leg(Leg::Model, LegChange::Closed { code: Some(3000), reason: TEXT.into() });
    t.advance(10_000);
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1000), reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::ModelRefused));
    assert!(!leaks(&t), "{:?}", t.events);

    let mut t = Bench::live();
    for (field, rest) in [("code", r#""type":"t""#), ("type", r#""code":null"#)] {
        t.model(&format!(r#"{{"type":"error","error":{{"{field}":"{TEXT}",{rest}}}}}"#));
    }
    t.response_begins("r1");
    t.model(&format!(r#"{{"type":"response.done","response":{{"id":"r1","status":"failed","status_details":{{"error":{{"code":"{TEXT}"}}}}}}}}"#));
    assert_eq!(t.call.cx.counts.errors, 2);
    assert!(!leaks(&t), "{:?}", t.events);
}

#[test]
fn the_field_of_the_settings_that_was_refused_is_named() {
    let mut t = Bench::with(|_| {});
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(CREATED);
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"unknown_parameter","param":"session.audio.input.foo","event_id":"update_1"}}"#);
    t.advance(10_000);
    for leg in [Leg::Caller, Leg::Model] {
        t.leg(leg, LegChange::Closed { code: Some(1000), reason: String::new() });
    }
    let detail = |event: &CallEvent| {
        if let CallEvent::Ended { detail, .. } = event { Some(detail.clone()) } else { None }
    };
    let detail = t.events.iter().find_map(detail);
    assert_eq!(detail.as_deref(), Some("unknown_parameter at session.audio.input.foo"));
}
