//! Which frames still have to be fetched, which are on their way, and who uses them.
//!
//! A frame is *idle* until somebody wants it, *active* while it is fetched, unpacked and copied, and *delivered* when no
//! address space misses a page of it any more. Delivered frames may become idle again: when an address space registers
//! late.
//!
//! One lock around everything, held for look-ups only. It may be held while a space's state is locked, never the other
//! way round.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use crate::{
    format::{FrameIndex, Manifest, MemoryMap, ObjectId, Run, Source},
    units::VirtAddr,
};

/// Between two wanted frames of a pack, bytes of no use that are fetched with them rather than in two requests.
const MAX_GAP: u64 = 64 << 10;
/// How many recent faults the background fill keeps in mind.
const RECENT_FAULTS: usize = 16;

/// A frame's pages in one run of the manifest.
#[derive(Clone, Copy, Debug)]
struct Use {
    frame: u32,
    object: u32,
    run: u32,
}

/// The manifest, indexed by frame.
#[derive(Debug)]
pub struct Layout {
    manifest: Arc<Manifest>,
    /// Ascending by frame.
    uses: Vec<Use>,
}

impl Layout {
    /// Indexes the on-demand pages of `manifest`.
    pub fn new(manifest: Arc<Manifest>) -> Self {
        let mut uses = Vec::new();
        for (object, map) in manifest.objects.iter().enumerate() {
            if map.vmas.is_empty() {
                continue;
            }
            for (position, run) in map.runs.iter().enumerate() {
                if let Source::Stored { frame, eager: false, .. } = run.source
                    && is_on_demand(map, run)
                {
                    uses.push(Use { frame: frame.0, object: object as u32, run: position as u32 });
                }
            }
        }
        uses.sort_by_key(|used| used.frame);
        Self { manifest, uses }
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The object that holds the memory of the task with this pid.
    pub fn object_of_task(&self, pid: u32) -> Option<usize> {
        self.manifest.objects.iter().position(|map| map.id == ObjectId::Task(pid))
    }

    /// The frame that holds this page of this object.
    pub fn frame_of(&self, object: usize, image: VirtAddr) -> Option<FrameIndex> {
        let map = &self.manifest.objects[object];
        let run = map.runs.get(map.runs.partition_point(|run| run.end() <= image))?;
        match run.source {
            Source::Stored { frame, .. } if run.start <= image => Some(frame),
            _ => None,
        }
    }

    /// Every place where pages of `frame` belong: the object, the run, and the run's first page within the frame.
    pub fn uses_of(&self, frame: FrameIndex) -> impl Iterator<Item = (usize, Run, u32)> + '_ {
        let first = self.uses.partition_point(|used| used.frame < frame.0);
        self.uses[first..].iter().take_while(move |used| used.frame == frame.0).filter_map(|used| {
            let run = self.manifest.objects[used.object as usize].runs[used.run as usize];
            match run.source {
                Source::Stored { first, .. } => Some((used.object as usize, run, first)),
                Source::Zero => None,
            }
        })
    }

    fn frames_of(&self, object: usize) -> impl Iterator<Item = u32> + '_ {
        self.uses.iter().filter(move |used| used.object as usize == object).map(|used| used.frame)
    }
}

/// Whether some page of a run is in an area that is served.
pub fn is_on_demand(map: &MemoryMap, run: &Run) -> bool {
    let next = map.vmas.partition_point(|vma| vma.end <= run.start);
    map.vmas.get(next).is_some_and(|vma| vma.start < run.end())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No page on demand is in it.
    Unused,
    Idle,
    Active,
    Delivered,
}

/// What was damaged so often is so in the store, and not on its way.
pub const REFETCHES: u32 = 3;

