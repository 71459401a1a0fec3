//! The one place that spawns commands: clean environment, C locale, bounded output and time, and an
//! error that says what was run, how it ended and what it printed last.
//!
//! A command runs in a process group of its own, which is killed as a whole when its time is up or
//! when the future is dropped. It never reads the terminal.

mod stream;

pub use stream::{Reader, Writer};

use cluster::Millis;
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// How much of each output is kept, in bytes: the first half of it and the last half.
const KEPT: usize = 1 << 20;
/// How much of the output stands in an error, in bytes.
const TAIL: usize = 2000;
/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Gives up root for another user with all groups of that user, which [`Command::uid`] cannot.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A user of the operating system to run a command as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its id.
    pub uid: u32,
    /// The id of its first group.
    pub gid: u32,
}

impl OsUser {
    /// Looks the user up, wherever the system keeps its users.
    ///
    /// # Errors
    /// When there is no such user.
    pub fn find(name: &str) -> Result<OsUser, ExecError> {
        let id = |flag: &str| -> Result<u32, ExecError> {
            let exec = Exec::new("id").arg(flag).arg("--").arg(name);
            let output = exec.run_briefly()?;
            let text = String::from_utf8_lossy(&output).trim().to_owned();
            text.parse().map_err(|_| exec.error(ExecCause::Answer(text)))
        };
        Ok(OsUser { name: name.to_owned(), uid: id("-u")?, gid: id("-g")? })
    }

    /// The name of the user that we run as. The environment does not tell: a service or a container
    /// may have none, and `su` keeps that of another user.
    ///
    /// # Errors
    /// When this user has no name.
    pub fn own_name() -> Result<String, ExecError> {
        let name = Exec::new("id").arg("-un").run_briefly()?;
        Ok(String::from_utf8_lossy(&name).trim().to_owned())
    }
}

/// A command to be run.
#[derive(Debug, Clone)]
pub struct Exec {
    program: PathBuf,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    secrets: Vec<String>,
    stdin: Option<Vec<u8>>,
    limit: Option<Millis>,
    user: Option<OsUser>,
    directory: PathBuf,
}

/// What a successful command printed. What lay beyond the bound was dropped from the middle.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// A command that did not do what it was to do.
#[derive(Debug, thiserror::Error)]
#[error("command failed: {command}")]
pub struct ExecError {
    /// The command line, secrets replaced.
    pub command: String,
    /// Why.
    #[source]
    pub cause: ExecCause,
}

impl ExecError {
    /// Whether the command ended with an error and printed this.
    pub fn says(&self, what: &str) -> bool {
        matches!(&self.cause, ExecCause::Failed { output, .. } if output.contains(what))
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum ExecCause {
    /// It could not be started.
    #[error("it could not be started")]
    Spawn(#[source] io::Error),
    /// Its input or output broke.
    #[error("its input or output broke")]
    Stream(#[source] io::Error),
    /// It ended with an error.
    #[error("{status}: {output}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It took too long and was killed.
    #[error("killed after {} ms: {output}", limit.0)]
    Timeout {
        /// Its limit.
        limit: Millis,
        /// The end of what it printed.
        output: String,
    },
    /// It printed something that was not expected.
    #[error("unexpected output {0:?}")]
    Answer(String),
}

impl Exec {
    /// This program, by path or by name, without arguments, run in `/`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Exec {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::from([
                ("PATH".into(), PATH.into()),
                ("LC_ALL".into(), "C".into()),
                ("TZ".into(), "UTC".into()),
            ]),
            secrets: Vec::new(),
            stdin: None,
            limit: None,
            user: None,
            directory: "/".into(),
        }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// With more arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// With this environment variable; nothing is inherited.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Shows this text as `***` in errors, wherever it occurs.
    #[must_use]
    pub fn redact(mut self, secret: impl Into<String>) -> Self {
        let secret = secret.into();
        if !secret.is_empty() {
            self.secrets.push(secret);
        }
        self
    }

    /// With this on its standard input.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(input.into());
        self
    }

    /// Killed when it takes longer.
    #[must_use]
    pub fn limit(mut self, limit: Millis) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Run as this user; `None` for our own.
    #[must_use]
    pub fn as_user(mut self, user: Option<&OsUser>) -> Self {
        self.user = user.cloned();
        self
    }

    /// Run in this directory.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Runs a command that is known to be quick and to print little, without a runtime and without
    /// a time limit; gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn run_briefly(&self) -> Result<Vec<u8>, ExecError> {
        let output = self
            .command()
            .as_std_mut()
            .stdin(Stdio::null())
            .output()
            .map_err(|source| self.error(ExecCause::Spawn(source)))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(self
            .error(ExecCause::Failed { status: output.status, output: self.tail(&output.stderr) }))
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// When it cannot be started, fails or takes too long. Dropping the future kills it.
    pub async fn run(self) -> Result<Output, ExecError> {
        self.run_with(|_| {}).await
    }

