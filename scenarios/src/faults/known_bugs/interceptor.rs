//! What a bug needs to see: both directions of one call as JSON, and a small account of what is going on.
//!
//! It knows the two vendors' messages and nothing else of the bridge, so a bug made of it would spoil any bridge.

use crate::sim::{Act, BridgeOut, Defect, Told};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bridge::call::event::CallEvent;
use bridge::call::{Control, Leg, LegChange};
use mocks::peer::At;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What happens, each with a delay in microseconds.
pub(super) type Acts = Vec<(u64, Act)>;

/// Ends the call, as an exception does that nobody catches.
pub(super) fn hangs_up() -> Acts {
    vec![hears(Told::Control(Control::HangUp))]
}

/// An act at once: the bridge believes it.
pub(super) const fn hears(told: Told) -> (u64, Act) {
    (0, Act::Hear(told))
}

/// An act at once: the model is sent this event.
pub(super) fn to_model(event: &Value) -> (u64, Act) {
    (0, Act::Say(BridgeOut::Text(Leg::Model, event.to_string())))
}

fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

/// Something the bridge says.
pub(super) struct Said {
    pub(super) out: BridgeOut,
    leg: Option<Leg>,
    pub(super) json: Value,
}

impl Said {
    fn of(out: BridgeOut) -> Self {
        let (leg, json) = match &out {
            BridgeOut::Text(leg, text) => (Some(*leg), object(text)),
            BridgeOut::Close(..) | BridgeOut::Drop(_) | BridgeOut::Ping(_) => (None, Value::Null),
        };
        Self { out, leg, json }
    }

    /// A message to Twilio with this `event`.
    pub(super) fn is_event(&self, event: &str) -> bool {
        self.leg == Some(Leg::Caller) && self.json["event"] == event
    }

    /// An event of this type to the model.
    pub(super) fn is_type(&self, kind: &str) -> bool {
        self.leg == Some(Leg::Model) && self.json["type"] == kind
    }

    pub(super) fn is_clear(&self) -> bool {
        self.is_event("clear")
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_type("conversation.item.truncate")
    }

    /// The function call this answers.
    pub(super) fn answers(&self) -> Option<&str> {
        let item = &self.json["item"];
        (self.leg == Some(Leg::Model) && item["type"] == "function_call_output")
            .then(|| item["call_id"].as_str())?
    }

    /// Ends the connection to the model.
    pub(super) const fn ends_model(&self) -> bool {
        matches!(self.out, BridgeOut::Close(Leg::Model, _) | BridgeOut::Drop(Leg::Model))
    }

    /// Audio for the ear, G.711.
    pub(super) fn media(&self) -> Option<Vec<u8>> {
        let payload = self.is_event("media").then(|| self.json["media"]["payload"].as_str())??;
        BASE64.decode(payload).ok()
    }

    pub(super) fn through(self) -> Acts {
        vec![(0, Act::Say(self.out))]
    }

    pub(super) fn late(self, us: u64) -> Acts {
        vec![(us, Act::Say(self.out))]
    }

    pub(super) fn unless(self, dropped: bool) -> Acts {
        if dropped { Vec::new() } else { self.through() }
    }

    /// The message with its JSON changed.
    pub(super) fn changed(mut self, change: impl FnOnce(&mut Value)) -> Acts {
        let Some(leg) = self.leg else { return self.through() };
        change(&mut self.json);
        vec![(0, Act::Say(BridgeOut::Text(leg, self.json.to_string())))]
    }

    /// The cut moved to another place.
    pub(super) fn cut_at(self, ms: u64) -> Acts {
        self.changed(|json| json["audio_end_ms"] = json!(ms))
    }

    /// The message, and the model is asked for a response.
    pub(super) fn and_create(self) -> Acts {
        let mut acts = self.through();
        acts.push(to_model(&json!({"type": "response.create"})));
        acts
    }
}

/// Something the bridge is told.
pub(super) struct Heard {
    pub(super) told: Told,
    leg: Option<Leg>,
    pub(super) json: Value,
}

