//! Commands as streams: what one prints is read while it runs, what one takes is written to it.
//!
//! A stream is read and written as any other of the runtime, or, once and for all, in *parts*: whole buffers,
//! by threads that may block. Of a long stream that takes far less of the processors: a pipe that is waited for by
//! `epoll` wakes the runtime at each of the small pieces in which file systems send and receive, a blocked reader
//! only when the pipe was empty, a blocked writer when it was full.
//!
//! Nothing is kept but what the pipe to the command holds (1 MiB on Linux, where that may be had), so that
//! whoever is slower makes the other wait. A stream that ended well is never mistaken for one that broke off: reading
//! gives its end only after the command has succeeded, and a writer that is dropped before
//! `shutdown` kills the command instead of letting it see an end of its input.

use super::{Exec, ExecCause, ExecError, Group, Kept, read};
use rustix::buffer::spare_capacity;
use std::{
    fmt,
    fs::File,
    future::{Future, poll_fn},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    process::{Child, ChildStdin, ChildStdout},
    sync::oneshot,
};

/// How much a pipe is to hold, in bytes: the most that Linux grants to everybody.
#[cfg(target_os = "linux")]
const PIPE: usize = 1 << 20;

/// How a command ended, when it has.
type Ending = Pin<Box<dyn Future<Output = Result<(), ExecError>> + Send>>;

/// Our end of a pipe to a command.
enum Pipe<P> {
    /// Waited for by the runtime.
    Polled(P),
    /// Waited for by threads. The one at work has it as well.
    Blocking(Arc<File>),
}

impl<P> Pipe<P> {
    /// As threads have it, from now on.
    fn blocking(
        slot: &mut Option<Self>,
        convert: fn(P) -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<File>> {
        let file = match slot.take() {
            Some(Pipe::Polled(pipe)) => Arc::new(File::from(convert(pipe)?)),
            Some(Pipe::Blocking(file)) => file,
            None => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        *slot = Some(Pipe::Blocking(file.clone()));
        Ok(file)
    }

    /// As the runtime has it.
    fn polled(&mut self) -> io::Result<&mut P> {
        match self {
            Pipe::Polled(pipe) => Ok(pipe),
            Pipe::Blocking(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this stream is taken in parts"))
            }
        }
    }
}

/// What a running command prints. Dropping it kills the command.
pub struct Reader {
    stdout: Option<Pipe<ChildStdout>>,
    drained: bool,
    end: End,
}

/// What a running command takes. Dropping it before [`AsyncWrite::poll_shutdown`] has succeeded kills
/// the command.
pub struct Writer {
    // Dropped first: it kills, where an end of the input would be taken for the end of the stream.
    end: End,
    /// `None` once all is written.
    stdin: Option<Pipe<ChildStdin>>,
    /// A part is being written, or was given up half-way.
    amid: bool,
}

/// A command on its way to its end; killed when this is dropped before it.
struct End {
    ending: Option<Ending>,
    failed: bool,
    group: Group,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("drained", &self.drained).finish_non_exhaustive()
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("open", &self.stdin.is_some()).finish_non_exhaustive()
    }
}

impl Exec {
    /// Starts it and hands over its standard output as it comes. An end of it is an end of the
    /// command with success; a failure comes as an error whose source is an [`ExecError`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn reader(self) -> Result<Reader, ExecError> {
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| self.error(ExecCause::Spawn(source)))?;
        let stdout = child.stdout.take().expect("it was asked for");
        widen(&stdout);
        Ok(Reader { stdout: Some(Pipe::Polled(stdout)), drained: false, end: End::of(child, self) })
    }

    /// Starts it and takes what is to be its standard input. A command that takes no more shows as a
    /// broken pipe; `shutdown` closes its input, waits for its end, and says by an error whose source
    /// is an [`ExecError`] what was wrong.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn writer(self) -> Result<Writer, ExecError> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| self.error(ExecCause::Spawn(source)))?;
        let stdin = child.stdin.take().inspect(widen).map(Pipe::Polled);
        Ok(Writer { end: End::of(child, self), stdin, amid: false })
    }
}

/// Lets a pipe hold more: the larger it is, the less often its ends have to take turns. Where the system
/// refuses it stays as it is.
fn widen(pipe: &impl AsFd) {
    #[cfg(target_os = "linux")]
    rustix::pipe::fcntl_setpipe_size(pipe, PIPE).ok();
    #[cfg(not(target_os = "linux"))]
    let _ = pipe;
}

