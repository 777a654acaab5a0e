use super::super::pretended::Pretended;
use super::*;

const ROOT: &str = "root=PARTUUID=1-01";

fn chosen(root: Pretended) -> Result<Chosen, Refusal> {
    of(Some(root), None)
}

fn of(root: Option<Pretended>, boot: Option<Pretended>) -> Result<Chosen, Refusal> {
    let word = root.is_some().then_some(ROOT);
    let boxed = |system: Pretended| Box::new(system) as Box<dyn super::super::tree::FileSystem>;
    let tree = Tree {
        root: root.map(boxed),
        boot: boot.map(boxed),
    };
    choose(&tree, word)
}

fn debian() -> Pretended {
    Pretended::new()
        .file("/boot/vmlinuz-6.1.0-1", "one")
        .file("/boot/vmlinuz-6.1.0-2", "two")
        .file("/boot/initrd.img-6.1.0-1", "first")
        .file("/boot/initrd.img-6.1.0-2", "second")
}

fn linked(version: &str) -> Pretended {
    debian()
        .link("/vmlinuz", &format!("boot/vmlinuz-{version}"))
        .link("/initrd.img", &format!("boot/initrd.img-{version}"))
}

fn entry(version: &str) -> String {
    format!("version {version}\nlinux /vmlinuz-{version}\ninitrd /initrd.img-{version}\noptions root=UUID=bls ro\n")
}

const GRUB: &str = "set default=0\nmenuentry new { linux /boot/vmlinuz-6.1.0-2 root=UUID=grub ro quiet; initrd /boot/initrd.img-6.1.0-2; }\n\
                    menuentry old { linux /boot/vmlinuz-6.1.0-1 root=UUID=grub ro old; initrd /boot/initrd.img-6.1.0-1; }\n";

#[test]
fn the_links_come_first() {
    let root = linked("6.1.0-1")
        .file("/boot/grub/grub.cfg", GRUB)
        .file("/boot/loader/entries/x.conf", &entry("6.1.0-2"));
    let chosen = chosen(root).unwrap();
    assert_eq!(chosen.kernel, "/boot/vmlinuz-6.1.0-1");
    assert_eq!(chosen.initrds, ["/boot/initrd.img-6.1.0-1"]);
    assert_eq!(
        chosen.words, "root=UUID=grub ro old",
        "of the entry that boots this kernel"
    );
    assert_eq!(chosen.how, "the link /vmlinuz, words of /boot/grub/grub.cfg");
    assert!(chosen.notes.is_empty(), "{chosen:?}");
}

#[test]
fn links_in_boot_do_too() {
    for initrd in ["/boot/initrd.img", "/boot/initrd"] {
        let root = debian()
            .link("/boot/vmlinuz", "vmlinuz-6.1.0-2")
            .link(initrd, "initrd.img-6.1.0-2");
        let chosen = chosen(root).unwrap();
        assert_eq!(chosen.kernel, "/boot/vmlinuz-6.1.0-2");
        assert_eq!(chosen.initrds, ["/boot/initrd.img-6.1.0-2"], "{initrd}");
    }
    let apart = Pretended::new()
        .file("/vmlinuz-7", "k")
        .file("/initrd.img-7", "i")
        .file("/grub/grub.cfg", "menuentry x { linux /vmlinuz-7 root=UUID=grub; }");
    let root = Pretended::new()
        .link("/vmlinuz", "boot/vmlinuz-7")
        .link("/initrd.img", "boot/initrd.img-7");
    let chosen = of(Some(root), Some(apart)).unwrap();
    assert_eq!(
        (chosen.kernel.as_str(), chosen.words.as_str()),
        ("/boot/vmlinuz-7", "root=UUID=grub")
    );
}

