//! Requests to the members of one cluster over HTTP or HTTPS.
//!
//! Invariants:
//! - A request ends within its timeout, all endpoints together, however slowly they answer; a body is bounded.
//! - No redirects, no proxy from the environment, no connection kept: what answers is the endpoint that was named, now.
//! - TLS files are read again for every request, so that a renewed certificate needs no restart. Files that cannot be
//!   used at that moment leave the last good ones in use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription as Alert, ClientConfig};
use ureq::Agent;
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, TcpConnector};

use super::endpoint::{Endpoint, TlsFiles};
use super::failure::Failure;
use super::login::{self, Login, Visitor};
use super::tls::TlsConnector;

/// Most bytes of an answer, unless more is allowed: a record and etcd's header, in base64 and JSON, are far below.
const MAX_BODY_BYTES: u64 = 64 << 10;
/// Most characters of an error's answer that are shown.
const MAX_SHOWN: usize = 200;

/// A client of one cluster.
#[derive(Debug)]
pub(super) struct Client {
    endpoints: Vec<Endpoint>,
    /// The one that answered last: a member that is down must not cost time at every request.
    first: usize,
    tls: Option<TlsFiles>,
    visitor: Option<Visitor>,
    agent: Agent,
    timeout: Duration,
    /// Most bytes of an answer.
    most: u64,
}

impl Client {
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<TlsFiles>,
        login: Option<Login>,
        timeout: Duration,
    ) -> Result<Self, String> {
        match (&tls, endpoints.first().map(Endpoint::is_tls)) {
            (_, None) => return Err("it has no URL".into()),
            (None, Some(true)) => return Err("its URL is https: give the CA's certificate too".into()),
            (Some(_), Some(false)) => return Err("TLS files were given, but its URL is http: say https".into()),
            _ if login.is_some() && tls.is_none() => {
                return Err(
                    "a password is sent by TLS only, but its URL is http: say https, and give the CA's certificate"
                        .into(),
                );
            }
            _ => {}
        }
        let config = tls
            .as_ref()
            .map(TlsFiles::load)
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            endpoints,
            first: 0,
            tls,
            visitor: login.map(Visitor::new),
            agent: agent(config),
            timeout,
            most: MAX_BODY_BYTES,
        })
    }

    /// From now on an answer may have so many bytes.
    pub(super) fn allow(&mut self, most: u64) {
        self.most = most;
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter()
    }

    /// Sends one request to one endpoint after the other until `accept` takes an answer. If none is taken and one
    /// request may have been carried out, that is what is said.
    pub(super) fn post<T>(
        &mut self,
        path: &str,
        body: &str,
        mut accept: impl FnMut(&[u8]) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let begin = Instant::now();
        self.reload();
        let count = self.endpoints.len();
        let (mut reasons, mut unknown) = (Vec::new(), false);
        for turn in 0..count {
            let index = (self.first + turn) % count;
            // Each gets an equal share of what is left, so that one that is silent leaves some for the next.
            let left = self.timeout.saturating_sub(begin.elapsed());
            let share = left / (count - turn) as u32;
            let endpoint = &self.endpoints[index];
            let answer = match &mut self.visitor {
                None => exchange(&self.agent, endpoint, path, body, None, (share, self.most)),
                Some(visitor) => as_visitor(&self.agent, endpoint, path, body, visitor, (share, self.most)),
            };
            match answer.and_then(|answer| accept(&answer)) {
                Ok(taken) => {
                    self.first = index;
                    return Ok(taken);
                }
                Err(Failure::Unknown(reason)) => {
                    unknown = true;
                    reasons.push(format!("{endpoint}: {reason}"));
                }
                Err(Failure::Refused(reason) | Failure::Stranger(reason)) => {
                    reasons.push(format!("{endpoint}: {reason}"));
                }
            }
        }
        let reasons = reasons.join("; ");
        Err(if unknown {
            Failure::Unknown(reasons)
        } else {
            Failure::Refused(reasons)
        })
    }

    fn reload(&mut self) {
        match self.tls.as_ref().map(TlsFiles::load) {
            None => {}
            Some(Ok(config)) => self.agent = agent(Some(config)),
            Some(Err(error)) => tracing::warn!("the arbiter's TLS files stay as they were: {error}"),
        }
    }
}

fn agent(tls: Option<Arc<ClientConfig>>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .max_idle_connections(0)
        .user_agent("lockstep")
        .build();
    let (tcp, resolver) = (TcpConnector::default(), DefaultResolver::default());
    match tls {
        Some(tls) => Agent::with_parts(config, tcp.chain(TlsConnector(tls)), resolver),
        None => Agent::with_parts(config, tcp, resolver),
    }
}

/// As a user: with the token that is there, or else a new one. A request whose token is not known was not carried out, so
/// it can be sent again.
fn as_visitor(
    agent: &Agent,
    endpoint: &Endpoint,
    path: &str,
    body: &str,
    visitor: &mut Visitor,
    (timeout, most): (Duration, u64),
) -> Result<Vec<u8>, Failure> {
    let begin = Instant::now();
    let left = || (timeout.saturating_sub(begin.elapsed()), most);
    if let Some(token) = visitor.token() {
        match exchange(agent, endpoint, path, body, Some(token), left()) {
            Err(Failure::Stranger(reason)) => tracing::debug!("a new token is asked for: {reason}"),
            answer => return answer,
        }
    }
    visitor.enter(|path, body| exchange(agent, endpoint, path, body, None, left()))?;
    exchange(agent, endpoint, path, body, visitor.token(), left())
}

