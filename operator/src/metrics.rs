//! What the operator has done, in numbers, for Prometheus and its like.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::api::migration::{Migration, MigrationStage};

type Labels = Vec<(&'static str, String)>;

/// Upper ends for durations, in seconds.
const SECONDS: [f64; 13] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Counter,
    errors: Family<Labels, Counter>,
    reconcile: Histogram,
    migrations: Family<Labels, Counter>,
    migration: Histogram,
    blackout: Histogram,
    checkpoints: Family<Labels, Counter>,
    /// 1 while this operator leads.
    pub leading: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut new = Self {
            registry: Registry::with_prefix("migration_operator"),
            reconciles: Counter::default(),
            errors: Family::default(),
            reconcile: seconds(),
            migrations: Family::default(),
            migration: seconds(),
            blackout: seconds(),
            checkpoints: Family::default(),
            leading: Gauge::default(),
        };
        let registry = &mut new.registry;
        registry.register("reconciles", "Looks at applications", new.reconciles.clone());
        registry.register("reconcile_errors", "Reconciles that failed, by error", new.errors.clone());
        registry.register_with_unit(
            "reconcile",
            "How long a look at an application takes",
            Unit::Seconds,
            new.reconcile.clone(),
        );
        registry.register("migrations", "Migrations that ended, by outcome", new.migrations.clone());
        registry.register_with_unit(
            "migration",
            "How long migrations took",
            Unit::Seconds,
            new.migration.clone(),
        );
        let help = "For how long applications did not run while they moved";
        registry.register_with_unit("blackout", help, Unit::Seconds, new.blackout.clone());
        registry.register("checkpoints", "Periodic checkpoints, by outcome", new.checkpoints.clone());
        registry.register("leading", "Whether this operator is the one that works", new.leading.clone());
        new
    }
}

impl Metrics {
    /// A reconcile is over.
    pub fn reconciled(&self, took: Duration, error: Option<&str>) {
        self.reconciles.inc();
        self.reconcile.observe(took.as_secs_f64());
        if let Some(word) = error {
            self.errors.get_or_create(&vec![("error", word.to_owned())]).inc();
        }
    }

    /// A migration is over.
    pub fn migrated(&self, ended: &Migration, took: Duration) {
        let outcome = match ended.stage {
            MigrationStage::Succeeded => "succeeded",
            MigrationStage::Cancelled => "cancelled",
            _ => "failed",
        };
        self.migrations.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
        self.migration.observe(took.as_secs_f64());
        if let Some(ms) = ended.blackout_ms {
            self.blackout.observe(ms as f64 / 1e3);
        }
    }

    /// A periodic checkpoint is over.
    pub fn checkpointed(&self, succeeded: bool) {
        let outcome = if succeeded { "succeeded" } else { "failed" };
        self.checkpoints.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
    }

    /// All of it, as OpenMetrics.
    ///
    /// # Errors
    /// Never for memory that can be had.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
