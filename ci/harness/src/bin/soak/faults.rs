//! What can go wrong, and how it is made to.

use std::thread::sleep;
use std::time::Duration;

use migration_harness::process;

use crate::random::Random;
use crate::tally::Tally;
use crate::world::{PageServer, World};

/// A fault of the store.
#[derive(Clone, Debug)]
pub enum StoreFault {
    /// None.
    None,
    /// A plan of the fault-injecting store, for the local one.
    Plan(String),
    /// Requests are refused, bodies cut, answers lost, by the S3 server.
    Server(ServerFault),
}

/// What the S3 server does.
#[derive(Clone, Copy, Debug)]
pub enum ServerFault {
    /// Refuses so many requests.
    Refuse(u64),
    /// Cuts so many bodies.
    Cut(u64),
    /// Loses so many PUTs.
    Lose(u64),
    /// Carries so many PUTs out without an answer.
    Silent(u64),
    /// Refuses everything for a while.
    Away(Duration),
}

impl StoreFault {
    /// One that disturbs writing.
    pub fn of_writing(world: &World, random: &mut Random) -> Self {
        match world.s3() {
            None => StoreFault::Plan(match random.below(3) {
                0 => format!("seed={},errors=0.1", random.below(1000)),
                1 => format!("seed={},ambiguous=0.3", random.below(1000)),
                _ => format!("seed={},latency=5ms,outage=50ms+200ms", random.below(1000)),
            }),
            Some(_) => StoreFault::Server(match random.below(4) {
                0 => ServerFault::Refuse(1 + random.below(20)),
                1 => ServerFault::Lose(1 + random.below(6)),
                2 => ServerFault::Silent(1 + random.below(6)),
                _ => ServerFault::Away(Duration::from_millis(100 + random.below(900))),
            }),
        }
    }

    /// One that disturbs reading.
    pub fn of_reading(world: &World, random: &mut Random) -> Self {
        match world.s3() {
            None => StoreFault::Plan(match random.below(4) {
                0 => format!("seed={},latency=10ms,errors=0.05", random.below(1000)),
                1 => format!("seed={},latency=10ms,flip=0.02", random.below(1000)),
                2 => format!("seed={},latency=10ms,truncate=0.02", random.below(1000)),
                _ => format!("seed={},latency=10ms,outage=300ms+800ms", random.below(1000)),
            }),
            Some(_) => StoreFault::Server(match random.below(3) {
                0 => ServerFault::Refuse(1 + random.below(20)),
                1 => ServerFault::Cut(1 + random.below(10)),
                _ => ServerFault::Away(Duration::from_millis(200 + random.below(1500))),
            }),
        }
    }

    /// Whether what comes from the store may be damaged again and again.
    pub fn damages(&self) -> bool {
        matches!(self, StoreFault::Plan(plan) if plan.contains("flip") || plan.contains("truncate"))
    }

    /// For the environment of a command.
    pub fn plan(&self) -> Option<&str> {
        match self {
            StoreFault::Plan(plan) => Some(plan),
            _ => None,
        }
    }

    /// Makes the server misbehave from now on, and counts it.
    pub fn begin(&self, world: &World, tally: &mut Tally) {
        let kind = match self {
            StoreFault::None => return,
            StoreFault::Plan(plan) if plan.contains("flip") => "store: flipped bits",
            StoreFault::Plan(plan) if plan.contains("truncate") => "store: truncated bodies",
            StoreFault::Plan(plan) if plan.contains("ambiguous") => "store: ambiguous puts",
            StoreFault::Plan(plan) if plan.contains("outage") => "store: outage",
            StoreFault::Plan(plan) if plan.contains("errors") => "store: errors",
            StoreFault::Plan(_) => "store: latency",
            StoreFault::Server(ServerFault::Refuse(_)) => "s3: requests refused",
            StoreFault::Server(ServerFault::Cut(_)) => "s3: bodies cut",
            StoreFault::Server(ServerFault::Lose(_)) => "s3: puts lost",
            StoreFault::Server(ServerFault::Silent(_)) => "s3: puts not answered",
            StoreFault::Server(ServerFault::Away(_)) => "s3: outage",
        };
        tally.fault(kind);
        if let (StoreFault::Server(fault), Some(server)) = (self, world.s3()) {
            match *fault {
                ServerFault::Refuse(count) => server.refuse_next(count),
                ServerFault::Cut(count) => server.cut_next_gets(count),
                ServerFault::Lose(count) => server.lose_next_puts(count),
                ServerFault::Silent(count) => server.carry_out_next_puts_silently(count),
                ServerFault::Away(_) => server.refuse_next(u64::MAX),
            }
        }
    }

    /// How long an outage lasts.
    pub fn lasts(&self) -> Option<Duration> {
        match self {
            StoreFault::Server(ServerFault::Away(time)) => Some(*time),
            _ => None,
        }
    }
}

/// Ends every misbehaviour of the S3 server.
pub fn calm(world: &World) {
    if let Some(server) = world.s3() {
        server.refuse_next(0);
        server.cut_next_gets(0);
        server.lose_next_puts(0);
        server.carry_out_next_puts_silently(0);
        server.delay_answers(Duration::ZERO);
        server.delay_large_ranges(0, Duration::ZERO);
    }
}

/// Processes around a page server that are killed, as nearly at once as can be.
const VICTIMS: [(&str, [bool; 3]); 6] = [
    ("kill -9: page server", [true, false, false]),
    ("kill -9: guardian", [false, true, false]),
    ("kill -9: standby", [false, false, true]),
    ("kill -9: page server and guardian", [true, true, false]),
    ("kill -9: page server and standby", [true, false, true]),
    ("kill -9: guardian and standby", [false, true, true]),
];

/// Kills some of them, once to three times, while there is a page server.
pub fn kill_around_page_server(world: &World, random: &mut Random, tally: &mut Tally) {
    for _ in 0..1 + random.below(3) {
        sleep(random.time(Duration::from_millis(250)));
        let (name, victims) = *random.pick(&VICTIMS);
        let Some(PageServer { server, guardian, standby }) = world.page_server() else { return };
        let pids: Vec<i32> = [server, guardian, standby]
            .iter()
            .zip(victims)
            .filter_map(|(pid, hit)| pid.filter(|_| hit))
            .collect();
        if pids.len() < victims.iter().filter(|hit| **hit).count() {
            continue;
        }
        pids.into_iter().for_each(|pid| drop(process::end(pid)));
        tally.fault(name);
    }
}

/// Kills the criu that works for a command, if it has one by now.
///
/// Nobody can make that harmless: while CRIU puts its code into a thread, and while it has a thread execute a call, the
/// thread's registers are CRIU's. The kernel lets it run on from there when CRIU is gone, into a breakpoint. Of 114 deaths of
/// a plain `criu dump --leave-running`, spread over its whole time, 7 ended a tree of five threads.
pub fn kill_criu(agent: i32, tally: &mut Tally) {
    let criu = process::tree(agent).into_iter().find(|&pid| process::name(pid).as_deref() == Some("criu"));
    if let Some(criu) = criu {
        let _ = process::end(criu);
        tally.fault(CRIU_KILLED);
    }
}

const CRIU_KILLED: &str = "kill -9: criu";

/// Whether what ended the tree is a trap or a fault after CRIU was killed.
pub fn died_with_criu(world: &World, tally: &Tally) -> bool {
    const TRAPS: [i32; 4] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS];
    let ended_by = process::ended_by(world.pid());
    tally.trail.iter().any(|step| step == CRIU_KILLED)
        && ended_by.is_some_and(|signal| TRAPS.contains(&signal))
}
