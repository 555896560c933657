//! The files that a command line asks for.

use super::folder::Folder;
use super::runs::Report;
use crate::base::output::{put, say};
use std::path::PathBuf;

/// What a run leaves behind for people and for other programs.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Files {
    /// Write a page to look at, with JUnit XML, JSON and the audio of both ends, into this folder.
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Write JUnit XML to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    /// Write the verdicts, places and waits as JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

impl Files {
    pub(crate) fn wanted(&self) -> bool {
        self.report.is_some() || self.junit.is_some() || self.json.is_some()
    }

    /// Refuses a folder with foreign files in it, before anything is played.
    pub(crate) fn check(&self) -> anyhow::Result<Option<Folder>> {
        self.report.as_deref().map(Folder::take).transpose()
    }

    pub(crate) fn write(&self, report: Report, folder: Option<&Folder>) -> anyhow::Result<()> {
        if let Some(path) = &self.junit {
            put(path, report.junit()?)?;
        }
        if let Some(path) = &self.json {
            put(path, report.json())?;
        }
        if let Some(folder) = folder {
            say(&format!("report     {}\n", report.write(folder)?.display()));
        }
        Ok(())
    }
}
