//! What can be looked at on the socket and over TCP alike: the metrics and the health. Nothing can be changed here.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::http::{Answer, READ, is_read, json, only, refuse};
use super::identity::Identity;
use super::report::Report;
use super::{HEALTH, METRICS, health, metrics};
use crate::host::clock::monotonic;
use crate::pki::load_identity;
use crate::status::Status;

/// Of the metrics: Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// What asks for more than health.
const PROTECTED: &str = "protected";

/// The answer, if the request is for something that can be looked at.
pub(super) fn answer<B>(request: &Request<B>, identity: &Identity, status: &Status) -> Option<Answer> {
    let path = request.uri().path();
    if path != METRICS && path != HEALTH {
        return None;
    }
    if !is_read(request.method()) {
        return Some(only(READ));
    }
    // The rates are the reader's to make.
    let report = Report::now(identity, status);
    Some(if path == METRICS {
        let not_after = load_identity(&identity.pki, &identity.node).map(|identity| identity.not_after);
        let text = metrics::text(report, status, not_after.ok());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        response.headers_mut().insert(CONTENT_TYPE, TEXT);
        response
    } else {
        let wants_protection = match request.uri().query() {
            None => false,
            Some(PROTECTED) => true,
            Some(_) => return Some(refuse(StatusCode::BAD_REQUEST, "only `?protected` is known here")),
        };
        let health = health::Health::of(&report, status.pulses(), monotonic());
        let is_fine = health.healthy && (health.protected || !wants_protection);
        let code = if is_fine {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        json(code, &health)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Method;

    use crate::status::StatusInner;

    fn code(status: &Status, method: Method, uri: &str) -> Option<u16> {
        let identity = Identity {
            machine: "m".into(),
            node: "a".into(),
            pki: "/nowhere".into(),
        };
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        answer(&request, &identity, status).map(|answer| answer.status().as_u16())
    }

    #[test]
    fn health_is_not_protection() {
        let status = Status::default();
        let tell = |state: &str| {
            status.set(StatusInner {
                state: state.into(),
                ..StatusInner::default()
            })
        };
        let look = |uri| code(&status, Method::GET, uri).unwrap();
        for (state, plain, protected) in [
            ("", 200, 503),
            ("not-protected (need-backup)", 200, 503),
            ("protected", 200, 200),
            ("protected, failover blocked (no-arbiter)", 200, 503),
            ("frozen (no-arbiter)", 503, 503),
            ("stopped (restarts-too-often)", 503, 503),
            ("stopped (panic)", 503, 503),
            ("stalled (no-stop)", 503, 503),
            ("cut-off (tap vm0 is gone)", 503, 503),
            ("protected, failover blocked (tap vm0 is gone)", 200, 503),
            ("stalled, also after a handover (vcpu-silent)", 503, 503),
        ] {
            tell(state);
            assert_eq!(
                (look("/healthz"), look("/healthz?protected")),
                (plain, protected),
                "{state}"
            );
        }
        assert_eq!(look("/healthz?protection"), 400);
        assert_eq!(look("/metrics"), 200);
        assert_eq!(code(&status, Method::HEAD, "/metrics"), Some(200));
        assert_eq!(code(&status, Method::POST, "/metrics"), Some(405));
        assert_eq!(code(&status, Method::GET, "/v1/status"), None);
    }
}
