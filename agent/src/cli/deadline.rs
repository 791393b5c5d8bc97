//! `deadline`: whether a final dump would fit.

use std::time::Duration;

use clap::Args;
use lazy_pages::ids::AppId;
use migration_agent::{
    AgentError,
    deadline::{Inputs, Obstacle, Rate, Verdict},
    volume::{DirtyVolume, Estimate, FromStatistics},
};
use serde_json::json;

use super::{
    args::Global,
    commands::agent,
    output::{Output, human_bytes},
};

#[derive(Debug, Args)]
#[command(after_help = "Example:
  migration-agent deadline --app cache --deadline 60s --margin 5s

Answers from what the last checkpoints cost; nothing is frozen and nothing is sent. T = freeze + dirty / bandwidth + margin.")]
pub struct Deadline {
    /// Name of the application
    #[arg(long, value_name = "NAME")]
    pub app: AppId,
    /// How much notice there is
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub deadline: Duration,
    /// Kept for what is not known
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub margin: Duration,
    /// How long until it is asked again
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub interval: Duration,
    /// Bytes a second that the store takes [default: as measured by the last checkpoints]
    #[arg(long, value_name = "BYTES")]
    pub bandwidth: Option<u64>,
}

/// A time as people write it: a number with `ms`, `s`, `m` or `h`, or of seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: u64 = digits.parse().map_err(|_| "a number with ms, s, m or h is expected".to_owned())?;
    let (unit, count) = match &text[digits.len()..] {
        "ms" => (Duration::from_millis(1), value),
        "" | "s" => (Duration::from_secs(1), value),
        "m" => (Duration::from_secs(60), value),
        "h" => (Duration::from_secs(3600), value),
        other => return Err(format!("`{other}` is no unit: ms, s, m or h")),
    };
    let seconds = u128::from(count) * unit.as_millis();
    u64::try_from(seconds).map(Duration::from_millis).map_err(|_| "too long".to_owned())
}

/// Says whether it fits.
pub fn deadline(typed: &Deadline, global: &Global, output: Output) -> Result<(), AgentError> {
    let agent = agent(global)?;
    let none = || AgentError::NoCheckpoint { app: typed.app.clone(), store: agent.store().describe() };
    let known = FromStatistics(&agent).estimate(&typed.app)?.ok_or_else(none)?;
    let unmeasured = || {
        AgentError::Usage("the rate of the store was never measured: give one with --bandwidth".to_owned())
    };
    let inputs = Inputs {
        dirty: known.upload,
        growth: known.growth,
        bandwidth: typed.bandwidth.map(Rate).or(known.bandwidth).ok_or_else(unmeasured)?,
        freeze: known.freeze,
        margin: typed.margin,
        interval: typed.interval,
    };
    let verdict = inputs.verdict(typed.deadline);
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let (word, headroom, short, why) = match verdict {
        Verdict::Fits { headroom } => ("fits", Some(headroom), None, None),
        Verdict::CheckpointNow { headroom } => ("checkpoint-now", Some(headroom), None, None),
        Verdict::CannotFit { why, short } => ("cannot-fit", None, Some(short), Some(why)),
    };
    let object = json!({
        "app": typed.app.to_string(),
        "verdict": word,
        "headroom_ms": headroom.map(ms),
        "short_ms": short.map(ms),
        "why": why,
        "deadline_ms": ms(typed.deadline),
        "needed_ms": ms(inputs.needed()),
        "dirty_bytes": known.changed.0,
        "upload_bytes": inputs.dirty.0,
        "growth_bytes_per_second": inputs.growth.0,
        "bandwidth_bytes_per_second": inputs.bandwidth.0,
        "freeze_ms": ms(inputs.freeze),
        "margin_ms": ms(inputs.margin),
        "checkpoints": known.checkpoints,
    });
    output.result(&object, |_| describe(&verdict, &inputs, &known));
    Ok(())
}

fn describe(verdict: &Verdict, inputs: &Inputs, known: &Estimate) -> String {
    let seconds = |time: &Duration| format!("{:.1} s", time.as_secs_f64());
    let head = match verdict {
        Verdict::Fits { headroom } => format!("a final dump fits, with {} to spare", seconds(headroom)),
        Verdict::CheckpointNow { headroom } => {
            let headroom = seconds(headroom);
            format!(
                "a final dump fits now, with {headroom} to spare, and soon will not: take a checkpoint now"
            )
        }
        Verdict::CannotFit { why, short } => {
            let why = match why {
                Obstacle::Freeze => "the freeze takes too long",
                Obstacle::Upload => "there is too much to send",
                Obstacle::Margin => "the margin is not left",
            };
            format!("a final dump does not fit by {}: {why}", seconds(short))
        }
    };
    format!(
        "{head}\n{} frozen + {} at {}/s + {} margin = {}; learnt from {} checkpoints",
        seconds(&inputs.freeze),
        human_bytes(inputs.dirty.0),
        human_bytes(inputs.bandwidth.0),
        seconds(&inputs.margin),
        seconds(&inputs.needed()),
        known.checkpoints,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for bad in ["", "s", "5x", "-1s", "1.5s", "18446744073709551615h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
