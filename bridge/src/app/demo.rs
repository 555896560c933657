//! A call to look at without any account: a scripted caller and a scripted model, with this bridge between them.
//!
//! The two are programs of their own, for the bridge knows nothing of them but where they are; the bridge is the one
//! that takes real calls, on a loopback address, with its live page. Nothing leaves the machine.

use crate::app::config::Config;
use crate::base::secret::Secret;
use crate::base::text::Escape;
use crate::call::settings::Transcription;
use crate::export::logs::{LogGuard, LogQueue, QUEUE_BYTES};
use crate::net::dial::TlsDial;
use crate::net::tools::NoTools;
use crate::server::connections::Tcp;
use crate::server::live::{self, Live};
use crate::server::serve::Server;
use anyhow::{Context as _, bail, ensure};
use std::env;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task;

const CALLER: &str = include_str!("../../assets/demo-caller.toml");
const MODEL: &str = include_str!("../../assets/demo-model.toml");
/// How long the first call waits for a watcher of the live page.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two calls.
const PAUSE: Duration = Duration::from_secs(4);
/// How often it is looked whether something has happened.
const LOOK: Duration = Duration::from_millis(50);
/// The longest a call of the script can take: a real one takes about half a minute.
const CALL_MAX: Duration = Duration::from_secs(120);

/// What to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demo {
    /// Where the two programs are; beside this one if not said.
    pub mocks: Option<PathBuf>,
    /// Where to write what the caller heard.
    pub save: PathBuf,
    /// How many calls; without end if not said.
    pub calls: Option<u32>,
    /// The page's address, if it is to have a certain one.
    pub live: Option<String>,
}

/// Shows calls until they are over or `stop` comes.
///
/// # Errors
/// When a program is missing or a call does not go as it should.
pub async fn run<S>(demo: Demo, stop: impl Future<Output = S>) -> anyhow::Result<()> {
    let (caller, model) = programs(demo.mocks.as_deref())?;
    let scripts = Scripts::write()?;
    let save = std::path::absolute(&demo.save).context("no usable path for the recording")?;

    let mut model = Program(
        Command::new(&model)
            .args(["--listen", "127.0.0.1:0", "--script"])
            .arg(scripts.0.join("model.toml"))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", model.display()))?,
    );
    let mut stop = pin!(stop);
    let url = tokio::select! {
        biased;
        _ = &mut stop => return Ok(()),
        url = model.address() => url?,
    };
    let mut config = Config { drain_ms: 1_000, ..Config::default() };
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.twilio.insecure_no_signature = true;
    config.openai.url = url.parse().map_err(anyhow::Error::msg)?;
    config.openai.api_key = Secret::new("demo");
    config.call.greeting = Some("Greet the caller and ask how you can help.".into());
    config.call.transcription =
        Some(Transcription { model: "gpt-realtime-whisper".into(), language: Some("en".into()) });
    let dial = TlsDial::new(&config.openai.url)?;
    let listener = TcpListener::bind(config.listen).await.context("no port is free")?;
    let stream_url = format!("ws://{}/twilio", listener.local_addr()?);
    let page = page(demo.live.as_deref()).await?;
    // A reader who stalls or leaves must not hold up the call that is shown.
    let screen = LogQueue::start(io::stdout(), Escape::Text, QUEUE_BYTES, |_| {})?;
    screen.show("A scripted caller and a scripted model talk through this bridge, on this machine alone.");
    screen.show(&format!("Look at it:  http://{}/", page.local_addr()?));

    let (settings, calls) = (Arc::new(config.server()), Live::default());
    let server = Server::new(dial, NoTools, calls.clone(), settings.clone());
    let shown = task::spawn(live::serve(page, calls.clone(), server.stats(), settings, None));
    let stats = server.stats();
    let (end, ended) = oneshot::channel::<()>();
    let served = task::spawn(server.run(Tcp::new(listener, stats), async move {
        let _ = ended.await; // dropped: the end, too
    }));

    let played = tokio::select! {
        biased;
        _ = &mut stop => Ok(()),
        played = play(&demo, &screen, &calls, &caller, &scripts, &stream_url, &save) => played,
    };
    drop(end);
    let served = served.await.context("the bridge panicked");
    shown.abort();
    played?;
    ensure!(served?.panicked == 0, "a call panicked");
    Ok(())
}

