//! `X-Twilio-Signature`, as Twilio makes it: what a bridge checks before it lets anybody in.
//!
//! Written from the documentation alone, so that a bridge's own check is compared with something that shares no line
//! with it. `tests/witnesses/run` asks Twilio's own library.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest as _, Sha1};
use std::collections::BTreeSet;

/// The header it is sent in.
pub const HEADER: &str = "X-Twilio-Signature";
/// What SHA-1 takes at once, bytes.
const BLOCK: usize = 64;

/// Signs a request to `url`, exactly as it is requested: scheme, host, port if one is written, path, and the query
/// still encoded. `form` are the parameters of a form that is posted, decoded and in any order, blanks included; an
/// upgrade and a GET have none. The address of an upgrade begins with `wss`.
pub fn sign(token: &str, url: &str, form: &[(String, String)]) -> String {
    let sorted: BTreeSet<_> = form.iter().collect();
    let mut text = url.to_owned();
    for (name, value) in sorted {
        text.push_str(name);
        text.push_str(value);
    }
    STANDARD.encode(hmac(token.as_bytes(), text.as_bytes()))
}

/// HMAC with SHA-1 (RFC 2104).
fn hmac(key: &[u8], text: &[u8]) -> [u8; 20] {
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..20].copy_from_slice(&Sha1::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let hash =
        |pad: u8, rest: &[u8]| Sha1::new().chain_update(block.map(|b| b ^ pad)).chain_update(rest).finalize();
    hash(0x5C, &hash(0x36, text)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_vector_of_twilios_own_tests_is_reproduced() {
        let form = form(&[
            ("To", "+18005551212"),
            ("CallSid", "CA1234567890ABCDE"),
            ("Caller", "+14158675309"),
            ("Digits", "1234"),
            ("From", "+14158675309"),
        ]);
        let signature = sign("12345", "https://mycompany.com/myapp.php?foo=1&bar=2", &form);
        assert_eq!(signature, "RSOYDt4T1cUTdK1PDd93/VVr8B8=");
    }

    #[test]
    fn values_are_sorted_and_said_once() {
        let token = "0123456789abcdef0123456789abcdef";
        let form = form(&[("A", "2"), ("A", "1"), ("A", "2"), ("B", "x")]);
        assert_eq!(sign(token, "https://voice.example.com/x", &form), "VVvauDtbMnjbFDfHiZthoddDep4=");
    }

    #[test]
    fn an_upgrade_is_signed_by_its_address_alone() {
        let token = "0123456789abcdef0123456789abcdef";
        for (url, signature) in [
            ("wss://voice.example.com/media", "ttk+kVY3Kdi/BWVnuJguRoi2Bjs="),
            ("wss://voice.example.com/media/", "xSZ25E4AoL/WAklRSBhXh8WbY9E="),
            ("wss://voice.example.com:8443/media", "AF0qiBTAfgMeoczRzOeA7hcSCr0="),
        ] {
            assert_eq!(sign(token, url, &[]), signature, "{url}");
        }
    }

    #[test]
    fn a_long_key_is_hashed_first() {
        // RFC 2202, test case 6.
        let mac = hmac(&[0xAA; 80], b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(mac[..4], [0xAA, 0x4A, 0xE5, 0xE1]);
    }
}
