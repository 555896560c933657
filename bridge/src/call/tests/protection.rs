//! The protected window: what the model hears of the call's beginning.

use super::*;
use crate::call::settings::{GreetingGuard, Until};

const SILENCE: u8 = 0xFF;
const VOICE: u8 = 0x2A;

fn until_heard(config: &mut CallConfig) {
    config.greeting = Some("Greet the caller.".into());
    config.greeting_guard = Some(GreetingGuard { until: Until::Heard, at_most_ms: 15_000 });
}

fn for_ms(at_most_ms: u64) -> impl FnOnce(&mut CallConfig) {
    move |config| config.greeting_guard = Some(GreetingGuard { until: Until::Time, at_most_ms })
}

/// A frame of voice from the caller. What of it did the model get?
fn voice(t: &mut Bench) -> Vec<u8> {
    t.chunk += 1;
    let (chunk, timestamp, payload) = (t.chunk, t.at, BASE64.encode([VOICE; 160]));
    t.twilio(&format!(r#"{{"event":"media","media":{{"chunk":"{chunk}","timestamp":"{timestamp}","payload":"{payload}"}},"streamSid":"MZ1"}}"#));
    given(t)
}

/// What the model was given since the last look.
fn given(t: &mut Bench) -> Vec<u8> {
    let mut given = Vec::new();
    t.sent.retain(|transmit| {
        let Transmit::Model(ClientEvent::AppendAudio { audio }) = transmit else { return true };
        given.extend_from_slice(audio);
        false
    });
    given
}

/// Lets time pass on a line that lives.
fn pass(t: &mut Bench, by: u64) {
    let end = t.at + by;
    while t.at < end {
        t.advance(1_000.min(end - t.at));
        t.leg(Leg::Caller, LegChange::Pong);
        t.leg(Leg::Model, LegChange::Pong);
    }
}

/// Of a frame of voice the model is given silence; what lies between it and the frame before is silence anyway.
#[track_caller]
fn hears_nothing(t: &mut Bench) {
    let given = voice(t);
    assert!(given.len() >= 160 && given.iter().all(|code| *code == SILENCE));
}

#[track_caller]
fn hears_the_caller(t: &mut Bench) {
    assert!(voice(t).ends_with(&[VOICE; 160]));
}

fn ends(t: &Bench) -> Vec<(ProtectionEnd, Duration)> {
    let end = |event: &CallEvent| {
        if let CallEvent::Unprotected { why, silenced } = event { Some((*why, *silenced)) } else { None }
    };
    t.events.iter().filter_map(end).collect()
}

/// A protected greeting of a second, generated in one go.
fn greeted() -> Bench {
    let mut t = Bench::live_with(until_heard);
    t.requested_response_begins("r1", 1);
    t.model_says("r1", "item_1", 1_000);
    t.response_done("r1", "completed");
    t.sent.clear();
    t
}

#[test]
fn the_caller_is_silence_until_the_last_mark_of_the_greeting_is_back() {
    let mut t = greeted();
    t.advance(999);
    hears_nothing(&mut t);
    assert_eq!(ends(&t), []);
    t.advance(1);
    assert_eq!(ends(&t), [(ProtectionEnd::Heard, ms(40))]);
    hears_the_caller(&mut t);
    assert_eq!(
        t.call.cx.counts.protected_ms, 40,
        "the first frame of the call, and the one over the greeting"
    );
}

#[test]
fn a_response_that_goes_on_is_not_heard_to_its_end() {
    let mut t = Bench::live_with(until_heard);
    t.requested_response_begins("r1", 1);
    t.model_says("r1", "item_1", 400);
    t.advance(1_000);
    assert!(t.owed.is_empty(), "every mark is back");
    hears_nothing(&mut t);
    t.model_says("r1", "item_1", 400);
    t.advance(1_000);
    hears_nothing(&mut t);
    t.response_done("r1", "completed");
    hears_the_caller(&mut t);
}

#[test]
fn what_was_said_while_the_model_was_dialled_is_in_the_window() {
    let mut t = Bench::with(for_ms(50));
    t.start();
    for _ in 0..4 {
        voice(&mut t);
        t.advance(20);
    }
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{}}"#);
    t.model(r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}},"output":{"format":{"type":"audio/pcmu"}}}}}"#);
    assert_eq!(given(&mut t), [[SILENCE; 480].as_slice(), &[VOICE; 160]].concat());
}

