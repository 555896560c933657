//! Functions run by webhooks: JSON goes out, JSON comes back, both bounded, and signed so that the service can tell
//! who asks.
//!
//! The request is a `POST` of `{"callSid", "callId", "name", "arguments"}` to the one address the operator configured
//! for the function. It is signed by the open Standard Webhooks scheme, for which there are libraries in most
//! languages: `webhook-id` names this run and stays the same when it is tried again, `webhook-timestamp` is the Unix
//! time, `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
//!
//! The answer is a status of 200 to 299 with JSON, which the model gets as it is, or 204, which says that it is done.
//! Anything else has failed: the operator's log has why, the model only that it did not work. A failure is tried again
//! when the function is said to be idempotent, and else not at all, for the service may have begun with it.
//!
//! The operator alone decides where a request may go: no redirect is followed, and a name that resolves to an address
//! of this machine, of the network around it, or of a cloud's keys is not dialled unless that was allowed. How long a
//! function may take in all is the call's to watch, who drops the run.

use super::tools::Tools;
use crate::base::secret::Secret;
use crate::base::url::shown_url;
use crate::net::http_client::{Answer, Client, Failure, Request, Retry, TlsConnect, is_a_service, is_public};
use axum::http::{HeaderName, Method, StatusCode, Uri};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the secret begins with, by the scheme.
const SECRET_PREFIX: &str = "whsec_";
/// How often an idempotent function is asked for, and how long to wait in between.
const RETRY: Retry = Retry { attempts: 3, wait: Duration::from_millis(200) };

/// The functions' webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What requests are signed with: `whsec_` and 24 to 64 bytes in base64. Better given as `BRIDGE_TOOLS_SECRET`.
    pub secret: Secret,
    /// Longest answer, bytes. The model reads all of it.
    pub answer_bytes_max: usize,
    /// Where each function of `call.tools` is run.
    pub webhooks: BTreeMap<String, Webhook>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { secret: Secret::default(), answer_bytes_max: 64 * 1024, webhooks: BTreeMap::new() }
    }
}

/// Where a function is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// An https address; http for loopback addresses, or with `allow_private`.
    #[serde(serialize_with = "crate::base::url::serialize_url")]
    pub url: String,
    /// Running it twice does no harm: what fails is tried again, three times in all.
    #[serde(default)]
    pub idempotent: bool,
    /// The service may be in a network of one's own, and without TLS.
    #[serde(default)]
    pub allow_private: bool,
    /// How long one attempt may take, ms. The function's own `timeout_ms` bounds all of them together.
    #[serde(default = "attempt_ms")]
    pub attempt_ms: u64,
}

const fn attempt_ms() -> u64 {
    10_000
}

impl Settings {
    /// What is wrong with them, beyond their types. `tools` are the functions the model is offered.
    pub(crate) fn check(&self, tools: &[&str], refuse: &mut impl FnMut(String)) {
        if !(1..=1_048_576).contains(&self.answer_bytes_max) {
            refuse(format!("tools.answer_bytes_max = {}: between 1 and 1048576", self.answer_bytes_max));
        }
        let made = "make one with: echo whsec_$(openssl rand -base64 32)";
        if self.secret.is_empty() {
            if !self.webhooks.is_empty() {
                refuse(format!(
                    "BRIDGE_TOOLS_SECRET is missing: webhooks of functions are signed with it; {made}"
                ));
            }
        } else if key(&self.secret).is_none() {
            refuse(format!("BRIDGE_TOOLS_SECRET is not whsec_ and 24 to 64 bytes in base64; {made}"));
        }
        for (name, webhook) in &self.webhooks {
            let place = format!("tools.webhooks.{name}");
            if !tools.contains(&name.as_str()) {
                refuse(format!("{place}: there is no function {name:?} in call.tools"));
            }
            if let Err(why) = webhook.place() {
                refuse(format!("{place}.url = {:?}: {why}", shown_url(&webhook.url)));
            }
            if !(100..=600_000).contains(&webhook.attempt_ms) {
                refuse(format!("{place}.attempt_ms = {}: between 100 and 600000", webhook.attempt_ms));
            }
        }
    }
}

