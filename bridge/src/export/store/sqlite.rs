//! Transcripts in a file beside the bridge: nothing to install, nothing to operate.

use super::rows::{
    CallRow, KeypadRow, LineRow, Page, Record, ResponseRow, Store, StoreError, StoredCall, Tokens, ToolRow,
    What,
};
use super::sql::{self, speaks_sql};
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection as _, Row as _};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// How long a statement waits for another process that writes to the same file.
const BUSY: Duration = Duration::from_secs(5);
/// One writes, the others read.
const CONNECTIONS: u32 = 3;

/// A SQLite file.
pub struct Sqlite {
    path: PathBuf,
    options: SqliteConnectOptions,
    open: Mutex<Open>,
    /// The bridge process that writes here; none for a reader.
    process: Option<String>,
    /// Held while that process is the only bridge that writes to the file.
    alone: OnceLock<File>,
}

/// The file as it was opened.
struct Open {
    pool: SqlitePool,
    /// What was at the path then.
    file: Option<FileId>,
    /// The write-ahead log that was seen beside it last.
    wal: Option<FileId>,
}

/// Device and inode.
type FileId = (u64, u64);

fn file_id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// Makes the file, which only its owner may read, unless it is there.
fn make(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn connect(options: &SqliteConnectOptions) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(BUSY)
        .connect_lazy_with(options.clone())
}

speaks_sql!(Sqlite, SqliteConnection, SqliteRow);

impl Sqlite {
    /// The store in the file at `path`, which is made when it is first written to. Only its owner may read it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with(path, |options| options)
    }

    /// The same, with options of one's own.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn with(
        path: &Path,
        change: impl FnOnce(SqliteConnectOptions) -> SqliteConnectOptions,
    ) -> io::Result<Self> {
        make(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY);
        Ok(Self::connected(path, change(options)))
    }

    /// The store in the file at `path` for reading alone: neither the file nor its folder has to be writable. `None`
    /// while nothing has been stored in it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY);
        let store = Self::connected(path, options.clone());
        match store.has_tables().await {
            Ok(has_tables) => Ok(has_tables.then_some(store)),
            // Without a write-ahead log no process writes, and no log can be made beside a file in a read-only folder.
            Err(StoreError::Later(_) | StoreError::Broken(_)) if !beside(path, "-wal").exists() => {
                let store = Self::connected(path, options.immutable(true));
                store.has_tables().await.map(|has_tables| has_tables.then_some(store))
            }
            Err(error) => Err(error),
        }
    }

    fn connected(path: &Path, options: SqliteConnectOptions) -> Self {
        let open = Open { pool: connect(&options), file: file_id(path), wal: None };
        Self { path: path.to_owned(), options, open: Mutex::new(open), process: None, alone: OnceLock::new() }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pool(&self) -> SqlitePool {
        self.locked().pool.clone()
    }

    /// What SQLite says of the file after it has read all of it: `ok`, or what is wrong.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn check(&self) -> Result<String, StoreError> {
        let checked = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&self.pool()).await;
        checked.map_err(|error| explain(&error))
    }

    async fn has_tables(&self) -> Result<bool, StoreError> {
        let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'responses'";
        let found: Result<i64, _> = sqlx::query_scalar(tables).fetch_one(&self.pool()).await;
        found.map(|tables| tables > 0).map_err(|error| explain(&error))
    }

    /// The store of this bridge process. When it is prepared and no other process writes to the file, calls of
    /// other processes that have no end are closed: they ended with their process.
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

    /// A writer puts files beside the store: SQLite its log, the bridge its lock.
    fn may_write(&self) -> Result<(), StoreError> {
        if self.process.is_none() || self.alone.get().is_some() {
            return Ok(());
        }
        let path = self.path.with_extension("lock");
        match OpenOptions::new().create(true).append(true).mode(0o600).open(&path) {
            Ok(lock) => {
                if lock.try_lock().is_ok() {
                    self.alone.get_or_init(|| lock);
                }
                Ok(())
            }
            Err(error) if is_lasting(&error) => {
                Err(StoreError::Broken(format!("{} cannot be written: {error}", path.display())))
            }
            Err(_) => Ok(()),
        }
    }

    /// Looks whether the file that was opened is still at its path. If not, what was written to it is gone, and a file
    /// is opened anew: the one that took its place, or an empty one. Connections to the old one would go on to take
    /// records that no reader will ever find.
    async fn recovered(&self) -> Result<bool, StoreError> {
        let at_path = file_id(&self.path);
        let (pool, wal) = {
            let mut open = self.locked();
            if at_path.is_some() && at_path == open.file {
                open.wal = file_id(&beside(&self.path, "-wal"));
                return Ok(false);
            }
            (open.pool.clone(), open.wal)
        };
        pool.close().await;
        // The old file's log would be taken for one of the new file, and spoil it.
        if wal.is_some() && file_id(&beside(&self.path, "-wal")) == wal {
            let _ = fs::remove_file(beside(&self.path, "-wal"));
            let _ = fs::remove_file(beside(&self.path, "-shm"));
        }
        make(&self.path).map_err(|error| StoreError::Later(format!("{}: {error}", self.path.display())))?;
        *self.locked() = Open { pool: connect(&self.options), file: file_id(&self.path), wal: None };
        Ok(true)
    }

    async fn close_orphans(&self, process: &str) -> Result<(), StoreError> {
        if self.alone.get().is_none() {
            return Ok(());
        }
        let orphans = "UPDATE calls SET ended_ms = began_ms, reason = 'process_died' \
                       WHERE ended_ms IS NULL AND process <> $1";
        let closed =
            sqlx::query(orphans).bind(process).execute(&self.pool()).await.map_err(|e| explain(&e))?;
        if closed.rows_affected() > 0 {
            tracing::info!(calls = closed.rows_affected(), "calls that ended with their process are closed");
        }
        Ok(())
    }
}

/// A file of SQLite's beside the store.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// An operator has to do something about it: it does not pass like a full disk.
fn is_lasting(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotFound
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
    )
}

/// What SQLite says when the same write may work later: busy, locked, out of memory, an I/O error, a full disk, a file
/// that cannot be opened. The extended codes carry these in their low byte.
const LATER: [i32; 6] = [5, 6, 7, 10, 13, 14];
/// And what it says when the operator has to mend the file first: no permission, read-only, corrupt, no database.
const BROKEN: [i32; 4] = [3, 8, 11, 26];

fn explain(error: &sqlx::Error) -> StoreError {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    match (code.map(|code| code & 0xFF), error) {
        (Some(code), _) if LATER.contains(&code) => StoreError::Later(error.to_string()),
        (Some(code), _) if BROKEN.contains(&code) => StoreError::Broken(error.to_string()),
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
