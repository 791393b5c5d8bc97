//! What can be said of a manifest's body before memory is taken for it.
//!
//! A message of two bytes becomes a value of up to a few hundred once it is decoded. So the messages are counted first,
//! in a pass over the bytes that keeps nothing: a body that is not large cannot ask for memory that is.

use crate::format::invariants::{
    MAX_CPU_FEATURES, MAX_FILES, MAX_LARGE_IMAGES, MAX_OBJECTS, MAX_STREAMS, MAX_TASKS, MAX_XATTRS,
};

/// Shortest message of an object: its kind.
const SHORTEST_OBJECT: usize = 2;

/// Shortest message of a pack: 18 bytes of id, 18 of a frame's hash, and its length.
const SHORTEST_PACK: usize = 38;

/// Shortest message of a file: 4 bytes of path, 4 of mode with its type, 2 of policy.
const SHORTEST_FILE: usize = 10;

/// Fields of `Manifest`, of `Host` and of `File`.
const HOST: u64 = 5;
const TASKS: u64 = 7;
const OBJECTS: u64 = 8;
const PACKS: u64 = 9;
const STREAMS: u64 = 12;
const FILES: u64 = 20;
const LARGE_IMAGES: u64 = 21;
const CPU_FEATURES: u64 = 3;
const XATTRS: u64 = 10;

/// # Errors
/// Of what there is too much, or that the body is no message.
pub(super) fn check(body: &[u8]) -> Result<(), String> {
    let (mut tasks, mut objects, mut streams, mut features) = (0, 0, 0, 0);
    let (mut files, mut xattrs, mut images) = (0, 0, 0);
    each_message(body, |field, content| match field {
        TASKS => limit(&mut tasks, MAX_TASKS, "tasks"),
        OBJECTS if content.len() < SHORTEST_OBJECT => Err("an object of no kind".into()),
        OBJECTS => limit(&mut objects, MAX_OBJECTS, "objects"),
        STREAMS => limit(&mut streams, MAX_STREAMS, "streams"),
        PACKS if content.len() < SHORTEST_PACK => Err("a pack without a frame".into()),
        HOST => each_message(content, |field, _| match field {
            CPU_FEATURES => limit(&mut features, MAX_CPU_FEATURES, "CPU features"),
            _ => Ok(()),
        }),
        FILES if content.len() < SHORTEST_FILE => Err("a file without a name or a type".into()),
        FILES => {
            limit(&mut files, MAX_FILES, "files")?;
            each_message(content, |field, _| match field {
                XATTRS => limit(&mut xattrs, MAX_XATTRS, "extended attributes"),
                _ => Ok(()),
            })
        }
        LARGE_IMAGES => limit(&mut images, MAX_LARGE_IMAGES, "large images"),
        _ => Ok(()),
    })
}

fn limit(count: &mut usize, most: usize, what: &str) -> Result<(), String> {
    *count += 1;
    if *count > most { Err(format!("it has more than {most} {what}")) } else { Ok(()) }
}

/// Gives every length-delimited field of a message to `take`. Whatever the decoder would go on after must not end this.
fn each_message(
    mut message: &[u8],
    mut take: impl FnMut(u64, &[u8]) -> Result<(), String>,
) -> Result<(), String> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            0 => drop(varint(&mut message)?),
            1 => drop(split(&mut message, 8)?),
            2 => {
                let length = varint(&mut message)?;
                take(key >> 3, split(&mut message, length)?)?;
            }
            5 => drop(split(&mut message, 4)?),
            other => return Err(format!("a field of wire type {other}, which nobody writes")),
        }
    }
    Ok(())
}

fn split<'b>(message: &mut &'b [u8], length: u64) -> Result<&'b [u8], String> {
    let content = usize::try_from(length).ok().and_then(|length| message.split_at_checked(length));
    let (content, rest) = content.ok_or("a field is longer than its message")?;
    *message = rest;
    Ok(content)
}

fn varint(message: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for (at, byte) in message.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *message = &message[at + 1..];
            return Ok(value);
        }
    }
    Err("a number has no end".into())
}
