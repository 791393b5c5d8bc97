//! A report for a terminal.

use std::fmt::Write;

use super::{
    Report,
    axis::Axis,
    charts::{stall_label, wait_cells},
    html::{all_numbers, headline, key_numbers},
    units::{count, time},
};

/// Characters of a bar.
const BAR: usize = 40;
/// Waits that are shown one by one.
const WAITS: usize = 5;

/// The whole report.
pub fn page(report: &Report) -> String {
    let mut text = format!("{}\n{}\n", printable(&report.app), printable(&headline(report)));
    for (name, value) in key_numbers(report) {
        let _ = writeln!(text, "  {value:>12}  {name}");
    }
    let axis = Axis::of(report);
    if !axis.lanes.is_empty() {
        let _ = writeln!(text, "\nWhat was done when (0 – {})", time(axis.end));
        for lane in &axis.lanes {
            let _ = writeln!(text, "  {}", printable(&lane.name));
            for bar in &lane.bars {
                let took = time(bar.span.to_us.saturating_sub(bar.span.from_us));
                let drawn = drawn(bar.span.from_us, bar.span.to_us, axis.end);
                let _ = writeln!(text, "    {:<24}{drawn} {took}", printable(&bar.span.name));
            }
        }
        if let Some((_, length)) = axis.cut {
            let _ = writeln!(text, "  {} between the two are left out", time(length));
        }
    }
    if let Some(blackout) = &report.blackout {
        let _ = writeln!(text, "\nNothing ran for {}", time(blackout.total_us));
        for part in &blackout.parts {
            let bar = "█".repeat(share(part.took_us, blackout.total_us, BAR));
            let _ = writeln!(text, "    {:<28}{:>9}  {bar}", printable(&part.name), time(part.took_us));
        }
        let _ = writeln!(text, "  {}", printable(&blackout.explained()));
    }
    if let Some(pages) = &report.pages {
        let installed = &pages.moments.installed_pages;
        let _ = writeln!(
            text,
            "\nHow the pages came (0 – {})",
            time(pages.resident_us.unwrap_or(pages.ended_us))
        );
        let _ = writeln!(text, "    {:<12}{}", "in memory", sparkline(&sums(installed)));
        let _ = writeln!(text, "    {:<12}{}", "faults", sparkline(&pages.moments.faults));
        let _ = writeln!(text, "    {:<12}{}", "longest wait", sparkline(&pages.moments.longest_wait_us));
        let _ = writeln!(text, "\nHow long was waited");
        let most = pages.numbers.stalls.iter().copied().max().unwrap_or(0);
        for (at, number) in pages.numbers.stalls.iter().enumerate() {
            let label = stall_label(at);
            let bar = "█".repeat(share(*number, most, BAR));
            let _ = writeln!(text, "    {label:<18}{:>9}  {bar}", count(*number));
        }
        for wait in pages.slowest.iter().take(WAITS) {
            let [waited, until, pid, address] = wait_cells(wait);
            let _ = writeln!(text, "    waited {waited} until {until}: process {pid}, {address}");
        }
    }
    for (title, rows) in all_numbers(report) {
        let _ = writeln!(text, "\n{title}");
        for (name, value) in rows {
            let _ = writeln!(text, "    {name:<50}{}", printable(&value));
        }
    }
    if !report.unknown.is_empty() {
        text.push_str("\nNot known\n");
        for unknown in &report.unknown {
            let _ = writeln!(text, "  - {}", printable(unknown));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

/// Text from elsewhere that cannot steer a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `part` of `all`, of so many characters.
fn share(part: u64, all: u64, of: usize) -> usize {
    ((part as f64 / all.max(1) as f64).min(1.0) * of as f64).round() as usize
}

fn drawn(from: u64, to: u64, end: u64) -> String {
    let begin = share(from, end, BAR).min(BAR - 1);
    let length = share(to.saturating_sub(from), end, BAR).clamp(1, BAR - begin);
    format!("│{}{}{}│", " ".repeat(begin), "█".repeat(length), " ".repeat(BAR - begin - length))
}

fn sums(numbers: &[u64]) -> Vec<u64> {
    let sums = numbers.iter().scan(0_u64, |sum, number| {
        *sum = sum.saturating_add(*number);
        Some(*sum)
    });
    sums.collect()
}

/// The greatest number of each of [`BAR`] stretches.
fn sparkline(numbers: &[u64]) -> String {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = numbers.iter().copied().max().unwrap_or(0);
    let each = numbers.len().div_ceil(BAR).max(1);
    let greatest = numbers.chunks(each).map(|chunk| chunk.iter().copied().max().unwrap_or(0));
    let step = |number| if number == 0 { ' ' } else { STEPS[share(number, most, STEPS.len() - 1)] };
    format!("│{}│", greatest.map(step).collect::<String>())
}