impl Heard {
    fn of(told: Told) -> Self {
        let (leg, json) = match &told {
            Told::Text(leg, text) => (Some(*leg), object(text)),
            Told::Binary(..) | Told::Leg(..) | Told::Tool(_) | Told::Control(_) => (None, Value::Null),
        };
        Self { told, leg, json }
    }

    /// A message of Twilio with this `event`.
    pub(super) fn is_event(&self, event: &str) -> bool {
        self.leg == Some(Leg::Caller) && self.json["event"] == event
    }

    /// An event of this type from the model, whatever the dialect calls it.
    pub(super) fn is_type(&self, kind: &str) -> bool {
        self.leg == Some(Leg::Model)
            && self.json["type"].as_str().is_some_and(|have| have == kind || have == beta(kind))
    }

    /// Any event of the model whose type begins like this.
    pub(super) fn is_of_a_response(&self) -> bool {
        self.leg == Some(Leg::Model)
            && self.json["type"].as_str().is_some_and(|have| have.starts_with("response."))
    }

    pub(super) fn is_from_model(&self) -> bool {
        self.leg == Some(Leg::Model)
    }

    pub(super) fn is_delta(&self) -> bool {
        self.is_type("response.output_audio.delta")
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_type("response.done")
    }

    pub(super) fn is_speech_started(&self) -> bool {
        self.is_type("input_audio_buffer.speech_started")
    }

    /// The connection on this leg has ended.
    pub(super) const fn is_end_of(&self, leg: Leg) -> bool {
        match &self.told {
            Told::Leg(on, LegChange::Closed { .. } | LegChange::Lost { .. }) => {
                matches!((*on, leg), (Leg::Caller, Leg::Caller) | (Leg::Model, Leg::Model))
            }
            Told::Leg(..) | Told::Text(..) | Told::Binary(..) | Told::Tool(_) | Told::Control(_) => false,
        }
    }

    pub(super) fn text(&self, field: &str) -> &str {
        self.json[field].as_str().unwrap_or_default()
    }

    /// Which response a delta or a `response.*` event belongs to.
    pub(super) fn response(&self) -> &str {
        self.json["response_id"].as_str().or(self.json["response"]["id"].as_str()).unwrap_or_default()
    }

    /// The bytes of a delta.
    pub(super) fn audio(&self) -> Vec<u8> {
        BASE64.decode(self.text("delta")).unwrap_or_default()
    }

    pub(super) fn through(self) -> Acts {
        vec![hears(self.told)]
    }

    pub(super) fn late(self, us: u64) -> Acts {
        vec![(us, Act::Hear(self.told))]
    }

    pub(super) fn unless(self, dropped: bool) -> Acts {
        if dropped { Vec::new() } else { self.through() }
    }

    /// The message with its JSON changed.
    pub(super) fn changed(mut self, change: impl FnOnce(&mut Value)) -> Acts {
        let Some(leg) = self.leg else { return self.through() };
        change(&mut self.json);
        vec![hears(Told::Text(leg, self.json.to_string()))]
    }

    /// The delta with other audio.
    pub(super) fn with_audio(self, audio: &[u8]) -> Acts {
        self.changed(|json| json["delta"] = json!(BASE64.encode(audio)))
    }
}

/// The retired name of an event.
fn beta(kind: &str) -> String {
    kind.replace("response.output_audio", "response.audio").replace("response.output_text", "response.text")
}

/// What is known of one item the model says.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) response: String,
    pub(super) first_delta: At,
    /// Bytes of G.711 received for it, and sent of it.
    pub(super) generated: usize,
    pub(super) sent: usize,
}

impl Item {
    pub(super) const fn sent_ms(&self) -> u64 {
        self.sent as u64 / 8
    }
}

