//! Another session takes over before the server ends the one that runs.

use super::*;
use crate::call::event::RenewalOutcome;
use crate::call::settings::{Renewal, Transcription};

/// The window opens this long after the session was settled.
const WINDOW_MS: u64 = 70_000;

fn renewal(config: &mut CallConfig) {
    with_lookup(config);
    config.transcription = Some(Transcription { model: "w".into(), language: None });
    config.timeouts.before_expiry_ms = 5_000;
    config.renewal = Some(Renewal { before_ms: 30_000, ..Renewal::default() });
}

impl Bench {
    /// Time goes on, and both ends answer every ping.
    fn lasts(&mut self, by: u64) {
        let end = self.at + by;
        while self.at < end {
            self.advance((end - self.at).min(500));
            self.leg(Leg::Caller, LegChange::Pong);
            self.leg(Leg::Model, LegChange::Pong);
        }
    }

    fn closes(&mut self) {
        self.leg(Leg::Model, LegChange::Closed { code: Some(1000), reason: String::new() });
    }

    fn created(&mut self) {
        self.model(r#"{"type":"session.created","session":{"id":"sess_2","expires_at":1795330960}}"#);
    }

    /// The session is given up, and another is dialled, configured and confirmed.
    fn another_takes_over(&mut self) {
        self.closes();
        self.expect("dial");
        self.model_opens();
        self.created();
        self.expect("update");
        self.model(UPDATED);
    }

    fn renewals(&self) -> Vec<(RenewalOutcome, u32, usize)> {
        let renewal = |event: &CallEvent| {
            let CallEvent::Renewal { outcome, tries, items, .. } = event else { return None };
            Some((*outcome, *tries, *items))
        };
        self.events.iter().filter_map(renewal).collect()
    }
}

/// A call whose session ends after 100 s.
fn live_with(change: impl FnOnce(&mut CallConfig)) -> Bench {
    let mut t = Bench::with(|config| {
        renewal(config);
        change(config);
    });
    t.start();
    t.caller_frame();
    t.model_opens();
    t.model(r#"{"type":"session.created","session":{"id":"sess_1","expires_at":1795330900}}"#);
    t.model(UPDATED);
    t.sent.clear();
    t
}

fn live() -> Bench {
    live_with(|_| {})
}

/// A call that has given its session up.
fn renewing() -> Bench {
    let mut t = live();
    t.lasts(WINDOW_MS + 1_000);
    t.expect("close Model 1000");
    t
}

#[test]
fn a_session_is_renewed_when_it_has_been_quiet_for_a_while() {
    let mut t = live();
    t.lasts(WINDOW_MS + 999);
    t.expect_quiet();
    t.lasts(1);
    t.expect("close Model 1000");
    t.expect_quiet();
    t.another_takes_over();
    t.expect("append 160");
    t.advance(1_000);
    assert!(!t.sent.iter().any(|sent| matches!(sent, Transmit::Ping(Leg::Model))), "it has just spoken");
    t.expect_quiet();
    assert_eq!(t.renewals(), [(RenewalOutcome::Renewed, 1, 0)]);
    let sessions = t.events.iter().filter(|event| matches!(event, CallEvent::Session { .. })).count();
    let lives = t.events.iter().filter(|event| matches!(event, CallEvent::Live { .. })).count();
    assert_eq!((sessions, lives), (2, 1));
}

#[test]
fn without_the_setting_nothing_is_renewed() {
    let mut t = live_with(|c| c.renewal = None);
    t.lasts(90_000);
    t.expect_quiet();
}

#[test]
fn the_new_session_is_renewed_in_its_turn() {
    let mut t = renewing();
    t.closes();
    t.model_opens();
    t.created();
    t.model(UPDATED);
    t.sent.clear();
    // It ends at 160 s, and its window opens 30 s before.
    t.lasts(130_000 + 999 - t.at);
    t.expect_quiet();
    t.lasts(1);
    t.expect("close Model 1000");
}

#[test]
fn a_session_that_is_shorter_than_the_window_is_renewed_at_half_time() {
    let mut t = live_with(|c| c.renewal.as_mut().unwrap().before_ms = 300_000);
    t.lasts(50_999);
    t.expect_quiet();
    t.lasts(1);
    t.expect("close Model 1000");
}

#[test]
fn where_no_end_is_named_the_age_of_the_session_counts() {
    let mut t = Bench::live_with(renewal);
    t.lasts(600_000);
    t.expect_quiet();
    let mut t = Bench::live_with(|c| {
        renewal(c);
        c.renewal.as_mut().unwrap().after_ms = Some(60_000);
    });
    t.lasts(60_999);
    t.expect_quiet();
    t.lasts(1);
    t.expect("close Model 1000");
}

#[test]
fn whatever_goes_on_is_waited_for() {
    let mut t = live();
    t.lasts(WINDOW_MS - 1_000);
    t.response_begins("r1");
    t.model_says("r1", "item_7", 3_000);
    t.model(r#"{"type":"response.output_item.done","response_id":"r1","item":{"type":"function_call","status":"completed","call_id":"call_1","name":"lookup","arguments":"{}"}}"#);
    t.response_done("r1", "completed");
    t.expect("run call_1 lookup {}");
    t.lasts(4_500);
    t.expect("stop running call_1");
    assert!(t.next().is_some_and(|output| output.starts_with("output call_1")));
    t.expect("create 1");
    t.lasts(2_000);
    t.expect_quiet();
    t.requested_response_begins("r2", 1);
    t.model_says("r2", "item_8", 1_000);
    t.response_done("r2", "completed");
    t.model_detects_speech();
    t.sent.clear();
    t.lasts(2_000);
    t.model_detects_silence();
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_user","previous_item_id":"item_8"}"#);
    t.response_begins("r3");
    t.model_says("r3", "item_81", 500);
    t.response_done("r3", "completed");
    t.key('4');
    t.sent.clear();
    t.lasts(1_499);
    t.expect_quiet();
    t.lasts(1);
    t.expect("The caller pressed 4 on the keypad.");
    t.expect("create 2");
    t.requested_response_begins("r4", 2);
    t.model_says("r4", "item_9", 1_000);
    t.response_done("r4", "completed");
    t.lasts(2_500);
    t.expect_quiet();
    t.model(r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"item_user","transcript":"Well."}"#);
    t.lasts(999);
    t.expect_quiet();
    t.lasts(1);
    t.expect("close Model 1000");
}

#[test]
fn a_function_that_runs_and_keys_that_may_be_followed_by_more_are_waited_for() {
    let mut t = live();
    t.lasts(WINDOW_MS + 500);
    t.key('4');
    t.lasts(1_499);
    t.expect_quiet();

    let mut t = live();
    t.lasts(WINDOW_MS + 500);
    t.response_begins("r1");
    t.model(CALL);
    t.response_done("r1", "completed");
    assert!(t.next().is_some_and(|run| run.starts_with("run call_1")));
    t.lasts(2_999);
    t.expect_quiet();
}

#[test]
fn a_response_that_is_to_be_asked_for_again_is_waited_for() {
    let mut t = live_with(|c| c.timeouts.retry_ms = 3_000);
    t.lasts(WINDOW_MS + 500);
    t.response_begins("r1");
    t.response_done("r1", "failed");
    t.lasts(2_999);
    t.expect_quiet();
    t.lasts(1);
    t.expect("create 1");
}

#[test]
fn words_that_will_not_come_are_not_waited_for() {
    let mut t = live();
    t.lasts(WINDOW_MS);
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_user","previous_item_id":null}"#);
    t.model(
        r#"{"type":"conversation.item.input_audio_transcription.failed","item_id":"item_user","error":{}}"#,
    );
    t.lasts(1_500);
    t.expect("close Model 1000");
}

#[test]
fn a_model_that_takes_nothing_is_not_left() {
    let mut t = live();
    t.lasts(WINDOW_MS);
    t.leg(Leg::Model, LegChange::Backpressured);
    t.lasts(2_000);
    t.expect_quiet();
    t.leg(Leg::Model, LegChange::Writable);
    t.lasts(1_500);
    t.expect("close Model 1000");
}

#[test]
fn words_that_never_come_are_not_waited_for_longer_than_a_while() {
    let mut t = live();
    t.lasts(WINDOW_MS);
    t.model(r#"{"type":"input_audio_buffer.committed","item_id":"item_user","previous_item_id":null}"#);
    t.lasts(5_999);
    t.expect_quiet();
    t.lasts(501);
    t.expect("close Model 1000");
}

#[test]
fn the_new_session_is_told_what_was_heard_and_greets_nobody() {
    let mut t = live_with(|c| c.greeting = Some("Say hello.".into()));
    t.requested_response_begins("r1", 1);
    t.model_says("r1", "item_1", 2_000);
    t.model(r#"{"type":"response.output_audio_transcript.done","item_id":"item_1","transcript":"One two three four five six."}"#);
    t.response_done("r1", "completed");
    t.lasts(1_000);
    t.model_detects_speech();
    t.model(r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"item_user","transcript":"Stop."}"#);
    t.model_detects_silence();
    t.response_begins("r2");
    t.model_says("r2", "item_2", 500);
    t.response_done("r2", "completed");
    t.lasts(WINDOW_MS + 1_000 - t.at);
    t.sent.clear();
    t.another_takes_over();
    t.expect(r#"past Agent("One two three")"#);
    t.expect(r#"past User("Stop.")"#);
    t.expect("append 160");
    t.expect_quiet();
    assert_eq!(t.renewals(), [(RenewalOutcome::Renewed, 1, 2)]);
}

#[test]
fn the_new_session_is_told_what_was_done() {
    let mut t = live();
    t.response_begins("r1");
    t.model(CALL);
    t.response_done("r1", "completed");
    t.call.handle_tool(ToolResult { call_id: "call_1".into(), output: Ok("42".into()) }, t.now());
    t.drain();
    t.requested_response_begins("r2", 1);
    t.model_says("r2", "item_2", 500);
    t.response_done("r2", "completed");
    t.lasts(WINDOW_MS + 1_000 - t.at);
    t.sent.clear();
    t.another_takes_over();
    assert!(t.next().is_some_and(|past| past.starts_with("past Call")));
    assert!(t.next().is_some_and(|past| past.starts_with("past Output")));
}

#[test]
fn what_the_caller_says_and_presses_meanwhile_reaches_the_new_session_behind_a_moment_before() {
    let mut t = live();
    for _ in 0..(WINDOW_MS + 980) / 20 {
        t.lasts(20);
        t.caller_frame();
    }
    t.sent.clear();
    t.lasts(20);
    t.expect("close Model 1000");
    t.caller_frame();
    t.key('1');
    t.closes();
    t.expect("dial");
    for _ in 0..5 {
        t.lasts(20);
        t.caller_frame();
    }
    t.key('#');
    t.model_opens();
    t.created();
    t.expect("update");
    t.model(UPDATED);
    // A second of what the old session was told already, and what has waited.
    t.expect("append 8000");
    t.expect("append 960");
    t.expect("The caller entered 1 # on the keypad.");
    t.expect("create 1");
    t.expect_quiet();
}

#[test]
fn what_the_old_session_still_says_is_nobodys_business() {
    let mut t = renewing();
    t.response_begins("r9");
    t.model_says("r9", "item_9", 1_000);
    t.model_detects_speech();
    t.model(r#"{"type":"session.updated","session":{}}"#);
    t.model(r#"{"type":"error","error":{"type":"invalid_request_error","code":"session_expired"}}"#);
    t.expect_quiet();
    assert_eq!(t.sent_media_ms(), 0);
    t.closes();
    t.expect("dial");
    t.model_opens();
    t.created();
    t.model(UPDATED);
    t.model_says("r9", "item_9", 1_000);
    assert_eq!(t.sent_media_ms(), 0);
}

#[test]
fn a_close_nobody_answers_is_not_waited_for() {
    let mut t = renewing();
    t.lasts(799);
    t.expect_quiet();
    t.lasts(1);
    t.expect("drop Model");
    t.expect("dial");
}

#[test]
fn a_try_that_fails_is_repeated() {
    let mut t = renewing();
    t.closes();
    t.expect("dial");
    t.leg(Leg::Model, LegChange::DialFailed { why: "refused".into() });
    t.lasts(499);
    t.expect_quiet();
    t.lasts(1);
    t.expect("dial");
    t.lasts(2_000);
    t.expect("drop Model");
    t.lasts(500);
    t.expect("dial");
    t.model_opens();
    t.created();
    t.expect("update");
    t.model(UPDATED);
    assert_eq!(t.renewals(), [(RenewalOutcome::Renewed, 3, 0)]);
    t.lasts(20_000);
    assert_eq!(t.end_reason(), None);
}

#[test]
fn a_session_that_is_refused_is_closed_before_the_next_is_dialled() {
    let mut t = renewing();
    t.closes();
    t.expect("dial");
    t.model_opens();
    t.created();
    t.expect("update");
    t.model(r#"{"type":"error","error":{"type":"server_error"}}"#);
    t.expect("close Model 1000");
    t.lasts(500);
    t.expect_quiet();
    t.closes();
    t.lasts(500);
    t.expect("dial");
}

#[test]
fn when_no_try_succeeds_the_caller_is_told() {
    let mut t = renewing();
    t.closes();
    for _ in 0..3 {
        t.expect("dial");
        t.leg(Leg::Model, LegChange::DialFailed { why: "refused".into() });
        t.lasts(500);
    }
    assert_eq!(t.renewals(), [(RenewalOutcome::Failed, 3, 0)]);
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::DialFailed }));
    assert_eq!(t.sent_media_ms(), NOTICE_MS);
}

#[test]
fn a_call_that_is_never_quiet_ends_politely() {
    let mut t = live();
    t.model_detects_speech();
    t.lasts(94_999);
    assert_eq!(t.renewals(), []);
    t.lasts(1);
    assert_eq!(t.renewals(), [(RenewalOutcome::Missed, 0, 0)]);
    assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::SessionExpired }));
}

#[test]
fn only_a_session_that_ran_out_has_missed_its_renewal() {
    let mut lost = live();
    lost.leg(Leg::Model, LegChange::Closed { code: Some(1_011), reason: String::new() });
    assert!(lost.events.contains(&CallEvent::Notice { reason: EndReason::ModelLost }), "{:?}", lost.events);
    assert_eq!(lost.renewals(), []);
    let mut plain = live_with(|c| c.renewal = None);
    plain.lasts(95_000);
    assert!(plain.events.contains(&CallEvent::Notice { reason: EndReason::SessionExpired }));
    assert_eq!(plain.renewals(), []);
}

/// The ways a renewal may have come when the call ends.
fn on_the_way() -> Vec<Bench> {
    let steps: [fn(&mut Bench); 5] = [
        |_| {},
        |t| t.closes(),
        |t| {
            t.closes();
            t.leg(Leg::Model, LegChange::DialFailed { why: "refused".into() });
        },
        |t| {
            t.closes();
            t.model_opens();
        },
        |t| {
            t.closes();
            t.model_opens();
            t.created();
        },
    ];
    steps
        .into_iter()
        .map(|step| {
            let mut t = renewing();
            step(&mut t);
            t
        })
        .collect()
}

#[test]
fn a_caller_who_hangs_up_meanwhile_leaves_nothing_behind() {
    for mut t in on_the_way() {
        t.twilio(r#"{"event":"stop","streamSid":"MZ1","stop":{}}"#);
        t.advance(800);
        assert_eq!(t.end_reason(), Some(EndReason::Stopped));
        assert!(t.call.is_over());
        assert_eq!(
            t.renewals().iter().map(|(outcome, ..)| *outcome).collect::<Vec<_>>(),
            [RenewalOutcome::Abandoned]
        );
    }
}

#[test]
fn a_drain_meanwhile_ends_with_the_notice() {
    for mut t in on_the_way() {
        t.call.handle_control(Control::Drain { by: t.now() + ms(100) }, t.now());
        t.advance(100);
        assert!(t.events.contains(&CallEvent::Notice { reason: EndReason::Drained }), "{:?}", t.events);
        t.advance(5_000);
        assert_eq!(t.end_reason(), Some(EndReason::Drained));
        assert!(t.call.is_over());
    }
}

#[test]
fn marks_of_the_new_session_are_not_those_of_the_old() {
    let mut t = live();
    let mut names = Vec::new();
    let mut speak = |t: &mut Bench, response: &str, item: &str| {
        t.response_begins(response);
        t.model_says(response, item, 1_000);
        t.response_done(response, "completed");
        names.extend(t.owed.iter().map(|(_, name)| name.clone()));
        t.lasts(1_100);
    };
    speak(&mut t, "r1", "item_1");
    t.lasts(WINDOW_MS);
    t.closes();
    t.model_opens();
    t.created();
    t.model(UPDATED);
    // The same names, as a server may count from one in each session.
    speak(&mut t, "r1", "item_1");
    let all = names.len();
    names.sort();
    names.dedup();
    assert_eq!((all, names.len()), (10, 10));
}
