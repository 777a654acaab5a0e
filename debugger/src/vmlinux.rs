//! The recorded kernel's file with symbols: whether a file is it, and where it is looked for.
//!
//! The file that was booted is known by its digest. It may have no symbols: it is packed (a bzImage), or stripped. Its file with symbols is
//! another one then, and has its GNU build id, a digest that the linker has put into both.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lockstep_proto::Identity;
use object::{Object, ReadCache};
use xxhash_rust::xxh3::xxh3_128;

use crate::replay::hex;

/// Where packages of debugging symbols put their files.
const DEBUG_FILES: &str = "/usr/lib/debug";
/// Kernels that are looked at there.
const MOST_KERNELS: usize = 256;

/// A vmlinux.
pub struct Vmlinux {
    /// Where it is.
    pub path: PathBuf,
    /// The whole file.
    pub bytes: Vec<u8>,
    has_symbols: bool,
}

impl Vmlinux {
    /// The file at `path`, which must be the recorded kernel's. Where nothing is known of that, any will do.
    fn given(path: &Path, identity: &Identity) -> Result<Self> {
        let bytes = contents(path)?;
        let shown = path.display();
        let file = object::File::parse(&*bytes);
        let own = file.as_ref().ok().and_then(|file| file.build_id().ok().flatten());
        let (wanted, digest) = (&identity.kernel_build_id[..], &identity.kernel_digest[..]);
        let is_it = (digest.is_empty() && wanted.is_empty())
            || (!digest.is_empty() && digest == xxh3_128(&bytes).to_be_bytes())
            || (!wanted.is_empty() && own == Some(wanted));
        if !is_it {
            bail!(
                "{shown} is not the kernel that was recorded{}: give the vmlinux of the recording's kernel",
                known_by(identity)
            );
        }
        let file = file.with_context(|| {
            format!(
                "{shown} is no ELF file: give the vmlinux that it was made of{}",
                known_by(identity)
            )
        })?;
        let has_symbols = file.symbols().next().is_some();
        Ok(Self {
            path: path.to_owned(),
            has_symbols,
            bytes,
        })
    }

    /// The file that was given; else the one that the log names, or the one that this host has for its build id, if that is there.
    pub fn find(given: Option<&Path>, identity: &Identity) -> Result<Option<Self>> {
        if let Some(path) = given {
            let found = Self::given(path, identity)?;
            if !found.has_symbols {
                tracing::warn!(
                    "{} has no symbols: give the vmlinux that has them{}",
                    path.display(),
                    known_by(identity)
                );
            }
            return Ok(Some(found));
        }
        let named = Some(PathBuf::from(&identity.kernel_path)).filter(|path| path.is_absolute());
        let mut places = named
            .into_iter()
            .chain(by_build_id(&identity.kernel_build_id, Path::new(DEBUG_FILES)));
        Ok(places.find_map(|path| Self::given(&path, identity).ok().filter(|found| found.has_symbols)))
    }
}

/// The files below `debug_files` that have this build id: by the name that gdb looks for, and where Debian's `-dbg` packages have kernels,
/// which is elsewhere.
fn by_build_id(id: &[u8], debug_files: &Path) -> Vec<PathBuf> {
    let name = hex(id);
    let Some((first, rest)) = name.split_at_checked(2).filter(|(_, rest)| !rest.is_empty()) else {
        return Vec::new();
    };
    let named = debug_files.join(".build-id").join(first).join(format!("{rest}.debug"));
    let boot = entries(&debug_files.join("boot")).filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with("vmlinux"))
    });
    let modules = entries(&debug_files.join("lib/modules")).map(|path| path.join("vmlinux"));
    let mut kernels: Vec<_> = boot.chain(modules).take(MOST_KERNELS).collect();
    kernels.sort();
    std::iter::once(named)
        .chain(kernels)
        .filter(|path| build_id(path).as_deref() == Some(id))
        .collect()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}

/// The build id of a file, of which no more is read than it takes: kernels with symbols have hundreds of megabytes.
fn build_id(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).ok()?;
    Some(elf.build_id().ok()??.to_vec())
}

/// What a person finds the right file by.
fn known_by(identity: &Identity) -> String {
    if identity.kernel_build_id.is_empty() {
        return String::new();
    }
    format!(" (build id {})", hex(&identity.kernel_build_id))
}

