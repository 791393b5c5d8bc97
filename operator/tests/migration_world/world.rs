//! The world: nodes, pods, agents, controllers and an operator, all of which do what they do in steps of time and can fail in any.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use migration_operator::{
    api::migration::{
        Migration, MigrationStage as Stage, MigrationStrategy, Place, TargetLost, TargetMadeBy,
    },
    migration::{
        Decision, Done, Effect, Failure, FailureKind, Handover, Limits, OperationSeen, PodSeen, Residency,
        Seen, decide, next_targets,
    },
};
use proptest::{prelude::*, strategy::Strategy as Generator};
use serde_json::json;

/// A step of time.
pub const TICK_MS: u64 = 100;
/// Ticks until a kubelet has told that a container has ended.
const NOTICED: u64 = 20;
/// The source and the nodes that can be moved to.
pub const NODES: [&str; 4] = ["a", "b", "c", "d"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Source,
    Target,
}

#[derive(Clone, Debug)]
pub enum Happens {
    /// The next final dump, or restore, fails.
    Fails {
        dump: bool,
        kind: FailureKind,
    },
    /// It takes this many ticks.
    Slow {
        dump: bool,
        ticks: u64,
    },
    /// What is restored next waits that much longer for its last page.
    SlowPages(u64),
    /// An agent does not answer for a while.
    Silent(Which, u64),
    /// A pod is gone with its machine.
    Dies(Which),
    /// What was restored at the target is killed, which its pod tells a while later. The source's agent may hear of it, and lets
    /// what is stopped there go on.
    Killed {
        told: bool,
    },
    /// A node is about to vanish.
    Doomed(usize),
    Cancel,
    /// The operator dies before it does what it has written down.
    Forgets,
    /// The operator dies while a request to an agent is on its way, which arrives that much later.
    Late(u64),
    /// Somebody else writes at the same time.
    Conflict,
    /// The webhook is not asked about the next pod that a controller makes.
    Unhooked,
}

pub fn happens() -> impl Generator<Value = Happens> {
    let which = prop_oneof![Just(Which::Source), Just(Which::Target)];
    let kind = prop_oneof![
        Just(FailureKind::Passing),
        Just(FailureKind::Store),
        Just(FailureKind::Strategy),
        Just(FailureKind::Damaged),
        Just(FailureKind::Refused),
    ];
    prop_oneof![
        3 => (any::<bool>(), kind).prop_map(|(dump, kind)| Happens::Fails { dump, kind }),
        2 => (any::<bool>(), 1u64..1500).prop_map(|(dump, ticks)| Happens::Slow { dump, ticks }),
        2 => (1u64..1500).prop_map(Happens::SlowPages),
        3 => (which.clone(), 1u64..1500).prop_map(|(which, ticks)| Happens::Silent(which, ticks)),
        2 => which.prop_map(Happens::Dies),
        2 => any::<bool>().prop_map(|told| Happens::Killed { told }),
        2 => (0..NODES.len()).prop_map(Happens::Doomed),
        1 => Just(Happens::Cancel),
        2 => Just(Happens::Forgets),
        2 => (1u64..100).prop_map(Happens::Late),
        2 => Just(Happens::Conflict),
        2 => Just(Happens::Unhooked),
    ]
}

#[derive(Clone, Debug)]
pub struct Story {
    pub maker: Option<TargetMadeBy>,
    pub strategy: MigrationStrategy,
    pub deadline_s: Option<u64>,
    pub checkpoint_before: bool,
    /// Pages come only when they are touched.
    pub on_demand: bool,
    /// By tick.
    pub events: Vec<(u64, Happens)>,
}

