//! The mock of the model is compared with servers over real sockets: with itself, with servers that drift, and with
//! servers that do not play along. Times are not compared here, where other tests want the processors, too.

use super::field_bug_walkthrough::built;
use super::tidy::root;
use mocks::net::Roots;
use mocks::realtime::{CloseAfter, Dialect, ModelScript, Opening};
use scenarios::contract::client::{Budget, Limits};
use scenarios::contract::difference::What;
use scenarios::contract::play::{Mock, Scheme, Server};
use scenarios::contract::recording::{REFUSED, Redaction};
use scenarios::contract::report::Report;
use scenarios::contract::script::{self, Session};
use scenarios::contract::tolerance::Tolerances;
use scenarios::contract::{Playing, against};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

const MODEL: &str = "gpt-realtime-2.1";
const KEY: &str = "sk-test-1234567890abcdef";

fn playing() -> Playing {
    Playing {
        limits: Limits { dial_ms: 30_000, session_ms: 300_000, step_ms: 120_000, ..Limits::default() },
        redaction: Redaction::new(KEY, false),
        jobs: 20,
        longest: Duration::from_secs(300),
    }
}

fn sessions(pattern: &str) -> Vec<Session> {
    script::chosen(Some(pattern), Dialect::Ga).expect("a session")
}

/// What a comparison with a server comes to.
async fn report(playing: &Playing, sessions: &[Session], server: &Server) -> Report {
    let tolerances = Tolerances::read().expect("the tolerances");
    playing.report(sessions, server, &tolerances, false).await
}

fn at(address: SocketAddr) -> Server {
    Server {
        url: format!("ws://{address}/v1/realtime").parse().expect("a URL"),
        key: bridge::base::secret::Secret::new(KEY),
        scheme: Scheme::Bearer,
        model: MODEL.to_owned(),
        dialect: Dialect::Ga,
        roots: Roots::public(),
    }
}

