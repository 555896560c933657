//! Golden clips in scripts: names that exist, and sounds at the rate of a line.

use crate::resample;
use serde::de::{Deserialize, Deserializer, Error};
use std::collections::BTreeMap;
use std::sync::{LazyLock, PoisonError, RwLock};

/// A clip as both rates know it.
pub(crate) struct Sound {
    /// Samples at 8 kHz.
    pub(crate) narrow: Vec<i16>,
    /// Samples at 24 kHz, three for each narrow one.
    pub(crate) wide: Vec<i16>,
    /// Whether a person makes the sound.
    pub(crate) is_speech: bool,
    /// The words that are said, if any.
    pub(crate) words: &'static str,
}

/// Every clip, by name. One of two rates is as recorded.
static SOUNDS: LazyLock<BTreeMap<&str, Sound>> = LazyLock::new(|| {
    golden::clips()
        .filter_map(golden::clip)
        .map(|clip| {
            let (narrow, wide) = match clip.rate {
                8_000 => (clip.samples.to_vec(), resample::up(clip.samples)),
                _ => (resample::down(clip.samples), clip.samples.to_vec()),
            };
            (clip.name, Sound { narrow, wide, is_speech: clip.is_speech, words: clip.words })
        })
        .collect()
});

/// Recordings of the user's own.
static LENT: RwLock<BTreeMap<String, &'static Sound>> = RwLock::new(BTreeMap::new());

/// Makes a recording at 8 kHz known by a name, for as long as the program runs. A name of before gets the new sound.
pub(crate) fn lend(name: &str, narrow: Vec<i16>) {
    let wide = resample::up(&narrow);
    let sound = Box::leak(Box::new(Sound { narrow, wide, is_speech: true, words: "" }));
    LENT.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), sound);
}

/// The clip of this name.
pub(crate) fn sound(name: &str) -> Option<&'static Sound> {
    SOUNDS.get(name).or_else(|| LENT.read().unwrap_or_else(PoisonError::into_inner).get(name).copied())
}

/// Reads the name of a clip.
pub(crate) fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    if sound(&name).is_some() {
        return Ok(name);
    }
    let known: Vec<_> = golden::clips().collect();
    Err(D::Error::custom(format!("there is no clip `{name}`; there are {}", known.join(", "))))
}

/// Reads the name of a clip where there may be none.
pub(crate) fn some_name<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    name(from).map(Some)
}

/// Reads keys that have tones.
pub(crate) fn keys<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let keys = String::deserialize(from)?;
    match keys.chars().find(|key| !golden::KEYS.contains(*key)) {
        None => Ok(keys),
        Some(key) => Err(D::Error::custom(format!("no key is called `{key}`; keys are {}", golden::KEYS))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clip_is_as_recorded_at_its_own_rate_and_as_long_at_the_other() {
        for clip in golden::clips().filter_map(golden::clip) {
            let sound = sound(clip.name).unwrap();
            let own = if clip.rate == 8_000 { &sound.narrow } else { &sound.wide };
            assert!(own == clip.samples, "{}", clip.name);
            assert_eq!(sound.wide.len(), 3 * sound.narrow.len(), "{}", clip.name);
        }
    }
}
