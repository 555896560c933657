//! Bridges with bad manners are judged, each in bounded time, and a decent one is blamed for nothing.

use serde_json::{Value, json};
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{sleep, spawn};
use std::time::Duration;

use mocks::net::Roots;
use scenarios::model::scenario::Scenario;
use scenarios::model::seed::Seed;
use scenarios::oracle;
use scenarios::oracle::real_time::LAG_MAX_US;
use scenarios::sim::attach::{Bridge, Target};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, accept, client};

/// A question and its answer, by a caller who does not wait long.
const CALL: &str = r#"
purpose = "A question and its answer."

[bridge]
format = "pcmu"
pacing.lead_ms = 540000

[[call]]
caller.patience_ms = 4000
caller.steps = [{ waits = 500 }, { says = 1000 }, "hears_start", "hears_end", { waits = 1200 }, "hangs_up"]
model.turns = [{ answers = 2500 }]

[expect]
end = "stopped"
heard_turns_min = 1
"#;

/// How long a play may take, whatever the bridge does: all of the caller's patience, the refusal of an upgrade, and the
/// wait for a close that never comes.
const LONGEST: Duration = Duration::from_secs(40);

/// How often a bridge looks what has arrived.
const ROUND: Duration = Duration::from_millis(1);
/// How late the late one is: three seconds, or more.
const LATE_ROUNDS: u64 = 3_000;

/// What a bridge does to its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    /// Carries them.
    Decent,
    /// Answers the upgrade with 403.
    Refuses,
    /// Takes the connection and never answers the upgrade.
    HangsInUpgrade,
    /// Never dials the model.
    NeverDials,
    /// Dials the model twice, and lets the second session lie.
    DialsTwice,
    /// Drops both connections in the middle of the answer.
    Crashes,
    /// Hangs up in the middle of the answer.
    HangsUp,
    /// Reads and writes nothing any more from the middle of the answer on.
    Hangs,
    /// Hands each piece of the answer on late.
    IsLate,
    /// Sends both ends what is no message of theirs.
    TalksRubbish,
    /// Keeps the model's connection when the caller has gone.
    ForgetsTheModel,
}

type Socket = WebSocket<TcpStream>;

/// A bridge that listens. It lives as long as the test.
fn stranger(openai: SocketAddr, manners: Manners) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    spawn(move || {
        for tcp in listener.incoming().flatten() {
            // How a call ends is seen at its other ends.
            spawn(move || carry(tcp, openai, manners).ok());
        }
    });
    Ok(address)
}

