//! A program that holds files, and what files are like from outside.

use super::*;

/// Does what is asked of it, in Python, and keeps every name for the next time. It has nothing open of its own.
pub const HOLDER: &str = "
import ctypes, fcntl, hashlib, mmap, os, sqlite3, sys, time, traceback
control, data = sys.argv[1:3]
def act(code):
    try:
        code = compile(code, 'asked', 'eval')
    except SyntaxError:
        return exec(code, globals())
    return eval(code, globals())
while True:
    time.sleep(0.005)
    try:
        with open(control + '/ask') as ask: code = ask.read()
    except FileNotFoundError:
        continue
    os.remove(control + '/ask')
    try:
        answer = repr(act(code))
    except BaseException:
        answer = 'failed: ' + traceback.format_exc()
    with open(control + '/answer.new', 'w') as file: file.write(answer)
    os.rename(control + '/answer.new', control + '/answer')
";

/// A process that holds files.
pub struct Holder {
    control: PathBuf,
    pub data: PathBuf,
    pub pid: i32,
}

impl Holder {
    pub fn start(fixture: &Fixture) -> Self {
        let control = fixture.path().join("control");
        let data = fixture.path().join("data");
        fs::create_dir(&control).unwrap();
        fs::create_dir(&data).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", HOLDER]).args([&control, &data]).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let pid = in_own_session(&mut command).spawn().unwrap().id() as i32;
        Self { control, data, pid }
    }

    /// What it says when this is evaluated, or executed.
    #[track_caller]
    pub fn ask(&self, code: &str) -> String {
        fs::write(self.control.join("ask.new"), code).unwrap();
        fs::rename(self.control.join("ask.new"), self.control.join("ask")).unwrap();
        let answer = self.control.join("answer");
        assert!(
            process::wait_until(LIMIT, || answer.exists() || !process::is_running(self.pid)),
            "no answer to {code}"
        );
        let said = fs::read_to_string(&answer).expect("it has ended");
        fs::remove_file(answer).unwrap();
        assert!(!said.starts_with("failed"), "{code}: {said}");
        said
    }

    #[track_caller]
    pub fn expect(&self, code: &str, answer: &str) {
        assert_eq!(self.ask(code), answer, "{code}");
    }

    /// A checkpoint after which it has ended.
    #[track_caller]
    pub fn leave(&self, fixture: &Fixture, options: &[&str]) -> Value {
        let tree = process::tree(self.pid);
        let report = fixture.json(&[&["checkpoint", "--app", "app", "--pid", &self.pid()], options].concat());
        // The test is whose children they are when their parents have ended.
        assert!(tree.iter().rev().all(|pid| process::wait_gone(*pid, LIMIT)));
        report
    }

    /// A checkpoint after which it goes on.
    #[track_caller]
    pub fn save(&self, fixture: &Fixture, options: &[&str]) -> Value {
        let arguments = ["checkpoint", "--app", "app", "--leave-running", "--pid", &self.pid()];
        fixture.json(&[&arguments[..], options].concat())
    }

    /// A checkpoint is refused, and it goes on.
    #[track_caller]
    pub fn refused(&self, fixture: &Fixture, options: &[&str], reason: &str) -> String {
        let error =
            fixture.refused(&[&["checkpoint", "--app", "app", "--pid", &self.pid()], options].concat());
        assert_eq!(error["reason"], reason, "{error}");
        assert_eq!(error["left"], format!("process {} runs on", self.pid));
        self.expect("'here'", "'here'");
        assert_eq!(fixture.manifests().len(), 0);
        error.to_string()
    }

    pub fn end(&self) {
        process::end(self.pid).unwrap();
        assert!(process::wait_gone(self.pid, LIMIT));
    }

    pub fn pid(&self) -> String {
        self.pid.to_string()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mine = |argument: &Vec<u8>| argument == self.control.as_os_str().as_bytes();
        process::end_all(|pid| process::arguments(pid).iter().any(mine));
        process::wait_gone(self.pid, LIMIT);
    }
}

/// Everything that can be seen of a file, but for its inode and the times nobody can set.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub links: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Vec<u8>,
}

pub fn see(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap();
    let content = match meta.file_type() {
        kind if kind.is_symlink() => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        kind if kind.is_file() && meta.len() <= 64 << 20 => fs::read(path).unwrap(),
        // Of sparse ones, the parts that tests write.
        kind if kind.is_file() => {
            let file = fs::File::open(path).unwrap();
            let mut parts = meta.len().to_le_bytes().to_vec();
            for offset in [0, 300 << 20, meta.len() - 8192] {
                let mut part = vec![0; 8192];
                file.read_exact_at(&mut part, offset).unwrap();
                parts.extend(part);
            }
            parts
        }
        _ => Vec::new(),
    };
    let mut xattrs = Vec::new();
    if !meta.is_symlink() {
        let mut names = vec![0; 65536];
        let length = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
        for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
            let mut value = vec![0; 65536];
            let length = rustix::fs::getxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            xattrs.push((name.to_vec(), value[..length].to_vec()));
        }
    }
    Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        modified: (meta.mtime(), meta.mtime_nsec()),
        links: if meta.is_dir() { 0 } else { meta.nlink() },
        xattrs,
        content,
    }
}

/// All that is at and below a path.
pub fn see_all(path: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        if path.is_dir() && !path.is_symlink() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        seen.insert(path.clone(), see(&path));
    }
    seen
}

#[track_caller]
pub fn expect_all(path: &Path, before: &BTreeMap<PathBuf, Seen>) {
    let now = see_all(path);
    let paths = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    assert_eq!(paths(&now), paths(before));
    for (path, seen) in before {
        let there = &now[path];
        assert!(there.content == seen.content, "the content of {path:?} differs");
        let rest = |seen: &Seen| (seen.mode, seen.owner, seen.modified, seen.links, seen.xattrs.clone());
        assert_eq!(rest(there), rest(seen), "{path:?}");
    }
}

pub fn aside(path: &Path, checkpoint: &Value) -> PathBuf {
    format!("{}.before-{}", path.display(), checkpoint["checkpoint"].as_str().unwrap()).into()
}

/// A tmpfs, until this is dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    pub fn tmpfs(path: &Path, options: &str) -> Self {
        mount(Some("none"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Nothing of a restore's own is left.
#[track_caller]
pub fn no_leftovers(directory: &Path) {
    let left: Vec<_> = see_all(directory)
        .into_keys()
        .filter(|path| path.to_string_lossy().contains(".migration-"))
        .collect();
    assert_eq!(left, [""; 0].map(PathBuf::from));
}
