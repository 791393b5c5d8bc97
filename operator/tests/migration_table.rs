//! Every stage of a migration with everything that can be seen of it.

use std::time::Duration;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use migration_operator::{
    api::migration::{
        Migration, MigrationStage as Stage, MigrationStrategy as Strategy, Place, TargetMadeBy, TriggeredBy,
    },
    migration::{
        Decision, Done, Effect, Failure, FailureKind, Handover, Limits, OperationSeen, PodSeen, Residency,
        Seen, decide,
    },
};

const START: i64 = 1_700_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(START + seconds).unwrap()
}

fn place(name: &str) -> Place {
    Place { pod: format!("app-{name}"), node: name.to_owned(), mark: None }
}

fn migration(stage: Stage) -> Migration {
    Migration {
        id: "0123456789abcdef".to_owned(),
        stage,
        stage_at: MicroTime(at(0)),
        reason: "test".to_owned(),
        triggered_by: TriggeredBy::Person,
        strategy: Strategy::LazyStorage,
        notice: None,
        started_at: MicroTime(at(0)),
        timeout_at: MicroTime(at(300)),
        deadline: None,
        source: place("a"),
        target: None,
        target_made_by: None,
        attempt: 1,
        failures: None,
        retry_at: None,
        failed_nodes: Vec::new(),
        failed_checkpoints: Vec::new(),
        operation: None,
        source_stopped: None,
        checkpoint_id: None,
        handover_id: None,
        handover_generation: None,
        target_lost: None,
        cancel_requested: None,
        dump_at: None,
        frozen_at: None,
        committed_at: None,
        resumed_at: None,
        blackout_ms: None,
        resident_at: None,
        finished_at: None,
        message: None,
    }
}

/// Every migration that the stages can write down, as far as a decision depends on it.
fn written() -> Vec<Migration> {
    let mut all = Vec::new();
    let plain = |stage| migration(stage);
    let target = |stage| Migration { target: Some(place("b")), ..migration(stage) };
    let stopped = |stage| Migration {
        source_stopped: Some(true),
        checkpoint_id: Some("C2".to_owned()),
        ..migration(stage)
    };
    let handed = |stage| Migration {
        source_stopped: Some(true),
        handover_id: Some("H".to_owned()),
        handover_generation: Some(3),
        strategy: Strategy::LazyDirect,
        target: Some(place("b")),
        ..migration(stage)
    };
    all.push(plain(Stage::ChoosingTarget));
    all.push(stopped(Stage::ChoosingTarget));
    all.push(Migration { target: None, ..handed(Stage::ChoosingTarget) });
    all.push(target(Stage::Preparing));
    all.push(Migration { target: Some(place("b")), ..stopped(Stage::Preparing) });
    all.push(handed(Stage::Preparing));
    for strategy in [Strategy::Full, Strategy::LazyStorage, Strategy::LazyDirect, Strategy::LazyHybrid] {
        let operation = Some("dump".to_owned());
        all.push(Migration { strategy, operation, ..target(Stage::Dumping) });
    }
    all.push(Migration { operation: Some("dump".to_owned()), ..plain(Stage::Dumping) });
    let restoring =
        Migration { target: Some(place("b")), operation: Some("r".into()), ..stopped(Stage::Restoring) };
    all.push(Migration { target: Some(place("a")), ..restoring.clone() });
    all.push(Migration { checkpoint_id: None, ..restoring.clone() });
    all.push(restoring);
    all.push(Migration { operation: Some("r".into()), ..handed(Stage::Restoring) });
    all.push(handed(Stage::TakingBack));
    for base in [Migration { target: Some(place("b")), ..stopped(Stage::Filling) }, handed(Stage::Filling)] {
        for stage in [Stage::Filling, Stage::RemovingSource, Stage::Succeeded] {
            all.push(Migration { stage, resumed_at: Some(MicroTime(at(1))), ..base.clone() });
        }
    }
    for stage in [Stage::Failed, Stage::Cancelled] {
        let finished_at = Some(MicroTime(at(10)));
        all.push(Migration { finished_at: finished_at.clone(), ..target(stage) });
        all.push(Migration {
            finished_at: finished_at.clone(),
            operation: Some("dump".into()),
            ..target(stage)
        });
        all.push(Migration {
            finished_at,
            operation: Some("r".into()),
            target: Some(place("b")),
            ..stopped(stage)
        });
    }
    // Those of a ReplicaSet know their target's node only when it has a pod, which is seen at once here.
    let released: Vec<_> = all
        .iter()
        .map(|one| Migration { target_made_by: Some(TargetMadeBy::ReplicaSet), ..one.clone() })
        .collect();
    let named: Vec<_> = all.iter().filter_map(takes_name).collect();
    all.extend(released);
    all.extend(named);
    let spent: Vec<_> = all.iter().map(|one| Migration { failures: Some(2), ..one.clone() }).collect();
    let mut cancelled: Vec<_> =
        all.iter().map(|one| Migration { cancel_requested: Some(true), ..one.clone() }).collect();
    all.extend(spent);
    all.append(&mut cancelled);
    all
}

