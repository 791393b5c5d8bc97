//! Two machines on this one: each with a network, process ids and a `/proc` of its own, joined by a link with a bandwidth, and
//! each reachable from here.
//!
//! ```text
//!   this machine ── 10.79.1.1/30 ─────── 10.79.1.2   first
//!                └─ 10.79.2.1/30 ─────── 10.79.2.2   second
//!                                        10.79.3.1 ──── 10.79.3.2   first to second
//! ```
//!
//! What runs on them, and the links, are gone when they are dropped. Nothing of this machine's own network is changed.

use std::{
    io,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
};

use crate::{machine::own_pids, process, sys::in_own_session};

/// A queue of this many milliseconds at the link's bandwidth, then packets are dropped, as a switch does.
const QUEUE: &str = "20ms";

/// One of the two.
#[derive(Debug)]
pub struct Host {
    name: String,
    /// This machine's end of the link between them.
    near: String,
    /// How this machine reaches it.
    pub address: Ipv4Addr,
    /// How it reaches this machine.
    pub outside: Ipv4Addr,
    /// How the other one reaches it.
    pub link: Ipv4Addr,
    running: Option<Child>,
}

/// Both.
#[derive(Debug)]
pub struct Network {
    /// The two.
    pub hosts: [Host; 2],
}

impl Network {
    /// Makes them. `rate` is the bandwidth of every link, as tc(8) writes it: `2500mbit`.
    ///
    /// # Errors
    /// When the kernel refuses, or the addresses are used already.
    pub fn new(rate: &str) -> io::Result<Self> {
        let host = |number: u8| Host {
            name: format!("bench-{}-{number}", std::process::id()),
            near: format!("bench{number}"),
            address: Ipv4Addr::new(10, 79, number, 2),
            outside: Ipv4Addr::new(10, 79, number, 1),
            link: Ipv4Addr::new(10, 79, 3, number),
            running: None,
        };
        // From here on they are removed whatever fails.
        let network = Self { hosts: [host(1), host(2)] };
        for host in &network.hosts {
            let Host { name, near, .. } = host;
            ip(&format!("netns add {name}"))?;
            ip(&format!("link add {near} type veth peer name out netns {name}"))?;
            ip(&format!("addr add {}/30 dev {near}", host.outside))?;
            ip(&format!("link set {near} up"))?;
            ip(&format!("-n {name} addr add {}/30 dev out", host.address))?;
            for device in ["lo", "out"] {
                ip(&format!("-n {name} link set {device} up"))?;
            }
            shape(&[near], rate)?;
            shape(&["-n", name, "out"], rate)?;
        }
        let [first, second] = &network.hosts;
        ip(&format!("link add other netns {} type veth peer name other netns {}", first.name, second.name))?;
        for host in &network.hosts {
            ip(&format!("-n {} addr add {}/30 dev other", host.name, host.link))?;
            ip(&format!("-n {} link set other up", host.name))?;
            shape(&["-n", &host.name, "other"], rate)?;
        }
        Ok(network)
    }
}

impl Host {
    /// Starts the program that this machine is there for; all that runs on it ends with it. Its output is a pipe.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, program: &Command) -> io::Result<&mut Child> {
        let inside = own_pids(program);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(inside.get_program()).args(inside.get_args());
        command.envs(inside.get_envs().filter_map(|(name, value)| Some((name, value?))));
        in_own_session(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(self.running.insert(command.spawn()?))
    }

    /// What runs another program beside that, in a session of its own.
    ///
    /// # Errors
    /// When nothing was started yet.
    pub fn beside(&self, program: &str) -> io::Result<Command> {
        let started = self.running.as_ref().map(|child| child.id() as i32);
        // `unshare`, then the init of the pid namespace.
        let init = started.and_then(|pid| process::children(pid).first().copied());
        let init = init.ok_or_else(|| io::Error::other("nothing runs on that machine"))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &init.to_string(), "--pid", "--net", "--mount", "setsid"]);
        // What was opened outside cannot be found in there.
        command.args(["sh", "-c", "exec \"$@\" < /dev/null > /dev/null 2>&1", "sh", program]);
        in_own_session(&mut command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(mut running) = host.running.take() {
                let _ = running.kill();
                let _ = running.wait();
            }
            for words in [["link", "del", &host.near], ["netns", "del", &host.name]] {
                let _ = Command::new("ip").args(words).stderr(Stdio::null()).status();
            }
        }
    }
}

fn ip(words: &str) -> io::Result<()> {
    run(Command::new("ip").args(words.split(' ')))
}

/// Limits what leaves a device: the last word, after options of tc(8).
fn shape(device: &[&str], rate: &str) -> io::Result<()> {
    let Some((device, options)) = device.split_last() else { return Ok(()) };
    let mut tc = Command::new("tc");
    tc.args(options).args(["qdisc", "add", "dev", device, "root", "tbf"]);
    run(tc.args(["rate", rate, "burst", "1mb", "latency", QUEUE]))
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(io::Error::other(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())))
        }
    }
}