fn text(report: &Report) -> String {
    report.text(true)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_is_the_same_over_sockets_and_over_tls() {
    for (dialect, tls) in [(Dialect::Ga, true), (Dialect::Beta, false)] {
        let all = script::chosen(None, dialect).expect("sessions");
        let mock = Mock::serve(&all, dialect, tls).await.expect("a port");
        let server = mock.server(MODEL, dialect).expect("an address");
        assert_eq!(server.url.secure, tls);
        let report = report(&playing(), &all, &server).await;
        assert!(report.is_same() && !report.differs(), "{}", text(&report));
        let (caller_ms, model_ms, tokens) = report.used();
        assert!(caller_ms > 2_000 && model_ms > 10_000 && tokens > 100, "{}", text(&report));
        mock.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_trusted_is_no_way_to_the_server() {
    let greeting = sessions("greeting");
    let mock = Mock::serve(&greeting, Dialect::Ga, true).await.expect("a port");
    let server = Server { roots: Roots::public(), ..mock.server(MODEL, Dialect::Ga).expect("an address") };
    let report = report(&playing(), &greeting, &server).await;
    assert!(!report.is_same() && !report.differs(), "{}", text(&report));
    assert!(text(&report).contains("cannot be reached"), "{}", text(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_drift_are_found_over_sockets() {
    let silent = ModelScript { opening: Opening::Silent, ..ModelScript::default() };
    let close = CloseAfter { ms: 400, code: 1_011, reason: "no more".to_owned() };
    let closes = ModelScript { close_after: Some(close), ..ModelScript::default() };
    let beta = ModelScript { dialect: Dialect::Beta, ..ModelScript::default() };
    for (script, what, event) in [
        (silent, What::MissingEvent, "session.created"),
        (closes, What::ExtraEvent, "websocket.close"),
        (beta, What::MissingEvent, "session.updated"),
    ] {
        let greeting = sessions("greeting");
        let mock = Mock::serve_scripts(vec![("greeting".to_owned(), script)], false).await.expect("a port");
        let mut playing = playing();
        playing.limits.step_ms = 2_000;
        let report = report(&playing, &greeting, &mock.server(MODEL, Dialect::Ga).expect("an address")).await;
        assert!(report.differs(), "{}", text(&report));
        let differences = &report.outcomes[0].comparison.as_ref().expect("a comparison").differences;
        let found = differences.iter().any(|found| found.what == what && found.event == event);
        assert!(found, "{event}: {}", text(&report));
        mock.stop().await;
    }
}

/// A server that does this with each connection, without a word of WebSocket.
fn rude(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for tcp in listener.incoming() {
            let Ok(mut tcp) = tcp else { return };
            let mut head = [0; 4_096];
            let _read = tcp.read(&mut head);
            let _written = tcp.write_all(answer.as_bytes());
            if answer.is_empty() {
                // It neither answers nor goes.
                held.push(tcp);
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_take_no_upgrade_end_the_session_in_time() {
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
    let unauthorised = rude("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    let mut playing = playing();
    playing.limits.dial_ms = 1_000;
    for (address, why) in [
        (closed, "cannot be reached"),
        (rude(""), "no answer within 1000 ms"),
        (rude("220 mail.example.com ESMTP\r\n"), "cannot be reached"),
        (unauthorised, "HTTP 401"),
    ] {
        let report = report(&playing, &sessions("greeting"), &at(address)).await;
        assert!(!report.differs() && !report.is_same(), "{}", text(&report));
        assert!(text(&report).contains(why), "{why}: {}", text(&report));
        assert!(!report.json().contains(KEY) && !text(&report).contains(KEY));
    }
    // Where a refusal is the subject, to refuse in another way is a difference.
    let report = report(&playing, &sessions("bad_key"), &at(unauthorised)).await;
    assert!(report.differs(), "{}", text(&report));
    let differences = &report.outcomes[0].comparison.as_ref().expect("a comparison").differences;
    assert!(differences.iter().any(|found| found.event == REFUSED), "{}", text(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_told_and_not_held_against_the_mock() {
    let script = ModelScript { opening: Opening::BadKey, ..ModelScript::default() };
    let mock = Mock::serve_scripts(vec![("greeting".to_owned(), script)], false).await.expect("a port");
    let server = mock.server(MODEL, Dialect::Ga).expect("an address");
    let report = report(&playing(), &sessions("greeting"), &server).await;
    assert!(!report.differs() && !report.is_same(), "{}", text(&report));
    assert!(text(&report).contains("refused with invalid_api_key"), "{}", text(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_lasts_too_long_is_left() {
    let mut playing = playing();
    playing.longest = Duration::from_millis(300);
    let report = report(&playing, &sessions("greeting"), &at(rude(""))).await;
    assert!(text(&report).contains("the run took longer"), "{}", text(&report));
    // And one that uses too much audio.
    let greeting = sessions("greeting");
    let mock = Mock::serve(&greeting, Dialect::Ga, false).await.expect("a port");
    let mut playing = self::playing();
    playing.limits.budget = Arc::new(Budget::new(700));
    let report =
        self::report(&playing, &greeting, &mock.server(MODEL, Dialect::Ga).expect("an address")).await;
    assert!(text(&report).contains("used up"), "{}", text(&report));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_is_a_fixture_and_is_like_the_mock_that_made_it() {
    let all = script::chosen(None, Dialect::Ga).expect("sessions");
    let mock = Mock::serve(&all, Dialect::Ga, false).await.expect("a port");
    let server = Server {
        key: bridge::base::secret::Secret::new(KEY),
        ..mock.server(MODEL, Dialect::Ga).expect("one")
    };
    let report = report(&playing(), &all, &server).await;
    let folder = tempfile::TempDir::new().expect("a folder");
    for seen in report.outcomes.iter().filter_map(|outcome| outcome.seen.as_ref()) {
        seen.write(folder.path()).expect("a file");
    }
    let mut decoded = 0;
    for session in &all {
        let file = folder.path().join(format!("{}.jsonl", session.name));
        let text = fs::read_to_string(&file).expect("a recording");
        assert!(!text.contains(KEY), "{} has the key", session.name);
        // What reads the golden samples reads this, and the bridge knows every event.
        for sample in golden::wire::parse(&text).expect("samples") {
            if sample.from == golden::wire::Sender::OpenAi && !sample.text.contains("\"websocket.") {
                let event = bridge::wire::realtime::decode(&sample.text);
                let event = event.unwrap_or_else(|error| panic!("{}: {error}", sample.name));
                let unknown =
                    matches!(event, bridge::wire::realtime::ServerEvent::Other { known: false, .. });
                assert!(!unknown, "{}", sample.name);
                decoded += 1;
            }
        }
    }
    assert!(decoded > 200, "{decoded}");
    let tolerances = Tolerances::read().expect("the tolerances");
    let again = against(folder.path(), &all, &tolerances, false).expect("recordings");
    assert!(again.is_same() && again.outcomes.len() == all.len(), "{}", text(&again));
    // A recording in which something is otherwise is found, without a network.
    let file = folder.path().join("truncate.jsonl");
    let changed = fs::read_to_string(&file)
        .expect("a recording")
        .replace(r#""audio_end_ms":600"#, r#""audio_end_ms":601"#);
    fs::write(&file, changed).expect("a file");
    let again = against(&file, &all, &tolerances, false).expect("a recording");
    assert!(again.differs() && text(&again).contains("audio_end_ms"), "{}", text(&again));
    for (name, words) in [("other.jsonl", "{}"), ("empty.jsonl", "")] {
        fs::write(folder.path().join(name), words).expect("a file");
        assert!(against(&folder.path().join(name), &all, &tolerances, false).is_err(), "{name}");
    }
}

// ------------------------------------------------------------------------------------------ the programs

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or does so now.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn scn(programs: &Path, words: &[&str]) -> Output {
    let mut scn = Command::new(programs.join("scn"));
    scn.arg("contract").args(words).env_remove("OPENAI_API_KEY").stdin(Stdio::null());
    scn.output().expect("scn runs")
}

#[test]
fn the_program_says_with_its_exit_status_what_it_found() {
    let programs = built();
    let folder = tempfile::TempDir::new().expect("a folder");
    let key = folder.path().join("key.txt");
    fs::write(&key, format!("{KEY}\n")).expect("a file");
    let key = key.to_str().expect("a path");
    let mut model = Command::new(programs.join("mock-openai"));
    model.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut model = Running(model.spawn().expect("the mock runs"));
    let mut words = String::new();
    let mut out = BufReader::new(model.0.stdout.take().expect("its words"));
    out.read_line(&mut words).expect("a line");
    // It goes on talking to whom it may.
    let _drain = std::thread::spawn(move || out.read_to_string(&mut String::new()));
    let url = words.split_whitespace().find(|word| word.starts_with("ws://")).expect("an address").to_owned();
    let (json, record) = (folder.path().join("contract.json"), folder.path().join("own"));
    let (json, record) = (json.to_str().expect("a path"), record.to_str().expect("a path"));

    let told = |output: &Output| {
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let unsafe_url = "ws://voice.example.com/v1/realtime";
    let missing = folder.path().join("none").to_str().expect("a path").to_owned();
    for (words, status, said) in [
        (vec!["--list"], 0, "audio tokens"),
        (vec!["bad_key"], 0, "nothing differs"),
        (
            vec!["greeting", "--url", &url, "--no-timing", "--key-file", key, "--record", record],
            0,
            "nothing differs",
        ),
        (vec!["greeting", "--against", record, "--no-timing", "--json", json], 0, "nothing differs"),
        // This mock-openai was not told to call anything.
        (vec!["function_call", "--url", &url, "--no-timing", "--step-seconds", "3"], 1, "missing event"),
        (vec!["greeting", "--url", "ws://127.0.0.1:1/v1/realtime"], 2, "cannot be reached"),
        (vec!["greeting", "--url", "wss://voice.example.com/"], 2, "OPENAI_API_KEY"),
        (vec!["greeting", "--url", unsafe_url, "--key-file", key], 2, "wss://"),
        (vec!["greeting", "--url", &url, "--key-file", &missing], 2, "cannot read"),
        (vec!["song"], 2, "barge_in"),
        (vec!["greeting", "--against", &missing], 2, "none"),
    ] {
        let output = scn(&programs, &words);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {told}");
        assert!(told.contains(said), "{words:?}: {told}");
        assert!(!told.contains(KEY), "{words:?} shows the key: {told}");
    }
    let told: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(json).expect("a file")).expect("JSON");
    assert_eq!((&told["verdict"], &told["sessions"][0]["session"]), (&"same".into(), &"greeting".into()));
}

// ------------------------------------------------------------------------------------------ the document

#[test]
fn every_flag_session_and_kind_is_explained() {
    let text = fs::read_to_string(root().join("docs/dev/contract.md")).expect("the document");
    let flags = [
        "--url",
        "--key-file",
        "--auth",
        "--model",
        "--dialect",
        "--ca",
        "--against",
        "--record",
        "--keep-audio",
        "--no-timing",
        "--tolerated",
        "--json",
        "--list",
        "--jobs",
        "--step-seconds",
        "--run-seconds",
        "--max-audio-seconds",
    ];
    let sessions = script::all().expect("sessions").into_iter().map(|session| format!("`{}`", session.name));
    let kinds = [
        What::MissingEvent,
        What::ExtraEvent,
        What::Order,
        What::Name,
        What::MissingField,
        What::ExtraField,
        What::Type,
        What::UnseenValue,
        What::Value,
        What::Timing,
    ];
    let words =
        flags.map(str::to_owned).into_iter().chain(sessions).chain(kinds.map(|kind| kind.to_string()));
    for word in words {
        assert!(text.contains(&word), "docs/dev/contract.md does not explain {word}");
    }
}