pub fn story() -> impl Generator<Value = Story> {
    let strategy = prop_oneof![
        Just(MigrationStrategy::Full),
        Just(MigrationStrategy::LazyStorage),
        Just(MigrationStrategy::LazyDirect),
        Just(MigrationStrategy::LazyHybrid),
    ];
    let deadline = proptest::option::of(5u64..120);
    // Most of what matters happens in the first seconds.
    let when = prop_oneof![3 => 0u64..40, 1 => 0u64..700];
    let events = proptest::collection::vec((when, happens()), 0..9);
    let maker = prop_oneof![
        2 => Just(None),
        1 => Just(Some(TargetMadeBy::ReplicaSet)),
        1 => Just(Some(TargetMadeBy::StatefulSet)),
    ];
    (maker, strategy, deadline, any::<bool>(), any::<bool>(), events).prop_map(
        |(maker, strategy, deadline_s, checkpoint_before, on_demand, events)| Story {
            maker,
            // Nothing can be handed over to what does not exist yet.
            strategy: match maker {
                Some(TargetMadeBy::StatefulSet) if strategy.hands_over() => MigrationStrategy::LazyStorage,
                _ => strategy,
            },
            deadline_s,
            checkpoint_before,
            on_demand,
            events,
        },
    )
}

#[derive(Clone, Debug)]
pub struct Pod {
    pub ready_at: u64,
    pub silent_until: u64,
    /// Its journal.
    pub operations: BTreeMap<String, Operation>,
    /// It started anew, and is another application, or, with this one's name, another run of it.
    pub anew: bool,
    /// When what was restored into it was killed.
    pub killed_at: Option<u64>,
}

/// What tells pods apart: a name, or what stands for it where several have one.
pub fn key(place: &Place) -> String {
    place.mark.clone().unwrap_or_else(|| place.pod.clone())
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub dump: bool,
    pub begun: u64,
    pub ends_at: u64,
    pub fails: Option<FailureKind>,
    pub hands_over: bool,
    /// What is restored.
    pub what: Option<String>,
    pub from_handover: bool,
    pub ended: Option<OperationSeen>,
}

/// Processes that are stopped.
#[derive(Clone, Debug)]
pub struct Stopped {
    pub pod: String,
    pub id: String,
    pub since: u64,
    pub claimed: bool,
    /// When the target needs them no longer.
    pub finished_at: Option<u64>,
}

pub struct World {
    pub tick: u64,
    pub written: Migration,
    pub pods: BTreeMap<String, Pod>,
    pub doomed: Vec<String>,
    pub dead: Vec<String>,
    pub runs: Vec<String>,
    pub stopped: Option<Stopped>,
    pub checkpoints: Vec<String>,
    pub filling_until: u64,
    pub on_demand: bool,
    pub cancel: bool,
    pub fails_dump: Vec<FailureKind>,
    pub fails_restore: Vec<FailureKind>,
    pub slow_dump: u64,
    pub slow_restore: u64,
    pub slow_pages: u64,
    pub forgets: u32,
    pub late: Vec<u64>,
    pub conflicts: u32,
    pub on_their_way: Vec<(u64, Effect, Migration)>,
    pub ids: u64,
    pub log: Vec<String>,
    /// Whether the source was released from its ReplicaSet.
    pub released: bool,
    /// Pods about which the webhook will not be asked.
    pub unhooked: u32,
    /// When the controller has its next turn.
    pub controls_at: u64,
}

pub fn at(tick: u64) -> Timestamp {
    Timestamp::from_millisecond(1_700_000_000_000 + (tick * TICK_MS) as i64).unwrap()
}

