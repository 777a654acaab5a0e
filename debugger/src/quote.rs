//! Bytes of a guest as C writes them in a string.

/// `"text\n"`; with dots where there is more of it.
pub fn quoted(bytes: &[u8], is_more: bool) -> String {
    let mut text = String::with_capacity(bytes.len() + 5);
    text.push('"');
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(byte.into());
            }
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'\r' => text.push_str("\\r"),
            b'\x0b' => text.push_str("\\v"),
            b'\x0c' => text.push_str("\\f"),
            b' '..=b'~' => text.push(byte.into()),
            _ => {
                // As short as it can be, unless a digit follows that would belong to it.
                let is_digit = bytes.get(index + 1).is_some_and(|next| (b'0'..=b'7').contains(next));
                let digits = if is_digit {
                    format!("\\{byte:03o}")
                } else {
                    format!("\\{byte:o}")
                };
                text.push_str(&digits);
            }
        }
    }
    text.push('"');
    if is_more {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_c_has_them() {
        for (bytes, more, text) in [
            (&b"plain"[..], false, r#""plain""#),
            (b"", false, r#""""#),
            (b"a\"b\\c\n\t\r", true, r#""a\"b\\c\n\t\r"..."#),
            // An escape that a terminal would take, a NUL before a digit, and one before none.
            (b"\x1b[2J\x001\x008", false, r#""\33[2J\0001\08""#),
            (b"\x7f\xff\xc2\x9b", false, r#""\177\377\302\233""#),
        ] {
            assert_eq!(quoted(bytes, more), text);
        }
    }
}
