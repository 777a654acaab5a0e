//! etcd's v3 JSON gateway (etcd.io, "Why gRPC gateway"): requests to one cluster, and whether what answers is that cluster.
//!
//! Invariant: something that answers but is not etcd, or is another cluster than before, is no answer; what it was sent may
//! have been carried out.

use std::time::Duration;

use serde_json::Value;

use super::endpoint::{Endpoint, TlsFiles};
use super::failure::Failure;
use super::http::Client;
use super::{ArbiterError, Login};

/// How long a call may take, all endpoints together. A transaction takes some milliseconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A client of one cluster.
#[derive(Debug)]
pub struct Gateway {
    client: Client,
    /// What is asked for, for people.
    what: String,
    /// The cluster that answered first.
    cluster: Option<String>,
}

impl Gateway {
    /// `what` is asked for there. Nothing is sent yet.
    pub fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<TlsFiles>,
        login: Option<Login>,
        what: String,
    ) -> Result<Self, ArbiterError> {
        let urls: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        let client = Client::new(endpoints, tls, login, REQUEST_TIMEOUT).map_err(|reason| ArbiterError::Config {
            arbiter: format!("etcd:{}", urls.join(",")),
            reason,
        })?;
        Ok(Self {
            client,
            what,
            cluster: None,
        })
    }

    /// From now on an answer may have so many bytes: a record's are few.
    pub fn allow(&mut self, most: u64) {
        self.client.allow(most);
    }

    /// Sends a request; `read` takes its answer, or finds that it is none.
    pub fn post<T>(&mut self, path: &str, body: &Value, read: impl Fn(&Value) -> Option<T>) -> Result<T, ArbiterError> {
        let cluster = &mut self.cluster;
        let answer = self.client.post(path, &body.to_string(), |bytes| {
            let strange = || Failure::Unknown("what answers there is not an etcd with the v3 API".into());
            let mut answer: Value = serde_json::from_slice(bytes).map_err(|_| strange())?;
            // What comes as a stream has each message in one of these.
            if answer["result"].is_object() {
                answer = answer["result"].take();
            }
            let id = answer["header"]["cluster_id"].as_str().ok_or_else(strange)?;
            if cluster.get_or_insert_with(|| id.into()) != id {
                return Err(Failure::Unknown(
                    "it belongs to another etcd cluster than the one used before; name the members of one cluster, and if that one was made anew, start this process again".into(),
                ));
            }
            read(&answer).ok_or_else(strange)
        });
        answer.map_err(|failure| match failure {
            Failure::Unknown(reason) => ArbiterError::Unreachable {
                arbiter: self.describe(),
                reason,
            },
            Failure::Refused(reason) | Failure::Stranger(reason) => ArbiterError::Refused {
                arbiter: self.describe(),
                reason,
            },
        })
    }

    /// The cluster, and what is asked for.
    pub fn describe(&self) -> String {
        let urls: Vec<_> = self.client.endpoints().map(ToString::to_string).collect();
        format!("etcd:{} ({})", urls.join(","), self.what)
    }
}
