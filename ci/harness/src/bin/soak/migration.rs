//! One migration: out of the machine, and back, with something going wrong at each step.

use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use migration_harness::process;

use crate::faults::{StoreFault, calm, died_with_criu, kill_around_page_server, kill_criu};
use crate::random::Random;
use crate::tally::{Failure, Tally};
use crate::world::{Said, World};

/// A checkpoint, or a restore, takes about this long; something happens at some moment of it.
const AN_OPERATION: Duration = Duration::from_millis(700);
/// How long processes may wait for their store.
const PATIENCE: &str = "60";

/// Carries it out, and leaves the workload running and whole.
pub fn run(world: &mut World, random: &mut Random, tally: &mut Tally) -> Result<(), Failure> {
    world.disturb(random)?;
    move_out(world, random, tally)?;
    let outcome = bring_back(world, random, tally);
    calm(world);
    outcome
}

/// Afterwards the tree is gone and a checkpoint of it is committed.
fn move_out(world: &World, random: &mut Random, tally: &mut Tally) -> Result<(), Failure> {
    let known = world.checkpoints()?;
    checkpoint(world, random, tally, known)?;
    calm(world);
    if !world.is_running() {
        return world.wait_gone();
    }
    world.check(tally)?;
    if world.checkpoints()? > known && random.percent(50) {
        // The machine vanishes some time after a periodic checkpoint.
        tally.fault("machine lost after a checkpoint");
        return world.end_tree();
    }
    // Whatever went wrong has passed: now it must work.
    let pid = world.pid().to_string();
    let said = world.call(&["checkpoint", "--pid", &pid], None)?;
    if said.result.is_none() {
        return Err(Failure::Broken(format!("a checkpoint without faults failed: {}", said.error)));
    }
    tally.outcome("checkpoint: done again after a failure, or after one that left it running");
    world.wait_gone()
}

/// One checkpoint with a fault. The tree is whole afterwards, or gone and a checkpoint of it is committed.
fn checkpoint(world: &World, random: &mut Random, tally: &mut Tally, known: usize) -> Result<(), Failure> {
    let pid = world.pid().to_string();
    let mut words = vec!["checkpoint", "--pid", &pid];
    if random.percent(25) {
        words.push("--leave-running");
    }
    let store = match random.percent(40) {
        true => StoreFault::of_writing(world, random),
        false => StoreFault::None,
    };
    store.begin(world, tally);
    let agent = world.start(&words, store.plan())?;
    let said = with_deaths(world, agent, &store, random, tally)?;
    world.settle();
    match said {
        Some(Said { result: Some(_), .. }) => tally.outcome("checkpoint: done"),
        Some(_) => tally.outcome("checkpoint: failed"),
        None => tally.outcome("checkpoint: its agent was killed"),
    }
    calm(world);
    if !world.is_running() && world.checkpoints()? == known {
        if died_with_criu(world, tally) {
            return Err(Failure::DiedWithCriu);
        }
        return Err(Failure::Lost("the tree has gone and there is no checkpoint of it".to_owned()));
    }
    Ok(())
}

/// Waits for a command, of which, or of whose criu, something may die. `None` when it was killed itself.
fn with_deaths(
    world: &World,
    agent: Child,
    store: &StoreFault,
    random: &mut Random,
    tally: &mut Tally,
) -> Result<Option<Said>, Failure> {
    let mut agent = agent;
    if let Some(time) = store.lasts() {
        sleep(time);
        calm(world);
    }
    match random.below(10) {
        0..3 => {
            sleep(random.time(AN_OPERATION));
            if matches!(agent.try_wait(), Ok(None)) {
                tally.fault("kill -9: agent");
                let _ = agent.kill();
                let _ = agent.wait();
                return Ok(None);
            }
        }
        3 => {
            sleep(random.time(AN_OPERATION));
            kill_criu(agent.id() as i32, tally);
        }
        _ => {}
    }
    world.finish(agent).map(Some)
}

