//! Signed webhooks that were answered before, by their signatures.
//!
//! Twilio's signature has no time in it: a signed webhook that was captured stays signed. This memory makes it worthless.
//!
//! | a webhook | answer |
//! |---|---|
//! | with a new signature | a new token |
//! | byte-equal to one before, whose token is good and unused | the same token: Twilio repeats a request that failed |
//! | byte-equal, while a stream of the call is live | the same token, which is used up |
//! | byte-equal, after the stream, while the call may come back through a `<Redirect>` | a new token |
//! | byte-equal, after the call | none |
//!
//! A call may come back only where its TwiML goes on behind the stream, for `twilio.return_s` after its last stream, for
//! `CALL_S` in all, and not with a webhook that says `ringing`: a call that had a stream was answered.

use crate::call::event::EndReason;
use std::collections::{BTreeMap, VecDeque};

/// Most webhooks that are remembered. Only signed ones get here, so only the account's own calls fill it: about 40 MB.
const SEEN_MAX: usize = 100_000;
/// How long a call lasts at Twilio unless its account is told otherwise, seconds. No webhook is honest for longer.
pub(crate) const CALL_S: i64 = 4 * 3_600;

/// The first bytes of a signature that was checked.
type Key = u128;

/// Why a webhook that came before gets no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Replayed {
    /// Its call is over, or has gone too far for it.
    #[error(
        "this webhook was answered before, and its call is over or was answered since; a call that comes back later \
         than twilio.return_s needs an address that differs, such as /voice?turn=2"
    )]
    Over,
    /// The same letters were divided into other names and values.
    #[error("this webhook's signature was used for another call")]
    Divided,
}

#[derive(Debug)]
struct Webhook {
    call_sid: String,
    first: i64,
    token: String,
    issued: i64,
    spent: bool,
}

#[derive(Debug, Default)]
struct Streams {
    live: usize,
    /// A stream came in.
    answered: bool,
    over: bool,
    /// When the call was last known to go on.
    last: i64,
    webhooks: Vec<Key>,
}

/// The webhooks of a process, and what became of their calls.
#[derive(Debug)]
pub(crate) struct Webhooks {
    seen: BTreeMap<Key, Webhook>,
    /// Oldest first.
    order: VecDeque<Key>,
    calls: BTreeMap<String, Streams>,
    token_life_s: i64,
    /// How long after its last stream a call may come back; `None`: its TwiML does not lead anywhere.
    return_s: Option<i64>,
    max: usize,
}

impl Webhooks {
    /// `return_s`: how long after its last stream a call may come back, if its TwiML leads anywhere behind it.
    pub(crate) fn new(token_life_s: u32, return_s: Option<u32>) -> Self {
        Self {
            seen: BTreeMap::new(),
            order: VecDeque::new(),
            calls: BTreeMap::new(),
            token_life_s: i64::from(token_life_s),
            return_s: return_s.map(i64::from),
            max: SEEN_MAX,
        }
    }

    /// The token that answers a webhook of this signature; `mint` makes a new one.
    pub(crate) fn token(
        &mut self,
        signature: &[u8],
        call_sid: &str,
        ringing: bool,
        now: i64,
        mint: impl FnOnce() -> String,
    ) -> Result<String, Replayed> {
        let mut key = [0; 16];
        key.iter_mut().zip(signature).for_each(|(to, from)| *to = *from);
        let key = Key::from_be_bytes(key);
        let Some(webhook) = self.seen.get_mut(&key) else {
            let token = mint();
            let webhook = Webhook {
                call_sid: call_sid.to_owned(),
                first: now,
                token: token.clone(),
                issued: now,
                spent: false,
            };
            self.seen.insert(key, webhook);
            self.order.push_back(key);
            let streams = self.calls.entry(call_sid.to_owned()).or_default();
            streams.webhooks.push(key);
            streams.over = false;
            streams.last = now;
            self.forget();
            return Ok(token);
        };
        if webhook.call_sid != call_sid {
            return Err(Replayed::Divided);
        }
        let Some(streams) = self.calls.get(call_sid) else { return Err(Replayed::Over) };
        let good = !webhook.spent && now <= webhook.issued.saturating_add(self.token_life_s);
        if good || streams.live > 0 {
            return Ok(webhook.token.clone());
        }
        let comes_back = self.return_s.is_some_and(|return_s| now <= streams.last.saturating_add(return_s))
            && !streams.over
            && !(ringing && streams.answered)
            && now <= webhook.first.saturating_add(CALL_S);
        if !comes_back {
            return Err(Replayed::Over);
        }
        webhook.token = mint();
        webhook.issued = now;
        webhook.spent = false;
        Ok(webhook.token.clone())
    }

