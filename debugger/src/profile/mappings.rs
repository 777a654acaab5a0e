//! Which file of the guest a program's address is mapped from: read from the kernel's own lists, as Linux 5.10 to 6.12 keep them.
//!
//! All of it is the guest's memory: every walk has an end, and what is damaged is not found.

use anyhow::{Context, Result, bail};

use crate::show::layout::{Member, Offsets, offsets};
use crate::show::view::View;
use crate::timeline::read_virtual;

/// Members of structures; not every kernel has all of them.
const WANTED: [Member; 27] = [
    ("task_struct", "mm"),
    ("task_struct", "stack"),
    ("mm_struct", "mm_mt"),
    ("mm_struct", "mm_rb"),
    ("maple_tree", "ma_root"),
    ("maple_range_64", "pivot"),
    ("maple_range_64", "slot"),
    ("maple_arange_64", "pivot"),
    ("maple_arange_64", "slot"),
    ("rb_root", "rb_node"),
    ("rb_node", "rb_left"),
    ("rb_node", "rb_right"),
    ("vm_area_struct", "vm_start"),
    ("vm_area_struct", "vm_end"),
    ("vm_area_struct", "vm_pgoff"),
    ("vm_area_struct", "vm_flags"),
    ("vm_area_struct", "vm_file"),
    ("vm_area_struct", "vm_rb"),
    ("file", "f_path"),
    ("path", "mnt"),
    ("path", "dentry"),
    ("dentry", "d_parent"),
    ("dentry", "d_name"),
    ("qstr", "name"),
    ("mount", "mnt"),
    ("mount", "mnt_parent"),
    ("mount", "mnt_mountpoint"),
];
/// As `WANTED`: of the structure that a mount has inside.
const MOUNT_ROOT: Member = ("vfsmount", "mnt_root");

/// Steps down a tree of a kernel's.
const MOST_DEPTH: usize = 64;
/// Names of a path, and mounts on it.
const MOST_NAMES: usize = 256;
/// Bytes of a name, and the zero behind it.
const MOST_NAME: usize = 256;
const PAGE: u64 = 4096;
const VM_EXEC: u64 = 4;

/// include/linux/maple_tree.h: what the root has that is a node, and no other node; a node's kind, and its address.
const IS_ROOT: u64 = 2;
const KIND_SHIFT: u64 = 3;
const KIND_MASK: u64 = 15;
const LEAF: u64 = 1;
const RANGE: u64 = 2;
const ARANGE: u64 = 3;
const NODE: u64 = !0xff;
/// Pivots of a node of 256 bytes; it has one slot more.
const RANGE_PIVOTS: u64 = 15;
const ARANGE_PIVOTS: u64 = 9;

/// A stretch of a program's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The one behind the last.
    pub end: u64,
    /// What of the file begins there, in bytes.
    pub offset: u64,
    /// It may be executed.
    pub is_code: bool,
    /// The file's path in the guest; none: it is of no file.
    pub path: Option<String>,
}

/// How a kernel keeps them.
pub struct Mappings {
    offsets: Offsets,
}

impl Mappings {
    /// Of the kernel in this vmlinux.
    pub fn of(vmlinux: &[u8]) -> Result<Self> {
        let file = object::File::parse(vmlinux).context("it is no ELF file")?;
        let wanted: Vec<_> = WANTED.iter().copied().chain([MOUNT_ROOT]).collect();
        let mappings = Self {
            offsets: offsets(&file, &wanted)?,
        };
        for member in WANTED[12..15].iter().chain(&WANTED[18..24]) {
            mappings.at(*member)?;
        }
        Ok(mappings)
    }

    fn at(&self, (structure, member): Member) -> Result<u64> {
        let offset = self.offsets.get(&(structure, member)).copied();
        offset.with_context(|| format!("its DWARF does not tell of {structure}.{member}"))
    }

    fn follow(&self, view: &View<'_>, address: u64, member: Member) -> Result<u64> {
        view.word(address.wrapping_add(self.at(member)?))
    }

    /// Where a task's stack in the kernel begins.
    pub fn stack(&self, view: &View<'_>, task: u64) -> Result<u64> {
        self.follow(view, task, ("task_struct", "stack"))
    }

    /// What the user memory of a task is called by; none: it has none.
    pub fn memory(&self, view: &View<'_>, task: u64) -> Result<Option<u64>> {
        let mm = self.follow(view, task, ("task_struct", "mm"))?;
        Ok((mm != 0).then_some(mm))
    }

