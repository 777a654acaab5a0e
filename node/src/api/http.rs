//! HTTP as both servers speak it: one small request on one connection, and a bounded time for it.

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Refusal;

/// Most bytes of a request's head. hyper takes no less.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// How long a client may take to send its head, and then its body.
pub(super) const RECEIVING: Duration = Duration::from_secs(5);

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// One request on one connection, which may last for `limit` in all: who asks again connects again, and nobody keeps a
/// place without asking.
pub(super) async fn talk<S, A, F>(stream: S, limit: Duration, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = hyper::service::service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(RECEIVING)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limit, connection).await {
        Ok(Err(error)) => tracing::debug!("a connection ended: {error}"),
        Err(_) => tracing::debug!("a connection took too long"),
        Ok(Ok(())) => {}
    }
}

/// The methods of what can be looked at; hyper sends no body to a HEAD.
pub(super) const READ: &str = "GET, HEAD";

/// Whether a method is one of them.
pub(super) fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Another method was used than what there is.
pub(super) fn only(methods: &'static str) -> Answer {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, &format!("only {methods} is known here"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    response
}

/// A refusal with its reason.
pub(super) fn refuse(status: StatusCode, reason: &str) -> Answer {
    json(status, &Refusal { error: reason.into() })
}

/// An answer as JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Plain structures with text for keys: they can be told as JSON.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
