//! All records of an etcd and all that is told there, as of one revision of it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::told::{self, Told};
use crate::arbiter::{ArbiterError, Gateway, PREFIX, RECORD, Record, decode, is_machine_name};

/// Keys of one answer, which is bounded with them.
const PAGE: usize = 100;
/// Most bytes of one: so many texts of the largest size that is read, in base64 and JSON, have some 300 KiB.
const MAX_PAGE_BYTES: u64 = 512 << 10;
/// How often it is read anew where etcd was compacted meanwhile.
const TRIES: u32 = 2;
/// Most keys in all: 30,000 machines.
const MAX_KEYS: usize = 100_000;

/// What there is of a machine. An error says what is wrong with a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its record.
    pub record: Option<Result<Record, String>>,
    /// What nodes tell of it, by their names.
    pub told: BTreeMap<String, Result<Told, String>>,
}

/// One answer.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// Keys and values.
    found: Vec<(Vec<u8>, Vec<u8>)>,
    has_more: bool,
    /// Of the whole store, when it was read.
    revision: String,
}

/// Reads all that `gateway`'s etcd has, by machine.
pub fn read(gateway: &mut Gateway) -> Result<BTreeMap<String, Entry>, ArbiterError> {
    gateway.allow(MAX_PAGE_BYTES);
    for _ in 0..TRIES {
        match read_at_once(gateway) {
            // The revision of the first page has gone before the last.
            Err(ArbiterError::Refused { reason, .. }) if reason.contains("compacted") => {}
            read => return read,
        }
    }
    read_at_once(gateway)
}

fn read_at_once(gateway: &mut Gateway) -> Result<BTreeMap<String, Entry>, ArbiterError> {
    let mut machines = BTreeMap::new();
    let (mut from, mut revision, mut count) = (PREFIX.as_bytes().to_vec(), None, 0);
    loop {
        let page = gateway.post("/v3/kv/range", &range(&from, revision.as_deref()), page)?;
        count += page.found.len();
        if count > MAX_KEYS {
            return Err(ArbiterError::Config {
                arbiter: gateway.describe(),
                reason: format!(
                    "it has more than {MAX_KEYS} keys that begin with {PREFIX}: remove those that are not Lockstep's"
                ),
            });
        }
        for (key, value) in &page.found {
            sort(&mut machines, key, value);
        }
        match page.found.last() {
            // The next key after this one.
            Some((key, _)) if page.has_more => from = [key.as_slice(), b"\0"].concat(),
            _ => return Ok(machines),
        }
        revision.get_or_insert(page.revision);
    }
}

/// A key that is none of Lockstep's is passed over.
fn sort(machines: &mut BTreeMap<String, Entry>, key: &[u8], value: &[u8]) {
    let key = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(PREFIX));
    let Some((machine, rest)) = key.and_then(|key| key.split_once('/')) else {
        return;
    };
    if !is_machine_name(machine) {
        return;
    }
    if rest == RECORD {
        machines.entry(machine.into()).or_default().record = Some(decode(value));
    } else if let Some(node) = told::node_of(rest) {
        let told = Told::read(machine, node, value);
        machines
            .entry(machine.into())
            .or_default()
            .told
            .insert(node.into(), told);
    }
}

fn range(from: &[u8], revision: Option<&str>) -> Value {
    // The first key that no longer begins with the prefix: `/` is followed by `0`.
    let end = PREFIX.replace('/', "0");
    json!({
        "key": BASE64.encode(from),
        "range_end": BASE64.encode(end),
        "limit": PAGE.to_string(),
        "revision": revision.unwrap_or("0"),
        "serializable": false,
    })
}

/// An answer; None: it is no such answer.
fn page(answer: &Value) -> Option<Page> {
    let bytes = |value: &Value| BASE64.decode(value.as_str().unwrap_or_default()).ok();
    let found = match &answer["kvs"] {
        Value::Null => Vec::new(),
        Value::Array(found) => found
            .iter()
            // An empty value is left out; a key is never empty.
            .map(|one| Some((bytes(&one["key"]).filter(|key| !key.is_empty())?, bytes(&one["value"])?)))
            .collect::<Option<_>>()?,
        _ => return None,
    };
    Some(Page {
        found,
        // What is false is left out.
        has_more: answer["more"].as_bool().unwrap_or(false),
        revision: answer["header"]["revision"].as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_are_not_etcds_are_no_answers() {
        let header = json!({ "revision": "7" });
        let answer = page(&json!({ "header": header, "kvs": [{ "key": "YQ==" }], "more": true })).unwrap();
        assert_eq!(
            (answer.found, answer.has_more),
            (vec![(b"a".to_vec(), Vec::new())], true)
        );
        assert!(page(&json!({ "header": header })).is_some_and(|page| page.found.is_empty() && !page.has_more));
        for strange in [
            json!({}),
            json!({ "header": header, "kvs": 5 }),
            json!({ "header": header, "kvs": [{}] }),
            json!({ "header": header, "kvs": [{ "key": "?" }] }),
            json!({ "header": header, "kvs": [{ "key": "YQ==", "value": "?" }] }),
            json!({ "header": {}, "kvs": [] }),
        ] {
            assert_eq!(page(&strange), None, "{strange}");
        }
    }

    #[test]
    fn keys_of_others_are_passed_over_and_damage_is_kept_as_such() {
        let mut machines = BTreeMap::new();
        for key in [
            &b"lockstep/m/other"[..],
            b"lockstep/m",
            b"lockstep/../record",
            b"lockstep//record",
            b"lockstep/\xff/record",
            b"locksteps/m/record",
        ] {
            sort(&mut machines, key, b"");
        }
        assert_eq!(machines, BTreeMap::new());
        sort(&mut machines, b"lockstep/m/record", b"1");
        sort(&mut machines, b"lockstep/m/told/a", b"1");
        let entry = &machines["m"];
        assert!(matches!(entry.record, Some(Err(_))) && entry.told["a"].is_err());
    }
}