impl End {
    fn of(mut child: Child, exec: Exec) -> End {
        let group = Group::of(&child);
        let stderr = child.stderr.take();
        // Read at once and to its end: a command whose messages nobody reads would stand still.
        let messages = tokio::spawn(async move {
            let mut kept = Kept::default();
            read(stderr, &mut kept, |_| {}).await.map(|()| kept.bytes())
        });
        let ending = Box::pin(async move {
            let broke = |source| exec.error(ExecCause::Stream(source));
            let status = child.wait().await.map_err(broke)?;
            let output = messages.await.map_err(io::Error::other).flatten().map_err(broke)?;
            if status.success() {
                return Ok(());
            }
            Err(exec.error(ExecCause::Failed { status, output: exec.tail(&output) }))
        });
        End { ending: Some(ending), failed: false, group }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(ending) = &mut self.ending {
            let result = ready!(ending.as_mut().poll(cx));
            self.ending = None;
            self.group.ended();
            if let Err(error) = result {
                self.failed = true;
                return Poll::Ready(Err(io::Error::other(error)));
            }
        }
        // Asked again after the end.
        Poll::Ready(if self.failed { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) })
    }
}

impl Reader {
    /// The next so many bytes; fewer only at the end of the stream, which is one as for [`AsyncRead`]. From the first
    /// call on the stream is read in parts alone. One that is given up loses what it had read.
    ///
    /// # Errors
    /// As [`AsyncRead`].
    pub async fn part(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let pipe = Pipe::blocking(&mut self.stdout, ChildStdout::into_owned_fd)?;
        // When it is given up, the command is killed with this reader, which ends the thread.
        let part = on_a_thread(move || read_part(&pipe, length)).await?;
        if part.len() < length {
            poll_fn(|cx| self.end.poll(cx)).await?;
        }
        Ok(part)
    }
}

/// Does what may wait for a command as long as that takes. Not in the runtime's pool of threads: it is bounded, others
/// need it in time, and the runtime would wait for its work at its end.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    // Nobody waits for it any more when it was given up.
    std::thread::Builder::new().name("stream".into()).spawn(move || drop(done.send(work())))?;
    result.await.map_err(io::Error::other)?
}

