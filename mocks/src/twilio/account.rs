//! Twilio as an account sees it: it asks the webhook of a number, signs what it asks, and reads the answer.
//!
//! Signed by the letter of what Twilio documents, without its code; held against two vectors of the official
//! libraries.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha1::Sha1;

/// Who is calling: the ids of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// `AC` and 32 hexadecimal digits.
    pub account_sid: String,
    /// `CA` and 32 hexadecimal digits.
    pub call_sid: String,
    /// `MZ` and 32 hexadecimal digits.
    pub stream_sid: String,
}

/// What a caller's end shows of the account it belongs to. Everything but `proper` is an attacker's doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credentials {
    /// A signed webhook, a signed upgrade, and the token of the webhook's answer.
    #[default]
    Proper,
    /// The webhook is not signed at all.
    UnsignedWebhook,
    /// The webhook is signed by another account.
    ForeignWebhook,
    /// The upgrade is not signed at all.
    UnsignedUpgrade,
    /// The upgrade is signed by another account.
    ForeignUpgrade,
    /// The stream shows no token.
    NoToken,
    /// The stream shows a token of its own making.
    MadeUpToken,
    /// The stream shows the token that the call before it was given.
    OverheardToken,
    /// The webhook is the call's before it, to the byte, and the stream shows the token of its answer.
    ReplayedWebhook,
}

/// A secret no account of a scenario has.
const FOREIGN: &str = "another-account";

impl Credentials {
    /// The signature of a webhook with these parameters, if there is one.
    pub fn of_webhook(self, auth_token: &str, url: &str, form: &[(&str, &str)]) -> Option<String> {
        match self {
            Self::UnsignedWebhook => None,
            Self::ForeignWebhook => Some(signature(FOREIGN, url, form)),
            Self::Proper
            | Self::UnsignedUpgrade
            | Self::ForeignUpgrade
            | Self::NoToken
            | Self::MadeUpToken
            | Self::OverheardToken
            | Self::ReplayedWebhook => Some(signature(auth_token, url, form)),
        }
    }

    /// The signature of the upgrade, if there is one.
    pub fn of_upgrade(self, auth_token: &str, url: &str) -> Option<String> {
        match self {
            Self::UnsignedUpgrade => None,
            Self::ForeignUpgrade => Some(signature(FOREIGN, url, &[])),
            Self::Proper
            | Self::UnsignedWebhook
            | Self::ForeignWebhook
            | Self::NoToken
            | Self::MadeUpToken
            | Self::OverheardToken
            | Self::ReplayedWebhook => Some(signature(auth_token, url, &[])),
        }
    }

    /// The token that is shown: `own` is the one of this call's webhook, `before` that of the call before it.
    pub fn token(self, own: Option<String>, before: Option<String>) -> Option<String> {
        match self {
            Self::Proper
            | Self::UnsignedWebhook
            | Self::ForeignWebhook
            | Self::UnsignedUpgrade
            | Self::ForeignUpgrade
            | Self::ReplayedWebhook => own,
            Self::NoToken => None,
            Self::MadeUpToken => Some("1999999999.0000000000000001.bWFkZS11cA".into()),
            Self::OverheardToken => before,
        }
    }
}

/// `X-Twilio-Signature`: HMAC-SHA1 of the address and of each parameter's name and value, in order of the names.
pub fn signature(auth_token: &str, url: &str, form: &[(&str, &str)]) -> String {
    let mut text = url.to_owned();
    let mut form = form.to_vec();
    form.sort_unstable();
    form.dedup();
    for (name, value) in form {
        text += name;
        text += value;
    }
    let mut mac = Hmac::<Sha1>::new_from_slice(auth_token.as_bytes()).expect("any key will do");
    mac.update(text.as_bytes());
    BASE64.encode(mac.finalize().into_bytes())
}

/// What an answer to the webhook asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// Where the stream goes.
    pub url: String,
    /// Its `<Parameter>`s.
    pub parameters: Vec<(String, String)>,
}

impl Connect {
    /// Reads TwiML; `None` when it opens no stream.
    pub fn read(twiml: &str) -> Option<Self> {
        let (_, stream) = twiml.split_once("<Stream ")?;
        let url = attribute(stream.split_once('>')?.0, "url")?;
        let parameters = stream.split("<Parameter ").skip(1).filter_map(|rest| {
            let tag = rest.split_once('>')?.0;
            Some((attribute(tag, "name")?, attribute(tag, "value")?))
        });
        Some(Self { url, parameters: parameters.collect() })
    }

    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    let value = rest.split_once('"')?.0;
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    Some(plain.iter().fold(value.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_libraries_sign_alike() {
        let form = [
            ("To", "+18005551212"),
            ("Digits", "1234"),
            ("Caller", "+14158675309"),
            ("From", "+14158675309"),
            ("CallSid", "CA1234567890ABCDE"),
        ];
        let url = "https://mycompany.com/myapp.php?foo=1&bar=2";
        assert_eq!(signature("12345", url, &form), "RSOYDt4T1cUTdK1PDd93/VVr8B8=");
        let upgrade = signature("0123456789abcdef0123456789abcdef", "wss://voice.example.com/media", &[]);
        assert_eq!(upgrade, "ttk+kVY3Kdi/BWVnuJguRoi2Bjs=");
    }

    #[test]
    fn twiml_is_read() {
        let twiml = "<Response><Connect><Stream url=\"wss://a/b?x=1&amp;y\" statusCallback=\"https://a/c\">\
                     <Parameter name=\"token\" value=\"&lt;t&gt;\"/><Parameter name=\"from\" value=\"+1\"/></Stream>\
                     </Connect><Hangup/></Response>";
        let read = Connect::read(twiml).unwrap();
        assert_eq!(read.url, "wss://a/b?x=1&y");
        assert_eq!(
            (read.parameter("token"), read.parameter("from"), read.parameter("x")),
            (Some("<t>"), Some("+1"), None)
        );
        assert_eq!(Connect::read("<Response><Reject/></Response>"), None);
    }
}
