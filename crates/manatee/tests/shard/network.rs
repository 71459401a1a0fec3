//! Hosts of their own for peers and servers, on this one machine: network namespaces on a bridge,
//! which can be cut from each other, one way or both, for established connections, too.
//!
//! Contract: everything is made inside namespaces (network, processes, mounts) of the test's own,
//! made by [`alone`]: nothing of it can reach the machine's network, two tests cannot meet, and the
//! kernel takes all of it away with the test's last process.

use anyhow::{Context, Result, bail, ensure};
use manatee::shard::Host;
use std::{
    env,
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

/// Set in the environment of a test that has namespaces of its own.
const ALONE: &str = "MANATEE_TEST_ALONE";

/// Runs the body of the test `name` (with its module: `apart::a_test`) in namespaces of its own, by
/// starting this program anew in them for this one test.
///
/// # Errors
/// When it fails there, or namespaces cannot be had.
pub fn alone(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if env::var_os(ALONE).is_some() {
        return body();
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "this test makes network namespaces, which only root may: run it as root (sudo make test)"
    );
    // Whoever loses its parent becomes a child of the first process of the namespace; a shell waits
    // for such children, which a test does not.
    // And whoever is killed in this line, the ones after it end with it.
    let output = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"])
        .args(["bash", "-c", "\"$@\"; exit $?", "first"])
        .arg(env::current_exe()?)
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .context("cannot run setpriv (of util-linux)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "it failed in namespaces of its own; see above");
    ensure!(text.contains("1 passed"), "no test has the name {name:?}");
    Ok(())
}

/// Where [`Network::address`] counts from.
const SUBNET: [u8; 3] = [10, 77, 0];
/// The test's own address.
const OUTSIDE: u8 = 254;

/// The bridge table: pairs of addresses of which the first cannot send to the second.
const TABLE: &str = "
table bridge manatee {
    set cut { type ipv4_addr . ipv4_addr; }
    chain passing { type filter hook forward priority 0; ip saddr . ip daddr @cut counter drop; }
    chain leaving { type filter hook output priority 0; ip saddr . ip daddr @cut counter drop; }
    chain arriving { type filter hook input priority 0; ip saddr . ip daddr @cut counter drop; }
}";

/// Some hosts, numbered from 1, and the test itself, all on one wire.
#[derive(Debug)]
pub struct Network {
    hosts: u8,
}

impl Network {
    /// Makes it. Only within [`alone`], and once.
    ///
    /// # Errors
    /// When a command fails.
    pub fn make(hosts: u8) -> Result<Network> {
        ensure!(env::var_os(ALONE).is_some(), "a network is made within `alone` only");
        // `ip netns` keeps names there; ours are nobody else's.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"]).or_else(|_| {
            std::fs::create_dir_all("/run/netns")?;
            run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"])
        })?;
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "hub", "type", "bridge"])?;
        let outside = format!("{}/24", outside());
        run("ip", &["address", "add", &outside, "dev", "hub"])?;
        run("ip", &["link", "set", "hub", "up"])?;
        for number in 1..=hosts {
            add_host(number)?;
        }
        run("nft", &[TABLE])?;
        Ok(Network { hosts })
    }

    /// The host of this number.
    pub fn host(&self, number: u8) -> Host {
        assert!((1..=self.hosts).contains(&number), "there is no host {number}");
        let enter = ["ip", "netns", "exec", &name(number)].map(Into::into).to_vec();
        Host { ip: self.address(number), enter }
    }

    /// The address of the host of this number.
    pub fn address(&self, number: u8) -> IpAddr {
        Ipv4Addr::from(address(number)).into()
    }

    /// From now on, nothing that `from` sends reaches `to`.
    pub fn cut_one_way(&self, from: IpAddr, to: IpAddr) -> Result<()> {
        self.change("add", from, to)
    }

    /// From now on, these two do not reach each other.
    pub fn cut(&self, one: IpAddr, other: IpAddr) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// From now on, this one and everybody else, the test included, do not reach each other.
    pub fn isolate(&self, one: IpAddr) -> Result<()> {
        self.others(one).try_for_each(|other| self.cut(one, other))
    }

    /// Takes back every cut.
    pub fn heal(&self) -> Result<()> {
        run("nft", &["flush set bridge manatee cut"])
    }

    /// Everybody but this one.
    fn others(&self, one: IpAddr) -> impl Iterator<Item = IpAddr> {
        let all = (1..=self.hosts).chain([OUTSIDE]);
        all.map(|number| self.address(number)).filter(move |other| *other != one)
    }

    fn change(&self, verb: &str, from: IpAddr, to: IpAddr) -> Result<()> {
        run("nft", &[&format!("{verb} element bridge manatee cut {{ {from} . {to} }}")])
    }
}

/// The address of the test itself, for hosts.
pub fn outside() -> Ipv4Addr {
    address(OUTSIDE).into()
}

fn name(number: u8) -> String {
    format!("h{number}")
}

fn address(number: u8) -> [u8; 4] {
    let [a, b, c] = SUBNET;
    [a, b, c, number]
}

fn add_host(number: u8) -> Result<()> {
    let (name, wire) = (name(number), format!("w{number}"));
    let address = format!("{}/24", Ipv4Addr::from(address(number)));
    run("ip", &["netns", "add", &name])?;
    run("ip", &["link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
    run("ip", &["link", "set", &wire, "master", "hub", "up"])?;
    run("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])?;
    run("ip", &["-n", &name, "link", "set", "lo", "up"])?;
    run("ip", &["-n", &name, "link", "set", "eth0", "up"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {}", command()))?;
    if !output.status.success() {
        bail!("{}: {}: {}", command(), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Cuts are cuts: for new connections, for one that was there before, one way or both.
#[test]
fn what_is_cut_does_not_arrive() -> Result<()> {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    alone("network::what_is_cut_does_not_arrive", || {
        let network = Network::make(2)?;
        let outside: IpAddr = outside().into();
        let ping = |from: u8, to: u8| {
            let to = network.address(to).to_string();
            run("ip", &["netns", "exec", &name(from), "bash", "-c", &probe(&to)])
        };
        // A listener on the test's own address stands for both ends of an established connection.
        let listener = TcpListener::bind((outside, 7000))?;
        let mut child = Command::new("ip")
            .args(["netns", "exec", &name(1), "bash", "-c"])
            .arg(format!(
                "exec 3<>/dev/tcp/{outside}/7000; while read -r -u 3 x; do echo $x >&3; done"
            ))
            .spawn()?;
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let echo = |stream: &mut TcpStream| -> std::io::Result<u8> {
            stream.write_all(b"x\n")?;
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes)?;
            Ok(bytes[0])
        };
        assert_eq!(echo(&mut stream)?, b'x');
        network.cut_one_way(network.address(1), outside)?;
        echo(&mut stream).expect_err("an echo through a cut");
        network.heal()?;
        child.kill()?;
        child.wait()?;

        let closed = "the port is closed, so its host was reached";
        assert!(ping(1, 2).is_ok(), "{closed}");
        network.cut(network.address(1), network.address(2))?;
        ping(1, 2).expect_err("reached through a cut");
        network.heal()?;
        assert!(ping(2, 1).is_ok(), "{closed}");
        network.isolate(network.address(2))?;
        ping(1, 2).expect_err("reached though isolated");
        Ok(())
    })
}

/// Succeeds when the host answers, if only by refusing the connection, within three seconds.
fn probe(host: &str) -> String {
    format!("timeout 3 bash -c '</dev/tcp/{host}/9' 2>/dev/null; [ $? -ne 124 ]")
}
