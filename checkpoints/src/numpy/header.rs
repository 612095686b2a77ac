//! The header of a `.npy` array (NumPy's format, versions 1 to 3).

use std::io::Read;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// A multiple of this many bytes lies before the elements.
const ALIGNMENT: usize = 64;

/// A longer header is no header.
const LONGEST: usize = 1 << 16;

/// What the elements of an array are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpyHeader {
    /// The type of an element, such as `<f8` or `|u1`.
    pub descr: String,
    /// Whether the first index changes fastest.
    pub fortran_order: bool,
    /// The size of each dimension.
    pub shape: Vec<usize>,
}

impl NpyHeader {
    /// Reads the header, and leaves `from` at the first element. An error says what is wrong with the array.
    pub(super) fn read(from: &mut impl Read) -> Result<Self, String> {
        let mut start = [0; 8];
        let failed = |error: std::io::Error| format!("cannot be read: {error}");
        from.read_exact(&mut start).map_err(failed)?;
        if !start.starts_with(MAGIC) {
            return Err("is no NumPy array".to_owned());
        }
        let mut length = [0; 4];
        let bytes = if start[6] == 1 { 2 } else { 4 };
        from.read_exact(&mut length[..bytes]).map_err(failed)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(format!("has a header of {length} bytes"));
        }
        let mut text = vec![0; length];
        from.read_exact(&mut text).map_err(failed)?;
        let text = String::from_utf8_lossy(&text);
        Self::parse(&text).ok_or_else(|| format!("has a header that is not known: {}", text.trim()))
    }

    /// Reads `{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }`.
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| Some(text.split_once(&format!("'{key}':"))?.1.trim_start());
        let descr = value("descr")?.strip_prefix('\'')?.split_once('\'')?.0.to_owned();
        let fortran_order = value("fortran_order")?.starts_with("True");
        let shape = value("shape")?.strip_prefix('(')?.split_once(')')?.0;
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        Some(Self { descr, fortran_order, shape: sizes.map(|size| size.parse().ok()).collect::<Option<_>>()? })
    }
}

/// The bytes before the elements of an array in C order.
pub(super) fn write(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", sizes.trim_end());
    let before = MAGIC.len() + 4;
    let padded = (before + text.len() + 1).next_multiple_of(ALIGNMENT);
    text.push_str(&" ".repeat(padded - before - text.len() - 1));
    text.push('\n');
    [&MAGIC[..], &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}
