//! The one loop that owns a call and its two connections.
//!
//! Selecting only names what happened; everything else is a plain synchronous call. There are no locks, because
//! there is nothing to share. When the call is over the loop returns, and with it goes all that was the call's:
//! both sockets with what waited to be written, a dial in progress, running functions.

use crate::base::clock::now;
use crate::call::event::CallEvent;
use crate::call::settings::{CallConfig, Dialect};
use crate::call::{Call, Control, Incoming, Leg, LegChange, StreamCredentials, ToolResult, Transmit};
use crate::net::dial::{Dial, ModelEndpoint};
use crate::net::tools::Tools;
use crate::runtime::codec;
use crate::runtime::journal::{JournalEntry, JournalWriter};
use crate::runtime::leg::{Arrived, LegIo, Outgoing, Socket, model_limits};
use crate::runtime::meter::{Meter, Traffic};
use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// What a call is made with.
pub(crate) struct Parts<D, T> {
    pub(crate) call: Arc<CallConfig>,
    /// Played when the call has to end early, mu-law at 8 kHz.
    pub(crate) notice: Arc<[u8]>,
    pub(crate) model: Arc<ModelEndpoint>,
    pub(crate) dial: D,
    pub(crate) tools: T,
    /// Its stream has to show whose it is before anything is done or kept for it.
    pub(crate) requires_auth: bool,
    pub(crate) control: mpsc::Receiver<Control>,
    /// The wall clock at the beginning, Unix seconds.
    pub(crate) unix_now: i64,
}

/// Who a call is carried for.
pub(crate) trait Host {
    /// Whether a stream is admitted, and if not, why. Asked of a call that requires it only, and before
    /// [`Host::begins`].
    fn admit(&mut self, credentials: &StreamCredentials) -> Result<(), &'static str>;

    /// The call begins: its stream was admitted, or has to show nothing. Returns its journal, if it has one.
    fn begins(&mut self) -> Option<Box<dyn JournalWriter>>;

