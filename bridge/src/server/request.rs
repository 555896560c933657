//! What a request of a stranger's may hold.

use crate::server::connections::HEADER_TIMEOUT;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Body as _;

/// Longest body of a request, bytes: what Twilio asks is a thousand or two.
const BODY_MAX: usize = 16 * 1024;

/// Reads the body of a request, of [`BODY_MAX`] bytes and for [`HEADER_TIMEOUT`] at most.
pub(crate) async fn read_body(body: axum::body::Body) -> Result<axum::body::Bytes, Response> {
    let too_long = || (StatusCode::PAYLOAD_TOO_LARGE, "the body is too long, or broke off\n").into_response();
    // One that says how long it is need not come first.
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(too_long());
    }
    match tokio::time::timeout(HEADER_TIMEOUT, axum::body::to_bytes(body, BODY_MAX)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(too_long()),
        Err(_late) => Err((StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n").into_response()),
    }
}

/// So much of what a client wrote as a log line should hold.
pub(crate) fn shortened(text: &str) -> &str {
    text.char_indices().nth(200).map_or(text, |(at, _)| &text[..at])
}
