//! The bytes of a pickle, and what they spell.

use std::io::{BufRead, Read};

use super::values::{Class, PickleError, Value};

/// Longest text line of protocol 0.
const MAX_LINE: u64 = 1 << 20;

pub(super) struct Input<'a, R> {
    pub(super) input: &'a mut R,
    pub(super) left: u64,
}

impl<R: BufRead> Input<'_, R> {
    pub(super) fn spend(&mut self, bytes: u64) -> Result<(), PickleError> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or(PickleError::TooLarge)?;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        self.spend(N as u64)?;
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Result<u8, PickleError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// Bytes after their number, which has 1 byte or 4.
    pub(super) fn counted(&mut self, is_short: bool) -> Result<Vec<u8>, PickleError> {
        let length = if is_short { self.byte()?.into() } else { u32::from_le_bytes(self.array()?) };
        self.bytes(length.into())
    }

    /// Bytes after their number, which has 8 bytes.
    pub(super) fn counted8(&mut self) -> Result<Vec<u8>, PickleError> {
        let length = u64::from_le_bytes(self.array()?);
        self.bytes(length)
    }

    /// The name of a class in two lines.
    pub(super) fn class(&mut self) -> Result<Value, PickleError> {
        let module = self.line()?;
        let name = self.line()?;
        Ok(Value::Class(Box::new(Class { module, name })))
    }

    /// Grows with what is really there, not with the length that the file claims.
    pub(super) fn bytes(&mut self, length: u64) -> Result<Vec<u8>, PickleError> {
        self.spend(length)?;
        let mut bytes = Vec::new();
        let read = (&mut *self.input).take(length).read_to_end(&mut bytes)?;
        if read as u64 == length { Ok(bytes) } else { Err(PickleError::Truncated) }
    }

    pub(super) fn line(&mut self) -> Result<String, PickleError> {
        let mut bytes = Vec::new();
        let limited = &mut (&mut *self.input).take(MAX_LINE);
        limited.read_until(b'\n', &mut bytes)?;
        self.spend(bytes.len() as u64)?;
        if bytes.pop() != Some(b'\n') {
            return Err(PickleError::Truncated);
        }
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Text of which nothing is lost but lone surrogates, which Python allows and no name has.
pub(super) fn text(bytes: Vec<u8>) -> Value {
    let text = String::from_utf8(bytes);
    Value::Text(text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

pub(super) fn text_or_bytes(bytes: Vec<u8>) -> Value {
    String::from_utf8(bytes).map_or(Value::Bytes, Value::Text)
}

/// An integer from two's complement, little-endian.
pub(super) fn integer(mut bytes: Vec<u8>) -> Value {
    shorten(&mut bytes);
    if bytes.len() > 8 {
        return Value::BigInt(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut whole = if negative { [0xff; 8] } else { [0; 8] };
    whole[..bytes.len()].copy_from_slice(&bytes);
    Value::Int(i64::from_le_bytes(whole))
}

/// Drops the bytes that only repeat the sign.
fn shorten(bytes: &mut Vec<u8>) {
    while let [.., before, last] = bytes[..]
        && last == if before & 0x80 != 0 { 0xff } else { 0 }
    {
        bytes.pop();
    }
}

/// A decimal integer; beyond `i64` up to the size of torch's magic number, which is the only such one that matters.
pub(super) fn decimal(digits: &str) -> Result<Value, PickleError> {
    let digits = digits.trim();
    if let Ok(value) = digits.parse() {
        return Ok(Value::Int(value));
    }
    let value: i128 = digits.parse().map_err(|_| PickleError::Malformed("a number"))?;
    Ok(integer(value.to_le_bytes().to_vec()))
}
