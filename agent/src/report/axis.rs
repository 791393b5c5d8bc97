//! All that is known on one axis of time.
//!
//! A checkpoint may be restored hours after it was taken. Nothing happens in between, so that stretch is cut out, and the
//! report says how long it was.

use lazy_pages::record::{PagesRecord, Span};

use super::{Report, blackout::taken_us};

/// What is longer than this without anything happening is cut out, if it is also longer than all that happened.
const CUT: u64 = 2_000_000;
/// What is left of it.
const LEFT: u64 = 50_000;

/// A bar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// What was done; its times are on the axis.
    pub span: Span,
    /// Which kind it is, for its colour.
    pub kind: Kind,
}

/// What a bar is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A step of the checkpoint.
    Taking,
    /// The processes are frozen.
    Frozen,
    /// Data is sent.
    Upload,
    /// A step of the restore.
    Restoring,
    /// Pages come.
    Pages,
}

/// Bars of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Of which.
    pub name: String,
    /// In order of time.
    pub bars: Vec<Bar>,
}

/// See the module's description. Times are in microseconds from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Axis {
    /// Source and target.
    pub lanes: Vec<Lane>,
    /// Where it ends.
    pub end: u64,
    /// When nothing of the application ran.
    pub blackout: Option<(u64, u64)>,
    /// Where something was cut out, and how much.
    pub cut: Option<(u64, u64)>,
    /// When the processes ran at the target.
    pub running: Option<u64>,
    /// When all pages were there.
    pub resident: Option<u64>,
}

impl Axis {
    /// Of everything that is known.
    pub fn of(report: &Report) -> Self {
        let taken = report.taken.as_ref();
        let taken_begun = taken.map(|taken| taken.begun_unix_us);
        let taken_took = taken.map_or(0, taken_us);
        let run = report.run.as_ref();
        let pages = report.pages.as_ref();
        let target_begun = run.map(|run| run.begun_unix_us).or(pages.map(|pages| pages.begun_unix_us));
        let Some(origin) = [taken_begun, target_begun].into_iter().flatten().min() else {
            return Self::default();
        };
        let at = |unix: u64, us: u64| (unix - origin.min(unix)).saturating_add(us);
        let target_took = [
            run.map(|run| run.running_us),
            pages.zip(target_begun).map(|(pages, begun)| {
                pages.begun_unix_us.saturating_sub(begun).saturating_add(pages_us(pages))
            }),
        ];
        let target_took = target_took.into_iter().flatten().max().unwrap_or(0);
        let mut axis = Self::default();
        let mut shift = 0;
        if let (Some(from), Some(to)) = (taken_begun.map(|begun| at(begun, taken_took)), target_begun)
            && at(to, 0) > from.saturating_add(CUT)
            && at(to, 0) - from > taken_took.saturating_add(target_took)
        {
            shift = at(to, 0) - from - LEFT;
            axis.cut = Some((from + LEFT / 2, shift));
        }
        let there = |unix: u64, us: u64| at(unix, us).saturating_sub(shift);
        if let Some(taken) = taken {
            let begun = taken.begun_unix_us;
            let bar = |kind, span: Span| Bar { kind, span };
            let mut bars: Vec<Bar> = taken
                .stages
                .iter()
                .map(|stage| bar(Kind::Taking, moved(stage, |us| at(begun, us))))
                .collect();
            let reading = taken.stages.iter().find(|stage| stage.name == "reading memory");
            if let Some(reading) = reading {
                let to_us = reading.from_us.saturating_add(taken.upload_us);
                let upload = Span { name: "upload".to_owned(), from_us: reading.from_us, to_us };
                bars.push(bar(Kind::Upload, moved(&upload, |us| at(begun, us))));
            }
            let over = taken_took;
            let frozen = Span {
                name: "frozen".to_owned(),
                from_us: over.saturating_sub(taken.frozen_us),
                to_us: over,
            };
            bars.push(bar(Kind::Frozen, moved(&frozen, |us| at(begun, us))));
            axis.lanes.push(Lane { name: format!("source · {}", taken.machine.name), bars });
        }
        let mut bars = Vec::new();
        if let Some(run) = run {
            let begun = run.begun_unix_us;
            bars.extend(
                run.stages
                    .iter()
                    .map(|stage| Bar { kind: Kind::Restoring, span: moved(stage, |us| there(begun, us)) }),
            );
            axis.running = Some(there(begun, run.running_us));
        }
        if let Some(pages) = pages {
            let begun = pages.begun_unix_us;
            let span = Span { name: "pages arrive".to_owned(), from_us: 0, to_us: pages_us(pages) };
            bars.push(Bar { kind: Kind::Pages, span: moved(&span, |us| there(begun, us)) });
            axis.running = axis.running.or(pages.running_us.map(|us| there(begun, us)));
            axis.resident = pages.resident_us.map(|us| there(begun, us));
        }
        if let Some(name) = run.map(|run| &run.machine.name).or(pages.map(|pages| &pages.machine.name)) {
            axis.lanes.push(Lane { name: format!("target · {name}"), bars });
        }
        if let (Some(blackout), Some(running)) = (&report.blackout, axis.running)
            && let Some(taken) = taken
        {
            let from = at(taken.begun_unix_us, taken_took.saturating_sub(taken.frozen_us));
            axis.blackout = (blackout.total_us > 0).then_some((from, running));
        }
        let ends = axis.lanes.iter().flat_map(|lane| &lane.bars).map(|bar| bar.span.to_us);
        axis.end = ends.max().unwrap_or(0).max(1);
        axis
    }
}

/// How long pages came.
fn pages_us(pages: &PagesRecord) -> u64 {
    pages.resident_us.unwrap_or(pages.ended_us)
}

fn moved(span: &Span, to: impl Fn(u64) -> u64) -> Span {
    Span { name: span.name.clone(), from_us: to(span.from_us), to_us: to(span.to_us) }
}
