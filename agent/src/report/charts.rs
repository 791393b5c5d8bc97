//! The drawings of a report.

use lazy_pages::{
    record::{PagesRecord, Wait},
    server::STALL_LIMITS_US,
};

use super::{
    axis::{Axis, Kind},
    blackout::Blackout,
    svg::{Anchor, Drawing},
    units::{bytes, count, ticks, time},
};

/// Width of every drawing.
const WIDTH: f64 = 960.0;
/// Where the plots begin, right of the labels.
const LEFT: f64 = 176.0;
const RIGHT: f64 = WIDTH - 16.0;
const PLOT: f64 = RIGHT - LEFT;

fn scale(us: u64, end: u64) -> f64 {
    LEFT + PLOT * (us as f64 / end.max(1) as f64).min(1.0)
}

/// Lines and labels of an axis of time between two heights.
fn time_axis(drawing: &mut Drawing, end: u64, top: f64, bottom: f64) {
    for tick in ticks(end, 8) {
        let x = scale(tick, end);
        drawing.line("grid", (x, top), (x, bottom));
        drawing.text("tick", (x, bottom + 15.0), Anchor::Middle, &time(tick));
    }
}

/// Who did what when.
pub fn gantt(axis: &Axis) -> String {
    const ROW: f64 = 24.0;
    let rows: usize = axis.lanes.iter().map(|lane| lane.bars.len() + 1).sum();
    let top = 22.0;
    let bottom = top + rows as f64 * ROW + 4.0;
    let mut drawing = Drawing::default();
    time_axis(&mut drawing, axis.end, top, bottom);
    if let Some((from, to)) = axis.blackout {
        let (x, end) = (scale(from, axis.end), scale(to, axis.end));
        let length = time(to - from.min(to));
        drawing.rect("blackout", (x, top), (end - x, bottom - top), &format!("nothing ran for {length}"));
        drawing.text(
            "blackout-label",
            ((x + end) / 2.0, 14.0),
            Anchor::Middle,
            &format!("blackout {length}"),
        );
    }
    let mut y = top + 2.0;
    for lane in &axis.lanes {
        drawing.text("lane", (0.0, y + 16.0), Anchor::Start, &lane.name);
        y += ROW;
        for bar in &lane.bars {
            let class = match bar.kind {
                Kind::Taking => "bar taking",
                Kind::Frozen => "bar frozen",
                Kind::Upload => "bar upload",
                Kind::Restoring => "bar restoring",
                Kind::Pages => "bar pages",
            };
            let (x, end) = (scale(bar.span.from_us, axis.end), scale(bar.span.to_us, axis.end));
            let took = time(bar.span.to_us - bar.span.from_us.min(bar.span.to_us));
            let title = format!("{}: {took}, from {}", bar.span.name, time(bar.span.from_us));
            drawing.text("label", (LEFT - 8.0, y + 15.0), Anchor::End, &bar.span.name);
            drawing.rect(class, (x, y + 3.0), ((end - x).max(1.5), ROW - 7.0), &title);
            // Where there is no room behind the bar, it stands before it.
            match end + 70.0 < RIGHT {
                true => drawing.text("value", (end + 5.0, y + 15.0), Anchor::Start, &took),
                false if x - LEFT > 70.0 => {
                    drawing.text("value", (x - 5.0, y + 15.0), Anchor::End, &took);
                }
                false => drawing.text("value inside", (end - 6.0, y + 15.0), Anchor::End, &took),
            }
            y += ROW;
        }
    }
    if let Some((at, length)) = axis.cut {
        let x = scale(at, axis.end);
        drawing.line("cut", (x, top), (x, bottom));
        let text = format!("{} cut out", time(length));
        drawing.text("cut-label", (x, bottom + 30.0), Anchor::Middle, &text);
    }
    for (at, name) in [(axis.running, "running"), (axis.resident, "all pages there")] {
        if let Some(at) = at {
            let x = scale(at, axis.end);
            drawing.line("mark", (x, top), (x, bottom));
            if axis.blackout.is_none_or(|(_, to)| to != at) {
                let anchor = if x > RIGHT - 60.0 { Anchor::End } else { Anchor::Middle };
                drawing.text("mark-label", (x, 14.0), anchor, name);
            }
        }
    }
    drawing.finish(WIDTH, bottom + 36.0, "what was done when, on the source and on the target")
}

