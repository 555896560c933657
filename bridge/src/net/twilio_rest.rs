//! Twilio's REST API, as far as a bridge needs it: hang up, put through, place a call.
//!
//! What may be asked twice without harm is tried again; a transfer and a new call are tried again only when Twilio
//! cannot have begun with them, for the second try would ring a second time. A call that is over already has been
//! hung up; it cannot be transferred any more.

use crate::auth::stream_auth;
use crate::base::secret::Secret;
use crate::base::url::PublicUrl;
use crate::call::settings::{END_CALL, TRANSFER_CALL};
use crate::net::http_client::{Answer, Client, Connect, Failure, Request, Retry};
use crate::net::tools::Tools;
use crate::wire::twiml;
use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for one answer of Twilio.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Longest answer, bytes; a call's description is about two thousand.
const ANSWER_MAX: usize = 64 * 1024;
/// How often something is asked.
const RETRY: Retry = Retry { attempts: 3, wait: Duration::from_millis(250) };
/// Twilio's code for a call that is not going on any more.
const NOT_IN_PROGRESS: u64 = 21_220;
/// Twilio's code for something it does not know, or knows no longer.
const NOT_FOUND: u64 = 20_404;

/// Why Twilio did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The call is over already.
    #[error("the call is over")]
    CallEnded,
    /// What was asked makes no sense; nothing was sent.
    #[error("{0}")]
    InvalidRequest(String),
    /// Twilio refused.
    #[error("Twilio refused with {status}, code {code}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Twilio's own code, 0 when it gave none.
        code: u64,
        /// In Twilio's words.
        message: String,
    },
    /// No answer came.
    #[error("Twilio could not be asked: {0}")]
    Unreachable(String),
}

/// Something that is being done.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;

/// The carrier of the calls, which places, ends and transfers them.
pub trait Carrier: Send + Sync + 'static {
    /// Ends a call. One that is over already is as good.
    fn hang_up<'a>(&'a self, call_sid: &'a str) -> Doing<'a, ()>;

    /// Puts the caller of a call through to a number; its stream ends with that.
    fn transfer<'a>(&'a self, call_sid: &'a str, to: &'a str) -> Doing<'a, ()>;

    /// Places a call to a number, from another or from the usual one. Returns its name.
    fn place<'a>(&'a self, to: &'a str, from: Option<&'a str>) -> Doing<'a, String>;
}

/// Twilio, by REST.
pub struct Rest<C> {
    client: Client<C>,
    /// `https://api.twilio.com/2010-04-01/Accounts/AC...`.
    account: String,
    authorization: Secret,
    number: String,
    /// Where Twilio asks what to do with a call it placed.
    webhook: Option<String>,
    retry: Retry,
}

impl<C: Connect> Rest<C> {
    /// The REST API for the account of these settings; `None` when they name none, or have no auth token.
    pub fn new(twilio: &stream_auth::Settings, public_url: Option<&PublicUrl>, connect: C) -> Option<Self> {
        if twilio.account_sid.is_empty() || twilio.auth_token.is_empty() {
            return None;
        }
        let pair = format!("{}:{}", twilio.account_sid, twilio.auth_token.expose());
        Some(Self {
            client: Client::new(connect, TIMEOUT, ANSWER_MAX),
            account: format!(
                "{}/2010-04-01/Accounts/{}",
                twilio.api_url.trim_end_matches('/'),
                twilio.account_sid
            ),
            authorization: Secret::new(format!("Basic {}", BASE64.encode(pair))),
            number: twilio.number.clone(),
            webhook: public_url.map(|url| url.url_of(stream_auth::VOICE)),
            retry: RETRY,
        })
    }

