//! A seed, and the random streams drawn from it.
//!
//! Each concern draws from a stream of its own, named by a label (`weather/caller/0/up`). A new draw in one
//! concern therefore never reshuffles another, and a label is all it takes to make a new stream.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// What makes one run different from another, and the same run the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seed(pub u64);

/// A text that is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no seed: use a decimal number, a 0x hexadecimal number, or a commit hash of at least 16 digits"
)]
pub struct NotASeed(String);

impl Seed {
    /// The stream of this label.
    pub fn stream(self, label: &str) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.digest(label))
    }

    /// A number of this label, for code that makes a stream of its own.
    pub fn number(self, label: &str) -> u64 {
        let digest = self.digest(label);
        u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
    }

    fn digest(self, label: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.0.to_be_bytes());
        hash.update(label.as_bytes());
        hash.finalize().into()
    }
}

impl fmt::Display for Seed {
    /// Small seeds as they were typed, large ones as a commit hash would begin.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1_000_000_000 { write!(f, "{}", self.0) } else { write!(f, "{:#018x}", self.0) }
    }
}

impl FromStr for Seed {
    type Err = NotASeed;

    fn from_str(text: &str) -> Result<Self, NotASeed> {
        let no = || NotASeed(text.to_owned());
        if let Some(hex) = text.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).map(Self).map_err(|_| no());
        }
        // A commit hash may consist of decimal digits only; it is too long for a number then.
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let head = text.get(..16).filter(|_| text.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(no)?;
        u64::from_str_radix(head, 16).map(Self).map_err(|_| no())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore as _;

    #[test]
    fn streams_never_change() {
        assert_eq!(Seed(1).number("caller/0"), 8_159_875_448_886_671_346);
        assert_eq!(Seed(1).stream("weather/caller/0/up").next_u64(), 2_493_109_251_571_712_316);
    }

    #[test]
    fn labels_and_seeds_part_streams() {
        let numbers = [Seed(1).number("a"), Seed(1).number("b"), Seed(2).number("a")];
        assert!(numbers[0] != numbers[1] && numbers[0] != numbers[2] && numbers[1] != numbers[2]);
    }

    #[test]
    fn a_seed_is_read_in_three_ways_and_written_so_that_it_reads_back() {
        assert_eq!("42".parse(), Ok(Seed(42)));
        assert_eq!("0x5eed".parse(), Ok(Seed(0x5eed)));
        assert_eq!("3f9a2c1e5d7b8a90aabbccddeeff00112233".parse(), Ok(Seed(0x3f9a_2c1e_5d7b_8a90)));
        for seed in [Seed(7), Seed(u64::MAX), Seed(1_000_000_000)] {
            assert_eq!(seed.to_string().parse(), Ok(seed));
        }
        for wrong in ["", "seed", "0x", "3f9a", "-1"] {
            assert!(wrong.parse::<Seed>().is_err(), "{wrong}");
        }
    }
}
