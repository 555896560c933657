//! Addresses in settings: where the model is, where this bridge is, and how a URL is shown.

use axum::http::Uri;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Where the model's WebSocket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelUrl {
    /// `wss`: with TLS.
    pub secure: bool,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    text: String,
}

impl Default for ModelUrl {
    fn default() -> Self {
        Self {
            secure: true,
            host: "api.openai.com".into(),
            port: 443,
            text: "wss://api.openai.com/v1/realtime".into(),
        }
    }
}

impl ModelUrl {
    /// The URL to open for `model`. A `model` in the configured URL stands.
    pub fn with_model(&self, model: &str) -> String {
        let query = self.text.split_once('?').map(|(_, query)| query);
        match query {
            Some(query) if query.split('&').any(|pair| pair.starts_with("model=")) => self.text.clone(),
            Some(_) => format!("{}&model={}", self.text, percent_encoded(model)),
            None => format!("{}?model={}", self.text, percent_encoded(model)),
        }
    }
}

impl FromStr for ModelUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "a WebSocket URL such as wss://api.openai.com/v1/realtime";
        let url = Url::parse(text).ok_or_else(|| format!("{:?} is not {wanted}", shown_url(text)))?;
        let secure = match url.scheme.as_str() {
            "wss" => true,
            "ws" => false,
            scheme => {
                return Err(format!("{:?} has the scheme {scheme}; write {wanted}", shown_url(text)));
            }
        };
        let port = url.port.unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { secure, host: url.host, port, text: text.to_owned() })
    }
}

impl TryFrom<String> for ModelUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// As it may be shown: settings are printed and journalled.
impl From<ModelUrl> for String {
    fn from(url: ModelUrl) -> Self {
        shown_url(&url.text)
    }
}

/// The address Twilio reaches this bridge at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicUrl {
    text: String,
    /// With TLS, as all that Twilio calls.
    secure: bool,
    /// `host/path`, without a slash at the end.
    place: String,
}

impl PublicUrl {
    /// Where Twilio opens a WebSocket at `path`.
    pub fn websocket_of(&self, path: &str) -> String {
        let scheme = if self.secure { "wss" } else { "ws" };
        format!("{scheme}://{}{path}", self.place)
    }

    /// Where Twilio asks for `path`.
    pub fn url_of(&self, path: &str) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.place)
    }
}

impl FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "an address such as https://voice.example.com";
        let url = Url::parse(text).ok_or_else(|| format!("{:?} is not {wanted}", shown_url(text)))?;
        if text.contains('?') {
            return Err(format!("{:?} has a query, which Twilio drops; write {wanted}", shown_url(text)));
        }
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let secure = match url.scheme.as_str() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            scheme => {
                return Err(format!("{:?} has the scheme {scheme}; write {wanted}", shown_url(text)));
            }
        };
        Ok(Self { text: text.to_owned(), secure, place: rest.trim_end_matches('/').to_owned() })
    }
}

impl TryFrom<String> for PublicUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PublicUrl> for String {
    fn from(url: PublicUrl) -> Self {
        url.text
    }
}

/// The parts of a query whose values are no secret.
const SHOWN: [&str; 4] = ["model", "api-version", "deployment", "sslmode"];

/// A URL as messages may show it: without user, password and fragment, and without the values of a query that may be
/// keys. It need not be a URL, for most that are shown are refused.
pub(crate) fn shown_url(text: &str) -> String {
    let (scheme, rest) = text.find("://").map_or(("", text), |at| text.split_at(at + 3));
    // A password may hold what ends an authority: all before the last @ is hidden.
    let (user, rest) = rest.rsplit_once('@').map_or(("", rest), |(_, rest)| ("***@", rest));
    let (rest, fragment) = rest.split_once('#').map_or((rest, ""), |(rest, _)| (rest, "#***"));
    let Some((place, query)) = rest.split_once('?') else { return format!("{scheme}{user}{rest}{fragment}") };
    let pairs: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((name, _)) if SHOWN.contains(&name) => pair.to_owned(),
            Some((name, _)) => format!("{name}=***"),
            None => "***".to_owned(),
        })
        .collect();
    format!("{scheme}{user}{place}?{}{fragment}", pairs.join("&"))
}

/// Serializes a URL as [`shown_url`].
pub(crate) fn serialize_url<S: serde::Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&shown_url(url))
}

/// The same for one that may be missing.
pub(crate) fn serialize_url_if_any<S: serde::Serializer>(
    url: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    url.as_deref().map(shown_url).serialize(serializer)
}

/// The parts of an absolute URL without user, password or fragment.
pub(crate) struct Url {
    pub(crate) scheme: String,
    host: String,
    port: Option<u16>,
}

impl Url {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?.as_str();
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        // The parser lets a port beyond 65535 and an empty one pass as no port at all.
        let names_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let whole = !authority.contains('@') && !text.contains('#') && !host.is_empty();
        (whole && names_port == uri.port_u16().is_some() && uri.port_u16() != Some(0)).then_some(())?;
        Some(Self { scheme: uri.scheme_str()?.to_owned(), host, port: uri.port_u16() })
    }
}

fn percent_encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_put_together() {
        let url: ModelUrl = "ws://127.0.0.1:9100/v1/realtime".parse().unwrap();
        assert_eq!((url.secure, url.host.as_str(), url.port), (false, "127.0.0.1", 9100));
        assert_eq!(url.with_model("a b/c"), "ws://127.0.0.1:9100/v1/realtime?model=a%20b%2Fc");
        let url: ModelUrl = "wss://[::1]/rt?api-version=1".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port), ("::1", 443));
        assert_eq!(url.with_model("m"), "wss://[::1]/rt?api-version=1&model=m");
        let url: ModelUrl = "wss://x/rt?model=mine".parse().unwrap();
        assert_eq!(url.with_model("m"), "wss://x/rt?model=mine");
        for bad in [
            "",
            "api.openai.com",
            "wss://",
            "wss://x:99999/",
            "wss://x:0/",
            "wss://key@x/",
            "wss://x/#f",
            "http://x/",
        ] {
            assert!(bad.parse::<ModelUrl>().is_err(), "{bad}");
        }
        for (given, stream) in [
            ("https://voice.example.com", "wss://voice.example.com/twilio"),
            ("https://voice.example.com:8443/base/", "wss://voice.example.com:8443/base/twilio"),
            ("http://127.0.0.1:8084", "ws://127.0.0.1:8084/twilio"),
        ] {
            let url: PublicUrl = given.parse().unwrap();
            assert_eq!(url.websocket_of("/twilio"), stream);
            let asked = stream.replacen("ws", "http", 1).replace("/twilio", "/voice");
            assert_eq!(url.url_of("/voice"), asked);
        }
        assert!("https://x/?a=b".parse::<PublicUrl>().unwrap_err().contains("query"));
    }

    #[test]
    fn a_shown_url_hides_what_may_be_a_secret() {
        for (url, shown) in [
            ("https://example.com/a?model=m", "https://example.com/a?model=m"),
            ("wss://sk-hidden@example.com/rt", "wss://***@example.com/rt"),
            ("wss://me:hid/d?e#n@example.com", "wss://***@example.com"),
            ("me:hidden@example.com", "***@example.com"),
            ("x?api-version=1&api-key=hidden&hidden", "x?api-version=1&api-key=***&***"),
            ("https://example.com/#hidden", "https://example.com/#***"),
        ] {
            assert_eq!(shown_url(url), shown);
        }
    }
}
