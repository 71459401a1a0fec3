//! Real file systems for tests: btrfs on a loop device, ZFS by `zfs-fuse` (or by the kernel, where it
//! has it) on a pool in a file.
//!
//! A test that needs one runs in namespaces of its own, for mounts and for processes: it is started
//! again in them by [`isolated`]. Whatever it mounts is seen by nobody else, and when it ends, by a panic
//! or killed, the kernel ends every process and every mount that it left. So any number of them run
//! side by side. That needs root; without it the test fails and says so.

use adapters::{clock, exec::Exec};
use cluster::Millis;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Says to a test that it runs in namespaces of its own, and where it may put what it needs.
const PLACE: &str = "MANATEE_TEST_PLACE";
/// How long the daemon may take to answer.
const LIMIT: Millis = Millis(20_000);

/// The directory of a test that runs in namespaces of its own: all that is in it goes with the test.
#[allow(dead_code, reason = "not every test that uses this module asks")]
pub fn own_place() -> Option<PathBuf> {
    std::env::var_os(PLACE).map(PathBuf::from)
}

/// Runs `body` in namespaces of its own, with a directory that goes when it has ended. `test` is the
/// name of the calling test, as the test runner has it.
///
/// # Panics
/// When `body` does, and without root.
pub fn isolated(test: &str, body: impl FnOnce(&Path)) {
    if let Some(place) = std::env::var_os(PLACE) {
        return body(Path::new(&place));
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "{test} mounts a real file system, which needs root: run the tests as root"
    );
    let place = tempfile::Builder::new().prefix("manatee-fs-").tempdir();
    let place = place.expect("a directory");
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    // Whoever is killed in this line, the ones after it end with it.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
        // The first process there has to take leave of those whose parents died: PostgreSQL would
        // take them for alive.
        .args(["--mount-proc", "bash", "-c", "\"$@\"; exit $?", "first"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(PLACE, place.path())
        .output()
        .expect("unshare");
    release_kernel_pool(place.path());
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    // Under another name nothing would have run, with success.
    let ran = text.contains("test result: ok. 1 passed");
    assert!(output.status.success() && ran, "{test}, in namespaces of its own: {}", output.status);
}

/// A btrfs on a loop device.
pub struct BtrfsFile {
    /// Where it is mounted.
    pub root: PathBuf,
}

impl BtrfsFile {
    /// Makes one of that many MiB; they are taken from the disk as they are used.
    pub fn new(place: &Path, mebibytes: u64) -> BtrfsFile {
        let (file, root) = (place.join("btrfs.img"), place.join("btrfs"));
        sparse(&file, mebibytes);
        fs::create_dir(&root).expect("a directory");
        run(Exec::new("mkfs.btrfs").arg("--quiet").arg(&file));
        // The kernel lets go of the loop device with the last mount of it.
        run(Exec::new("mount").args(["-o", "loop"]).arg(&file).arg(&root));
        BtrfsFile { root }
    }

    /// A directory in it for datasets.
    pub fn parent(&self, name: &str) -> PathBuf {
        let parent = self.root.join(name);
        fs::create_dir(&parent).expect("a directory");
        parent
    }
}

/// A ZFS pool in a file, and the daemon that serves it where the kernel does not.
pub struct ZfsFile {
    /// Its name.
    pub pool: String,
    daemon: Option<Child>,
}

impl ZfsFile {
    /// Makes one of that many MiB; they are taken from the disk as they are used.
    pub fn new(place: &Path, mebibytes: u64) -> ZfsFile {
        let daemon = (!in_kernel()).then(|| start_daemon(place));
        let file = place.join("zfs.img");
        sparse(&file, mebibytes);
        let pool = pool_name(place);
        run(Exec::new("zpool")
            .args(["create", "-O", "mountpoint=none", "-O", "canmount=off", &pool])
            .arg(&file));
        ZfsFile { pool, daemon }
    }

    /// A dataset in it for datasets.
    pub fn parent(&self, name: &str) -> String {
        let parent = format!("{}/{name}", self.pool);
        run(Exec::new("zfs")
            .args(["create", "-o", "mountpoint=none", "-o", "canmount=off"])
            .arg(&parent));
        parent
    }

    #[allow(dead_code, reason = "not every test that uses this module asks")]
    /// The process of the daemon, where the kernel does not serve it.
    pub fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    #[allow(dead_code, reason = "not every test that uses this module asks")]
    /// Whether it is the old one, with the dialect that all share and nothing more.
    pub fn is_fuse(&self) -> bool {
        self.daemon.is_some()
    }
}

impl Drop for ZfsFile {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // The namespaces go with everything else. Both fail only if it has ended already.
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }
}

fn in_kernel() -> bool {
    Path::new("/dev/zfs").exists()
}

fn pool_name(place: &Path) -> String {
    let name = place.file_name().expect("a name").to_string_lossy();
    name.replace('.', "x")
}

/// A pool of the kernel belongs to no namespace.
fn release_kernel_pool(place: &Path) {
    let pool = pool_name(place);
    if in_kernel() && Exec::new("zpool").args(["list", &pool]).run_briefly().is_ok() {
        run(Exec::new("zpool").args(["destroy", "-f", &pool]));
    }
}

/// Starts `zfs-fuse` with files of its own: the directories that it uses, and by which its commands
/// find it, are empty ones of this namespace.
fn start_daemon(place: &Path) -> Child {
    for directory in ["/var/run/zfs", "/var/lib/zfs", "/var/lock/zfs"] {
        fs::create_dir_all(directory).expect(directory);
        run(Exec::new("mount").args(["-t", "tmpfs", "none", directory]));
    }
    let log = fs::File::create(place.join("zfs-fuse.log")).expect("a log");
    let mut daemon = Command::new("zfs-fuse")
        .args(["--no-daemon", "--no-kstat-mount"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("zfs-fuse: install it (tools/need.sh filesystems)");
    let start = clock::now();
    while Exec::new("zpool").arg("list").run_briefly().is_err() {
        let ended = daemon.try_wait().expect("its status");
        let log = || fs::read_to_string(place.join("zfs-fuse.log")).unwrap_or_default();
        assert!(ended.is_none(), "zfs-fuse ended: {ended:?}: {}", log());
        assert!(clock::now() - start < LIMIT, "zfs-fuse does not answer: {}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon
}

fn sparse(file: &Path, mebibytes: u64) {
    let made = fs::File::create(file).and_then(|file| file.set_len(mebibytes << 20));
    made.expect("room for a file system");
}

fn run(command: Exec) {
    if let Err(error) = command.run_briefly() {
        panic!("{error}: {:?}", error.cause);
    }
}
