//! A tree of processes with threads, open files on a volume, and a log; and one that does not care for signals.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use migration_harness::redis::{Client, Reply};

use super::steps::{expect, one_pod};
use crate::{
    Failure,
    application::{Application, PATIENCE},
    cluster::{NAMESPACE, kubectl, until},
    manifest::{CONTAINER, Manifest},
    observer::Observer,
    redis,
    timeline::Timeline,
};

/// How long a pod may take to end when its application does not care: the grace period of 30 s, and what kubelets take.
const GRACE: Duration = Duration::from_secs(90);

pub fn tree(strategy: &str) -> Result<(), Failure> {
    let manifest = Manifest { strategy, ..Manifest::ledger("tree", &[]) };
    let (_app, timeline) = moved(&manifest)?;
    drop(timeline);
    Ok(())
}

pub fn stubborn(strategy: &str) -> Result<(), Failure> {
    let manifest = Manifest { strategy, ..Manifest::ledger("stubborn", &["--deaf"]) };
    let (app, mut timeline) = moved(&manifest)?;
    let begun = Instant::now();
    drop(app);
    let took = begun.elapsed();
    expect(took < GRACE, "it takes too long to be deleted")?;
    timeline.note(format!("deleted; its pod was gone after {:.0} s", took.as_secs_f64()));
    Ok(())
}

/// Moves it and compares what its processes, its files and its log say.
fn moved(manifest: &Manifest<'_>) -> Result<(Application, Timeline), Failure> {
    let app = Application::start(manifest)?;
    let observer = Observer::start(&app, false)?;
    let status = app.status()?;
    let (source, pod) = (status.node().to_owned(), status.pod().to_owned());
    let log = Followed::follow(&pod)?;
    let before = Books::read(&app)?;
    let mut timeline =
        Timeline::begin(&format!("annotated on {source}: processes {}, threads, files", before.pids));
    app.trigger("rehearsal")?;
    let status = app.wait_until_moved("")?;
    expect(status.node() != source, "it has not left its node")?;
    let after = Books::read(&app)?;
    expect(after.pids == before.pids, "it has other processes than before")?;
    expect(after.counted > before.counted && after.ticks > before.ticks, "it does not count any more")?;
    let later = Books::read(&app)?;
    let seen = observer.finish()?;
    timeline.migration(&app.name, &app.status()?);
    timeline.seen(&app.name, &seen);
    let last = Books::read(&app)?;
    expect(later.counted > after.counted, "its threads do not count any more")?;
    expect(last.entries >= seen.writes, "acknowledged writes are not in its file")?;
    timeline.note(format!(
        "every process has compared its files with its memory: {} numbers of threads, {} writes",
        last.counted, last.entries
    ));
    one_pod(&app)?;
    let lines = continued(&app, log)?;
    timeline.note(format!("its log goes on in its new pod: {lines} lines in both, none twice, none missing"));
    Ok((app, timeline))
}

/// What its processes say of themselves, once all have compared their files with their memory.
struct Books {
    pids: String,
    counted: u64,
    entries: u64,
    ticks: u64,
}

impl Books {
    fn read(app: &Application) -> Result<Self, Failure> {
        let mut client: Client = redis::client(app)?;
        let Reply::Status(text) = client.command(&[b"CHECK"])? else {
            return Err("it says nothing of its books".into());
        };
        let word = |name: &str| {
            let mut words = text.split(' ').filter_map(|word| word.split_once('='));
            words.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
        };
        Ok(Self {
            pids: word("pids"),
            counted: word("counted").parse()?,
            entries: word("entries").parse()?,
            ticks: word("ticks").parse()?,
        })
    }
}

/// A log that is read until its container has ended: with its pod it goes.
struct Followed(Child);

impl Followed {
    fn follow(pod: &str) -> Result<Self, Failure> {
        let words = ["logs", "--namespace", NAMESPACE, "--follow", pod, "-c", CONTAINER];
        Ok(Self(Command::new("kubectl").args(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    fn read(mut self) -> Result<String, Failure> {
        let mut text = String::new();
        if let Some(mut stdout) = self.0.stdout.take() {
            std::io::Read::read_to_string(&mut stdout, &mut text)?;
        }
        Ok(text)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Every line that was written is in the log of the pod it was in, or of the one it is in, and in one of them only.
fn continued(app: &Application, before: Followed) -> Result<u64, Failure> {
    let first = ticks(&before.read()?)?;
    let pod = app.status()?.pod().to_owned();
    let second = until(PATIENCE, "there is something in its new log", || {
        let numbers = ticks(&kubectl(&["logs", &pod, "-c", CONTAINER])?)?;
        Ok((!numbers.is_empty()).then_some(numbers))
    })?;
    let all: Vec<u64> = first.iter().chain(&second).copied().collect();
    let wrong = all.iter().zip(1..).find(|(found, expected)| *found != expected);
    match wrong {
        None => Ok(all.len() as u64),
        Some((found, expected)) => {
            let parts = format!("{} lines in the first log, {} in the second", first.len(), second.len());
            Err(format!("line {expected} of its log says {found}; {parts}").into())
        }
    }
}

fn ticks(log: &str) -> Result<Vec<u64>, Failure> {
    let numbers = log.lines().filter_map(|line| line.strip_prefix("tick "));
    Ok(numbers.map(str::parse).collect::<Result<_, _>>()?)
}
