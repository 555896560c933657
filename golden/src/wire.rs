//! Messages as the vendors write them: the referee between the bridge and the mocks.

use serde::Deserialize;
use serde_json::value::Value;

static TWILIO: &str = include_str!("../wire/twilio.jsonl");
static REALTIME: &str = include_str!("../wire/realtime.jsonl");

/// Who sends a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sender {
    /// Twilio's media server.
    Twilio,
    /// The model's server.
    OpenAi,
    /// Our side.
    Bridge,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// What it is an example of.
    pub name: String,
    /// Where the shape is known from.
    pub source: String,
    /// Who sends it.
    pub from: Sender,
    /// The text frame.
    pub text: String,
}

#[derive(Deserialize)]
struct Line {
    name: String,
    source: String,
    from: Sender,
    frame: Value,
}

/// Reads samples, one a line. Fields beyond those of a sample, such as the times of a recording, are left out.
///
/// # Errors
/// The first line that is no sample.
pub fn parse(lines: &str) -> Result<Vec<Sample>, serde_json::Error> {
    lines
        .lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line)?;
            Ok(Sample { name: line.name, source: line.source, from: line.from, text: line.frame.to_string() })
        })
        .collect()
}

fn read(lines: &str) -> Vec<Sample> {
    parse(lines).expect("an embedded sample is a JSON line")
}

/// Twilio Media Streams, both directions.
pub fn twilio() -> Vec<Sample> {
    read(TWILIO)
}

/// OpenAI Realtime, both directions.
pub fn realtime() -> Vec<Sample> {
    read(REALTIME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_has_a_type_and_a_source() {
        for sample in twilio().iter().chain(&realtime()) {
            let frame: Value = serde_json::from_str(&sample.text).unwrap();
            assert!(frame["event"].is_string() || frame["type"].is_string(), "{}", sample.name);
            assert!(!sample.source.is_empty());
        }
    }
}
