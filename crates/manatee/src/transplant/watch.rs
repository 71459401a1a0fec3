//! For whoever looks at a transplant that somebody else may be running.

use super::{Told, Which, has_ended, pause_file, print, show};
use anyhow::{Result, bail};
use saga::Mode;
use std::{fs, process::ExitCode};
use transplant::{JournalFile, Locked, journal_of};

/// Tells whoever runs it to stop.
pub(super) fn pause(which: &Which) -> Result<ExitCode> {
    let path = journal_of(&which.inventory);
    let journal = JournalFile::read(&path)?.filter(|journal| !has_ended(journal));
    let Some(journal) = journal else {
        bail!("there is nothing to stop: see `manatee transplant status`");
    };
    let hint = show::hint(&journal, &which.inventory, &[]);
    let Some(runner) = Locked::holder(&path)? else {
        bail!("there is nothing to stop: nobody runs it; {hint}");
    };
    fs::write(pause_file(&which.inventory), "")?;
    let verb = match journal.mode() {
        Mode::Back { .. } => "rollback",
        Mode::Committing => "commit",
        _ => "run",
    };
    print(&format!(
        "{runner} stops after the step that it is at; `manatee transplant {verb}` goes on, as it was given \
         before\n"
    ))
}

/// How far it is.
pub(super) fn status(Told { which, json }: &Told) -> Result<ExitCode> {
    let path = journal_of(&which.inventory);
    let Some(journal) = JournalFile::read(&path)? else {
        bail!("it was not begun: there is no {}", path.display());
    };
    if *json {
        return print(&format!("{}\n", show::status_json(&journal, &which.inventory)));
    }
    print(&show::status(&journal, &which.inventory, &[]))
}

/// Whether the donor is as it was left.
pub(super) async fn verify(Told { which, json }: &Told) -> Result<ExitCode> {
    let path = journal_of(&which.inventory);
    let Some(journal) = JournalFile::read(&path)? else {
        bail!("it was not begun: there is no {}", path.display());
    };
    let result = transplant::verify(&journal).await.map_err(|error| format!("{error:#}"));
    if *json {
        let problem = result.as_ref().err();
        print(&format!("{}\n", serde_json::json!({ "problem": problem })))?;
    } else {
        print(&match &result {
            Ok(told) => format!("{told}\n"),
            Err(problem) => format!("{problem}\n"),
        })?;
    }
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
