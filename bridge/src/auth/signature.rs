//! Twilio's signature on everything it asks for: did this request come from the account whose secret we share?
//!
//! Twilio signs the address it was given, letter by letter, and the parameters of a form. The address behind a proxy
//! is another one, so it is put together from the configured public URL and never from what a request says of
//! itself. Two schemes are understood: HMAC-SHA1 under the account's auth token, and HMAC-SHA256 under a shared key
//! that a second header names. Comparing takes the same time whatever differs.
//!
//! [`Verifier::check`] is strict about one address; [`forms_of`] lists the ways in which Twilio may have written ours.

use crate::base::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use subtle::ConstantTimeEq as _;

/// The header that carries the signature.
pub const SIGNATURE: &str = "x-twilio-signature";
/// The header that names another key and algorithm than the usual ones.
pub const SETTINGS: &str = "x-twilio-webhooks-signature-settings";

/// Why a request was not taken for Twilio's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no signature.
    #[error("the request carries no X-Twilio-Signature")]
    Missing,
    /// The settings of the signature cannot be understood.
    #[error("the settings of the signature name no algorithm this bridge knows")]
    Algorithm,
    /// The settings name a shared key that is not configured.
    #[error("the signature was made with a shared key that is not configured")]
    Key,
    /// The signature is another one.
    #[error(
        "the signature does not match: is public_url what Twilio calls, and the auth token the primary one?"
    )]
    Mismatch,
    /// The body is not the one whose hash was signed.
    #[error("the body is not the one that was signed")]
    Body,
}

/// What of a request's body takes part in its signature.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// Nothing: a GET, or the upgrade to a WebSocket.
    None,
    /// The parameters of a form, decoded, blank ones included.
    Form(&'a [(String, String)]),
    /// A body of another kind; the address carries its hash as `bodySHA256`.
    Raw(&'a [u8]),
}

/// The two headers of a signed request, as far as they are there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signed<'a> {
    /// [`SIGNATURE`].
    pub signature: Option<&'a str>,
    /// [`SETTINGS`].
    pub settings: Option<&'a str>,
}

impl Signed<'_> {
    /// The signature itself, if it is one.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        BASE64.decode(self.signature?.trim()).ok()
    }
}

/// Knows the secrets shared with Twilio.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    auth_token: Secret,
    shared_keys: BTreeMap<String, Secret>,
}

enum Key<'a> {
    Sha1(&'a Secret),
    Sha256(&'a Secret),
}

impl Verifier {
    /// With an empty `auth_token` only requests signed with one of `shared_keys` pass; with neither, none does.
    pub const fn new(auth_token: Secret, shared_keys: BTreeMap<String, Secret>) -> Self {
        Self { auth_token, shared_keys }
    }

    /// Whether Twilio signed a request to any of `urls`.
    ///
    /// # Errors
    /// When it did not; the words are for the operator's log.
    pub fn check<'u>(
        &self,
        signed: Signed<'_>,
        urls: impl IntoIterator<Item = &'u str>,
        body: Body<'_>,
    ) -> Result<(), Refusal> {
        signed.signature.ok_or(Refusal::Missing)?;
        let given = signed.bytes().ok_or(Refusal::Mismatch)?;
        let key = self.key(signed.settings)?;
        let mut last = Refusal::Mismatch;
        // Sorted once, however many addresses are tried.
        let parameters = parameters_to_sign(body);
        for url in urls {
            let parts = [url.as_bytes(), parameters.as_bytes()];
            let made = match key {
                Key::Sha1(secret) => hmac_sha1(secret, &parts),
                Key::Sha256(secret) => hmac_sha256(secret.expose().as_bytes(), &parts).to_vec(),
            };
            if !bool::from(made.ct_eq(&given)) {
                continue;
            }
            match body {
                Body::Raw(bytes) if !is_hash_of(url, bytes) => last = Refusal::Body,
                Body::Raw(_) | Body::Form(_) | Body::None => return Ok(()),
            }
        }
        Err(last)
    }

    fn key(&self, settings: Option<&str>) -> Result<Key<'_>, Refusal> {
        let Some(settings) = settings else {
            return match self.auth_token.is_empty() {
                true => Err(Refusal::Key),
                false => Ok(Key::Sha1(&self.auth_token)),
            };
        };
        let setting = |wanted: &str| {
            settings.split(',').find_map(|pair| {
                let (name, value) = pair.split_once('=')?;
                (name.trim() == wanted).then_some(value.trim())
            })
        };
        if setting("algorithm") != Some("HMAC_SHA256") {
            return Err(Refusal::Algorithm);
        }
        let key = setting("key").and_then(|id| self.shared_keys.get(id)).filter(|key| !key.is_empty());
        key.map(Key::Sha256).ok_or(Refusal::Key)
    }
}

