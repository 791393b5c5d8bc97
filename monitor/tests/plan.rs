//! What is to be done, over a notice's whole life and whoever looks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use migration_monitor::{
    Cloud, Notice, NoticeKind,
    board::{Sighting, Source, View},
    plan::{Plan, Record, plan},
    policy::{Advice, Policy, Rebalance},
};
use proptest::prelude::*;

const POLICY: Policy = Policy { rebalance: Rebalance::Checkpoint, lead: Duration::from_secs(900) };
const ORIGIN: &str = "node-uid";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn sighting(kind: NoticeKind, deadline: Option<i64>, seen: i64) -> Sighting {
    let notice = Notice {
        source: Cloud::Aws,
        kind,
        deadline: deadline.map(at),
        announced: None,
        event_id: None,
        resources: Vec::new(),
    };
    Sighting { notice, seen: at(seen), seen_at: Instant::now() }
}

fn view(sources: &[(Source, Vec<Sighting>)]) -> View {
    View { sources: BTreeMap::from_iter(sources.iter().cloned()) }
}

fn spot(deadline: i64, seen: i64) -> View {
    view(&[(Source::AwsSpot, vec![sighting(NoticeKind::Terminate, Some(deadline), seen)])])
}

fn look(view: &View, records: &[Record], now: i64) -> Plan {
    plan(view, records, ORIGIN, &POLICY, at(now))
}