/// An account of one call, kept from what passes by.
#[derive(Debug)]
pub(super) struct View {
    /// Bytes of the model's audio for one byte of G.711.
    width: usize,
    pub(super) stream: String,
    pub(super) call_sid: String,
    /// The last `media.timestamp`, ms.
    pub(super) media_ms: u64,
    /// `session.updated` was heard.
    pub(super) ready: bool,
    /// Responses that were created and are not done, in order.
    pub(super) active: Vec<String>,
    /// Requests that were sent and not created.
    pub(super) asked: usize,
    /// Responses that existed when the caller took the floor.
    pub(super) fenced: BTreeSet<String>,
    pub(super) items: Vec<Item>,
    /// The item whose audio is being sent.
    next: usize,
    /// An item that was announced and has no audio yet.
    pub(super) announced: Option<(String, String)>,
    /// Where each outstanding mark stands: item, ms.
    marks: BTreeMap<String, (String, u64)>,
    /// Where the mark that came back last stood.
    pub(super) returned: Option<(String, u64)>,
    /// When everything that was sent has been played.
    pub(super) plays_until: At,
    /// Function calls without an output.
    pub(super) tools: BTreeSet<String>,
}

impl Default for View {
    fn default() -> Self {
        Self {
            width: 6,
            stream: String::new(),
            call_sid: String::new(),
            media_ms: 0,
            ready: false,
            active: Vec::new(),
            asked: 0,
            fenced: BTreeSet::new(),
            items: Vec::new(),
            next: 0,
            announced: None,
            marks: BTreeMap::new(),
            returned: None,
            plays_until: At(0),
            tools: BTreeSet::new(),
        }
    }
}

impl View {
    pub(super) fn item(&self, id: &str) -> Option<&Item> {
        self.items.iter().find(|item| item.id == id)
    }

    /// The item of a cut.
    pub(super) fn cut_item(&self, said: &Said) -> Option<&Item> {
        self.item(said.json["item_id"].as_str()?)
    }

