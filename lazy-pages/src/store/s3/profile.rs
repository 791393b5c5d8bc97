//! The shared `credentials` and `config` files: named sections of `key = value`.
//!
//! Read here and not by rusoto, whose reader panics on lines it does not understand.

use std::{collections::HashMap, fs::File, io::ErrorKind, io::Read, path::Path};

/// These files are a few lines; more than this is something else.
const LONGEST_FILE: u64 = 1 << 20;

/// The section of profile `name`, or `None` when there is no such file or section.
///
/// # Errors
/// When the file is there but cannot be read; says nothing of its content.
pub(super) fn read(file: &Path, name: &str) -> Result<Option<HashMap<String, String>>, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("{} cannot be read: {why}", file.display());
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(unreadable(&error)),
    };
    let mut text = String::new();
    opened.take(LONGEST_FILE).read_to_string(&mut text).map_err(|error| unreadable(&error))?;
    Ok(section(&text, name))
}

fn section(text: &str, name: &str) -> Option<HashMap<String, String>> {
    let mut found: Option<HashMap<String, String>> = None;
    let mut inside = false;
    for line in text.lines() {
        // Nested settings are indented; none of them is ours.
        let nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            // `config` writes `[profile name]`, `credentials` writes `[name]`.
            let title = title.trim();
            inside = title.strip_prefix("profile ").map_or(title, str::trim) == name;
            if inside {
                found.get_or_insert_default();
            }
        } else if inside
            && !nested
            && let Some((key, value)) = line.split_once('=')
            && let Some(section) = &mut found
        {
            section.insert(key.trim().to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# a comment\n[default]\naws_access_key_id=one\naws_secret_access_key = a/b+c==\n\
        [profile ci]\nregion = eu-west-1\ns3 =\n  region = not-this\n\n[ other ]\nAWS_ACCESS_KEY_ID = two\nnonsense\n";

    #[test]
    fn sections_are_kept_apart() {
        let default = section(FILE, "default").expect("present");
        assert_eq!(default["aws_access_key_id"], "one");
        assert_eq!(default["aws_secret_access_key"], "a/b+c==");
        assert!(!default.contains_key("region"));
        assert_eq!(section(FILE, "ci").expect("present")["region"], "eu-west-1");
        assert_eq!(section(FILE, "other").expect("present")["aws_access_key_id"], "two");
        assert!(section(FILE, "missing").is_none());
        assert!(section("garbage\n[unclosed\n=\n[]\n", "missing").is_none());
    }

    #[test]
    fn a_file_that_is_not_text_is_an_error_without_its_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("credentials");
        assert!(read(&file, "default").expect("missing is fine").is_none());
        std::fs::write(&file, b"[default]\naws_secret_access_key=hush\xff\n").expect("written");
        let error = read(&file, "default").expect_err("not text");
        assert!(error.contains("credentials") && !error.contains("hush"), "{error}");
    }
}
