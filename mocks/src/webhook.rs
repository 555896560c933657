//! The first question of a call: Twilio asks the webhook of a number, and follows the TwiML of the answer.

use crate::net::{Roots, Stream, Url, dial};
use crate::twilio::Identity;
use crate::twilio::signature;
use anyhow::{Context as _, bail, ensure};
use http_body_util::{BodyExt as _, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

/// The header of a signature.
pub const SIGNATURE: &str = "X-Twilio-Signature";
/// How long Twilio waits for TwiML.
const PATIENCE: Duration = Duration::from_secs(15);
/// The longest TwiML.
const TWIML_MAX: usize = 64 * 1024;

/// Where a call is to be connected, as its TwiML says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// The address of the stream.
    pub stream: Url,
    /// What `start` carries as `customParameters`.
    pub parameters: BTreeMap<String, String>,
    /// Verbs before it that a mock does not play: `Say`, `Pause` and the like.
    pub skipped: Vec<String>,
}

/// Asks the webhook at `webhook` about a call, as Twilio does: a form, signed if there is a token. `public` is the
/// address Twilio knows it by, which is what is signed, when that is another one.
///
/// # Errors
/// When no answer comes in time, or one with an error, or with TwiML that connects the call to no stream.
pub async fn ask(
    webhook: &Url,
    public: &Url,
    token: Option<&str>,
    call: &Identity,
    roots: &Roots,
) -> anyhow::Result<Invitation> {
    let asked = tokio::time::timeout(PATIENCE, post(webhook, public, token, call, roots));
    let text = asked
        .await
        .with_context(|| format!("{webhook} did not answer within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("{webhook} cannot be asked what to do with a call"))?;
    read(&text, public).with_context(|| format!("{webhook} answered with TwiML that cannot be followed"))
}

/// What Twilio tells about an incoming call.
fn form(call: &Identity) -> [(&'static str, &str); 9] {
    [
        ("AccountSid", &call.account_sid),
        ("ApiVersion", "2010-04-01"),
        ("CallSid", &call.call_sid),
        ("CallStatus", "ringing"),
        ("Called", "+15005550006"),
        ("Caller", "+14155550123"),
        ("Direction", "inbound"),
        ("From", "+14155550123"),
        ("To", "+15005550006"),
    ]
}

fn encoded(form: &[(&str, &str)]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
    let word = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b' ' => "+".to_owned(),
                byte if plain(byte) => char::from(byte).to_string(),
                byte => format!("%{byte:02X}"),
            })
            .collect()
    };
    let pairs: Vec<_> = form.iter().map(|(name, value)| format!("{}={}", word(name), word(value))).collect();
    pairs.join("&")
}

async fn post(
    webhook: &Url,
    public: &Url,
    token: Option<&str>,
    call: &Identity,
    roots: &Roots,
) -> anyhow::Result<String> {
    let stream: Stream = dial(webhook, roots).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let form = form(call);
    let mut request = Request::post(&webhook.target)
        .header("Host", public.authority())
        .header("User-Agent", "TwilioProxy/1.1")
        .header("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
        .header("Connection", "close");
    if let Some(token) = token {
        request = request.header(SIGNATURE, signature(token, public.as_str(), &form));
    }
    let request = request.body(encoded(&form)).context("the request cannot be built")?;
    // The connection is what moves the bytes of both; it ends with the answer.
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), TWIML_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer cannot be read: {error}"))?.to_bytes();
        let text = String::from_utf8(body.into()).context("its answer is no UTF-8")?;
        ensure!(status.is_success(), "it answered {status}: {}", text.trim());
        Ok(text)
    };
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        text = &mut answer => text,
        ended = connection => {
            ended?;
            // All of the answer has arrived; it only has to be taken.
            answer.await
        }
    }
}

/// What TwiML asks for. A relative address of the stream is one of the host that answered, at `base`.
///
/// # Errors
/// When it is no XML, or connects the call to no stream that speaks both ways.
pub fn read(twiml: &str, base: &Url) -> anyhow::Result<Invitation> {
    let mut reader = Reader::from_str(twiml);
    reader.config_mut().trim_text(true);
    let mut open: Vec<String> = Vec::new();
    let mut found: Option<Invitation> = None;
    let mut skipped = Vec::new();
    loop {
        let event = reader.read_event().context("it is no XML")?;
        let (tag, empty) = match event {
            Event::Start(tag) => (tag, false),
            Event::Empty(tag) => (tag, true),
            Event::End(_) => {
                open.pop();
                continue;
            }
            Event::Eof => break,
            Event::Text(_)
            | Event::CData(_)
            | Event::Comment(_)
            | Event::Decl(_)
            | Event::PI(_)
            | Event::DocType(_)
            | Event::GeneralRef(_) => continue,
        };
        let name = String::from_utf8_lossy(tag.name().as_ref()).into_owned();
        let place: Vec<&str> = open.iter().map(String::as_str).collect();
        match (place.as_slice(), name.as_str()) {
            ([], "Response") | (["Response"], "Connect") => {}
            (["Response", "Connect"], "Stream") if found.is_none() => {
                let url = attribute(&tag, "url")?.context("its <Stream> has no url")?;
                found = Some(Invitation {
                    stream: resolved(&url, base)?,
                    parameters: BTreeMap::new(),
                    skipped: Vec::new(),
                });
            }
            (["Response", "Connect", "Stream"], "Parameter") => {
                let name = attribute(&tag, "name")?.context("a <Parameter> has no name")?;
                let value = attribute(&tag, "value")?.context("a <Parameter> has no value")?;
                if let Some(found) = &mut found {
                    found.parameters.insert(name, value);
                }
            }
            (["Response"], "Start") => {
                bail!("<Start><Stream> only listens; a bridge that speaks needs <Connect><Stream>")
            }
            (["Response"], verb) if found.is_none() => skipped.push(verb.to_owned()),
            _ => {}
        }
        if !empty {
            open.push(name);
        }
    }
    let mut found =
        found.with_context(|| format!("there is no <Connect><Stream> in it: {}", twiml.trim()))?;
    found.skipped = skipped;
    Ok(found)
}

