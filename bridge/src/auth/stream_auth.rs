//! Authentication: the one place that decides what is Twilio's, and whose stream a stream is.
//!
//! Pure but for the tokens it remembers: it is given what a request said and what time it is, and says yes or no.
//! The HTTP face asks it before anything is answered, a call's driver asks it before anything is dialled, and a
//! simulation asks the same code without HTTP.

use crate::auth::signature::{self, Body, Signed, Verifier, forms_of};
use crate::auth::token::{self, Tokens};
use crate::auth::webhook_replay::{Replayed, Webhooks};
use crate::base::secret::Secret;
use crate::base::url::PublicUrl;
use crate::call::StreamCredentials;
use crate::call::event::EndReason;
use crate::wire::twiml::{self, After, Stream, TOKEN_PARAMETER};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where Twilio asks what to do with a call.
pub const VOICE: &str = "/voice";
/// Where Twilio opens its WebSocket.
pub const STREAM: &str = "/twilio";
/// Where Twilio tells what became of a stream.
pub const STREAM_STATUS: &str = "/stream-status";

/// The Twilio account, and what becomes of its calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The account, `AC...`. Streams of another one are turned away; needed to hang up, transfer and place calls.
    pub account_sid: String,
    /// The account's primary auth token. Better given as `TWILIO_AUTH_TOKEN` than in a file.
    pub auth_token: Secret,
    /// Shared keys Twilio may sign with instead, by their id.
    pub shared_keys: BTreeMap<String, Secret>,
    /// Accepts unsigned requests. Only for local work, and only on a loopback address.
    pub insecure_no_signature: bool,
    /// How long after the webhook its stream may come, seconds.
    pub token_life_s: u32,
    /// How long after its stream a call may come back through `after_stream.redirect` with a webhook it has sent before,
    /// seconds. Twilio's signature has no time in it, so for that long a captured webhook can open a stream, too.
    pub return_s: u32,
    /// What becomes of a call when its stream has ended and the caller is still there: `hangup`,
    /// `{ redirect = "https://..." }` or `{ dial = "+..." }`.
    pub after_stream: After,
    /// Where Twilio's REST API is.
    #[serde(serialize_with = "crate::base::url::serialize_url")]
    pub api_url: String,
    /// The number that calls placed by the bridge come from.
    pub number: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            account_sid: String::new(),
            auth_token: Secret::default(),
            shared_keys: BTreeMap::new(),
            insecure_no_signature: false,
            token_life_s: 60,
            return_s: 60,
            after_stream: After::Hangup,
            api_url: "https://api.twilio.com".into(),
            number: String::new(),
        }
    }
}

/// Why a stream is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("{}", self.why())]
pub enum Refusal {
    /// Its token is not good.
    Token(#[from] token::Refusal),
    /// It belongs to another account.
    Account,
    /// No further call is taken now.
    Busy,
}

impl Refusal {
    /// In words.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Token(refusal) => refusal.why(),
            Self::Account => "the stream belongs to another account",
            Self::Busy => "all lines are busy",
        }
    }
}

/// Why a webhook has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The request names no call.
    #[error("no CallSid in the request: this is the voice webhook of a Twilio number")]
    Call,
    /// The address of the stream is not known.
    #[error("no Host in the request: set public_url to the address Twilio reaches this bridge at")]
    Host,
    /// It came before, and its call is over.
    #[error(transparent)]
    Replayed(#[from] Replayed),
}

/// Authenticates Twilio's requests and streams.
#[derive(Debug)]
pub struct StreamAuth {
    twilio: Settings,
    public_url: Option<PublicUrl>,
    verifier: Verifier,
    tokens: Tokens,
    webhooks: Mutex<Webhooks>,
}

impl StreamAuth {
    /// Authentication with these settings. `process` is as in [`Tokens::new`].
    pub fn new(twilio: Settings, public_url: Option<PublicUrl>, process: u64) -> Self {
        let verifier = Verifier::new(twilio.auth_token.clone(), twilio.shared_keys.clone());
        let first = || twilio.shared_keys.values().next().cloned().unwrap_or_default();
        let secret = if twilio.auth_token.is_empty() { first() } else { twilio.auth_token.clone() };
        let tokens = Tokens::new(&secret, twilio.token_life_s, process);
        let redirects = matches!(twilio.after_stream, After::Redirect(_));
        let webhooks = Webhooks::new(twilio.token_life_s, redirects.then_some(twilio.return_s));
        Self { twilio, public_url, verifier, tokens, webhooks: Mutex::new(webhooks) }
    }

    /// Streams have to show a token.
    pub fn requires_auth(&self) -> bool {
        !self.twilio.insecure_no_signature
    }

