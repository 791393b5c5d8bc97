//! What is seen of a migration from outside.

/// Everything a decision depends on beside what is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The source's pod.
    pub source: PodSeen,
    /// Whether the source's node is about to vanish.
    pub source_doomed: bool,
    /// The target's pod.
    pub target: PodSeen,
    /// Whether the target's node is about to vanish, or must not be used any more.
    pub target_doomed: bool,
    /// The node that the target's pod is on.
    pub target_node: Option<String>,
    /// Why there is no pod for the target, if that was found out when it was to be made.
    pub refused: Option<String>,
    /// Whether there never will be one: another program runs in its stead.
    pub superseded: bool,
    /// What keeps the target's pod from being ready, as its machine says.
    pub target_waits: Option<String>,
    /// Whether the source's pod was released from its ReplicaSet.
    pub source_released: bool,
    /// Nodes that can take it, best first; never the source's, never one about to vanish.
    pub nodes: Vec<String>,
    /// The operation that is written down.
    pub operation: OperationSeen,
    /// The processes that are stopped at the source.
    pub handover: Handover,
    /// Whether the target still needs others.
    pub residency: Residency,
    /// Pages come only when they are touched: there is no last one to wait for.
    pub on_demand: bool,
    /// The committed checkpoints, newest first; `None` if no agent could be asked.
    pub checkpoints: Option<Vec<String>>,
    /// Somebody wants it cancelled.
    pub cancel: bool,
    /// Somebody wants the source's pod kept.
    pub preserve_source: bool,
}

impl Default for Seen {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            source: PodSeen::Silent,
            source_doomed: false,
            target: PodSeen::Silent,
            target_doomed: false,
            target_node: None,
            refused: None,
            superseded: false,
            target_waits: None,
            source_released: false,
            nodes: Vec::new(),
            operation: OperationSeen::Unknown,
            handover: Handover::Unknown,
            residency: Residency::Unknown,
            on_demand: false,
            checkpoints: None,
            cancel: false,
            preserve_source: false,
        }
    }
}

/// A pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodSeen {
    /// There is none of that name, or its machine is known to be no more. Nothing of it runs.
    Gone,
    /// It is there and its containers have ended for good. Nothing of it runs, nor will.
    Ended,
    /// The same of what was restored into it, which did not end by itself.
    Killed,
    /// It is being deleted. It may still run.
    Leaving,
    /// It is not ready yet.
    Starting,
    /// Its agent can do what is needed.
    Ready,
    /// It should be ready and does not answer. It may run.
    Silent,
}

impl PodSeen {
    /// Whether it is known that nothing of it runs, nor will.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Gone | Self::Ended | Self::Killed)
    }
}

/// An operation of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationSeen {
    /// Its agent does not answer.
    Unknown,
    /// Its agent was never asked for it.
    Absent,
    /// It is under way.
    Running,
    /// It is done.
    Succeeded(Done),
    /// It failed; a dump has left the application running, of a restore nothing is left.
    Failed(Failure),
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// A checkpoint is committed and the processes are ended.
    Checkpoint {
        /// Which.
        id: String,
        /// Milliseconds they were frozen, if that is known.
        frozen_ms: Option<u64>,
        /// When it began and ended, by the agent's clock, in milliseconds since 1970.
        span: (u64, u64),
    },
    /// The processes are stopped and can be run elsewhere.
    Stopped {
        /// The handover.
        id: String,
        /// Which run of the application that will be.
        generation: u64,
        /// When it began and ended.
        span: (u64, u64),
    },
    /// The application runs.
    Restored {
        /// Milliseconds from the beginning until it ran, if that is known.
        resume_ms: Option<u64>,
        /// When it began and ended.
        span: (u64, u64),
    },
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What follows from it.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
    /// A checkpoint that is complete although the operation failed.
    pub checkpoint: Option<String>,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// Trying again may help.
    Passing,
    /// The store does not answer; any other machine would fail as well.
    Store,
    /// This strategy cannot move this application.
    Strategy,
    /// The agent's launcher has no such processes.
    NoProcesses,
    /// The checkpoint cannot be used, wherever it is restored.
    Damaged,
    /// There is no checkpoint.
    NoCheckpoint,
    /// Somebody else runs the application.
    RunsElsewhere,
    /// The request is not allowed, or not understood.
    Refused,
}

/// Processes that are stopped at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handover {
    /// The source's agent does not answer.
    Unknown,
    /// They are stopped.
    Stopped,
    /// They go on at the source.
    GoesOn,
    /// They were ended: because nobody needs them, as a rule.
    Over,
    /// They cannot go on: somebody else has begun to run the application, and has not said that it ended.
    Claimed,
}

/// Whether the target has all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Residency {
    /// Its agent, or for a handover the source's, does not answer.
    Unknown,
    /// Pages are missing.
    Arriving,
    /// Nobody else is needed any more.
    Resident,
}