    /// Nothing is being generated.
    pub(super) const fn is_generated(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn marks_outstanding(&self) -> usize {
        self.marks.len()
    }

    /// The model's audio is PCM at 24 kHz.
    pub(super) const fn is_pcm(&self) -> bool {
        self.width == 6
    }

    fn said(&mut self, said: &Said, now: At) {
        if let Some(audio) = said.media() {
            self.plays_until = At(self.plays_until.max(now).0 + audio.len() as u64 * 125);
            let mut left = audio.len();
            while left > 0 && self.next < self.items.len() {
                let last = self.next + 1 == self.items.len();
                let item = &mut self.items[self.next];
                let take = if last { left } else { left.min(item.generated.saturating_sub(item.sent)) };
                item.sent += take;
                left -= take;
                self.next += usize::from(!last && item.sent >= item.generated);
            }
        } else if said.is_clear() {
            self.plays_until = now;
            self.next = self.items.len();
            self.fenced.extend(self.items.iter().map(|item| item.response.clone()));
            self.fenced.extend(self.active.iter().cloned());
        } else if said.is_event("mark") {
            let name = said.json["mark"]["name"].as_str().unwrap_or_default().to_owned();
            let at = self.items.get(self.next).or(self.items.last());
            self.marks.insert(name, at.map(|item| (item.id.clone(), item.sent_ms())).unwrap_or_default());
        } else if said.is_type("response.create") {
            self.asked += 1;
        } else if let Some(call_id) = said.answers() {
            self.tools.remove(call_id);
        } else if said.is_type("session.update") {
            let session = &said.json["session"];
            let pcm = session["audio"]["output"]["format"]["type"] == "audio/pcm"
                || session["output_audio_format"] == "pcm16";
            self.width = if pcm { 6 } else { 1 };
        }
    }

    fn heard(&mut self, heard: &Heard, now: At) {
        if heard.is_delta() {
            let bytes = heard.audio().len() / self.width;
            let (response, id) = (heard.response(), heard.text("item_id"));
            if self.announced.as_ref().is_some_and(|(_, item)| item == id) {
                self.announced = None;
            }
            if self.fenced.contains(response) {
                return;
            }
            match self.items.iter_mut().find(|item| item.id == id) {
                Some(item) => item.generated += bytes,
                None => self.items.push(Item {
                    id: id.to_owned(),
                    response: response.to_owned(),
                    first_delta: now,
                    generated: bytes,
                    sent: 0,
                }),
            }
        } else if heard.is_event("media") {
            let ms = heard.json["media"]["timestamp"].as_str().and_then(|text| text.parse().ok());
            self.media_ms = ms.unwrap_or(self.media_ms);
        } else if heard.is_event("start") {
            heard.text("streamSid").clone_into(&mut self.stream);
            heard.json["start"]["callSid"].as_str().unwrap_or_default().clone_into(&mut self.call_sid);
        } else if heard.is_event("mark") {
            let name = heard.json["mark"]["name"].as_str().unwrap_or_default();
            self.returned = self.marks.remove(name).or(self.returned.take());
        } else if heard.is_type("session.updated") {
            self.ready = true;
        } else if heard.is_type("response.created") {
            self.active.push(heard.response().to_owned());
            let asked = heard.json["response"]["metadata"].is_object();
            self.asked = self.asked.saturating_sub(usize::from(asked));
        } else if heard.is_done() {
            let response = heard.response();
            self.active.retain(|active| active != response);
            self.announced.take_if(|(of, _)| of == response);
        } else if heard.is_type("response.output_item.added") {
            let item = &heard.json["item"];
            if item["type"] == "message" {
                let id = item["id"].as_str().unwrap_or_default().to_owned();
                self.announced = Some((heard.response().to_owned(), id));
            }
        } else if heard.is_type("response.output_item.done") {
            let item = &heard.json["item"];
            if item["type"] == "function_call"
                && item["status"] == "completed"
                && let Some(call_id) = item["call_id"].as_str()
            {
                self.tools.insert(call_id.to_owned());
            }
        } else if heard.is_speech_started() {
            self.fenced.extend(self.active.iter().cloned());
        }
    }
}

type Says<S> = fn(&mut S, &View, Said, At) -> Acts;
type Hears<S> = fn(&mut S, &View, Heard, At) -> Acts;
type Wakes<S> = fn(&mut S, At) -> Acts;
type Notes<S> = fn(&mut S, &mut CallEvent);

/// A defect made of a state and of what is wrong in each direction. The account of the call is up to date with the
/// message when a function sees it.
pub(super) struct FaultBuilder<S> {
    state: S,
    view: View,
    says: Says<S>,
    hears: Hears<S>,
    wakes: Wakes<S>,
    notes: Notes<S>,
}

/// Nothing is wrong yet.
pub(super) fn wrong<S: Default>() -> FaultBuilder<S> {
    FaultBuilder {
        state: S::default(),
        view: View::default(),
        says: |_, _, said, _| said.through(),
        hears: |_, _, heard, _| heard.through(),
        wakes: |_, _| Vec::new(),
        notes: |_, _| {},
    }
}

impl<S: 'static> FaultBuilder<S> {
    pub(super) fn saying(self, says: Says<S>) -> Self {
        Self { says, ..self }
    }

    pub(super) fn hearing(self, hears: Hears<S>) -> Self {
        Self { hears, ..self }
    }

    pub(super) fn waking(self, wakes: Wakes<S>) -> Self {
        Self { wakes, ..self }
    }

    pub(super) fn noting(self, notes: Notes<S>) -> Self {
        Self { notes, ..self }
    }

    pub(super) fn with(self, state: S) -> Self {
        Self { state, ..self }
    }

    pub(super) fn boxed(self) -> Box<dyn Defect> {
        Box::new(self)
    }
}

impl<S> Defect for FaultBuilder<S> {
    fn says(&mut self, out: BridgeOut, now: At) -> Acts {
        let said = Said::of(out);
        self.view.said(&said, now);
        (self.says)(&mut self.state, &self.view, said, now)
    }

    fn hears(&mut self, told: Told, now: At) -> Acts {
        let heard = Heard::of(told);
        self.view.heard(&heard, now);
        (self.hears)(&mut self.state, &self.view, heard, now)
    }

    fn wakes(&mut self, now: At) -> Acts {
        (self.wakes)(&mut self.state, now)
    }

    fn notes(&mut self, event: &mut CallEvent, _now: At) {
        (self.notes)(&mut self.state, event);
    }
}