impl World {
    pub fn new(story: &Story) -> Self {
        let written: Migration = serde_json::from_value(json!({
            "id": "0123456789abcdef", "stage": "ChoosingTarget", "stageAt": at(0).to_string(), "reason": "test",
            "triggeredBy": "Person", "strategy": "full", "startedAt": at(0).to_string(),
            "timeoutAt": (at(0) + Duration::from_secs(60)).to_string(),
            "source": {"pod": "app-0", "node": "a"}, "attempt": 1
        }))
        .unwrap();
        let deadline = story.deadline_s.map(|seconds| MicroTime(at(0) + Duration::from_secs(seconds)));
        let mut written =
            Migration { strategy: story.strategy, deadline, target_made_by: story.maker, ..written };
        written.source.mark = written.target_takes_name().then(|| "uid-0".to_owned());
        let source = new_pod(0, false);
        let place = key(&written.source);
        Self {
            tick: 0,
            written,
            pods: BTreeMap::from([(place.clone(), source)]),
            doomed: Vec::new(),
            dead: Vec::new(),
            runs: vec![place],
            stopped: None,
            checkpoints: if story.checkpoint_before { vec!["P0".into()] } else { Vec::new() },
            filling_until: 0,
            on_demand: story.on_demand,
            cancel: false,
            fails_dump: Vec::new(),
            fails_restore: Vec::new(),
            slow_dump: 0,
            slow_restore: 0,
            slow_pages: 0,
            forgets: 0,
            late: Vec::new(),
            conflicts: 0,
            on_their_way: Vec::new(),
            ids: 0,
            log: Vec::new(),
            released: false,
            unhooked: 0,
            controls_at: 0,
        }
    }

    pub fn pod_of(&self, which: Which) -> Option<String> {
        match which {
            Which::Source => Some(key(&self.written.source)),
            Which::Target => self.written.target.as_ref().map(key),
        }
    }

    pub fn happens(&mut self, event: &Happens) {
        self.log.push(format!("{}: {event:?}", self.tick));
        match event {
            Happens::Fails { dump: true, kind } => self.fails_dump.push(*kind),
            Happens::Fails { dump: false, kind } => self.fails_restore.push(*kind),
            Happens::Slow { dump: true, ticks } => self.slow_dump = *ticks,
            Happens::Slow { dump: false, ticks } => self.slow_restore = *ticks,
            Happens::SlowPages(ticks) => self.slow_pages = *ticks,
            Happens::Silent(which, ticks) => {
                let until = self.tick + ticks;
                if let Some(pod) = self.pod_of(*which).and_then(|name| self.pods.get_mut(&name)) {
                    pod.silent_until = until;
                }
            }
            Happens::Dies(which) => {
                if let Some(name) = self.pod_of(*which) {
                    self.end_pod(&name);
                }
            }
            Happens::Killed { told } => {
                let Some(target) = self.pod_of(Which::Target).filter(|name| self.runs.contains(name)) else {
                    return;
                };
                if target == key(&self.written.source) {
                    return;
                }
                self.runs.retain(|pod| *pod != target);
                if let Some(pod) = self.pods.get_mut(&target) {
                    pod.killed_at = Some(self.tick);
                }
                // Nobody says that nothing is needed any more.
                if let Some(stopped) = &mut self.stopped {
                    stopped.finished_at = None;
                }
                if *told && let Some(stopped) = self.stopped.take() {
                    self.runs.push(stopped.pod);
                }
            }
            Happens::Doomed(node) => self.doomed.push(NODES[*node].to_owned()),
            Happens::Cancel => self.cancel = true,
            Happens::Forgets => self.forgets += 1,
            Happens::Late(ticks) => self.late.push(*ticks),
            Happens::Conflict => self.conflicts += 1,
            Happens::Unhooked => self.unhooked += 1,
        }
    }

    pub fn end_pod(&mut self, name: &str) {
        if self.pods.remove(name).is_some() {
            self.runs.retain(|pod| pod != name);
            if self.stopped.as_ref().is_some_and(|stopped| stopped.pod == name) {
                self.stopped = None;
            }
        }
    }

