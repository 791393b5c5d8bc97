//! What a benchmark prints: figures with the value aimed at, on a machine.

use std::fs;

use serde::Serialize;

use crate::table;

/// The outcome of a benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub bench: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// A machine, as far as it explains figures.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor model.
    pub processor: String,
    /// Processors usable by this program.
    pub processors: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Kernel release.
    pub kernel: String,
    /// Version of CRIU.
    pub criu: String,
}

/// Something that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What.
    pub name: String,
    /// How much: a median.
    pub value: f64,
    /// Of what; `ratio` for a quotient.
    pub unit: &'static str,
    /// The value aimed at, if there is an aim.
    pub aim: Option<f64>,
    /// Which way is better.
    pub better: Better,
    /// Largest minus smallest sample, in the same unit.
    pub spread: f64,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less.
    Lower,
    /// More.
    Higher,
}

impl Machine {
    /// This one.
    pub fn this(criu: String) -> Self {
        let line_of = |file: &str, start: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(start)?.trim_start().strip_prefix(':'));
            line.map(|rest| rest.trim().to_owned())
        };
        let kilobytes =
            line_of("/proc/meminfo", "MemTotal").and_then(|text| text.strip_suffix(" kB")?.parse().ok());
        Machine {
            processor: line_of("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.into()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes.unwrap_or(0_u64) * 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            criu,
        }
    }
}

/// The middle one of some samples, or the mean of the two middle ones. 0 for no samples.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

fn spread(samples: &[f64]) -> f64 {
    let largest = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = samples.iter().copied().fold(f64::INFINITY, f64::min);
    if samples.is_empty() { 0.0 } else { largest - smallest }
}

impl Figure {
    /// A quantity of which less is better, from its samples.
    pub fn lower(name: impl Into<String>, unit: &'static str, samples: &[f64], aim: Option<f64>) -> Self {
        let (value, spread) = (median(samples), spread(samples));
        Figure { name: name.into(), value, unit, aim, better: Better::Lower, spread }
    }

    /// The quotient of two medians, of which less is better. The spread is that of the quotients of the samples taken in
    /// the same round.
    pub fn ratio(name: impl Into<String>, ours: &[f64], theirs: &[f64], aim: Option<f64>) -> Self {
        let quotients: Vec<f64> = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let value = median(ours) / median(theirs);
        Figure {
            name: name.into(),
            value,
            unit: "ratio",
            aim,
            better: Better::Lower,
            spread: spread(&quotients),
        }
    }

    /// Whether the aim is reached; `None` without one.
    pub fn reached(&self) -> Option<bool> {
        self.aim.map(|aim| match self.better {
            Better::Lower => self.value <= aim,
            Better::Higher => self.value >= aim,
        })
    }
}

impl Outcome {
    /// As a table for people.
    pub fn table(&self) -> String {
        let mut rows = vec![["figure", "value", "unit", "aim", "", "spread"].map(String::from).to_vec()];
        for figure in &self.figures {
            let sign = if figure.better == Better::Lower { "<=" } else { ">=" };
            rows.push(vec![
                figure.name.clone(),
                rounded(figure.value),
                figure.unit.into(),
                figure.aim.map(|aim| format!("{sign} {}", rounded(aim))).unwrap_or_default(),
                figure.reached().map_or("", |reached| if reached { "reached" } else { "missed" }).into(),
                rounded(figure.spread),
            ]);
        }
        let Machine { processor, processors, memory_bytes, kernel, criu } = &self.machine;
        let memory = memory_bytes >> 30;
        format!(
            "{}: {processors} x {processor}, {memory} GiB, Linux {kernel}, CRIU {criu}\n\n{}",
            self.bench,
            table::layout(&rows)
        )
    }
}

fn rounded(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_ratio_is_of_medians_and_spreads_over_rounds() {
        let figure = Figure::ratio("x", &[2.0, 4.0, 3.0], &[1.0, 2.0, 3.0], Some(1.5));
        assert_eq!((figure.value, figure.spread), (1.5, 1.0));
        assert_eq!(figure.reached(), Some(true));
    }

    #[test]
    fn a_figure_without_an_aim_says_null() {
        let figure = Figure::lower("frozen", "ms", &[1.0, 5.0, 2.0], None);
        let json = serde_json::to_value(&figure).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "frozen", "value": 2.0, "unit": "ms", "aim": null, "better": "lower", "spread": 4.0})
        );
    }
}
