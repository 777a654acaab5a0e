//! Versions of kernels, compared by the rules of the UAPI Group's Version Format Specification.

use std::cmp::Ordering;

/// Which of two versions is the newer one.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = trim(a);
        b = trim(b);
        // A tilde is older than everything, the end included.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        let (Some(&first), Some(&second)) = (a.first(), b.first()) else {
            return a.len().cmp(&b.len());
        };
        // What separates parts: `-` is older than `^`, and that than `.`; each is older than a part.
        let (left, right) = (separator(first), separator(second));
        if left != right {
            return left.cmp(&right);
        }
        if left < PART {
            (a, b) = (&a[1..], &b[1..]);
            continue;
        }
        let digits = first.is_ascii_digit() || second.is_ascii_digit();
        let (left, right) = (take(&mut a, digits), take(&mut b, digits));
        let order = if digits {
            let (left, right) = (without_zeroes(left), without_zeroes(right));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// What a letter or a digit ranks as.
const PART: u8 = 3;

fn separator(byte: u8) -> u8 {
    match byte {
        b'-' => 0,
        b'^' => 1,
        b'.' => 2,
        _ => PART,
    }
}

/// Passes over what is no part of a version.
fn trim(text: &[u8]) -> &[u8] {
    let kept = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(kept).unwrap_or(text.len())..]
}

/// Takes the digits, or the letters, at the beginning.
fn take<'a>(text: &mut &'a [u8], digits: bool) -> &'a [u8] {
    let is = |byte: &u8| {
        if digits {
            byte.is_ascii_digit()
        } else {
            byte.is_ascii_alphabetic()
        }
    };
    let length = text.iter().position(|byte| !is(byte)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(length);
    *text = rest;
    taken
}

fn without_zeroes(digits: &[u8]) -> &[u8] {
    &digits[digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_ones_are_greater() {
        let ascending = [
            "",
            "0-rescue-0123",
            "4.19.0-9-amd64",
            "4.19.0-27-amd64",
            "5.10.0-8",
            "5.10.0-30-amd64",
            "6.1",
            "6.1-1",
            "6.1.0~rc3",
            "6.1.0",
            "6.1.0-18-cloud-amd64",
            "6.1.0-21-cloud-amd64",
            "6.1.9",
            "6.1.10",
            "6.12.0",
        ];
        for (index, a) in ascending.iter().enumerate() {
            for (other, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), index.cmp(&other), "{a} {b}");
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
        assert_eq!(compare("6+1", "6_1"), compare("6_1", "6_1"));
    }
}
