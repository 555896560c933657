//! Recorded audio in scripts: the bytes that went over a wire, written as base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// Audio as it was sent once, in whatever format it was sent in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sound(pub Vec<u8>);

impl fmt::Debug for Sound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sound({} bytes)", self.0.len())
    }
}

impl Serialize for Sound {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        BASE64.encode(&self.0).serialize(to)
    }
}

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = BASE64.decode(&text);
        bytes.map(Self).map_err(|error| D::Error::custom(format!("recorded audio is base64: {error}")))
    }
}