/// What has arrived, if anything has.
fn next(socket: &mut Socket) -> Result<Option<Value>, Error> {
    match socket.read() {
        Ok(Message::Text(text)) => Ok(serde_json::from_str(&text).ok()),
        Ok(_) => Ok(Some(Value::Null)),
        Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn say(socket: &mut Socket, message: &Value) -> Result<(), Error> {
    socket.send(Message::text(message.to_string()))
}

/// A session that is configured, and has not confirmed it.
fn dial(openai: SocketAddr) -> Result<Socket, Error> {
    let mut request = format!("ws://{openai}/v1/realtime?model=gpt-realtime").into_client_request()?;
    request.headers_mut().insert("Authorization", HeaderValue::from_static("Bearer any"));
    let tcp = TcpStream::connect(openai)?;
    let (mut socket, _answer) =
        client(request, tcp).map_err(|error| Error::Io(io::Error::other(error.to_string())))?;
    let format = json!({"type": "audio/pcmu"});
    let input = json!({"format": format, "turn_detection": {"type": "server_vad"}});
    let audio = json!({"input": input, "output": {"format": format}});
    say(&mut socket, &json!({"type": "session.update", "session": {"type": "realtime", "audio": audio}}))?;
    socket.get_ref().set_nonblocking(true)?;
    Ok(socket)
}

fn carry(mut tcp: TcpStream, openai: SocketAddr, manners: Manners) -> Result<(), Error> {
    if manners == Manners::Refuses {
        return Ok(tcp.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")?);
    }
    if manners == Manners::HangsInUpgrade {
        sleep(LONGEST);
        return Ok(());
    }
    let mut caller = accept(tcp).map_err(|error| Error::Io(io::Error::other(error.to_string())))?;
    caller.get_ref().set_nonblocking(true)?;
    let mut model = if manners == Manners::NeverDials { None } else { Some(dial(openai)?) };
    let _second = if manners == Manners::DialsTwice { Some(dial(openai)?) } else { None };
    let (mut stream, mut ready) = (String::new(), false);
    // What waits to be handed on, with the round it came in.
    let mut held: Vec<(u64, Value)> = Vec::new();
    let (mut given, mut left) = (0, false);
    for round in 0_u64.. {
        sleep(ROUND);
        loop {
            let said = match next(&mut caller) {
                Ok(None) => break,
                Ok(Some(said)) => said,
                Err(_) if manners == Manners::ForgetsTheModel => {
                    sleep(LONGEST);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            match said["event"].as_str() {
                Some("start") => stream = said["streamSid"].as_str().unwrap_or_default().to_owned(),
                Some("media") if ready => {
                    let append =
                        json!({"type": "input_audio_buffer.append", "audio": said["media"]["payload"]});
                    model.as_mut().map_or(Ok(()), |model| say(model, &append))?;
                }
                Some("stop") if manners != Manners::ForgetsTheModel => caller.close(None)?,
                _ => {}
            }
        }
        let Some(model) = &mut model else { continue };
        while let Some(said) = next(model)? {
            match said["type"].as_str() {
                Some("session.updated") => ready = true,
                Some("response.output_audio.delta") => {
                    given += 1;
                    let media =
                        json!({"event": "media", "streamSid": stream, "media": {"payload": said["delta"]}});
                    held.push((round, media));
                    if manners == Manners::TalksRubbish && given == 1 {
                        caller.send(Message::text("}{"))?;
                        caller.send(Message::binary(vec![0xFF; 160]))?;
                        model.send(Message::text("}{"))?;
                    }
                }
                _ => {}
            }
        }
        let wait = if manners == Manners::IsLate { LATE_ROUNDS } else { 0 };
        for (_, media) in held.extract_if(.., |(came, _)| round >= *came + wait) {
            say(&mut caller, &media)?;
        }
        if given < 3 {
            continue;
        }
        if manners == Manners::Crashes {
            return Ok(());
        }
        if manners == Manners::Hangs {
            sleep(LONGEST);
            return Ok(());
        }
        if manners == Manners::HangsUp && !left {
            left = true;
            caller.close(None)?;
        }
    }
    Ok(())
}

/// What is held against a bridge: the rules it broke and what neither end can see. A play among which this machine was
/// too busy is made again.
fn judged(manners: Option<Manners>) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let scenario = Scenario::from_toml("strangers/one_question", CALL).expect("a scenario");
    runtime.block_on(async {
        // The model's place is known when it is served, and the bridge's place before: neither can be first.
        let place = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let address = match manners {
            Some(manners) => stranger(place, manners).expect("a bridge"),
            None => "127.0.0.1:1".parse().expect("an address"),
        };
        let target = Target {
            bridge: Some(format!("ws://{address}/media-stream").parse().expect("an address")),
            start_url: None,
            public: None,
            token: None,
            roots: Roots::public(),
        };
        let bridge = Bridge::attach(target, place, None).await.expect("a place for the model");
        let mut tries = 0;
        loop {
            let played = tokio::time::timeout(LONGEST, bridge.play(&scenario, Seed(1))).await;
            let played =
                played.unwrap_or_else(|_| panic!("{manners:?} was waited for")).expect("the harness works");
            assert!(!played.trace.cut, "{manners:?} was waited for without an end");
            tries += 1;
            let mut found: Vec<String> =
                oracle::judge(&played.trace).iter().map(ToString::to_string).collect();
            found.extend(played.notes);
            if played.trace.lag_us <= LAG_MAX_US || found.is_empty() || tries > 3 {
                return found;
            }
        }
    })
}

#[test]
fn every_kind_of_misbehaviour_is_named_in_bounded_time() {
    use Manners::{
        Crashes, DialsTwice, ForgetsTheModel, Hangs, HangsInUpgrade, HangsUp, IsLate, NeverDials, Refuses,
        TalksRubbish,
    };
    let cases = [
        (None, "no answer at"),
        (Some(Refuses), "answered with 403"),
        (Some(HangsInUpgrade), "the upgrade got no answer"),
        (Some(NeverDials), "at least 1 items were to be heard"),
        (Some(DialsTwice), "the model was given nothing"),
        (Some(Crashes), "the bridge ended it"),
        (Some(HangsUp), "the bridge ended it"),
        (Some(Hangs), "the model's connection ended"),
        (Some(IsLate), "response_latency: "),
        (Some(TalksRubbish), "protocol_valid: "),
        (Some(ForgetsTheModel), "teardown: "),
    ];
    std::thread::scope(|scope| {
        let plays = cases.map(|(manners, word)| (manners, word, scope.spawn(move || judged(manners))));
        for (manners, word, play) in plays {
            let found = play.join().unwrap_or_else(|_| panic!("{manners:?} could not be judged"));
            assert!(found.iter().any(|said| said.contains(word)), "{manners:?}: {found:#?}");
        }
    });
}

#[test]
fn a_decent_bridge_is_blamed_for_nothing() {
    assert_eq!(judged(Some(Manners::Decent)), Vec::<String>::new());
}
