//! Hosts, this one or one that is reached by ssh, and the services on them.
//!
//! Contract: a command that is run on a host is given its arguments as they are, whatever is in them,
//! on both kinds; and a file is replaced as a whole.

use crate::exec::{Exec, ExecError, OsUser, Output};
use cluster::Millis;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Without a question that nobody answers; told soon when a host is silent.
const SSH: [&str; 3] = ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5"];
/// One connection for all that is asked of a host: to make one takes longer than most answers do. It ends
/// when it was not used for so many seconds.
const SHARED: [&str; 3] =
    ["ControlMaster=auto", "ControlPath=~/.ssh/manatee-%C", "ControlPersist=30"];
/// A connection of its own, even where the user's settings share them.
const ALONE: [&str; 2] = ["ControlMaster=no", "ControlPath=none"];

/// A host: `local`, or `ssh:user@host`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// This one.
    #[default]
    Local,
    /// One that is reached by ssh, without a password, as it is known to ssh.
    Ssh(String),
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("ssh:") {
            _ if text == "local" => Ok(Host::Local),
            Some(target) if !target.is_empty() && !target.starts_with('-') => {
                Ok(Host::Ssh(target.to_owned()))
            }
            _ => Err(format!("{text:?} is no host: give \"local\" or \"ssh:user@host\"")),
        }
    }
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        host.to_string()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Local => f.pad("local"),
            Host::Ssh(target) => write!(f, "ssh:{target}"),
        }
    }
}

/// A word as a POSIX shell reads it back.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

impl Host {
    /// A command on this host, run as this user where that is not who we are there.
    ///
    /// # Errors
    /// When there is no such user here.
    pub fn exec(&self, user: Option<&str>, command: &[&str]) -> Result<Exec, ExecError> {
        self.exec_by(&SHARED, user, command)
    }

    /// As [`Host::exec`], for what takes long: it has a connection of its own, with which it ends.
    ///
    /// # Errors
    /// When there is no such user here.
    pub fn exec_alone(&self, user: Option<&str>, command: &[&str]) -> Result<Exec, ExecError> {
        self.exec_by(&ALONE, user, command)
    }

    fn exec_by(
        &self,
        connection: &[&str],
        user: Option<&str>,
        command: &[&str],
    ) -> Result<Exec, ExecError> {
        match self {
            Host::Local => {
                let (program, args) = command.split_first().expect("a command has a program");
                let other = user.filter(|_| rustix::process::geteuid().is_root());
                let other = other.map(OsUser::find).transpose()?;
                Ok(Exec::new(*program).args(args).as_user(other.as_ref()))
            }
            Host::Ssh(target) => {
                let line: Vec<String> = command.iter().map(|word| quote(word)).collect();
                let line = line.join(" ");
                // Whoever we are there; only root can become somebody else.
                let line = match user {
                    Some(user) => format!(
                        "if [ \"$(id -u)\" = 0 ]; then exec su -s /bin/sh {} -c {}; else exec {line}; fi",
                        quote(user),
                        quote(&format!("LC_ALL=C {line}"))
                    ),
                    None => format!("LC_ALL=C {line}"),
                };
                let mut exec = Exec::new("ssh");
                for name in ["HOME", "SSH_AUTH_SOCK"] {
                    if let Some(value) = std::env::var_os(name) {
                        exec = exec.env(name, value);
                    }
                }
                for option in SSH.iter().chain(connection) {
                    exec = exec.args(["-o", option]);
                }
                Ok(exec.args([target, "--", &line]))
            }
        }
    }

    /// A script of the POSIX shell on this host; `args` are its `$1`, `$2`, …
    ///
    /// # Errors
    /// When there is no such user here.
    pub fn shell(
        &self,
        user: Option<&str>,
        script: &str,
        args: &[&str],
    ) -> Result<Exec, ExecError> {
        self.exec(user, &[&["sh", "-c", script, "sh"], args].concat())
    }