fn read_part(pipe: &File, length: usize) -> io::Result<Vec<u8>> {
    let mut part = Vec::with_capacity(length);
    while part.len() < length {
        match rustix::io::read(pipe, spare_capacity(&mut part)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(part)
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.drained {
            let before = buffer.filled().len();
            let Some(stdout) = &mut self.stdout else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            ready!(Pin::new(stdout.polled()?).poll_read(cx, buffer))?;
            if buffer.filled().len() > before || buffer.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            self.drained = true;
        }
        self.end.poll(cx)
    }
}

impl Writer {
    /// Writes all of this, and gives it back to be filled again. From the first call on the stream is written in
    /// parts alone. After one that was given up, there is no end but [`Writer::abort`].
    ///
    /// # Errors
    /// As [`AsyncWrite`].
    pub async fn put(&mut self, part: Vec<u8>) -> io::Result<Vec<u8>> {
        if self.amid {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let pipe = Pipe::blocking(&mut self.stdin, ChildStdin::into_owned_fd)?;
        self.amid = true;
        let written = on_a_thread(move || (&*pipe).write_all(&part).map(|()| part)).await;
        self.amid = false;
        written
    }

    /// Kills the command, and waits until it has ended.
    pub async fn abort(mut self) {
        self.end.group.kill();
        self.stdin = None;
        // How it ended is known: by us.
        drop(std::future::poll_fn(|cx| self.end.poll(cx)).await);
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(stdin) = &mut self.stdin else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        Pin::new(stdin.polled()?).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a pipe holds nothing back
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.amid {
            // An end of the input would be taken for the end of the stream.
            self.end.group.kill();
        }
        self.stdin = None;
        ready!(self.end.poll(cx))?;
        Poll::Ready(if self.amid { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn shell(script: &str) -> Exec {
        Exec::new("sh").arg("-c").arg(script)
    }

    fn told(error: &io::Error) -> String {
        let inner = error.get_ref().expect("what failed");
        format!("{inner}: {}", inner.source().expect("why"))
    }

    #[tokio::test]
    async fn a_stream_ends_only_with_success() {
        let mut text = String::new();
        let mut reader = shell("echo all; echo note >&2").reader().expect("started");
        reader.read_to_string(&mut text).await.expect("all of it");
        assert_eq!(text, "all\n");

        let mut reader = shell("echo half; echo wrong >&2; exit 3").reader().expect("started");
        let mut bytes = Vec::new();
        let error = reader.read_to_end(&mut bytes).await.expect_err("exit 3");
        assert_eq!(bytes, b"half\n");
        assert!(told(&error).contains("exit status: 3: wrong"), "{}", told(&error));
    }

    #[tokio::test]
    async fn what_is_written_arrives_and_failures_are_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        let mut writer = Exec::new("dd")
            .arg(format!("of={}", file.display()))
            .arg("status=none")
            .writer()
            .expect("started");
        writer.write_all(&[7; 300_000]).await.expect("written");
        writer.shutdown().await.expect("ended well");
        assert_eq!(std::fs::read(&file).expect("the file"), [7; 300_000]);

        let mut writer = shell("echo refused >&2; exit 1").writer().expect("started");
        let error = loop {
            if let Err(error) = writer.write_all(&[0; 65536]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = writer.shutdown().await.expect_err("exit 1");
        assert!(told(&error).contains("refused"), "{}", told(&error));

        let mut writer = shell("cat >/dev/null; exit 4").writer().expect("started");
        writer.write_all(b"x").await.expect("written");
        let error = writer.shutdown().await.expect_err("exit 4");
        assert!(told(&error).contains("exit status: 4"), "{}", told(&error));
    }

    #[tokio::test]
    async fn parts_are_whole_and_end_as_streams_do() {
        let mut reader = shell("printf 12345; sleep 0.05; printf 678").reader().expect("started");
        assert_eq!(reader.part(7).await.expect("a part"), b"1234567");
        assert_eq!(reader.part(7).await.expect("the end"), b"8");
        assert_eq!(reader.part(7).await.expect("still the end"), b"");
        let mixed = reader.read_u8().await.expect_err("in parts");
        assert_eq!(mixed.kind(), io::ErrorKind::Unsupported);

        let mut reader = shell("echo half; echo wrong >&2; exit 3").reader().expect("started");
        let error = reader.part(100).await.expect_err("exit 3");
        assert!(told(&error).contains("exit status: 3: wrong"), "{}", told(&error));

        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        let mut writer = shell(&format!("cat >{}", file.display())).writer().expect("started");
        for _ in 0..2 {
            let part = writer.put(vec![7; 3 << 20]).await.expect("written");
            assert_eq!(part.len(), 3 << 20);
        }
        writer.shutdown().await.expect("ended well");
        assert!(std::fs::read(&file).expect("the file") == vec![7; 6 << 20]);

        let mut writer = shell("echo refused >&2; exit 1").writer().expect("started");
        let error = writer.put(vec![0; 3 << 20]).await.expect_err("exit 1");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let error = writer.shutdown().await.expect_err("exit 1");
        assert!(told(&error).contains("refused"), "{}", told(&error));
    }

    /// What was given up may be there in part: the command never sees an end after it.
    #[tokio::test]
    async fn a_part_that_was_given_up_has_no_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let (go, ended) = (directory.path().join("go"), directory.path().join("ended"));
        let wait = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
        let script = format!("{wait}; cat >/dev/null; : >{}", ended.display());
        let mut writer = shell(&script).writer().expect("started");
        let put = tokio::time::timeout(Duration::from_millis(20), writer.put(vec![0; 3 << 20]));
        put.await.expect_err("the pipe is full");
        std::fs::write(&go, "").expect("a file");
        let again = writer.put(vec![0; 1]).await.expect_err("given up");
        assert_eq!(again.kind(), io::ErrorKind::BrokenPipe);
        writer.shutdown().await.expect_err("killed");
        assert!(!ended.exists());
    }

    /// One that is dropped half-way is killed: it never sees an end of its input.
    #[tokio::test]
    async fn a_dropped_writer_is_no_end_of_input() {
        let directory = tempfile::tempdir().expect("a directory");
        let (ready, ended) = (directory.path().join("ready"), directory.path().join("ended"));
        let script = format!("echo $$ >{}; cat; : >{}", ready.display(), ended.display());
        let writer = shell(&script).writer().expect("started");
        let wait = async {
            while !std::fs::read_to_string(&ready).is_ok_and(|pid| pid.ends_with('\n')) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it started");
        let pid = std::fs::read_to_string(&ready).expect("its id");
        drop(writer);
        let exe = format!("/proc/{}/exe", pid.trim());
        let gone = async {
            while std::fs::read_link(&exe).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("it is killed");
        assert!(!ended.exists());
    }
}