fn attribute(tag: &BytesStart<'_>, wanted: &str) -> anyhow::Result<Option<String>> {
    for attribute in tag.attributes() {
        let attribute = attribute.context("an attribute cannot be read")?;
        if attribute.key.as_ref() == wanted.as_bytes() {
            let text = std::str::from_utf8(&attribute.value).context("an attribute is no UTF-8")?;
            return Ok(Some(quick_xml::escape::unescape(text)?.into_owned()));
        }
    }
    Ok(None)
}

/// Twilio wants `wss`; a mock on one machine takes `ws`, too.
fn resolved(url: &str, base: &Url) -> anyhow::Result<Url> {
    if url.starts_with('/') {
        let scheme = if base.secure { "wss" } else { "ws" };
        return format!("{scheme}://{}{url}", base.authority()).parse();
    }
    let parsed: Url = url.parse()?;
    ensure!(url.starts_with("ws"), "its stream {url} is no wss:// address");
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn base() -> Url {
        "https://voice.example.com/voice".parse().unwrap()
    }

    #[test]
    fn the_stream_and_its_parameters_are_read() {
        let twiml = r#"<?xml version="1.0" encoding="UTF-8"?>
            <!-- a comment -->
            <Response><Say>One &amp; two</Say><Pause length="1"/>
              <Connect><Stream url="wss://a.example.com/media?x=1&amp;y=2">
                <Parameter name="tenant" value="t &quot;42&quot;"/><Parameter name="b" value=""/>
              </Stream></Connect>
              <Hangup/>
            </Response>"#;
        let found = read(twiml, &base()).unwrap();
        assert_eq!(found.stream.as_str(), "wss://a.example.com/media?x=1&y=2");
        assert_eq!(found.parameters["tenant"], "t \"42\"");
        assert_eq!(
            (found.parameters["b"].as_str(), found.skipped),
            ("", vec!["Say".to_owned(), "Pause".to_owned()])
        );
        let relative = r#"<Response><Connect><Stream url="/media"/></Connect></Response>"#;
        assert_eq!(read(relative, &base()).unwrap().stream.as_str(), "wss://voice.example.com/media");
    }

    #[test]
    fn twiml_that_connects_no_stream_is_refused_with_a_reason() {
        for (twiml, word) in [
            ("<Response><Say>Hi</Say></Response>", "no <Connect><Stream>"),
            ("<Response><Start><Stream url=\"wss://a/b\"/></Start></Response>", "only listens"),
            ("<Response><Connect><Stream/></Connect></Response>", "has no url"),
            ("<Response><Connect><Stream url=\"https://a/b\"/></Connect></Response>", "no wss:// address"),
            ("<Response></Nonsense>", "no XML"),
        ] {
            let error = format!("{:#}", read(twiml, &base()).unwrap_err());
            assert!(error.contains(word), "{twiml}: {error}");
        }
    }

    #[tokio::test]
    async fn a_webhook_is_asked_with_a_signed_form() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let webhook: Url = format!("http://{}/voice", listener.local_addr().unwrap()).parse().unwrap();
        let call = Identity { account_sid: "AC1".into(), call_sid: "CA1".into(), stream_sid: "MZ1".into() };
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !String::from_utf8_lossy(&request).contains("To=%2B15005550006") {
                let mut some = [0; 1024];
                let read = tcp.read(&mut some).await.unwrap();
                request.extend_from_slice(&some[..read]);
            }
            let twiml = "<Response><Connect><Stream url=\"/s\"/></Connect></Response>";
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{twiml}", twiml.len());
            tcp.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request).unwrap().to_lowercase()
        };
        let (public, roots) = (base(), Roots::public());
        let (request, found) = tokio::join!(serve, ask(&webhook, &public, Some("12345"), &call, &roots));
        assert_eq!(found.unwrap().stream.as_str(), "wss://voice.example.com/s");
        let signed = signature("12345", "https://voice.example.com/voice", &form(&call)).to_lowercase();
        assert!(request.contains(&format!("x-twilio-signature: {signed}")), "{request}");
        assert!(
            request.contains("host: voice.example.com\r\n") && request.contains("callsid=ca1"),
            "{request}"
        );
    }
}