/// What a blackout consists of: one bar, and a line for each part.
pub fn blackout(blackout: &Blackout) -> String {
    const ROW: f64 = 20.0;
    let mut drawing = Drawing::default();
    let mut x = 0.0;
    for (at, part) in blackout.parts.iter().enumerate() {
        let width = WIDTH * part.took_us as f64 / blackout.total_us.max(1) as f64;
        let title = format!("{}: {}", part.name, time(part.took_us));
        drawing.rect(&format!("part p{}", at % 8), (x, 2.0), (width - 1.0, 26.0), &title);
        if width > 64.0 {
            drawing.text("part-label", (x + width / 2.0, 20.0), Anchor::Middle, &time(part.took_us));
        }
        x += width;
    }
    let lines = blackout.parts.len().div_ceil(2);
    for (at, part) in blackout.parts.iter().enumerate() {
        let (x, y) = ((at / lines) as f64 * WIDTH / 2.0, 40.0 + (at % lines) as f64 * ROW);
        drawing.rect(&format!("part p{}", at % 8), (x, y), (12.0, 12.0), &part.name);
        drawing.text("value", (x + 84.0, y + 10.5), Anchor::End, &time(part.took_us));
        let share = part.took_us as f64 * 100.0 / blackout.total_us.max(1) as f64;
        drawing.text("legend", (x + 96.0, y + 10.5), Anchor::Start, &format!("{} ({share:.0} %)", part.name));
    }
    let height = 44.0 + lines as f64 * ROW;
    drawing.finish(WIDTH, height, "what the blackout consists of")
}

/// Resident pages over time, and below it what was waited for.
pub fn resident(pages: &PagesRecord) -> String {
    const CURVE: (f64, f64) = (40.0, 200.0);
    const FAULTS: (f64, f64) = (232.0, 292.0);
    const WAITS: (f64, f64) = (322.0, 382.0);
    let moments = &pages.moments;
    let end = pages.resident_us.unwrap_or(pages.ended_us).max(1);
    let installed: u64 = moments.installed_pages.iter().fold(0, |sum, pages| sum.saturating_add(*pages));
    let all = installed.saturating_add(pages.numbers.missing_pages).max(1);
    let mut drawing = Drawing::default();
    time_axis(&mut drawing, end, CURVE.0, WAITS.1);
    let height = |share: f64, (top, bottom): (f64, f64)| bottom - (bottom - top) * share.clamp(0.0, 1.0);
    for percent in [0, 50, 100] {
        let y = height(f64::from(percent) / 100.0, CURVE);
        drawing.line("grid", (LEFT, y), (RIGHT, y));
        let size = bytes(((all as f64 * f64::from(percent) / 100.0) as u64).saturating_mul(4096));
        drawing.text("tick", (LEFT - 8.0, y + 4.0), Anchor::End, &format!("{percent} % · {size}"));
    }
    let mut points = vec![(LEFT, CURVE.1)];
    let mut there = 0_u64;
    for (at, pages) in moments.installed_pages.iter().enumerate() {
        there = there.saturating_add(*pages);
        let until = ((at as u64 + 1).saturating_mul(moments.width_us)).min(end);
        points.push((scale(until, end), height(there as f64 / all as f64, CURVE)));
    }
    let last = points.last().map_or(LEFT, |point| point.0);
    drawing.path("curve-line", &points, false);
    points.push((last, CURVE.1));
    drawing.path("curve", &points, true);
    drawing.text("label strong", (0.0, 16.0), Anchor::Start, "Pages in memory");
    let columns = [
        (&moments.faults, FAULTS, "fault", "Page faults", None),
        (&moments.longest_wait_us, WAITS, "wait", "Longest wait", Some(())),
    ];
    for (column, area, class, name, timed) in columns {
        let most = column.iter().copied().max().unwrap_or(0);
        let value = |number: u64| if timed.is_some() { time(number) } else { count(number) };
        drawing.line("grid", (LEFT, area.1), (RIGHT, area.1));
        drawing.text("label strong", (0.0, area.0 + 12.0), Anchor::Start, name);
        let per = format!("in {}", time(moments.width_us));
        drawing.text("tick", (0.0, area.0 + 28.0), Anchor::Start, &per);
        drawing.text("tick", (LEFT - 8.0, area.0 + 8.0), Anchor::End, &value(most));
        for (at, number) in column.iter().enumerate().filter(|(_, number)| **number > 0) {
            let from = (at as u64).saturating_mul(moments.width_us);
            let x = scale(from, end);
            let width = (scale(from.saturating_add(moments.width_us), end) - x - 0.4).max(0.8);
            let y = height(*number as f64 / most.max(1) as f64, area);
            let title = format!("{} from {}", value(*number), time(from));
            drawing.rect(class, (x, y), (width, (area.1 - y).max(0.8)), &title);
        }
    }
    let marks = [(pages.running_us, "running")].into_iter().filter_map(|(at, name)| Some((at?, name)));
    let takeovers = pages.taken_over_us.iter().map(|at| (*at, "page server replaced"));
    for (at, name) in marks.chain(takeovers) {
        let x = scale(at, end);
        drawing.line("mark", (x, CURVE.0), (x, WAITS.1));
        let anchor = if x > RIGHT - 90.0 { Anchor::End } else { Anchor::Start };
        let label = format!("{name} {}", time(at));
        drawing.text("mark-label", (x + 4.0, CURVE.0 - 8.0), anchor, &label);
    }
    drawing.finish(WIDTH, WAITS.1 + 24.0, "pages in memory, page faults and waits over time")
}