    /// Runs it to its end and hands over each line of its standard error as it comes (lines end
    /// with a line feed or a carriage return).
    ///
    /// # Errors
    /// As [`Exec::run`].
    pub async fn run_with(self, on_line: impl FnMut(&str) + Send) -> Result<Output, ExecError> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| self.error(ExecCause::Spawn(source)))?;
        let mut group = Group::of(&child);
        let mut stdout = Kept::default();
        let mut stderr = Kept::default();
        let limit = self.limit.unwrap_or(Millis(u64::MAX / 2));
        let work = converse(
            &mut child,
            self.stdin.as_deref().unwrap_or_default(),
            &mut stdout,
            &mut stderr,
            on_line,
        );
        let ended = tokio::time::timeout(Duration::from_millis(limit.0), work).await;
        let status = match ended {
            Ok(Ok(status)) => status,
            Ok(Err(source)) => return Err(self.error(ExecCause::Stream(source))),
            Err(_) => {
                drop(group);
                let output = self.tail(&[stdout.bytes(), stderr.bytes()].concat());
                return Err(self.error(ExecCause::Timeout { limit, output }));
            }
        };
        group.ended();
        let (stdout, stderr) = (stdout.bytes(), stderr.bytes());
        if status.success() {
            return Ok(Output { stdout, stderr });
        }
        let output = self.tail(&[stdout, stderr].concat());
        Err(self.error(ExecCause::Failed { status, output }))
    }

    /// Starts it as a daemon: in a process group of its own, with its output appended to `log`, not
    /// tied to our life in any way.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn daemon(self, log: &File) -> Result<Child, ExecError> {
        let log = || log.try_clone().map(Stdio::from);
        let streams = log().and_then(|out| Ok((out, log()?)));
        let (out, err) = streams.map_err(|source| self.error(ExecCause::Spawn(source)))?;
        self.command()
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|source| self.error(ExecCause::Spawn(source)))
    }

    /// Starts it as [`Exec::daemon`] does, without a runtime.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn child(self, log: &File) -> Result<std::process::Child, ExecError> {
        let log = || log.try_clone().map(Stdio::from);
        let streams = log().and_then(|out| Ok((out, log()?)));
        let (out, err) = streams.map_err(|source| self.error(ExecCause::Spawn(source)))?;
        let mut command = self.command();
        let command = command.as_std_mut().stdin(Stdio::null()).stdout(out).stderr(err);
        command.spawn().map_err(|source| self.error(ExecCause::Spawn(source)))
    }

    fn command(&self) -> Command {
        let mut command = match &self.user {
            Some(user) if Path::new(SETPRIV).exists() => {
                let mut command = Command::new(SETPRIV);
                command
                    .arg(format!("--reuid={}", user.uid))
                    .arg(format!("--regid={}", user.gid))
                    .arg("--init-groups")
                    .arg("--")
                    .arg(&self.program);
                command
            }
            Some(user) => {
                let mut command = Command::new(&self.program);
                command.gid(user.gid).uid(user.uid);
                command
            }
            None => Command::new(&self.program),
        };
        command
            .args(&self.args)
            .env_clear()
            .envs(&self.env)
            .current_dir(&self.directory)
            .process_group(0);
        command
    }

    fn hide(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    fn tail(&self, output: &[u8]) -> String {
        let from = output.len().saturating_sub(TAIL);
        self.hide(String::from_utf8_lossy(&output[from..]).trim())
    }

    fn error(&self, cause: ExecCause) -> ExecError {
        let words: Vec<_> = std::iter::once(self.program.as_os_str())
            .chain(self.args.iter().map(OsString::as_os_str))
            .map(|word| word.to_string_lossy())
            .collect();
        ExecError { command: self.hide(&words.join(" ")), cause }
    }
}

/// Feeds the child, reads all it prints, and waits for its end.
async fn converse(
    child: &mut Child,
    input: &[u8],
    stdout: &mut Kept,
    stderr: &mut Kept,
    mut on_line: impl FnMut(&str) + Send,
) -> io::Result<ExitStatus> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        let Some(mut stdin) = stdin else {
            return Ok(());
        };
        match stdin.write_all(input).await {
            // It ended, or closed its input, without reading all: its exit status tells.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    };
    let mut line = Vec::new();
    let lines = |bytes: &[u8]| {
        for byte in bytes {
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
            } else if !line.is_empty() {
                on_line(&String::from_utf8_lossy(&line));
                line.clear();
            }
            line.truncate(KEPT);
        }
    };
    tokio::try_join!(feed, read(out, stdout, |_| {}), read(err, stderr, lines))?;
    child.wait().await
}

async fn read(
    from: Option<impl AsyncRead + Unpin>,
    into: &mut Kept,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<()> {
    let Some(mut from) = from else {
        return Ok(());
    };
    let mut buffer = vec![0; 8192];
    loop {
        match from.read(&mut buffer).await? {
            0 => return Ok(()),
            count => {
                seen(&buffer[..count]);
                into.push(&buffer[..count]);
            }
        }
    }
}

/// The beginning and the end of an output.
#[derive(Default)]
struct Kept {
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        let room = (KEPT / 2).saturating_sub(self.first.len()).min(bytes.len());
        self.first.extend_from_slice(&bytes[..room]);
        self.last.extend_from_slice(&bytes[room..]);
        // Cut only now and then: each cut moves what stays.
        if self.last.len() > KEPT {
            self.last.drain(..self.last.len() - KEPT / 2);
        }
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.first[..], &self.last[..]].concat()
    }
}

/// The process group of a running command, killed when this is dropped before its end.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Group {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Group(pid.and_then(Pid::from_raw))
    }

    /// The leader has been waited for: its id may belong to another process soon.
    fn ended(&mut self) {
        self.0 = None;
    }
}

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            // Nothing is left to be done when it is gone already.
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
