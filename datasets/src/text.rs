//! Text as people's programs write it, and as much of it as belongs into a message.

/// Characters of a quoted value that are shown.
const SHOWN: usize = 60;

/// The text of UTF-8 with or without a byte-order mark, or of UTF-16 with one; `None` where it is neither.
pub(crate) fn decode_text(bytes: &[u8]) -> Option<String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16(&units).ok().filter(|_| rest.is_empty())
    };
    match bytes {
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

/// The lines of a text that are not empty, without what surrounds them.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let lines = text.split(['\n', '\r']).map(str::trim);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// A value as a message quotes it: one short line, however long it is.
pub(crate) fn cut(value: &str) -> String {
    shortened(value, SHOWN)
}

/// One line of at most `most` characters, and a sign that there are more.
pub(crate) fn shortened(value: &str, most: usize) -> String {
    let mut line: String = value.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if value.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(unit).collect()
    }

    #[test]
    fn marks_tell_the_encoding() {
        let text = "a caf\u{e9}\r\n\u{1f63a}";
        for bytes in [
            text.as_bytes().to_vec(),
            format!("\u{feff}{text}").into_bytes(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
        ] {
            assert_eq!(decode_text(&bytes).as_deref(), Some(text), "{bytes:?}");
        }
        assert_eq!(decode_text(b"").as_deref(), Some(""));
        // Latin-1, half a unit, half a pair of surrogates.
        for bytes in [&b"caf\xe9"[..], b"\xff\xfea", b"\xfe\xff\xd8\x3d"] {
            assert_eq!(decode_text(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_quoted_value_is_one_short_line() {
        assert_eq!(cut("a\ncat"), "a cat");
        let long = "\u{e4}".repeat(5_000_000);
        assert_eq!(cut(&long).chars().count(), SHOWN + 1);
        assert_eq!(cut(&long[..2 * SHOWN]), long[..2 * SHOWN]);
    }
}