/// A whole file. A pipe or a device may have no end.
pub fn contents(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", path.display());
    if !std::fs::metadata(path).with_context(cannot)?.is_file() {
        bail!("{} is no regular file", path.display());
    }
    std::fs::read(path).with_context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with this build id and one symbol, or none: ELF-64 Object File Format, by hand.
    fn elf(id: &[u8], with_symbol: bool) -> Vec<u8> {
        const HEADER: usize = 64;
        let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_le_bytes()).collect() };
        let longs = |longs: &[u64]| -> Vec<u8> { longs.iter().flat_map(|long| long.to_le_bytes()).collect() };
        // Lengths of name and value, and NT_GNU_BUILD_ID.
        let mut note = [words(&[4, id.len() as u32, 3]), b"GNU\0".to_vec(), id.to_vec()].concat();
        note.resize(note.len().next_multiple_of(8), 0);
        // The null symbol, and a global function of no section.
        let mut symbols = vec![0; 24];
        if with_symbol {
            symbols.extend([words(&[1, 0xfff1_0012, 0x1000, 0, 4, 0])].concat());
        }
        let names = b"\0start_kernel\0\0\0".to_vec();
        // Kind, contents, link, entries that are local, bytes of an entry.
        let sections = [
            (0, Vec::new(), 0, 0, 0),
            (7, note, 0, 0, 0),
            (2, symbols, 3, 1, 24),
            (3, names, 0, 0, 0),
        ];
        let (mut data, mut headers) = (Vec::new(), Vec::new());
        for (kind, contents, link, info, entry) in sections {
            let at = (HEADER + data.len()) as u64;
            // Name and kind; flags, address, offset, length; link and locals; alignment, bytes of an entry.
            headers.extend(words(&[0, kind]));
            headers.extend(longs(&[0, 0, at, contents.len() as u64]));
            headers.extend(words(&[link, info]));
            headers.extend(longs(&[4, entry]));
            data.extend(contents);
        }
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        // Entry, program headers, section headers, flags.
        file.extend(words(&[0, 0, 0, 0, (HEADER + data.len()) as u32, 0, 0]));
        // Bytes of this header, of a program header and how many, of a section header and how many, the names' section.
        for half in [HEADER as u16, 56, 0, 64, 4, 3] {
            file.extend(half.to_le_bytes());
        }
        [file, data, headers].concat()
    }

    fn recorded(kernel: &[u8], id: &[u8]) -> Identity {
        Identity {
            kernel_digest: xxh3_128(kernel).to_be_bytes().to_vec().into(),
            kernel_build_id: id.to_vec().into(),
            ..Identity::default()
        }
    }

    #[test]
    fn a_file_is_the_recorded_kernel_by_its_digest_or_by_its_build_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let (ours, bare, other, none) = (
            elf(b"ours", true),
            elf(b"ours", false),
            elf(b"other", true),
            elf(b"", true),
        );
        let packed = b"a bzImage".to_vec();
        let unknown = Identity::default();
        let by_digest = |kernel: &[u8]| recorded(kernel, b"");
        for (file, identity, why) in [
            (&ours, recorded(&ours, b"ours"), None),
            (&ours, recorded(&packed, b"ours"), None),
            (&ours, recorded(&bare, b"ours"), None),
            (&ours, by_digest(&ours), None),
            (&other, unknown.clone(), None),
            (
                &other,
                recorded(&packed, b"ours"),
                Some("not the kernel that was recorded (build id 6f757273)"),
            ),
            (&ours, by_digest(&packed), Some("not the kernel that was recorded:")),
            // Nothing in common is nothing.
            (&none, by_digest(&packed), Some("not the kernel that was recorded:")),
            (&none, recorded(&packed, b"ours"), Some("not the kernel")),
            (&bare, recorded(&bare, b"ours"), None),
            (
                &packed,
                recorded(&packed, b"ours"),
                Some("is no ELF file: give the vmlinux that it was made of (build id"),
            ),
            (&packed, unknown, Some("is no ELF file")),
        ] {
            std::fs::write(&path, file).unwrap();
            let said = Vmlinux::given(&path, &identity).err().map(|error| format!("{error:#}"));
            match (&said, why) {
                (None, None) => {}
                (Some(said), Some(why)) if said.contains(why) => {}
                _ => panic!("{said:?} is not {why:?}"),
            }
        }
    }

    #[test]
    fn files_with_symbols_are_found_by_their_build_id() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, file: &[u8]| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, file).unwrap();
            path
        };
        let (ours, other) = (elf(b"ours", true), elf(b"other", true));
        let expected = [
            put(".build-id/6f/757273.debug", &ours),
            put("boot/vmlinux-6.1", &ours),
            put("lib/modules/6.1/vmlinux", &ours),
        ];
        put("boot/vmlinux-6.12", &other);
        put("boot/System.map-6.1", &ours);
        put("boot/vmlinux-bad", b"no ELF file");
        put("lib/modules/6.12/vmlinux", &other);
        std::fs::create_dir_all(dir.path().join("lib/modules/6.13/vmlinux")).unwrap();
        assert_eq!(by_build_id(b"ours", dir.path()), expected);
        for id in [&b""[..], b"o", b"none"] {
            assert!(by_build_id(id, dir.path()).is_empty(), "{id:?}");
        }
        assert!(by_build_id(b"ours", &dir.path().join("none")).is_empty());
    }
}
