//! The answers to Twilio's question what to do with a call, as XML that no value can break out of.

use serde::{Deserialize, Serialize};

/// The `<Parameter>` that carries the token of a stream.
pub const TOKEN_PARAMETER: &str = "token";

/// Twilio takes a name and its value together up to below this many characters.
pub const PARAMETER_MAX: usize = 499;

/// What becomes of a call once its stream has ended and the caller is still there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// The call ends.
    #[default]
    Hangup,
    /// Twilio asks at this address what to do next.
    Redirect(#[serde(serialize_with = "crate::base::url::serialize_url")] String),
    /// The caller is put through to this number.
    Dial(String),
}

/// The stream a call is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream<'a> {
    /// The WebSocket.
    pub url: &'a str,
    /// Where Twilio tells what becomes of the stream.
    pub status_callback: Option<&'a str>,
    /// What `start` will say in `customParameters`. One that is too long for Twilio is left out.
    pub parameters: &'a [(&'a str, &'a str)],
}

/// Connects the call to a stream.
pub fn connect(stream: &Stream<'_>, after: &After) -> String {
    let mut body = format!("<Connect><Stream url=\"{}\"", escaped(stream.url));
    if let Some(callback) = stream.status_callback {
        body.push_str(&format!(" statusCallback=\"{}\" statusCallbackMethod=\"POST\"", escaped(callback)));
    }
    if stream.parameters.is_empty() {
        body.push_str("/>");
    } else {
        body.push('>');
        let fits =
            |(name, value): &&(&str, &str)| name.chars().count() + value.chars().count() <= PARAMETER_MAX;
        for (name, value) in stream.parameters.iter().filter(fits) {
            body.push_str(&format!("<Parameter name=\"{}\" value=\"{}\"/>", escaped(name), escaped(value)));
        }
        body.push_str("</Stream>");
    }
    body.push_str("</Connect>");
    body.push_str(&match after {
        After::Hangup => "<Hangup/>".to_owned(),
        After::Redirect(url) => format!("<Redirect method=\"POST\">{}</Redirect>", escaped(url)),
        After::Dial(number) => dialled(number),
    });
    response(&body)
}

/// Puts the caller through to a number.
pub fn dial(number: &str) -> String {
    response(&dialled(number))
}

fn dialled(number: &str) -> String {
    format!("<Dial>{}</Dial>", escaped(number))
}

/// Takes no call.
pub fn busy() -> String {
    response("<Reject reason=\"busy\"/>")
}

fn response(body: &str) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response>{body}</Response>\n")
}

/// Text as XML may hold it. What XML cannot hold at all is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // A reader would make a space of them in an attribute.
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            '\0'..='\u{1F}' | '\u{7F}' | '\u{FFFE}' | '\u{FFFF}' => {}
            other => out.push(other),
        }
    }
    out
}

/// Whether Twilio can dial this: a number with its country, a SIP address or a client of the account.
pub fn is_dialable(to: &str) -> bool {
    let digits = to.strip_prefix('+').unwrap_or("");
    let number = (3..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let address = (to.starts_with("sip:") || to.starts_with("client:"))
        && to.len() <= 255
        && to.bytes().all(|b| b.is_ascii_graphic() && !b"<>\"'&".contains(&b));
    number || address
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response>";

    #[test]
    fn a_stream_carries_its_callback_and_parameters() {
        let stream = Stream {
            url: "wss://voice.example.com/twilio",
            status_callback: Some("https://voice.example.com/stream-status"),
            parameters: &[("token", "1.2.3"), ("from", "+14155550123")],
        };
        assert_eq!(
            connect(&stream, &After::Hangup),
            format!(
                "{HEAD}<Connect><Stream url=\"wss://voice.example.com/twilio\" \
                 statusCallback=\"https://voice.example.com/stream-status\" statusCallbackMethod=\"POST\">\
                 <Parameter name=\"token\" value=\"1.2.3\"/><Parameter name=\"from\" value=\"+14155550123\"/>\
                 </Stream></Connect><Hangup/></Response>\n"
            )
        );
    }

    #[test]
    fn what_follows_the_stream_is_a_setting() {
        let stream = Stream { url: "wss://a/b", status_callback: None, parameters: &[] };
        let tail = |after| connect(&stream, &after).split_once("</Connect>").unwrap().1.to_owned();
        assert_eq!(tail(After::Hangup), "<Hangup/></Response>\n");
        assert_eq!(
            tail(After::Redirect("https://x/y?a=1&b=2".into())),
            "<Redirect method=\"POST\">https://x/y?a=1&amp;b=2</Redirect></Response>\n"
        );
        assert_eq!(tail(After::Dial("+1415".into())), "<Dial>+1415</Dial></Response>\n");
    }

    #[test]
    fn no_value_breaks_out_of_its_place() {
        let hostile = "x\"/><Hangup/>'&amp;\u{0}\u{B}\n<!--\u{1F}";
        let stream =
            Stream { url: hostile, status_callback: Some(hostile), parameters: &[(hostile, hostile)] };
        let made = connect(&stream, &After::Dial(hostile.into()));
        let safe = "x&quot;/&gt;&lt;Hangup/&gt;&apos;&amp;amp;&#10;&lt;!--";
        assert_eq!(made.matches(safe).count(), 5, "{made}");
        assert_eq!(made.matches("<Hangup/>").count(), 0, "{made}");
        assert!(made.chars().all(|c| c == '\n' || !c.is_control()), "{made:?}");
    }

    #[test]
    fn a_parameter_that_twilio_would_not_take_is_left_out() {
        let long = "x".repeat(PARAMETER_MAX);
        let stream =
            Stream { url: "wss://a/b", status_callback: None, parameters: &[("a", &long), ("b", "1")] };
        let made = connect(&stream, &After::Hangup);
        assert!(made.contains("name=\"b\"") && !made.contains("name=\"a\""), "{made}");
    }

    #[test]
    fn only_what_twilio_can_dial_is_dialable() {
        for good in ["+14155550100", "+491", "sip:desk@example.com", "client:jane"] {
            assert!(is_dialable(good), "{good}");
        }
        for bad in
            ["", "+", "14155550100", "+1 415", "+1415555010012345", "tel:+1", "sip:<x>", "+1\n2", "sip:a b"]
        {
            assert!(!is_dialable(bad), "{bad}");
        }
    }
}