    /// Whether Twilio sent a request to `path` with this query.
    ///
    /// # Errors
    /// When it did not.
    pub fn verify_request(
        &self,
        path: &str,
        query: Option<&str>,
        signed: Signed<'_>,
        body: Body<'_>,
    ) -> Result<(), signature::Refusal> {
        if !self.requires_auth() {
            return Ok(());
        }
        let Some(public) = &self.public_url else { return Err(signature::Refusal::Mismatch) };
        let upgrade = path == STREAM;
        let mut url = if upgrade { public.websocket_of(STREAM) } else { public.url_of(path) };
        if let Some(query) = query {
            url.push('?');
            url.push_str(query);
        }
        self.verifier.check(signed, forms_of(&url, upgrade).iter().map(String::as_str), body)
    }

    fn webhooks(&self) -> MutexGuard<'_, Webhooks> {
        // Nothing can panic while this is locked; and if it did, the maps would still be whole.
        self.webhooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The TwiML that connects the call of a webhook to its stream. `host` is what the request called this machine,
    /// `signed` what [`StreamAuth::verify_request`] has accepted.
    ///
    /// # Errors
    /// When the webhook leaves open which call, there is no address to send it to, or it was answered before and its
    /// call is over.
    pub fn answer(
        &self,
        form: &[(String, String)],
        host: Option<&str>,
        signed: Signed<'_>,
        unix_now: i64,
    ) -> Result<String, NoAnswer> {
        let value =
            |name: &str| form.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value.as_str());
        let (url, callback) = match (&self.public_url, host) {
            (Some(public), _) => (public.websocket_of(STREAM), public.url_of(STREAM_STATUS)),
            (None, Some(host)) if !host.is_empty() => {
                (format!("wss://{host}{STREAM}"), format!("https://{host}{STREAM_STATUS}"))
            }
            (None, _) => return Err(NoAnswer::Host),
        };
        let call_sid = value("CallSid");
        let token = match self.requires_auth() {
            true if call_sid.is_empty() => return Err(NoAnswer::Call),
            true => {
                let signature = signed.bytes().unwrap_or_default();
                let ringing = value("CallStatus") == "ringing";
                let mint = || self.tokens.issue(call_sid, unix_now);
                Some(self.webhooks().token(&signature, call_sid, ringing, unix_now, mint)?)
            }
            false => None,
        };
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        parameters.extend(token.as_deref().map(|token| (TOKEN_PARAMETER, token)));
        // `start` does not say who calls whom.
        for (name, key) in [("from", "From"), ("to", "To"), ("direction", "Direction")] {
            parameters.extend(Some((name, value(key))).filter(|(_, value)| !value.is_empty()));
        }
        let stream = Stream { url: &url, status_callback: Some(&callback), parameters: &parameters };
        Ok(twiml::connect(&stream, &self.twilio.after_stream))
    }

    /// Admits a stream. Its token is used up by that; [`StreamAuth::left`] has to be told when it has ended.
    ///
    /// # Errors
    /// When it may not.
    pub fn admit(&self, credentials: &StreamCredentials, unix_now: i64) -> Result<(), Refusal> {
        if !self.requires_auth() {
            return Ok(());
        }
        let ours = &self.twilio.account_sid;
        if !ours.is_empty() && !credentials.account_sid.is_empty() && credentials.account_sid != *ours {
            return Err(Refusal::Account);
        }
        self.tokens.redeem(credentials.token.as_deref(), &credentials.call_sid, unix_now)?;
        let token = credentials.token.as_deref().unwrap_or_default();
        self.webhooks().admitted(&credentials.call_sid, token, unix_now);
        Ok(())
    }

    /// A stream that came in has ended, for this reason if it is known.
    pub fn left(&self, call_sid: &str, reason: Option<EndReason>, unix_now: i64) {
        self.webhooks().left(call_sid, reason, unix_now);
    }
}