    /// Waits otherwise before it tries again.
    #[must_use]
    pub const fn retrying(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    async fn ask(&self, path: &str, form: &[(&str, &str)], harmless: bool) -> Result<Value, Problem> {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let unreachable = |failure: Failure| Problem::Unreachable(failure.to_string());
        let request = Request::new(Method::POST, &format!("{}{path}", self.account))
            .and_then(|request| request.authorization(self.authorization.expose()))
            .map_err(unreachable)?
            .body("application/x-www-form-urlencoded", body.into_bytes());
        let again = |outcome: &Result<Answer, Failure>| match outcome {
            // Too many requests: this one was not begun.
            Ok(answer) => answer.status.as_u16() == 429 || (harmless && answer.status.is_server_error()),
            Err(failure) => harmless || failure.is_before_sending(),
        };
        let answer = self.client.send_until(&request, self.retry, again).await.map_err(unreachable)?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status.is_success() {
            return Ok(value);
        }
        match (answer.status.as_u16(), value["code"].as_u64().unwrap_or_default()) {
            (400, NOT_IN_PROGRESS) | (404, NOT_FOUND) => Err(Problem::CallEnded),
            (status, code) => {
                let message = value["message"].as_str().unwrap_or("no reason given");
                let message = message.chars().filter(|c| !c.is_control()).take(200).collect();
                Err(Problem::Refused { status, code, message })
            }
        }
    }
}

/// The path of a call; its name is checked, because it comes from outside.
fn path_of(call_sid: &str) -> Result<String, Problem> {
    let rest = call_sid.strip_prefix("CA").filter(|rest| (1..=62).contains(&rest.len()));
    match rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric())) {
        true => Ok(format!("/Calls/{call_sid}.json")),
        false => Err(Problem::InvalidRequest("not the name of a call: CA and 32 hexadecimal digits".into())),
    }
}

fn dialable(to: &str) -> Result<&str, Problem> {
    match twiml::is_dialable(to) {
        true => Ok(to),
        false => Err(Problem::InvalidRequest("not a number with its country, such as +14155550100".into())),
    }
}

impl<C: Connect> Carrier for Rest<C> {
    fn hang_up<'a>(&'a self, call_sid: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            match self.ask(&path_of(call_sid)?, &[("Status", "completed")], true).await {
                Ok(_) | Err(Problem::CallEnded) => Ok(()),
                Err(problem) => Err(problem),
            }
        })
    }

    fn transfer<'a>(&'a self, call_sid: &'a str, to: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            let twiml = twiml::dial(dialable(to)?);
            self.ask(&path_of(call_sid)?, &[("Twiml", &twiml)], false).await.map(drop)
        })
    }

    fn place<'a>(&'a self, to: &'a str, from: Option<&'a str>) -> Doing<'a, String> {
        Box::pin(async move {
            let from = from.unwrap_or(&self.number);
            if from.is_empty() {
                let what = "no number to call from: set TWILIO_NUMBER to one of the account's";
                return Err(Problem::InvalidRequest(what.into()));
            }
            let webhook = self.webhook.as_deref().ok_or_else(|| {
                Problem::InvalidRequest("no public_url: Twilio would not know where to ask what to do".into())
            })?;
            let form =
                [("To", dialable(to)?), ("From", dialable(from)?), ("Url", webhook), ("Method", "POST")];
            let made = self.ask("/Calls.json", &form, false).await?;
            made["sid"].as_str().map(str::to_owned).ok_or_else(|| {
                Problem::Unreachable("the answer names no call, though one may have been placed".into())
            })
        })
    }
}

/// Functions, and the bridge's own two beside them.
#[derive(Clone)]
pub struct WithCarrier<T> {
    /// Runs all the others.
    pub tools: T,
    /// Whom to ask; without one a call is ended by closing its stream, and cannot be transferred.
    pub carrier: Option<Arc<dyn Carrier>>,
}

impl<T: Tools> Tools for WithCarrier<T> {
    async fn run(
        &self,
        call_sid: &str,
        call_id: &str,
        name: &str,
        arguments: &str,
    ) -> Result<String, String> {
        let done = r#"{"status":"done"}"#.to_owned();
        match (name, &self.carrier) {
            (END_CALL, None) => Ok(done),
            (END_CALL, Some(carrier)) => {
                carrier.hang_up(call_sid).await.map(|()| done).map_err(|p| logged(name, &p))
            }
            (TRANSFER_CALL, None) => Err("calls cannot be transferred on this line".into()),
            (TRANSFER_CALL, Some(carrier)) => {
                let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
                let to = arguments["number"].as_str().unwrap_or_default();
                carrier.transfer(call_sid, to).await.map(|()| done).map_err(|p| logged(name, &p))
            }
            _ => self.tools.run(call_sid, call_id, name, arguments).await,
        }
    }
}

