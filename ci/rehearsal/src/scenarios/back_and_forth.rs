//! One application moves from node to node, many times, by strategies and through faults that follow from a seed. Whatever happens,
//! it goes on by itself, with all data and every write that was acknowledged.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use migration_harness::pattern::scramble;
use serde_json::json;

use super::steps::{expect, one_pod, other_node, started};
use crate::{
    Failure,
    application::{Application, Status},
    cluster::{get, kubectl},
    faults::{Slow, StoreDown, Unplugged, kill_agent, kill_container, kill_operator, kill_page_server},
    observer::{self, Observer, Seen},
    timeline::Timeline,
};

const STRATEGIES: [&str; 4] = ["full", "lazy-storage", "lazy-direct", "lazy-hybrid"];
const STAGES: [&str; 4] = ["Preparing", "Dumping", "Restoring", "Filling"];
/// A link on which pages take seconds.
const SLOW: &str = "16mbit";
/// Three of ten moves are left alone.
const FAULTS: [Fault; 10] = [
    Fault::None,
    Fault::None,
    Fault::None,
    Fault::Source,
    Fault::Target,
    Fault::TargetContainer,
    Fault::PageServer,
    Fault::Operator,
    Fault::Store,
    Fault::Link,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    None,
    /// The source's agent is killed.
    Source,
    /// The target's agent is killed.
    Target,
    /// The target's agent is killed with its container, and all it serves pages to.
    TargetContainer,
    /// What serves the application's pages is killed.
    PageServer,
    /// The operator that leads is killed.
    Operator,
    /// The store is silent, or refuses connections, for some seconds.
    Store,
    /// The link of a node is cut for some seconds.
    Link,
}

pub fn back_and_forth(mib: u64, moves: u64, seed: u64) -> Result<(), Failure> {
    let (app, digest) = started("forth", "lazy-storage", mib)?;
    let mut timeline = Timeline::begin(&format!("{moves} moves, by seed {seed}"));
    let mut outcomes: BTreeMap<(Fault, String), u32> = BTreeMap::new();
    let (mut moved, mut writes, mut lost) = (0, 0, 0);
    for number in 1..=moves {
        let mut random = Random(scramble(seed ^ scramble(number)));
        let (strategy, fault) = (*random.pick(&STRATEGIES), *random.pick(&FAULTS));
        let stage = *random.pick(&STAGES);
        let plan = Plan { strategy, fault, stage }.possible();
        let name = format!("{number}: {strategy}, {}", plan.describe());
        let (status, seen, took) = one(&app, &digest, &plan, &mut random)
            .map_err(|error| format!("{name} (seed {seed}): {error}"))?;
        let stage = status.migration("stage").to_owned();
        timeline.note(format!(
            "{name}: {stage} after {:.1} s, on {}; longest pause {} ms {}",
            took.as_secs_f64(),
            status.node(),
            seen.longest.map_or(0, |(gap, _)| gap.as_millis()),
            status.migration("message")
        ));
        if seen.lost > 0 {
            timeline.note(format!(
                "{number}: {} writes of before the last page came are gone with the target",
                seen.lost
            ));
        }
        (writes, lost) = (writes + seen.writes, lost + seen.lost);
        moved += u64::from(stage == "Succeeded");
        *outcomes.entry((fault, stage)).or_default() += 1;
    }
    for ((fault, stage), count) in outcomes {
        timeline.note(format!("{fault:?}: {count} times {stage}"));
    }
    timeline.note(format!(
        "{moved} times moved, {} times it went on where it was; {writes} writes acknowledged, {lost} lost; nothing was done by hand",
        moves - moved
    ));
    one_pod(&app)
}

/// What is to happen.
struct Plan {
    strategy: &'static str,
    fault: Fault,
    stage: &'static str,
}

impl Plan {
    /// Pages are served only once it runs at the target.
    fn possible(self) -> Self {
        if self.fault == Fault::PageServer { Self { stage: "Filling", ..self } } else { self }
    }

    fn describe(&self) -> String {
        match self.fault {
            Fault::None => "undisturbed".to_owned(),
            fault => format!("{fault:?} at {}", self.stage),
        }
    }
}

/// One move, and a comparison of all data. It may end with the application where it was.
fn one(
    app: &Application,
    digest: &str,
    plan: &Plan,
    random: &mut Random,
) -> Result<(Status, Seen, Duration), Failure> {
    // What an application does between its restore and its last page is gone with its page server: it goes on from its freeze.
    let may_go_back = plan.fault == Fault::TargetContainer && plan.strategy != "full";
    let observer = Observer::start(app, may_go_back)?;
    let begun = Instant::now();
    let status = go(app, plan, random)?;
    let took = begun.elapsed();
    app.wait_until_migratable()?;
    let seen = observer.finish()?;
    observer::compare_without(app, digest)?;
    expect(seen.lost == 0 || may_go_back, "acknowledged writes are lost")?;
    Ok((status, seen, took))
}

/// Asks for it, and has go wrong what is planned.
fn go(app: &Application, plan: &Plan, random: &mut Random) -> Result<Status, Failure> {
    let patch = json!({"spec": {"migrationPolicy": {"strategy": plan.strategy}}}).to_string();
    kubectl(&["patch", "mapp", &app.name, "--type=merge", "-p", &patch])?;
    let before = app.status()?.migration("id").to_owned();
    app.trigger("back-and-forth")?;
    if plan.fault == Fault::PageServer {
        // So that pages still arrive when it is found.
        let _slow = Slow::link(&other_node(app.status()?.node())?, SLOW)?;
        inflict(&app.wait_for_stage(&before, plan.stage)?, plan.fault, random)?;
    } else if plan.fault != Fault::None {
        let reached = app.wait_for_stage(&before, plan.stage)?;
        thread::sleep(Duration::from_millis(random.below(300)));
        inflict(&reached, plan.fault, random)?;
    }
    app.wait_until_over(&before)
}

fn inflict(reached: &Status, fault: Fault, random: &mut Random) -> Result<(), Failure> {
    let pod = |field: &str| get(&["pod", reached.migration(field)]);
    // What is gone already, or does not run yet, cannot be killed.
    let told = |result: Result<(), Failure>| {
        if let Err(error) = result {
            eprintln!("            nothing killed: {error}");
        }
    };
    let some_seconds = Duration::from_secs(2 + random.below(9));
    match fault {
        Fault::None => {}
        Fault::Source => told(pod("source/pod").and_then(|pod| kill_agent(&pod))),
        Fault::Target => told(pod("target/pod").and_then(|pod| kill_agent(&pod))),
        Fault::TargetContainer => {
            told(pod("target/pod").and_then(|pod| kill_container(&pod, "migration-agent")));
        }
        Fault::PageServer => told(pod("target/pod").and_then(|pod| kill_page_server(&pod))),
        Fault::Operator => {
            kill_operator()?;
        }
        Fault::Store => {
            let how = *random.pick(&["silent", "refusing"]);
            let _down = StoreDown::now(how)?;
            thread::sleep(some_seconds);
        }
        Fault::Link => {
            let node = *random.pick(&["source/node", "target/node"]);
            let _cut = Unplugged::unplug(reached.migration(node))?;
            thread::sleep(some_seconds);
        }
    }
    Ok(())
}

/// Numbers that can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0) % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
