//! The manifest. The input is its body; the header with the right hash is put before it, so that it reaches the message
//! decoder and the rules. The input itself is tried too.

use lazy_pages::{
    format::{
        Attributes, Blob, Codec, ExternalStream, FileEntry, FileIdentity, FileKind, FilePolicy, FrameEntry,
        FrameIndex, Host, LargeImage, Manifest, MemoryMap, ObjectId, PackEntry, Run, Source, Statistics,
        Task, Timestamp, Vma,
    },
    ids::{CheckpointId, PackId},
    units::VirtAddr,
};

use crate::Target;

/// Magic, version, length, hash.
const HEADER: usize = 8 + 4 + 8 + 32;

/// A one-byte number of a column becomes eight bytes, a message of two bytes a value of a few dozen; all this is there
/// twice while one form is made from the other, and vectors double as they grow.
pub const TARGET: Target = Target { name: "manifest", run, seeds, memory: (64 << 10, 128) };

fn run(input: &[u8]) -> bool {
    drop(Manifest::decode(input));
    let decoded = Manifest::decode(&around(input));
    if let Ok(manifest) = &decoded {
        let again = manifest.encode().expect("what can be read can be written");
        let again = Manifest::decode(&again).expect("what was written can be read");
        assert_eq!(again, *manifest);
        // What every reader leans on without looking.
        for object in &manifest.objects {
            for run in &object.runs {
                assert_eq!(object.run_at(run.start), Some(run));
                if let Source::Stored { frame, first, .. } = run.source {
                    let frame = &manifest.frames[frame.0 as usize];
                    assert!(u64::from(first) + run.pages <= u64::from(frame.pages));
                }
            }
        }
    }
    decoded.is_ok()
}

fn around(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(b"LPMANIFT");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(blake3::hash(body).as_bytes());
    bytes.extend(body);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    [smallest(), larger()]
        .map(|manifest| manifest.encode().expect("a valid manifest")[HEADER..].to_vec())
        .to_vec()
}

/// One task whose memory was never touched.
pub(crate) fn smallest() -> Manifest {
    let vma = Vma {
        start: VirtAddr::of_page(16),
        end: VirtAddr::of_page(32),
        wipe_on_fork: false,
        dont_fork: false,
        grows_down: false,
    };
    let zero = Run { start: vma.start, pages: 16, source: Source::Zero };
    Manifest {
        app: "cluster/namespace/app".parse().expect("a valid name"),
        // Always the same, so that the seeds are.
        id: CheckpointId::from_bytes(&[1; 16]).expect("16 bytes"),
        parent: None,
        depth: 0,
        created_unix_ms: 0,
        host: Host::default(),
        tasks: vec![Task { pid: 4242, parent_pid: 1, threads: 1, dead: false, command: "task".into() }],
        objects: vec![MemoryMap { id: ObjectId::Task(4242), pages_id: 1, vmas: vec![vma], runs: vec![zero] }],
        packs: Vec::new(),
        frames: Vec::new(),
        bundle: Blob::of(b""),
        page_hashes: Blob { length: 0, ..Blob::of(b"") },
        streams: Vec::new(),
        statistics: Statistics::default(),
        files: Vec::new(),
        large_images: Vec::new(),
    }
}

/// Something of everything.
fn larger() -> Manifest {
    let mut manifest = smallest();
    manifest.parent = Some(CheckpointId::from_bytes(&[2; 16]).expect("16 bytes"));
    manifest.depth = 3;
    manifest.host = Host {
        kernel: "6.18".into(),
        architecture: "x86_64".into(),
        cpu_features: vec!["fpu".into(), "avx2".into()],
        criu_version: 40_201,
    };
    manifest.tasks.push(Task {
        pid: 4243,
        parent_pid: 4242,
        threads: 0,
        dead: true,
        command: "zombie".into(),
    });
    let packs = [3, 4].map(|byte| PackId::from_bytes(&[byte; 16]).expect("16 bytes"));
    let frame = |pack: usize, offset, stored_length, pages, codec| FrameEntry {
        pack: packs[pack],
        offset,
        stored_length,
        pages,
        codec,
        hash: [pack as u8; 16],
    };
    manifest.frames = vec![
        frame(0, 0, 4096, 1, Codec::None),
        frame(0, 5000, 300, 4, Codec::Lz4),
        frame(1, 0, 70_000, 64, Codec::Zstd),
    ];
    manifest.packs =
        vec![PackEntry { id: packs[0], length: 6000 }, PackEntry { id: packs[1], length: 70_000 }];
    let run = |page, pages, frame, first, eager| Run {
        start: VirtAddr::of_page(page),
        pages,
        source: Source::Stored { frame: FrameIndex(frame), first, eager },
    };
    let zero = |page, pages| Run { start: VirtAddr::of_page(page), pages, source: Source::Zero };
    manifest.objects[0].runs = vec![
        run(16, 1, 0, 0, false),
        zero(17, 11),
        run(28, 4, 1, 0, true),
        zero(40, 2),
        run(99, 2, 2, 60, true),
    ];
    manifest.objects.push(MemoryMap {
        id: ObjectId::Shared(9),
        pages_id: 2,
        vmas: Vec::new(),
        runs: vec![run(0, 60, 2, 0, true)],
    });
    let content =
        |number, runs| MemoryMap { id: ObjectId::File(number), pages_id: 0, vmas: Vec::new(), runs };
    manifest.objects.push(content(1, vec![zero(0, 3), run(3, 2, 2, 60, true)]));
    manifest.objects.push(content(2, Vec::new()));
    manifest.files = files();
    manifest.large_images = vec![LargeImage { name: "ghost-file-1.img".into(), size: 0, content: 2 }];
    manifest.page_hashes.length = manifest.stored_pages() * 16;
    manifest.streams = vec![ExternalStream { key: "pipe:[5]".into(), stdio: 1 }];
    manifest
}

/// One of each kind and policy; the first two are names of one file.
fn files() -> Vec<FileEntry> {
    let time = Timestamp { seconds: -5, nanoseconds: 999_999_999 };
    let file = |path: &str, kind, policy, size| FileEntry {
        path: path.into(),
        kind,
        policy,
        size,
        attributes: Attributes {
            permissions: 0o2755,
            uid: 7,
            gid: 8,
            modified: time,
            xattrs: vec![(b"user.note".to_vec(), b"value".to_vec())],
        },
        identity: Some(FileIdentity { device: 1, inode: 2, changed: time }),
    };
    let carried = |path| file(path, FileKind::Regular { content: Some(1) }, FilePolicy::Carry, 4 * 4096 + 1);
    vec![
        carried("/data/log"),
        carried("/data/again"),
        file("/data", FileKind::Directory, FilePolicy::Carry, 0),
        file("/link", FileKind::Symlink { target: "data/log".into() }, FilePolicy::Carry, 0),
        file("/lib", FileKind::Regular { content: None }, FilePolicy::Expect, 99),
        file("/shared", FileKind::Regular { content: None }, FilePolicy::Same, 0),
    ]
}