/// The operator learns everything, the model that it did not work.
fn logged(name: &str, problem: &Problem) -> String {
    tracing::warn!(function = name, %problem, "Twilio did not do it");
    match problem {
        Problem::CallEnded => "the call is over".into(),
        Problem::InvalidRequest(_) | Problem::Refused { .. } | Problem::Unreachable(_) => {
            "it did not work; the caller is still on this line".into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::Config;
    use crate::net::http_client::TlsConnect;
    use crate::net::tools::NoTools;
    use axum::Router;
    use axum::extract::{Request as Asked, State};
    use axum::http::{StatusCode, header};
    use axum::response::{IntoResponse, Response};
    use std::collections::VecDeque;
    use std::sync::Mutex;

    const CALL: &str = "CA0123456789abcdef0123456789abcdef";
    const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";

    /// A REST server that answers from a list and remembers what it was asked.
    #[derive(Clone, Default)]
    struct Twilio(Arc<Mutex<Book>>);

    #[derive(Default)]
    struct Book {
        answers: VecDeque<(u16, &'static str)>,
        asked: Vec<(String, String, String)>,
    }

    async fn answer(State(twilio): State<Twilio>, request: Asked) -> Response {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 10_000).await.unwrap();
        let authorization = head.headers[header::AUTHORIZATION].to_str().unwrap().to_owned();
        let mut book = twilio.0.lock().unwrap();
        let pairs = stream_auth::form(&body).into_iter().map(|(name, value)| format!("{name}={value}"));
        let asked = (head.uri.path().to_owned(), pairs.collect::<Vec<_>>().join("&"), authorization);
        book.asked.push(asked);
        let (status, body) = book.answers.pop_front().unwrap_or((500, "{}"));
        (StatusCode::from_u16(status).unwrap(), body).into_response()
    }

    async fn rest(answers: &[(u16, &'static str)]) -> (Rest<TlsConnect>, Twilio) {
        let twilio = Twilio::default();
        twilio.0.lock().unwrap().answers = answers.iter().copied().collect();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config =
            Config { public_url: Some("https://voice.example.com".parse().unwrap()), ..Config::default() };
        config.twilio.api_url = format!("http://{}/", listener.local_addr().unwrap());
        config.twilio.account_sid = ACCOUNT.into();
        config.twilio.auth_token = Secret::new("secret");
        config.twilio.number = "+14155550199".into();
        let router = Router::new().fallback(answer).with_state(twilio.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let rest = Rest::new(&config.twilio, config.public_url.as_ref(), TlsConnect::new().unwrap()).unwrap();
        (rest.retrying(Retry { attempts: 3, wait: Duration::from_millis(1) }), twilio)
    }

    fn asked(twilio: &Twilio) -> Vec<(String, String)> {
        twilio.0.lock().unwrap().asked.iter().map(|(path, form, _)| (path.clone(), form.clone())).collect()
    }

    const OVER: (u16, &str) =
        (400, r#"{"code":21220,"message":"Call is not in-progress. Cannot redirect.","status":400}"#);
    const GONE: (u16, &str) = (404, r#"{"code":20404,"message":"not found","status":404}"#);

    #[tokio::test]
    async fn a_call_is_hung_up() {
        let (rest, twilio) = rest(&[(200, "{}")]).await;
        assert_eq!(rest.hang_up(CALL).await, Ok(()));
        let path = format!("/2010-04-01/Accounts/{ACCOUNT}/Calls/{CALL}.json");
        assert_eq!(asked(&twilio), [(path, "Status=completed".to_owned())]);
        let expected = format!("Basic {}", BASE64.encode(format!("{ACCOUNT}:secret")));
        assert_eq!(twilio.0.lock().unwrap().asked[0].2, expected);
    }

    #[tokio::test]
    async fn a_call_that_is_over_has_been_hung_up_and_cannot_be_transferred() {
        let (rest, twilio) = rest(&[OVER, GONE, OVER, GONE]).await;
        assert_eq!((rest.hang_up(CALL).await, rest.hang_up(CALL).await), (Ok(()), Ok(())));
        for _ in 0..2 {
            assert_eq!(rest.transfer(CALL, "+14155550100").await, Err(Problem::CallEnded));
        }
        assert_eq!(asked(&twilio).len(), 4, "each asked once");
    }

    #[tokio::test]
    async fn a_transfer_is_twiml_and_is_not_asked_twice() {
        let (rest, twilio) = rest(&[(200, "{}"), (500, "oops")]).await;
        assert_eq!(rest.transfer(CALL, "+14155550100").await, Ok(()));
        assert!(asked(&twilio)[0].1.ends_with("<Response><Dial>+14155550100</Dial></Response>\n"));
        let failed = rest.transfer(CALL, "+14155550100").await.unwrap_err();
        assert!(matches!(failed, Problem::Refused { status: 500, code: 0, .. }), "{failed}");
        assert_eq!(asked(&twilio).len(), 2, "it may have rung");
    }

    #[tokio::test]
    async fn a_hang_up_is_asked_again_and_nothing_is_asked_for_ever() {
        let (again, twilio) = rest(&[(503, ""), (429, r#"{"code":20429}"#), (200, "{}")]).await;
        assert_eq!(again.hang_up(CALL).await, Ok(()));
        assert_eq!(asked(&twilio).len(), 3);
        let (never, twilio) = rest(&[]).await;
        assert!(matches!(never.hang_up(CALL).await, Err(Problem::Refused { status: 500, .. })));
        assert_eq!(asked(&twilio).len(), 3);
    }

    #[tokio::test]
    async fn a_call_is_placed_and_waits_for_a_busy_api() {
        let (rest, twilio) =
            rest(&[(429, "{}"), (201, r#"{"sid":"CAnew","status":"queued"}"#), (500, "")]).await;
        assert_eq!(rest.place("+14155550123", None).await.as_deref(), Ok("CAnew"));
        assert_eq!(
            asked(&twilio)[1],
            (
                format!("/2010-04-01/Accounts/{ACCOUNT}/Calls.json"),
                "To=+14155550123&From=+14155550199&Url=https://voice.example.com/voice&Method=POST"
                    .to_owned()
            )
        );
        assert!(rest.place("+14155550123", None).await.is_err());
        assert_eq!(asked(&twilio).len(), 3, "a call that may ring is not placed twice");
    }

    #[tokio::test]
    async fn what_makes_no_sense_is_not_asked() {
        let (rest, twilio) = rest(&[]).await;
        for sid in ["", "CA", "CA1/../../x", "CA1.json?", "MZ1", "CA\u{e4}"] {
            assert!(matches!(rest.hang_up(sid).await, Err(Problem::InvalidRequest(_))), "{sid:?}");
        }
        for number in ["", "911", "+1<Hangup/>", "+1415\r\n"] {
            assert!(
                matches!(rest.transfer(CALL, number).await, Err(Problem::InvalidRequest(_))),
                "{number:?}"
            );
            assert!(matches!(rest.place(number, None).await, Err(Problem::InvalidRequest(_))), "{number:?}");
        }
        assert!(matches!(rest.place("+14155550123", Some("")).await, Err(Problem::InvalidRequest(_))));
        assert_eq!(asked(&twilio), []);
    }

    #[tokio::test]
    async fn what_twilio_says_of_a_refusal_begins_no_line_of_its_own() {
        let (rest, _) = rest(&[(400, r#"{"code":21211,"message":"no\nERROR forged\u001b[31m"}"#)]).await;
        let refused = rest.transfer(CALL, "+14155550100").await.unwrap_err().to_string();
        assert_eq!(refused, "Twilio refused with 400, code 21211: noERROR forged[31m");
    }

    #[tokio::test]
    async fn the_models_own_functions_are_asked_of_the_carrier() {
        let (rest, twilio) = rest(&[(200, "{}"), (200, "{}"), GONE]).await;
        let with = WithCarrier { tools: NoTools, carrier: Some(Arc::new(rest)) };
        let done = Ok(r#"{"status":"done"}"#.to_owned());
        assert_eq!(with.run(CALL, "call_1", END_CALL, "{}").await, done);
        let to = r#"{"to":"desk","number":"+14155550100"}"#;
        assert_eq!(with.run(CALL, "call_1", TRANSFER_CALL, to).await, done);
        assert_eq!(with.run(CALL, "call_1", TRANSFER_CALL, to).await, Err("the call is over".into()));
        assert!(with.run(CALL, "call_1", "look_up", "{}").await.unwrap_err().contains("look_up"));
        assert_eq!(asked(&twilio).len(), 3);
        let without = WithCarrier { tools: NoTools, carrier: None };
        assert_eq!(without.run(CALL, "call_1", END_CALL, "{}").await, done, "closing the stream will do");
        assert!(without.run(CALL, "call_1", TRANSFER_CALL, to).await.is_err());
    }

    #[test]
    fn without_an_account_there_is_no_carrier() {
        assert!(Rest::new(&stream_auth::Settings::default(), None, TlsConnect::new().unwrap()).is_none());
    }
}
