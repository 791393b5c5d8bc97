//! A report as one file of HTML: drawings and style are in it, nothing is fetched from anywhere, no script runs.

use std::fmt::Write;

use super::{
    Report,
    axis::Axis,
    charts,
    svg::escape,
    units::{bytes, count, date, now_ms, time},
};

const STYLE: &str = include_str!("style.css");

/// Waits that are shown one by one.
const WAITS: usize = 8;

/// The whole file.
pub fn page(report: &Report) -> String {
    let axis = Axis::of(report);
    let mut html = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{0} · {1}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<main>\n<header>\n<h1>{0}</h1>\n<p>{2}</p>\n</header>\n",
        escape(&report.app),
        escape(&report.checkpoint),
        escape(&headline(report)),
    );
    tiles(&mut html, report);
    if let Some(blackout) = &report.blackout {
        let title = format!("Why nothing ran for {}", time(blackout.total_us));
        section(&mut html, &title, &blackout.explained(), &charts::blackout(blackout));
    }
    if !axis.lanes.is_empty() {
        section(&mut html, "What was done when", "", &charts::gantt(&axis));
    }
    if let Some(pages) = &report.pages {
        let words = "Since the first task registered with its page server. Faults are of threads that touched a page that had \
                     not come; waits are until it was there.";
        section(&mut html, "How the pages came", words, &charts::resident(pages));
        let words = "Each row is about as much memory that is restored on demand as every other; a line between rows is a \
                     gap between addresses. Only faults for which a page had to come are here.";
        section(&mut html, "Where pages were waited for", words, &charts::heat(pages));
        let words = "Threads that touched pages of one frame (up to 64 pages) are one wait.";
        section(&mut html, "How long was waited", words, &charts::stalls(pages));
        slowest(&mut html, report);
    }
    numbers(&mut html, report);
    let _ = writeln!(html, "<section>\n<h2>What is not known</h2>");
    match report.unknown.is_empty() {
        true => html.push_str("<p>Nothing that this report should tell is missing.</p>\n"),
        false => {
            html.push_str("<ul>\n");
            for unknown in &report.unknown {
                let _ = writeln!(html, "<li>{}</li>", escape(unknown));
            }
            html.push_str("</ul>\n");
        }
    }
    let _ = write!(
        html,
        "</section>\n<footer>Checkpoint {}{}. Made by migration-agent {} on {}.</footer>\n</main>\n</body>\n</html>\n",
        escape(&report.checkpoint),
        report.restore.as_ref().map_or(String::new(), |name| format!(", restore {}", escape(name))),
        env!("CARGO_PKG_VERSION"),
        date(now_ms()),
    );
    html
}

/// What it is about, in a sentence.
pub fn headline(report: &Report) -> String {
    let mut text = match &report.contents {
        Some(contents) => format!(
            "{} ({} {}, {} {}), checkpointed {}",
            contents.command,
            contents.tasks,
            if contents.tasks == 1 { "task" } else { "tasks" },
            contents.threads,
            if contents.threads == 1 { "thread" } else { "threads" },
            date(contents.created_unix_ms)
        ),
        None => "Handed over while it was stopped".to_owned(),
    };
    if let Some(taken) = &report.taken {
        text.push_str(&format!(" on {}", taken.machine.name));
    }
    match &report.run {
        Some(run) => text.push_str(&format!(
            "; restored {} on {} as process {}, {}",
            date(run.begun_unix_us / 1000),
            run.machine.name,
            run.pid,
            run.strategy
        )),
        None if report.pages.is_some() => text.push_str("; restored by CRIU with a page server"),
        None => text.push_str("; no restore is known"),
    }
    text.push('.');
    text
}

/// The numbers that matter, and what they are: shown largest.
pub fn key_numbers(report: &Report) -> Vec<(&'static str, String)> {
    let mut numbers = Vec::new();
    let mut add = |name, value: Option<String>| numbers.extend(value.map(|value| (name, value)));
    add("nothing ran for", report.blackout.as_ref().map(|blackout| time(blackout.total_us)));
    add("frozen at the source", report.taken.as_ref().map(|taken| time(taken.frozen_us)));
    add("uploaded", report.contents.as_ref().map(|contents| bytes(contents.uploaded_bytes)));
    add("restore until running", report.run.as_ref().map(|run| time(run.running_us)));
    let pages = report.pages.as_ref();
    add("pages arrived within", pages.and_then(|pages| pages.resident_us).map(time));
    add("page faults", pages.map(|pages| count(pages.numbers.faults)));
    add("longest wait", pages.map(|pages| time(pages.numbers.longest_fault_us)));
    numbers
}

fn tiles(html: &mut String, report: &Report) {
    html.push_str("<dl class=\"tiles\">\n");
    for (name, value) in key_numbers(report) {
        let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(&value));
    }
    html.push_str("</dl>\n");
}

