//! Parameters in a request's address.

use hyper::Uri;

/// The value of a parameter. Nothing here needs escapes, so none are decoded.
pub(crate) fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// A parameter that is a number, or what stands for it when it is missing. `None` when it is no number.
pub(crate) fn number(uri: &Uri, name: &str, default: u64) -> Option<u64> {
    parameter(uri, name).map_or(Some(default), |value| value.parse().ok())
}
