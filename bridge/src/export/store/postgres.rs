//! Transcripts in Postgres: for more than one bridge, and for an operator who already runs Postgres.

use super::rows::{
    CallRow, KeypadRow, LineRow, Page, Record, ResponseRow, Store, StoreError, StoredCall, Tokens, ToolRow,
    What,
};
use super::sql::{self, speaks_sql};
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::{Connection as _, Row as _};
use std::time::Duration;

/// How long to wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a statement may take on the server's side.
const STATEMENT: &str = "10s";
/// Two for writing and migrating, two for reading.
const CONNECTIONS: u32 = 4;

/// A Postgres database.
pub struct Postgres {
    pool: PgPool,
}

speaks_sql!(Postgres, PgConnection, PgRow);

impl Postgres {
    /// The tables are there. Several bridges write to them: whose calls ended with their process is not known.
    fn migrated(&self) -> std::future::Ready<Result<(), StoreError>> {
        std::future::ready(Ok(()))
    }

    fn pool(&self) -> PgPool {
        self.pool.clone()
    }

    /// Nothing is known of a server before it is asked.
    const fn may_write(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// What a server has taken stays with it.
    fn recovered(&self) -> std::future::Ready<Result<bool, StoreError>> {
        std::future::ready(Ok(false))
    }

    /// The store behind a `postgres://` URL. Nothing is connected before something is written or read.
    ///
    /// # Errors
    /// When the URL is none. The words do not quote it: a password may be in it.
    pub fn open(url: &str) -> Result<Self, String> {
        let options: PgConnectOptions =
            url.parse().map_err(|_| "not a URL such as postgres://user:password@host/database".to_owned())?;
        let options = options.application_name("bridge").options([("statement_timeout", STATEMENT)]);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(CONNECT)
            .connect_lazy_with(options);
        Ok(Self { pool })
    }
}

/// Classes of SQLSTATE that say nothing about what was written: the connection, a rolled-back transaction, resources
/// (a full disk, too many connections), a server that stops or starts, its own trouble, a standby that cannot write,
/// rights and a missing database, which an operator may mend.
const LATER: [&str; 10] = ["08", "40", "53", "55", "57", "58", "XX", "25", "28", "3D"];

fn explain(error: &sqlx::Error) -> StoreError {
    let never = error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| !LATER.iter().any(|class| code.starts_with(class)));
    if never { StoreError::Never(error.to_string()) } else { StoreError::Later(error.to_string()) }
}
