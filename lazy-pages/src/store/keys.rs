//! Which names an object may have.
//!
//! The rule is narrow on purpose: such a name means the same in a directory, in a URL and in a signature, and can never
//! reach outside the store.

use super::StoreError;

/// First segment of the names a store keeps for itself.
pub(super) const RESERVED: &str = ".incoming";

/// S3 allows 1024 bytes; what is left is for the store's own prefix.
const LONGEST_KEY: usize = 768;
/// What file systems allow in one name.
const LONGEST_SEGMENT: usize = 255;

/// Refuses what is not the name of an object.
pub(super) fn check(key: &str) -> Result<(), &'static str> {
    if key.len() > LONGEST_KEY {
        return Err("it is longer than 768 bytes");
    }
    for (index, segment) in key.split('/').enumerate() {
        if segment.is_empty() || matches!(segment, "." | "..") {
            return Err("parts between slashes must not be empty, `.` or `..`");
        }
        if segment.len() > LONGEST_SEGMENT {
            return Err("a part between slashes is longer than 255 bytes");
        }
        if !segment.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            return Err("parts between slashes hold letters, digits, `-`, `_` and `.`");
        }
        if index == 0 && segment == RESERVED {
            return Err("names below `.incoming` are kept for the store itself");
        }
    }
    Ok(())
}

/// [`check`] as the store's error.
pub(super) fn checked(key: &str) -> Result<&str, StoreError> {
    check(key).map_err(|why| StoreError::InvalidKey { key: key.to_owned(), why })?;
    Ok(key)
}

/// The start of a name: empty, `a/`, or `a/b`.
pub(super) fn checked_prefix(prefix: &str) -> Result<&str, StoreError> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(prefix),
        name => checked(name).map(|_| prefix),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for key in
            ["", "/", "/etc/passwd", "a//b", "a/", "..", "a/../b", "./a", "a\\b", "a\0b", "a b", "ä", "a?b"]
        {
            assert!(check(key).is_err(), "{key:?}");
        }
        assert!(check(&"k".repeat(256)).is_err());
        assert!(check(&["segment"; 200].join("/")).is_err());
        assert!(check(".incoming/x").is_err());
    }

    #[test]
    fn names_of_checkpoints_are_allowed() {
        for key in
            ["local/default/redis/checkpoints/01J/manifest", ".probe/x", "a", "a.b-c_D/9", "a/.incoming"]
        {
            assert!(check(key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn a_prefix_may_be_empty_or_end_anywhere() {
        for prefix in ["", "a", "a/", "a/b", "a/b/"] {
            assert!(checked_prefix(prefix).is_ok(), "{prefix:?}");
        }
        for prefix in ["/", "a//", "../", "/a"] {
            assert!(checked_prefix(prefix).is_err(), "{prefix:?}");
        }
    }
}
