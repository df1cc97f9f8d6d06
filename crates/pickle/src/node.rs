//! The graph that a pickle stands for.

use crate::error::{Error, Result};
use std::borrow::Cow;

/// The place of a node in its pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub(crate) usize);

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A longer integer: two's complement, little-endian.
    Long(&'a [u8]),
    /// A float.
    Float(f64),
    /// Bytes, a bytearray, or a `str` of Python 2.
    Bytes(&'a [u8]),
    /// Text.
    Text(Cow<'a, str>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A set or frozenset.
    Set(Vec<Id>),
    /// A dict, in its order.
    Dict(Vec<(Id, Id)>),
    /// The name of a class or function.
    Global {
        /// Its module.
        module: Cow<'a, str>,
        /// Its own name.
        name: Cow<'a, str>,
    },
    /// What a call would give.
    Object(Box<Object>),
    /// A value that is kept outside the pickle, by its persistent id.
    Persistent(Id),
}

/// A call that is not made: a class or function, its arguments, and what was then put into the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Class or function.
    pub callee: Id,
    /// Arguments, a tuple.
    pub args: Id,
    /// What `__setstate__` would be given.
    pub state: Option<Id>,
    /// What would be put into it as into a dict.
    pub entries: Vec<(Id, Id)>,
    /// What would be appended to it.
    pub elements: Vec<Id>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle<'a> {
    pub(crate) nodes: Vec<Node<'a>>,
    pub(crate) root: Id,
    pub(crate) length: usize,
}

impl<'a> Pickle<'a> {
    /// The value that it stands for.
    pub fn root(&self) -> Id {
        self.root
    }

    /// How many bytes of the input it took; others may follow.
    pub fn length(&self) -> usize {
        self.length
    }

    /// A node.
    pub fn node(&self, id: Id) -> &Node<'a> {
        &self.nodes[id.0]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node<'a>] {
        &self.nodes
    }

    /// An integer.
    ///
    /// # Errors
    /// It is something else.
    pub fn int(&self, id: Id) -> Result<i64> {
        match self.node(id) {
            Node::Int(i) => Ok(*i),
            other => Err(unexpected("an integer", other)),
        }
    }

    /// Text; also bytes that are UTF-8, as Python 2 has it.
    ///
    /// # Errors
    /// It is something else.
    pub fn text(&self, id: Id) -> Result<&str> {
        match self.node(id) {
            Node::Text(text) => Ok(text),
            Node::Bytes(bytes) => {
                std::str::from_utf8(bytes).map_err(|_| Error::Unexpected("bytes that are no text".into()))
            }
            other => Err(unexpected("text", other)),
        }
    }

    /// Bytes; also text that stands for them in Latin-1, as Python 3 writes them for Python 2.
    ///
    /// # Errors
    /// It is something else.
    pub fn bytes(&self, id: Id) -> Result<Cow<'a, [u8]>> {
        match self.node(id) {
            Node::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Node::Object(object) if self.is_global(object.callee, "_codecs", "encode") => {
                let text =
                    self.text(*self.tuple(object.args)?.first().ok_or_else(|| wrong("encode() without text"))?)?;
                let latin: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                latin.map(Cow::Owned).ok_or_else(|| wrong("bytes in text that is not Latin-1"))
            }
            other => Err(unexpected("bytes", other)),
        }
    }

    /// The elements of a tuple or list.
    ///
    /// # Errors
    /// It is something else.
    pub fn tuple(&self, id: Id) -> Result<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Ok(items),
            other => Err(unexpected("a tuple", other)),
        }
    }

    /// The entries of a dict, or of an object that is one (`OrderedDict`, `EasyDict`).
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(entries) => Some(entries),
            Node::Object(object) if self.is_dict_class(object.callee) => Some(&object.entries),
            _ => None,
        }
    }

    /// The value of a text key of a dict.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        self.entries(id)?.iter().rev().find(|(k, _)| self.text(*k) == Ok(key)).map(|(_, value)| *value)
    }

    /// Whether a node is this class or function.
    pub fn is_global(&self, id: Id, module: &str, name: &str) -> bool {
        matches!(self.node(id), Node::Global { module: m, name: n } if m == module && n == name)
    }

    /// Module and name of a class or function.
    pub fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// An object.
    pub fn object(&self, id: Id) -> Option<&Object> {
        match self.node(id) {
            Node::Object(object) => Some(object),
            _ => None,
        }
    }

    fn is_dict_class(&self, callee: Id) -> bool {
        self.is_global(callee, "collections", "OrderedDict") || self.is_global(callee, "dnnlib.util", "EasyDict")
    }
}

fn wrong(what: &str) -> Error {
    Error::Unexpected(what.into())
}

pub(crate) fn unexpected(expected: &str, found: &Node) -> Error {
    let kind = match found {
        Node::None => "None",
        Node::Bool(_) => "a truth value",
        Node::Int(_) | Node::Long(_) => "an integer",
        Node::Float(_) => "a float",
        Node::Bytes(_) => "bytes",
        Node::Text(_) => "text",
        Node::Tuple(_) => "a tuple",
        Node::List(_) => "a list",
        Node::Set(_) => "a set",
        Node::Dict(_) => "a dict",
        Node::Global { name, .. } => {
            return Error::Unexpected(format!("expected {expected}, found the class `{name}`"));
        }
        Node::Object(_) => "an object",
        Node::Persistent(_) => "a value outside the pickle",
    };
    Error::Unexpected(format!("expected {expected}, found {kind}"))
}
