//! Tickets from the webhook to the stream: the TwiML of a call carries one, its stream has to show it.
//!
//! Twilio's signature has no time in it, so an upgrade that was overheard could be repeated for ever. A token is
//! signed by the bridge, names its call through the signature, ends after a short while, and is good for one stream.
//! Its key is made from the auth token, so every replica of a bridge knows the tokens of the others; that each is
//! used once is known to the process that took it, and elsewhere it ends by itself.

use crate::auth::signature::hmac_sha256;
use crate::base::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use subtle::ConstantTimeEq as _;

/// Most tokens remembered as used. Only true ones get here, each for its short life: far beyond what one process
/// can carry of calls.
const USED_MAX: usize = 200_000;
/// How far the clocks of two replicas may be apart, seconds.
const SKEW_S: i64 = 5;
/// What the key is made for.
const PURPOSE: &[u8] = b"bridge: token of a stream, 1";

/// Why a stream's token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("{}", self.why())]
pub enum Refusal {
    /// The stream showed none.
    Missing,
    /// It was made elsewhere, for another call, or is no token at all.
    Forged,
    /// Its time is over.
    Expired,
    /// Another stream has shown it.
    Used,
    /// Too many are remembered to know whether it was used.
    Crowded,
}

impl Refusal {
    /// In words.
    pub const fn why(self) -> &'static str {
        match self {
            Self::Missing => "the stream shows no token",
            Self::Forged => "the token is not this call's",
            Self::Expired => "the token has expired",
            Self::Used => "the token was used before",
            Self::Crowded => "too many tokens to remember",
        }
    }
}

/// Makes tokens and takes them back.
#[derive(Debug)]
pub struct Tokens {
    key: Secret,
    life_s: i64,
    /// Tells the tokens of this process from those of another.
    process: u64,
    next: AtomicU64,
    /// Until when, and which; in order of time, so that the old ones are at the front.
    used: Mutex<BTreeSet<(i64, String)>>,
}

impl Tokens {
    /// Tokens that live for `life_s` seconds, signed with a key made from `secret`. `process` has to differ from that
    /// of every other process that shares the secret; it need not be a secret itself.
    pub fn new(secret: &Secret, life_s: u32, process: u64) -> Self {
        let key = hmac_sha256(secret.expose().as_bytes(), &[PURPOSE]);
        Self {
            key: Secret::new(BASE64.encode(key)),
            life_s: i64::from(life_s),
            process,
            next: AtomicU64::new(0),
            used: Mutex::default(),
        }
    }

    /// A token for a stream of this call.
    pub fn issue(&self, call_sid: &str, unix_now: i64) -> String {
        let ends = unix_now.saturating_add(self.life_s);
        let body = format!("{ends}.{:016x}{:x}", self.process, self.next.fetch_add(1, Relaxed));
        format!("{body}.{}", self.sign(&body, call_sid))
    }

