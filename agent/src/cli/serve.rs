//! `serve`: the agent as a service.

use std::{env, io::Write, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use migration_agent::{
    AgentError, HookCall,
    service::{self, Config, Hooks, Listen, Rules, keeper},
    settings, sysctl,
};

use super::{
    args::Global,
    commands::agent,
    hooks::HookOptions,
    output::Output,
    remote::{Certificates, SOCKET},
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent serve
  migration-agent serve --listen 0.0.0.0:7070 --tls-cert node.pem --tls-key node.key --tls-ca ca.pem \\
      --allow-client operator.example --allow-client 'migration://prod/*'

Whoever may open the Unix socket, which is root, may do everything. Over TCP a client shows a certificate of the
authorities in --tls-ca; one of its names (DNS or URI in its subject alternative names) has to be allowed. A client named
migration://cluster/namespace/app may touch that application only, every other one all of them.

SIGTERM ends an agent that does nothing at once; one that works finishes final dumps and restores first. Restored processes
do not depend on it.")]
pub struct Serve {
    /// The Unix socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// Serve TCP too
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    #[command(flatten)]
    pub certificates: Certificates,
    /// Let clients with this name in; `migration://cluster/*` stands for all applications below
    #[arg(long, value_name = "NAME", requires = "tls_cert")]
    pub allow_client: Vec<String>,
    /// Serve TCP without TLS: whoever reaches the address may take the memory of every process
    #[arg(long, conflicts_with = "tls_cert")]
    pub insecure_plaintext: bool,
    /// Serve numbers for Prometheus at http://HOST:PORT/metrics, to everybody who can reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub metrics: Option<String>,
    /// Call this before a tree is frozen to end, unless a request names something else: a command or an http:// address
    #[arg(long, value_name = "CMD|URL")]
    pub before_freeze: Option<HookCall>,
    /// Call this when a restored tree runs, unless a request names something else
    #[arg(long, value_name = "CMD|URL")]
    pub after_restore: Option<HookCall>,
    #[command(flatten)]
    pub hooks: HookOptions,
    /// Where operations are written down [default: the user's state directory]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How long a process that was stopped to be handed over waits for somebody to run it, before it goes on here
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub claim_timeout: u64,
    /// Serve in a child and start it again when it dies, for as long as page servers depend on this container: meant for its
    /// first process
    #[arg(long)]
    pub respawn: bool,
    /// How long operations may go on after SIGTERM before they are given up
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub grace: u64,
}

/// Serves until a signal ends it.
pub fn serve(typed: Serve, global: &Global, output: Output) -> Result<ExitCode, AgentError> {
    let program = env::current_exe()
        .map_err(|source| AgentError::Io { what: "cannot find this program".to_owned(), source })?;
    if typed.respawn {
        let arguments: Vec<_> = env::args_os().skip(1).filter(|argument| argument != "--respawn").collect();
        return keeper::keep(&program, &arguments).map(|status| ExitCode::from(status.0));
    }
    let tcp = listen(&typed)?;
    sysctl::make_writable();
    let hooks = Hooks {
        before_freeze: typed.hooks.hook(&typed.before_freeze),
        after_restore: typed.hooks.hook(&typed.after_restore),
    };
    let config = Config {
        unix: Some(typed.socket),
        tcp,
        state: typed.state_dir.unwrap_or_else(settings::state_directory),
        program,
        claim_timeout: Duration::from_secs(typed.claim_timeout),
        hooks,
        metrics: typed.metrics,
        grace: Duration::from_secs(typed.grace),
    };
    service::serve(agent(global)?, config, |reached| {
        output.result(reached, |reached| {
            let unix = reached.unix.iter().map(|path| format!("unix:{}", path.display()));
            let tcp = reached.tcp.iter().map(ToString::to_string);
            format!("serving at {}", unix.chain(tcp).collect::<Vec<_>>().join(" and "))
        });
        let _ = std::io::stdout().flush();
    })?;
    Ok(ExitCode::SUCCESS)
}

/// TCP is mTLS, or plaintext where that was said.
fn listen(typed: &Serve) -> Result<Option<Listen>, AgentError> {
    let Some(address) = typed.listen.clone() else {
        let unused = typed.insecure_plaintext || typed.certificates.files().is_some();
        return match unused {
            true => Err(AgentError::Usage("--listen is missing: the other options are about TCP".to_owned())),
            false => Ok(None),
        };
    };
    let tls = match typed.certificates.files() {
        Some(files) => {
            let rules = Rules::new(typed.allow_client.clone());
            if rules.is_empty() {
                return Err(AgentError::Usage(
                    "no client would be let in: name some with --allow-client".to_owned(),
                ));
            }
            Some((files, rules))
        }
        None if typed.insecure_plaintext => None,
        None => {
            return Err(AgentError::Usage(
                "TCP is served with --tls-cert, --tls-key and --tls-ca, or in the clear with --insecure-plaintext"
                    .to_owned(),
            ));
        }
    };
    Ok(Some(Listen { address, tls }))
}