/// Where in memory pages were waited for, and when.
pub fn heat(pages: &PagesRecord) -> String {
    let heat = &pages.heat;
    let end = pages.resident_us.unwrap_or(pages.ended_us).max(1);
    let row_height = (420.0 / heat.rows.len().max(1) as f64).clamp(6.0, 18.0);
    let most = heat.rows.iter().flat_map(|row| &row.faults).copied().max().unwrap_or(0);
    let (top, sums) = (20.0, RIGHT - 84.0);
    let bottom = top + row_height * heat.rows.len() as f64;
    let mut drawing = Drawing::default();
    // The sums of the rows stand on the right.
    let x_of = |us: u64| LEFT + (sums - 12.0 - LEFT) * (us as f64 / end as f64).min(1.0);
    for tick in ticks(end, 7) {
        drawing.line("grid", (x_of(tick), top), (x_of(tick), bottom));
        drawing.text("tick", (x_of(tick), bottom + 15.0), Anchor::Middle, &time(tick));
    }
    drawing.text("tick", (LEFT - 8.0, 12.0), Anchor::End, "address");
    drawing.text("tick", (sums, 12.0), Anchor::Start, "faults");
    let sum = |faults: &[u64]| faults.iter().fold(0_u64, |sum, faults| sum.saturating_add(*faults));
    let widest = heat.rows.iter().map(|row| sum(&row.faults)).max().unwrap_or(0);
    let mut before = None;
    let mut labelled = f64::MIN;
    for (at, row) in heat.rows.iter().enumerate() {
        let y = top + row_height * at as f64;
        let span = format!(
            "process {}, {:#x}–{:#x}, {} on demand",
            row.pid,
            row.start,
            row.end,
            bytes(row.pages.saturating_mul(4096))
        );
        let apart = before.is_some_and(|(pid, end)| pid != row.pid || end != row.start);
        if apart {
            drawing.line("apart", (LEFT, y), (sums - 12.0, y));
        }
        if y - labelled >= 13.0 && (before.is_none() || apart || y - labelled >= 40.0) {
            drawing.text("address", (LEFT - 8.0, y + 9.0), Anchor::End, &format!("{:#x}", row.start));
            labelled = y;
        }
        before = Some((row.pid, row.end));
        for (moment, faults) in row.faults.iter().enumerate().filter(|(_, faults)| **faults > 0) {
            let from = (moment as u64).saturating_mul(heat.width_us);
            let width = x_of(from.saturating_add(heat.width_us)) - x_of(from);
            // The root: few faults must be seen beside many.
            let share = 0.15 + 0.85 * (*faults as f64 / most.max(1) as f64).sqrt();
            let title = format!("{} faults from {}: {span}", count(*faults), time(from));
            drawing.cell(share, (x_of(from), y), (width.max(1.0), row_height - 0.5), &title);
        }
        let faults = sum(&row.faults);
        let width = 76.0 * faults as f64 / widest.max(1) as f64;
        let title = format!("{} faults: {span}", count(faults));
        drawing.rect("fault", (sums, y), (width, row_height - 1.0), &title);
    }
    drawing.finish(WIDTH, bottom + 24.0, "page faults by address and time")
}

/// How many waits were how long.
pub fn stalls(pages: &PagesRecord) -> String {
    const ROW: f64 = 24.0;
    let stalls = &pages.numbers.stalls;
    let all: u64 = stalls.iter().fold(0, |sum, number| sum.saturating_add(*number));
    let most = stalls.iter().copied().max().unwrap_or(0).max(1);
    let mut drawing = Drawing::default();
    for (at, number) in stalls.iter().enumerate() {
        let y = 4.0 + at as f64 * ROW;
        let label = stall_label(at);
        drawing.text("label", (LEFT - 8.0, y + 15.0), Anchor::End, &label);
        let width = (PLOT - 130.0) * *number as f64 / most as f64;
        let share = *number as f64 * 100.0 / all.max(1) as f64;
        let value = format!("{} ({share:.1} %)", count(*number));
        drawing.rect("wait", (LEFT, y + 3.0), (width, ROW - 7.0), &format!("{label}: {value}"));
        drawing.text("value", (LEFT + width + 6.0, y + 15.0), Anchor::Start, &value);
    }
    drawing.finish(WIDTH, 8.0 + stalls.len() as f64 * ROW, "how many waits were how long")
}

/// What is counted at this place of the histogram.
pub fn stall_label(at: usize) -> String {
    let limit = |at: usize| STALL_LIMITS_US.get(at).map(|us| round(*us));
    match (at.checked_sub(1).and_then(limit), limit(at)) {
        (None, to) => format!("up to {}", to.unwrap_or_default()),
        (Some(from), Some(to)) => format!("{from} – {to}"),
        (Some(from), None) => format!("longer than {from}"),
    }
}

/// A time that is a whole number of its unit.
fn round(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}

/// A wait, as a line of a table.
pub fn wait_cells(wait: &Wait) -> [String; 4] {
    [time(wait.waited_us), time(wait.at_us), wait.pid.to_string(), format!("{:#x}", wait.address)]
}
