//! What the network does to each leg, as data.
//!
//! Only what TCP lets an application see: delay, outages that end in a burst, a reset, a peer that is gone
//! without a word, a reader that is too slow. A lost packet is one of these; bytes never vanish from a stream.
//! All times are milliseconds of the scenario, not of a call: two calls share the same network.
//!
//! What concerns single bytes, [`DirectionConditions`], and a connection that is closed in one direction, only the pipes backend
//! can make: the others carry whole messages.

use mocks::peer::At;
use serde::{Deserialize, Deserializer, Serialize};

/// The longest message of a bridge: 200 ms of mu-law in base64, and what is around it. The message that meets a full
/// window has begun to leave, and nothing overtakes it.
const MESSAGE_BYTES: u64 = 2_300;

/// One way from Twilio to the bridge, ms.
const CALLER_LATENCY_MS: u64 = 20;
/// One way from the bridge to the model, ms.
const MODEL_LATENCY_MS: u64 = 30;
/// Most hesitations in a hundred tries.
const HESITATES_MAX: u64 = 90;

/// The conditions on both legs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConditions {
    /// Between Twilio and the bridge.
    #[serde(deserialize_with = "caller_leg")]
    pub caller: LegConditions,
    /// Between the bridge and the model.
    #[serde(deserialize_with = "model_leg")]
    pub model: LegConditions,
}

/// The conditions on one leg: the same in both directions, but for what each has of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LegConditions {
    /// One way, ms.
    pub latency_ms: u64,
    /// Up to this much more for each message, ms; order is kept, so one late message delays those behind it.
    pub jitter_ms: u64,
    /// Outages: nothing passes, then everything at once.
    pub stalls: Vec<Stall>,
    /// The connections on this leg are reset then.
    pub cut_at_ms: Option<u64>,
    /// From then on nothing passes and neither end is told.
    pub blackhole_at_ms: Option<u64>,
    /// The far end reads no faster than this, bytes per second of WebSocket messages. Only on the caller leg.
    pub reads_bytes_per_s: Option<u64>,
    /// The far ends of this leg's connections close their own direction then, without a word, and go on reading.
    /// Only on pipes.
    pub half_close_at_ms: Option<u64>,
    /// From the caller to the model. Only on pipes.
    pub uplink: DirectionConditions,
    /// From the model to the caller. Only on pipes.
    pub downlink: DirectionConditions,
}

/// What the network does to the bytes of one direction of a leg.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DirectionConditions {
    /// The line carries so many bytes per second; what is written faster queues before it, up to the window.
    pub bytes_per_s: Option<u64>,
    /// Bytes on their way, or arrived and not read, before the writer has to wait.
    pub window_bytes: Option<u64>,
    /// No read and no write moves more bytes than a number drawn from 1 to this, however many there are.
    pub pieces_bytes: Option<u64>,
    /// Of a hundred reads and writes that could go on, so many have to be tried again first, at the same time.
    pub hesitates_percent: u64,
}

/// An outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stall {
    /// When it begins.
    pub at_ms: u64,
    /// How long it lasts.
    pub for_ms: u64,
}

impl Default for NetworkConditions {
    fn default() -> Self {
        Self {
            caller: LegConditions::ideal(CALLER_LATENCY_MS),
            model: LegConditions::ideal(MODEL_LATENCY_MS),
        }
    }
}

impl NetworkConditions {
    /// Why it cannot be played, if it cannot.
    pub fn problem(&self) -> Option<String> {
        let ways = self
            .legs()
            .into_iter()
            .flat_map(|(name, leg)| [(name, "uplink", &leg.uplink), (name, "downlink", &leg.downlink)]);
        ways.into_iter().find_map(|(leg, way, conditions)| {
            Some(format!("`network.{leg}.{way}`: {}", conditions.problem()?))
        })
    }

    /// The key of something that only the pipes backend can play, if there is any.
    pub fn only_on_pipes(&self) -> Option<String> {
        self.legs()
            .into_iter()
            .find_map(|(name, leg)| Some(format!("network.{name}.{}", leg.only_on_pipes()?)))
    }

    const fn legs(&self) -> [(&'static str, &LegConditions); 2] {
        [("caller", &self.caller), ("model", &self.model)]
    }
}

impl LegConditions {
    /// Nothing but latency.
    pub const fn ideal(latency_ms: u64) -> Self {
        Self {
            latency_ms,
            jitter_ms: 0,
            stalls: Vec::new(),
            cut_at_ms: None,
            blackhole_at_ms: None,
            reads_bytes_per_s: None,
            half_close_at_ms: None,
            uplink: DirectionConditions::IDEAL,
            downlink: DirectionConditions::IDEAL,
        }
    }

