//! A move that a test watches and disturbs.

use super::{diary::Diary, ground::Ground};
use anyhow::{Context, Result, ensure};
use cluster::Millis;
use jiff::Timestamp;
use manatee::shard::{DONOR, Donor, Ledger, Peer, ShardOptions, Stage, Standalone, Writer};
use saga::{Entry, Journal, Mode, Way};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

/// How long anything may take that happens by itself.
pub const LIMIT: Millis = Millis(180_000);

/// A donor under a writer, and the peers it can be moved to. Fields are dropped in this order.
pub struct Move<D = Standalone> {
    pub writer: Writer,
    pub stage: Stage<D>,
    pub diary: Diary,
    _directory: TempDir,
}

impl Move {
    /// Of a PostgreSQL that stands by itself.
    pub fn prepare() -> Result<Move> {
        let moved = Move::with(|_| {}, Standalone::make)?;
        moved.wait_for_writes_to("donor")?;
        Ok(moved)
    }
}

impl Move {
    /// Of a PostgreSQL that stands by itself, on this ground.
    pub fn on(ground: &Ground, change: impl FnOnce(&mut ShardOptions)) -> Result<Move> {
        let place = |options: &mut ShardOptions| {
            ground.place(options);
            change(options);
        };
        let moved = Move::with(place, |directory, setup| {
            ground.make_home(&directory.join(DONOR))?;
            Standalone::make(directory, setup)
        })?;
        moved.wait_for_writes_to(DONOR)?;
        Ok(moved)
    }
}

impl<D: Donor> Move<D> {
    /// Of the donor that `make` makes ([`Stage::with`]), into peers that are other than usual.
    pub fn with(
        change: impl FnOnce(&mut ShardOptions),
        make: impl FnOnce(&Path, &str) -> Result<D>,
    ) -> Result<Move<D>> {
        let directory = tempfile::Builder::new().prefix("manatee-test-").tempdir()?;
        let mut options =
            ShardOptions::new(env!("CARGO_BIN_EXE_manatee"), directory.path().join("move"));
        change(&mut options);
        let stage = Stage::with(&options, make)?;
        let writer = stage.writer()?;
        let diary = Diary::of(stage.peers());
        Ok(Move { writer, stage, diary, _directory: directory })
    }

    /// Waits until a row was acknowledged that was tried after this call, by one of this name.
    pub fn wait_for_writes_to(&self, name: &str) -> Result<()> {
        let before = self.writer.handle().ledger().tried();
        wait("the writer to be acknowledged", || {
            let progress = self.writer.handle().progress();
            let there = progress.newest_of.as_deref() == Some(name);
            let newest = progress.newest.is_some_and(|(number, _)| number > before);
            if there && newest { Ok(()) } else { Err(format!("{progress:?}")) }
        })
    }

    /// Asks for the move to go by snapshots of this ground.
    pub fn ask_for_snapshots(&self, ground: &Ground) -> Result<()> {
        let home = self.stage.inventory().with_file_name(DONOR);
        self.ask_for_snapshots_of(ground.dataset(&home).context("a ground with snapshots")?)
    }

    /// Asks for the move to go by snapshots of this dataset.
    pub fn ask_for_snapshots_of(&self, dataset: toml::Table) -> Result<()> {
        let inventory = self.stage.inventory();
        let mut table: toml::Table = toml::from_str(&fs::read_to_string(&inventory)?)?;
        let donor = table.get_mut("donor").and_then(toml::Value::as_table_mut);
        let donor = donor.context("a donor")?;
        donor.insert("method".to_owned(), "snapshots".into());
        donor.insert("program".to_owned(), env!("CARGO_BIN_EXE_manatee").into());
        donor.insert("dataset".to_owned(), dataset.into());
        Ok(fs::write(&inventory, toml::to_string(&table)?)?)
    }

    /// Asks for a backup that is proven by these statements; where it will be.
    pub fn ask_for_backup(&self, sql: &[&str]) -> Result<PathBuf> {
        let inventory = self.stage.inventory();
        let directory = inventory.with_file_name("backups");
        fs::create_dir(&directory)?;
        let text = fs::read_to_string(&inventory)?;
        fs::write(
            &inventory,
            format!("{text}\n[backup]\ndir = {directory:?}\nverify_sql = {sql:?}\n"),
        )?;
        Ok(directory)
    }

    /// Asks for all that can be looked at in the copy.
    pub fn ask_to_verify(&self) -> Result<()> {
        self.stage.donor_sql("create extension if not exists amcheck")?;
        // PostgreSQL 13 has no pg_amcheck.
        let amcheck = adapters::postgres::programs(None)?.1 >= 14;
        self.add(&format!(
            "[verify]\namcheck = {amcheck}\nrow_counts = true\nsql = ['select 7, 1']"
        ))
    }