    /// What an address of the memory `mm` belongs to.
    pub fn find(&self, view: &View<'_>, mm: u64, address: u64) -> Result<Option<Region>> {
        let area = if self.offsets.contains_key(&("mm_struct", "mm_mt")) {
            self.in_maple_tree(view, mm, address)?
        } else if self.offsets.contains_key(&("mm_struct", "mm_rb")) {
            self.in_rb_tree(view, mm, address)?
        } else {
            bail!("this kernel keeps mappings in another way than those of Linux 5.10 to 6.12 do");
        };
        let Some(area) = area else { return Ok(None) };
        let member = |name| self.follow(view, area, ("vm_area_struct", name));
        let (start, end) = (member("vm_start")?, member("vm_end")?);
        if !(start..end).contains(&address) {
            return Ok(None);
        }
        let file = member("vm_file")?;
        Ok(Some(Region {
            start,
            end,
            offset: member("vm_pgoff")?.wrapping_mul(PAGE),
            // Where it cannot be told, anything may be code.
            is_code: member("vm_flags").map_or(true, |flags| flags & VM_EXEC != 0),
            path: match file {
                0 => None,
                file => Some(self.path(view, file)?),
            },
        }))
    }

    /// From Linux 6.1 on.
    fn in_maple_tree(&self, view: &View<'_>, mm: u64, address: u64) -> Result<Option<u64>> {
        let tree = mm.wrapping_add(self.at(("mm_struct", "mm_mt"))?);
        let mut entry = self.follow(view, tree, ("maple_tree", "ma_root"))?;
        if entry & 3 != IS_ROOT || entry <= PAGE {
            // A tree with one entry for everything is no program's.
            return Ok(None);
        }
        for _ in 0..MOST_DEPTH {
            if entry == 0 {
                return Ok(None);
            }
            let kind = entry >> KIND_SHIFT & KIND_MASK;
            let (name, pivots) = match kind {
                LEAF | RANGE => ("maple_range_64", RANGE_PIVOTS),
                ARANGE => ("maple_arange_64", ARANGE_PIVOTS),
                _ => bail!("a node of the mappings' tree is of an unknown kind, {kind}"),
            };
            let node = entry & NODE;
            let (pivot, slot) = (self.at((name, "pivot"))?, self.at((name, "slot"))?);
            let mut index = 0;
            while index < pivots {
                let last = view.word(node.wrapping_add(pivot).wrapping_add(8 * index))?;
                // Behind the last one that is used there are zeroes: its slot goes up to the node's end.
                if address <= last || (last == 0 && index > 0) {
                    break;
                }
                index += 1;
            }
            entry = view.word(node.wrapping_add(slot).wrapping_add(8 * index))?;
            if kind == LEAF {
                return Ok((entry != 0).then_some(entry));
            }
        }
        bail!("the mappings' tree does not end: it is damaged here")
    }

    /// Up to Linux 6.0.
    fn in_rb_tree(&self, view: &View<'_>, mm: u64, address: u64) -> Result<Option<u64>> {
        let tree = mm.wrapping_add(self.at(("mm_struct", "mm_rb"))?);
        let inside = self.at(("vm_area_struct", "vm_rb"))?;
        let mut node = self.follow(view, tree, ("rb_root", "rb_node"))?;
        for _ in 0..MOST_DEPTH {
            if node == 0 {
                return Ok(None);
            }
            let area = node.wrapping_sub(inside);
            let side = if address < self.follow(view, area, ("vm_area_struct", "vm_start"))? {
                "rb_left"
            } else if address < self.follow(view, area, ("vm_area_struct", "vm_end"))? {
                return Ok(Some(area));
            } else {
                "rb_right"
            };
            node = self.follow(view, node, ("rb_node", side))?;
        }
        bail!("the mappings' tree does not end: it is damaged here")
    }

    /// A file's path, across mounts.
    fn path(&self, view: &View<'_>, file: u64) -> Result<String> {
        let place = file.wrapping_add(self.at(("file", "f_path"))?);
        let mut dentry = self.follow(view, place, ("path", "dentry"))?;
        let mut mount = self.follow(view, place, ("path", "mnt"))?;
        let mut names: Vec<String> = Vec::new();
        for _ in 0..MOST_NAMES {
            if self.follow(view, mount, MOUNT_ROOT).ok() == Some(dentry) {
                let around = mount.wrapping_sub(self.at(("mount", "mnt"))?);
                let parent = self.follow(view, around, ("mount", "mnt_parent"))?;
                if parent != around {
                    dentry = self.follow(view, around, ("mount", "mnt_mountpoint"))?;
                    mount = parent.wrapping_add(self.at(("mount", "mnt"))?);
                    continue;
                }
            }
            let parent = self.follow(view, dentry, ("dentry", "d_parent"))?;
            if parent == dentry {
                names.reverse();
                return Ok(format!("/{}", names.join("/")));
            }
            let text = dentry.wrapping_add(self.at(("dentry", "d_name"))?);
            names.push(name(view, self.follow(view, text, ("qstr", "name"))?));
            dentry = parent;
        }
        bail!("a path of the guest does not end: it is damaged here")
    }
}