#[test]
fn a_window_of_time_ends_by_time_whatever_is_heard() {
    let mut t = Bench::live_with(for_ms(2_000));
    t.response_begins("r1");
    t.model_says("r1", "item_1", 500);
    t.response_done("r1", "completed");
    t.advance(1_999);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
    assert_eq!(ends(&t), [(ProtectionEnd::Time, ms(40))]);
    pass(&mut t, 20_000);
    assert_eq!(ends(&t).len(), 1);
}

#[test]
fn a_greeting_that_never_comes_leaves_nobody_deaf() {
    let mut t = Bench::live_with(|c| {
        until_heard(c);
        c.timeouts.first_audio_ms = 60_000;
    });
    pass(&mut t, 14_999);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
    assert_eq!(ends(&t)[0].0, ProtectionEnd::Time);
}

#[test]
fn without_a_greeting_there_is_nothing_to_be_heard_first() {
    let mut t = Bench::live_with(|c| {
        until_heard(c);
        c.greeting = None;
    });
    hears_the_caller(&mut t);
    pass(&mut t, 20_000);
    assert_eq!(ends(&t), []);
}

#[test]
fn a_greeting_that_failed_is_protected_when_it_comes_again() {
    let mut t = Bench::live_with(until_heard);
    t.requested_response_begins("r1", 1);
    t.response_done("r1", "failed");
    t.advance(500);
    hears_nothing(&mut t);
    t.requested_response_begins("r2", 2);
    t.model_says("r2", "item_2", 1_000);
    t.response_done("r2", "completed");
    t.advance(999);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
}

#[test]
fn marks_that_never_come_back_are_given_up_and_the_window_with_them() {
    let mut t = greeted();
    t.deaf = true;
    pass(&mut t, 5_999);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
    assert_eq!(ends(&t)[0].0, ProtectionEnd::Heard);
}

#[test]
fn a_key_in_the_window_silences_nothing_and_is_answered_afterwards() {
    let mut t = greeted();
    t.advance(300);
    t.key('9');
    t.key('#');
    t.expect("The caller entered 9 # on the keypad.");
    t.expect("create 2");
    t.expect_quiet();
    t.requested_response_begins("r2", 2);
    t.model_says("r2", "item_2", 1_000);
    t.advance(699);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
    t.sent.clear();
    t.key('1');
    t.expect("clear");
}

#[test]
fn the_answer_to_an_early_key_takes_the_greetings_place_and_its_protection() {
    let mut t = Bench::with(until_heard);
    t.start();
    t.caller_frame();
    t.key('1');
    t.key('#');
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{}}"#);
    t.model(r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}},"output":{"format":{"type":"audio/pcmu"}}}}}"#);
    given(&mut t);
    t.requested_response_begins("r1", 1);
    t.model_says("r1", "item_1", 1_000);
    t.response_done("r1", "completed");
    t.advance(999);
    hears_nothing(&mut t);
    t.advance(1);
    hears_the_caller(&mut t);
}

#[test]
fn a_model_that_takes_silence_for_speech_ends_the_window() {
    let mut t = greeted();
    t.advance(300);
    t.model_detects_speech();
    t.expect("clear");
    assert_eq!(ends(&t)[0].0, ProtectionEnd::Interrupted);
    hears_the_caller(&mut t);
}

#[test]
fn a_call_that_ends_in_the_window_has_no_end_of_it_before() {
    let mut t = greeted();
    t.advance(300);
    t.twilio(r#"{"event":"stop","streamSid":"MZ1"}"#);
    t.advance(30_000);
    assert_eq!((ends(&t), t.end_reason()), (vec![], Some(EndReason::Stopped)));
}
