//! Which frames of the parent are still worth referring to: the fragmentation budget.
//!
//! A restore fetches whole frames. A frame that is referred to for a few of its pages costs as much as one that is needed
//! in full. So a checkpoint refers to a frame of its parent only if enough of its pages are unchanged. The unchanged pages
//! of all other frames are *rewritten*: stored once more, as if they had changed.
//!
//! Enough is:
//! - four fifths of the frame, or
//! - half of it, if all pages of the frames referred to so far, its own included, are still at most [`BUDGET`] times those
//!   needed of them. Frames that hardly changed pay for those that did, so less is rewritten than by the first rule alone.
//!
//! What always holds: a frame once kept is never rewritten, and one once rewritten is never kept. A frame is kept only
//! when enough different pages of it were seen unchanged, and then each of them refers to it. A checkpoint's own frames
//! are referred to in full. Every step keeps the sum within the budget. So **the frames of a checkpoint have at most 1.25
//! times as many pages as it refers to**, and with the same compression everywhere it is the same for the bytes that a
//! restore fetches. Only pages that are taken over from the parent unseen (see [`super::inherit`]) are outside of this.
//!
//! Pages come in ascending order, so a frame is decided when the page with the highest number that the parent has in it has
//! come, or would have. That a guess about the order is wrong costs a rewritten page, never the rule.

use crate::format::{FRAME_PAGES, Manifest, Source};

/// Pages of frames for each page needed of them: numerator and denominator.
const BUDGET: (u64, u64) = (5, 4);

/// A bit for each page of a frame.
const _: () = assert!(FRAME_PAGES <= u64::BITS as usize);

/// What is known of the frames of the parent: 24 bytes for each.
#[derive(Debug)]
pub(super) struct ParentFrames {
    frames: Vec<Frame>,
    /// Pages of all frames referred to so far, new ones too.
    referred: u64,
    /// Pages needed of these.
    needed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Pages seen unchanged.
    unchanged: u64,
    /// Number of the last page in it.
    last: u64,
    pages: u32,
    verdict: Verdict,
}

/// What becomes of a frame of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not known yet.
    Open,
    /// It is referred to.
    Kept,
    /// It is not; what is unchanged of it is stored again.
    Rewritten,
}

impl ParentFrames {
    pub fn of(parent: &Manifest) -> Self {
        let open = |pages| Frame { unchanged: 0, last: 0, pages, verdict: Verdict::Open };
        let mut frames: Vec<Frame> = parent.frames.iter().map(|entry| open(entry.pages)).collect();
        for run in parent.objects.iter().flat_map(|object| &object.runs) {
            if let Source::Stored { frame, .. } = run.source {
                let frame = &mut frames[frame.0 as usize];
                frame.last = frame.last.max(run.end().page() - 1);
            }
        }
        Self { frames, referred: 0, needed: 0 }
    }

    /// A page is stored in a new frame.
    pub fn stored(&mut self) {
        self.referred += 1;
        self.needed += 1;
    }

    /// Page `at` of a frame is unchanged. Whether the frame is kept because of that.
    pub fn unchanged(&mut self, frame: u32, at: u32) -> bool {
        let Frame { unchanged, pages, verdict, .. } = &mut self.frames[frame as usize];
        let before = unchanged.count_ones();
        *unchanged |= 1 << at;
        let now = unchanged.count_ones();
        match *verdict {
            Verdict::Kept => self.needed += u64::from(now - before),
            Verdict::Open if within_budget((*pages).into(), now.into()) => {
                *verdict = Verdict::Kept;
                self.referred += u64::from(*pages);
                self.needed += u64::from(now);
                return true;
            }
            Verdict::Open | Verdict::Rewritten => {}
        }
        false
    }

    /// What becomes of a frame, when all pages up to number `come` have come.
    pub fn verdict(&mut self, frame: u32, come: u64) -> Verdict {
        let Frame { unchanged, last, pages, verdict } = &mut self.frames[frame as usize];
        if *verdict == Verdict::Open && *last <= come {
            let (pages, unchanged) = (u64::from(*pages), u64::from(unchanged.count_ones()));
            let (referred, needed) = (self.referred + pages, self.needed + unchanged);
            *verdict = Verdict::Rewritten;
            if 2 * unchanged >= pages && within_budget(referred, needed) {
                *verdict = Verdict::Kept;
                (self.referred, self.needed) = (referred, needed);
            }
        }
        *verdict
    }

    /// The frame is rewritten, if it is not decided.
    pub fn give_up(&mut self, frame: u32) {
        let Frame { verdict, .. } = &mut self.frames[frame as usize];
        if *verdict == Verdict::Open {
            *verdict = Verdict::Rewritten;
        }
    }

    /// Number of the last page in a frame.
    pub fn last(&self, frame: u32) -> u64 {
        self.frames[frame as usize].last
    }
}

fn within_budget(referred: u64, needed: u64) -> bool {
    referred * BUDGET.1 <= needed * BUDGET.0
}
