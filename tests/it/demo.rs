//! `bridge demo`, run as a new user would: a call takes place, the live page shows it, and it can be listened to.

use super::field_bug_walkthrough::built;
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

/// How long the demo may take, on however slow a machine, in tenths of a second.
const TENTHS_MAX: usize = 1_200;

/// A program that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, or does so now.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// What the live page's figures are, if it answers.
fn figures(address: SocketAddr) -> Option<Value> {
    let mut tcp = TcpStream::connect(address).ok()?;
    tcp.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(tcp, "GET /live/calls HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

#[test]
fn the_demo_plays_a_call_that_the_live_page_shows_and_that_can_be_heard() {
    let programs = built();
    let folder = TempDir::new().expect("a folder");
    let heard = folder.path().join("heard.wav");
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("an address");
    drop(free);
    let mut demo = Command::new(programs.join("bridge"));
    demo.args(["demo", "--calls", "1", "--live-listen", &address.to_string(), "--save"]).arg(&heard);
    let mut demo = Running(demo.stdout(Stdio::piped()).spawn().expect("the demo starts"));

    let (mut agent, mut caller, mut last) = (false, false, Value::Null);
    let status = (0..TENTHS_MAX).find_map(|_| {
        sleep(Duration::from_millis(100));
        if let Some(now) = figures(address) {
            let call = now["calls"][0].clone();
            agent |= call["speaking"]["agent"] == true;
            caller |= call["speaking"]["caller"] == true;
            if call.is_object() {
                last = call;
            }
        }
        demo.0.try_wait().expect("a status")
    });
    let mut said = String::new();
    demo.0.stdout.take().expect("its words").read_to_string(&mut said).expect("text");
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{said}");
    assert!(said.contains(&format!("http://{address}/")), "{said}");
    assert!(agent && caller, "both were seen speaking: {last}");
    assert_eq!(last["bargeIns"], 1, "{last}");
    assert!(last["lines"].to_string().contains("when are you open on Saturday"), "{last}");
    let wav = fs::read(&heard).expect("a recording");
    assert!(wav.starts_with(b"RIFF") && wav.len() > 8_000 * 2 * 5, "{} bytes", wav.len());
    let samples = wav[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]]));
    let loud = samples.filter(|sample| sample.unsigned_abs() > 1_000).count();
    assert!(loud > 8_000, "{loud} loud samples: the agent was not heard for a second");
}

#[test]
fn a_demo_that_is_ended_by_a_signal_leaves_no_folder_behind() {
    let programs = built();
    for signal in ["INT", "TERM", "HUP"] {
        let folder = TempDir::new().expect("a folder");
        let left = || fs::read_dir(folder.path()).expect("the folder").count();
        let mut demo = Command::new(programs.join("bridge"));
        demo.args(["demo", "--live-listen", "127.0.0.1:0", "--save", "/dev/null"]);
        demo.env("TMPDIR", folder.path()).stdout(Stdio::null());
        let mut demo = Running(demo.spawn().expect("the demo starts"));
        let soon = |what: &mut dyn FnMut() -> bool| {
            (0..TENTHS_MAX).any(|_| {
                sleep(Duration::from_millis(100));
                what()
            })
        };
        assert!(soon(&mut || left() == 1), "it makes a folder");
        let kill = Command::new("kill").args(["-s", signal, &demo.0.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        assert!(soon(&mut || demo.0.try_wait().expect("a status").is_some()), "{signal} ends it");
        assert_eq!(left(), 0, "after {signal}");
    }
}