    /// Something happened, after [`Host::begins`].
    fn on_event(&mut self, driver_event: DriverEvent<'_>, now: Instant);
}

/// What is kept for the journal of a stream that was not admitted yet, bytes: `connected` and `start` are one thousand.
const HELD_MAX: usize = 64 * 1024;
/// What a note counts for beside its text, bytes.
const HELD_NOTE: usize = 256;

/// What a call's driver tells.
pub(crate) enum DriverEvent<'a> {
    /// Something happened.
    Event(&'a CallEvent),
    /// So much went through since the last time.
    Traffic(&'a Traffic),
}

/// Carries one call from its opened WebSocket to its end. `host` hears every event of a call that began, in order.
pub(crate) async fn drive<S, D, T>(socket: S, parts: Parts<D, T>, host: &mut impl Host)
where
    S: Socket,
    D: Dial,
    T: Tools,
{
    let Parts { call: config, notice, model, dial, tools, requires_auth, mut control, unix_now } = parts;
    let began = now();
    let mut begun = !requires_auth;
    let mut journal = DriverJournal { writer: None, held: Some(Vec::new()), held_bytes: 0, began };
    if begun {
        journal.begins(host.begins());
    }
    let mut meter = Meter::new(began);
    let mut call = Call::new(config.clone(), notice, began, unix_now).requires_auth(requires_auth);
    let mut legs = Legs { caller: Some(LegIo::new(socket)), model: None, held: false, model_first: false };
    let mut dialing: Option<Dialing<D>> = None;
    let mut functions = Functions::default();
    let mut changes: Vec<(Leg, LegChange)> = Vec::new();
    let mut verdict: Option<Control> = None;
    let mut alarm = pin!(tokio::time::sleep_until(tokio::time::Instant::from_std(now())));

    loop {
        while let Some(transmit) = call.poll_transmit() {
            if let Some((leg, text)) = codec::encode(&transmit, config.dialect) {
                let since = meter.sends(&transmit, leg, text.len());
                changes.extend(legs.send(leg, Outgoing::Text(text), since));
                journal.note(|| JournalEntry::Done(transmit));
                continue;
            }
            journal.note(|| JournalEntry::Done(transmit.clone()));
            match transmit {
                Transmit::Caller { .. } | Transmit::Model(_) => {}
                Transmit::WithdrawAudio => legs.withdraw_audio(),
                Transmit::Ping(leg) => changes.extend(legs.send(leg, Outgoing::Ping, None)),
                Transmit::Close { leg, code, reason } => {
                    changes.extend(legs.send(leg, Outgoing::Close(code, reason), None));
                }
                Transmit::Drop(leg) => {
                    legs.drop(leg);
                    if leg == Leg::Model {
                        dialing = None;
                    }
                }
                Transmit::VerifyStream(credentials) => {
                    let admitted = host.admit(&credentials);
                    if admitted.is_ok() && !begun {
                        begun = true;
                        journal.begins(host.begins());
                    }
                    verdict =
                        Some(admitted.map_or_else(|why| Control::Rejected { why }, |()| Control::Admitted));
                }
                Transmit::Dial { call_sid } => {
                    dialing = Some(Box::pin(open(dial.clone(), model.clone(), config.clone(), call_sid)));
                }
                Transmit::PauseModelReads(hold) => legs.held = hold,
                Transmit::RunTool { call_id, name, arguments } => {
                    let (tools, call_sid) = (tools.clone(), call.call_sid().unwrap_or_default().to_owned());
                    let id = call_id.clone();
                    functions.run(call_id, async move { tools.run(&call_sid, &id, &name, &arguments).await });
                }
                Transmit::CancelTool { call_id } => functions.cancel(&call_id),
            }
        }
        while let Some(event) = call.poll_event() {
            if begun {
                host.on_event(DriverEvent::Event(&event), now());
            }
            // The legs' own messages and the end of the call say it, too.
            if !matches!(event, CallEvent::Said(_)) {
                journal.note(|| JournalEntry::Happened(event));
            }
        }
        legs.measured(&mut meter);
        let is_over = call.is_over();
        if is_over || meter.is_due(now()) {
            let traffic = meter.take(call.waiting(), legs.queued(), now());
            if begun {
                host.on_event(DriverEvent::Traffic(&traffic), now());
            }
        }
        if is_over {
            return;
        }
        if let Some(verdict) = verdict.take() {
            journal.note(|| JournalEntry::Asked(verdict));
            call.handle_control(verdict, now());
            continue;
        }
        if !changes.is_empty() {
            // One input, then drain again: the call may want to answer each of them.
            let (leg, change) = changes.remove(0);
            journal.note(|| JournalEntry::Changed(leg, change.clone()));
            call.handle_leg(leg, change, now());
            continue;
        }

        meter.answered();
        let wake = call.poll_timeout().map(|(at, _why)| tokio::time::Instant::from_std(at));
        if let Some(at) = wake
            && alarm.deadline() != at
        {
            alarm.as_mut().reset(at);
        }
        tokio::select! {
            biased; // same seed, same branch; and a flood of audio cannot starve the timers
            () = alarm.as_mut(), if wake.is_some() => call.handle_timeout(now()),
            Some(message) = control.recv() => {
                journal.note(|| JournalEntry::Asked(message));
                call.handle_control(message, now());
            }
            dialed = finished(&mut dialing) => {
                dialing = None;
                let change = match dialed {
                    Ok(socket) => {
                        legs.model = Some(LegIo::new(socket));
                        LegChange::Open
                    }
                    Err(why) => LegChange::DialFailed { why },
                };
                journal.note(|| JournalEntry::Changed(Leg::Model, change.clone()));
                call.handle_leg(Leg::Model, change, now());
            }
            result = functions.next() => {
                journal.note(|| JournalEntry::ToolEnded(result.clone()));
                call.handle_tool(result, now());
            }
            (leg, arrived) = poll_fn(|cx| legs.poll(cx)) => match arrived {
                Arrived::Text(text) => {
                    meter.received(leg, text.len(), now());
                    call.handle_frame(leg, codec::decode(leg, &text), now());
                    journal.note(|| JournalEntry::Text(leg, text));
                }
                Arrived::Binary(len) => {
                    call.handle_frame(leg, Incoming::Binary(len), now());
                    journal.note(|| JournalEntry::Binary(leg, len));
                }
                Arrived::StrayPong => {}
                Arrived::Ping => {
                    journal.note(|| JournalEntry::Changed(leg, LegChange::Ping));
                    call.handle_leg(leg, LegChange::Ping, now());
                }
                Arrived::Changed(change) => {
                    journal.note(|| JournalEntry::Changed(leg, change.clone()));
                    if matches!(change, LegChange::Closed { .. } | LegChange::Lost { .. }) {
                        legs.drop(leg);
                    }
                    call.handle_leg(leg, change, now());
                }
            },
        }
    }
}

/// The call's journal and its clock. What is not journalled is not even made, and nothing is written for a stream
/// before it was admitted.
struct DriverJournal {
    writer: Option<Box<dyn JournalWriter>>,
    /// What was noted before the call began.
    held: Option<Vec<(Duration, JournalEntry)>>,
    held_bytes: usize,
    began: Instant,
}

impl DriverJournal {
    fn begins(&mut self, writer: Option<Box<dyn JournalWriter>>) {
        self.writer = writer;
        let held = self.held.take().unwrap_or_default();
        if let Some(writer) = &mut self.writer {
            held.into_iter().for_each(|(after, note)| writer.note(after, note));
        }
    }

    fn note(&mut self, note: impl FnOnce() -> JournalEntry) {
        let after = now().saturating_duration_since(self.began);
        if let Some(writer) = &mut self.writer {
            writer.note(after, note());
        } else if let Some(held) = &mut self.held
            && self.held_bytes < HELD_MAX
        {
            let note = note();
            self.held_bytes +=
                HELD_NOTE + if let JournalEntry::Text(_, text) = &note { text.len() } else { 0 };
            held.push((after, note));
        }
    }
}

/// The two connections, as far as they are there.
struct Legs<S, M> {
    caller: Option<LegIo<S>>,
    model: Option<LegIo<M>>,
    /// The model is not read for now.
    held: bool,
    /// Who is asked first: the legs take turns, so neither can starve the other.
    model_first: bool,
}

impl<S: Socket, M: Socket> Legs<S, M> {
    fn send(&mut self, leg: Leg, frame: Outgoing, since: Option<Instant>) -> Option<(Leg, LegChange)> {
        let change = match leg {
            Leg::Caller => self.caller.as_mut()?.send(frame, since),
            Leg::Model => self.model.as_mut()?.send(frame, since),
        }?;
        if matches!(change, LegChange::Lost { .. }) {
            self.drop(leg);
        }
        Some((leg, change))
    }

    /// Collects how long what was written was inside the bridge.
    fn measured(&mut self, meter: &mut Meter) {
        self.caller.iter_mut().for_each(|caller| meter.wrote(Leg::Caller, caller.took()));
        self.model.iter_mut().for_each(|model| meter.wrote(Leg::Model, model.took()));
    }

    /// Messages that wait to be written, to the caller and to the model.
    fn queued(&self) -> [usize; 2] {
        [self.caller.as_ref().map_or(0, LegIo::queued), self.model.as_ref().map_or(0, LegIo::queued)]
    }

    fn withdraw_audio(&mut self) {
        self.caller.iter_mut().for_each(LegIo::withdraw);
    }

    fn drop(&mut self, leg: Leg) {
        match leg {
            Leg::Caller => self.caller = None,
            Leg::Model => self.model = None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Leg, Arrived)> {
        // Both write, whichever has an event.
        if let Some(model) = &mut self.model {
            model.poll_write(cx);
        }
        if let Some(caller) = &mut self.caller {
            caller.poll_write(cx);
        }
        let order = if self.model_first { [Leg::Model, Leg::Caller] } else { [Leg::Caller, Leg::Model] };
        for leg in order {
            let arrived = match leg {
                Leg::Caller => self.caller.as_mut().map(|caller| caller.poll(false, cx)),
                Leg::Model => self.model.as_mut().map(|model| model.poll(self.held, cx)),
            };
            if let Some(Poll::Ready(arrived)) = arrived {
                self.model_first = leg == Leg::Caller;
                return Poll::Ready((leg, arrived));
            }
        }
        Poll::Pending
    }
}

/// The functions that run for a call, each beside the audio.
#[derive(Default)]
struct Functions {
    tasks: JoinSet<Result<String, String>>,
    running: Vec<(String, AbortHandle)>,
}

impl Functions {
    fn run(
        &mut self,
        call_id: String,
        function: impl Future<Output = Result<String, String>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(function);
        self.running.push((call_id, handle));
    }

    fn cancel(&mut self, call_id: &str) {
        self.running.retain(|(id, handle)| {
            if id == call_id {
                handle.abort();
            }
            id != call_id
        });
    }

    /// The next result that the call still waits for. A function that panics has failed like any other.
    async fn next(&mut self) -> ToolResult {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let (task, output) = match ended {
                Ok((task, output)) => (task, output),
                Err(error) => {
                    if error.is_panic() {
                        // The error itself would repeat the panic's words.
                        tracing::error!("a function panicked; the model is told that it failed");
                    }
                    (error.id(), Err("the function failed".to_owned()))
                }
            };
            if let Some(at) = self.running.iter().position(|(_, handle)| handle.id() == task) {
                return ToolResult { call_id: self.running.remove(at).0, output };
            }
        }
        pending().await
    }
}

type Dialing<D> = Pin<Box<dyn Future<Output = Result<WebSocketStream<<D as Dial>::Stream>, String>> + Send>>;

async fn finished<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Dials and upgrades. The words of a failure carry no secret.
async fn open<D: Dial>(
    dial: D,
    model: Arc<ModelEndpoint>,
    config: Arc<CallConfig>,
    call_sid: String,
) -> Result<WebSocketStream<D::Stream>, String> {
    let request = request(&model, &config, &call_sid)?;
    let stream = dial.dial().await.map_err(|error| format!("cannot connect: {error}"))?;
    // What the server sends right behind its answer is kept and read first.
    match tokio_tungstenite::client_async_with_config(request, stream, Some(model_limits())).await {
        Ok((socket, _answer)) => Ok(socket),
        Err(WebSocketError::Http(answer)) => {
            Err(format!("the server answered {} instead of upgrading", answer.status()))
        }
        Err(error) => Err(format!("the upgrade failed: {error}")),
    }
}

fn request(endpoint: &ModelEndpoint, config: &CallConfig, call_sid: &str) -> Result<Request, String> {
    let url = endpoint.url.with_model(&config.model);
    let mut request = url.into_client_request().map_err(|error| format!("no usable URL: {error}"))?;
    let headers = request.headers_mut();
    let bearer = format!("Bearer {}", endpoint.api_key.expose());
    let mut bearer =
        HeaderValue::try_from(bearer).map_err(|_| "the API key is no header value".to_owned())?;
    bearer.set_sensitive(true);
    headers.insert("Authorization", bearer);
    // The service logs it, so that both sides can name the call; a name that fits no header stays here.
    if let Ok(id) = HeaderValue::from_str(call_sid) {
        headers.insert("X-Client-Request-Id", id);
    }
    match config.dialect {
        // The current service refuses connections that send this header.
        Dialect::Ga => {}
        Dialect::Beta => {
            headers.insert("OpenAI-Beta", HeaderValue::from_static("realtime=v1"));
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;

    fn endpoint() -> ModelEndpoint {
        ModelEndpoint { api_key: Secret::new("sk-hidden"), ..ModelEndpoint::default() }
    }

    #[test]
    fn the_request_names_model_key_and_call() {
        let request = request(&endpoint(), &CallConfig::default(), "CA1").unwrap();
        assert_eq!(request.uri().to_string(), "wss://api.openai.com/v1/realtime?model=gpt-realtime-2.1");
        assert_eq!(request.headers()["Authorization"], "Bearer sk-hidden");
        assert_eq!(request.headers()["X-Client-Request-Id"], "CA1");
        assert!(!request.headers().contains_key("OpenAI-Beta"));
        assert!(!request.headers().contains_key("Sec-WebSocket-Extensions"), "no compression");
        assert!(!format!("{request:?}").contains("sk-hidden"), "a request in a log shows no key");
    }

    #[test]
    fn only_the_retired_dialect_asks_for_it() {
        let config = CallConfig { dialect: Dialect::Beta, ..CallConfig::default() };
        assert_eq!(request(&endpoint(), &config, "CA1").unwrap().headers()["OpenAI-Beta"], "realtime=v1");
    }

    #[tokio::test]
    async fn a_function_is_answered_once_and_a_cancelled_one_never() {
        let mut functions = Functions::default();
        functions.run("cancelled".into(), async { Ok("late".into()) });
        tokio::task::yield_now().await; // it has ended, but its result is not taken yet
        functions.cancel("cancelled");
        functions.run("answered".into(), async { Ok("yes".into()) });
        let result = functions.next().await;
        assert_eq!((result.call_id.as_str(), result.output), ("answered", Ok("yes".into())));
        assert!(functions.running.is_empty());
    }

    #[tokio::test]
    async fn dropping_the_functions_stops_them() {
        let (alive, mut gone) = tokio::sync::oneshot::channel::<()>();
        let mut functions = Functions::default();
        functions.run("endless".into(), async move {
            pending::<()>().await;
            drop(alive);
            Ok(String::new())
        });
        tokio::task::yield_now().await;
        assert!(gone.try_recv().is_err_and(|e| e == tokio::sync::oneshot::error::TryRecvError::Empty));
        drop(functions);
        assert!(gone.await.is_err(), "the function is gone with the set that ran it");
    }
}
