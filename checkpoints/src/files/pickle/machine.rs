//! The machine that a pickle is a program for. It builds values and does nothing else.

use std::collections::HashMap;
use std::io::BufRead;

use super::input::{Input, decimal, integer, text, text_or_bytes};
use super::values::{Class, Id, Object, Pickle, PickleError, Value};

/// Most values one pickle may hold: about 300,000 tensors' worth, and at most 256 MiB of arena.
const MAX_VALUES: usize = 1 << 23;
/// Most bytes one pickle may have; weights lie outside of it.
const MAX_BYTES: u64 = 1 << 28;

impl Pickle {
    /// Reads one pickle; `input` is left just behind it, so that files of several pickles can be read on.
    pub fn read(input: &mut impl BufRead) -> Result<Pickle, PickleError> {
        let mut machine = Machine {
            input: Input { input, left: MAX_BYTES },
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        let values = machine.values;
        Ok(Pickle { values, root })
    }
}

/// The pickle machine: a stack, marks on it, and a memo.
struct Machine<'a, R> {
    input: Input<'a, R>,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<R: BufRead> Machine<'_, R> {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let opcode = self.input.byte()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        if let Some(value) = self.value(opcode)? {
            return self.push(value);
        }
        match opcode {
            // Protocol and frames announce what follows.
            0x80 if self.input.byte()? > 5 => Err(PickleError::Unsupported("a pickle protocol above 5")),
            0x80 => Ok(()),
            0x95 => self.input.array::<8>().map(drop),

            b'(' => {
                self.grows(self.marks.len())?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                // Popping an empty frame removes its mark, as in Python.
                Some(&mark) if mark == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)
            }

            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(vec![(key, value)])
            }
            b'u' => {
                let items = pairs(self.pop_mark()?)?;
                self.insert(items)
            }
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                // Only objects have a state that is read.
                if let Value::Object(object) = self.value_mut(target) {
                    object.state = Some(state);
                }
                Ok(())
            }

            b'p' | b'q' | b'r' | 0x94 => {
                let index = self.memo_index(opcode)?;
                self.remember(index)
            }
            b'g' | b'h' | b'j' => {
                let index = self.memo_index(opcode)?;
                self.recall(index)
            }

            // A buffer marked read-only is the same buffer.
            0x98 => Ok(()),
            0x97 => Err(PickleError::Unsupported("buffers kept outside of the file")),
            0x82..=0x84 => Err(PickleError::Unsupported("registered extension codes")),
            other => Err(PickleError::Opcode(other)),
        }
    }

    /// The value that an instruction makes; None for one that does something else.
    fn value(&mut self, opcode: u8) -> Result<Option<Value>, PickleError> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 => Value::Bool(true),
            0x89 => Value::Bool(false),
            b'J' => Value::Int(i32::from_le_bytes(self.input.array()?).into()),
            b'K' => Value::Int(self.input.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.input.array()?).into()),
            b'I' => match self.input.line()?.as_str() {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                digits => decimal(digits)?,
            },
            b'L' => {
                let line = self.input.line()?;
                decimal(line.strip_suffix('L').unwrap_or(&line))?
            }
            0x8a | 0x8b => integer(self.input.counted(opcode == 0x8a)?),
            b'F' => {
                let value = self.input.line()?.trim().parse();
                Value::Float(value.map_err(|_| PickleError::Malformed("a number"))?)
            }
            b'G' => Value::Float(f64::from_be_bytes(self.input.array()?)),

            b'S' => {
                let line = self.input.line()?;
                let quoted = line.trim();
                let text = ['\'', '"'].iter().find_map(|quote| quoted.strip_prefix(*quote)?.strip_suffix(*quote));
                Value::Text(text.ok_or(PickleError::Malformed("a string without quotes"))?.to_owned())
            }
            b'V' => Value::Text(self.input.line()?),
            // Python 2 wrote texts as byte strings.
            b'T' | b'U' => text_or_bytes(self.input.counted(opcode == b'U')?),
            b'X' | 0x8c => text(self.input.counted(opcode == 0x8c)?),
            0x8d => text(self.input.counted8()?),
            b'B' | b'C' => {
                self.input.counted(opcode == b'C')?;
                Value::Bytes
            }
            0x8e | 0x96 => {
                self.input.counted8()?;
                Value::Bytes
            }

            b')' => Value::Tuple(Vec::new()),
            0x85 => Value::Tuple(self.pop_last(1)?),
            0x86 => Value::Tuple(self.pop_last(2)?),
            0x87 => Value::Tuple(self.pop_last(3)?),
            b't' => Value::Tuple(self.pop_mark()?),
            b']' => Value::List(Vec::new()),
            b'l' => Value::List(self.pop_mark()?),
            0x8f => Value::Set(Vec::new()),
            0x91 => Value::Set(self.pop_mark()?),
            b'}' => Value::Dict(Vec::new()),
            b'd' => Value::Dict(pairs(self.pop_mark()?)?),

            b'c' => self.input.class()?,
            0x93 => {
                let name = self.pop_text()?;
                let module = self.pop_text()?;
                Value::Class(Box::new(Class { module, name }))
            }
            b'R' | 0x81 => {
                let args = self.pop()?;
                object(self.pop()?, args)
            }
            0x92 => {
                let _keywords = self.pop()?;
                let args = self.pop()?;
                object(self.pop()?, args)
            }
            b'i' => {
                let class = self.input.class()?;
                let args = self.pop_mark()?;
                let class = self.add(class)?;
                object(class, self.add(Value::Tuple(args))?)
            }
            b'o' => {
                let mut args = self.pop_mark()?;
                if args.is_empty() {
                    return Err(PickleError::Malformed("an object without a class"));
                }
                let class = args.remove(0);
                object(class, self.add(Value::Tuple(args))?)
            }

            b'P' => {
                let line = self.input.line()?;
                Value::Persistent(self.add(Value::Text(line))?)
            }
            b'Q' => Value::Persistent(self.pop()?),
            _ => return Ok(None),
        };
        Ok(Some(value))
    }

    fn add(&mut self, value: Value) -> Result<Id, PickleError> {
        self.grows(self.values.len())?;
        let id = Id(self.values.len() as u32);
        self.values.push(value);
        Ok(id)
    }

    fn push(&mut self, value: Value) -> Result<(), PickleError> {
        let id = self.add(value)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        self.grows(self.stack.len())?;
        self.stack.push(id);
        Ok(())
    }

    fn grows(&self, length: usize) -> Result<(), PickleError> {
        if length < MAX_VALUES { Ok(()) } else { Err(PickleError::TooLarge) }
    }

    fn value_mut(&mut self, id: Id) -> &mut Value {
        &mut self.values[id.0 as usize]
    }

    /// Where the values above the last mark begin.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, PickleError> {
        let above = self.stack.get(self.floor()..).unwrap_or_default();
        let top = above.last().copied();
        top.ok_or(PickleError::Malformed("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop();
        let mark = mark.ok_or(PickleError::Malformed("there is no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_text(&mut self) -> Result<String, PickleError> {
        let id = self.pop()?;
        match &self.values[id.0 as usize] {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(PickleError::Malformed("a name that is no text")),
        }
    }

    /// The last values, in the order in which they were pushed.
    fn pop_last(&mut self, length: usize) -> Result<Vec<Id>, PickleError> {
        let mut items = (0..length).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        Ok(items)
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.value_mut(target) {
            Value::List(list) | Value::Set(list) => list.extend(items),
            Value::Object(object) => object.elements.extend(items),
            _ => return Err(PickleError::Malformed("elements for what is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<(Id, Id)>) -> Result<(), PickleError> {
        let target = self.top()?;
        match self.value_mut(target) {
            Value::Dict(dict) => dict.extend(items),
            Value::Object(object) => object.items.extend(items),
            _ => return Err(PickleError::Malformed("entries for what is no dict")),
        }
        Ok(())
    }

    fn remember(&mut self, index: u32) -> Result<(), PickleError> {
        self.grows(self.memo.len())?;
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), PickleError> {
        let id = self.memo.get(&index).copied();
        let id = id.ok_or(PickleError::Malformed("a memo that was never made"))?;
        self.push_id(id)
    }

    /// The memo's number in an instruction; the next one where it is not written.
    fn memo_index(&mut self, opcode: u8) -> Result<u32, PickleError> {
        match opcode {
            b'p' | b'g' => {
                let index = self.input.line()?.trim().parse();
                index.map_err(|_| PickleError::Malformed("a memo number"))
            }
            b'q' | b'h' => Ok(self.input.byte()?.into()),
            b'r' | b'j' => Ok(u32::from_le_bytes(self.input.array()?)),
            _ => Ok(self.memo.len() as u32),
        }
    }
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, PickleError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(PickleError::Malformed("a key without a value"));
    }
    Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
}

fn object(class: Id, args: Id) -> Value {
    Value::Object(Box::new(Object { class, args, state: None, items: Vec::new(), elements: Vec::new() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut bytes: &[u8]) -> Result<Pickle, PickleError> {
        Pickle::read(&mut bytes)
    }

    #[test]
    fn a_call_is_carried_along_and_never_made() {
        // What `pickle.dumps` makes of an object whose __reduce__ gives (os.system, ("touch /tmp/ran",)).
        let pickle = read(b"\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch /tmp/ran\x85R.").unwrap();
        let (module, name, args) = pickle.call(pickle.root()).unwrap();
        assert_eq!((module, name), ("posix", "system"));
        assert_eq!(pickle.text(args[0]), Some("touch /tmp/ran"));
    }

    #[test]
    fn any_value_may_be_a_key() {
        let pickle = read(b"\x80\x02}(cpl.callbacks\nModelCheckpoint\nK\x01K\x02K\x03\x86K\x04u.").unwrap();
        let entries = pickle.entries(pickle.root()).unwrap();
        assert_eq!(entries.len(), 2);
        let class = pickle.class(entries[0].0);
        assert_eq!(class, Some(("pl.callbacks", "ModelCheckpoint")));
    }

    #[test]
    fn integers_of_every_protocol() {
        let int = |bytes: &[u8]| {
            let pickle = read(bytes).unwrap();
            match pickle.get(pickle.root()) {
                Value::Int(value) => *value,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(int(b"I-7\n."), -7);
        assert_eq!(int(b"L12L\n."), 12);
        assert_eq!(int(b"\x8a\x00."), 0);
        assert_eq!(int(b"\x8a\x01\xff."), -1);
        assert_eq!(int(b"\x8a\x02\xff\x00."), 255);
        assert_eq!(int(b"J\xfe\xff\xff\xff."), -2);
    }

    #[test]
    fn a_list_inside_itself_is_no_trouble() {
        let pickle = read(b"]q\x00h\x00a.").unwrap();
        assert_eq!(pickle.sequence(pickle.root()), Some(&[pickle.root()][..]));
    }

    #[test]
    fn deep_nesting_is_no_trouble() {
        let mut bytes = vec![b'N'];
        bytes.extend(std::iter::repeat_n(0x85, 2_000_000));
        bytes.push(b'.');
        drop(read(&bytes).unwrap());
    }

    #[test]
    fn lengths_are_not_believed() {
        assert!(matches!(read(b"X\xff\xff\xff\x01abc"), Err(PickleError::Truncated)));
        let long = b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f";
        assert!(matches!(read(long), Err(PickleError::TooLarge)));
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [&b"."[..], b"", b"t.", b"(.", b"(K\x01ud.", b"h\x05.", b"}K\x01a.", b"\xfe", b"o.", b"(o.", b"0."]
        {
            assert!(read(bytes).is_err(), "{bytes:?}");
        }
    }
}