fn exchange(
    agent: &Agent,
    endpoint: &Endpoint,
    path: &str,
    body: &str,
    token: Option<&str>,
    (timeout, most): (Duration, u64),
) -> Result<Vec<u8>, Failure> {
    if timeout.is_zero() {
        return Err(Failure::Unknown("no time was left to ask".into()));
    }
    let mut request = agent
        .post(format!("{endpoint}{path}"))
        .header("content-type", "application/json");
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let request = request.config().timeout_global(Some(timeout)).build();
    let failed = |error: ureq::Error| match certificate_trouble(&error) {
        Some(reason) => Failure::Refused(reason),
        None => Failure::Unknown(error.to_string()),
    };
    let mut response = request.send(body).map_err(failed)?;
    let answer = response.body_mut().with_config().limit(most).read_to_vec();
    let answer = answer.map_err(failed)?;
    match response.status().as_u16() {
        200 => Ok(answer),
        status => {
            let shown: String = String::from_utf8_lossy(&answer).chars().take(MAX_SHOWN).collect();
            let remedy = login::remedy(&shown);
            let reason = format!("HTTP status {status}: {}{remedy}", shown.trim().escape_debug());
            Err(match status {
                _ if login::is_strange(status, &shown) => Failure::Stranger(reason),
                // Not now: a timeout on the way, or too much to do.
                408 | 429 => Failure::Unknown(reason),
                400..=499 => Failure::Refused(reason),
                _ => Failure::Unknown(reason),
            })
        }
    }
}

/// If one side did not accept the other's certificate: then the request was not read.
fn certificate_trouble(error: &ureq::Error) -> Option<String> {
    let ureq::Error::Io(error) = error else { return None };
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match tls {
        rustls::Error::InvalidCertificate(error) => Some(format!("its certificate is not accepted: {error}")),
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRequired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied),
        ) => Some(format!("it does not accept this node's certificate ({alert:?})")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    /// A server that treats each of its connections so, in a thread that ends with the test's process.
    fn server(treat: impl Fn(TcpStream) + Send + 'static) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut seen = Vec::new();
                let mut piece = [0; 1024];
                while !seen.ends_with(b"{}") {
                    match stream.read(&mut piece) {
                        Ok(count) if count > 0 => seen.extend(&piece[..count]),
                        _ => break,
                    }
                }
                treat(stream);
            }
        });
        Endpoint::parse(&url).unwrap()
    }

    fn says(status: &'static str, body: &'static str) -> Endpoint {
        server(move |mut stream| {
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}");
        })
    }

    fn silent() -> Endpoint {
        server(|stream| {
            let mut stream = stream;
            // Until the client has gone.
            let _ = stream.read(&mut [0]);
        })
    }

    fn ask(endpoints: Vec<Endpoint>, timeout: Duration) -> Result<String, Failure> {
        let mut client = Client::new(endpoints, None, None, timeout).unwrap();
        client.post("/path", "{}", |answer| Ok(String::from_utf8_lossy(answer).into_owned()))
    }

    const SHORT: Duration = Duration::from_millis(300);
    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn the_next_endpoint_is_asked_and_remembered() {
        let endpoints = vec![silent(), says("200 OK", "answer")];
        // The silent one takes half of it.
        let mut client = Client::new(endpoints, None, None, LONG).unwrap();
        for expected_first in [1, 1] {
            assert_eq!(
                client.post("/path", "{}", |answer| Ok(answer.to_vec())).unwrap(),
                b"answer"
            );
            assert_eq!(client.first, expected_first);
        }
    }

    #[test]
    fn no_server_makes_a_request_last_longer_than_its_timeout() {
        let dripping = server(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
            while stream.write_all(b".").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        for endpoints in [vec![silent()], vec![silent(), silent(), silent()], vec![dripping]] {
            let begin = Instant::now();
            assert!(matches!(ask(endpoints, SHORT), Err(Failure::Unknown(_))));
            // A server that drips would take longer than this, and a silent one for ever.
            assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
        }
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let endless = server(|mut stream| {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'.'; 4096]).is_ok() {}
        });
        let begin = Instant::now();
        let failure = ask(vec![endless], LONG).unwrap_err();
        assert!(
            matches!(&failure, Failure::Unknown(reason) if reason.contains("limit")),
            "{failure:?}"
        );
        assert!(begin.elapsed() < LONG);
    }

    #[test]
    fn a_status_says_whether_it_is_worth_trying_again() {
        for (status, again) in [
            ("400 Bad Request", false),
            ("403 Forbidden", false),
            ("404 Not Found", false),
            ("408 Request Timeout", true),
            ("429 Too Many Requests", true),
            ("500 Internal Server Error", true),
            ("503 Service Unavailable", true),
        ] {
            let failure = ask(vec![says(status, "because")], LONG).unwrap_err();
            let (unknown, reason) = match failure {
                Failure::Unknown(reason) => (true, reason),
                Failure::Refused(reason) | Failure::Stranger(reason) => (false, reason),
            };
            assert!(unknown == again && reason.contains("because"), "{status}: {reason}");
        }
    }

    #[test]
    fn what_may_have_been_done_somewhere_is_not_called_refused() {
        let endpoints = vec![silent(), says("403 Forbidden", "")];
        assert!(matches!(ask(endpoints, SHORT), Err(Failure::Unknown(_))));
    }

    #[test]
    fn a_redirect_is_not_followed() {
        let target = says("200 OK", "the wrong place");
        let redirect = server(move |mut stream| {
            let _ = write!(
                stream,
                "HTTP/1.1 307 There\r\nlocation: {target}/path\r\ncontent-length: 0\r\n\r\n"
            );
        });
        let failure = ask(vec![redirect], LONG).unwrap_err();
        assert!(
            matches!(&failure, Failure::Unknown(reason) if reason.contains("307")),
            "{failure:?}"
        );
    }
}
