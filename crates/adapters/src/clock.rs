//! The boot clock: the one clock that leases are kept by.

use cluster::Monotonic;
use rustix::time::{ClockId, clock_gettime};

/// Now, by the boot clock: shared by all processes of this machine, never set back, and running on
/// while the machine is suspended. (FreeBSD and illumos have no separate boot clock; their
/// monotonic one does not stop.)
pub fn now() -> Monotonic {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    Monotonic(time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000)
}