/// Afterwards the tree runs, and all of its memory has been compared.
fn bring_back(world: &mut World, random: &mut Random, tally: &mut Tally) -> Result<(), Failure> {
    if let Some(server) = world.s3() {
        // Pages come late, those of the background fill above all.
        server.delay_answers(Duration::from_millis(random.below(30)));
        server.delay_large_ranges(512 << 10, Duration::from_millis(200 + random.below(1500)));
    }
    let store = match random.percent(40) {
        true => StoreFault::of_reading(world, random),
        false => StoreFault::Plan(format!("seed={},latency=15ms", random.below(1000))),
    };
    if random.percent(90) || matches!(store, StoreFault::Server(_)) {
        store.begin(world, tally);
    }
    let agent = world.start(&["restore", "--detach", "--patience", PATIENCE], store.plan())?;
    let said = with_deaths(world, agent, &store, random, tally)?;
    match &said {
        Some(Said { result: Some(_), .. }) => {
            tally.outcome("restore: done");
            while_lazy(world, random, tally)?;
        }
        Some(Said { result: None, .. }) => tally.outcome("restore: failed"),
        None => tally.outcome("restore: its agent was killed"),
    }
    calm(world);
    if !matches!(said, Some(Said { result: Some(_), .. })) {
        // What was half restored is being ended, or it runs whole.
        sleep(Duration::from_millis(500));
    }
    if world.is_running() {
        match world.check(tally) {
            // It was being ended when it was asked.
            Err(Failure::Lost(_)) if !world.is_running() => {}
            other => return other.and_then(|()| resident(world)),
        }
    }
    // Only pages that can never come are a reason to end a tree that had been restored.
    if matches!(said, Some(Said { result: Some(_), .. })) && !store.damages() {
        return Err(Failure::Lost("it was ended for no reason".to_owned()));
    }
    tally.outcome("restored once more after it was ended");
    restore_again(world, tally)
}

/// Things that happen to a tree whose pages still arrive.
fn while_lazy(world: &mut World, random: &mut Random, tally: &mut Tally) -> Result<(), Failure> {
    if random.percent(50) {
        kill_around_page_server(world, random, tally);
        if world.attach()? {
            tally.outcome("a page server was attached after many deaths");
        }
    }
    if random.percent(30) && world.is_running() {
        match world.disturb(random) {
            Err(Failure::Lost(_)) if !world.is_running() => return Ok(()),
            other => other?,
        }
    }
    if random.percent(30) && world.is_running() {
        checkpoint_while_lazy(world, random, tally)?;
    }
    if random.percent(30) {
        kill_around_page_server(world, random, tally);
    }
    if world.attach()? {
        tally.outcome("a page server was attached after many deaths");
    }
    Ok(())
}

/// The second notice comes before the last page.
fn checkpoint_while_lazy(world: &World, random: &mut Random, tally: &mut Tally) -> Result<(), Failure> {
    let lazy = process::is_lazy(world.pid()).unwrap_or(false);
    let pid = world.pid().to_string();
    let mut words = vec!["checkpoint", "--pid", &pid];
    let leave = random.percent(50);
    if leave {
        words.push("--leave-running");
    }
    let began = Instant::now();
    let said = world.call(&words, None)?;
    world.settle();
    if said.result.is_none() {
        // A tree that is gone now was ended by its page server; the caller finds out whether it may have been.
        tally.outcome(match world.is_running() {
            true => "checkpoint while lazy: refused, the tree runs on",
            false => "checkpoint while lazy: of a tree that had ended",
        });
        return Ok(());
    }
    if began.elapsed() > Duration::from_secs(30) {
        return Err(Failure::Broken(format!("a checkpoint while lazy took {:?}", began.elapsed())));
    }
    tally.outcome(if lazy { "checkpoint while lazy: done" } else { "checkpoint: done" });
    if !leave {
        world.wait_gone()?;
        restore_again(world, tally)?;
    }
    Ok(())
}

/// Without faults it must work.
fn restore_again(world: &World, tally: &mut Tally) -> Result<(), Failure> {
    world.wait_gone()?;
    calm(world);
    let said = world.call(&["restore", "--detach", "--patience", PATIENCE], None)?;
    if said.result.is_none() {
        return Err(Failure::Lost(format!("it cannot be restored: {}", said.error)));
    }
    world.check(tally)?;
    resident(world)
}

fn resident(world: &World) -> Result<(), Failure> {
    process::wait_resident(world.pid(), Duration::from_secs(60))
        .map_err(|error| Failure::Lost(format!("pages never came: {error}")))?;
    world.collect();
    Ok(())
}