fn name(view: &View<'_>, address: u64) -> String {
    let mut bytes = [0; MOST_NAME];
    let have = read_virtual(view.ram, &view.sregs, address, &mut bytes);
    let end = bytes[..have].iter().position(|byte| *byte == 0).unwrap_or(have);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{kvm_regs, kvm_sregs};
    use lockstep_vmm::memory::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    const TASK: u64 = 0x1000;
    const MM: u64 = 0x1100;
    const FILE: u64 = 0x1200;
    const AREA: u64 = 0x1300;
    /// Which every node has.
    const OF_NODE: u64 = 4;

    /// A machine without paging, so that addresses are places in memory.
    struct Guest(GuestRam);

    impl Guest {
        fn new() -> Self {
            let guest = Self(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
            guest.word(TASK, MM);
            // /mnt/bin/x: `x` in `bin`, the root of a mount, which lies on `mnt` in the root of all.
            guest.word(FILE, 0x4000);
            guest.word(FILE + 8, 0x5010);
            for (dentry, parent, text, name) in [
                (0x5010, 0x5110, 0x6000, &b"x\0"[..]),
                (0x5110, 0x5110, 0x6100, b"never\0"),
                (0x5210, 0x5310, 0x6200, b"mnt\0"),
                (0x5310, 0x5310, 0x6300, b"/\0"),
            ] {
                guest.word(dentry, parent);
                guest.word(dentry + 0x10, text);
                guest.0.write_slice(name, GuestAddress(text)).unwrap();
            }
            // mount: parent, mount point, and inside it the root.
            for (mount, parent, point, root) in [(0x3fe0, 0x4fe0, 0x5210, 0x5110), (0x4fe0, 0x4fe0, 0, 0x5310)] {
                guest.word(mount, parent);
                guest.word(mount + 8, point);
                guest.word(mount + 0x20, root);
            }
            guest.area(AREA, 0x40_0000, 0x40_3000);
            guest
        }

        fn area(&self, at: u64, start: u64, end: u64) {
            for (index, word) in [start, end, 2, VM_EXEC, FILE].into_iter().enumerate() {
                self.word(at + 8 * index as u64, word);
            }
        }

        fn word(&self, at: u64, word: u64) {
            self.0.write_slice(&word.to_le_bytes(), GuestAddress(at)).unwrap();
        }

        fn view(&self) -> View<'_> {
            View {
                ram: &self.0,
                regs: kvm_regs::default(),
                sregs: kvm_sregs::default(),
            }
        }
    }

    fn mappings(tree: &[(Member, u64)]) -> Mappings {
        let common = [
            (("task_struct", "mm"), 0),
            (("vm_area_struct", "vm_start"), 0),
            (("vm_area_struct", "vm_end"), 8),
            (("vm_area_struct", "vm_pgoff"), 16),
            (("vm_area_struct", "vm_flags"), 24),
            (("vm_area_struct", "vm_file"), 32),
            (("file", "f_path"), 0),
            (("path", "mnt"), 0),
            (("path", "dentry"), 8),
            (("dentry", "d_parent"), 0),
            (("dentry", "d_name"), 8),
            (("qstr", "name"), 8),
            (("mount", "mnt_parent"), 0),
            (("mount", "mnt_mountpoint"), 8),
            (("mount", "mnt"), 0x20),
            (MOUNT_ROOT, 0),
        ];
        Mappings {
            offsets: common.into_iter().chain(tree.iter().copied()).collect(),
        }
    }

    fn maple() -> Mappings {
        mappings(&[
            (("mm_struct", "mm_mt"), 0x40),
            (("maple_tree", "ma_root"), 8),
            (("maple_range_64", "pivot"), 8),
            (("maple_range_64", "slot"), 128),
            (("maple_arange_64", "pivot"), 8),
            (("maple_arange_64", "slot"), 80),
        ])
    }

    fn rb() -> Mappings {
        mappings(&[
            (("mm_struct", "mm_rb"), 0x40),
            (("rb_root", "rb_node"), 0),
            (("rb_node", "rb_left"), 8),
            (("rb_node", "rb_right"), 16),
            (("vm_area_struct", "vm_rb"), 64),
        ])
    }

    fn found() -> Region {
        Region {
            start: 0x40_0000,
            end: 0x40_3000,
            offset: 0x2000,
            is_code: true,
            path: Some("/mnt/x".into()),
        }
    }

    #[test]
    fn a_maple_tree_is_gone_down() {
        let guest = Guest::new();
        // The root has two leaves: up to 0x3fffff, and the rest, of which the area is the first.
        guest.word(MM + 0x48, 0x8000 | ARANGE << KIND_SHIFT | OF_NODE | IS_ROOT);
        guest.word(0x8008, 0x3f_ffff);
        guest.word(0x8000 + 80 + 8, 0x8100 | LEAF << KIND_SHIFT | OF_NODE);
        guest.word(0x8108, 0x40_2fff);
        guest.word(0x8100 + 128, AREA);
        let (maple, view) = (maple(), guest.view());
        let mm = maple.memory(&view, TASK).unwrap().unwrap();
        assert_eq!(maple.find(&view, mm, 0x40_1234).unwrap(), Some(found()));
        assert_eq!(maple.find(&view, mm, 0x40_3000).unwrap(), None);
        assert!(maple.find(&view, mm, 0x1000).unwrap().is_none());
    }

    #[test]
    fn a_red_black_tree_is_gone_down() {
        let guest = Guest::new();
        guest.area(0x1400, 0x80_0000, 0x80_1000);
        guest.word(MM + 0x40, 0x1440);
        guest.word(0x1440 + 8, AREA + 64);
        let (rb, view) = (rb(), guest.view());
        assert_eq!(rb.find(&view, MM, 0x40_2fff).unwrap(), Some(found()));
        assert_eq!(rb.find(&view, MM, 0x80_0000).unwrap().unwrap().start, 0x80_0000);
        assert_eq!(rb.find(&view, MM, 0x80_1000).unwrap(), None);
        assert_eq!(rb.find(&view, MM, 0).unwrap(), None);
    }

    #[test]
    fn circles_end() {
        let guest = Guest::new();
        let node = 0x8000 | RANGE << KIND_SHIFT | OF_NODE | IS_ROOT;
        guest.word(MM + 0x48, node);
        guest.word(0x8000 + 8, u64::MAX);
        guest.word(0x8000 + 128, node);
        let error = maple().find(&guest.view(), MM, 1).unwrap_err().to_string();
        assert!(error.contains("does not end"), "{error}");
        guest.area(0x1400, 0x80_0000, 0x80_1000);
        guest.word(MM + 0x40, 0x1440);
        guest.word(0x1440 + 8, 0x1440);
        let error = rb().find(&guest.view(), MM, 1).unwrap_err().to_string();
        assert!(error.contains("does not end"), "{error}");
        // Two directories that lie in each other.
        guest.word(MM + 0x40, AREA + 64);
        guest.word(0x5110, 0x5010);
        guest.word(0x4000, 0x9999);
        let error = rb().find(&guest.view(), MM, 0x40_0000).unwrap_err().to_string();
        assert!(error.contains("a path of the guest does not end"), "{error}");
    }

    #[test]
    fn what_is_not_there_and_what_is_unknown_is_no_panic() {
        let guest = Guest::new();
        guest.word(MM + 0x48, 0x7fff_ffff_f000 | LEAF << KIND_SHIFT | IS_ROOT);
        assert!(maple().find(&guest.view(), MM, 1).is_err(), "a node that is not mapped");
        guest.word(MM + 0x48, 0x8000 | 9 << KIND_SHIFT | IS_ROOT);
        let error = maple().find(&guest.view(), MM, 1).unwrap_err().to_string();
        assert!(error.contains("unknown kind, 9"), "{error}");
        guest.word(MM + 0x48, AREA);
        assert_eq!(maple().find(&guest.view(), MM, 1).unwrap(), None, "one entry for all");
        let error = mappings(&[]).find(&guest.view(), MM, 1).unwrap_err().to_string();
        assert!(error.contains("in another way"), "{error}");
        guest.word(MM + 0x40, u64::MAX);
        assert!(rb().find(&guest.view(), MM, 1).is_err());
    }
}