impl Webhook {
    /// Which addresses it may be at.
    fn place(&self) -> Result<fn(IpAddr) -> bool, &'static str> {
        let wanted = "an https address such as https://tools.example.com/opening-hours";
        let uri: Uri = self.url.parse().map_err(|_| wanted)?;
        if self.url.contains('#') || Request::new(Method::POST, &self.url).is_err() {
            return Err(wanted);
        }
        let host = uri.host().ok_or(wanted)?.trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        let is_here = host == "localhost" || address.is_some_and(|address| address.is_loopback());
        let may: fn(IpAddr) -> bool = match (is_here, self.allow_private) {
            (true, _) => |address| address.is_loopback(),
            (false, true) => is_a_service,
            (false, false) => is_public,
        };
        if uri.scheme_str() != Some("https") && !is_here && !self.allow_private {
            return Err(
                "without TLS any host on the way reads and answers it: write https, or allow_private = true",
            );
        }
        match address {
            Some(address) if !is_a_service(address) => {
                Err("a link-local address, or one that belongs to no host")
            }
            Some(address) if !may(address) => {
                Err("an address of a private network: allow_private = true, if that is meant")
            }
            Some(_) | None => Ok(may),
        }
    }

    /// Connections to where it may be, whatever its name resolves to.
    fn reach(&self, connect: &TlsConnect) -> Result<TlsConnect, &'static str> {
        Ok(connect.clone().only(self.place()?))
    }
}

/// The key in a secret, if it is one.
fn key(secret: &Secret) -> Option<Vec<u8>> {
    let key = BASE64.decode(secret.expose().strip_prefix(SECRET_PREFIX)?).ok()?;
    (24..=64).contains(&key.len()).then_some(key)
}

struct Wired {
    client: Client<TlsConnect>,
    url: String,
    retry: Retry,
}

/// Runs functions by their webhooks. A handle: clones share what is configured.
#[derive(Clone)]
pub struct Webhooks(Arc<Wires>);

struct Wires {
    key: Vec<u8>,
    unix_now: fn() -> i64,
    by_name: BTreeMap<String, Wired>,
}

impl Webhooks {
    /// Those that are configured, over connections made by `connect`.
    ///
    /// # Errors
    /// In words, what is wrong with one: settings that were checked have nothing.
    pub fn new(settings: &Settings, connect: &TlsConnect, unix_now: fn() -> i64) -> Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for (name, webhook) in &settings.webhooks {
            let reach = webhook.reach(connect).map_err(|why| format!("tools.webhooks.{name}.url: {why}"))?;
            let timeout = Duration::from_millis(webhook.attempt_ms);
            let wired = Wired {
                client: Client::new(reach, timeout, settings.answer_bytes_max),
                url: webhook.url.clone(),
                retry: if webhook.idempotent { RETRY } else { Retry::NEVER },
            };
            by_name.insert(name.clone(), wired);
        }
        let key = key(&settings.secret).unwrap_or_default();
        if key.is_empty() && !by_name.is_empty() {
            return Err("tools.secret: webhooks are signed, and there is nothing to sign with".into());
        }
        Ok(Self(Arc::new(Wires { key, unix_now, by_name })))
    }
}

/// The signature of a message, by the scheme.
fn signature(key: &[u8], id: &str, timestamp: i64, body: &[u8]) -> Result<String, String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|error| error.to_string())?;
    for part in [id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body] {
        mac.update(part);
    }
    Ok(format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())))
}

/// An id fit for a header: what a model made up may hold anything.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').take(100).collect()
}