/// The parameters of a form or a query, decoded, in order, blank ones included.
pub fn form(text: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(text).into_owned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::config::Config;

    const NOW: i64 = 1_767_225_600;

    fn auth(change: impl FnOnce(&mut Config)) -> StreamAuth {
        let mut config = Config {
            public_url: Some("https://voice.example.com/base".parse().unwrap()),
            ..Config::default()
        };
        config.twilio.auth_token = Secret::new("0123456789abcdef0123456789abcdef");
        change(&mut config);
        StreamAuth::new(config.twilio, config.public_url, 1)
    }

    impl StreamAuth {
        /// The answer to a webhook without a signature.
        fn answers(&self, form: &[(String, String)], host: Option<&str>) -> Result<String, NoAnswer> {
            self.answer(form, host, Signed::default(), NOW)
        }
    }

    fn asked(call_sid: &str) -> Vec<(String, String)> {
        form(format!("CallSid={call_sid}&From=%2B14155550123&To=&FromCity=").as_bytes())
    }

    fn token_in(twiml: &str) -> Option<String> {
        let (_, rest) = twiml.split_once("name=\"token\" value=\"")?;
        Some(rest.split_once('"')?.0.to_owned())
    }

    fn credentials(call_sid: &str, token: Option<String>) -> StreamCredentials {
        StreamCredentials { call_sid: call_sid.into(), account_sid: "AC1".into(), token }
    }

    #[test]
    fn the_token_of_a_webhook_lets_its_stream_in_once() {
        let t = auth(|_| {});
        let twiml = t.answers(&asked("CA1"), None).unwrap();
        let stream = "url=\"wss://voice.example.com/base/twilio\" statusCallback=\"https://voice.example.com/base/stream-status\"";
        assert!(twiml.contains(stream), "{twiml}");
        assert!(
            twiml.contains("<Parameter name=\"from\" value=\"+14155550123\"/>") && !twiml.contains("\"to\"")
        );
        let token = token_in(&twiml);
        assert!(t.admit(&credentials("CA2", token.clone()), NOW).is_err());
        assert_eq!(t.admit(&credentials("CA1", token.clone()), NOW), Ok(()));
        assert_eq!(t.admit(&credentials("CA1", token), NOW), Err(Refusal::Token(token::Refusal::Used)));
        assert_eq!(t.admit(&credentials("CA1", None), NOW), Err(Refusal::Token(token::Refusal::Missing)));
    }

    #[test]
    fn a_stream_of_another_account_is_turned_away() {
        let t = auth(|config| config.twilio.account_sid = "AC2".into());
        let token = token_in(&t.answers(&asked("CA1"), None).unwrap());
        assert_eq!(t.admit(&credentials("CA1", token), NOW), Err(Refusal::Account));
    }

    #[test]
    fn authentication_needs_the_call_and_without_it_nothing_does() {
        assert_eq!(auth(|_| {}).answers(&[], Some("h")), Err(NoAnswer::Call));
        let open = auth(|config| {
            config.twilio.insecure_no_signature = true;
            config.public_url = None;
        });
        let twiml = open.answers(&[], Some("127.0.0.1:8084")).unwrap();
        assert!(
            twiml.contains("url=\"wss://127.0.0.1:8084/twilio\"") && token_in(&twiml).is_none(),
            "{twiml}"
        );
        assert_eq!(open.answers(&[], None), Err(NoAnswer::Host));
        assert_eq!(open.answers(&[], Some("")), Err(NoAnswer::Host));
        assert_eq!(open.admit(&credentials("CA1", None), NOW), Ok(()));
        assert_eq!(open.verify_request(VOICE, None, Signed::default(), Body::None), Ok(()));
    }

    #[test]
    fn only_the_public_address_counts_and_an_upgrade_is_known_by_its_own_scheme() {
        let t = auth(|config| config.public_url = Some("https://voice.example.com".parse().unwrap()));
        let verify = |path, query, signature| {
            t.verify_request(path, query, Signed { signature: Some(signature), settings: None }, Body::None)
        };
        let (upgrade, https) =
            (made("wss://voice.example.com/twilio"), made("https://voice.example.com/twilio"));
        assert_eq!(verify(STREAM, None, &upgrade), Ok(()));
        assert_eq!(verify(STREAM, Some("x=1"), &upgrade), Ok(()), "Twilio leaves the query out");
        assert_eq!(verify(STREAM, None, &https), Err(signature::Refusal::Mismatch));
        let voice = made("https://voice.example.com/voice?a=%20b");
        assert_eq!(verify(VOICE, Some("a=%20b"), &voice), Ok(()));
        assert_eq!(verify(VOICE, Some("a=+b"), &voice), Err(signature::Refusal::Mismatch));
        assert_eq!(verify(VOICE, None, &voice), Err(signature::Refusal::Mismatch));
        let nowhere = auth(|config| config.public_url = None);
        let signed = Signed { signature: Some(&upgrade), settings: None };
        assert_eq!(
            nowhere.verify_request(STREAM, None, signed, Body::None),
            Err(signature::Refusal::Mismatch),
            "a bridge without an address of its own accepts no signature"
        );
    }

    /// The signature of an address without parameters.
    fn made(url: &str) -> String {
        use base64::Engine as _;
        use hmac::Mac as _;
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(b"0123456789abcdef0123456789abcdef").unwrap();
        mac.update(url.as_bytes());
        base64::engine::general_purpose::STANDARD.encode(mac.finalize().into_bytes())
    }

    #[test]
    fn a_form_keeps_what_is_blank_and_what_is_repeated() {
        let pairs = form(b"a=&b=%2B1+2&b=%C3%AB&c");
        let text: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(text, ["a=", "b=+1 2", "b=\u{eb}", "c="]);
    }
}