    /// Nothing but latency, without variation. Pieces and hesitations take no time.
    pub fn is_ideal(&self) -> bool {
        let timeless = |way: &DirectionConditions| DirectionConditions {
            pieces_bytes: None,
            hesitates_percent: 0,
            ..way.clone()
        };
        let (uplink, downlink) = (timeless(&self.uplink), timeless(&self.downlink));
        Self { uplink, downlink, ..self.clone() } == Self::ideal(self.latency_ms)
    }

    /// The name of something here that only the pipes backend can play, if there is any.
    pub fn only_on_pipes(&self) -> Option<&'static str> {
        if self.half_close_at_ms.is_some() {
            Some("half_close_at_ms")
        } else if self.uplink != DirectionConditions::IDEAL {
            Some("uplink")
        } else if self.downlink != DirectionConditions::IDEAL {
            Some("downlink")
        } else {
            None
        }
    }

    /// When something sent at `sent` arrives, or `None` when it never does. `draw` is a random number of its
    /// own; `behind` is when the message before it arrives: nothing overtakes on a stream.
    pub fn arrives(&self, sent: At, draw: u64, behind: At) -> Option<At> {
        let jitter_us = match self.jitter_ms {
            0 => 0,
            ms => draw % (ms * 1_000 + 1),
        };
        let mut arrives = At(sent.0 + self.latency_ms * 1_000 + jitter_us).max(behind);
        let mut left = sent;
        // Later stalls first find what an earlier one let go, so the order of the list does not matter.
        let mut stalls: Vec<_> = self.stalls.iter().collect();
        stalls.sort_by_key(|stall| stall.at_ms);
        for stall in stalls {
            let (begins, ends) = (At::ms(stall.at_ms), At::ms(stall.at_ms + stall.for_ms));
            if left < ends && arrives >= begins && arrives < ends {
                arrives = ends;
                left = ends;
            }
        }
        self.passes(arrives).then_some(arrives)
    }

    /// Whether anything arrives at all at this time.
    pub fn passes(&self, at: At) -> bool {
        self.blackhole_at_ms.is_none_or(|dark| at < At::ms(dark))
    }
}

impl DirectionConditions {
    /// Nothing of all this.
    pub const IDEAL: Self =
        Self { bytes_per_s: None, window_bytes: None, pieces_bytes: None, hesitates_percent: 0 };

