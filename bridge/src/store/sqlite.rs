//! Transcripts in a file beside the bridge: nothing to install, nothing to operate.

use super::sql::{self, speaks_sql};
use super::{
    CallRow, KeypadRow, LineRow, Page, Record, ResponseRow, Store, StoreError, StoredCall, Tokens, ToolRow,
    What,
};
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a statement waits for another process that writes to the same file.
const BUSY: Duration = Duration::from_secs(5);
/// One writes, the others read.
const CONNECTIONS: u32 = 3;

/// A SQLite file.
pub struct Sqlite {
    pool: SqlitePool,
    path: PathBuf,
    /// The bridge process that writes here; none for whoever only reads.
    process: Option<String>,
    /// Held while that process is the only bridge that writes to the file.
    alone: OnceLock<File>,
}

speaks_sql!(Sqlite, SqliteConnection, SqliteRow);

impl Sqlite {
    /// The store in the file at `path`, which is made when it is first written to. It is nobody else's to read.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Self::with(path, |options| options)
    }

    /// The same, with options of one's own.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn with(
        path: &Path,
        change: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> std::io::Result<Self> {
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(BUSY)
            .connect_lazy_with(change(options));
        Ok(Self { pool, path: path.to_owned(), process: None, alone: OnceLock::new() })
    }

    /// The store of this bridge process. When it is prepared and nobody else writes to the file, calls of other
    /// processes that have no end are closed: they ended with their process.
    #[must_use]
    pub fn written_by(mut self, process: &str) -> Self {
        self.process = Some(process.to_owned());
        self
    }

    /// The tables are there.
    async fn migrated(&self) -> Result<(), StoreError> {
        match &self.process {
            Some(process) => self.close_orphans(process).await,
            None => Ok(()),
        }
    }

    async fn close_orphans(&self, process: &str) -> Result<(), StoreError> {
        if self.alone.get().is_none() {
            let lock = self.path.with_extension("lock");
            let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(lock);
            let Some(lock) = lock.ok().filter(|lock| lock.try_lock().is_ok()) else { return Ok(()) };
            self.alone.get_or_init(|| lock);
        }
        let orphans = "UPDATE calls SET ended_ms = began_ms, reason = 'process_died' \
                       WHERE ended_ms IS NULL AND process <> $1";
        let closed = sqlx::query(orphans).bind(process).execute(&self.pool).await.map_err(|e| explain(&e))?;
        if closed.rows_affected() > 0 {
            tracing::info!(calls = closed.rows_affected(), "calls that ended with their process are closed");
        }
        Ok(())
    }
}

/// What SQLite says when the same write may work later: busy, locked, out of memory, read-only, an I/O error, a full
/// disk, a file that cannot be opened. The extended codes carry these in their low byte.
const LATER: [i32; 7] = [5, 6, 7, 8, 10, 13, 14];

fn explain(error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    match (code, error) {
        (Some(code), _) if LATER.contains(&(code & 0xFF)) => StoreError::Later(error.to_string()),
        (
            _,
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed,
        ) => StoreError::Later(error.to_string()),
        (_, error) => StoreError::Never(error.to_string()),
    }
}
