//! The process: parse, log, bind, serve, wait for the signal.

use axum::Router;
use bridge::app::capacity;
use bridge::app::config::{Args, Command, Config};
use bridge::app::demo::{self, Demo};
use bridge::base::clock::unix_now;
use bridge::export::journal::Content;
use bridge::export::journal::files::Files;
use bridge::export::logs::{self, LogCalls, LogQueue};
use bridge::export::metrics::{self, Metrics};
use bridge::export::otlp::{self, Exporter};
use bridge::export::store::Writer;
use bridge::net::dial::TlsDial;
use bridge::net::http_client::TlsConnect;
use bridge::net::tls::Certificate;
use bridge::net::tool_webhooks::Webhooks;
use bridge::net::twilio_rest::{Carrier, Rest, WithCarrier};
use bridge::runtime::journal::Journal;
use bridge::server::connections::Tcp;
use bridge::server::live::{self, Live};
use bridge::server::serve::Server;
use bridge::server::stats::Stats;
use clap::Parser;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::Layer as _;

fn main() -> ExitCode {
    let args = Args::parse();
    match args.command.clone().unwrap_or(Command::Serve) {
        Command::Demo { mocks, save, calls } => {
            ended(show(Demo { mocks, save, calls, live: args.live_listen }))
        }
        Command::Check => with_config(&args, |config| check(&config)),
        Command::Serve => with_config(&args, serve),
        Command::Call { to, from } => with_config(&args, |config| call(&config, &to, from.as_deref())),
        #[cfg(feature = "store")]
        Command::Calls { calls: what } => with_config(&args, |config| calls(&config, &what)),
    }
}

/// Does something with the settings, if there is nothing wrong with them.
fn with_config(args: &Args, run: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    match Config::load(args, |name| std::env::var(name).ok()) {
        Ok(config) => ended(run(config)),
        Err(error) => {
            for problem in error.problems() {
                logs::last_words(&format!("bridge: {problem}"));
            }
            ExitCode::from(2)
        }
    }
}

fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logs::last_words(&format!("bridge: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn check(config: &Config) -> anyhow::Result<()> {
    for (old, new) in &config.renamed {
        logs::last_words(&format!(
            "bridge: {old} is now {new}; the old name will not be read by the next release"
        ));
    }
    Ok(std::io::stdout().write_all(config.shown()?.as_bytes())?)
}

/// Shows a call between mocks.
#[tokio::main]
async fn show(demo: Demo) -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // Caught from here on: what ends the show has to leave nothing behind.
    let [mut int, mut term, mut hangup] =
        [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    let stop = async move {
        tokio::select! {
            biased;
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    demo::run(demo, stop).await
}

/// Places a call and prints its name.
#[tokio::main(flavor = "current_thread")]
async fn call(config: &Config, to: &str, from: Option<&str>) -> anyhow::Result<()> {
    let Some(rest) = Rest::new(&config.twilio, config.public_url.as_ref(), TlsConnect::new()?) else {
        anyhow::bail!("calls are placed by Twilio: set TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN");
    };
    Ok(writeln!(std::io::stdout(), "{}", rest.place(to, from).await?)?)
}

#[tokio::main]
async fn serve(mut config: Config) -> anyhow::Result<()> {
    // Before anything else: until it is watched, the signal ends the process.
    let hangup = signal(SignalKind::hangup())?;
    // One provider for the whole process: a second one in the graph would make rustls refuse to choose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let exporter = otlp::open(&config.otlp, &config.call.model)?;
    let log = logs::install(&config.log, exporter.as_ref().map(|exporter| exporter.logs().boxed()))?;
    for (old, new) in &config.renamed {
        tracing::warn!(
            key = old,
            "a setting has a new name, and the old one will not be read by the next release: {new}"
        );
    }
    capacity::fit(&mut config)?;
    let dial = TlsDial::new(&config.openai.url)?;
    if !config.openai.url.secure {
        tracing::warn!(
            host = config.openai.url.host,
            "the model is reached without TLS: key and audio travel openly"
        );
    }
    if config.twilio.insecure_no_signature {
        tracing::warn!(
            listen = %config.listen,
            "INSECURE: signatures are not checked; any client that reaches this address opens paid model sessions"
        );
    }
    let journal = Files::open(&config.journal)?.map(Arc::new);
    if journal.is_some() && config.journal.content == Content::Full {
        tracing::warn!(
            "journal.content is full: audio and words of every call are recorded; see docs/dev/journal.md"
        );
    }
    let certificate = Certificate::read(&config.tls)?;
    tokio::spawn(reload_on_hangup(hangup, certificate.clone()));
    let carrier = Rest::new(&config.twilio, config.public_url.as_ref(), TlsConnect::new()?)
        .map(|rest| Arc::new(rest) as Arc<dyn Carrier>);
    // What keeps the bridge from starting is known before it says that it takes calls.
    let store = open_store(&config).await?;
    let webhooks = Webhooks::new(&config.tools, &TlsConnect::new()?, unix_now).map_err(anyhow::Error::msg)?;
    let address = config.listen;
    let listener = bind(address, "--listen").await?;
    let (listen, model) = (listener.local_addr()?, config.call.model.clone());
    let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = told_to_stop(term, int, log.queue());
    let journals = journal.clone().map(|journal| journal as Arc<dyn Journal>);
    let tools = WithCarrier { tools: webhooks, carrier: carrier.clone() };
    let stats = Stats::default();
    let metrics = config.metrics.enabled.then(|| {
        let tools = config.call.tools.iter().map(|tool| tool.name.as_str());
        Metrics::builder()
            .log(Some(&log.queue()))
            .journal(journal.as_ref())
            .store(store.as_ref().map(Writer::gauge).as_ref())
            .otlp(exporter.as_ref().map(Exporter::gauge).as_ref())
            .build(&stats, tools)
    });
    let pages = match &metrics {
        Some(metrics) if config.metrics.listen == config.listen => metrics.routes(),
        Some(metrics) => {
            let (at, metrics, stats) = (config.metrics.listen, metrics.clone(), stats.clone());
            beside("metrics.listen", at, |listener| metrics::serve(listener, metrics, stats)).await;
            Router::new()
        }
        None => Router::new(),
    };
    if let Some(metrics) = &metrics {
        tokio::spawn(metrics.clone().watch_loop());
    }
    let traces = exporter.as_ref().map(Exporter::calls);
    let (settings, calls) = (Arc::new(config.server()), Live::default());
    let kept = (store.as_ref().map(Writer::calls), traces);
    let observe = ((LogCalls, calls.clone()), (metrics, kept));
    let server = Server::with_stats(stats.clone(), dial, tools, observe, settings.clone())
        .with_journal(journals)
        .with_carrier(carrier.clone())
        .with_routes(pages);
    if config.live.enabled {
        let (at, stats) = (config.live.listen, server.stats());
        beside("live.listen", at, |listener| live::serve(listener, calls, stats, settings, carrier)).await;
    }
    let server = server.with_certificate(certificate.as_ref())?;
    tracing::info!(%listen, model, "taking calls");
    let served = server.run(Tcp::new(listener, stats), shutdown).await;
    if let Some(journal) = journal.and_then(Arc::into_inner) {
        let counted = journal.stop();
        let (lines, lost, removed) = (counted.lines, counted.lost, counted.removed);
        tracing::info!(lines, lost, removed, failed_writes = counted.failed_writes, "journals closed");
    }
    if let Some(store) = store {
        let counted = store.stop();
        tracing::info!(records = counted.written, lost = counted.lost, "transcripts closed");
    }
    tracing::info!(calls = served.calls, refused = served.refused, panicked = served.panicked, "stopped");
    if let Some(exporter) = exporter {
        let counted = exporter.stop();
        tracing::info!(sent = counted.sent, lost = counted.lost, "the last traces are sent");
    }
    anyhow::ensure!(served.active_at_end == 0, "{} calls did not end and were cut", served.active_at_end);
    Ok(())
}

/// Reads again what can be read again whenever SIGHUP comes, also while the bridge drains, and says what that was. A
/// process that leaves the signal alone is ended by it, with all its calls.
async fn reload_on_hangup(mut hangup: Signal, certificate: Option<Certificate>) {
    while hangup.recv().await.is_some() {
        match certificate.as_ref().map(Certificate::reload) {
            None => tracing::info!("SIGHUP: there is no certificate to read again; settings need a restart"),
            Some(Ok(())) => tracing::info!("SIGHUP: the certificate was read again; settings need a restart"),
            Some(Err(error)) => {
                tracing::error!(error = format!("{error:#}"), "SIGHUP: the old certificate stays");
            }
        }
    }
}

/// Ends when the bridge is told to stop. From then on a second SIGINT leaves at once; SIGTERM is said as often as a
/// supervisor likes.
async fn told_to_stop(mut term: Signal, mut int: Signal, lines: LogQueue) {
    let interrupted = tokio::select! {
        biased;
        _ = term.recv() => {
            tracing::info!("SIGTERM: draining");
            false
        }
        _ = int.recv() => true,
    };
    tokio::spawn(async move {
        if !interrupted {
            int.recv().await;
        }
        tracing::info!("SIGINT: draining; once more ends the calls");
        int.recv().await;
        tracing::warn!("SIGINT again: leaving without waiting for the calls");
        lines.flush(logs::FLUSH_PATIENCE);
        std::process::exit(1);
    });
}

/// Serves something beside the calls: what cannot be shown is no reason to take none.
async fn beside<S>(setting: &str, at: SocketAddr, serve: impl FnOnce(TcpListener) -> S)
where
    S: Future<Output: Send> + Send + 'static,
{
    match TcpListener::bind(at).await {
        Ok(listener) => {
            tracing::info!(listen = %at, setting, "listening");
            tokio::spawn(serve(listener));
        }
        Err(error) => {
            tracing::error!(listen = %at, %error, setting, "cannot listen: free the port, or name another");
        }
    }
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {address}: {error}; free the port, or name another with {setting}")
    })
}

#[cfg(feature = "store")]
async fn open_store(config: &Config) -> anyhow::Result<Option<Writer>> {
    bridge::export::store::open(&config.store).await
}

/// A bridge that was built without a store keeps nothing.
#[cfg(not(feature = "store"))]
#[expect(clippy::unused_async, reason = "a bridge with a store waits here for its file")]
async fn open_store(_config: &Config) -> anyhow::Result<Option<Writer>> {
    Ok(None)
}

#[cfg(feature = "store")]
#[tokio::main(flavor = "current_thread")]
async fn calls(config: &Config, calls: &bridge::export::store::cli::Calls) -> anyhow::Result<()> {
    bridge::export::store::cli::run(&config.store, calls, &mut std::io::stdout().lock()).await
}
