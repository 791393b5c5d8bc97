//! Migrations in a small world in which anything fails at any moment: agents, pods, nodes, the operator between what it writes down
//! and what it does, and the webhook while a controller makes a pod.

mod world;

use std::time::Duration;

use migration_operator::{
    api::migration::{MigrationStage as Stage, MigrationStrategy, TargetLost, TargetMadeBy},
    migration::Limits,
};
use proptest::prelude::*;
use world::{Happens, Story, TICK_MS, World, key, story};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_there_is_one_runner_and_an_end(story in story()) {
        let limits = Limits { look: Duration::from_millis(TICK_MS), ..Limits::default() };
        let mut world = World::new(&story);
        let last = (60_000 + limits.grace.as_millis() as u64) / TICK_MS + 20;
        for tick in 0..last {
            for (_, event) in story.events.iter().filter(|(when, _)| *when == tick) {
                world.happens(event);
            }
            world.step(&limits);
        }
        prop_assert!(world.written.stage.is_over(), "{:?}\n{}", world.written, world.log.join("\n"));

        // Afterwards everybody answers again, and what was not known is settled.
        for pod in world.pods.values_mut() {
            pod.silent_until = 0;
        }
        for _ in 0..3000 {
            world.step(&limits);
        }
        let written = &world.written;
        let place = written.may_run_in().map(key);
        let log = world.log.join("\n");
        prop_assert_eq!(&written.operation, &None, "{:?}\n{}", written, log);
        // What started anew under its name is not what was moved: that is a checkpoint, and it is said so.
        world.runs.retain(|name| !name.starts_with("anew-"));
        match (&world.runs[..], place) {
            ([runs], place) => prop_assert_eq!(Some(runs), place.as_ref(), "it runs elsewhere than is written\n{}", log),
            ([], Some(place)) => {
                // It is stopped there, or it is gone with its pod or was killed, which everybody can see; its checkpoint can be restored.
                let stopped = world.stopped.as_ref().is_some_and(|stopped| stopped.pod == place);
                // Or it is written down that this is not known: the next checkpoint there tells.
                let unknown = written.target_lost == Some(TargetLost::MayHaveRun);
                let gone = world.pods.get(&place).is_none_or(|pod| pod.killed_at.is_some());
                prop_assert!(stopped || unknown || gone, "{:?}\n{}", written, log);
            }
            // What was dumped is in the store, and everybody can see that it does not run.
            _ => prop_assert!(written.stage != Stage::Succeeded, "{:?}\n{}", written, log),
        }
        // What runs on where it was is its ReplicaSet's.
        let source = key(&written.source);
        prop_assert!(!(world.released && world.runs.contains(&source)), "{:?}\n{}", written, log);
        // Nothing stays stopped for ever beside a copy of it that does not exist.
        if let Some(stopped) = &world.stopped {
            let claimed_and_lost = stopped.claimed;
            prop_assert!(claimed_and_lost, "{:?}\n{}", stopped, log);
        }
    }
}

#[test]
fn with_nothing_in_its_way_every_application_moves_whoever_makes_its_pods() {
    let makers = [None, Some(TargetMadeBy::ReplicaSet), Some(TargetMadeBy::StatefulSet)];
    for (maker, unhooked) in makers.into_iter().flat_map(|maker| [(maker, 0), (maker, 1)]) {
        let strategy = MigrationStrategy::LazyStorage;
        let mut story = Story {
            maker,
            strategy,
            deadline_s: None,
            checkpoint_before: true,
            on_demand: false,
            events: Vec::new(),
        };
        story.events.extend((0..unhooked).map(|_| (0, Happens::Unhooked)));
        let limits = Limits { look: Duration::from_millis(TICK_MS), ..Limits::default() };
        let mut world = World::new(&story);
        story.events.iter().for_each(|(_, event)| world.happens(event));
        for _ in 0..1000 {
            world.step(&limits);
        }
        let log = world.log.join("\n");
        // A replica that was made while nobody was asked leaves its ReplicaSet no reason to make another.
        if (maker, unhooked) == (Some(TargetMadeBy::ReplicaSet), 1) {
            assert_eq!(world.written.stage, Stage::Failed, "{log}");
            assert_eq!(
                (world.runs, world.pods.len(), world.released),
                (vec!["app-0".to_owned()], 1, false),
                "{log}"
            );
            continue;
        }
        assert_eq!(world.written.stage, Stage::Succeeded, "{log}");
        let target = key(world.written.target.as_ref().unwrap());
        assert_eq!((&world.runs, world.pods.len()), (&vec![target], 1), "{log}");
    }
}
