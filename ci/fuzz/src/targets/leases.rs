//! Leases. The input is the content of one; a sweep must understand it, or keep everything.

use std::{cell::RefCell, sync::Arc};

use bytes::Bytes;
use lazy_pages::{
    catalog::{Catalog, CatalogError, LeftBecause},
    format::keys,
    ids::{AppId, CheckpointId, LeaseId, PackId},
};
use tokio::runtime::{Builder, Runtime};

use crate::{Target, memory_store::MemoryStore};

/// A lease has 64 bytes at most; a longer one is not read.
pub const TARGET: Target = Target { name: "leases", run, seeds, memory: (64 << 10, 8) };

fn run(input: &[u8]) -> bool {
    thread_local! {
        static RUNTIME: RefCell<Runtime> =
            RefCell::new(Builder::new_current_thread().build().expect("a runtime"));
    }
    let app: AppId = "cluster/namespace/app".parse().expect("a valid name");
    let store = Arc::new(MemoryStore::default());
    let lease = keys::lease(&app, LeaseId::new());
    // Older than any writer: only the lease can keep it.
    let garbage = keys::pack(&app, PackId::from_bytes(&[0; 16]).expect("16 bytes"));
    store.objects().insert(lease.clone(), Bytes::copy_from_slice(input));
    store.objects().insert(garbage.clone(), Bytes::from_static(b"frames"));
    let swept = RUNTIME.with_borrow(|runtime| runtime.block_on(Catalog::new(store.clone()).sweep(&app)));
    let understood =
        swept.is_err() || std::str::from_utf8(input).is_ok_and(|text| text.parse::<CheckpointId>().is_ok());
    match swept {
        Err(CatalogError::DeleteUnderWay { lease: by, .. }) => assert!(by == lease && input == b"deleting"),
        Ok(deleted) => {
            assert_eq!(deleted.left, Some(LeftBecause::Leased { lease: lease.clone() }));
            assert_eq!((deleted.packs, deleted.bytes), (0, 0));
        }
        Err(error) => panic!("a sweep failed over the content of a lease: {error}"),
    }
    let left: Vec<String> = store.objects().keys().cloned().collect();
    assert_eq!(left, [lease, garbage], "all is kept, and the sweep's own lease is gone");
    understood
}

fn seeds() -> Vec<Vec<u8>> {
    let id = CheckpointId::from_bytes(&[5; 16]).expect("16 bytes").to_string();
    vec![b"deleting".to_vec(), id.clone().into_bytes(), id.to_lowercase().into_bytes(), vec![b'x'; 65]]
}
