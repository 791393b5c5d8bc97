//! Objects as files: `s3s-fs`, with what it lacks.
//!
//! Create-if-absent is atomic here. Objects are read and written in one go, where `s3s-fs` takes a thread for every 4 KiB
//! read and hashes what is written once more.

use std::{
    fs::{File, Metadata},
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures_util::StreamExt;
use s3s::{
    Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto, dto::StreamingBlob, s3_error,
};
use s3s_fs::FileSystem;

use super::Faults;

/// Longer ranges are streamed.
const READ_AT_ONCE: u64 = 64 << 20;

/// The buckets in a directory.
pub(super) struct Objects {
    root: PathBuf,
    files: FileSystem,
    faults: Arc<Faults>,
    /// Names the next file that is being written.
    written: AtomicU64,
}

impl Objects {
    pub(super) fn new(root: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(Self { root: root.to_owned(), files, faults, written: AtomicU64::new(0) })
    }

    /// The object's file, in a bucket that is there.
    fn path(&self, bucket: &str, key: &str) -> S3Result<PathBuf> {
        if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(s3_error!(InvalidArgument));
        }
        let bucket = self.root.join(bucket);
        if bucket.is_dir() { Ok(bucket.join(key)) } else { Err(s3_error!(NoSuchBucket)) }
    }
}

/// Writes `pieces` aside, then gives them their name, which fails when it is taken unless the object `overwrites`.
fn write(aside: &Path, pieces: &[Bytes], path: &Path, overwrites: bool) -> io::Result<()> {
    let mut file = File::create(aside)?;
    for piece in pieces {
        file.write_all(piece)?;
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if overwrites { std::fs::rename(aside, path) } else { std::fs::hard_link(aside, path) }
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn get_object(
        &self,
        mut request: S3Request<dto::GetObjectInput>,
    ) -> S3Result<S3Response<dto::GetObjectOutput>> {
        if self.faults.knows_no_ranges.load(Relaxed) {
            request.input.range = None;
        }
        let input = &request.input;
        let path = self.path(&input.bucket, &input.key)?;
        let metadata = tokio::fs::metadata(&path).await.ok().filter(Metadata::is_file);
        let Some(metadata) = metadata else { return Err(s3_error!(NoSuchKey)) };
        let size = metadata.len();
        let range = match input.range {
            Some(range) => range.check(size)?,
            None => 0..size,
        };
        let length = range.end - range.start;
        if length > READ_AT_ONCE {
            return self.files.get_object(request).await;
        }
        let offset = range.start;
        let read = tokio::task::spawn_blocking(move || -> io::Result<Bytes> {
            // Bounded above.
            let mut buffer = vec![0; length as usize];
            File::open(path)?.read_exact_at(&mut buffer, offset)?;
            Ok(buffer.into())
        });
        let body = read.await.map_err(|error| s3_error!(error, InternalError))?;
        let body = body.map_err(|error| s3_error!(error, InternalError))?;
        let content_range =
            input.range.is_some().then(|| format!("bytes {}-{}/{size}", range.start, range.end - 1));
        Ok(S3Response::new(dto::GetObjectOutput {
            body: Some(StreamingBlob::from(Body::from(body))),
            content_length: i64::try_from(length).ok(),
            content_range,
            ..Default::default()
        }))
    }

    async fn put_object(
        &self,
        request: S3Request<dto::PutObjectInput>,
    ) -> S3Result<S3Response<dto::PutObjectOutput>> {
        let input = request.input;
        let path = self.path(&input.bucket, &input.key)?;
        let overwrites = input.if_none_match.is_none() || self.faults.overwrites.load(Relaxed);
        // Reading to the end is what checks the body's hash.
        let mut pieces = Vec::new();
        if let Some(mut body) = input.body {
            while let Some(piece) = body.next().await {
                pieces.push(piece.map_err(|error| S3Error::with_source(S3ErrorCode::BadDigest, error))?);
            }
        }
        let number = self.written.fetch_add(1, Relaxed);
        let temporary = self.root.join(format!(".put-{}-{number}", std::process::id()));
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&temporary, &pieces, &path, overwrites);
            let _ = std::fs::remove_file(&temporary);
            written
        });
        match written.await.map_err(|error| s3_error!(error, InternalError))? {
            Ok(()) => Ok(S3Response::new(dto::PutObjectOutput::default())),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(s3_error!(PreconditionFailed)),
            Err(error) => Err(s3_error!(error, InternalError)),
        }
    }

    async fn delete_object(
        &self,
        request: S3Request<dto::DeleteObjectInput>,
    ) -> S3Result<S3Response<dto::DeleteObjectOutput>> {
        let path = self.path(&request.input.bucket, &request.input.key)?;
        if path.is_file() {
            tokio::fs::remove_file(path).await.map_err(|error| s3_error!(error, InternalError))?;
        }
        Ok(S3Response::new(dto::DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<dto::ListObjectsV2Input>,
    ) -> S3Result<S3Response<dto::ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<dto::HeadObjectInput>,
    ) -> S3Result<S3Response<dto::HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<dto::HeadBucketInput>,
    ) -> S3Result<S3Response<dto::HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn create_bucket(
        &self,
        request: S3Request<dto::CreateBucketInput>,
    ) -> S3Result<S3Response<dto::CreateBucketOutput>> {
        self.files.create_bucket(request).await
    }
}