impl Tools for Webhooks {
    async fn run(
        &self,
        call_sid: &str,
        call_id: &str,
        name: &str,
        arguments: &str,
    ) -> Result<String, String> {
        let Some(wired) = self.0.by_name.get(name) else {
            return Err(format!("the function {name} is not available on this line"));
        };
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        let body = json!({ "callSid": call_sid, "callId": call_id, "name": name, "arguments": arguments });
        let body = body.to_string().into_bytes();
        let id = format!("{}_{}", plain(call_sid), plain(call_id));
        let timestamp = (self.0.unix_now)();
        let request = signature(&self.0.key, &id, timestamp, &body).and_then(|signature| {
            let headers = [
                ("accept", "application/json"),
                ("webhook-id", id.as_str()),
                ("webhook-timestamp", &timestamp.to_string()),
                ("webhook-signature", &signature),
            ];
            let request = Request::new(Method::POST, &wired.url).map_err(|error| error.to_string())?;
            headers.into_iter().try_fold(request.body("application/json", body), |request, (name, value)| {
                request.header(HeaderName::from_static(name), value).map_err(|error| error.to_string())
            })
        });
        let request = request.map_err(|why| failed(name, &why, "the function cannot be reached"))?;
        let outcome = wired.client.send_until(&request, wired.retry, is_worth_another).await;
        match outcome {
            Ok(answer) => read(name, answer),
            Err(failure) => {
                let words = match failure {
                    Failure::Late(..) => "the function did not answer in time",
                    Failure::TooLong(_) => "the function answered with too much",
                    Failure::Address
                    | Failure::Header(_)
                    | Failure::Connect(_)
                    | Failure::Exchange(_)
                    | Failure::Body(_) => "the function cannot be reached",
                };
                Err(failed(name, &failure.to_string(), words))
            }
        }
    }
}