    /// Executes a statement in another database of the donor.
    pub fn donor_sql_in(&self, database: &str, sql: &str) -> Result<String> {
        self.stage.donor_sql("create extension if not exists dblink")?;
        self.stage.donor_sql(&format!(
            "select dblink_exec(format('dbname=%L port=%s host=%s user=%s', $name${database}$name$, \
             current_setting('port'), current_setting('unix_socket_directories'), current_user), $sql${sql}$sql$)"
        ))
    }

    /// Adds a table to the inventory.
    pub fn add(&self, table: &str) -> Result<()> {
        let inventory = self.stage.inventory();
        let text = fs::read_to_string(&inventory)?;
        Ok(fs::write(&inventory, format!("{text}\n{table}\n"))?)
    }

    pub fn journal(&self) -> PathBuf {
        self.stage.inventory().with_extension("journal")
    }

    pub fn read_journal(&self) -> Result<Journal> {
        Ok(Journal::parse(&fs::read_to_string(self.journal())?)?.0)
    }

    pub fn primary(&self) -> &Peer {
        &self.stage.peers()[0]
    }

    /// Nothing that was acknowledged is lost, as this peer has it.
    pub fn check_peer(&self, peer: &Peer) -> Result<()> {
        let ledger = self.writer.handle().ledger();
        wait("the ledger to be there", || {
            let report = ledger.check(peer).map_err(|error| format!("{error:#}"))?;
            if report.is_good() { Ok(()) } else { Err(report.to_string()) }
        })
    }

    pub fn check_donor(&self) -> Result<()> {
        let report = self.stage.check_donor(&self.writer.handle().ledger())?;
        ensure!(report.is_good(), "{report}");
        Ok(())
    }

    /// The donor has all that was acknowledged before, and not all that was acknowledged later: that was given up.
    pub fn check_given_up(&self, before: &Ledger) -> Result<()> {
        let report = self.stage.check_donor(before)?;
        ensure!(report.is_good(), "of before: {report}");
        let report = self.stage.check_donor(&self.writer.handle().ledger())?;
        ensure!(!report.missing.is_empty() && report.duplicate.is_empty(), "{report}");
        Ok(())
    }

    /// As if it had been turned back, and the steps after the opening undone, just before.
    pub fn leave_only_the_opening(&self) -> Result<()> {
        let mut journal = self.read_journal()?;
        let mut entries = vec![Entry::TurnedBack { discard_writes: false }];
        for step in journal.plan().steps.iter().rev() {
            if step.id.0 == "open-recipient" {
                break;
            }
            let (step, way) = (step.id.clone(), Way::Undo);
            entries.push(Entry::Intent { step: step.clone(), way });
            entries.push(Entry::Done { step, way, outcome: Value::Null });
        }
        let mut file = fs::OpenOptions::new().append(true).open(self.journal())?;
        for entry in entries {
            file.write_all(journal.append(entry, Timestamp::now(), "somebody")?.as_bytes())?;
        }
        Ok(())
    }

    /// What the last runner in the background printed.
    pub fn told(&self) -> PathBuf {
        self.stage.inventory().with_extension("told")
    }

    /// A runner in the background.
    pub fn spawn(&self, args: &[&str]) -> Result<Child> {
        let told = fs::File::create(self.told())?;
        Command::new(env!("CARGO_BIN_EXE_manatee"))
            .arg("transplant")
            .arg(args[0])
            .arg(self.stage.inventory())
            .args(&args[1..])
            .stdin(Stdio::null())
            .stdout(told.try_clone()?)
            .stderr(told)
            .spawn()
            .context("the runner cannot be started")
    }

    /// Runs it again and again, and kills it as soon as anything new is in its journal, until it has
    /// ended well. What was done is done a second time, once: the line that says so is cut off, as if the
    /// runner had ended before it was written.
    pub fn run_through_kills(&self, args: &[&str]) -> Result<usize> {
        let mut kills = 0;
        let mut repeated = BTreeSet::new();
        loop {
            let length = fs::metadata(self.journal()).map_or(0, |file| file.len());
            let mut runner = self.spawn(args)?;
            let begun = adapters::clock::now();
            let ended = loop {
                if let Some(status) = runner.try_wait()? {
                    break Some(status);
                }
                if fs::metadata(self.journal()).map_or(0, |file| file.len()) > length {
                    runner.kill()?;
                    runner.wait()?;
                    break None;
                }
                ensure!(adapters::clock::now() - begun < LIMIT, "nothing new in the journal");
                std::thread::sleep(Duration::from_millis(1));
            };
            if let Some(status) = ended {
                let length_now = fs::metadata(self.journal())?.len();
                ensure!(
                    status.success(),
                    "{args:?}: {status}: {}",
                    self.stage.transplant(&["status"])?
                );
                if length_now == length || self.read_journal()?.mode() != Mode::Forward {
                    return Ok(kills);
                }
                continue;
            }
            kills += 1;
            let journal = self.read_journal()?;
            if let Some(Entry::Done { step, way, .. }) =
                journal.records().last().map(|record| &record.entry)
                && repeated.insert((step.clone(), *way == Way::Apply))
            {
                let text = fs::read_to_string(self.journal())?;
                let whole = text.trim_end().rfind('\n').context("more than a line")?;
                fs::write(self.journal(), &text[..=whole])?;
            }
        }
    }
}

