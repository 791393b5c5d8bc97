//! `generation`: who runs an application, and that nobody does any more.

use std::sync::Arc;

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{
    AgentError,
    fence::{Fence, Runner},
};
use serde::Serialize;

use super::{args::Global, commands::agent, output::Output};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  migration-agent generation --app cache                  which run of it is the newest, and on which machine
  migration-agent generation --app cache --ended 7        that machine is gone for good, and nothing of run 7 is left

A process that is stopped to be handed over goes on where it is only when nobody has taken it over, or when whoever has says
that nothing of it runs. A machine that is lost for good will never say so; if you know, you can. If you are wrong, two
copies of the application run.")]
pub struct Generation {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// Say that nothing of this run is left, nor ever will be
    #[arg(long, value_name = "GENERATION")]
    pub ended: Option<u64>,
}

/// What `generation` prints.
#[derive(Serialize)]
struct Report {
    app: String,
    /// 0 if it was never restored.
    generation: u64,
    /// Who has claimed it.
    runner: Option<Runner>,
    /// Whether it was said that nothing of it runs.
    ended: bool,
}

/// Shows it, after saying that a run has ended if that was asked for.
pub fn generation(typed: &Generation, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let fence = Fence::new(Arc::clone(agent.store()), typed.app.clone());
    let report = agent.block_on(async {
        if let Some(ended) = typed.ended {
            if fence.runner(ended).await?.is_none() {
                let what = format!("nobody has ever run generation {ended} of {}", typed.app);
                return Err(AgentError::Usage(what));
            }
            fence.end(ended).await?;
        }
        let generation = fence.newest().await?;
        let (runner, ended) = (fence.runner(generation).await?, fence.has_ended(generation).await?);
        Ok(Report { app: typed.app.to_string(), generation, runner, ended })
    })?;
    output.result(&report, describe);
    Ok(())
}

fn describe(report: &Report) -> String {
    let Report { app, generation, runner, ended } = report;
    match runner {
        None => format!("{app} was never restored"),
        Some(runner) if *ended => {
            format!("{app}: generation {generation} ran on {}, and has ended", runner.host)
        }
        Some(runner) => format!("{app}: generation {generation} runs on {}, or has run there", runner.host),
    }
}
