//! What an agent and a launcher say to each other: one line of text a datagram, and descriptors beside it.
//!
//! A launcher is as old as its container and may have to talk to a newer agent, so it refuses what it does not know and
//! goes on, and nothing here changes its meaning.

use std::{fmt, str::FromStr};

/// Bytes of the longest datagram.
pub const LIMIT: usize = 512;

/// What an agent asks or tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// What are you doing?
    Status,
    /// Hand over the standard streams. They come beside the answer.
    Streams,
    /// A checkpoint that ends the tree has begun.
    Leaving,
    /// That checkpoint is committed.
    Left,
    /// That checkpoint failed, the tree goes on.
    Stays,
    /// The tree has been restored, and this is its root.
    Runs(u32),
    /// The restored root, which is not the launcher's child, has ended with this status.
    Ended(u8),
    /// Hold the memory of a restored process, whose descriptor is beside this. If its pid is not 0, so is its pidfd.
    Hold(u32),
    /// Close what is held.
    Release,
}

/// What a launcher answers to every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done; this is how things are now.
    State(State),
    /// That makes no sense in this state, or is not known. Nothing was changed.
    Refused(State),
}

/// What a launcher is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// In front of the tree with this root.
    Runs(u32),
    /// The same; the tree may be ended by a checkpoint at any moment.
    Leaves(u32),
    /// The root has been killed while a checkpoint was under way, and nobody has told yet whether it is committed.
    Undecided,
    /// The tree has been moved away.
    Moved,
    /// A tree is to be restored here.
    Waits,
}

impl fmt::Display for Request {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => to.write_str("status"),
            Self::Streams => to.write_str("streams"),
            Self::Leaving => to.write_str("leaving"),
            Self::Left => to.write_str("left"),
            Self::Stays => to.write_str("stays"),
            Self::Runs(pid) => write!(to, "runs {pid}"),
            Self::Ended(status) => write!(to, "ended {status}"),
            Self::Hold(pid) => write!(to, "hold {pid}"),
            Self::Release => to.write_str("release"),
        }
    }
}

impl FromStr for Request {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        Ok(match words(text) {
            ("status", None) => Self::Status,
            ("streams", None) => Self::Streams,
            ("leaving", None) => Self::Leaving,
            ("left", None) => Self::Left,
            ("stays", None) => Self::Stays,
            ("runs", Some(pid)) => Self::Runs(number(pid)?),
            ("ended", Some(status)) => Self::Ended(number(status)?),
            ("hold", Some(pid)) => Self::Hold(number(pid)?),
            ("release", None) => Self::Release,
            _ => return Err(NotUnderstood),
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(pid) => write!(to, "runs {pid}"),
            Self::Leaves(pid) => write!(to, "leaves {pid}"),
            Self::Undecided => to.write_str("undecided"),
            Self::Moved => to.write_str("moved"),
            Self::Waits => to.write_str("waits"),
        }
    }
}

impl FromStr for State {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        Ok(match words(text) {
            ("runs", Some(pid)) => Self::Runs(number(pid)?),
            ("leaves", Some(pid)) => Self::Leaves(number(pid)?),
            ("undecided", None) => Self::Undecided,
            ("moved", None) => Self::Moved,
            ("waits", None) => Self::Waits,
            _ => return Err(NotUnderstood),
        })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State(state) => write!(to, "ok {state}"),
            Self::Refused(state) => write!(to, "refused {state}"),
        }
    }
}

impl FromStr for Answer {
    type Err = NotUnderstood;

    fn from_str(text: &str) -> Result<Self, NotUnderstood> {
        match words(text) {
            ("ok", Some(state)) => Ok(Self::State(state.parse()?)),
            ("refused", Some(state)) => Ok(Self::Refused(state.parse()?)),
            _ => Err(NotUnderstood),
        }
    }
}

/// Text that is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUnderstood;

fn words(text: &str) -> (&str, Option<&str>) {
    match text.split_once(' ') {
        Some((verb, rest)) => (verb, Some(rest)),
        None => (text, None),
    }
}

/// Only as it would be written: one meaning, one text.
fn number<N: FromStr + ToString>(text: &str) -> Result<N, NotUnderstood> {
    let number: N = text.parse().map_err(|_| NotUnderstood)?;
    match number.to_string() == text {
        true => Ok(number),
        false => Err(NotUnderstood),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![
            any::<u32>().prop_map(State::Runs),
            any::<u32>().prop_map(State::Leaves),
            Just(State::Undecided),
            Just(State::Moved),
            Just(State::Waits),
        ]
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            Just(Request::Status),
            Just(Request::Streams),
            Just(Request::Leaving),
            Just(Request::Left),
            Just(Request::Stays),
            any::<u32>().prop_map(Request::Runs),
            any::<u8>().prop_map(Request::Ended),
            any::<u32>().prop_map(Request::Hold),
            Just(Request::Release),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_understood(request in request(), state in state(), refused: bool) {
            let answer = if refused { Answer::Refused(state) } else { Answer::State(state) };
            prop_assert_eq!(request.to_string().parse(), Ok(request));
            prop_assert_eq!(answer.to_string().parse(), Ok(answer));
            prop_assert!(request.to_string().len() < LIMIT && answer.to_string().len() < LIMIT);
        }

        #[test]
        fn whatever_is_understood_is_said_in_the_same_words(text in "(status|streams|leaving|left|stays|runs|ended|hold|release)?( |\\+|0)?[0-9]{0,11}") {
            if let Ok(request) = text.parse::<Request>() {
                prop_assert_eq!(request.to_string(), text);
            }
        }
    }
}
