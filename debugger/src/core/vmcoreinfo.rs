//! VMCOREINFO: what a Linux kernel has written down for whoever reads its memory after a crash (Documentation/admin-guide/kdump/
//! vmcoreinfo.rst). A page of text; nothing but the text itself tells where it is.

use lockstep_vmm::memory::{Memory, PAGE_SIZE, Page};

use crate::show::view::View;

/// How the text begins, in every kernel that has it.
const BEGINNING: &str = "OSRELEASE=";
/// The variable that has the kernel's release.
const PLACE: &str = "SYMBOL(init_uts_ns)=";
/// Bytes of it that are looked into: six names of 65 bytes, behind a count.
const NAMES: usize = 400;

/// The text of the kernel that runs here. A page that only looks like it, of a program or of a kernel before, is passed over: the release that
/// it names must be where it says.
pub fn find(memory: &Memory, view: &View<'_>) -> Option<String> {
    let mut page: Page = [0; PAGE_SIZE];
    memory.indices().find_map(|index| {
        memory.read_page(memory.frame(index), &mut page);
        let text = text(&page)?;
        let (release, place) = release(text)?;
        let mut names = [0; NAMES];
        view.read(place, &mut names).ok()?;
        let named = [release.as_bytes(), b"\0"].concat();
        names
            .windows(named.len())
            .any(|window| window == named)
            .then(|| text.to_owned())
    })
}

/// The text in a page, if it begins as VMCOREINFO does.
fn text(page: &[u8]) -> Option<&str> {
    if !page.starts_with(BEGINNING.as_bytes()) {
        return None;
    }
    let end = page.iter().position(|&byte| byte == 0).unwrap_or(page.len());
    let text = std::str::from_utf8(&page[..end]).ok()?;
    // A line that is cut off tells nothing.
    Some(&text[..=text.rfind('\n')?])
}

/// The release of a text, and the address of the variable that has it.
fn release(text: &str) -> Option<(&str, u64)> {
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let release = value(BEGINNING).filter(|release| !release.is_empty() && release.len() < 65)?;
    Some((release, u64::from_str_radix(value(PLACE)?, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_the_text_is_told_from_others() {
        let page = |text: &str| {
            let mut page = text.as_bytes().to_vec();
            page.resize(PAGE_SIZE, 0);
            page
        };
        let whole = "OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=ffffffff81b13a40\n";
        assert_eq!(text(&page(whole)), Some(whole));
        assert_eq!(release(whole), Some(("6.1.0", 0xffff_ffff_81b1_3a40)));
        let cut = page(&format!("{whole}SYMBOL(node_onl"));
        assert_eq!(text(&cut), Some(whole));
        let full = format!("OSRELEASE=6.1.0\n{}\n", "x".repeat(PAGE_SIZE)).into_bytes();
        assert_eq!(text(&full[..PAGE_SIZE]), Some("OSRELEASE=6.1.0\n"));
        for other in ["", "OSRELEASE=6.1.0", "PAGESIZE=4096\nOSRELEASE=6.1.0\n"] {
            assert_eq!(text(&page(other)), None, "{other}");
        }
        for other in [
            "OSRELEASE=6.1.0\n",
            "OSRELEASE=\nSYMBOL(init_uts_ns)=1000\n",
            "OSRELEASE=6.1.0\nSYMBOL(init_uts_ns)=here\n",
        ] {
            assert_eq!(release(other), None, "{other}");
        }
        let long = format!("OSRELEASE={}\nSYMBOL(init_uts_ns)=1000\n", "6".repeat(65));
        assert_eq!(release(&long), None);
    }
}
