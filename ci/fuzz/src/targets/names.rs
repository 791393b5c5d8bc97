//! What people and listings name: applications, identifiers, keys, addresses of stores.

use std::{fmt::Display, str::FromStr};

use lazy_pages::{
    format::keys,
    ids::{AppId, CheckpointId, LeaseId, PackId},
    store::StoreUrl,
};

use crate::Target;

/// A few copies of the text in parts and messages.
pub const TARGET: Target = Target { name: "names", run, seeds, memory: (16 << 10, 256) };

fn run(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let valid = [
        survives_printing::<AppId>(&text),
        survives_printing::<CheckpointId>(&text),
        survives_printing::<LeaseId>(&text),
        survives_printing::<PackId>(&text),
        survives_printing::<StoreUrl>(&text),
    ];
    if let Ok(app) = text.parse::<AppId>() {
        assert_eq!(app.as_str().split('/').count(), 3);
        let id = CheckpointId::from_bytes(&[1; 16]).expect("16 bytes");
        assert_eq!(keys::app_of_manifest(&keys::manifest(&app, id)), Some(app));
    }
    if let Some(app) = keys::app_of_manifest(&text) {
        let (id, part) =
            keys::checkpoint_part(&keys::checkpoints(&app), &text).expect("a part of a checkpoint");
        assert_eq!((keys::manifest(&app, id), part), (text.to_string(), "manifest"));
    }
    never_repeats_a_secret(&text);
    valid.contains(&true)
}

/// Whether it is one.
fn survives_printing<T: FromStr + Display + PartialEq>(text: &str) -> bool {
    let parsed = text.parse::<T>();
    if let Ok(value) = &parsed {
        let printed = value.to_string();
        assert!(printed.parse().is_ok_and(|again: T| again == *value), "{text:?} printed as {printed:?}");
    }
    parsed.is_ok()
}

/// An address with a secret in its user part, and the text around that.
fn never_repeats_a_secret(text: &str) {
    const SECRET: &str = "hush/5ecret+";
    let (user, rest) = text.split_once('@').unwrap_or(("", text));
    // After a question mark there is no user part.
    if user.contains('?') {
        return;
    }
    let address = format!("s3://{user}:{SECRET}@{rest}");
    let said = match address.parse::<StoreUrl>() {
        Ok(url) => format!("{url} {url:?}"),
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!said.contains(SECRET), "{said}");
}

fn seeds() -> Vec<Vec<u8>> {
    [
        "app",
        "cluster/namespace/app",
        "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "cluster/namespace/app/checkpoints/01ARZ3NDEKTSV4RRFFQ69G5FAV/manifest",
        "file:///var/lib/a%20b",
        "/plain/path",
        "s3://bucket/pre/fix?endpoint=http://host:9000&region=eu-1&path-style=true&profile=ci",
        "AKIAKEY@bucket/prefix",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
