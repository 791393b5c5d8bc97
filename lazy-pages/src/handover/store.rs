//! A store in which a handover looks like a checkpoint.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::sync::OnceCell;

use crate::{
    format::{MAX_MANIFEST, Manifest, frame_hash, hash_pages, keys},
    handover::layout::{FrameMap, pack_of},
    ids::{AppId, CheckpointId, PackId},
    reader::Checkpoint,
    store::{ObjectMeta, ObjectStore, StoreError},
    units::PAGE_SIZE,
};

/// Where the memory of a stopped tree can be asked for.
#[async_trait]
pub trait PageSource: Send + Sync + fmt::Debug {
    /// These bytes of one of the handover's packs: whole frames, each followed by its hash.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the source cannot be reached for now; any other kind when the pages can never be had
    /// from it.
    async fn read(&self, pack: PackId, offset: u64, length: u64) -> Result<Bytes, StoreError>;

    /// Where it is, for messages.
    fn describe(&self) -> String;
}

/// See the module's description. Everything that does not belong to the handover is as in the store below.
#[derive(Debug)]
pub struct HandoverStore {
    below: Arc<dyn ObjectStore>,
    app: AppId,
    id: CheckpointId,
    source: Arc<dyn PageSource>,
    map: OnceCell<(FrameMap, Manifest)>,
    committed: OnceCell<Checkpoint>,
}

impl HandoverStore {
    /// Handover `id` of `app`, described in `below`.
    pub fn new(
        below: Arc<dyn ObjectStore>,
        app: AppId,
        id: CheckpointId,
        source: Arc<dyn PageSource>,
    ) -> Self {
        Self { below, app, id, source, map: OnceCell::new(), committed: OnceCell::new() }
    }

    /// The pack of the handover that has this key.
    fn pack(&self, key: &str) -> Option<PackId> {
        let pack = key.strip_prefix(&keys::packs(&self.app))?.parse().ok()?;
        pack_of(self.id, pack).map(|_| pack)
    }

    /// Where the store below keeps what is found under `key` here.
    fn below(&self, key: &str) -> Option<String> {
        let (app, id) = (&self.app, self.id);
        [
            (keys::manifest(app, id), keys::handover(app, id)),
            (keys::bundle(app, id), keys::handover_bundle(app, id)),
        ]
        .into_iter()
        .find_map(|(here, below)| (here == key).then_some(below))
    }

    async fn map(&self) -> Result<&(FrameMap, Manifest), StoreError> {
        let load = async || {
            let key = keys::handover(&self.app, self.id);
            let bytes = self.below.get(&key, MAX_MANIFEST).await?;
            let manifest = Manifest::decode(&bytes).map_err(|error| self.failed(error.to_string()))?;
            Ok((FrameMap::new(&manifest), manifest))
        };
        self.map.get_or_try_init(load).await
    }

    /// The checkpoint that was made of the same stopped tree, if there is one by now.
    async fn committed(&self) -> Option<&Checkpoint> {
        let open = async || Checkpoint::open(Arc::clone(&self.below), &self.app, self.id).await;
        self.committed.get_or_try_init(open).await.ok()
    }

    /// The same bytes, put together from that checkpoint.
    async fn read_committed(
        &self,
        checkpoint: &Checkpoint,
        pack: PackId,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, StoreError> {
        let (map, manifest) = self.map().await?;
        let frames = map.frames(pack, offset, length);
        let frames = frames.ok_or_else(|| self.failed(format!("pack {pack} has no frames at {offset}")))?;
        let mut bytes = BytesMut::with_capacity(length as usize);
        for frame in frames {
            let begin = bytes.len();
            for piece in map.pieces(frame) {
                let object = manifest.objects[piece.object].id;
                let pages = checkpoint.read_pages(object, piece.start, piece.pages).await;
                bytes.extend_from_slice(&pages.map_err(|error| self.failed(error.to_string()))?);
            }
            append_hash(&mut bytes, begin);
        }
        Ok(bytes.freeze())
    }

    fn failed(&self, reason: String) -> StoreError {
        StoreError::Other { store: self.describe(), reason }
    }
}

#[async_trait]
impl ObjectStore for HandoverStore {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        match self.below(key) {
            Some(below) => self.below.get(&below, limit).await,
            None => self.below.get(key, limit).await,
        }
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let Some(pack) = self.pack(key) else { return self.below.get_range(key, offset, length).await };
        match self.source.read(pack, offset, length).await {
            Ok(bytes) => Ok(bytes),
            Err(error) => match self.committed().await {
                Some(checkpoint) => self.read_committed(checkpoint, pack, offset, length).await,
                None => Err(error),
            },
        }
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        self.below.put_new(key, body).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        self.below.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.below.delete(key).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.below.probe().await
    }

    fn describe(&self) -> String {
        format!("{} and {}", self.source.describe(), self.below.describe())
    }

    fn is_local(&self) -> bool {
        false
    }
}

/// Completes a frame whose pages are the bytes from `begin` on: a source sends their hash with them.
pub fn append_hash(bytes: &mut BytesMut, begin: usize) {
    let mut hashes = Vec::with_capacity((bytes.len() - begin) / PAGE_SIZE);
    hash_pages(&bytes[begin..], &mut hashes);
    bytes.extend_from_slice(&frame_hash(&hashes));
}