    /// Agents do what they were asked.
    pub fn agents_work(&mut self) {
        let due: Vec<(String, String)> = self
            .pods
            .iter()
            .flat_map(|(name, pod)| pod.operations.iter().map(move |(id, operation)| (name, id, operation)))
            .filter(|(_, _, operation)| operation.ended.is_none() && operation.ends_at <= self.tick)
            .map(|(name, id, _)| (name.clone(), id.clone()))
            .collect();
        for (name, id) in due {
            let operation = self.pods[&name].operations[&id].clone();
            let ended = self.outcome(&name, &operation);
            self.log.push(format!("{}: {id} in {name}: {ended:?}", self.tick));
            if let Some(operation) = self.pods.get_mut(&name).and_then(|pod| pod.operations.get_mut(&id)) {
                operation.ended = Some(ended);
            }
        }
        // Processes that nobody has claimed go on by themselves; those that are needed no longer are ended.
        if let Some(stopped) = self.stopped.clone() {
            if !stopped.claimed && self.tick > stopped.since + 300 {
                self.stopped = None;
                self.runs.push(stopped.pod);
            } else if stopped.finished_at.is_some_and(|at| at <= self.tick) {
                self.stopped = None;
            }
        }
    }

    pub fn outcome(&mut self, pod: &str, operation: &Operation) -> OperationSeen {
        let fail =
            |kind| OperationSeen::Failed(Failure { kind, message: format!("{kind:?}"), checkpoint: None });
        if let Some(kind) = operation.fails {
            return fail(kind);
        }
        let span = (operation.begun * TICK_MS, self.tick * TICK_MS);
        if operation.dump {
            if !self.runs.iter().any(|one| one == pod) {
                return fail(FailureKind::NoProcesses);
            }
            self.runs.retain(|one| one != pod);
            self.ids += 1;
            if operation.hands_over {
                let id = format!("H{}", self.ids);
                self.stopped = Some(Stopped {
                    pod: pod.to_owned(),
                    id: id.clone(),
                    since: self.tick,
                    claimed: false,
                    finished_at: None,
                });
                return OperationSeen::Succeeded(Done::Stopped { id, generation: self.ids, span });
            }
            let id = format!("C{}", self.ids);
            self.checkpoints.push(id.clone());
            return OperationSeen::Succeeded(Done::Checkpoint { id, frozen_ms: Some(1), span });
        }
        // A launcher that is in front of processes takes no others.
        if self.runs.iter().any(|one| one == pod) {
            return fail(FailureKind::NoProcesses);
        }
        let resident_at = self.tick + 20 + self.slow_pages;
        if operation.from_handover {
            match &mut self.stopped {
                Some(stopped) if Some(&stopped.id) == operation.what.as_ref() && !stopped.claimed => {
                    stopped.claimed = true;
                    stopped.finished_at = Some(resident_at);
                }
                _ => return fail(FailureKind::RunsElsewhere),
            }
        } else if let Some(what) = &operation.what
            && !self.checkpoints.contains(what)
        {
            return fail(FailureKind::Damaged);
        } else if self.checkpoints.is_empty() {
            return fail(FailureKind::NoCheckpoint);
        }
        self.runs.push(pod.to_owned());
        self.filling_until = resident_at;
        self.slow_pages = 0;
        OperationSeen::Succeeded(Done::Restored { resume_ms: Some(1), span })
    }

    pub fn pod_seen(&self, name: &str) -> PodSeen {
        match self.pods.get(name) {
            None => PodSeen::Gone,
            Some(pod) if self.tick < pod.ready_at => PodSeen::Starting,
            Some(pod) if pod.killed_at.is_some_and(|at| at + NOTICED <= self.tick) => PodSeen::Killed,
            Some(pod) if self.tick < pod.silent_until => PodSeen::Silent,
            Some(_) => PodSeen::Ready,
        }
    }