#[test]
fn words_of_a_link_come_from_grubs_defaults_where_nothing_else_has_them() {
    let chosen = chosen(linked("6.1.0-2").file(defaults::FILE, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n")).unwrap();
    assert_eq!(chosen.words, format!("{ROOT} ro quiet"));
    let bare = super::tests::chosen(linked("6.1.0-2")).unwrap();
    assert_eq!(bare.words, format!("{ROOT} ro"));
    // Not understood, or about other kernels: told.
    for (grub, said) in [
        ("source /x\n", "`source`"),
        ("menuentry x { linux /other; }\n", "has no entry"),
    ] {
        let chosen = super::tests::chosen(linked("6.1.0-2").file("/boot/grub/grub.cfg", grub)).unwrap();
        assert_eq!(chosen.words, format!("{ROOT} ro"));
        assert!(chosen.notes.iter().any(|note| note.contains(said)), "{chosen:?}");
    }
}

#[test]
fn a_kernel_without_an_initrd_has_none_and_one_that_is_missing_is_refused() {
    let root = debian().link("/vmlinuz", "boot/vmlinuz-6.1.0-1");
    assert!(chosen(root).unwrap().initrds.is_empty());
    let root = debian()
        .link("/vmlinuz", "boot/vmlinuz-6.1.0-1")
        .link("/initrd.img", "boot/initrd.img-9");
    let error = chosen(root).unwrap_err().to_string();
    assert!(
        error.contains("/initrd.img: it leads to nothing") && error.contains("update-initramfs"),
        "{error}"
    );
}

#[test]
fn a_link_that_leads_nowhere_is_passed_over() {
    let root = debian()
        .link("/vmlinuz", "boot/vmlinuz-9")
        .file("/boot/grub/grub.cfg", GRUB);
    let found = chosen(root).unwrap();
    assert_eq!(found.kernel, "/boot/vmlinuz-6.1.0-2");
    assert_eq!(found.notes, ["/vmlinuz leads to nothing"]);
    let error = chosen(debian().link("/vmlinuz", "vmlinuz")).unwrap_err().to_string();
    assert!(error.contains("too many"), "{error}");
}

#[test]
fn the_newest_entry_of_the_boot_loader_specification_is_next() {
    let root = debian()
        .file("/boot/loader/entries/a.conf", &entry("6.1.0-1"))
        .file("/boot/loader/entries/b.conf", &entry("6.1.0-2"))
        .file("/boot/grub/grub.cfg", GRUB);
    let chosen = chosen(root).unwrap();
    assert_eq!(chosen.kernel, "/boot/vmlinuz-6.1.0-2");
    assert_eq!(chosen.initrds, ["/boot/initrd.img-6.1.0-2"]);
    assert_eq!(chosen.words, "root=UUID=bls ro");
}

#[test]
fn fedoras_entries_have_variables_of_grubs_environment() {
    let boot = Pretended::new()
        .file("/vmlinuz-6.5", "k")
        .file("/initramfs-6.5.img", "i")
        .file(
            "/loader/entries/x.conf",
            "linux /vmlinuz-6.5\ninitrd /initramfs-6.5.img $tuned_initrd\noptions $kernelopts $tuned_params rhgb\n",
        )
        .file("/grub2/grub.cfg", "blscfg\n")
        .file("/grub2/grubenv", "# GRUB\nkernelopts=root=UUID=f ro\n####");
    // Its root is btrfs, which is not read, and not needed.
    let chosen = of(None, Some(boot)).unwrap();
    assert_eq!(chosen.kernel, "/boot/vmlinuz-6.5");
    assert_eq!(chosen.initrds, ["/boot/initramfs-6.5.img"]);
    assert_eq!(chosen.words, "root=UUID=f ro rhgb");
}

#[test]
fn grubs_default_is_last() {
    let chosen = chosen(debian().file("/boot/grub/grub.cfg", GRUB)).unwrap();
    assert_eq!(chosen.kernel, "/boot/vmlinuz-6.1.0-2");
    assert_eq!(chosen.initrds, ["/boot/initrd.img-6.1.0-2"]);
    assert_eq!(chosen.words, "root=UUID=grub ro quiet");
    assert_eq!(chosen.how, "the default of /boot/grub/grub.cfg: new");
}

#[test]
fn what_is_named_and_not_there_is_refused_and_so_is_nothing() {
    let root = debian().file("/boot/loader/entries/a.conf", &entry("9"));
    let error = chosen(root).unwrap_err().to_string();
    assert!(
        error.contains("a.conf") && error.contains("/vmlinuz-9, which is not there"),
        "{error}"
    );
    let root = debian().file("/boot/grub/grub.cfg", "source /x\n");
    assert!(chosen(root).unwrap_err().to_string().contains("line 1"));
    let error = chosen(debian()).unwrap_err().to_string();
    assert!(
        error.contains("no /vmlinuz") && error.contains("`kernel` and `initrd`"),
        "{error}"
    );
    let boot = Pretended::new().file("/vmlinuz-7", "k").link("/vmlinuz", "vmlinuz-7");
    let error = of(None, Some(boot)).unwrap_err().to_string();
    assert!(error.contains("no configuration says where"), "{error}");
}
