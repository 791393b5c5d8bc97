//! Who calls, and what they may touch.
//!
//! An *operator* may touch every application: root over the Unix socket, and clients whose name `--allow-client` lists. A
//! client whose certificate names it `migration://cluster/namespace/app` may touch that application alone, and only
//! processes that are known to be this application's: those that were restored as it, that an operator has checkpointed
//! as it, or that `migration-agent run --app` or `launch --app` has started. Otherwise it could have any process's memory by calling it
//! its own.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use lazy_pages::ids::AppId;

use crate::tree;

/// The scheme of an application's name in a certificate.
const SCHEME: &str = "migration://";

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// May touch everything.
    Operator,
    /// May touch one application.
    App(AppId),
}

/// A caller, and its name for the log.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it may do.
    pub caller: Caller,
    /// How it is called.
    pub name: String,
}

impl Caller {
    /// Whether it may see or touch this application.
    pub fn may_touch(&self, app: &str) -> bool {
        match self {
            Self::Operator => true,
            Self::App(own) => own.as_str() == app,
        }
    }
}

/// Which names of clients are let in.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    allowed: Vec<String>,
}

impl Rules {
    /// Lets these names in, as they stand in a certificate's subject alternative names. One that ends in `*` stands for all
    /// that begin as it does; those are let in as applications only.
    pub fn new(allowed: Vec<String>) -> Self {
        Self { allowed }
    }

    /// Whether nobody is let in.
    pub fn is_empty(&self) -> bool {
        self.allowed.is_empty()
    }

    /// Who a client with these names is; `None` if it is not let in. One with the names of two applications is not.
    pub fn caller(&self, names: &[String]) -> Option<Peer> {
        let exact = |name: &&String| self.allowed.contains(name);
        if let Some(name) = names.iter().filter(|name| !name.starts_with(SCHEME)).find(exact) {
            return Some(Peer { caller: Caller::Operator, name: name.clone() });
        }
        let mut applications = names.iter().filter(|name| name.starts_with(SCHEME));
        let (name, None) = (applications.next()?, applications.next()) else { return None };
        let below = |pattern: &String| pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start));
        if !(exact(&name) || self.allowed.iter().any(below)) {
            return None;
        }
        // All three parts have to be there, so that no name means another one here.
        let parts = name.strip_prefix(SCHEME).filter(|rest| rest.split('/').count() == 3)?;
        Some(Peer { caller: Caller::App(parts.parse().ok()?), name: name.clone() })
    }
}

/// Whether `migration-agent run --app` or `launch --app` has started this process as `app`: its parent is this very program, run by root.
pub fn was_launched_as(pid: u32, app: &AppId) -> bool {
    let Some(parent) = tree::parent(pid) else { return false };
    let same_file = |one: &Path, other: &Path| {
        let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) else { return false };
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    let folder = Path::new("/proc").join(parent.to_string());
    if !fs::metadata(&folder).is_ok_and(|meta| meta.uid() == 0)
        || !same_file(&folder.join("exe"), Path::new("/proc/self/exe"))
    {
        return false;
    }
    let line = fs::read(folder.join("cmdline")).unwrap_or_default();
    let arguments: Vec<&[u8]> =
        line.split(|&byte| byte == 0).skip(1).take_while(|&word| word != b"--").collect();
    let named = arguments.iter().enumerate().find_map(|(place, &word)| match word {
        b"--app" => arguments.get(place + 1).copied(),
        word => word.strip_prefix(b"--app="),
    });
    let named = named.and_then(|name| std::str::from_utf8(name).ok()?.parse::<AppId>().ok());
    let launches = arguments.iter().any(|&word| word == b"run" || word == b"launch");
    launches && named.as_ref() == Some(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(allowed: &[&str], names: &[&str]) -> Option<Caller> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        Rules::new(words(allowed)).caller(&words(names)).map(|peer| peer.caller)
    }

    fn app(name: &str) -> Option<Caller> {
        Some(Caller::App(name.parse().unwrap()))
    }

    #[test]
    fn only_names_that_were_listed_are_let_in() {
        assert_eq!(caller(&[], &["operator.example"]), None);
        assert_eq!(caller(&["operator.example"], &["other.example"]), None);
        assert_eq!(caller(&["operator.example"], &["x", "operator.example"]), Some(Caller::Operator));
        assert_eq!(caller(&["spiffe://c/operator"], &["spiffe://c/operator"]), Some(Caller::Operator));
        // No pattern makes an operator.
        assert_eq!(caller(&["*"], &["operator.example"]), None);
        assert_eq!(caller(&["oper*"], &["operator.example"]), None);
    }

    #[test]
    fn an_application_is_one_and_is_named_in_full() {
        assert_eq!(caller(&["migration://c/n/a"], &["migration://c/n/a"]), app("c/n/a"));
        assert_eq!(caller(&["migration://c/n/*"], &["migration://c/n/a"]), app("c/n/a"));
        assert_eq!(caller(&["migration://c/n/*"], &["migration://c/m/a"]), None);
        assert_eq!(caller(&["migration://*"], &["migration://a"]), None);
        assert_eq!(caller(&["migration://*"], &["migration://c/n/a", "migration://c/n/b"]), None);
        assert_eq!(caller(&["migration://*"], &["migration://c/n/../b"]), None);
        assert!(!Caller::App("c/n/a".parse().unwrap()).may_touch("c/n/b"));
    }

    #[test]
    fn a_process_that_another_program_started_was_not_launched() {
        assert!(!was_launched_as(std::process::id(), &"app".parse().unwrap()));
    }
}