#[derive(Debug, Default)]
struct Active {
    /// A request for it alone is on its way, or its bytes are on their way to a worker.
    urgent: bool,
    /// It is part of a larger request that is on its way.
    bulk: bool,
    /// It came with a larger request and waits for its turn.
    arrived: Option<Bytes>,
    /// A worker has it.
    working: bool,
    /// How often it was damaged and has been asked for again.
    again: u32,
    /// When the first thread began to wait for it.
    wanted: Option<Instant>,
}

/// What to do about a fault on a page of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing: it will be installed without further doing.
    Coming,
    /// Fetch it, alone and now.
    Fetch,
    /// Here it is: unpack it before anything else.
    Here(Bytes),
}

/// A stretch of a pack that is fetched in one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The frames that are wanted from it, ascending.
    pub frames: Vec<FrameIndex>,
    /// Bytes of the pack.
    pub bytes: Range<u64>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Frames {
    phases: Vec<Phase>,
    active: HashMap<u32, Active>,
    undelivered: usize,
    /// The background fill has passed every frame below.
    cursor: u32,
    recent: VecDeque<u32>,
}

impl Frames {
    /// Nothing fetched yet.
    pub fn new(layout: &Layout) -> Self {
        let mut phases = vec![Phase::Unused; layout.manifest.frames.len()];
        for used in &layout.uses {
            phases[used.frame as usize] = Phase::Idle;
        }
        let undelivered = phases.iter().filter(|phase| **phase == Phase::Idle).count();
        Self { phases, active: HashMap::new(), undelivered, cursor: 0, recent: VecDeque::new() }
    }

    /// How many frames have pages that some address space may miss.
    pub fn undelivered(&self) -> usize {
        self.undelivered
    }

    /// How many frames some thread waits for, and since when the first of them.
    pub fn waiting(&self) -> (u64, Option<Instant>) {
        let since = || self.active.values().filter_map(|active| active.wanted);
        (since().count() as u64, since().min())
    }

    /// An address space of `object` has appeared that misses everything.
    pub fn expect_again(&mut self, layout: &Layout, object: usize) {
        for frame in layout.frames_of(object) {
            self.set_idle(frame);
        }
    }

    /// Somebody misses a page of `frame`, which may count as delivered.
    pub fn expect_frame_again(&mut self, frame: FrameIndex) {
        self.set_idle(frame.0);
    }

    /// Unless it is on its way.
    fn set_idle(&mut self, frame: u32) {
        if matches!(self.phases[frame as usize], Phase::Delivered | Phase::Unused) {
            self.phases[frame as usize] = Phase::Idle;
            self.undelivered += 1;
            self.cursor = self.cursor.min(frame);
        }
    }

    /// A thread waits for a page of `frame`.
    ///
    /// A frame that is on its way as part of a larger request is asked for again, alone: that costs one frame's bytes and
    /// spares the thread the wait for all the others. Whichever comes first counts.
    pub fn want(&mut self, frame: FrameIndex, now: Instant) -> Want {
        self.set_idle(frame.0);
        if self.recent.front() != Some(&frame.0) {
            self.recent.truncate(RECENT_FAULTS - 1);
            self.recent.push_front(frame.0);
        }
        self.phases[frame.0 as usize] = Phase::Active;
        let active = self.active.entry(frame.0).or_default();
        active.wanted.get_or_insert(now);
        if active.urgent || active.working {
            return Want::Coming;
        }
        active.urgent = true;
        active.arrived.take().map_or(Want::Fetch, Want::Here)
    }

    /// The next stretch for the background fill, of at most `limit` bytes unless a single frame is longer. `needed` says
    /// whether any address space misses a page of a frame; one that nobody needs counts as delivered.
    pub fn next_unit(
        &mut self,
        layout: &Layout,
        limit: u64,
        mut needed: impl FnMut(FrameIndex) -> bool,
    ) -> Option<Unit> {
        while let Some(fault) = self.recent.pop_front() {
            if let Some(unit) = self.unit_from(layout, fault + 1, fault + 2, limit, &mut needed) {
                return Some(unit);
            }
        }
        let frames = self.phases.len() as u32;
        let unit = self.unit_from(layout, self.cursor, frames, limit, &mut needed);
        self.cursor = unit.as_ref().and_then(|unit| unit.frames.last()).map_or(frames, |last| last.0 + 1);
        unit
    }