/// What is signed behind the address: each parameter's name with each of its values, all in order and none twice.
fn parameters_to_sign(body: Body<'_>) -> String {
    let mut text = String::new();
    if let Body::Form(parameters) = body {
        let sorted: BTreeSet<(&str, &str)> =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for (name, value) in sorted {
            text.push_str(name);
            text.push_str(value);
        }
    }
    text
}

fn hmac_sha1(secret: &Secret, parts: &[&[u8]]) -> Vec<u8> {
    let mut mac =
        Hmac::<Sha1>::new_from_slice(secret.expose().as_bytes()).expect("an HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// HMAC-SHA256 over the parts, one behind the other.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("an HMAC takes a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// Whether the `bodySHA256` of the address is this body's.
fn is_hash_of(url: &str, body: &[u8]) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let given = query.split('&').find_map(|pair| pair.strip_prefix("bodySHA256="));
    let made: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    given.is_some_and(|given| bool::from(given.to_ascii_lowercase().as_bytes().ct_eq(made.as_bytes())))
}

/// The ways in which Twilio may write the address `url` when it signs it: with the port that its scheme implies and
/// without, and, for an `upgrade`, with and without a slash at the end and the query that Twilio leaves out.
/// The scheme and everything else stand as they are.
pub fn forms_of(url: &str, upgrade: bool) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    let implied = if matches!(scheme, "https" | "wss") { ":443" } else { ":80" };
    let mut authorities = vec![authority.to_owned()];
    match authority.strip_suffix(implied) {
        Some(bare) => authorities.push(bare.to_owned()),
        // A colon inside brackets belongs to an IPv6 address.
        None if authority.rsplit_once(':').is_none_or(|(_, port)| port.ends_with(']')) => {
            authorities.push(format!("{authority}{implied}"));
        }
        None => {}
    }
    let mut targets = vec![target.to_owned()];
    if upgrade {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let other = path.strip_suffix('/').map_or_else(|| format!("{path}/"), str::to_owned);
        for path in [path.to_owned(), other] {
            targets.extend(query.map(|query| format!("{path}?{query}")));
            targets.push(path);
        }
    }
    let mut forms = Vec::new();
    for authority in &authorities {
        for target in &targets {
            let form = format!("{scheme}://{authority}{target}");
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    const AC: &str = "ACaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const CA: &str = "CAbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const MZ: &str = "MZcccccccccccccccccccccccccccccccc";
    const HASHED: &str = "https://voice.example.com/events?bodySHA256=\
                          38fc6e1e7105890129cdbc2c44727383d40dd8b8ceb2c8199b69e3306e6d6fc7";
    const JSON: &str = r#"{"specversion":"1.0","type":"demo.event","data":{"n":1}}"#;

    type Pairs = Vec<(String, String)>;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn webhook() -> Pairs {
        pairs(&[
            ("AccountSid", AC),
            ("ApiVersion", "2010-04-01"),
            ("CallSid", CA),
            ("CallStatus", "ringing"),
            ("Called", "+15005550006"),
            ("Caller", "+14155550123"),
            ("Direction", "inbound"),
            ("From", "+14155550123"),
            ("To", "+15005550006"),
        ])
    }

    fn with_blank() -> Pairs {
        let more = [
            ("CallerName", "Zo\u{eb} O\u{2019}Neil"),
            ("FromCity", ""),
            ("StirVerstat", "TN-Validation-Passed-A"),
        ];
        [webhook(), pairs(&more)].concat()
    }

    fn check(token: &str, url: &str, body: Body<'_>, signature: &str) -> Result<(), Refusal> {
        let signed = Signed { signature: Some(signature), settings: None };
        Verifier::new(Secret::new(token), BTreeMap::new()).check(signed, [url], body)
    }

    #[test]
    fn every_signature_twilio_would_make_is_accepted() {
        let status = pairs(&[
            ("AccountSid", AC),
            ("CallSid", CA),
            ("StreamSid", MZ),
            ("StreamName", MZ),
            ("StreamEvent", "stream-started"),
            ("Timestamp", "2026-11-22T10:15:30.123456789Z"),
        ]);
        let own = pairs(&[
            ("CallSid", "CA1234567890ABCDE"),
            ("Caller", "+14158675309"),
            ("Digits", "1234"),
            ("From", "+14158675309"),
            ("To", "+18005551212"),
        ]);
        let repeated = pairs(&[("A", "2"), ("A", "1"), ("A", "2"), ("B", "x")]);
        let theirs = pairs(&[
            ("Sid", "CA123"),
            ("SidAccount", "AC123"),
            ("Digits", "5678"),
            ("Digits", "1234"),
            ("Digits", "1234"),
        ]);
        let own_url = "https://mycompany.com/myapp.php?foo=1&bar=2";
        let hashed =
            format!("{own_url}&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620");
        let by_get =
            format!("https://voice.example.com/twiml?AccountSid={AC}&CallSid={CA}&From=%2B14155550123");
        let (webhook, with_blank) = (webhook(), with_blank());
        let form = Body::Form;
        for (name, token, url, body, signature) in [
            ("V1", TOKEN, "https://voice.example.com/twiml", form(&webhook), "GCnet1hy5p1Hls0qA27LS0U/3/U="),
            (
                "V2",
                TOKEN,
                "https://voice.example.com/twiml?tenant=a%20b&x=1",
                form(&with_blank),
                "YkWzFcek+EAltal5zQymjUyJCV4=",
            ),
            ("V3", TOKEN, by_get.as_str(), Body::None, "NMuiG+CwTiCTvg7cOn/wR/y00Xo="),
            ("V4", TOKEN, HASHED, Body::Raw(JSON.as_bytes()), "RMrHu6DBbpZSciY5FRX0QUom/zE="),
            ("V5", TOKEN, "wss://voice.example.com/media", Body::None, "ttk+kVY3Kdi/BWVnuJguRoi2Bjs="),
            ("V6", TOKEN, "wss://voice.example.com/media/", Body::None, "xSZ25E4AoL/WAklRSBhXh8WbY9E="),
            ("V7", TOKEN, "wss://voice.example.com", Body::None, "LTNc5OeQVPZL6E2Birj6O1bpaMc="),
            ("V8", TOKEN, "wss://voice.example.com/", Body::None, "mdZ0WZCJ6GoYsAcIGYax9h4blE4="),
            ("V9", TOKEN, "wss://voice.example.com:443/media", Body::None, "JI5PyUOwt6GuF3/K92tnPhD5Oeo="),
            ("V10", TOKEN, "wss://voice.example.com:8443/media", Body::None, "AF0qiBTAfgMeoczRzOeA7hcSCr0="),
            (
                "V11",
                TOKEN,
                "https://voice.example.com/stream-status",
                form(&status),
                "i1uK5hpRVdqLTjwDAOuVlvtEk4A=",
            ),
            ("V12", TOKEN, "https://voice.example.com/x", form(&repeated), "VVvauDtbMnjbFDfHiZthoddDep4="),
            ("V14", "12345", own_url, form(&own), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
            ("repeated keys", "12345", own_url, form(&theirs), "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
            (
                "a JSON body",
                "12345",
                hashed.as_str(),
                Body::Raw(br#"{"property": "value", "boolean": true}"#),
                "a9nBmqA0ju/hNViExpshrM61xv4=",
            ),
        ] {
            assert_eq!(check(token, url, body, signature), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_shared_key_signs_with_sha256() {
        let keys =
            BTreeMap::from([("webhooks_sharedkey_demo".into(), Secret::new("sk_demo_secret_0123456789"))]);
        let verifier = Verifier::new(Secret::default(), keys);
        let webhook = webhook();
        let check = |settings| {
            let signature = Some("8nID1Yooelo0zsIoQIyYWN37MxmGfCBp4btAnp+sVfs=");
            verifier.check(
                Signed { signature, settings },
                ["https://voice.example.com/twiml"],
                Body::Form(&webhook),
            )
        };
        assert_eq!(check(Some("key=webhooks_sharedkey_demo,algorithm=HMAC_SHA256")), Ok(()), "V13");
        assert_eq!(check(Some("key=another,algorithm=HMAC_SHA256")), Err(Refusal::Key));
        assert_eq!(check(Some("key=webhooks_sharedkey_demo,algorithm=HMAC_MD5")), Err(Refusal::Algorithm));
        assert_eq!(check(Some("key=webhooks_sharedkey_demo")), Err(Refusal::Algorithm));
        assert_eq!(check(None), Err(Refusal::Key), "no auth token, no legacy signature");
    }

    #[test]
    fn every_signature_of_something_else_is_refused() {
        let (webhook, with_blank) = (webhook(), with_blank());
        let blank_dropped: Pairs =
            with_blank.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
        let spaced = format!("{JSON} ");
        let form = Body::Form;
        let v1 = "GCnet1hy5p1Hls0qA27LS0U/3/U=";
        let v2 = "YkWzFcek+EAltal5zQymjUyJCV4=";
        let v5 = "ttk+kVY3Kdi/BWVnuJguRoi2Bjs=";
        for (name, url, body, signature, why) in [
            ("N1", "http://voice.example.com/twiml", form(&webhook), v1, Refusal::Mismatch),
            ("N2", "https://VOICE.example.com/twiml", form(&webhook), v1, Refusal::Mismatch),
            (
                "N3",
                "https://voice.example.com/twiml?tenant=a%20b&x=1",
                form(&blank_dropped),
                v2,
                Refusal::Mismatch,
            ),
            (
                "N4",
                "https://voice.example.com/twiml?tenant=a b&x=1",
                form(&with_blank),
                v2,
                Refusal::Mismatch,
            ),
            ("N5", "https://voice.example.com/media", Body::None, v5, Refusal::Mismatch),
            ("N6", "wss://voice.example.com/media/", Body::None, v5, Refusal::Mismatch),
            (
                "N7",
                "wss://voice.example.com/media",
                Body::None,
                "JI5PyUOwt6GuF3/K92tnPhD5Oeo=",
                Refusal::Mismatch,
            ),
            ("N8", HASHED, Body::Raw(spaced.as_bytes()), "RMrHu6DBbpZSciY5FRX0QUom/zE=", Refusal::Body),
            ("not base64", "wss://voice.example.com/media", Body::None, "ttk+kVY3!", Refusal::Mismatch),
            ("cut short", "wss://voice.example.com/media", Body::None, "ttk+kVY3", Refusal::Mismatch),
            ("empty", "wss://voice.example.com/media", Body::None, "", Refusal::Mismatch),
        ] {
            assert_eq!(check(TOKEN, url, body, signature), Err(why), "{name}");
        }
        let verifier = Verifier::new(Secret::new(TOKEN), BTreeMap::new());
        let nothing = verifier.check(Signed::default(), ["wss://voice.example.com/media"], Body::None);
        assert_eq!(nothing, Err(Refusal::Missing));
    }

    #[test]
    fn no_secret_means_no_entry() {
        let made = BASE64.encode(hmac_sha1(&Secret::default(), &[b"wss://voice.example.com/media"]));
        assert_eq!(check("", "wss://voice.example.com/media", Body::None, &made), Err(Refusal::Key));
        let verifier =
            Verifier::new(Secret::new(TOKEN), BTreeMap::from([("blank".into(), Secret::default())]));
        let made = BASE64.encode(hmac_sha256(b"", &[b"wss://voice.example.com/media"]));
        let signed = Signed { signature: Some(&made), settings: Some("key=blank,algorithm=HMAC_SHA256") };
        let checked = verifier.check(signed, ["wss://voice.example.com/media"], Body::None);
        assert_eq!(checked, Err(Refusal::Key), "a shared key that was left blank");
    }

    /// What the strict check of one address leaves to the forms of it.
    #[test]
    fn an_address_is_known_in_every_form_twilio_may_sign() {
        let verifier = Verifier::new(Secret::new(TOKEN), BTreeMap::new());
        let known = |url: &str, upgrade, body: Body<'_>, signature| {
            let signed = Signed { signature: Some(signature), settings: None };
            verifier.check(signed, forms_of(url, upgrade).iter().map(String::as_str), body).is_ok()
        };
        let webhook = webhook();
        let (v5, v9) = ("ttk+kVY3Kdi/BWVnuJguRoi2Bjs=", "JI5PyUOwt6GuF3/K92tnPhD5Oeo=");
        for url in [
            "wss://voice.example.com/media",
            "wss://voice.example.com:443/media",
            "wss://voice.example.com/media/",
        ] {
            assert!(known(url, true, Body::None, v5) && known(url, true, Body::None, v9), "{url}");
            assert!(known(url, true, Body::None, "xSZ25E4AoL/WAklRSBhXh8WbY9E="), "{url} with a slash");
        }
        assert!(known("wss://voice.example.com/media?x=1", true, Body::None, v5), "Twilio drops the query");
        for signature in ["LTNc5OeQVPZL6E2Birj6O1bpaMc=", "mdZ0WZCJ6GoYsAcIGYax9h4blE4="] {
            assert!(
                known("wss://voice.example.com", true, Body::None, signature),
                "the bare host, V7 and V8"
            );
        }
        let q3 = "UGvJKDDj0t4eMm95ijQbs2FXCu4=";
        assert!(known("https://voice.example.com/twiml", false, Body::Form(&webhook), q3), "Q3");
        let v1 = "GCnet1hy5p1Hls0qA27LS0U/3/U=";
        assert!(known("https://voice.example.com:443/twiml", false, Body::Form(&webhook), v1));
        assert!(
            !known("https://voice.example.com/twiml/", false, Body::Form(&webhook), v1),
            "a webhook's path stands"
        );
        assert!(
            !known("http://voice.example.com/twiml", false, Body::Form(&webhook), v1),
            "so does its scheme"
        );
        assert!(!known("https://voice.example.com/media", true, Body::None, v5), "also of an upgrade");
        assert!(
            !known("wss://voice.example.com:8443/media", true, Body::None, v5),
            "a port of one's own stands"
        );
        assert_eq!(forms_of("wss://[::1]/x", false), ["wss://[::1]/x", "wss://[::1]:443/x"]);
    }
}
