//! Options of hooks, which several commands have.

use std::time::Duration;

use clap::{Args, ValueEnum};
use migration_agent::{Hook, HookCall};
use migration_proto::agent::{self as wire, hook::Call};

use super::deadline::duration;

/// How hooks are called.
#[derive(Debug, Args)]
pub struct HookOptions {
    /// How long a hook may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub hook_timeout: Duration,
    /// What happens when the hook before a freeze fails, or that after a restore is to be reported
    #[arg(long, value_enum, value_name = "abort|ignore", default_value_t = HookFailure::Abort)]
    pub hook_failure: HookFailure,
}

/// What becomes of the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HookFailure {
    /// A checkpoint is not taken; a failure after a restore is part of its result.
    Abort,
    /// It goes on as if nothing had happened.
    Ignore,
}

impl HookOptions {
    /// A hook with these options.
    pub fn hook(&self, call: &Option<HookCall>) -> Option<Hook> {
        let ignore_failure = self.hook_failure == HookFailure::Ignore;
        call.clone().map(|call| Hook { call, timeout: self.hook_timeout, ignore_failure })
    }

    /// The same, for an agent that is asked.
    pub fn wire(&self, call: &Option<HookCall>) -> Option<wire::Hook> {
        let call = match call.as_ref()? {
            HookCall::Command(argv) => Call::Command(wire::Command { argv: argv.clone() }),
            HookCall::Url(uri) => Call::Url(uri.to_string()),
        };
        Some(wire::Hook {
            call: Some(call),
            timeout_ms: self.hook_timeout.as_millis() as u64,
            ignore_failure: self.hook_failure == HookFailure::Ignore,
        })
    }
}
