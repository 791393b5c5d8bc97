//! The target's side of a handover: pages come from the source's agent, over the connections of its service.
//!
//! One connection is kept for pages that threads wait for, so that these never queue behind the background fill; the others
//! share that fill. A connection that breaks is made again with the next request. Certificates are read for each
//! connection, so renewed ones are used.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use lazy_pages::{
    format::{FRAME_HASH, FRAME_PAGES},
    handover::{HandoverStore, PageSource},
    ids::{AppId, CheckpointId, PackId},
    server::{Outcome, daemon::Origin},
    store::{ObjectStore, StoreError},
    units::PAGE_SIZE,
};
use migration_proto::agent::{FinishHandoverRequest, ReadFramesRequest, handovers_client::HandoversClient};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tonic::{Code, Status, transport::Channel};

use crate::{
    client::{AgentAddress, channel},
    error::AgentError,
    fence::{Fence, Runner},
    service::tls::Files,
};

/// Bytes of a frame at most.
const FRAME: usize = FRAME_PAGES * PAGE_SIZE + FRAME_HASH;

/// Connections for the background fill: as many as one core can keep busy.
const BULK: usize = 3;

/// What has to be known to run a handover.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HandedOver {
    /// The source's agent, as [`AgentAddress`] is written.
    pub source: String,
    /// Certificate, key and authorities to show it, and to know it by.
    pub tls: Option<[PathBuf; 3]>,
    /// Whose.
    pub app: String,
    /// Which handover.
    pub id: String,
    /// Whoever will run it.
    pub runner: Runner,
}

impl HandedOver {
    /// As [`origin`] reads it.
    pub fn to_text(&self) -> String {
        // Texts and numbers only, so it cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// The origin that a page server was given as text.
///
/// # Errors
/// When the text is none, or its certificates cannot be read.
pub fn origin(text: &str, below: Arc<dyn ObjectStore>) -> Result<Arc<dyn Origin>, StoreError> {
    let invalid = |reason: String| StoreError::Other { store: "the source of a handover".to_owned(), reason };
    let told: HandedOver = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
    let opened = Remote::open(&told, below).map_err(|error| invalid(crate::error_chain(&error)))?;
    Ok(Arc::new(opened))
}

/// A handover that is run here, or will be.
pub struct Remote {
    below: Arc<dyn ObjectStore>,
    app: AppId,
    id: CheckpointId,
    runner: Runner,
    source: Arc<Source>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the agent at {}", self.source.address)
    }
}

impl Remote {
    /// Nothing is connected to yet.
    ///
    /// # Errors
    /// When what was told does not make sense.
    pub fn open(told: &HandedOver, below: Arc<dyn ObjectStore>) -> Result<Self, AgentError> {
        let usage = |error: lazy_pages::ids::InvalidId| AgentError::Usage(error.to_string());
        let app: AppId = told.app.parse().map_err(usage)?;
        let id: CheckpointId = told.id.parse().map_err(usage)?;
        let files = told.tls.clone().map(|[cert, key, ca]| Files { cert, key, ca });
        let source = Source {
            address: told.source.parse()?,
            files,
            app: app.to_string(),
            id: id.to_string(),
            channels: Default::default(),
            next: AtomicUsize::new(0),
        };
        Ok(Self { below, app, id, runner: told.runner.clone(), source: Arc::new(source) })
    }
}

impl Remote {
    /// Which handover.
    pub fn id(&self) -> CheckpointId {
        self.id
    }
}

#[async_trait]
impl Origin for Remote {
    fn store(&self) -> Arc<dyn ObjectStore> {
        let (below, source) = (Arc::clone(&self.below), Arc::clone(&self.source));
        Arc::new(HandoverStore::new(below, self.app.clone(), self.id, source))
    }

