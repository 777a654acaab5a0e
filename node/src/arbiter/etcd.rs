//! An arbiter in etcd, through its v3 JSON gateway (etcd.io, "Why gRPC gateway"): one witness on any third machine, or
//! an existing cluster.
//!
//! Invariants:
//! - Every call is one transaction or one linearizable read, so a member that is cut off from the others cannot answer.
//! - Plain keys: no lease and no TTL. A record outlives everybody who could speak for it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::codec;
use super::endpoint::{Endpoint, TlsFiles};
use super::gateway::Gateway;
use super::{Arbiter, ArbiterError, Login, Outcome, Record};

/// All keys of this project begin so.
pub const PREFIX: &str = "lockstep/";
/// How the key of a record ends.
pub const RECORD: &str = "record";

/// The record of one machine in etcd, under the key `lockstep/NAME/record`.
#[derive(Debug)]
pub struct Etcd {
    gateway: Gateway,
    key: String,
}

/// What a call found at the key.
type Stored = Option<Vec<u8>>;

/// How a transaction ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The new value is stored.
    Done,
    /// This was there instead of the expected value.
    Instead(Stored),
}

impl Etcd {
    /// `name` was checked by the caller.
    pub(super) fn new(
        endpoints: Vec<Endpoint>,
        tls: Option<TlsFiles>,
        login: Option<Login>,
        name: &str,
    ) -> Result<Self, ArbiterError> {
        let key = record_key(name);
        let gateway = Gateway::new(endpoints, tls, login, key.clone())?;
        Ok(Self { gateway, key })
    }

    fn decode(&self, stored: Stored) -> Result<Option<Record>, ArbiterError> {
        let damaged = |reason| ArbiterError::Damaged {
            arbiter: self.describe(),
            reason,
        };
        stored.map(|bytes| codec::decode(&bytes)).transpose().map_err(damaged)
    }
}

impl Arbiter for Etcd {
    fn read(&mut self) -> Result<Option<Record>, ArbiterError> {
        let stored = self.gateway.post("/v3/kv/range", &range(&self.key), stored)?;
        self.decode(stored)
    }

    fn compare_and_set(&mut self, expected: Option<&Record>, new: &Record) -> Result<Outcome, ArbiterError> {
        let config = |reason| ArbiterError::Config {
            arbiter: self.describe(),
            reason,
        };
        let value = codec::encode(new).map_err(config)?;
        let expected = expected.map(codec::encode).transpose().map_err(config)?;
        let body = transaction(&self.key, expected.as_deref(), &value);
        match self.gateway.post("/v3/kv/txn", &body, verdict)? {
            Verdict::Done => Ok(Outcome::Done),
            Verdict::Instead(stored) if stored.as_ref() == Some(&value) => Ok(Outcome::Done),
            Verdict::Instead(stored) => Ok(Outcome::Changed(self.decode(stored)?)),
        }
    }

    fn describe(&self) -> String {
        self.gateway.describe()
    }
}

/// Under which key etcd has a machine's record.
pub fn record_key(name: &str) -> String {
    format!("{PREFIX}{name}/{RECORD}")
}

fn range(key: &str) -> Value {
    // `serializable` would let a member answer for itself.
    json!({ "key": BASE64.encode(key), "serializable": false })
}

fn transaction(key: &str, expected: Option<&[u8]>, new: &[u8]) -> Value {
    let name = BASE64.encode(key);
    let compare = match expected {
        Some(bytes) => json!({ "key": name, "target": "VALUE", "result": "EQUAL", "value": BASE64.encode(bytes) }),
        None => json!({ "key": name, "target": "CREATE", "result": "EQUAL", "create_revision": "0" }),
    };
    json!({
        "compare": [compare],
        "success": [{ "request_put": { "key": name, "value": BASE64.encode(new) } }],
        "failure": [{ "request_range": range(key) }],
    })
}

/// The answer to a transaction; None if it is no such answer.
fn verdict(answer: &Value) -> Option<Verdict> {
    let [response] = answer["responses"].as_array()?.as_slice() else {
        return None;
    };
    // The gateway leaves out what is false.
    if !answer["succeeded"].as_bool().unwrap_or(false) {
        let found = &response["response_range"];
        found.as_object()?;
        return stored(found).map(Verdict::Instead);
    }
    response["response_put"].as_object().map(|_| Verdict::Done)
}

/// The answer to a range over one key. The outer None: no such answer.
fn stored(answer: &Value) -> Option<Stored> {
    match &answer["kvs"] {
        Value::Null => Some(None),
        Value::Array(found) => match found.as_slice() {
            [] => Some(None),
            // An empty value is left out.
            [one] => BASE64.decode(one["value"].as_str().unwrap_or_default()).ok().map(Some),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_not_etcds_are_no_answers() {
        let put = json!({ "succeeded": true, "responses": [{ "response_put": {} }] });
        assert_eq!(verdict(&put), Some(Verdict::Done));
        let missing = json!({ "responses": [{ "response_range": {} }] });
        assert_eq!(verdict(&missing), Some(Verdict::Instead(None)));
        let other = json!({ "responses": [{ "response_range": { "kvs": [{ "value": "YQ==" }] } }] });
        assert_eq!(verdict(&other), Some(Verdict::Instead(Some(b"a".to_vec()))));
        for strange in [
            json!({}),
            json!([]),
            json!({ "succeeded": true }),
            json!({ "succeeded": true, "responses": [] }),
            json!({ "succeeded": true, "responses": [{}] }),
            json!({ "succeeded": "yes", "responses": [{}] }),
            json!({ "responses": [{ "response_range": { "kvs": 5 } }] }),
            json!({ "responses": [{ "response_range": { "kvs": [{ "value": "?" }] } }] }),
            json!({ "responses": [{ "response_range": { "kvs": [{}, {}] } }] }),
        ] {
            assert_eq!(verdict(&strange), None, "{strange}");
        }
    }
}
