//! TFRecord: each record with its length and a checksum of both.

use crc32c::crc32c;

/// `record` between its length and the checksums.
pub(super) fn framed(record: &[u8]) -> Vec<u8> {
    let length = (record.len() as u64).to_le_bytes();
    let mut framed = Vec::with_capacity(record.len() + 16);
    framed.extend(length);
    framed.extend(masked(crc32c(&length)).to_le_bytes());
    framed.extend(record);
    framed.extend(masked(crc32c(record)).to_le_bytes());
    framed
}

/// A checksum of data that has checksums in it is not to be trusted, so they are stored changed.
pub(super) fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}
