//! An etcd with users and client certificates as the arbiter: who is let in, tokens that end, and what is said to whom it
//! refuses.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockstep_integration::etcd::{Etcd, Tls};
use lockstep_integration::gate::require_program;
use lockstep_node::api::Identity;
use lockstep_node::arbiter::{Arbiter, ArbiterError, Gateway, Login, Outcome, Record, TlsFiles, gateway, open};
use lockstep_node::fleet::{self, Presence, row};
use lockstep_node::pki::{self, Validity};
use lockstep_node::status::Status;
use lockstep_proto::quantity::Term;

/// How long a token may take until it has ended; etcd is told a second, and looks every second.
const LIMIT: Duration = Duration::from_secs(60);
/// By how much each pause is longer than the one before.
const LONGER: Duration = Duration::from_millis(300);
/// What etcd says of a token that it does not know.
const STRANGE: &str = "invalid auth token";

/// An etcd whose user `lockstep` may use the keys under `lockstep/` and no others.
struct World {
    home: tempfile::TempDir,
    etcd: Etcd,
}

impl World {
    fn new() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let pki = home.path().join("pki");
        pki::init(&pki)?;
        for name in ["localhost", "node"] {
            pki::issue(&pki, name, Validity::days(1)?)?;
        }
        let mut etcd = Etcd::start(home.path(), None)?;
        for (path, body) in [
            ("user/add", r#"{"name":"root","password":"of root"}"#),
            ("role/add", r#"{"name":"root"}"#),
            ("user/grant", r#"{"user":"root","role":"root"}"#),
            ("role/add", r#"{"name":"lockstep"}"#),
            // `lockstep/` to `lockstep0`.
            (
                "role/grant",
                r#"{"name":"lockstep","perm":{"permType":"READWRITE","key":"bG9ja3N0ZXAv","range_end":"bG9ja3N0ZXAw"}}"#,
            ),
            ("user/add", r#"{"name":"lockstep","password":"pass \"word"}"#),
            ("user/grant", r#"{"user":"lockstep","role":"lockstep"}"#),
            ("user/add", r#"{"name":"other","password":"pass \"word"}"#),
            ("role/add", r#"{"name":"lookers"}"#),
            (
                "role/grant",
                r#"{"name":"lookers","perm":{"permType":"READ","key":"bG9ja3N0ZXAv","range_end":"bG9ja3N0ZXAw"}}"#,
            ),
            ("user/add", r#"{"name":"looker","password":"pass \"word"}"#),
            ("user/grant", r#"{"user":"looker","role":"lookers"}"#),
            ("enable", "{}"),
        ] {
            let answer = etcd.post(&format!("/v3/auth/{path}"), body)?;
            ensure!(answer.contains("200 OK"), "{path}: {answer}");
        }
        let tls = Tls {
            ca: pki.join("ca.pem"),
            cert: pki.join("localhost.pem"),
            key: pki.join("localhost.key"),
        };
        etcd.run_with(tls, &["--auth-token-ttl", "1", "--bcrypt-cost", "4"])?;
        let world = Self { home, etcd };
        world.put_password("pass \"word\n")?;
        Ok(world)
    }

    fn password_file(&self) -> PathBuf {
        self.home.path().join("password")
    }

    fn put_password(&self, text: &str) -> Result<()> {
        fs::write(self.password_file(), text)?;
        fs::set_permissions(self.password_file(), Permissions::from_mode(0o600))?;
        Ok(())
    }

    fn access(&self, user: Option<&str>, certificate: &str) -> Result<(Option<TlsFiles>, Option<Login>)> {
        let file = |name: String| Some(self.home.path().join("pki").join(name));
        let tls = TlsFiles::from_paths(
            file("ca.pem".into()),
            file(format!("{certificate}.pem")),
            file(format!("{certificate}.key")),
        )?;
        let login = Login::from_options(user.map(Into::into), user.map(|_| self.password_file()))?;
        Ok((tls, login))
    }

    fn open_as(&self, user: Option<&str>, certificate: &str) -> Result<Box<dyn Arbiter>> {
        let (tls, login) = self.access(user, certificate)?;
        let spec = format!("etcd:{}", self.etcd.url()).parse()?;
        Ok(open(&spec, tls.as_ref(), login.as_ref(), "m")?)
    }

    fn gateway_as(&self, user: &str) -> Result<Gateway> {
        let (tls, login) = self.access(Some(user), "node")?;
        let spec = format!("etcd:{}", self.etcd.url()).parse()?;
        gateway(&spec, tls, login, "a test".into())?.context("not an etcd")
    }

    /// Makes a certificate as other tools do: with a common name.
    fn certificate_with_a_common_name(&self, name: &str) -> Result<()> {
        let pki = self.home.path().join("pki");
        fs::write(pki.join("extensions"), format!("subjectAltName=DNS:{name}\n"))?;
        let key = format!("{name}.key");
        openssl(
            &pki,
            &format!(
                "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {key} -out request"
            ),
        )?;
        openssl(
            &pki,
            &format!(
                "x509 -req -in request -CA ca.pem -CAkey ca.key -set_serial 7 -days 1 -extfile extensions -out {name}.pem"
            ),
        )?;
        Ok(fs::set_permissions(pki.join(key), Permissions::from_mode(0o600))?)
    }
}

/// Ever longer ones: a token that is used lives on.
fn pauses() -> impl Iterator<Item = Duration> {
    (1..).map(|number| LONGER * number)
}

fn openssl(directory: &Path, words: &str) -> Result<()> {
    let mut command = Command::new("openssl");
    let output = command.args(words.split(' ')).current_dir(directory).output();
    let output = output.context("openssl")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn record(term: u64) -> Record {
    Record {
        term: Term::new(term),
        owner: "a".into(),
        peer: None,
    }
}

/// What a node is told that is refused.
fn refused(arbiter: &mut dyn Arbiter, words: &str) -> Result<()> {
    let set = arbiter.compare_and_set(None, &record(9));
    let why = match &set {
        Err(ArbiterError::Refused { reason, .. }) => reason.as_str(),
        _ => "",
    };
    ensure!(why.contains(words) && !why.contains("pass \"word"), "{words}: {set:?}");
    Ok(())
}

#[test]
fn an_etcd_with_users_lets_in_who_has_the_password_and_a_token_that_ended_is_renewed() -> Result<()> {
    if !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let mut world = World::new()?;
    let mut arbiter = world.open_as(Some("lockstep"), "node")?;
    ensure!(arbiter.read()?.is_none());
    ensure!(arbiter.compare_and_set(None, &record(1))? == Outcome::Done);

    // Nobody waits for a token that has ended, and nothing is done twice.
    let begin = Instant::now();
    for pause in pauses() {
        ensure!(begin.elapsed() < LIMIT, "the token does not end");
        std::thread::sleep(pause);
        ensure!(arbiter.read()? == Some(record(1)));
        if world.etcd.said()?.contains(STRANGE) {
            break;
        }
    }
    ensure!(arbiter.compare_and_set(Some(&record(1)), &record(2))? == Outcome::Done);
    ensure!(arbiter.compare_and_set(Some(&record(1)), &record(3))? == Outcome::Changed(Some(record(2))));
    world.etcd.kill();
    world.etcd.run()?;
    ensure!(arbiter.read()? == Some(record(2)));

    // A password that is wrong now, and right again, without a new start of the node.
    world.put_password("wrong")?;
    let begin = Instant::now();
    for pause in pauses() {
        ensure!(begin.elapsed() < LIMIT, "the token does not end");
        std::thread::sleep(pause);
        if arbiter.read().is_err() {
            break;
        }
    }
    refused(arbiter.as_mut(), "user `lockstep` with the password in")?;
    world.put_password("pass \"word")?;
    ensure!(arbiter.read()? == Some(record(2)));
    Ok(())
}

#[test]
fn whom_an_etcd_with_users_refuses_is_told_why() -> Result<()> {
    if !require_program("etcd", "etcd-server") || !require_program("openssl", "openssl") {
        return Ok(());
    }
    let world = World::new()?;
    refused(world.open_as(None, "node")?.as_mut(), "give arbiter-user")?;
    refused(world.open_as(Some("nobody"), "node")?.as_mut(), "is not let in")?;
    refused(world.open_as(Some("other"), "node")?.as_mut(), "begin with `lockstep/`")?;
    world.certificate_with_a_common_name("named")?;
    for user in [Some("lockstep"), None] {
        refused(world.open_as(user, "named")?.as_mut(), "made without one")?;
    }
    fs::set_permissions(world.password_file(), Permissions::from_mode(0o644))?;
    refused(world.open_as(Some("lockstep"), "node")?.as_mut(), "others can read")?;
    Ok(())
}

#[test]
fn who_may_only_read_sees_all_machines_and_tells_nothing() -> Result<()> {
    if !require_program("etcd", "etcd-server") {
        return Ok(());
    }
    let world = World::new()?;
    let mut arbiter = world.open_as(Some("lockstep"), "node")?;
    ensure!(arbiter.compare_and_set(None, &record(1))? == Outcome::Done);
    let tells = |user, node: &str| {
        let identity = Identity {
            machine: "m".into(),
            node: node.into(),
            pki: "/nowhere".into(),
        };
        Presence::start(world.gateway_as(user)?, identity, Status::default()).context("no thread")
    };
    let _refused = tells("looker", "b")?;
    let _told = tells("lockstep", "a")?;
    let (mut gateway, begin) = (world.gateway_as("looker")?, Instant::now());
    loop {
        let found = fleet::read(&mut gateway);
        if let Ok(found) = &found
            && row("m", &found["m"]).words() == "starting"
        {
            ensure!(!found["m"].told.contains_key("b"), "{found:?}");
            break;
        }
        ensure!(begin.elapsed() < LIMIT, "it stays {found:?}");
        std::thread::sleep(LONGER);
    }
    let error = fleet::read(&mut world.gateway_as("other")?)
        .err()
        .context("anybody sees all")?;
    ensure!(error.to_string().contains("permission denied"), "{error}");
    refused(world.open_as(Some("looker"), "node")?.as_mut(), "permission denied")
}

#[test]
fn the_playbooks_remove_a_record_as_the_arbiters_user() -> Result<()> {
    if !require_program("etcd", "etcd-server") || !require_program("ansible-playbook", "ansible") {
        return Ok(());
    }
    let world = World::new()?;
    let mut arbiter = world.open_as(Some("lockstep"), "node")?;
    ensure!(arbiter.compare_and_set(None, &record(1))? == Outcome::Done);
    let pki = world.home.path().join("pki");
    let file = |name: &str| serde_json::json!(pki.join(name));
    // YAML has JSON in it.
    let play = serde_json::json!([{
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": false,
        "vars": {
            "machine": {
                "name": "m",
                "settings": {"arbiter-user": "lockstep", "arbiter-password-file": world.password_file()},
            },
            "lockstep_arbiter": format!("etcd:{}", world.etcd.url()),
            "lockstep_arbiter_ca": file("ca.pem"),
            "lockstep_arbiter_cert": file("node.pem"),
            "lockstep_arbiter_key": file("node.key"),
        },
        "tasks": [{"ansible.builtin.include_role": {"name": "machine", "tasks_from": "record"}}],
    }]);
    let playbook = world.home.path().join("play.yml");
    fs::write(&playbook, play.to_string())?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize()?;
    let output = Command::new("ansible-playbook")
        .args(["-vvv", "--inventory", "localhost,"])
        .arg(playbook)
        .env("LC_ALL", "C.UTF-8")
        .env("ANSIBLE_ROLES_PATH", deploy.join("roles"))
        .env("ANSIBLE_HOME", world.home.path().join("ansible"))
        .env("ANSIBLE_LOCAL_TEMP", world.home.path().join("ansible/tmp"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(arbiter.read()?.is_none(), "the record is there: {said}");
    ensure!(
        !said.contains("pass \"word") && !said.contains("pass \\\"word"),
        "it tells the password: {said}"
    );
    ensure!(!said.contains("\"token\""), "it tells the token: {said}");
    Ok(())
}