/// The same migration of a StatefulSet's pod, if it can have come that far.
fn takes_name(one: &Migration) -> Option<Migration> {
    let named = Migration { target_made_by: Some(TargetMadeBy::StatefulSet), ..one.clone() };
    let before_commit = !one.source_has_stopped();
    let has_target = one.target.is_some();
    if one.handover_id.is_some()
        || one.strategy.hands_over()
        || one.returns()
        || (before_commit && has_target)
    {
        return None;
    }
    let mark = Some(format!("{}-{}", one.id, one.attempt));
    let target =
        one.target.as_ref().map(|target| Place { pod: one.source.pod.clone(), mark, ..target.clone() });
    Some(Migration { target, ..named })
}

fn operations() -> Vec<OperationSeen> {
    let span = (START as u64 * 1000, START as u64 * 1000 + 500);
    let mut all = vec![OperationSeen::Unknown, OperationSeen::Absent, OperationSeen::Running];
    all.push(OperationSeen::Succeeded(Done::Checkpoint { id: "C3".into(), frozen_ms: Some(5), span }));
    all.push(OperationSeen::Succeeded(Done::Stopped { id: "H".into(), generation: 3, span }));
    all.push(OperationSeen::Succeeded(Done::Restored { resume_ms: Some(7), span }));
    for kind in [
        FailureKind::Passing,
        FailureKind::Store,
        FailureKind::Strategy,
        FailureKind::NoProcesses,
        FailureKind::Damaged,
        FailureKind::NoCheckpoint,
        FailureKind::RunsElsewhere,
        FailureKind::Refused,
    ] {
        all.push(OperationSeen::Failed(Failure { kind, message: "no".into(), checkpoint: None }));
    }
    all
}

const PODS: [PodSeen; 7] = [
    PodSeen::Gone,
    PodSeen::Ended,
    PodSeen::Killed,
    PodSeen::Leaving,
    PodSeen::Starting,
    PodSeen::Ready,
    PodSeen::Silent,
];

