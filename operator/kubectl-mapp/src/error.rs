//! What goes wrong, and what to do then.

use std::io::{self, Write};

/// See the module's description.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none, or it may not be run.
    #[error("kubectl cannot be run: {0}")]
    NoKubectl(io::Error),
    /// It failed, and has said why.
    #[error("{0}")]
    Kubectl(String),
    /// It printed something else than expected.
    #[error("kubectl answered something unexpected: {0}")]
    Answer(#[from] serde_json::Error),
    /// The application cannot be moved.
    #[error("{name} cannot be moved now: {why}")]
    NotMigratable { name: String, why: String },
    /// It is moving already.
    #[error("{name} is moving already ({stage})")]
    Moving { name: String, stage: String },
    /// Nothing of it runs.
    #[error("{name} has no pod")]
    NoPod { name: String },
    /// It runs.
    #[error("{name} runs in pod {pod}: there is nothing to restore")]
    Runs { name: String, pod: String },
    /// There is no checkpoint of it.
    #[error("{name} has no checkpoint to restore")]
    NoCheckpoint { name: String },
    /// Its pod is not one the operator has made.
    #[error("pod {pod} of {name} has no launcher in front of its command")]
    NoLauncher { name: String, pod: String },
    /// What was waited for has failed.
    #[error("{name} was not moved: {why}")]
    Failed { name: String, why: String },
    /// Nothing began.
    #[error("the operator has taken the request for {name} away and begun nothing")]
    Refused { name: String },
    /// It took too long.
    #[error("{name}: nothing was over after {seconds} s ({stage})")]
    TimedOut { name: String, seconds: u64, stage: String },
    /// The report cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write { path: String, source: io::Error },
}

impl Error {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        let look = |name: &str| format!("look at its conditions: kubectl mapp status {name}");
        Some(match self {
            Self::NoKubectl(_) => "install kubectl, or put it into PATH".to_owned(),
            Self::Kubectl(text) if text.contains("doesn't have a resource type") => {
                "install the definition of MigratableApp: operator/deploy/migration install".to_owned()
            }
            Self::Kubectl(text) if text.contains("NotFound") => {
                "kubectl mapp status shows which there are; -n NAMESPACE looks elsewhere".to_owned()
            }
            Self::Kubectl(text) if text.contains("Forbidden") => {
                "you need the rights to get migratableapps, to get and patch pods, and to create pods/exec".to_owned()
            }
            Self::Kubectl(_) | Self::Answer(_) => return None,
            Self::NotMigratable { name, .. } | Self::Failed { name, .. } => look(name),
            Self::Moving { name, .. } => format!("watch it: kubectl get mapp {name} --watch"),
            Self::NoPod { name } => format!(
                "kubectl mapp restore {name} restores its last checkpoint; migration-agent list and report read its store \
                 from any machine"
            ),
            Self::Runs { name, .. } => format!("to move it: kubectl mapp migrate {name}"),
            Self::NoCheckpoint { name } => format!("why there is none: kubectl describe mapp {name}"),
            Self::NoLauncher { .. } => {
                "only pods made or changed by the operator can be asked; migration-agent reads the store from any machine"
                    .to_owned()
            }
            Self::Refused { name } => format!("its events say why: kubectl describe mapp {name}"),
            Self::TimedOut { name, .. } => {
                format!("it goes on without being watched: kubectl mapp status {name}")
            }
            Self::Write { .. } => "name a file that can be written".to_owned(),
        })
    }

    /// Says it.
    pub fn print(&self, json: bool) {
        let hint = self.hint();
        if json {
            let object = serde_json::json!({"error": {"message": self.to_string(), "hint": hint}});
            let _ = writeln!(io::stdout(), "{object}");
        }
        let hint = hint.map_or(String::new(), |hint| format!("\n hint: {hint}"));
        let _ = writeln!(io::stderr(), "error: {self}{hint}");
    }
}
