//! A handful of calls over real sockets, in real time, with and without TLS, judged like all others.

use scenarios::model::backend::Backend;
use scenarios::model::catalogue;
use scenarios::model::seed::Seed;
use scenarios::oracle;
use scenarios::oracle::real_time::LAG_MAX_US;
use scenarios::sim::ScenarioRunner as _;
use scenarios::sim::loopback::Loopback;
use scenarios::sim::trace::Trace;

/// What is played: an answer, an interruption, keys, a function, both G.711 and transcoded audio, every way to lose
/// either end, a full server.
const CHOSEN: &[&str] = &[
    "greeting/pcmu",
    "turns/one",
    "barge_in/mid_answer",
    "dtmf/interrupts_the_answer",
    "tools/one_call",
    "caller_hangup/mid_answer",
    "model_failures/refuses_tcp",
    "model_failures/closes_between_turns",
    "server/full",
];

/// A busy machine is no reason to judge a bridge: such a play is played again, a few times.
fn play(name: &str, tls: bool) -> Trace {
    let scenario = &catalogue::find(name)[0];
    let mut trace = Loopback { tls }.play(scenario, Seed(1));
    for _ in 0..3 {
        if trace.lag_us <= LAG_MAX_US {
            break;
        }
        trace = Loopback { tls }.play(scenario, Seed(1));
    }
    trace
}

fn judged(tls: bool) -> Vec<String> {
    std::thread::scope(|scope| {
        let plays: Vec<_> = CHOSEN.iter().map(|name| (name, scope.spawn(move || play(name, tls)))).collect();
        let mut found = Vec::new();
        for (name, play) in plays {
            let trace = play.join().unwrap_or_else(|_| panic!("{name} could not be played"));
            assert_eq!(trace.backend, Backend::Loopback);
            found.extend(oracle::judge(&trace).into_iter().map(|violation| format!("{name}: {violation}")));
        }
        found
    })
}

#[test]
fn calls_over_real_tcp_break_no_rule() {
    let found = judged(false);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn calls_over_tls_with_a_throwaway_certificate_break_no_rule() {
    let found = judged(true);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn real_time_is_judged_by_the_same_rules() {
    // The clear and the cut of an interruption are still held to their moment: what was heard is told another way.
    let mut trace = play("barge_in/mid_answer", false);
    assert_eq!(oracle::judge(&trace), []);
    for call in &mut trace.calls {
        for seen in call.models.iter_mut().flat_map(|model| &mut model.observations) {
            if let mocks::record::ModelObservation::GotTruncate { audio_end_ms: Some(ms), .. } =
                &mut seen.what
            {
                *ms += 300;
            }
        }
    }
    let found = oracle::judge(&trace);
    assert!(found.iter().any(|violation| violation.oracle == "truncation_position"), "{found:?}");
}

#[test]
#[should_panic(expected = "made to order")]
fn weather_is_not_to_be_had_from_a_real_socket() {
    Loopback::default().play(&catalogue::find("network/jitter")[0], Seed(1));
}
