//! Debian's Prometheus and its promtool, for what the nodes tell.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http::{body, get};
use crate::net::{Namespace, inside};
use crate::process::feed;

/// Its own port; nobody else is in the namespace.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);
/// From one question to the next.
const POLL: Duration = Duration::from_millis(200);

/// The rules that operators start from, and their tests.
pub fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus/lockstep.rules.yml")
}

/// The dashboard that operators start from.
pub fn dashboard() -> PathBuf {
    rules().with_file_name("lockstep.dashboard.json")
}

/// Whether promtool finds nothing to say about a scrape.
pub fn check_metrics(text: &str) -> Result<()> {
    feed(Command::new("promtool").args(["check", "metrics"]), text).context("the scrape is not as it should be")
}

/// The number of a line of a scrape: of the first one that begins with `name` and has all of `labels`.
pub fn value(scrape: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let rest = |line: &str| {
        let rest = line.strip_prefix(name)?.strip_prefix('{')?;
        labels.iter().all(|label| rest.contains(label)).then(|| rest.to_owned())
    };
    let line = scrape.lines().find_map(rest)?;
    line.rsplit(' ').next()?.parse().ok()
}

/// A Prometheus that runs. It ends with what started it.
pub struct Prometheus {
    namespace: String,
    child: Child,
}

impl Prometheus {
    /// Starts one in `namespace` with its files in `directory`, which scrapes `targets` and goes by `rules` every second.
    pub fn start(namespace: &Namespace, directory: &Path, targets: &[SocketAddr], rules: &str) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let targets: Vec<String> = targets.iter().map(|target| format!("\"{target}\"")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yml]\nscrape_configs:\n\
             - {{job_name: lockstep, static_configs: [{{targets: [{}]}}]}}\n",
            targets.join(", ")
        );
        fs::write(directory.join("prometheus.yml"), config)?;
        fs::write(directory.join("rules.yml"), rules)?;
        let output = File::create(directory.join("prometheus.log"))?;
        let mut command = namespace.command("prometheus");
        command
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        Ok(Self {
            namespace: namespace.name().into(),
            child: command.spawn().context("cannot start prometheus")?,
        })
    }

    /// Waits until the answer to `path` of its API fulfils `wanted`.
    fn wait(&mut self, path: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        let begin = Instant::now();
        loop {
            let answer = inside(&self.namespace, || get(ADDRESS, path));
            let told: Option<Value> = answer.ok().and_then(|answer| serde_json::from_str(body(&answer)).ok());
            if told.as_ref().is_some_and(&wanted) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("prometheus has ended: {status}");
            }
            if begin.elapsed() > limit {
                bail!("prometheus says of {path} after {limit:?}: {told:?}");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a query has results, or only until it is one.
    pub fn wait_for_results(&mut self, query: &str, limit: Duration, may_be_none: bool) -> Result<()> {
        let escaped = query
            .bytes()
            .fold(String::new(), |url, byte| format!("{url}%{byte:02x}"));
        self.wait(&format!("/api/v1/query?query={escaped}"), limit, |told| {
            let results = told["data"]["result"].as_array();
            told["status"] == "success" && results.is_some_and(|results| may_be_none || !results.is_empty())
        })
        .with_context(|| query.to_owned())
    }

    /// Waits until so many targets could be scraped, and rules were gone by since.
    pub fn wait_for_targets(&mut self, count: usize, limit: Duration) -> Result<()> {
        let up = |value: &Value| value["value"][1] == "1";
        self.wait("/api/v1/query?query=up", limit, |told| {
            let results = told["data"]["result"].as_array();
            results.is_some_and(|results| results.iter().filter(|result| up(result)).count() == count)
        })
    }

    /// Waits until the alerts that fire are as `wanted` says; each is given as its name.
    pub fn wait_for_alerts(&mut self, limit: Duration, wanted: impl Fn(&[&str]) -> bool) -> Result<()> {
        self.wait("/api/v1/alerts", limit, |told| {
            let alerts = told["data"]["alerts"].as_array();
            let firing = alerts.into_iter().flatten().filter(|alert| alert["state"] == "firing");
            let names: Vec<_> = firing
                .filter_map(|alert| alert["labels"]["alertname"].as_str())
                .collect();
            alerts.is_some() && wanted(&names)
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