async fn play(
    demo: &Demo,
    screen: &LogGuard,
    calls: &Live,
    caller: &Path,
    scripts: &Scripts,
    stream_url: &str,
    save: &Path,
) -> anyhow::Result<()> {
    if demo.calls.is_none() {
        screen.show("The first call begins as soon as the page is open. Ctrl-C ends the show.");
        let _ = tokio::time::timeout(PATIENCE, async {
            while calls.watchers() == 0 {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    }
    for n in 1..=demo.calls.unwrap_or(u32::MAX) {
        screen.show(&format!("call {n}: a greeting, a question, an answer that is interrupted"));
        let call = Command::new(caller)
            .arg(stream_url)
            .arg("--script")
            .arg(scripts.0.join("caller.toml"))
            .arg("--save")
            .arg(save)
            .args(["--seed", &n.to_string()])
            .stdout(Stdio::null())
            .spawn();
        let mut call = Program(call.with_context(|| format!("cannot start {}", caller.display()))?);
        let status = tokio::time::timeout(CALL_MAX, call.over()).await.context("the call does not end")??;
        ensure!(status.success(), "call {n} did not go as it should");
        screen.show(&format!("call {n}: over; what the caller heard is in {}", save.display()));
        if Some(n) != demo.calls {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// Binds the page's address: the one asked for, the usual one, or any that is free.
async fn page(address: Option<&str>) -> anyhow::Result<TcpListener> {
    if let Some(address) = address {
        let bound = TcpListener::bind(address).await;
        return bound.with_context(|| format!("cannot listen on {address}; name another with --live-listen"));
    }
    match TcpListener::bind(live::Settings::default().listen).await {
        Ok(listener) => Ok(listener),
        Err(_taken) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free"),
    }
}

/// The scripted caller and the scripted model.
fn programs(folder: Option<&Path>) -> anyhow::Result<(PathBuf, PathBuf)> {
    let own = env::current_exe().context("this program does not know where it is")?;
    let folder = folder.or(own.parent()).unwrap_or(Path::new("."));
    let [caller, model] =
        ["mock-twilio", "mock-openai"].map(|name| folder.join(format!("{name}{}", env::consts::EXE_SUFFIX)));
    for program in [&caller, &model] {
        if !program.is_file() {
            let kind = if folder.ends_with("debug") { "" } else { " --release" };
            bail!(
                "the demo needs {}, which is not there; build it with: cargo build{kind} -p mocks\nor say with \
                 --mocks DIR where it is",
                program.display()
            );
        }
    }
    Ok((caller, model))
}

/// A folder with what the two are to do, gone when dropped.
struct Scripts(PathBuf);

impl Scripts {
    fn write() -> anyhow::Result<Self> {
        let parent = env::temp_dir();
        let folder =
            own_folder(&parent).with_context(|| format!("cannot make a folder in {}", parent.display()))?;
        let scripts = Self(folder);
        fs::write(scripts.0.join("caller.toml"), CALLER)
            .and_then(|()| fs::write(scripts.0.join("model.toml"), MODEL))
            .with_context(|| format!("cannot write into {}", scripts.0.display()))?;
        Ok(scripts)
    }
}

impl Drop for Scripts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // it is the system's to tidy up then
    }
}

/// A new folder in `parent` that no other user may enter. Other users may write to `parent`, so what stands under its
/// name already, or leads elsewhere, is not used.
fn own_folder(parent: &Path) -> io::Result<PathBuf> {
    const TRIES: u32 = 100;
    let mut nth = 0;
    loop {
        let folder = parent.join(format!("bridge-demo-{}-{nth}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && nth < TRIES => nth += 1,
            made => return made.map(|()| folder),
        }
    }
}

/// A program that does not outlive this one's interest in it.
struct Program(Child);

impl Program {
    /// The address in the first line it says; what it says further is read and forgotten.
    async fn address(&mut self) -> anyhow::Result<String> {
        let stdout = self.0.stdout.take().context("it cannot be heard")?;
        let (said, first) = oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let _ = said.send(lines.next()); // without a receiver the line is not needed
            lines.for_each(drop);
        });
        let line = first.await.ok().flatten().transpose().context("the model said nothing")?;
        let line = line.context("the model did not start")?;
        let url = line.split_whitespace().find(|word| word.starts_with("ws://"));
        let url = url.with_context(|| format!("no address in: {line}"))?;
        Ok(url.split('?').next().unwrap_or(url).to_owned())
    }

    async fn over(&mut self) -> io::Result<std::process::ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it has ended already
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_missing_are_named_with_the_command_that_makes_them() {
        let error = programs(Some(Path::new("/nowhere"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/mock-twilio"), "{error}");
        assert!(error.contains("cargo build --release -p mocks"), "{error}");
    }

    #[test]
    fn a_folder_that_another_user_has_made_is_not_used() {
        use std::os::unix::fs::{MetadataExt as _, symlink};
        let parent = tempfile::TempDir::new().unwrap();
        let elsewhere = tempfile::TempDir::new().unwrap();
        let first = parent.path().join(format!("bridge-demo-{}-0", std::process::id()));
        symlink(elsewhere.path(), &first).unwrap();
        let own = own_folder(parent.path()).unwrap();
        assert_ne!(own, first);
        assert_eq!(fs::symlink_metadata(&own).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(own_folder(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn scripts_are_gone_when_the_show_is_over() {
        let scripts = Scripts::write().unwrap();
        let folder = scripts.0.clone();
        assert!(folder.join("model.toml").is_file());
        drop(scripts);
        assert!(!folder.exists());
    }
}
