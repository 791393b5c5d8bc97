//! CRIU's images. The input is which file it takes the place of, whether it is a whole file or one entry, and the bytes;
//! the other files are as they should be.

use std::{cell::OnceCell, fs, path::Path};

use criu_rpc::{ImageDir, PAGE_SIZE, PageObject};
use migration_proto::criu::images as wire;
use prost::Message;
use tempfile::TempDir;

use crate::Target;

const PID: u32 = 77;

/// An entry, decoded and as bytes.
pub const TARGET: Target = Target { name: "images", run, seeds, memory: (256 << 10, 64) };

/// Names, and the magic numbers they start with.
const FILES: [(&str, &[u32]); 9] = [
    ("inventory.img", &[0x5831_3116]),
    ("pstree.img", &[COMMON, 0x5027_3030]),
    ("core-77.img", &[COMMON, 0x5505_3847]),
    ("mm-77.img", &[COMMON, 0x5749_2820]),
    ("pagemap-77.img", &[COMMON, 0x5608_4025]),
    ("files.img", &[COMMON, 0x5630_3138]),
    ("ids-77.img", &[COMMON, 0x5443_2030]),
    ("fdinfo-5.img", &[COMMON, 0x5621_3732]),
    ("stats-dump", &[0x5510_5940, 0x5709_3306]),
];
const COMMON: u32 = 0x5456_4319;

fn run(input: &[u8]) -> bool {
    let [which, framed, bytes @ ..] = input else { return false };
    let (name, magic) = FILES[usize::from(*which) % FILES.len()];
    thread_local!(static DIRECTORY: OnceCell<TempDir> = const { OnceCell::new() });
    DIRECTORY.with(|directory| {
        let path = directory.get_or_init(directory_of_images).path();
        let content = if framed % 2 == 0 { bytes.to_vec() } else { image(magic, &[bytes]) };
        fs::write(path.join(name), content).expect("a file");
        let valid = read(path);
        fs::write(path.join(name), good(name, magic)).expect("a file");
        valid
    })
}

/// Everything that is ever asked of images; whether all of it was answered.
fn read(path: &Path) -> bool {
    let images = ImageDir::open(path).expect("a directory");
    let tasks = images.tasks();
    if let Ok(tasks) = &tasks {
        assert_eq!(tasks[0].parent, None);
        for (at, task) in tasks.iter().enumerate().skip(1) {
            assert!(tasks[..at].iter().any(|before| Some(before.pid) == task.parent), "parents come first");
        }
    }
    let mm = images.mm(PID);
    if let Ok(mm) = &mm {
        assert!(mm.vmas.is_sorted_by(|a, b| a.end <= b.start), "areas ascend and do not overlap");
        assert!(mm.vmas.iter().all(|vma| vma.start < vma.end));
    }
    let pagemap = images.read_pagemap(PageObject::Task(PID));
    if let Ok((_, runs)) = &pagemap {
        let mut end = 0;
        for run in runs {
            assert!(run.pages > 0 && run.vaddr >= end && (run.lazy || run.present));
            end = run.vaddr + run.pages * PAGE_SIZE as u64;
        }
    }
    let readable = [
        images.inventory().is_ok(),
        tasks.is_ok(),
        mm.is_ok(),
        pagemap.is_ok(),
        images.regular_files().is_ok(),
        images.pipes().is_ok(),
        images.descriptors(PID).is_ok(),
        images.check_pages().is_ok(),
        images.dump_statistics().is_ok(),
    ];
    readable.iter().all(|readable| *readable)
}

fn directory_of_images() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, magic) in FILES {
        fs::write(directory.path().join(name), good(name, magic)).expect("a file");
    }
    directory
}

fn image(magic: &[u32], entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes: Vec<u8> = magic.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for entry in entries {
        bytes.extend((entry.len() as u32).to_ne_bytes());
        bytes.extend(*entry);
    }
    bytes
}

fn good(name: &str, magic: &[u32]) -> Vec<u8> {
    let entries = entries(name);
    image(magic, &entries.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// What the good file of this name holds.
fn entries(name: &str) -> Vec<Vec<u8>> {
    let (bytes, number) = (|text: &str| Some(text.as_bytes().to_vec()), Some);
    match name {
        "inventory.img" => {
            vec![wire::InventoryEntry { img_version: number(2), tcp_close: None }.encode_to_vec()]
        }
        "pstree.img" => vec![
            wire::PstreeEntry {
                pid: number(PID),
                ppid: number(0),
                pgid: number(PID),
                sid: number(PID),
                threads: vec![PID, 78],
            }
            .encode_to_vec(),
        ],
        "core-77.img" => {
            let core = wire::TaskCoreEntry { task_state: number(1), comm: bytes("task") };
            vec![wire::CoreEntry { tc: Some(core) }.encode_to_vec()]
        }
        "mm-77.img" => {
            let mut mm = wire::MmEntry { exe_file_id: number(3) }.encode_to_vec();
            for (start, end) in [(0x1000, 0x3000), (0x5000, 0x9000)] {
                let vma = wire::VmaEntry {
                    start: Some(start),
                    end: Some(end),
                    pgoff: Some(0),
                    shmid: Some(0),
                    prot: number(3),
                    flags: number(0x22),
                    status: number(1),
                    madv: None,
                }
                .encode_to_vec();
                // Field 14, length-delimited.
                mm.extend([0x72, vma.len() as u8]);
                mm.extend(vma);
            }
            vec![mm]
        }
        "pagemap-77.img" => {
            let run = |page: u64, flags| wire::PagemapEntry {
                vaddr: Some(page * PAGE_SIZE as u64),
                compat_nr_pages: number(0),
                in_parent: None,
                flags: number(flags),
                nr_pages: Some(2),
            };
            let head = wire::PagemapHead { pages_id: number(1) };
            vec![head.encode_to_vec(), run(1, 2).encode_to_vec(), run(5, 2).encode_to_vec()]
        }
        "files.img" => {
            let file = wire::RegFileEntry {
                id: number(3),
                flags: number(2),
                pos: Some(0),
                name: bytes("/bin/true"),
                mnt_id: None,
                size: Some(100),
                mode: number(0o100_644),
            };
            let pipe = wire::PipeEntry { id: number(4), pipe_id: number(9), flags: number(1) };
            let (reg, pipe) = (Some(file), Some(pipe));
            vec![
                wire::FileEntry { r#type: number(1), id: number(3), reg, pipe: None }.encode_to_vec(),
                wire::FileEntry { r#type: number(2), id: number(4), reg: None, pipe }.encode_to_vec(),
            ]
        }
        "ids-77.img" => {
            vec![wire::TaskKobjIdsEntry { vm_id: number(1), files_id: number(5) }.encode_to_vec()]
        }
        "stats-dump" => {
            let (freezing_time, frozen_time) = (number(100), number(2000));
            let (memdump_time, memwrite_time) = (number(1000), number(500));
            let pages_written = Some(3);
            let dump = wire::DumpStatsEntry {
                freezing_time,
                frozen_time,
                memdump_time,
                memwrite_time,
                pages_written,
                ..Default::default()
            };
            vec![wire::StatsEntry { dump: Some(dump) }.encode_to_vec()]
        }
        _ => vec![wire::FdinfoEntry { id: number(3), r#type: number(1), fd: number(0) }.encode_to_vec()],
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (at, (name, magic)) in FILES.into_iter().enumerate() {
        seeds.push([&[at as u8, 0][..], &good(name, magic)].concat());
        seeds.push([&[at as u8, 1][..], &entries(name)[0]].concat());
    }
    seeds
}