    async fn over(&self, outcome: &Outcome) -> Result<(), StoreError> {
        match outcome {
            Outcome::Resident(_) | Outcome::TreeGone(_) => {
                let fence = Fence::new(Arc::clone(&self.below), self.app.clone());
                let failed = |reason: String| StoreError::Other { store: self.below.describe(), reason };
                let said =
                    |what: Result<bool, AgentError>| what.map_err(|error| failed(crate::error_chain(&error)));
                // Pages may all be there, or the tree be gone, without it ever having run: CRIU can die before it lets go.
                if said(fence.has_run(self.runner.generation).await)? {
                    return self.source.finish().await;
                }
                match said(fence.has_ended(self.runner.generation).await)? {
                    true => Ok(()),
                    false => Err(failed("it is not known yet whether the tree has run here".to_owned())),
                }
            }
            // Whatever there was has been killed, so the generation is over if it ever was ours.
            Outcome::RestoreFailed { .. } | Outcome::Stopped { .. } | Outcome::Cancelled => {
                let fence = Fence::new(Arc::clone(&self.below), self.app.clone());
                fence.end_if_ours(&self.runner).await.map_err(|error| StoreError::Other {
                    store: self.below.describe(),
                    reason: crate::error_chain(&error),
                })
            }
        }
    }
}

/// The source's agent.
struct Source {
    address: AgentAddress,
    files: Option<Files>,
    app: String,
    id: String,
    /// The first is for what somebody waits for.
    channels: [Mutex<Option<Channel>>; 1 + BULK],
    next: AtomicUsize,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("address", &self.address).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Source {
    async fn client(&self, number: usize) -> Result<HandoversClient<Channel>, StoreError> {
        let mut slot = self.channels[number].lock().await;
        let channel = match &*slot {
            Some(channel) => channel.clone(),
            None => {
                let made = channel(&self.address, self.files.as_ref()).await;
                let made = made.map_err(|error| self.unreachable(crate::error_chain(&error)))?;
                slot.insert(made).clone()
            }
        };
        Ok(HandoversClient::new(channel).max_decoding_message_size(2 * FRAME))
    }

    /// What a call failed with. The next one makes a new connection: a channel that has lost its own would not read renewed
    /// certificates.
    async fn failed(&self, number: usize, status: Status) -> StoreError {
        *self.channels[number].lock().await = None;
        match status.code() {
            // Asking again will not help.
            Code::DataLoss => StoreError::NotFound {
                store: format!("the agent at {} ({})", self.address, status.message()),
                key: format!("the memory of handover {}", self.id),
            },
            _ => self.unreachable(status.to_string()),
        }
    }

    fn unreachable(&self, reason: String) -> StoreError {
        StoreError::Unavailable { store: format!("the agent at {}", self.address), reason }
    }

    async fn finish(&self) -> Result<(), StoreError> {
        let request = FinishHandoverRequest { app: self.app.clone(), handover: self.id.clone() };
        match self.client(0).await?.finish_handover(request).await {
            Ok(_) => Ok(()),
            // It was told before.
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed(0, status).await),
        }
    }
}

#[async_trait]
impl PageSource for Source {
    async fn read(&self, pack: PackId, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let number = match length <= FRAME as u64 {
            true => 0,
            false => 1 + self.next.fetch_add(1, Ordering::Relaxed) % BULK,
        };
        let request = ReadFramesRequest {
            app: self.app.clone(),
            handover: self.id.clone(),
            pack: pack.to_string(),
            offset,
            length,
        };
        let mut frames = match self.client(number).await?.read_frames(request).await {
            Ok(frames) => frames.into_inner(),
            Err(status) => return Err(self.failed(number, status).await),
        };
        let mut bytes = BytesMut::with_capacity(length as usize);
        loop {
            match frames.message().await {
                Ok(Some(frame)) => {
                    let plain =
                        unpack(&frame.data, frame.plain_length).map_err(|why| self.unreachable(why))?;
                    if (bytes.len() + plain.len()) as u64 > length {
                        return Err(self.unreachable("it sent more than was asked for".to_owned()));
                    }
                    bytes.extend_from_slice(&plain);
                }
                Ok(None) => break,
                Err(status) => return Err(self.failed(number, status).await),
            }
        }
        // What is short is asked for again by whoever reads; what is wrong does not match its hash.
        Ok(bytes.freeze())
    }

    fn describe(&self) -> String {
        format!("the agent at {}", self.address)
    }
}

/// Packs a frame for the way, if that makes it smaller.
pub fn pack(data: Bytes) -> (Bytes, u32) {
    let packed = lz4_flex::block::compress(&data);
    if packed.len() < data.len() - data.len() / 8 {
        let length = data.len() as u32;
        (packed.into(), length)
    } else {
        (data, 0)
    }
}

fn unpack(data: &[u8], plain_length: u32) -> Result<Bytes, String> {
    match plain_length as usize {
        0 => Ok(Bytes::copy_from_slice(data)),
        length if length > FRAME => Err(format!("a frame of {length} bytes")),
        length => {
            let plain = lz4_flex::block::decompress(data, length).map_err(|error| error.to_string())?;
            if plain.len() == length { Ok(plain.into()) } else { Err("a frame is cut short".to_owned()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_same_after_the_way() {
        for data in
            [vec![0; FRAME], (0..FRAME).map(|at| (at * at / 7) as u8).collect::<Vec<u8>>(), vec![1; 20]]
        {
            let (packed, length) = pack(Bytes::from(data.clone()));
            assert!(packed.len() <= data.len());
            assert_eq!(unpack(&packed, length).unwrap(), data);
        }
        let (packed, length) = pack(Bytes::from(vec![7; 5000]));
        assert!(length > 0);
        assert!(unpack(&packed, length - 1).is_err());
        assert!(unpack(&packed, length + 1).is_err());
        assert!(unpack(&packed, u32::MAX).is_err());
    }
}