    pub fn see(&mut self) -> Seen {
        let written = self.written.clone();
        let source = self.pod_seen(&key(&written.source));
        let target = written.target.as_ref().map_or(PodSeen::Gone, |target| self.pod_seen(&key(target)));
        let asked =
            if written.source_has_stopped() { written.target.as_ref() } else { Some(&written.source) };
        let operation = match (&written.operation, asked) {
            (Some(id), Some(place)) => match (self.pod_seen(&key(place)), self.pods.get(&key(place))) {
                (PodSeen::Ready, Some(pod)) => match pod.operations.get(id) {
                    None => OperationSeen::Absent,
                    Some(Operation { ended: None, .. }) => OperationSeen::Running,
                    Some(Operation { ended: Some(ended), .. }) => ended.clone(),
                },
                _ => OperationSeen::Unknown,
            },
            (Some(_), None) => OperationSeen::Unknown,
            (None, _) => OperationSeen::Absent,
        };
        let mut residency = match target {
            PodSeen::Ready if self.tick < self.filling_until => Residency::Arriving,
            PodSeen::Ready => Residency::Resident,
            _ => Residency::Unknown,
        };
        let mut handover = Handover::Unknown;
        if written.handover_id.is_some() {
            match source {
                _ if source.is_over() => handover = Handover::Over,
                PodSeen::Ready => {
                    if written.takes_back()
                        && let Some(stopped) = self.stopped.clone()
                    {
                        // Unless it is known where, and that nothing of it runs there any more.
                        if stopped.claimed && (written.target.is_none() || !target.is_over()) {
                            handover = Handover::Claimed;
                        } else {
                            self.stopped = None;
                            self.runs.push(stopped.pod);
                            handover = Handover::GoesOn;
                        }
                    } else if self.stopped.is_some() {
                        handover = Handover::Stopped;
                        if residency == Residency::Resident {
                            residency = Residency::Arriving;
                        }
                    } else if self.runs.contains(&key(&written.source)) {
                        (handover, residency) = (Handover::GoesOn, Residency::Unknown);
                    } else {
                        handover = Handover::Over;
                    }
                }
                _ => residency = Residency::Unknown,
            }
        }
        let usable = |node: &&&str| **node != written.source.node && !self.is_doomed(node);
        Seen {
            source,
            source_doomed: self.is_doomed(&written.source.node),
            target,
            target_doomed: written.target.as_ref().is_some_and(|target| self.is_doomed(&target.node)),
            // Wherever a controller's pod comes to, it is not where it was.
            target_node: (target != PodSeen::Gone && written.target_made_by.is_some())
                .then(|| "b".to_owned()),
            refused: None,
            superseded: false,
            on_demand: self.on_demand,
            target_waits: None,
            source_released: self.released && source != PodSeen::Gone,
            nodes: NODES.iter().filter(usable).map(|&node| node.to_owned()).collect(),
            operation,
            handover,
            residency,
            checkpoints: Some(self.checkpoints.iter().rev().cloned().collect()),
            cancel: self.cancel,
            preserve_source: false,
        }
    }

    pub fn is_doomed(&self, node: &str) -> bool {
        self.doomed.iter().chain(&self.dead).any(|one| one == node)
    }

    /// The operator has its turn.
    pub fn operate(&mut self, limits: &Limits) {
        for _ in 0..6 {
            let seen = self.see();
            match decide(&self.written, &seen, limits, at(self.tick)) {
                Decision::Record(next) => {
                    if self.conflicts > 0 {
                        self.conflicts -= 1;
                        return;
                    }
                    self.log.push(format!(
                        "{}: {:?} {:?} {:?}",
                        self.tick, next.stage, next.operation, next.message
                    ));
                    self.written = *next;
                }
                Decision::Do(effect) => {
                    let written = self.written.clone();
                    if self.forgets > 0 {
                        self.forgets -= 1;
                    } else if matches!(effect, Effect::Dump | Effect::Restore)
                        && let Some(ticks) = self.late.pop()
                    {
                        self.on_their_way.push((self.tick + ticks, effect, written));
                    } else if let Some(why) = self.does(effect, &written) {
                        let seen = Seen { target: PodSeen::Ended, refused: Some(why), ..seen };
                        if let Decision::Record(next) = decide(&self.written, &seen, limits, at(self.tick)) {
                            self.log.push(format!("{}: {:?} {:?}", self.tick, next.stage, next.message));
                            self.written = *next;
                        }
                    }
                    return;
                }
                Decision::Wait(_) | Decision::Over => return,
            }
        }
    }

