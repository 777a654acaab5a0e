//! The table that a kernel carries of its own symbols, where its ELF file has none: a bzImage's is stripped.
//!
//! `scripts/kallsyms.c` of Linux writes it into `.rodata`, each part on a boundary of 8 bytes:
//!
//! | part | what |
//! | --- | --- |
//! | `num_syms` | 32 bits |
//! | `names` | for each symbol a length (one byte, or two as ULEB128 above 127) and as many bytes: numbers of tokens. Spelled out, the first letter is the kind that nm(1) shows |
//! | `markers` | 32 bits for each 256 symbols: where they begin in `names` |
//! | `seqs_of_names` | three bytes for each symbol. Since 6.2, and in newer releases of older lines |
//! | `token_table` | 256 strings, each with a zero behind it |
//! | `token_index` | 16 bits for each: where it begins in `token_table` |
//! | `offsets` | 32 bits for each symbol, in ascending order of addresses |
//! | `relative_base` | 64 bits: what they are relative to |
//!
//! Up to 6.4 `offsets` and `relative_base` stand before `num_syms`; from 6.5 on `seqs_of_names` stands at the end. A kernel before
//! 4.6 has addresses in place of offsets, and is not read here.
//!
//! Nothing says where the table is. Digits are tokens that stand for themselves in every kernel, so they give the
//! token table, which its index confirms; names are what leads from a count to markers that agree with them.

use super::elf::{u16_at, u32_at, u64_at};

/// What the token table has from '0' on.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
const TOKENS: usize = 256;
/// Longest token: `KSYM_NAME_LEN` of Linux.
const LONGEST_TOKEN: usize = 512;
/// Symbols from one marker to the next.
const MARKED: usize = 256;
/// Most symbols: sequence numbers of three bytes count no further.
const MOST_SYMBOLS: usize = 1 << 24;
/// Names that are looked at in all. A kernel has some 100,000 of them; one that is made to look as if it had many tables is given up.
const MOST_LOOKS: u64 = 1 << 27;

/// A kernel's table of symbols.
#[derive(Debug)]
pub struct Kallsyms<'a> {
    tokens: Vec<&'a [u8]>,
    names: &'a [u8],
    addresses: Vec<u64>,
}

impl<'a> Kallsyms<'a> {
    /// The table in a segment's bytes, if there is one. `is_kernel`: whether an address is the kernel's.
    pub fn find(bytes: &'a [u8], is_kernel: impl Fn(u64) -> bool) -> Option<Self> {
        let tokens = Tokens::find(bytes)?;
        let mut looks = MOST_LOOKS;
        // The names end where the markers begin, not far before the tokens: backwards they are found soonest.
        let mut at = tokens.start & !7;
        while at > 8 && looks > 0 {
            at -= 8;
            let (count, zero) = (u32_at(bytes, at - 8) as usize, u32_at(bytes, at - 4));
            if count == 0 || count > MOST_SYMBOLS || zero != 0 || at + 2 * count > tokens.start {
                continue;
            }
            let Some(names) = names(&bytes[..tokens.start], at, count, &tokens.list, &mut looks) else {
                continue;
            };
            let offsets = (count * 4).next_multiple_of(8);
            let before = at.checked_sub(16 + offsets);
            for start in [Some(tokens.end), before].into_iter().flatten() {
                if let Some(addresses) = addresses(bytes, start, count, &is_kernel) {
                    return Some(Self {
                        tokens: tokens.list,
                        names,
                        addresses,
                    });
                }
            }
        }
        None
    }

    /// The address of the function of this name, where there is exactly one.
    pub fn function(&self, name: &str) -> Option<u64> {
        let mut found = None;
        let mut at = 0;
        for address in &self.addresses {
            let (from, to) = entry(self.names, at)?;
            let symbol = self.names[from..to]
                .iter()
                .flat_map(|token| self.tokens[usize::from(*token)]);
            let mut symbol = symbol.copied();
            let is_function = matches!(symbol.next(), Some(b'T' | b't' | b'W' | b'w'));
            if is_function && symbol.eq(name.bytes()) && found.replace(*address).is_some() {
                return None;
            }
            at = to;
        }
        found
    }
}

/// What names are spelled with.
struct Tokens<'a> {
    list: Vec<&'a [u8]>,
    /// Where the token table begins.
    start: usize,
    /// Where something else may begin behind its index.
    end: usize,
}