    /// The text of a file; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn read(&self, user: Option<&str>, path: &str) -> Result<Option<String>, ExecError> {
        let script = "if [ -e \"$1\" ]; then echo there; cat -- \"$1\"; fi";
        let output = self.shell(user, script, &[path])?.run().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.strip_prefix("there\n").map(str::to_owned))
    }

    /// Replaces a file as a whole; after a crash there is the old or the new one. A new one can be read by its owner only.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(
        &self,
        user: Option<&str>,
        path: &str,
        text: &str,
    ) -> Result<Output, ExecError> {
        let script = "umask 077 && cat > \"$1.new\" && \
            { [ ! -e \"$1\" ] || chmod --reference=\"$1\" -- \"$1.new\"; } && \
            sync -- \"$1.new\" && mv -- \"$1.new\" \"$1\" && sync -- \"$(dirname -- \"$1\")\"";
        self.shell(user, script, &[path])?.stdin(text).run().await
    }

    /// Removes a file, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, user: Option<&str>, path: &str) -> Result<Output, ExecError> {
        let script = "rm -f -- \"$1\" && sync -- \"$(dirname -- \"$1\")\"";
        self.shell(user, script, &[path])?.run().await
    }
}

/// How a server is started and stopped, and kept from being started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Service {
    /// A unit of systemd.
    Systemd {
        /// Its name.
        unit: String,
    },
    /// An instance of SMF.
    Smf {
        /// Its name.
        fmri: String,
    },
    /// Commands of the POSIX shell.
    Commands {
        /// Starts it, and succeeds when it runs already.
        start: String,
        /// Stops it, and succeeds when it does not run.
        stop: String,
        /// Keeps it from being started by itself, at boot or by a watchdog.
        disable: Option<String>,
        /// Lets it be started by itself again.
        enable: Option<String>,
    },
}

/// What a service is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Start.
    Start,
    /// Stop.
    Stop,
    /// Not to be started by itself any more.
    Disable,
    /// To be started by itself again.
    Enable,
}

impl Service {
    /// The command for a shell; `None` where nothing is to be done.
    pub fn command(&self, order: Order) -> Option<String> {
        match self {
            Service::Systemd { unit } => {
                let verb = match order {
                    Order::Start => "start",
                    Order::Stop => "stop",
                    Order::Disable => "disable",
                    Order::Enable => "enable",
                };
                Some(format!("systemctl {verb} {}", quote(unit)))
            }
            Service::Smf { fmri } => {
                // To disable one in SMF is to stop it; what is temporary ends with the next boot.
                let verb = match order {
                    Order::Start => "enable -s -t",
                    Order::Stop => "disable -s -t",
                    Order::Disable => "disable -s",
                    Order::Enable => "enable -s",
                };
                Some(format!("svcadm {verb} {}", quote(fmri)))
            }
            Service::Commands { start, stop, disable, enable } => match order {
                Order::Start => Some(start.clone()),
                Order::Stop => Some(stop.clone()),
                Order::Disable => disable.clone(),
                Order::Enable => enable.clone(),
            },
        }
    }

    /// Tells it, and waits until it has done so.
    ///
    /// # Errors
    /// When the command fails or takes longer than this.
    pub async fn tell(&self, host: &Host, order: Order, limit: Millis) -> Result<(), ExecError> {
        match self.command(order) {
            Some(command) => host.shell(None, &command, &[])?.limit(limit).run().await.map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_written() {
        for text in ["local", "ssh:root@db1"] {
            assert_eq!(Host::try_from(text.to_owned()).unwrap().to_string(), text);
        }
        for text in ["", "ssh:", "ssh:-oProxyCommand=x", "db1"] {
            let problem = Host::try_from(text.to_owned()).unwrap_err();
            assert!(problem.contains("ssh:user@host"), "{problem}");
        }
    }

    #[tokio::test]
    async fn words_come_through_a_shell_as_they_are() {
        for word in ["plain", "", "two words", "it's", "$HOME `x` \"y\" \\ *", "a\nb"] {
            let script = format!("printf %s {}", quote(word));
            let output = Host::Local.shell(None, &script, &[]).unwrap().run().await.unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[tokio::test]
    async fn files_are_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it's a file").display().to_string();
        let host = Host::Local;
        assert_eq!(host.read(None, &path).await.unwrap(), None);
        host.write(None, &path, "one\n\n").await.unwrap();
        assert_eq!(host.read(None, &path).await.unwrap().as_deref(), Some("one\n\n"));
        host.write(None, &path, "").await.unwrap();
        assert_eq!(host.read(None, &path).await.unwrap().as_deref(), Some(""));
        host.remove(None, &path).await.unwrap();
        host.remove(None, &path).await.unwrap();
        assert_eq!(host.read(None, &path).await.unwrap(), None);
        assert!(host.write(None, "/nowhere/file", "x").await.is_err());
    }
}
