//! The checkpoints an application has in the store: listed, and collected.

use std::{collections::HashMap, sync::Arc, time::Duration};

use lazy_pages::{
    catalog::{Catalog, CatalogError, Kept, Retention},
    ids::AppId,
};
use migration_proto::agent::{
    CollectRequest, CollectResponse, ErrorDetail, ListCheckpointsResponse, Reason, StoredCheckpoint,
};

use super::error;
use crate::{Agent, AgentError};

/// All of them, oldest first, and what they take together: a pack that several refer to counts once.
///
/// # Errors
/// When the store fails, or one cannot be read.
pub fn list(agent: &Agent, app: &AppId) -> Result<ListCheckpointsResponse, AgentError> {
    let catalog = Catalog::new(Arc::clone(agent.store()));
    agent.block_on(async {
        let pins = catalog.pins(app).await?;
        let listed = catalog.list(app).await?;
        let (mut checkpoints, mut packs, mut bundles) = (Vec::new(), HashMap::new(), 0);
        for &id in listed.iter().rev() {
            let manifest = match catalog.load_manifest(app, id).await {
                Ok(manifest) => manifest,
                // It was deleted since it was listed.
                Err(CatalogError::UnknownCheckpoint { .. }) => continue,
                Err(other) => return Err(other.into()),
            };
            packs.extend(manifest.packs.iter().map(|pack| (pack.id, pack.length)));
            bundles += manifest.bundle.length;
            checkpoints.push(StoredCheckpoint {
                checkpoint: id.to_string(),
                parent: manifest.parent.map(|id| id.to_string()).unwrap_or_default(),
                depth: manifest.depth,
                created_unix_ms: manifest.created_unix_ms,
                pinned: pins.iter().any(|pin| pin.keeps(id, &listed)),
            });
        }
        Ok(ListCheckpointsResponse { checkpoints, stored_bytes: packs.values().sum::<u64>() + bundles })
    })
}

/// Deletes what is not to be kept.
///
/// # Errors
/// A request without any rule; when the store fails. Each checkpoint is deleted or not, never in part.
pub fn collect(agent: &Agent, app: &AppId, request: &CollectRequest) -> Result<CollectResponse, ErrorDetail> {
    let retention = Retention {
        keep: usize::try_from(request.keep).ok().filter(|keep| *keep > 0),
        keep_for: Some(request.keep_for_s).filter(|seconds| *seconds > 0).map(Duration::from_secs),
    };
    let retention = match (request.all, retention == Retention::default()) {
        (true, true) => Retention { keep: Some(0), keep_for: None },
        (false, false) => retention,
        _ => {
            let message = "either all go, or `keep` or `keep_for_s` says which stay".to_owned();
            return Err(error::detail(Reason::Usage, message, "nothing was deleted", "correct the request"));
        }
    };
    let collected = delete(agent, app, retention, request.all);
    collected.map_err(|failed| error::of_error(&failed, Some("every checkpoint is whole or gone".to_owned())))
}

fn delete(
    agent: &Agent,
    app: &AppId,
    retention: Retention,
    all: bool,
) -> Result<CollectResponse, AgentError> {
    let catalog = Catalog::new(Arc::clone(agent.store()));
    agent.block_on(async {
        let collected = catalog.collect(app, retention).await?;
        let mut answer = CollectResponse {
            deleted: collected.deleted.iter().map(ToString::to_string).collect(),
            kept: Vec::new(),
            freed_bytes: collected.bytes,
        };
        for (id, why) in collected.kept {
            if !(all && why == Kept::Newest) {
                answer.kept.push(id.to_string());
                continue;
            }
            match catalog.delete(app, id).await {
                Ok(deleted) => {
                    answer.deleted.push(id.to_string());
                    answer.freed_bytes += deleted.bytes;
                }
                Err(CatalogError::Leased { .. } | CatalogError::Pinned { .. }) => {
                    answer.kept.push(id.to_string())
                }
                Err(CatalogError::UnknownCheckpoint { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(answer)
    })
}