impl<'a> Tokens<'a> {
    fn find(bytes: &'a [u8]) -> Option<Self> {
        let mut from = 0;
        while let Some(distance) = bytes[from..].windows(DIGITS.len()).position(|window| window == DIGITS) {
            let digits = from + distance;
            if let Some(found) = Self::around(bytes, digits) {
                return Some(found);
            }
            from = digits + 1;
        }
        None
    }

    /// The table whose token of '0' is at `digits`.
    fn around(bytes: &'a [u8], digits: usize) -> Option<Self> {
        // Each token before it ends with a zero. Where the first one begins nothing says but the boundary.
        let mut ends = 0;
        for start in (digits.saturating_sub(usize::from(b'0') * LONGEST_TOKEN)..digits).rev() {
            ends += usize::from(bytes[start] == 0);
            if ends > usize::from(b'0') {
                return None;
            }
            if ends == usize::from(b'0')
                && start.is_multiple_of(8)
                && let Some(found) = Self::at(bytes, start)
            {
                return Some(found);
            }
        }
        None
    }

    /// The table that begins at `start`, if the index behind it agrees.
    fn at(bytes: &'a [u8], start: usize) -> Option<Self> {
        let mut list = Vec::with_capacity(TOKENS);
        let mut at = start;
        let mut begins = [0; TOKENS];
        for begin in &mut begins {
            *begin = at - start;
            let rest = bytes.get(at..)?;
            let length = rest.iter().take(LONGEST_TOKEN).position(|byte| *byte == 0)?;
            list.push(&rest[..length]);
            at += length + 1;
        }
        let index = at.next_multiple_of(8);
        let end = index + TOKENS * 2;
        let table = bytes.get(index..end)?;
        let agrees = |(number, begin): (usize, &usize)| usize::from(u16_at(table, number * 2)) == *begin;
        begins
            .iter()
            .enumerate()
            .all(agrees)
            .then_some(Self { list, start, end })
    }
}

/// Where an entry's tokens begin and end.
fn entry(names: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*names.get(at)?);
    let (from, length) = if low & 0x80 == 0 {
        (at + 1, low)
    } else {
        (at + 2, low & 0x7f | usize::from(*names.get(at + 1)?) << 7)
    };
    let to = from + length;
    (length > 0 && to <= names.len()).then_some((from, to))
}

/// `count` names at `start`, if each begins with a letter and the markers behind them agree.
fn names<'a>(bytes: &'a [u8], start: usize, count: usize, tokens: &[&[u8]], looks: &mut u64) -> Option<&'a [u8]> {
    let mut at = start;
    let mut marked = Vec::new();
    for number in 0..count {
        *looks = looks.checked_sub(1)?;
        if number % MARKED == 0 {
            marked.push(at - start);
        }
        let (from, to) = entry(bytes, at)?;
        let first = tokens[usize::from(bytes[from])].first()?;
        if !first.is_ascii_alphabetic() {
            return None;
        }
        at = to;
    }
    let markers = bytes.get(at.next_multiple_of(8)..)?;
    let markers = markers.get(..marked.len() * 4)?;
    let agrees = |(number, begin): (usize, &usize)| u32_at(markers, number * 4) as usize == *begin;
    marked.iter().enumerate().all(agrees).then(|| &bytes[start..at])
}

/// The addresses whose offsets begin at `start`, if they ascend from what is an address of the kernel's.
///
/// With `KALLSYMS_ABSOLUTE_PERCPU` (SMP, up to 6.14) an offset is what it says where it is not negative, and counts from the base
/// the other way, less one, where it is.
fn addresses(bytes: &[u8], start: usize, count: usize, is_kernel: &impl Fn(u64) -> bool) -> Option<Vec<u64>> {
    let table = bytes.get(start..start + count * 4)?;
    let base = start + (count * 4).next_multiple_of(8);
    let base = u64_at(bytes.get(base..base + 8)?, 0);
    if !is_kernel(base) {
        return None;
    }
    let offsets = || (0..count).map(|number| u32_at(table, number * 4));
    let turned = offsets().any(|offset| offset.cast_signed() < 0);
    let address = |offset: u32| match (turned, offset.cast_signed() < 0) {
        (false, _) => base.checked_add(offset.into()),
        (true, false) => Some(offset.into()),
        (true, true) => base.checked_add((!offset).into()),
    };
    let addresses: Vec<u64> = offsets().map(address).collect::<Option<_>>()?;
    addresses.is_sorted().then_some(addresses)
}

#[cfg(test)]
pub(crate) mod tests;
