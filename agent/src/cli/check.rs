//! `check`: what this machine can do.

use std::process::ExitCode;

use migration_agent::capabilities::Capability;
use serde::Serialize;

use super::{args::Global, commands::agent, output::Output};

#[derive(Serialize)]
struct Report {
    ok: bool,
    capabilities: Vec<Capability>,
}

/// Prints every capability; fails when a required one is missing.
pub fn check(global: &Global, output: Output) -> ExitCode {
    let agent = match agent(global) {
        Ok(agent) => agent,
        Err(error) => {
            output.error(&error, None);
            return ExitCode::FAILURE;
        }
    };
    let capabilities = agent.capabilities();
    let report = Report { ok: capabilities.iter().all(|one| one.ok || !one.required), capabilities };
    output.result(&report, describe);
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn describe(report: &Report) -> String {
    let mut lines = Vec::new();
    for one in &report.capabilities {
        let mark = match (one.ok, one.required) {
            (true, _) => "ok     ",
            (false, false) => "without",
            (false, true) => "MISSING",
        };
        lines.push(format!("{mark}  {:<15} {}", one.name, one.detail));
        if let Some(cost) = one.cost {
            lines.push(format!("{:>26} costs: {cost}", ""));
        }
    }
    lines.push(match report.ok {
        true => "this machine can checkpoint and restore".to_owned(),
        false => "this machine cannot checkpoint and restore yet".to_owned(),
    });
    lines.join("\n")
}