    /// A stream of this call came in with this token.
    pub(crate) fn admitted(&mut self, call_sid: &str, token: &str, now: i64) {
        let streams = self.calls.entry(call_sid.to_owned()).or_default();
        streams.live += 1;
        streams.answered = true;
        streams.over = false;
        streams.last = now;
        for key in &streams.webhooks {
            if let Some(webhook) = self.seen.get_mut(key).filter(|webhook| webhook.token == token) {
                webhook.spent = true;
            }
        }
    }

    /// A stream that came in has ended; `None`: for an unknown reason.
    pub(crate) fn left(&mut self, call_sid: &str, reason: Option<EndReason>, now: i64) {
        let Some(streams) = self.calls.get_mut(call_sid) else { return };
        streams.live = streams.live.saturating_sub(1);
        streams.last = now;
        if streams.live > 0 {
            return;
        }
        streams.over = match reason {
            // Twilio ended the stream itself, or was told what to do with the call.
            Some(EndReason::Stopped | EndReason::Transferred) => true,
            Some(_) | None => self.return_s.is_none(),
        };
        if streams.webhooks.is_empty() {
            self.calls.remove(call_sid);
        }
    }

    /// Keeps the newest within the limit; what belongs to a live call counts as new.
    fn forget(&mut self) {
        for _ in 0..self.order.len() {
            if self.order.len() <= self.max {
                return;
            }
            let Some(oldest) = self.order.pop_front() else { return };
            let Some(webhook) = self.seen.get(&oldest) else { continue };
            let Some(streams) = self.calls.get_mut(&webhook.call_sid) else { continue };
            if streams.live > 0 {
                self.order.push_back(oldest);
                continue;
            }
            streams.webhooks.retain(|key| *key != oldest);
            if streams.webhooks.is_empty() {
                self.calls.remove(&webhook.call_sid);
            }
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600;
    const RINGING: &[u8] = b"a webhook that says ringing";
    const RETURNS: &[u8] = b"one that says in-progress";

    /// Webhooks of one call, `CA1`, with tokens that are counted.
    struct Bench {
        webhooks: Webhooks,
        minted: usize,
    }

    impl Bench {
        fn new(redirects: bool) -> Self {
            Self { webhooks: Webhooks::new(60, redirects.then_some(60)), minted: 0 }
        }

        fn asks(&mut self, signature: &[u8], now: i64) -> Option<String> {
            let minted = &mut self.minted;
            let mint = || {
                *minted += 1;
                format!("token {minted}")
            };
            self.webhooks.token(signature, "CA1", signature == RINGING, now, mint).ok()
        }

        fn gets(&mut self, signature: &[u8], now: i64, token: &str) {
            assert_eq!(self.asks(signature, now).as_deref(), Some(token));
        }

        fn comes(&mut self, token: &str, now: i64) {
            self.webhooks.admitted("CA1", token, now);
        }

        fn goes(&mut self, reason: EndReason, now: i64) {
            self.webhooks.left("CA1", Some(reason), now);
        }
    }

    #[test]
    fn a_retry_before_the_stream_gets_the_same_token() {
        let mut t = Bench::new(false);
        for after in [0, 1, 60] {
            t.gets(RINGING, NOW + after, "token 1");
        }
        assert_eq!(t.asks(RINGING, NOW + 61), None, "no stream came, and Twilio does not wait for that long");
    }

    #[test]
    fn while_a_stream_is_live_only_a_new_webhook_gets_a_new_token() {
        let mut t = Bench::new(true);
        t.gets(RINGING, NOW, "token 1");
        t.comes("token 1", NOW);
        t.gets(RINGING, NOW + 5_000, "token 1");
        t.gets(RETURNS, NOW + 5_000, "token 2");
        t.comes("token 2", NOW + 5_000);
        t.goes(EndReason::Replaced, NOW + 5_000);
        t.gets(RINGING, NOW + 9_000, "token 1");
        t.gets(RETURNS, NOW + 9_000, "token 2");
    }

    #[test]
    fn after_the_call_a_captured_webhook_is_worthless() {
        for redirects in [false, true] {
            let mut t = Bench::new(redirects);
            t.gets(RINGING, NOW, "token 1");
            t.comes("token 1", NOW);
            t.goes(EndReason::Stopped, NOW + 9);
            for after in [9, 10, 1_000_000] {
                assert_eq!(t.asks(RINGING, NOW + after), None);
            }
            t.gets(RETURNS, NOW + 10, "token 2"); // Twilio says something new of the call
        }
    }

    #[test]
    fn a_redirect_comes_back_again_and_again_and_only_after_its_stream() {
        let mut t = Bench::new(true);
        t.gets(RINGING, NOW, "token 1");
        t.comes("token 1", NOW);
        t.goes(EndReason::AgentHungUp, NOW + 9);
        assert_eq!(t.asks(RINGING, NOW + 9), None, "a call that was answered does not ring");
        for turn in 2..50 {
            let now = NOW + 100 * turn;
            let token = format!("token {turn}");
            t.gets(RETURNS, now, &token);
            t.gets(RETURNS, now + 1, &token);
            t.comes(&token, now + 1);
            t.gets(RETURNS, now + 2, &token);
            t.goes(EndReason::CallerLost, now + 99);
        }
        assert_eq!(t.asks(RETURNS, NOW + 4_999 + 61), None, "it did not come back in time");
    }

    #[test]
    fn no_webhook_is_older_than_its_call() {
        let mut t = Bench::new(true);
        t.gets(RETURNS, NOW, "token 1");
        t.comes("token 1", NOW);
        t.goes(EndReason::CallerClosed, NOW + CALL_S);
        t.gets(RETURNS, NOW + CALL_S, "token 2");
        assert_eq!(
            t.asks(RETURNS, NOW + CALL_S + 61),
            None,
            "streams that it opened meanwhile do not renew it"
        );
    }

    #[test]
    fn without_a_redirect_the_end_of_the_stream_is_the_end_of_the_call() {
        let mut t = Bench::new(false);
        t.gets(RETURNS, NOW, "token 1");
        t.comes("token 1", NOW);
        t.goes(EndReason::CallerLost, NOW + 9);
        assert_eq!(t.asks(RETURNS, NOW + 9), None);
    }

    #[test]
    fn a_signature_is_good_for_one_call() {
        let mut t = Bench::new(true);
        t.gets(RINGING, NOW, "token 1");
        let other = t.webhooks.token(RINGING, "CA", true, NOW, || unreachable!("no token for it"));
        assert_eq!(other, Err(Replayed::Divided));
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_live() {
        let mut t = Webhooks::new(60, Some(60));
        t.max = 100;
        let ask = |t: &mut Webhooks, n: u32| {
            t.token(&n.to_be_bytes(), &format!("CA{n}"), true, NOW, || format!("token {n}")).unwrap()
        };
        ask(&mut t, 0);
        t.admitted("CA0", "token 0", NOW);
        (1..=1_000).for_each(|n| drop(ask(&mut t, n)));
        assert_eq!((t.seen.len(), t.order.len(), t.calls.len()), (100, 100, 100));
        let again = t.token(&0_u32.to_be_bytes(), "CA0", true, NOW, || unreachable!("it is remembered"));
        assert_eq!(again.as_deref(), Ok("token 0"));
        t.left("CA0", None, NOW);
        (1_001..=1_200).for_each(|n| drop(ask(&mut t, n)));
        assert!(t.seen.len() == 100 && !t.calls.contains_key("CA0"));
    }

    #[test]
    fn a_stream_with_another_replicas_token_leaves_nothing_behind() {
        let mut t = Bench::new(true);
        t.comes("a token of another process", NOW);
        t.goes(EndReason::Stopped, NOW);
        assert!(t.webhooks.calls.is_empty());
    }
}