    /// Why it cannot be played, if it cannot.
    pub fn problem(&self) -> Option<&'static str> {
        if [self.bytes_per_s, self.window_bytes, self.pieces_bytes].contains(&Some(0)) {
            Some("a number of bytes is 0: nothing would ever pass")
        } else if self.bytes_per_s.is_some() && self.window_bytes.is_none() {
            Some("`bytes_per_s` needs `window_bytes` beside it: a queue before a narrow line has an end")
        } else if self.hesitates_percent > HESITATES_MAX {
            Some("`hesitates_percent` is above 90: a task would wait for ever")
        } else {
            None
        }
    }

    /// How long what was written last waits behind what was written before it, and for itself to pass, microseconds:
    /// at most the whole window and the rest of the message that fills it, on a line that is narrow.
    pub fn queue_us(&self) -> u64 {
        match (self.bytes_per_s, self.window_bytes) {
            (Some(rate), Some(window)) => (window + MESSAGE_BYTES) * 1_000_000 / rate,
            (None, _) | (_, None) => 0,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LegSpec {
    latency_ms: Option<u64>,
    #[serde(default)]
    jitter_ms: u64,
    #[serde(default)]
    stalls: Vec<Stall>,
    cut_at_ms: Option<u64>,
    #[serde(alias = "dark_at_ms")]
    blackhole_at_ms: Option<u64>,
    reads_bytes_per_s: Option<u64>,
    half_close_at_ms: Option<u64>,
    #[serde(default)]
    uplink: DirectionConditions,
    #[serde(default)]
    downlink: DirectionConditions,
}

impl LegSpec {
    fn leg(self, latency_ms: u64) -> LegConditions {
        LegConditions {
            latency_ms: self.latency_ms.unwrap_or(latency_ms),
            jitter_ms: self.jitter_ms,
            stalls: self.stalls,
            cut_at_ms: self.cut_at_ms,
            blackhole_at_ms: self.blackhole_at_ms,
            reads_bytes_per_s: self.reads_bytes_per_s,
            half_close_at_ms: self.half_close_at_ms,
            uplink: self.uplink,
            downlink: self.downlink,
        }
    }
}

fn caller_leg<'de, D: Deserializer<'de>>(from: D) -> Result<LegConditions, D::Error> {
    Ok(LegSpec::deserialize(from)?.leg(CALLER_LATENCY_MS))
}

fn model_leg<'de, D: Deserializer<'de>>(from: D) -> Result<LegConditions, D::Error> {
    let leg = LegSpec::deserialize(from)?.leg(MODEL_LATENCY_MS);
    match leg.reads_bytes_per_s {
        Some(_) => Err(serde::de::Error::custom("only the caller leg has a slow reader")),
        None => Ok(leg),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::seed::Seed;
    use rand_chacha::rand_core::RngCore as _;

    /// Sends a message every 20 ms and says when each arrives.
    fn arrivals(leg: &LegConditions, messages: u64) -> Vec<Option<At>> {
        let mut rng = Seed(7).stream("weather/test");
        let mut behind = At(0);
        (0..messages)
            .map(|n| {
                let arrives = leg.arrives(At::ms(n * 20), rng.next_u64(), behind);
                behind = arrives.unwrap_or(behind);
                arrives
            })
            .collect()
    }

    #[test]
    fn nothing_overtakes() {
        let leg = LegConditions { jitter_ms: 200, ..LegConditions::ideal(20) };
        let all: Vec<_> = arrivals(&leg, 500).into_iter().flatten().collect();
        assert_eq!(all.len(), 500);
        assert!(all.is_sorted());
        assert!(all.windows(2).any(|pair| pair[0] == pair[1]), "a late message makes a burst");
        assert!(all.iter().zip(0..).all(|(at, n)| at.since(At::ms(n * 20)) >= 20_000), "never early");
    }

    #[test]
    fn a_stall_ends_in_a_burst() {
        let stalls = vec![Stall { at_ms: 400, for_ms: 100 }, Stall { at_ms: 100, for_ms: 300 }];
        let leg = LegConditions { stalls, ..LegConditions::ideal(20) };
        let all: Vec<_> = arrivals(&leg, 40).into_iter().flatten().collect();
        assert_eq!(all[3], At::ms(80), "before the stall");
        assert!(all[4..24].iter().all(|at| *at == At::ms(500)), "both stalls, then a burst: {all:?}");
        assert_eq!(all[25], At::ms(520), "after the stall");
    }

    #[test]
    fn nothing_arrives_in_the_dark() {
        let leg = LegConditions { blackhole_at_ms: Some(100), ..LegConditions::ideal(20) };
        let all = arrivals(&leg, 10);
        assert_eq!(all.iter().filter(|at| at.is_some()).count(), 4);
        assert!(all[4..].iter().all(Option::is_none));
    }

    #[test]
    fn each_leg_has_a_latency_of_its_own() {
        let network: NetworkConditions =
            toml::from_str("[caller]\njitter_ms = 5\n[model]\njitter_ms = 5").unwrap();
        assert_eq!((network.caller.latency_ms, network.model.latency_ms), (20, 30));
        assert!(toml::from_str::<NetworkConditions>("[model]\nreads_bytes_per_s = 5").is_err());
    }

    #[test]
    fn pieces_take_no_time_and_a_narrow_line_takes_its_window() {
        let leg = |uplink| LegConditions { uplink, ..LegConditions::ideal(20) };
        let pieces = DirectionConditions {
            pieces_bytes: Some(9),
            hesitates_percent: 50,
            ..DirectionConditions::IDEAL
        };
        assert!(leg(pieces.clone()).is_ideal() && leg(pieces).only_on_pipes() == Some("uplink"));
        let narrow = DirectionConditions {
            bytes_per_s: Some(16_000),
            window_bytes: Some(8_000),
            ..DirectionConditions::IDEAL
        };
        assert_eq!(narrow.queue_us(), (8_000 + MESSAGE_BYTES) * 1_000_000 / 16_000);
        assert!(!leg(narrow).is_ideal());
    }

    #[test]
    fn a_direction_that_could_never_carry_anything_is_refused() {
        let problem = |text: &str| toml::from_str::<DirectionConditions>(text).unwrap().problem();
        assert_eq!(
            problem("bytes_per_s = 9\nwindow_bytes = 9\npieces_bytes = 1\nhesitates_percent = 90"),
            None
        );
        for (text, word) in [
            ("pieces_bytes = 0", "nothing would ever pass"),
            ("bytes_per_s = 9", "window_bytes"),
            ("hesitates_percent = 91", "for ever"),
        ] {
            assert!(problem(text).unwrap().contains(word), "{text}");
        }
    }
}
