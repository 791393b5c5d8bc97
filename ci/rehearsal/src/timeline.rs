//! What happened when, for people to read at the end: it is printed when it is dropped.

use k8s_openapi::jiff::Timestamp;

use crate::{application::Status, observer::Seen};

/// Moments and what happened then.
pub struct Timeline {
    begun: Timestamp,
    moments: Vec<(Timestamp, String)>,
}

impl Timeline {
    /// Begins now.
    pub fn begin(what: &str) -> Self {
        let begun = Timestamp::now();
        eprintln!("{what}");
        Self { begun, moments: vec![(begun, what.to_owned())] }
    }

    /// Something happens now.
    pub fn note(&mut self, what: impl Into<String>) {
        let what = what.into();
        let now = Timestamp::now();
        eprintln!("{:>8.3} s  {what}", seconds(self.begun, now));
        self.moments.push((now, what));
    }

    /// What a migration says of itself.
    pub fn migration(&mut self, name: &str, status: &Status) {
        let (from, to) = (status.migration("source/node"), status.migration("target/node"));
        for (field, what) in [
            ("startedAt", format!("the operator begins to move it from {from} to {to}")),
            ("dumpAt", "the target is ready; the final dump is asked for".to_owned()),
            ("frozenAt", "frozen".to_owned()),
            ("committedAt", "its checkpoint is committed".to_owned()),
            ("resumedAt", format!("runs on {to}")),
            ("residentAt", "its last page has come".to_owned()),
            ("finishedAt", "the migration is over, the old pod is being removed".to_owned()),
        ] {
            if let Ok(moment) = status.migration(field).parse() {
                self.moments.push((moment, format!("{name}: {what}")));
            }
        }
        if let Some(blackout) = status.blackout_ms() {
            self.note(format!("{name}: frozen until running, by the operator's count: {blackout} ms"));
        }
    }

    /// What a client has noticed.
    pub fn seen(&mut self, name: &str, seen: &Seen) {
        if let Some((gap, end)) = seen.longest {
            if let Ok(end) = Timestamp::try_from(end) {
                self.moments
                    .push((end, format!("{name}: the client's longest pause ends, {} ms", gap.as_millis())));
            }
            self.note(format!(
                "{name}: a client wrote {} times; longest pause {} ms, {} failed tries to connect or write, {} acknowledged writes lost",
                seen.writes,
                gap.as_millis(),
                seen.errors,
                seen.lost
            ));
        }
    }
}

impl Drop for Timeline {
    /// All of it, in order, however it ended.
    fn drop(&mut self) {
        self.moments.sort_by_key(|(moment, _)| *moment);
        println!();
        for (moment, what) in &self.moments {
            println!("{:>9.3} s  {what}", seconds(self.begun, *moment));
        }
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}