    /// A stretch that starts with the first needed idle frame of `from .. until`.
    fn unit_from(
        &mut self,
        layout: &Layout,
        from: u32,
        until: u32,
        limit: u64,
        needed: &mut impl FnMut(FrameIndex) -> bool,
    ) -> Option<Unit> {
        let frames = &layout.manifest.frames;
        let mut unit: Option<Unit> = None;
        let mut pack = None;
        for index in from..self.phases.len() as u32 {
            if unit.is_none() && index >= until {
                break;
            }
            if self.phases[index as usize] != Phase::Idle {
                continue;
            }
            let entry = &frames[index as usize];
            if let Some(unit) = &unit
                && (pack != Some(entry.pack)
                    || entry.offset.saturating_sub(unit.bytes.end) > MAX_GAP
                    || entry.stored_end().saturating_sub(unit.bytes.start) > limit)
            {
                break;
            }
            if !needed(FrameIndex(index)) {
                self.phases[index as usize] = Phase::Delivered;
                self.undelivered -= 1;
                continue;
            }
            self.phases[index as usize] = Phase::Active;
            self.active.entry(index).or_default().bulk = true;
            pack = Some(entry.pack);
            let unit = unit.get_or_insert(Unit { frames: Vec::new(), bytes: entry.offset..entry.offset });
            unit.frames.push(FrameIndex(index));
            unit.bytes.end = unit.bytes.end.max(entry.stored_end());
        }
        unit
    }

    /// A frame's bytes have come with a larger request and wait for a worker. They are not kept when they are not needed.
    pub fn arrived(&mut self, frame: FrameIndex, bytes: Bytes) {
        if let Some(active) = self.active.get_mut(&frame.0) {
            active.bulk = false;
            if !active.working {
                active.arrived = Some(bytes);
            }
        }
    }

    /// The bytes that wait for a worker, if a thread waits for the frame too: it goes first then.
    pub fn take_wanted(&mut self, frame: FrameIndex) -> Option<Bytes> {
        self.active.get_mut(&frame.0).filter(|active| active.wanted.is_some())?.arrived.take()
    }

    /// Takes the bytes that wait for a worker; `None` when somebody else has, or has had, the frame.
    pub fn take_arrived(&mut self, frame: FrameIndex) -> Option<Bytes> {
        let active = self.active.get_mut(&frame.0)?;
        let bytes = active.arrived.take()?;
        active.working = true;
        Some(bytes)
    }

    /// Starts work on a frame whose bytes the caller has; `false` when somebody else has, or has had, it.
    pub fn start_work(&mut self, frame: FrameIndex) -> bool {
        let Some(active) = self.active.get_mut(&frame.0) else { return false };
        active.urgent = false;
        active.arrived = None;
        !std::mem::replace(&mut active.working, true)
    }

    /// The bytes were damaged. `true`: fetch the frame once more; `false`: that has been done [`REFETCHES`] times.
    pub fn damaged(&mut self, frame: FrameIndex) -> bool {
        let Some(active) = self.active.get_mut(&frame.0) else { return false };
        active.working = false;
        active.urgent = true;
        active.again += 1;
        active.again <= REFETCHES
    }

    /// No address space misses a page of the frame. Returns since when a thread has been waiting for it.
    pub fn delivered(&mut self, frame: FrameIndex) -> Option<Instant> {
        if self.phases[frame.0 as usize] != Phase::Active {
            return None;
        }
        self.phases[frame.0 as usize] = Phase::Delivered;
        self.undelivered -= 1;
        self.active.remove(&frame.0).and_then(|active| active.wanted)
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