    /// Takes the token a stream of this call shows. It is good for nothing afterwards.
    ///
    /// # Errors
    /// When it is not good now. Nothing is remembered of it then.
    pub fn redeem(&self, token: Option<&str>, call_sid: &str, unix_now: i64) -> Result<(), Refusal> {
        let token = token.filter(|token| !token.is_empty()).ok_or(Refusal::Missing)?;
        let (body, signature) = token.rsplit_once('.').ok_or(Refusal::Forged)?;
        // The call's name follows behind a line break: one in the body would let the two be divided otherwise.
        if body.contains('\n') {
            return Err(Refusal::Forged);
        }
        let right = self.sign(body, call_sid);
        if !bool::from(right.as_bytes().ct_eq(signature.as_bytes())) {
            return Err(Refusal::Forged);
        }
        let (ends, name) = body.split_once('.').ok_or(Refusal::Forged)?;
        let ends: i64 = ends.parse().map_err(|_| Refusal::Forged)?;
        if ends.saturating_add(SKEW_S) < unix_now {
            return Err(Refusal::Expired);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        while used.first().is_some_and(|(ends, _)| ends.saturating_add(SKEW_S) < unix_now) {
            used.pop_first();
        }
        if used.len() >= USED_MAX {
            return Err(Refusal::Crowded);
        }
        match used.insert((ends, name.to_owned())) {
            true => Ok(()),
            false => Err(Refusal::Used),
        }
    }

    fn sign(&self, body: &str, call_sid: &str) -> String {
        BASE64
            .encode(hmac_sha256(self.key.expose().as_bytes(), &[body.as_bytes(), b"\n", call_sid.as_bytes()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;

    fn tokens(process: u64) -> Tokens {
        Tokens::new(&Secret::new("auth-token"), 60, process)
    }

    fn redeem(tokens: &Tokens, token: &str, call_sid: &str, now: i64) -> Result<(), Refusal> {
        tokens.redeem(Some(token), call_sid, now)
    }

    #[test]
    fn a_token_is_good_for_one_stream_of_its_call() {
        let t = tokens(1);
        let token = t.issue("CA1", NOW);
        assert_eq!(redeem(&t, &token, "CA2", NOW), Err(Refusal::Forged), "another call");
        assert_eq!(redeem(&t, &token, "CA1", NOW), Ok(()));
        assert_eq!(redeem(&t, &token, "CA1", NOW), Err(Refusal::Used));
    }

    #[test]
    fn what_is_signed_can_be_divided_in_one_way_only() {
        let t = tokens(1);
        let token = t.issue("CA1\nCA2", NOW);
        let (body, signature) = token.rsplit_once('.').unwrap();
        let moved = format!("{body}\nCA1.{signature}");
        assert_eq!(redeem(&t, &moved, "CA2", NOW), Err(Refusal::Forged), "the same bytes, another call");
    }

    #[test]
    fn each_stream_of_a_call_gets_a_token_of_its_own() {
        let t = tokens(1);
        let (first, second) = (t.issue("CA1", NOW), t.issue("CA1", NOW));
        assert_eq!((redeem(&t, &first, "CA1", NOW), redeem(&t, &second, "CA1", NOW)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_token_ends_by_itself() {
        let t = tokens(1);
        let token = t.issue("CA1", NOW);
        assert_eq!(redeem(&t, &token, "CA1", NOW + 66), Err(Refusal::Expired));
        assert_eq!(redeem(&t, &token, "CA1", NOW + 65), Ok(()), "clocks differ a little");
        assert_eq!(redeem(&t, &token, "CA1", NOW + 65), Err(Refusal::Used), "and it is remembered as long");
    }

    #[test]
    fn a_full_memory_of_tokens_lets_no_stream_in() {
        let t = tokens(1);
        t.used.lock().unwrap().extend((0..USED_MAX).map(|n| (NOW + 60, n.to_string())));
        let token = t.issue("CA1", NOW);
        assert_eq!(redeem(&t, &token, "CA1", NOW), Err(Refusal::Crowded));
        assert_eq!(redeem(&t, &token, "CA1", NOW + 65), Err(Refusal::Crowded));
        let later = t.issue("CA1", NOW + 66);
        assert_eq!(redeem(&t, &later, "CA1", NOW + 66), Ok(()), "what has ended makes room");
    }

    #[test]
    fn another_replica_knows_the_token_and_another_account_does_not() {
        let token = tokens(1).issue("CA1", NOW);
        let replica = tokens(2);
        let own = replica.issue("CA1", NOW);
        assert_eq!(redeem(&replica, &token, "CA1", NOW), Ok(()));
        assert_eq!(redeem(&replica, &own, "CA1", NOW), Ok(()), "which is none of its own");
        let other = Tokens::new(&Secret::new("another"), 60, 1);
        assert_eq!(redeem(&other, &token, "CA1", NOW), Err(Refusal::Forged));
    }

    #[test]
    fn what_is_no_token_is_refused_and_remembered_nowhere() {
        let t = tokens(1);
        let good = t.issue("CA1", NOW);
        let (body, signature) = good.rsplit_once('.').unwrap();
        let later = body.replacen(&(NOW + 60).to_string(), &(NOW + 6_000).to_string(), 1);
        for bad in [
            ".",
            "..",
            "x",
            "1.2.3",
            &format!("{later}.{signature}"),
            &format!("{good}x"),
            &good[..good.len() - 1],
            "99999999999999999999.0.AAAA",
            "\u{fc}.\u{fc}.\u{fc}",
        ] {
            assert_eq!(redeem(&t, bad, "CA1", NOW), Err(Refusal::Forged), "{bad}");
        }
        assert_eq!(t.redeem(None, "CA1", NOW), Err(Refusal::Missing));
        assert_eq!(t.redeem(Some(""), "CA1", NOW), Err(Refusal::Missing));
        assert!(t.used.lock().unwrap().is_empty());
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let t = tokens(1);
        for n in 0..100 {
            let token = t.issue("CA1", NOW + n);
            assert_eq!(redeem(&t, &token, "CA1", NOW + n), Ok(()));
        }
        let last = t.issue("CA1", NOW + 200);
        assert_eq!(redeem(&t, &last, "CA1", NOW + 200), Ok(()));
        assert_eq!(t.used.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_token_fits_a_parameter_and_shows_no_key() {
        let t = tokens(u64::MAX);
        let token = t.issue("CA1", NOW);
        assert!(token.len() < 120 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)));
        assert!(!format!("{t:?}").contains(t.key.expose()));
    }
}
