//! Objects in memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use lazy_pages::store::{ObjectMeta, ObjectStore, StoreError};

/// A store as small as can be.
#[derive(Debug, Default)]
pub(crate) struct MemoryStore(Mutex<BTreeMap<String, Bytes>>);

impl MemoryStore {
    /// What there is.
    pub(crate) fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StoreError> {
        let found = self.objects().get(key).cloned();
        let (store, key) = (self.describe(), key.to_owned());
        match found {
            None => Err(StoreError::NotFound { store, key }),
            Some(body) if body.len() as u64 > limit => Err(StoreError::TooLarge { store, key, limit }),
            Some(body) => Ok(body),
        }
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let body = self.get(key, u64::MAX).await?;
        let got = (body.len() as u64).saturating_sub(offset);
        if got < length {
            let (store, key) = (self.describe(), key.to_owned());
            return Err(StoreError::Truncated { store, key, got, wanted: length });
        }
        Ok(body.slice(offset as usize..(offset + length) as usize))
    }

    async fn put_new(&self, key: &str, body: Bytes) -> Result<(), StoreError> {
        let mut objects = self.objects();
        if objects.contains_key(key) {
            return Err(StoreError::AlreadyExists { store: self.describe(), key: key.to_owned() });
        }
        objects.insert(key.to_owned(), body);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>, StoreError> {
        let objects = self.objects();
        let found = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(found.map(|(key, body)| ObjectMeta { key: key.clone(), length: body.len() as u64 }).collect())
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects().remove(key);
        Ok(())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }

    fn is_local(&self) -> bool {
        true
    }
}
