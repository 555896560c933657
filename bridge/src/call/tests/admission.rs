//! A stream that has to be let in.

use super::*;

const START: &str = r#"{"event":"start","start":{"streamSid":"MZ1","callSid":"CA1","accountSid":"AC1","customParameters":{"token":"t"},"mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"streamSid":"MZ1"}"#;

fn requires_auth(change: impl FnOnce(&mut CallConfig)) -> Bench {
    let mut t = Bench::with(change);
    t.call = std::mem::replace(&mut t.call, Bench::with(|_| {}).call).requires_auth(true);
    t
}

fn told(t: &mut Bench, control: Control) {
    t.call.handle_control(control, t.now());
    t.drain();
}

/// Everything but what the clock of the caller leg does by itself.
fn started(t: &Bench) -> bool {
    t.events.iter().any(|event| matches!(event, CallEvent::Started { .. }))
}

#[test]
fn nothing_is_dialled_sent_or_claimed_for_a_stream_at_the_door() {
    for dial in [settings::DialWhen::OnMedia, settings::DialWhen::OnStart] {
        let mut t = requires_auth(|c| c.dial = dial);
        t.twilio(START);
        t.expect("show CA1 AC1 t");
        t.caller_frame();
        t.caller_frame();
        t.twilio(r#"{"event":"dtmf","dtmf":{"digit":"5"},"streamSid":"MZ1"}"#);
        t.expect_quiet();
        assert!(!started(&t) && t.call.call_sid().is_none());
        told(&mut t, Control::Admitted);
        assert!(started(&t) && t.call.call_sid() == Some("CA1"));
        t.expect("dial");
    }
}

#[test]
fn what_was_said_at_the_door_is_not_lost() {
    let mut t = requires_auth(|_| {});
    t.twilio(START);
    t.caller_frame();
    told(&mut t, Control::Admitted);
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{}}"#);
    t.model(r#"{"type":"session.updated","session":{"audio":{"input":{"format":{"type":"audio/pcmu"}},"output":{"format":{"type":"audio/pcmu"}}}}}"#);
    while let Some(next) = t.next() {
        if next == "append 160" {
            return;
        }
    }
    panic!("the frame never reached the model");
}

#[test]
fn a_stream_that_is_turned_away_is_closed_with_1008_and_was_never_a_call() {
    let mut t = requires_auth(|_| {});
    t.twilio(START);
    t.caller_frame();
    t.expect("show CA1 AC1 t");
    told(&mut t, Control::Rejected { why: "the token was used before" });
    t.expect("close Caller 1008");
    t.expect_quiet();
    t.leg(Leg::Caller, LegChange::Closed { code: Some(1008), reason: String::new() });
    assert_eq!(t.end_reason(), Some(EndReason::Unauthenticated));
    assert!(!started(&t) && t.call.is_over());
}

#[test]
fn nobody_waits_at_the_door_for_ever() {
    let mut t = requires_auth(|_| {});
    t.twilio(START);
    t.advance(5_000);
    assert_eq!(
        t.events.iter().filter(|event| matches!(event, CallEvent::TimerFired(Timer::Start))).count(),
        1
    );
    told(&mut t, Control::Admitted);
    assert!(!started(&t), "too late");
}

#[test]
fn a_welcome_nobody_waits_for_changes_nothing() {
    let mut t = Bench::live();
    told(&mut t, Control::Admitted);
    told(&mut t, Control::Rejected { why: "another account" });
    t.expect_quiet();
    assert_eq!(t.end_reason(), None);
}

#[test]
fn what_twilio_says_of_the_stream_ends_it_though_the_socket_looks_open() {
    let mut t = Bench::live();
    told(&mut t, Control::StreamOver { failed: true });
    t.expect("drop Caller");
    t.expect("close Model 1000");
    let mut t = Bench::live();
    told(&mut t, Control::StreamOver { failed: false });
    t.expect("close Model 1000");
    t.expect("close Caller 1000");
}