    /// Gives why it cannot be done.
    pub fn does(&mut self, effect: Effect, written: &Migration) -> Option<String> {
        self.log.push(format!("{}: {effect:?} {:?}", self.tick, written.operation));
        let target = written.target.as_ref();
        match effect {
            Effect::CreateTarget => {
                let target = target.expect("a target is written down");
                return match written.target_made_by {
                    None => {
                        let pod = new_pod(self.tick + 10, false);
                        self.pods.entry(target.pod.clone()).or_insert(pod);
                        None
                    }
                    Some(maker) => self.make_way(written, target, maker),
                };
            }
            Effect::PutBack => {
                let source = key(&written.source);
                // Where it is not known, the next checkpoint there tells.
                let unknown = written.target_lost == Some(TargetLost::MayHaveRun);
                let goes_on = self.runs.contains(&source) || !self.pods.contains_key(&source);
                assert!(goes_on || unknown, "{}", self.log.join("\n"));
                self.released = false;
            }
            Effect::DeleteTarget => {
                let name = key(target.expect("a target is written down"));
                assert!(!self.runs.contains(&name), "what is deleted runs: {}", self.log.join("\n"));
                self.end_pod(&name);
            }
            Effect::DeleteSource => {
                let name = key(&written.source);
                let kept = written.resumed_at.is_some() || !self.checkpoints.is_empty();
                assert!(kept, "there is nothing else: {}", self.log.join("\n"));
                assert!(
                    !self.runs.contains(&name),
                    "the source is deleted and runs: {}",
                    self.log.join("\n")
                );
                let stopped = self.stopped.as_ref().map(|stopped| &stopped.id);
                let needed = stopped.is_some() && stopped == written.handover_id.as_ref();
                assert!(!needed, "the source is deleted and needed: {}", self.log.join("\n"));
                self.end_pod(&name);
            }
            Effect::Dump => self.begin(&key(&written.source), written, true),
            Effect::Restore => {
                let name = key(target.expect("a target is written down"));
                self.begin(&name, written, false);
            }
            Effect::Cancel => {
                let place = if written.source_has_stopped() { target } else { Some(&written.source) };
                let pod = place.and_then(|place| self.pods.get_mut(&key(place)))?;
                let operation = written.operation.as_ref().and_then(|id| pod.operations.get_mut(id));
                if let Some(operation) = operation.filter(|operation| operation.ended.is_none()) {
                    let kind = FailureKind::Passing;
                    let failure = Failure { kind, message: "cancelled".into(), checkpoint: None };
                    operation.ended = Some(OperationSeen::Failed(failure));
                }
            }
        }
        None
    }

    /// As the operator does it: what is in the way and runs nothing of this is ended.
    pub fn make_way(&mut self, written: &Migration, target: &Place, maker: TargetMadeBy) -> Option<String> {
        if self.pods.contains_key(&key(target)) {
            return None;
        }
        let source = key(&written.source);
        let others = |world: &Self, anew: bool| -> Vec<String> {
            let other = |(name, pod): &(&String, &Pod)| **name != source && pod.anew == anew;
            world.pods.iter().filter(other).map(|(name, _)| name.clone()).collect()
        };
        for name in others(self, false) {
            assert!(!self.runs.contains(&name), "what is deleted runs: {}", self.log.join("\n"));
            self.end_pod(&name);
        }
        let wrong = others(self, true);
        match maker {
            TargetMadeBy::ReplicaSet => {
                self.released = true;
                (!wrong.is_empty()).then(|| "it has all the pods it wants".to_owned())
            }
            TargetMadeBy::StatefulSet => {
                assert!(!self.pods.contains_key(&source), "the source is there: {}", self.log.join("\n"));
                wrong.iter().for_each(|name| self.end_pod(name));
                (!wrong.is_empty()).then(|| "it was made without waiting".to_owned())
            }
        }
    }

