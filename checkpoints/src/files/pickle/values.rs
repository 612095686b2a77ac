//! What a pickle holds, and how it is looked at.

/// Why a pickle cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// The input ends inside the pickle, or cannot be read.
    #[error("it ends in the middle of a value")]
    Truncated,
    /// A byte that is no instruction.
    #[error("byte {0:#04x} is not a pickle instruction")]
    Opcode(u8),
    /// An instruction that does not fit what came before.
    #[error("a pickle instruction does not fit the values before it ({0})")]
    Malformed(&'static str),
    /// Something that only a running Python could provide.
    #[error("it needs {0}, which no checkpoint does")]
    Unsupported(&'static str),
    /// More than any real checkpoint holds.
    #[error("it holds more values than any real checkpoint")]
    TooLarge,
    /// The disk failed.
    #[error("{0}")]
    Io(std::io::Error),
}

impl From<std::io::Error> for PickleError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => PickleError::Truncated,
            _ => PickleError::Io(error),
        }
    }
}

/// Names a value of one [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(super) u32);

/// One Python value.
#[derive(Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond `i64`: two's complement, little-endian.
    BigInt(Vec<u8>),
    Float(f64),
    /// A byte string; nothing that is read from a checkpoint is one, so its content is dropped.
    Bytes,
    Text(String),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by name alone.
    Class(Box<Class>),
    /// What a call would have made.
    Object(Box<Object>),
    /// A reference to something outside of the pickle; torch's storages are such.
    Persistent(Id),
}

/// The name of a class or function.
#[derive(Debug)]
pub(crate) struct Class {
    pub module: String,
    pub name: String,
}

/// What a call would have made: the callable, its arguments, and what was put in afterwards.
#[derive(Debug)]
pub(crate) struct Object {
    pub class: Id,
    pub args: Id,
    pub state: Option<Id>,
    pub items: Vec<(Id, Id)>,
    pub elements: Vec<Id>,
}

/// One pickle, read to its end.
#[derive(Debug)]
pub(crate) struct Pickle {
    pub(super) values: Vec<Value>,
    pub(super) root: Id,
}

impl Pickle {
    /// The value that was pickled.
    pub fn root(&self) -> Id {
        self.root
    }

    /// The value with this name.
    pub fn get(&self, id: Id) -> &Value {
        // Ids are made by pushing onto the arena, which never shrinks.
        &self.values[id.0 as usize]
    }

    /// Every value, in the order in which they were made.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// A text.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub fn unsigned(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple, a list or a `torch.Size`.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(ids) | Value::List(ids) => Some(ids),
            Value::Object(object) if self.class_is(object.class, "torch", "Size") => match self.get(object.args) {
                Value::Tuple(args) => match self.get(*args.first()?) {
                    Value::Tuple(ids) | Value::List(ids) => Some(ids),
                    _ => None,
                },
                _ => None,
            },
            _ => None,
        }
    }

    /// The entries of a dict or of an object filled like one (OrderedDict, defaultdict).
    pub fn entries(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        match self.get(id) {
            Value::Dict(items) => Some(items.clone()),
            Value::Object(object) if !object.items.is_empty() => Some(object.items.clone()),
            // Python 2 gives OrderedDict its entries as a list of pairs.
            Value::Object(object) if self.class_is(object.class, "collections", "OrderedDict") => {
                let Some(&pairs) = self.sequence(object.args)?.first() else {
                    return Some(Vec::new());
                };
                let pair = |&id| match self.sequence(id) {
                    Some(&[key, value]) => Some((key, value)),
                    _ => None,
                };
                self.sequence(pairs)?.iter().map(pair).collect()
            }
            _ => None,
        }
    }

    /// The attributes of an object such as `argparse.Namespace`.
    pub fn attributes(&self, id: Id) -> Option<Vec<(Id, Id)>> {
        match self.get(id) {
            Value::Object(object) => self.entries(object.state?),
            _ => None,
        }
    }

    /// A class or function's module and name.
    pub fn class(&self, id: Id) -> Option<(&str, &str)> {
        match self.get(id) {
            Value::Class(class) => Some((&class.module, &class.name)),
            _ => None,
        }
    }

    /// A call that Python would have made: module, name, arguments.
    pub fn call(&self, id: Id) -> Option<(&str, &str, &[Id])> {
        match self.get(id) {
            Value::Object(object) => {
                let (module, name) = self.class(object.class)?;
                Some((module, name, self.sequence(object.args)?))
            }
            _ => None,
        }
    }

    fn class_is(&self, id: Id, module: &str, name: &str) -> bool {
        self.class(id) == Some((module, name))
    }
}