/// What may be otherwise the next time.
fn is_worth_another(outcome: &Result<Answer, Failure>) -> bool {
    match outcome {
        Ok(answer) => {
            answer.status.is_server_error()
                || matches!(answer.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        }
        Err(failure) => !matches!(failure, Failure::Address | Failure::Header(_) | Failure::TooLong(_)),
    }
}

/// The output in an answer.
fn read(name: &str, answer: Answer) -> Result<String, String> {
    if answer.status == StatusCode::NO_CONTENT {
        return Ok(r#"{"status":"done"}"#.into());
    }
    if !answer.status.is_success() {
        let why = format!("the service answered {}", answer.status);
        return Err(failed(name, &why, "the function failed"));
    }
    // Read whole, so that what is no JSON, or nested beyond sense, is not passed on.
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(value) => Ok(value.to_string()),
        Err(error) => {
            let why = format!("the answer is no JSON, at line {}, column {}", error.line(), error.column());
            Err(failed(name, &why, "the function failed"))
        }
    }
}

/// The operator learns why, the model what to make of it.
fn failed(name: &str, why: &str, words: &str) -> String {
    tracing::warn!(function = name, why, "a function's webhook failed");
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::http_client::{Connect as _, Endpoint};
    use axum::Router;
    use axum::extract::{Request as Asked, State};
    use axum::http::{HeaderMap, header};
    use axum::response::{IntoResponse as _, Response};
    use std::collections::VecDeque;
    use std::future::pending;
    use std::sync::Mutex;
    use tokio::net::TcpListener;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const CALL: &str = "CA0123456789abcdef0123456789abcdef";

    type Seen = Arc<Mutex<Vec<(HeaderMap, String)>>>;

    /// A service that answers from a list, and hangs when it is empty.
    #[derive(Clone)]
    struct Service {
        answers: Arc<Mutex<VecDeque<Response>>>,
        seen: Seen,
    }

    async fn answer(State(service): State<Service>, asked: Asked) -> Response {
        let (head, body) = asked.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        service.seen.lock().unwrap().push((head.headers, String::from_utf8(body.to_vec()).unwrap()));
        let next = service.answers.lock().unwrap().pop_front();
        match next {
            Some(answer) => answer,
            None => pending().await,
        }
    }

    fn said(status: u16, body: &str) -> Response {
        (StatusCode::from_u16(status).unwrap(), body.to_owned()).into_response()
    }

    async fn service(answers: impl IntoIterator<Item = Response>) -> (String, Seen) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/run", listener.local_addr().unwrap());
        let answers = Arc::new(Mutex::new(answers.into_iter().collect()));
        let service = Service { answers, seen: Seen::default() };
        let seen = service.seen.clone();
        let router = Router::new().fallback(answer).with_state(service);
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, seen)
    }

    fn webhook(url: &str) -> Webhook {
        Webhook { url: url.into(), idempotent: false, allow_private: false, attempt_ms: 300 }
    }

    fn settings(webhook: Webhook) -> Settings {
        let webhooks = BTreeMap::from([("look_up".to_owned(), webhook)]);
        Settings { secret: Secret::new(SECRET), answer_bytes_max: 1_000, webhooks }
    }

    async fn run(webhook: Webhook) -> Result<String, String> {
        let webhooks =
            Webhooks::new(&settings(webhook), &TlsConnect::new().unwrap(), || 1_700_000_000).unwrap();
        webhooks.run(CALL, "call_1", "look_up", r#"{"day":"Monday"}"#).await
    }

    #[tokio::test]
    async fn a_function_is_asked_for_in_json_and_its_answer_is_the_output() {
        let (url, seen) = service([said(200, r#"{"open": [9, 17]}"#), said(204, "")]).await;
        assert_eq!(run(webhook(&url)).await, Ok(r#"{"open":[9,17]}"#.into()));
        assert_eq!(run(webhook(&url)).await, Ok(r#"{"status":"done"}"#.into()));
        let seen = seen.lock().unwrap();
        let (headers, body) = &seen[0];
        let value: Value = serde_json::from_str(body).unwrap();
        let wanted =
            json!({"callSid": CALL, "callId": "call_1", "name": "look_up", "arguments": {"day": "Monday"}});
        assert_eq!(value, wanted);
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["webhook-id"], format!("{CALL}_call_1"));
        assert_eq!(headers["webhook-timestamp"], "1700000000");
        // As the service would check it.
        let key = BASE64.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{CALL}_call_1.1700000000.{body}").as_bytes());
        let wanted = format!("v1,{}", BASE64.encode(mac.finalize().into_bytes()));
        assert_eq!(headers["webhook-signature"], wanted);
    }

    #[tokio::test]
    async fn an_id_that_a_model_made_up_is_fit_for_a_header() {
        let (url, seen) = service([said(200, "1")]).await;
        let (connect, settings) = (TlsConnect::new().unwrap(), settings(webhook(&url)));
        let webhooks = Webhooks::new(&settings, &connect, || 1_700_000_000).unwrap();
        let output = webhooks.run(CALL, "call_1\r\nX-Evil: 1", "look_up", "{}").await;
        assert_eq!(output, Ok("1".into()));
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0].0["webhook-id"], format!("{CALL}_call_1X-Evil1"));
        assert!(!seen[0].0.contains_key("x-evil"));
    }

    #[test]
    fn the_signature_is_that_of_the_schemes_own_example() {
        let key = key(&Secret::new(SECRET)).unwrap();
        let made = signature(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(made, Ok("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".into()));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_without_the_services_words() {
        for (answer, words) in [
            (said(500, "stack trace"), "the function failed"),
            (said(404, "no"), "the function failed"),
            (said(200, "<html>"), "the function failed"),
            (said(200, ""), "the function failed"),
            (said(200, &"[".repeat(900)), "the function failed"),
            (said(200, &format!("\"{}\"", "x".repeat(1_000))), "the function answered with too much"),
        ] {
            let (url, seen) = service([answer]).await;
            assert_eq!(run(webhook(&url)).await, Err(words.into()));
            assert_eq!(seen.lock().unwrap().len(), 1, "asked once");
        }
    }

    #[tokio::test]
    async fn a_service_that_hangs_is_given_up_and_one_that_is_slow_is_not() {
        let (url, seen) = service([]).await;
        assert_eq!(run(webhook(&url)).await, Err("the function did not answer in time".into()));
        assert_eq!(seen.lock().unwrap().len(), 1);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let slow = Router::new().fallback(|| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            "1"
        });
        tokio::spawn(async move { axum::serve(listener, slow).await });
        assert_eq!(run(Webhook { attempt_ms: 5_000, ..webhook(&url) }).await, Ok("1".into()));
    }

    #[tokio::test]
    async fn only_an_idempotent_function_is_tried_again_and_under_one_name() {
        let (url, seen) = service([said(500, ""), said(200, "1")]).await;
        assert_eq!(run(webhook(&url)).await, Err("the function failed".into()));
        assert_eq!(seen.lock().unwrap().len(), 1);
        let (url, seen) = service([said(503, ""), said(429, ""), said(200, "2")]).await;
        let idempotent = Webhook { idempotent: true, ..webhook(&url) };
        assert_eq!(run(idempotent.clone()).await, Ok("2".into()));
        {
            let seen = seen.lock().unwrap();
            assert_eq!(seen.len(), 3);
            assert!(seen.iter().all(|(headers, _)| headers["webhook-id"] == seen[0].0["webhook-id"]));
        }
        let (url, seen) = service([said(404, ""), said(200, "3")]).await;
        let idempotent = Webhook { url, ..idempotent };
        assert_eq!(run(idempotent).await, Err("the function failed".into()));
        assert_eq!(seen.lock().unwrap().len(), 1, "what is refused is refused");
    }

    #[tokio::test]
    async fn a_redirect_is_a_failure_and_is_not_followed() {
        let (elsewhere, asked) = service([said(200, "1")]).await;
        let away = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, elsewhere)]).into_response();
        let (url, _) = service([away]).await;
        assert_eq!(
            run(Webhook { idempotent: true, ..webhook(&url) }).await,
            Err("the function failed".into())
        );
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_function_without_a_webhook_is_not_available() {
        let webhooks = Webhooks::new(&Settings::default(), &TlsConnect::new().unwrap(), || 0).unwrap();
        let output = webhooks.run(CALL, "call_1", "look_up", "{}").await;
        assert_eq!(output, Err("the function look_up is not available on this line".into()));
    }

    #[tokio::test]
    async fn a_name_that_leads_into_the_own_network_is_not_dialled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // A public name that a name server resolves to this machine.
        let leads_here = Endpoint { secure: false, host: "127.0.0.1".into(), port };
        let connect = TlsConnect::new().unwrap();
        let reach = webhook("https://tools.example.com/x").reach(&connect).unwrap();
        let refused = reach.connect(&leads_here).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        let here = webhook("http://localhost/x").reach(&connect).unwrap();
        assert!(here.connect(&leads_here).await.is_ok());
    }

    #[test]
    fn where_a_webhook_may_be_is_checked_before_anything_is_sent() {
        let place = |url: &str, allow_private| Webhook { allow_private, ..webhook(url) }.place();
        for good in
            ["https://tools.example.com/x", "http://127.0.0.1:9/x", "http://localhost:9", "http://[::1]/"]
        {
            assert!(place(good, false).is_ok(), "{good}");
        }
        for bad in [
            "http://tools.example.com/x",
            "https://10.0.0.1/x",
            "https://user@tools.example.com/",
            "ftp://tools.example.com/",
            "https://tools.example.com/#x",
            "/x",
        ] {
            assert!(place(bad, false).is_err(), "{bad}");
        }
        assert!(place("http://10.0.0.1/x", true).is_ok() && place("http://tools.internal/x", true).is_ok());
        for keys in
            ["http://169.254.169.254/", "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://0.0.0.0/"]
        {
            assert!(place(keys, true).is_err(), "{keys}");
        }
        let may = place("http://tools.internal/x", true).unwrap();
        assert!(may("10.0.0.1".parse().unwrap()) && !may("169.254.169.254".parse().unwrap()));
        let here = place("http://localhost:9", true).unwrap();
        assert!(here("127.0.0.1".parse().unwrap()) && !here("10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let problems = |settings: &Settings| {
            let mut problems = Vec::new();
            settings.check(&["look_up"], &mut |problem| problems.push(problem));
            problems.join("\n")
        };
        let good = settings(webhook("https://tools.example.com/x"));
        assert_eq!(problems(&good), "");
        assert_eq!(problems(&Settings::default()), "");
        let unsigned = Settings { secret: Secret::default(), ..good.clone() };
        assert!(problems(&unsigned).contains("BRIDGE_TOOLS_SECRET is missing"));
        let weak = Settings { secret: Secret::new("whsec_c2hvcnQ="), ..good.clone() };
        assert!(problems(&weak).contains("24 to 64 bytes") && !problems(&weak).contains("c2hvcnQ"));
        let mut unknown = good.clone();
        unknown.webhooks.insert("other".into(), webhook("http://tools.example.com/x"));
        assert!(problems(&unknown).contains("no function \"other\""));
        assert!(problems(&unknown).contains("allow_private"));
    }
}
