//! A process that talks to CRIU and is killed by `tests/killed_agent.rs`: `victim DIRECTORY` does the job described by the
//! files in the directory (`stage`, `pid`, `images`) up to its stage, says so by a file `reached`, and stops there.

use std::{env, fs, os::unix::net::UnixStream, path::PathBuf, thread, time::Duration};

use criu_rpc::{Criu, DumpOptions, Notification, PageStream, RestoreOptions};

fn main() {
    let job = PathBuf::from(env::args_os().nth(1).expect("usage: victim DIRECTORY"));
    let read = |name: &str| fs::read_to_string(job.join(name)).unwrap();
    let stage = read("stage");
    let stop_here = || {
        fs::write(job.join("reached"), "").unwrap();
        thread::sleep(Duration::from_secs(1000));
    };
    let images = job.join("images");
    let criu = Criu::locate(None).unwrap();
    let handler = &mut |notification: &Notification| {
        if format!("{notification:?}").starts_with(&stage) {
            stop_here();
        }
        Ok(())
    };
    if stage.contains("Res") {
        criu.restore(RestoreOptions::new(&images).work_dir(&job), handler).unwrap();
        return;
    }
    let options = DumpOptions::new(read("pid").parse().unwrap(), &images).work_dir(&job);
    if stage == "pages" {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let version = criu.version().unwrap();
        let dump = thread::scope(|scope| {
            let dump = scope.spawn(|| criu.dump(options.page_server(theirs), handler));
            let mut stream = PageStream::new(ours, version);
            stream.next().unwrap();
            stream.next().unwrap();
            stop_here();
            dump.join().unwrap()
        });
        dump.unwrap();
    } else {
        criu.dump(options, handler).unwrap();
    }
}