/// Everything that can be seen, except that an operation which was not written down is not seen and ends as its kind does.
fn every_case(mut check: impl FnMut(&Migration, &Seen)) -> usize {
    let mut cases = 0;
    for written in written() {
        let dump = !written.source_has_stopped();
        for operation in operations() {
            match &operation {
                OperationSeen::Absent => {}
                _ if written.operation.is_none() => continue,
                OperationSeen::Succeeded(Done::Restored { .. }) if dump => continue,
                OperationSeen::Succeeded(Done::Checkpoint { .. } | Done::Stopped { .. }) if !dump => continue,
                _ => {}
            }
            for source in PODS {
                for target in PODS {
                    for handover in [
                        Handover::Unknown,
                        Handover::Stopped,
                        Handover::GoesOn,
                        Handover::Over,
                        Handover::Claimed,
                    ] {
                        for residency in [Residency::Unknown, Residency::Arriving, Residency::Resident] {
                            let filling = matches!(
                                written.stage,
                                Stage::Filling | Stage::RemovingSource | Stage::Succeeded
                            );
                            let asked = written.stage == Stage::TakingBack
                                || written.stage == Stage::Succeeded && written.handover_id.is_some();
                            if (handover != Handover::Unknown && !asked)
                                || (residency != Residency::Unknown && !filling)
                            {
                                continue;
                            }
                            for bits in 0..32 {
                                let bit = |place: u32| bits >> place & 1 == 1;
                                check(
                                    &written,
                                    &Seen {
                                        source,
                                        source_doomed: bit(0),
                                        target,
                                        target_doomed: bit(1),
                                        target_node: Some("b".to_owned()),
                                        refused: None,
                                        superseded: target == PodSeen::Ended && bit(4),
                                        on_demand: bit(3),
                                        target_waits: None,
                                        source_released: bit(4),
                                        nodes: if bit(2) { vec!["b".into(), "c".into()] } else { Vec::new() },
                                        operation: operation.clone(),
                                        handover,
                                        residency,
                                        checkpoints: bit(3).then(|| vec!["C2".into(), "C1".into()]),
                                        cancel: false,
                                        preserve_source: false,
                                    },
                                );
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    cases
}

fn now_of(seen: &Seen, late: bool) -> Timestamp {
    // Both sides of every limit within a run of the table.
    if late { at(400) } else { at(if seen.source_doomed { 200 } else { 1 }) }
}

#[test]
fn every_effect_is_covered_by_what_is_written_and_seen() {
    let limits = Limits::default();
    let mut effects = std::collections::HashSet::new();
    let cases = every_case(|written, seen| {
        for late in [false, true] {
            let Decision::Do(effect) = decide(written, seen, &limits, now_of(seen, late)) else { continue };
            effects.insert(effect);
            match effect {
                Effect::Dump => {
                    assert_eq!(
                        (written.stage, &seen.operation),
                        (Stage::Dumping, &OperationSeen::Absent),
                        "{written:?} {seen:?}"
                    );
                    assert!(
                        !written.source_has_stopped() && seen.source == PodSeen::Ready && !late,
                        "{written:?} {seen:?}"
                    );
                }
                Effect::Restore => {
                    assert_eq!(
                        (written.stage, &seen.operation),
                        (Stage::Restoring, &OperationSeen::Absent),
                        "{written:?} {seen:?}"
                    );
                    assert!(
                        written.source_has_stopped() && seen.target == PodSeen::Ready && !late,
                        "{written:?} {seen:?}"
                    );
                }
                Effect::PutBack => {
                    assert!(written.stage.is_over() && seen.source_released, "{written:?} {seen:?}");
                    assert_eq!(written.may_run_in(), Some(&written.source), "{written:?} {seen:?}");
                    assert!(written.operation.is_none(), "{written:?} {seen:?}");
                }
                // The target is to have its name.
                Effect::DeleteSource if written.stage == Stage::ChoosingTarget => {
                    assert!(
                        written.target_takes_name() && written.source_has_stopped(),
                        "{written:?} {seen:?}"
                    );
                    assert!(
                        written.operation.is_none() && written.handover_id.is_none(),
                        "{written:?} {seen:?}"
                    );
                }
                Effect::DeleteSource => {
                    assert!(
                        matches!(written.stage, Stage::RemovingSource | Stage::Succeeded),
                        "{written:?} {seen:?}"
                    );
                    assert!(written.resumed_at.is_some() && !written.returns(), "{written:?} {seen:?}");
                }
                Effect::DeleteTarget => {
                    assert!(written.stage == Stage::Restoring && !written.returns(), "{written:?} {seen:?}");
                    assert_eq!(seen.operation, OperationSeen::Absent, "{written:?} {seen:?}");
                }
                Effect::CreateTarget => assert_eq!(
                    (written.stage, seen.target),
                    (Stage::Preparing, PodSeen::Gone),
                    "{written:?} {seen:?}"
                ),
                Effect::Cancel => assert_eq!(seen.operation, OperationSeen::Running, "{written:?} {seen:?}"),
            }
        }
    });
    assert!(cases > 30_000, "{cases}");
    assert_eq!(effects.len(), 7, "{effects:?}");
}

#[test]
fn what_is_known_to_be_stopped_is_forgotten_only_when_it_goes_on_at_the_source() {
    let limits = Limits::default();
    every_case(|written, seen| {
        for late in [false, true] {
            let Decision::Record(next) = decide(written, seen, &limits, now_of(seen, late)) else { continue };
            assert_ne!(*next, *written, "{written:?} {seen:?}");
            if written.source_has_stopped() && !next.source_has_stopped() {
                assert!(written.takes_back() && seen.handover == Handover::GoesOn, "{written:?} {seen:?}");
            }
            if !written.source_has_stopped() && next.source_has_stopped() {
                let dumped = matches!(seen.operation, OperationSeen::Succeeded(_));
                assert!(dumped || seen.source.is_over(), "{written:?} {seen:?}");
            }
            if written.keeps_source() && next.handover_id.is_none() {
                let needed = seen.target != PodSeen::Ended && seen.handover != Handover::Over;
                assert!(!needed || seen.source.is_over(), "{written:?} {seen:?}");
            }
            if written.stage.is_over() && next.stage != written.stage {
                assert_eq!((written.stage, next.stage), (Stage::Succeeded, Stage::Failed));
                let lost = matches!(seen.target, PodSeen::Gone | PodSeen::Killed);
                assert!(lost || seen.handover == Handover::GoesOn, "{written:?} {seen:?}");
                assert!(next.takes_back() && !seen.source.is_over(), "{written:?} {seen:?}");
            }
            // A restore is written down only when none before it can have come to anything.
            if next.operation.is_some()
                && next.source_has_stopped()
                && written.operation.is_some()
                && next.operation != written.operation
            {
                let failed = matches!(seen.operation, OperationSeen::Failed(_));
                let dumped = matches!(
                    seen.operation,
                    OperationSeen::Succeeded(Done::Checkpoint { .. } | Done::Stopped { .. })
                );
                assert!(
                    failed || dumped || seen.target.is_over() || seen.source.is_over(),
                    "{written:?} {seen:?}"
                );
            }
        }
    });
}

#[test]
fn after_the_timeout_and_its_grace_every_migration_ends_whatever_is_seen() {
    let limits = Limits::default();
    every_case(|written, seen| {
        let mut written = written.clone();
        let mut seen = seen.clone();
        for _ in 0..6 {
            match decide(&written, &seen, &limits, at(400)) {
                Decision::Record(next) => {
                    if next.operation.is_some() && next.operation != written.operation {
                        seen.operation = OperationSeen::Absent;
                    }
                    written = *next;
                }
                Decision::Do(Effect::DeleteSource) if written.stage == Stage::RemovingSource => {
                    panic!("it is waited for the source to be gone: {written:?}")
                }
                _ => break,
            }
        }
        assert!(written.stage.is_over(), "{written:?} {seen:?}");
        assert!(written.message.is_some() || written.stage != Stage::Failed || written.finished_at.is_some());
    });
}

#[test]
fn records_lead_to_something_other_than_records() {
    let limits = Limits::default();
    every_case(|written, seen| {
        let (mut current, mut seen) = (written.clone(), seen.clone());
        for _ in 0..8 {
            let Decision::Record(next) = decide(&current, &seen, &limits, now_of(&seen, false)) else {
                return;
            };
            if next.operation != current.operation {
                seen.operation = OperationSeen::Absent;
            }
            if next.target != current.target {
                seen.target = PodSeen::Gone;
                seen.target_doomed = false;
            }
            current = *next;
        }
        panic!("nothing but records: {written:?} {seen:?}");
    });
}

#[test]
fn a_source_goes_only_after_its_target_has_all_pages_it_needs_of_it() {
    let mut written = Migration {
        target: Some(place("b")),
        resumed_at: Some(MicroTime(at(1))),
        ..migration(Stage::Filling)
    };
    written.source_stopped = Some(true);
    written.handover_id = Some("H".into());
    let seen =
        |residency| Seen { source: PodSeen::Ready, target: PodSeen::Ready, residency, ..Seen::default() };
    let limits = Limits::default();
    for residency in [Residency::Unknown, Residency::Arriving] {
        assert!(matches!(decide(&written, &seen(residency), &limits, at(2)), Decision::Wait(_)));
        // The migration is over in time; the source is still needed.
        let Decision::Record(late) = decide(&written, &seen(residency), &limits, at(301)) else { panic!() };
        assert_eq!(late.stage, Stage::Succeeded);
        assert!(matches!(decide(&late, &seen(residency), &limits, at(302)), Decision::Wait(_)));
        let over = Seen { handover: Handover::Over, ..seen(residency) };
        let Decision::Record(settled) = decide(&late, &over, &limits, at(303)) else { panic!() };
        assert_eq!(decide(&settled, &over, &limits, at(303)), Decision::Do(Effect::DeleteSource));
    }
    let Decision::Record(next) = decide(&written, &seen(Residency::Resident), &limits, at(2)) else {
        panic!()
    };
    assert_eq!(next.stage, Stage::RemovingSource);
    assert_eq!(decide(&next, &seen(Residency::Resident), &limits, at(3)), Decision::Do(Effect::DeleteSource));
    let kept = Seen { preserve_source: true, ..seen(Residency::Resident) };
    let Decision::Record(over) = decide(&next, &kept, &limits, at(3)) else { panic!() };
    assert_eq!(decide(&over, &kept, &limits, at(4)), Decision::Over);
}

#[test]
fn what_is_stopped_goes_on_when_its_target_is_lost_after_the_migration_has_ended() {
    let mut written = Migration {
        target: Some(place("b")),
        resumed_at: Some(MicroTime(at(1))),
        handover_id: Some("H".into()),
        source_stopped: Some(true),
        ..migration(Stage::Succeeded)
    };
    let limits = Limits::default();
    let lost = |target, handover| Seen { source: PodSeen::Ready, target, handover, ..Seen::default() };
    for seen in [
        lost(PodSeen::Gone, Handover::Unknown),
        lost(PodSeen::Killed, Handover::Stopped),
        // Its agents knew before its pod told.
        lost(PodSeen::Ready, Handover::GoesOn),
    ] {
        let Decision::Record(failed) = decide(&written, &seen, &limits, at(400)) else { panic!("{seen:?}") };
        assert_eq!((failed.stage, failed.takes_back()), (Stage::Failed, true));
        assert_eq!(failed.may_run_in(), Some(&written.source));
        let back = Seen { handover: Handover::GoesOn, ..seen };
        let Decision::Record(settled) = decide(&failed, &back, &limits, at(401)) else { panic!("{back:?}") };
        assert_eq!((settled.handover_id.as_ref(), settled.source_has_stopped()), (None, false));
        assert_eq!(decide(&settled, &back, &limits, at(402)), Decision::Over);
    }
    // What has ended by itself needs nobody, also when its pod is deleted before the source is; nor does what has all its pages.
    let ended = lost(PodSeen::Ended, Handover::Stopped);
    let gone = lost(PodSeen::Gone, Handover::Stopped);
    let Decision::Record(settled) = decide(&written, &ended, &limits, at(400)) else { panic!() };
    written.resident_at = Some(MicroTime(at(2)));
    for settled in [&*settled, &written] {
        assert_eq!(decide(settled, &ended, &limits, at(401)), Decision::Do(Effect::DeleteSource));
        assert_eq!(decide(settled, &gone, &limits, at(401)), Decision::Do(Effect::DeleteSource));
    }
}

#[test]
fn a_deadline_that_leaves_no_time_makes_the_dump_come_first() {
    let deadline = Some(MicroTime(at(60)));
    let written = Migration { strategy: Strategy::LazyDirect, deadline, ..migration(Stage::ChoosingTarget) };
    let seen = Seen {
        source: PodSeen::Ready,
        source_doomed: true,
        target: PodSeen::Gone,
        nodes: vec!["b".into()],
        ..Seen::default()
    };
    let limits = Limits { reserve: Duration::from_secs(20), ..Limits::default() };
    let Decision::Record(early) = decide(&written, &seen, &limits, at(39)) else { panic!() };
    assert_eq!(early.stage, Stage::Preparing);
    for from in [written, *early] {
        let Decision::Record(next) = decide(&from, &seen, &limits, at(40)) else { panic!() };
        assert_eq!(next.stage, Stage::Dumping);
        // Stopped processes would go down with their machine.
        assert_eq!(next.strategy, Strategy::LazyStorage);
    }
}

#[test]
fn a_target_that_does_not_get_ready_is_told_with_what_it_waits_for() {
    let written = Migration { target: Some(place("b")), ..migration(Stage::Preparing) };
    let waits = "container app: ErrImagePull: no such image";
    let seen = Seen {
        source: PodSeen::Ready,
        target: PodSeen::Starting,
        target_waits: Some(waits.to_owned()),
        ..Seen::default()
    };
    let limits = Limits::default();
    let late = 1 + limits.prepare.as_secs() as i64;
    for (now, stage) in [(late, Stage::ChoosingTarget), (301, Stage::Failed)] {
        let Decision::Record(next) = decide(&written, &seen, &limits, at(now)) else { panic!() };
        assert_eq!(next.stage, stage);
        let message = next.message.unwrap();
        assert!(message.contains(waits), "{message}");
    }
}

#[test]
fn what_has_come_back_tells_why_it_could_not_be_moved() {
    let written = Migration {
        target: Some(place("a")),
        operation: Some("r".into()),
        source_stopped: Some(true),
        message: Some("a file is missing".into()),
        ..migration(Stage::Restoring)
    };
    let done = Done::Restored { resume_ms: None, span: (0, 1) };
    let seen = Seen {
        source: PodSeen::Ready,
        target: PodSeen::Ready,
        operation: OperationSeen::Succeeded(done),
        residency: Residency::Resident,
        ..Seen::default()
    };
    let Decision::Record(runs) = decide(&written, &seen, &Limits::default(), at(1)) else { panic!() };
    let Decision::Record(over) = decide(&runs, &seen, &Limits::default(), at(2)) else { panic!() };
    assert_eq!(over.stage, Stage::Failed);
    assert!(over.message.unwrap().starts_with("a file is missing; the application was restored where it"));
}

#[test]
fn a_node_that_failed_is_taken_again_only_when_there_is_no_other() {
    let mut written = migration(Stage::ChoosingTarget);
    written.failed_nodes = vec!["b".into()];
    let seen = |nodes: &[&str]| Seen {
        source: PodSeen::Ready,
        nodes: nodes.iter().map(|&node| node.to_owned()).collect(),
        ..Seen::default()
    };
    let chosen = |nodes| match decide(&written, &seen(nodes), &Limits::default(), at(1)) {
        Decision::Record(next) => next.target.unwrap().node,
        other => panic!("{other:?}"),
    };
    assert_eq!(chosen(&["b", "c"]), "c");
    assert_eq!(chosen(&["b"]), "b");
    assert!(matches!(decide(&written, &seen(&[]), &Limits::default(), at(1)), Decision::Wait(_)));
}

#[test]
fn a_store_that_does_not_answer_costs_no_target() {
    let mut written =
        Migration { target: Some(place("b")), operation: Some("r".into()), ..migration(Stage::Restoring) };
    written.source_stopped = Some(true);
    let failure = Failure { kind: FailureKind::Store, message: "store".into(), checkpoint: None };
    let seen = Seen { target: PodSeen::Ready, operation: OperationSeen::Failed(failure), ..Seen::default() };
    let Decision::Record(next) = decide(&written, &seen, &Limits::default(), at(1)) else { panic!() };
    assert_eq!((next.stage, &next.target, next.failures), (Stage::Preparing, &written.target, None));
    assert!(matches!(decide(&next, &seen, &Limits::default(), at(1)), Decision::Wait(_)));
}

#[test]
fn a_damaged_checkpoint_makes_the_one_before_it_be_restored() {
    let mut written =
        Migration { target: Some(place("b")), operation: Some("r".into()), ..migration(Stage::Restoring) };
    written.source_stopped = Some(true);
    written.checkpoint_id = Some("C3".into());
    let failure = Failure { kind: FailureKind::Damaged, message: "a hash".into(), checkpoint: None };
    let checkpoints = Some(vec!["C3".into(), "C2".into(), "C1".into()]);
    let seen = Seen {
        target: PodSeen::Ready,
        operation: OperationSeen::Failed(failure),
        checkpoints,
        ..Seen::default()
    };
    let Decision::Record(next) = decide(&written, &seen, &Limits::default(), at(1)) else { panic!() };
    assert_eq!((next.stage, next.checkpoint_id.as_deref()), (Stage::Restoring, Some("C2")));
    assert_ne!(next.operation, written.operation);
    let Decision::Record(next) = decide(&next, &seen, &Limits::default(), at(2)) else { panic!() };
    let Decision::Record(next) = decide(&next, &seen, &Limits::default(), at(3)) else { panic!() };
    assert_eq!(next.stage, Stage::Failed);
    assert!(next.message.as_ref().is_some_and(|text| text.contains("C1")), "{next:?}");
}

#[test]
fn pages_that_come_only_on_demand_are_not_waited_for_unless_they_come_from_the_source() {
    let filling = Migration {
        target: Some(place("b")),
        source_stopped: Some(true),
        checkpoint_id: Some("C2".to_owned()),
        resumed_at: Some(MicroTime(at(1))),
        ..migration(Stage::Filling)
    };
    let (target, residency) = (PodSeen::Ready, Residency::Arriving);
    let seen = Seen { source: PodSeen::Ready, target, residency, on_demand: true, ..Seen::default() };
    let limits = Limits::default();
    let Decision::Record(next) = decide(&filling, &seen, &limits, at(2)) else { panic!() };
    assert_eq!((next.stage, next.resident_at), (Stage::RemovingSource, None));
    let handed = Migration { handover_id: Some("H".to_owned()), ..filling.clone() };
    assert!(matches!(decide(&handed, &seen, &limits, at(2)), Decision::Wait(_)));
    let filled = Seen { on_demand: false, ..seen };
    assert!(matches!(decide(&filling, &filled, &limits, at(2)), Decision::Wait(_)));
}

#[test]
fn what_another_version_has_taken_the_place_of_is_not_tried_again() {
    let mark = |number: u32| Some(format!("0123456789abcdef-{number}"));
    let preparing = Migration {
        target_made_by: Some(TargetMadeBy::StatefulSet),
        target: Some(Place { mark: mark(1), ..place("a") }),
        source_stopped: Some(true),
        checkpoint_id: Some("C2".to_owned()),
        ..migration(Stage::Preparing)
    };
    let refused = Some("another version was rolled out".to_owned());
    let (source, target) = (PodSeen::Gone, PodSeen::Ended);
    let seen = Seen { source, target, refused, superseded: true, ..Seen::default() };
    let limits = Limits::default();
    let Decision::Record(over) = decide(&preparing, &seen, &limits, at(2)) else { panic!() };
    assert_eq!((over.stage, over.checkpoint_id.as_deref()), (Stage::Failed, Some("C2")));
    assert!(over.message.unwrap().contains("another version was rolled out"));
    let Decision::Record(again) = decide(&preparing, &Seen { superseded: false, ..seen }, &limits, at(2))
    else {
        panic!()
    };
    assert_ne!(again.stage, Stage::Failed);
}