fn section(html: &mut String, title: &str, words: &str, drawing: &str) {
    let words = if words.is_empty() { String::new() } else { format!("<p>{}</p>\n", escape(words)) };
    let _ = write!(html, "<section>\n<h2>{}</h2>\n{words}{drawing}</section>\n", escape(title));
}

fn slowest(html: &mut String, report: &Report) {
    let Some(pages) = report.pages.as_ref().filter(|pages| !pages.slowest.is_empty()) else { return };
    html.push_str(
        "<section>\n<h2>The longest waits</h2>\n<table>\n<thead><tr><th class=\"n\">waited</th>\
         <th class=\"n\">until</th><th class=\"n\">process</th><th class=\"n\">address</th></tr></thead>\n<tbody>\n",
    );
    for wait in pages.slowest.iter().take(WAITS) {
        html.push_str("<tr>");
        for cell in charts::wait_cells(wait) {
            let _ = write!(html, "<td class=\"n\">{}</td>", escape(&cell));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</section>\n");
}

/// Everything that was counted, by group.
pub fn all_numbers(report: &Report) -> Vec<(&'static str, Vec<(&'static str, String)>)> {
    let mut groups = Vec::new();
    if let Some(contents) = &report.contents {
        groups.push((
            "The checkpoint",
            vec![
                ("pages of 4 KiB", count(contents.pages)),
                ("of these zero, not stored", count(contents.zero_pages)),
                ("unchanged since the checkpoint before", count(contents.unchanged_pages)),
                ("stored with this one", count(contents.stored_pages)),
                ("uploaded", bytes(contents.uploaded_bytes)),
                ("the store took, a second", bytes(contents.upload_bytes_per_second)),
                ("checkpoints it builds on", count(contents.depth.into())),
                ("files that travel with it", count(contents.files)),
            ],
        ));
    }
    if let Some(taken) = &report.taken {
        let machine = ("machine", taken.machine.name.clone());
        groups.push(match taken.handed_over {
            true => (
                "Stopping it",
                vec![
                    machine,
                    ("from the freeze until it could run elsewhere", time(taken.frozen_us)),
                    ("the processes", "stayed stopped, with their memory".to_owned()),
                ],
            ),
            false => (
                "Taking it",
                vec![
                    machine,
                    ("frozen", time(taken.frozen_us)),
                    ("from the first page until all was in the store", time(taken.upload_us)),
                    ("memory read", bytes(taken.memory_bytes)),
                    ("pages taken over that had not come", count(taken.pending_pages)),
                    ("the processes", (if taken.left_running { "went on" } else { "were ended" }).to_owned()),
                ],
            ),
        });
    }
    if let Some(run) = &report.run {
        groups.push((
            "Restoring it",
            vec![
                ("machine", run.machine.name.clone()),
                ("strategy", run.strategy.clone()),
                ("until it ran", time(run.running_us)),
                ("fetched before that, but for the page server", bytes(run.fetched_bytes)),
                ("files put back", count(run.files)),
            ],
        ));
    }
    if let Some(pages) = &report.pages {
        let numbers = &pages.numbers;
        let mut rows = vec![
            ("ended", pages.outcome.clone()),
            ("page faults", count(numbers.faults)),
            ("pages put into memory", count(numbers.installed_pages)),
            ("pages filled with zeros on demand", count(numbers.zeroed_pages)),
            ("pages that never came", count(numbers.missing_pages)),
            ("fetched", bytes(numbers.fetched_bytes)),
            ("pages came from", source(report).to_owned()),
            ("waited in all", time(numbers.stalled_us)),
            ("requests to the store that failed", count(numbers.store_errors)),
            ("frames that came damaged and were fetched again", count(numbers.damaged_frames)),
            ("page servers replaced", count(numbers.takeovers)),
        ];
        rows.extend(pages.reason.clone().map(|reason| ("because", reason)));
        rows.extend(numbers.last_error.clone().map(|error| ("the store said last", error)));
        groups.push(("Its pages", rows));
    }
    groups
}

/// Where pages came from, as far as that is known.
pub fn source(report: &Report) -> &'static str {
    match report.run.as_ref().map(|run| run.strategy.as_str()) {
        Some("lazy-direct") => "the stopped process",
        Some("lazy-hybrid") => "the stopped process or the store; how many from which is not counted",
        _ => "the store",
    }
}

fn numbers(html: &mut String, report: &Report) {
    html.push_str("<section>\n<h2>All numbers</h2>\n<div class=\"groups\">\n");
    for (title, rows) in all_numbers(report) {
        let _ = write!(html, "<table>\n<caption>{}</caption>\n<tbody>\n", escape(title));
        for (name, value) in rows {
            let _ =
                writeln!(html, "<tr><th>{}</th><td class=\"n\">{}</td></tr>", escape(name), escape(&value));
        }
        html.push_str("</tbody>\n</table>\n");
    }
    html.push_str("</div>\n</section>\n");
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
