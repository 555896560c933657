//! What commands write: standard output and files.

use anyhow::Context as _;
use std::io::Write as _;
use std::path::Path;

/// Writes to standard output. A closed pipe ends the program quietly.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes a file, and names it in the error.
pub(crate) fn put(path: &Path, text: String) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A name as one word of a command line: `drops-the-clear`.
pub(crate) fn word(name: &str) -> String {
    name.replace(' ', "-").replace('\'', "")
}
