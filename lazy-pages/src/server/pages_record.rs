//! The record of how pages came, made of what the page server has counted.

use std::time::SystemTime;

use crate::{
    format::{Manifest, ObjectId},
    record::{Heat, HeatRow, Machine, Moments, PagesRecord, RECORD_VERSION, Wait, unix_us},
    server::{
        Outcome, ServerStats,
        events::now,
        frames::Layout,
        journal::{Journal, Number},
        trace::{Rows, Snapshot},
    },
};

/// What there is to tell of a restore that has ended; `None` if its processes have never run.
pub fn pages_record(journal: &Journal, layout: &Layout, outcome: &Outcome) -> Option<PagesRecord> {
    let registered = Some(journal.value(Number::Registered)).filter(|registered| *registered != 0)?;
    // Whoever restores waits for the end of this process when CRIU has failed.
    Some(journal.value(Number::Restored)).filter(|restored| *restored != 0)?;
    let since =
        |event| Some(journal.value(event)).filter(|at| *at != 0).map(|at| at.saturating_sub(registered));
    let ended_us = now().saturating_sub(registered);
    let (outcome, reason) = match outcome {
        Outcome::Resident(_) => ("resident", None),
        Outcome::TreeGone(_) => ("gone", None),
        Outcome::RestoreFailed { reason } | Outcome::Stopped { reason } => ("failed", Some(reason.clone())),
        Outcome::Cancelled => return None,
    };
    let seen = journal.trace().snapshot();
    let manifest = layout.manifest();
    let resident_us = since(Number::Resident);
    let used =
        |width: u64, last: usize| (resident_us.unwrap_or(ended_us) / width + 1).min(last as u64) as usize;
    Some(PagesRecord {
        version: RECORD_VERSION,
        machine: Machine::here(),
        begun_unix_us: unix_us(SystemTime::now()).saturating_sub(ended_us),
        ended_us,
        running_us: since(Number::Restored),
        resident_us,
        outcome: outcome.to_owned(),
        reason,
        numbers: ServerStats::of(journal),
        heat: heat(manifest, &seen, used(seen.heat_width_us, seen.heat[0].len())),
        slowest: slowest(layout, &seen),
        taken_over_us: seen.taken_over_us.clone(),
        torn: seen.torn,
        moments: {
            let used = used(seen.width_us, seen.columns[0].len());
            let [faults, installed_pages, fetched_bytes, waits, longest_wait_us] =
                seen.columns.map(|column| folded(column, used));
            Moments {
                width_us: seen.width_us,
                faults,
                installed_pages,
                fetched_bytes,
                waits,
                longest_wait_us,
            }
        },
    })
}

/// The first `used` moments. What was counted in the instant of a doubling, and so too late, is in the last of them.
fn folded(mut column: Vec<u64>, used: usize) -> Vec<u64> {
    let late: u64 = column.drain(used..).sum();
    if let Some(last) = column.last_mut() {
        *last += late;
    }
    column
}

fn heat(manifest: &Manifest, seen: &Snapshot, used: usize) -> Heat {
    let rows = Rows::of(manifest);
    let rows = rows.all().iter().zip(&seen.heat).map(|(row, faults)| HeatRow {
        pid: pid(manifest, row.object),
        start: row.start.get(),
        end: row.end.get(),
        pages: row.pages,
        faults: folded(faults.clone(), used),
    });
    Heat { width_us: seen.heat_width_us, rows: rows.collect() }
}

fn slowest(layout: &Layout, seen: &Snapshot) -> Vec<Wait> {
    let waits = seen.slowest.iter().filter_map(|slow| {
        let (object, run, _) = layout.uses_of(slow.frame).next()?;
        let (pid, address) = (pid(layout.manifest(), object), run.start.get());
        Some(Wait { waited_us: slow.waited_us, at_us: slow.at_us, pid, address })
    });
    waits.collect()
}

fn pid(manifest: &Manifest, object: usize) -> u32 {
    match manifest.objects[object].id {
        ObjectId::Task(pid) => pid,
        // Never restored on demand.
        ObjectId::Shared(_) | ObjectId::File(_) => 0,
    }
}
