//! Random numbers of the system.

use std::hash::{BuildHasher as _, RandomState};

/// Bytes that cannot be guessed. A system without randomness gives the standard library's hash keys instead: no two
/// processes and no two calls of this draw the same, which is what most callers need.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).is_err() {
        for part in bytes.chunks_mut(8) {
            let drawn = RandomState::new().hash_one(part.len()).to_le_bytes();
            part.copy_from_slice(&drawn[..part.len()]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_alike() {
        assert_ne!(bytes::<32>(), bytes::<32>());
    }
}
