//! What the vendors write down is read and written alike by the bridge and by the mocks.

use golden::wire::{self, Sender};

#[test]
fn the_bridge_reads_every_sample_twilio_sends() {
    let mut read = 0;
    for sample in wire::twilio().iter().filter(|s| s.from == Sender::Twilio) {
        let envelope = bridge::wire::twilio::decode(&sample.text)
            .unwrap_or_else(|e| panic!("{} ({}): {e}", sample.name, sample.source));
        if let bridge::wire::twilio::FromTwilio::Unknown { event } = envelope.message {
            panic!("{}: `{event}` is documented and not known", sample.name);
        }
        read += 1;
    }
    assert!(read >= 6, "only {read} samples");
}

#[test]
fn the_bridge_reads_every_sample_the_model_sends() {
    let mut read = 0;
    for sample in wire::realtime().iter().filter(|s| s.from == Sender::OpenAi) {
        let event = bridge::wire::realtime::decode(&sample.text)
            .unwrap_or_else(|e| panic!("{} ({}): {e}", sample.name, sample.source));
        if let bridge::wire::realtime::ServerEvent::Other { kind, known: false } = event {
            panic!("{}: `{kind}` is documented and not known", sample.name);
        }
        read += 1;
    }
    assert!(read >= 20, "only {read} samples");
}

/// The shape of a value: keys in order of name, types of the leaves.
fn shape(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(map) => {
            let mut keys: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", shape(v))).collect();
            keys.sort();
            format!("{{{}}}", keys.join(","))
        }
        serde_json::Value::Array(_) => "[]".into(),
        serde_json::Value::String(_) => "s".into(),
        serde_json::Value::Number(_) => "n".into(),
        serde_json::Value::Bool(_) => "b".into(),
        serde_json::Value::Null => "null".into(),
    }
}

#[test]
fn the_bridge_writes_what_twilio_documents() {
    use bridge::wire::twilio::ToTwilio;
    let samples = wire::twilio();
    for (event, message) in [
        ("media", ToTwilio::Media { audio: vec![0xFF; 160] }),
        ("mark", ToTwilio::Mark { name: "m".into() }),
        ("clear", ToTwilio::Clear),
    ] {
        let ours: serde_json::Value = serde_json::from_str(&message.encode("MZ1")).unwrap();
        let documented = samples
            .iter()
            .filter(|s| s.from == Sender::Bridge)
            .map(|s| serde_json::from_str::<serde_json::Value>(&s.text).unwrap())
            .find(|v| v["event"] == event)
            .unwrap_or_else(|| panic!("no sample of `{event}`"));
        assert_eq!(shape(&ours), shape(&documented), "{event}");
    }
}