impl<D: Donor> Move<D> {
    /// What `manatee transplant runbook` prints of it.
    pub fn runbook(&self) -> Result<Runbook> {
        // What does not come is not waited for as long as a person would.
        if !fs::read_to_string(self.stage.inventory())?.contains("[limits]") {
            self.add("[limits]\nservice_seconds = 60\ncatch_up_seconds = 60")?;
        }
        let text = self.stage.transplant(&["runbook"])?;
        Ok(Runbook { text, file: self.stage.inventory().with_extension("sh") })
    }

    /// Types a new runbook, which says what the donor is now, up to the end of this section, and goes back.
    pub fn type_there_and_back(&self, until: &str) -> Result<()> {
        let book = self.runbook()?;
        book.type_until(until)?;
        if until == "end" {
            self.wait_for_writes_to("amber")?;
            for peer in self.stage.peers() {
                self.check_peer(peer)?;
            }
        }
        book.go_back()?;
        self.wait_for_writes_to(DONOR).with_context(|| until.to_owned())
    }

    /// Types a runbook up to the end of each of its sections that has something to undo, and goes back from
    /// there: what serves then has this name, and is as this looks at it.
    pub fn type_from_every_section(
        &self,
        name: &str,
        check: impl Fn(&Move<D>) -> Result<()>,
    ) -> Result<()> {
        let plan: saga::Plan = serde_json::from_str(&self.stage.transplant(&["plan", "--json"])?)?;
        let mut opened = false;
        for step in &plan.steps {
            opened |= step.id.0 == "open-recipient";
            if step.undo == "nothing to undo" {
                continue;
            }
            let book = self.runbook()?;
            book.type_until(&step.id.0)?;
            if opened {
                self.wait_for_writes_to("amber").with_context(|| step.id.clone())?;
            }
            book.go_back()?;
            self.wait_for_writes_to(name).with_context(|| step.id.clone())?;
            check(self).with_context(|| step.id.clone())?;
        }
        Ok(())
    }
}

/// A runbook, to be typed.
pub struct Runbook {
    text: String,
    file: PathBuf,
}

impl Runbook {
    /// Part one, every section of it twice, up to the end of this one.
    pub fn type_until(&self, last: &str) -> Result<String> {
        let (head, sections) = self.part_one()?;
        let last = format!("{last}: ");
        let found = sections.iter().position(|text| text.starts_with(&last));
        let typed = &sections[..=found.context("a section of that name")?];
        let typed = typed.iter().flat_map(|section| [*section; 2]);
        self.run(&typed.fold(head, |text, section| format!("{text}\n### {section}\n")), "")
    }

    /// One section in a shell of its own.
    pub fn type_only(&self, name: &str) -> Result<String> {
        let (head, sections) = self.part_one()?;
        let name = format!("{name}: ");
        let section = sections.into_iter().find(|text| text.starts_with(&name));
        self.run(&format!("{head}\n### {}\n", section.context("a section of that name")?), "")
    }

    /// What comes before part one, and that one's sections.
    fn part_one(&self) -> Result<(String, Vec<&str>)> {
        let (head, rest) = self.text.split_once("\nif [ ").context("a head")?;
        let (_, rest) = rest.split_once('\n').context("a part one")?;
        let (one, _) = rest.split_once("\nelse # PART TWO").context("a part two")?;
        let sections = one.split("\n### ").filter(|text| !text.is_empty());
        Ok((head.to_owned(), sections.collect()))
    }

    /// All of part two.
    pub fn go_back(&self) -> Result<String> {
        self.go_back_with("")
    }

    /// The same, where this was said before.
    pub fn go_back_with(&self, said: &str) -> Result<String> {
        self.run(&format!("{said}\n{}", self.text), "back")
    }

    fn run(&self, text: &str, part: &str) -> Result<String> {
        fs::write(&self.file, text)?;
        let output = Command::new("sh").arg(&self.file).arg(part).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(output.status.success(), "{text}\n{part}:\n{said}");
        Ok(said)
    }
}

/// Waits until `look` says nothing any more of what is missing.
pub fn wait(what: &str, mut look: impl FnMut() -> Result<(), String>) -> Result<()> {
    let begun = adapters::clock::now();
    loop {
        let Err(missing) = look() else { return Ok(()) };
        ensure!(adapters::clock::now() - begun < LIMIT, "waited for {what}: {missing}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