#[test]
fn a_notice_has_one_id_whoever_looks_and_another_on_another_machine() {
    let first = look(&spot(120, 0), &[], 0).order.unwrap();
    let restarted = look(&spot(120, 7), &[], 7).order.unwrap();
    assert_eq!(first.id, restarted.id, "a record that was lost before it was kept");
    let next = plan(&spot(120, 0), &[], "another uid", &POLICY, at(0)).order.unwrap();
    assert_ne!(first.id, next.id);
    assert!(first.id.starts_with("aws-spot-terminate-"), "{}", first.id);
    assert!(first.id.len() <= 50 && first.id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
    assert_eq!(first.deadline, Some(at(120)));
    assert!(first.leave());
}

#[test]
fn a_record_outlives_a_source_that_does_not_answer() {
    let seen = look(&spot(120, 0), &[], 0);
    let silent = look(&View::default(), &seen.records, 5);
    assert_eq!(silent.order, seen.order, "nobody has said that it is over");
    let others = look(&view(&[(Source::AwsRebalance, vec![])]), &seen.records, 5);
    assert_eq!(others.order, seen.order, "another source knows nothing of it");
    let over = look(&view(&[(Source::AwsSpot, vec![])]), &seen.records, 5);
    assert_eq!(over.order, None);
    assert_eq!(over.records[0].withdrawn, Some(at(5)));
}

#[test]
fn what_is_announced_again_after_it_was_withdrawn_is_another_notice() {
    let first = look(&spot(120, 0), &[], 0);
    let over = look(&view(&[(Source::AwsSpot, vec![])]), &first.records, 5);
    let again = look(&spot(120, 9), &over.records, 9);
    assert_ne!(again.order.as_ref().unwrap().id, first.order.unwrap().id);
    assert_eq!(look(&spot(120, 9), &again.records, 10).order, again.order);
}

#[test]
fn a_promised_deadline_counts_from_the_first_time_it_was_seen() {
    let preempted = |seen| {
        let mut one = sighting(NoticeKind::Terminate, None, seen);
        one.notice.source = Cloud::Gcp;
        view(&[(Source::GcpPreempted, vec![one])])
    };
    let first = look(&preempted(0), &[], 0);
    assert_eq!(first.order.as_ref().unwrap().deadline, Some(at(30)));
    let restarted = look(&preempted(20), &first.records, 20);
    assert_eq!(restarted.order, first.order);
}

#[test]
fn an_event_that_begins_early_has_its_beginning_as_deadline_and_one_that_begins_in_time_keeps_its_own() {
    let event = |deadline: Option<i64>| {
        let mut one = sighting(NoticeKind::Terminate, deadline, 0);
        one.notice.event_id = Some("e-1".to_owned());
        view(&[(Source::AzureScheduledEvents, vec![one])])
    };
    let scheduled = look(&event(Some(60)), &[], 0);
    for (begins, deadline) in [(20, 20), (75, 60)] {
        let begun = look(&event(None), &scheduled.records, begins);
        assert_eq!(begun.order.as_ref().unwrap().deadline, Some(at(deadline)));
        let later = look(&event(None), &begun.records, begins + 30);
        assert_eq!(later.order, begun.order, "it is told once");
    }
}

#[test]
fn interruptions_come_before_advice_and_the_sooner_one_first() {
    let advice = (Source::AwsRebalance, vec![sighting(NoticeKind::RebalanceRecommended, None, 0)]);
    let reboot = (Source::AwsMaintenance, vec![sighting(NoticeKind::Reboot, Some(600), 1)]);
    let stop = (Source::AwsSpot, vec![sighting(NoticeKind::Stop, Some(120), 2)]);
    let only_advice = look(&view(std::slice::from_ref(&advice)), &[], 3);
    let order = only_advice.order.unwrap();
    assert_eq!((order.advice, order.leave()), (Some(Advice::Checkpoint), false));
    let both = look(&view(&[advice.clone(), reboot.clone()]), &only_advice.records, 3);
    assert_eq!(both.order.as_ref().unwrap().source, Source::AwsMaintenance);
    let all = look(&view(&[advice, reboot, stop]), &both.records, 3);
    assert_eq!(all.order.unwrap().source, Source::AwsSpot);
    assert_eq!(all.records.len(), 3);
}

#[test]
fn maintenance_far_away_is_looked_at_again_when_it_is_near() {
    let far = view(&[(Source::AwsMaintenance, vec![sighting(NoticeKind::Stop, Some(100_000), 0)])]);
    let first = look(&far, &[], 0);
    assert_eq!((first.order, first.look_again), (None, Some(at(99_100))));
    let near = look(&far, &first.records, 99_100);
    assert!(near.order.is_some());
    assert_eq!(near.look_again, None);
}

#[test]
fn a_word_nobody_knows_survives_being_written_down() {
    let odd = view(&[(Source::AwsSpot, vec![sighting(NoticeKind::Unrecognised("melt".into()), None, 0)])]);
    let first = look(&odd, &[], 0);
    let written = serde_json::to_string(&first.records).unwrap();
    let read: Vec<Record> = serde_json::from_str(&written).unwrap();
    assert_eq!(read, first.records);
    let again = look(&odd, &read, 1);
    assert_eq!(again.order, first.order);
    assert!(again.order.unwrap().reason.contains("melt"));
}

#[test]
fn the_past_is_forgotten_in_the_end_and_only_once_nothing_is_left_of_it() {
    let mut records = Vec::new();
    for round in 0..50 {
        let second = i64::from(round) * 10;
        records = look(&spot(second + 120, second), &records, second).records;
        records = look(&view(&[(Source::AwsSpot, vec![])]), &records, second + 5).records;
        if round >= 20 {
            records.iter_mut().for_each(|record| record.cleared = Some(at(second)));
        }
    }
    assert!(records.len() <= 9, "{}", records.len());
    let kept = look(&view(&[]), &records, 1_000).records;
    assert_eq!(kept.iter().map(|record| record.seen).max(), Some(at(490)), "the newest are kept");
}

proptest! {
    /// Whatever comes and goes and whenever the monitor is killed: a notice that stands has one record that stands, and
    /// every look gives the same id.
    #[test]
    fn one_notice_one_record(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..40)) {
        let mut records: Vec<Record> = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        let mut before = false;
        for (second, (announced, answers, written)) in steps.into_iter().enumerate() {
            let second = second as i64;
            let sources = if announced { spot(500, second) } else { view(&[(Source::AwsSpot, vec![])]) };
            let heard = if answers { sources } else { View::default() };
            let now = look(&heard, &records, second);
            let standing = now.records.iter().filter(|record| record.withdrawn.is_none()).count();
            prop_assert!(standing <= 1);
            if answers {
                prop_assert_eq!(now.order.is_some(), announced);
            }
            if let Some(order) = &now.order {
                let known = ids.contains(&order.id);
                prop_assert!(known || !before, "it has the same id for as long as it stands");
                if !known {
                    ids.push(order.id.clone());
                }
            }
            // A monitor that is killed before it has written anything down looks again, and sees the same.
            let again = look(&heard, &records, second);
            prop_assert_eq!(&again, &now);
            if written || now.order.is_some() || standing == 0 {
                before = now.order.is_some();
                records = now.records;
            }
        }
    }
}
