//! The stack machine that a pickle is a program for (Python's `pickletools` lists the opcodes).

use crate::allowed::is_allowed;
use crate::error::{Error, Result};
use crate::node::{Id, Node, Object, Pickle};
use std::borrow::Cow;
use std::collections::HashMap;

impl<'a> Pickle<'a> {
    /// Reads the pickle that `input` begins with, protocols 2 to 5, and what of 0 and 1 has no quoted strings.
    ///
    /// # Errors
    /// It is cut off or damaged, has an opcode that data does not need, or names a class or function that is not on the list.
    pub fn parse(input: &'a [u8]) -> Result<Pickle<'a>> {
        let mut machine =
            Machine { input, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
        loop {
            let at = machine.at;
            let code = machine.byte()?;
            if code == b'.' {
                let root = machine.pop()?;
                return Ok(Pickle { nodes: machine.nodes, root, length: machine.at });
            }
            machine.step(code, at)?;
        }
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, code: u8, at: usize) -> Result<()> {
        match code {
            0x80 => drop(self.take(1)?), // protocol
            0x95 => drop(self.take(8)?), // frame
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'I' | b'L' | b'F' | b'V' => self.line_value(code)?,
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(code)?,
            b'G' => {
                let bits = self.array::<8>()?;
                self.push(Node::Float(f64::from_be_bytes(bits)));
            }
            b'T' | b'U' | b'B' | b'C' | 0x8e | 0x96 => {
                let bytes = self.counted(code)?;
                self.push(Node::Bytes(bytes));
            }
            b'X' | 0x8c | 0x8d => {
                let bytes = self.counted(code)?;
                let text = std::str::from_utf8(bytes).map_err(|_| self.damaged("text that is not UTF-8"))?;
                self.push(Node::Text(Cow::Borrowed(text)));
            }
            b')' | b't' | 0x85..=0x87 | b']' | b'l' | b'}' | b'd' | 0x8f | 0x91 => self.container(code)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(code)?,
            b'c' | 0x93 => self.global(code)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.object(code)?,
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memory(code)?,
            code => return Err(Error::Opcode { code, at }),
        }
        Ok(())
    }

    /// Numbers and text of protocol 0.
    fn line_value(&mut self, code: u8) -> Result<()> {
        let line = self.line()?;
        let node = match (code, line) {
            (b'I', "00") => Some(Node::Bool(false)),
            (b'I', "01") => Some(Node::Bool(true)),
            (b'I', line) => line.parse().ok().map(Node::Int),
            (b'L', line) => line.trim_end_matches('L').parse().ok().map(Node::Int),
            (b'F', line) => line.parse().ok().map(Node::Float),
            (_, line) => (!line.contains('\\')).then(|| Node::Text(line.into())),
        };
        self.push(node.ok_or_else(|| self.damaged(&format!("`{}` is no value", line.escape_debug())))?);
        Ok(())
    }

    fn integer(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.byte()?.into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            _ => {
                let length =
                    if code == 0x8a { self.byte()?.into() } else { u32::from_le_bytes(self.array()?) as usize };
                let bytes = self.take(length)?;
                match bytes.last() {
                    None => Node::Int(0),
                    Some(_) if length > 8 => Node::Long(bytes),
                    Some(high) => {
                        let mut whole = [if high & 0x80 == 0 { 0 } else { 0xff }; 8];
                        whole[..length].copy_from_slice(bytes);
                        Node::Int(i64::from_le_bytes(whole))
                    }
                }
            }
        };
        self.push(node);
        Ok(())
    }

    /// Bytes after their number.
    fn counted(&mut self, code: u8) -> Result<&'a [u8]> {
        let length = match code {
            b'U' | b'C' | 0x8c => self.byte()?.into(),
            b'T' | b'B' | b'X' => u32::from_le_bytes(self.array()?).into(),
            _ => u64::from_le_bytes(self.array()?),
        };
        self.take(usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn container(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b')' => Node::Tuple(Vec::new()),
            b']' => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            0x8f => Node::Set(Vec::new()),
            b't' => Node::Tuple(self.pop_to_mark()?),
            b'l' => Node::List(self.pop_to_mark()?),
            0x91 => Node::Set(self.pop_to_mark()?),
            b'd' => {
                let items = self.pop_to_mark()?;
                Node::Dict(self.pairs(&items)?)
            }
            _ => {
                let n = usize::from(code - 0x84);
                let first =
                    self.stack.len().checked_sub(n).filter(|first| self.marks.last().is_none_or(|m| m <= first));
                let first = first.ok_or_else(|| self.damaged("a tuple of more than there is"))?;
                Node::Tuple(self.stack.split_off(first))
            }
        };
        self.push(node);
        Ok(())
    }

    /// Puts elements or entries into what lies below them.
    fn fill(&mut self, code: u8) -> Result<()> {
        let items = match code {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.top()?;
        let entries = matches!(code, b's' | b'u');
        let pairs = if entries { self.pairs(&items)? } else { Vec::new() };
        match &mut self.nodes[target.0] {
            Node::List(list) | Node::Set(list) if !entries => list.extend(items),
            Node::Dict(dict) if entries => dict.extend(pairs),
            Node::Object(object) if entries => object.entries.extend(pairs),
            Node::Object(object) => object.elements.extend(items),
            _ => return Err(self.damaged("what is filled is no container")),
        }
        Ok(())
    }

    fn global(&mut self, code: u8) -> Result<()> {
        let (module, name) = if code == b'c' {
            (Cow::Borrowed(self.line()?), Cow::Borrowed(self.line()?))
        } else {
            let name = self.pop_text()?;
            (self.pop_text()?, name)
        };
        if !is_allowed(&module, &name) {
            let shown: String = format!("{module}.{name}").chars().take(100).collect();
            return Err(Error::Forbidden(shown));
        }
        self.push(Node::Global { module, name });
        Ok(())
    }

    fn object(&mut self, code: u8) -> Result<()> {
        match code {
            b'b' => {
                let state = self.pop()?;
                let target = self.top()?;
                match &mut self.nodes[target.0] {
                    Node::Object(object) => object.state = Some(state),
                    _ => return Err(self.damaged("state for what is no object")),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Node::Persistent(id));
            }
            _ => {
                // With keyword arguments: nothing here reads them.
                if code == 0x92 {
                    self.pop()?;
                }
                let args = self.pop()?;
                let callee = self.pop()?;
                if !matches!(self.nodes[callee.0], Node::Global { .. }) {
                    return Err(self.damaged("a call of what is no class or function"));
                }
                self.push(Node::Object(Box::new(Object {
                    callee,
                    args,
                    state: None,
                    entries: Vec::new(),
                    elements: Vec::new(),
                })));
            }
        }
        Ok(())
    }

    fn memory(&mut self, code: u8) -> Result<()> {
        let key = match code {
            b'p' | b'g' => self.line()?.parse().map_err(|_| self.damaged("a memo without number"))?,
            b'q' | b'h' => self.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.array()?).into(),
            _ => self.memo.len() as u64,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or_else(|| self.damaged(&format!("memo {key} is empty")))?;
            self.stack.push(id);
        } else {
            let id = self.top()?;
            self.memo.insert(key, id);
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(Id(self.nodes.len()));
        self.nodes.push(node);
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().ok_or_else(|| self.damaged("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        if self.marks.last() == Some(&self.stack.len()) {
            return Err(self.damaged("a mark lies where a value is expected"));
        }
        self.stack.pop();
        Ok(id)
    }

    fn pop_text(&mut self) -> Result<Cow<'a, str>> {
        let id = self.pop()?;
        match &self.nodes[id.0] {
            Node::Text(text) => Ok(text.clone()),
            _ => Err(self.damaged("the name of a class is no text")),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged("no mark on the stack"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        let (pairs, rest) = items.as_chunks::<2>();
        match rest {
            [] => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(self.damaged("a key without value")),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Damaged { at: self.at, what: what.into() }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end =
            self.at.checked_add(n).filter(|&end| end <= self.input.len()).ok_or(Error::CutOff(self.input.len()))?;
        let bytes = &self.input[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Error::CutOff(self.at))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.input[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or(Error::CutOff(self.input.len()))?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| self.damaged("a line that is not UTF-8"))
    }
}
