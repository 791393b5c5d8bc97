//! What an S3 server's refusal means.

use hyper::StatusCode;

use super::super::{
    StoreError,
    retry::{Cause, Failure},
};

/// A server's own words in an error are cut after this many characters.
const LONGEST_QUOTE: usize = 300;

/// A refused request, and where it was going.
pub(super) struct Refusal<'a> {
    /// The HTTP status.
    pub(super) status: StatusCode,
    /// The start of the body, XML if all is well.
    pub(super) body: &'a [u8],
    /// The region the bucket is in, when the server says so.
    pub(super) region: Option<&'a str>,
    /// The store, for errors.
    pub(super) store: String,
    /// The object the request was about, if about one.
    pub(super) key: Option<&'a str>,
    /// Bytes asked for.
    pub(super) wanted: u64,
    /// Whether it was to create an object.
    pub(super) creates: bool,
}

impl Refusal<'_> {
    /// Sorts it: worth another try, or what final error.
    pub(super) fn classify(self) -> Failure {
        let code = tag(self.body, "Code").unwrap_or_default();
        let reason = self.reason(&code);
        let store = self.store;
        let key = || self.key.unwrap_or_default().to_owned();
        match (self.status.as_u16(), &*code) {
            (
                _,
                "SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "Throttling"
                | "ThrottlingException" | "RequestLimitExceeded" | "OperationAborted"
                | "ConditionalRequestConflict",
            )
            // The body was damaged or cut on its way.
            | (_, "BadDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch") => {
                Failure::Again(Cause::Broken, reason)
            }
            (_, "NoSuchBucket") => Failure::Final(StoreError::NoSuchStore { store }),
            (412, _) if self.creates => Failure::Final(StoreError::AlreadyExists { store, key: key() }),
            // The object ends before the range begins.
            (416, _) => {
                Failure::Final(StoreError::Truncated { store, key: key(), got: 0, wanted: self.wanted })
            }
            (501, _) if self.creates => Failure::Final(StoreError::NoConditionalCreate { store }),
            (
                _,
                "AccessDenied" | "AllAccessDisabled" | "InvalidAccessKeyId" | "SignatureDoesNotMatch"
                | "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "RequestTimeTooSkewed"
                | "InvalidClientTokenId" | "NotSignedUp",
            )
            | (401 | 403, _) => Failure::Final(StoreError::Denied { store, reason }),
            (404, "NoSuchKey" | "") if self.key.is_some() && !self.creates => {
                Failure::Final(StoreError::NotFound { store, key: key() })
            }
            (408 | 429 | 500 | 502..=504, _) => Failure::Again(Cause::Broken, reason),
            _ => Failure::Final(StoreError::Other { store, reason }),
        }
    }

    /// Status, code and message in one line. Only these: other parts of an answer may repeat what was signed.
    fn reason(&self, code: &str) -> String {
        let mut reason = format!("the server answered {}", self.status.as_u16());
        if !code.is_empty() {
            reason += &format!(" {code}");
        }
        if let Some(message) = tag(self.body, "Message").filter(|message| !message.is_empty()) {
            reason += &format!(": {message}");
        }
        if let Some(region) = self.region {
            reason += &format!(" (the bucket is in region {region})");
        }
        reason
    }
}

/// The text between the first `<name>` and `</name>`, on one line and not long.
fn tag(body: &[u8], name: &str) -> Option<String> {
    let body = String::from_utf8_lossy(body);
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(line.take(LONGEST_QUOTE).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(status: u16, code: &str, creates: bool) -> Failure {
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>why\nso</Message><Token-0>hush</Token-0></Error>"
        );
        Refusal {
            status: StatusCode::from_u16(status).expect("a status"),
            body: if code.is_empty() { b"<html>busy</html>" } else { body.as_bytes() },
            region: None,
            store: "s3://bucket".to_owned(),
            key: Some("k"),
            wanted: 9,
            creates,
        }
        .classify()
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for (status, code) in [
            (503, "SlowDown"),
            (503, ""),
            (500, "InternalError"),
            (502, ""),
            (504, ""),
            (429, ""),
            (400, "RequestTimeout"),
            (400, "BadDigest"),
            (409, "ConditionalRequestConflict"),
        ] {
            let failure = classify(status, code, true);
            assert!(matches!(failure, Failure::Again(Cause::Broken, _)), "{status} {code}: {failure:?}");
        }
    }

    #[test]
    fn what_will_not_pass_has_its_own_error() {
        let denied = |failure| matches!(failure, Failure::Final(StoreError::Denied { .. }));
        for (status, code) in [
            (403, "AccessDenied"),
            (403, "InvalidAccessKeyId"),
            (403, "SignatureDoesNotMatch"),
            (400, "ExpiredToken"),
            (401, ""),
            (403, ""),
        ] {
            assert!(denied(classify(status, code, false)), "{status} {code}");
        }
        let not_found = classify(404, "NoSuchKey", false);
        assert!(matches!(not_found, Failure::Final(StoreError::NotFound { .. })), "{not_found:?}");
        for creates in [true, false] {
            let no_bucket = classify(404, "NoSuchBucket", creates);
            assert!(matches!(no_bucket, Failure::Final(StoreError::NoSuchStore { .. })), "{no_bucket:?}");
        }
        let exists = classify(412, "PreconditionFailed", true);
        assert!(matches!(exists, Failure::Final(StoreError::AlreadyExists { .. })), "{exists:?}");
        let unable = classify(501, "NotImplemented", true);
        assert!(matches!(unable, Failure::Final(StoreError::NoConditionalCreate { .. })), "{unable:?}");
        let beyond = classify(416, "InvalidRange", false);
        assert!(
            matches!(beyond, Failure::Final(StoreError::Truncated { got: 0, wanted: 9, .. })),
            "{beyond:?}"
        );
        let other = classify(400, "InvalidRequest", true);
        assert!(matches!(other, Failure::Final(StoreError::Other { .. })), "{other:?}");
    }

    #[test]
    fn an_error_quotes_the_message_and_nothing_else() {
        let Failure::Final(error) = classify(400, "InvalidRequest", false) else { panic!("not final") };
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("400 InvalidRequest: why so"), "{shown}");
        assert!(!shown.contains("hush"), "{shown}");
    }
}
