//! Decodes text files, and shortens text for messages.

use std::any::Any;
use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8};

/// The largest length of a quoted value, in characters.
const QUOTED: usize = 60;

/// Decodes UTF-8, or UTF-16 with a byte-order mark; `None` if the bytes are neither.
pub(crate) fn decode_text(bytes: &[u8]) -> Option<String> {
    let (encoding, mark) = Encoding::for_bom(bytes).unwrap_or((UTF_8, 0));
    encoding.decode_without_bom_handling_and_without_replacement(&bytes[mark..]).map(Cow::into_owned)
}

/// The lines of a text, without empty lines and without white space around them.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let lines = text.split(['\n', '\r']).map(str::trim);
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// A value as a message quotes it: one short line.
pub(crate) fn quoted(value: &str) -> String {
    shortened(value, QUOTED)
}

/// The first `most` characters on one line, with an ellipsis if there are more.
pub(crate) fn shortened(value: &str, most: usize) -> String {
    let mut line: String = value.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if value.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

/// The message of a panic, on one line.
pub(crate) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    shortened(&text.unwrap_or_else(|| "no message".into()), 200)
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
        assert_eq!(quoted("a\ncat"), "a cat");
        let long = "\u{e4}".repeat(5_000_000);
        assert_eq!(quoted(&long).chars().count(), QUOTED + 1);
        assert_eq!(quoted(&long[..2 * QUOTED]), long[..2 * QUOTED]);
    }
}