    /// A controller has its turn: it has one pod, whatever becomes of it.
    pub fn control(&mut self) {
        let Some(maker) = self.written.target_made_by.filter(|_| self.tick >= self.controls_at) else {
            return;
        };
        let source = key(&self.written.source);
        let own: Vec<String> =
            self.pods.keys().filter(|name| **name != source || !self.released).cloned().collect();
        if let Some(surplus) = own.iter().find(|name| **name != source).filter(|_| own.len() > 1) {
            assert!(
                !self.runs.contains(surplus) || self.pods[surplus].anew,
                "{surplus}\n{}",
                self.log.join("\n")
            );
            let surplus = surplus.clone();
            self.end_pod(&surplus);
            return;
        }
        if !own.is_empty() {
            return;
        }
        self.controls_at = self.tick + 5;
        let asked = self.unhooked == 0;
        self.unhooked = self.unhooked.saturating_sub(1);
        let moves = !self.written.stage.is_over() && self.written.stage != Stage::RemovingSource;
        let places = if asked && moves { next_targets(&self.written, maker) } else { Vec::new() };
        let place = places.into_iter().find(|place| !self.pods.contains_key(&key(place)));
        self.ids += 1;
        match place {
            Some(place) => {
                self.log.push(format!("{}: made {place:?}", self.tick));
                self.pods.insert(key(&place), new_pod(self.tick + 10, false));
            }
            None => {
                let name = format!("anew-{}", self.ids);
                self.log.push(format!("{}: made {name}", self.tick));
                self.pods.insert(name.clone(), new_pod(self.tick + 10, true));
                // Beside a ReplicaSet's it is another application.
                if maker == TargetMadeBy::StatefulSet {
                    self.runs.push(name);
                }
            }
        }
    }

    pub fn begin(&mut self, pod: &str, written: &Migration, dump: bool) {
        // An agent does one thing at a time to an application.
        let busy =
            self.pods.get(pod).is_some_and(|pod| pod.operations.values().any(|one| one.ended.is_none()));
        if busy {
            return;
        }
        let (fails, slow) = match dump {
            true => (self.fails_dump.pop(), std::mem::take(&mut self.slow_dump)),
            false => (self.fails_restore.pop(), std::mem::take(&mut self.slow_restore)),
        };
        let what = written.handover_id.clone().or_else(|| written.checkpoint_id.clone());
        let operation = Operation {
            dump,
            begun: self.tick,
            ends_at: self.tick + 5 + slow,
            fails,
            hands_over: written.strategy.hands_over(),
            what,
            from_handover: written.handover_id.is_some(),
            ended: None,
        };
        let id = written.operation.clone().expect("an operation is written down");
        // A silent agent hears nothing; one that is gone even less.
        if self.pod_seen(pod) == PodSeen::Ready
            && let Some(pod) = self.pods.get_mut(pod)
        {
            pod.operations.entry(id).or_insert(operation);
        }
    }

    pub fn step(&mut self, limits: &Limits) {
        self.tick += 1;
        self.agents_work();
        let arrived: Vec<_> = self.on_their_way.extract_if(.., |(when, ..)| *when <= self.tick).collect();
        for (_, effect, written) in arrived {
            let _ = self.does(effect, &written);
        }
        self.operate(limits);
        self.control();
        assert!(self.runs.len() <= 1, "two runners {:?}:\n{}", self.runs, self.log.join("\n"));
    }
}

pub fn new_pod(ready_at: u64, anew: bool) -> Pod {
    Pod { ready_at, silent_until: 0, operations: BTreeMap::new(), anew, killed_at: None }
}
