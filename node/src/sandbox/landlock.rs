//! Which files and TCP ports: Landlock, as far as the kernel has it.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope, make_bitflags,
};

use super::{Needs, Paths, SandboxError};

/// The newest interface that this program knows; an older kernel restricts what it can.
const NEWEST: ABI = ABI::V7;

/// What the programs' own start needs: libraries, where they are linked dynamically, and what they are told of themselves.
const READ: [&str; 9] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/proc/self",
    "/sys/devices/system/cpu",
];
/// Linkers that a dynamic program names; glibc's and musl's.
const LINKERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
/// Devices that are nothing.
const NOTHING: [&str; 1] = ["/dev/null"];

/// Restricts this thread and those that it makes.
pub(super) fn restrict(needs: &Needs) -> Result<Paths, SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError::Landlock(error.to_string());
    let mut scopes: BitFlags<Scope> = Scope::Signal.into();
    if !needs.abstract_sockets {
        scopes |= Scope::AbstractUnixSocket;
    }
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(scopes))
        .and_then(Ruleset::create)
        .map_err(|error| failed(&error))?;
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let write = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
    let make = write | make_bitflags!(AccessFs::{ReadDir | MakeReg | MakeDir | MakeSock | RemoveFile | RemoveDir});
    let device = make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev});
    let execute = make_bitflags!(AccessFs::{ReadFile | Execute});
    let mut rules = Rules(Some(ruleset));
    rules.add(READ.iter().map(Path::new), read)?;
    rules.add(LINKERS.iter().map(Path::new), execute)?;
    rules.add(NOTHING.iter().map(Path::new), write)?;
    rules.add(needs.read.iter().map(AsRef::as_ref), read)?;
    rules.add(needs.write.iter().map(AsRef::as_ref), write | AccessFs::IoctlDev)?;
    rules.add(needs.make.iter().map(AsRef::as_ref), make)?;
    rules.add(needs.devices.iter().map(AsRef::as_ref), device)?;
    rules.add(needs.execute.iter().map(AsRef::as_ref), execute)?;
    let ports = |ports: &[u16], access: AccessNet| ports.iter().map(|port| NetPort::new(*port, access)).collect();
    let connect: Vec<NetPort> = ports(&needs.connect, AccessNet::ConnectTcp);
    let listen: Vec<NetPort> = ports(&needs.listen, AccessNet::BindTcp);
    let ruleset = rules.0.ok_or_else(|| failed(&"no ruleset"))?;
    let status = ruleset
        .add_rules(connect.into_iter().chain(listen).map(Ok::<_, landlock::RulesetError>))
        .and_then(RulesetCreated::restrict_self)
        .map_err(|error| failed(&error))?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotImplemented) => {
            Ok(Paths::Open("this kernel is without Landlock".into()))
        }
        (RulesetStatus::NotEnforced, _) => Ok(Paths::Open(
            "Landlock is not switched on in this kernel (lsm=landlock,...)".into(),
        )),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(Paths::Restricted(effective_abi as i32)),
        (_, status) => Err(failed(&format!("{status:?}"))),
    }
}

/// Whether a domain is in force: `/` can be listed by everybody, and is in no node's rules.
pub(super) fn is_in_force() -> bool {
    matches!(File::open("/"), Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
}

struct Rules(Option<RulesetCreated>);

impl Rules {
    /// Those that are there; what is missing cannot be used either.
    fn add<'a>(
        &mut self,
        paths: impl Iterator<Item = &'a Path>,
        access: BitFlags<AccessFs>,
    ) -> Result<(), SandboxError> {
        for path in paths {
            let Ok(found) = PathFd::new(path) else { continue };
            let is_directory = fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
            let access = if is_directory {
                access
            } else {
                access & AccessFs::from_file(NEWEST)
            };
            let added = self.0.take().map(|ruleset| {
                let rule = PathBeneath::new(found, access);
                ruleset.add_rule(rule)
            });
            self.0 = added
                .transpose()
                .map_err(|error| SandboxError::Landlock(format!("{}: {error}", path.display())))?;
        }
        Ok(())
    }
}
