//! Tensors out of the graph of a pickle: of state dicts, and of modules, whose classes are never rebuilt.

use super::container::read_legacy;
use super::storage::{Storage, Storages, named};
use lcsc_pickle::{Id, Node, Pickle};
use lcsc_torch::{Error, Result, Tensor, bail};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

/// How deep modules may lie in one another.
const DEPTH: usize = 64;
/// How many times a file's length its tensors and their names may take.
const COPIES: usize = 4;
/// What a tensor takes beside its values and its name, in bytes.
const OVERHEAD: usize = 32;
/// Entries of a dict that are looked at for networks: checkpoints have a few.
const ENTRIES: usize = 256;

/// A network in a graph.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    /// A dict of tensors.
    StateDict(Id),
    /// The state of a module, a dict with `_parameters`, `_buffers` and `_modules`.
    Module(Id),
}

/// A pickle with the storages that it names.
pub(super) struct Graph<'a> {
    pickle: &'a Pickle<'a>,
    storages: Storages<'a>,
    /// Storages inside the pickle, by the node of their bytes.
    nested: HashMap<Id, Storage<'a>>,
    /// Bytes that tensors may still take: many may be views of one storage, but not so many that a small file fills the memory.
    budget: usize,
    /// Entries of modules that may still be looked at: they may share one another.
    steps: usize,
}

impl<'a> Graph<'a> {
    /// For a file of `length` bytes.
    pub(super) fn new(pickle: &'a Pickle<'a>, storages: Storages<'a>, length: usize) -> Self {
        let budget = length.saturating_mul(COPIES);
        Self { pickle, storages, nested: HashMap::new(), budget, steps: pickle.length().saturating_mul(COPIES) }
    }

    pub(super) fn root(&self) -> Id {
        self.pickle.root()
    }

    pub(super) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        self.pickle.get(dict, key)
    }

    /// The network that a node is, if it is one.
    pub(super) fn network(&self, id: Id) -> Option<Found> {
        if let Some(entries) = self.pickle.entries(id) {
            let all = !entries.is_empty() && entries.iter().all(|(_, value)| self.is_tensor(*value));
            return all.then_some(Found::StateDict(id));
        }
        self.module_state(id).map(Found::Module)
    }

    /// The networks in a dict, by their keys.
    pub(super) fn networks(&self, id: Id) -> Vec<(String, Found)> {
        let named = |(key, value): &(Id, Id)| Some((self.pickle.text(*key).ok()?.to_string(), self.network(*value)?));
        self.pickle.entries(id).into_iter().flatten().take(ENTRIES).filter_map(named).collect()
    }

    /// The tensors of a network, by their names in its state dict.
    pub(super) fn tensors(&mut self, found: Found) -> Result<Vec<(String, Tensor)>> {
        let mut tensors = Vec::new();
        match found {
            Found::StateDict(id) => self.collect(id, "", &HashSet::new(), &mut tensors)?,
            Found::Module(state) => self.module(state, "", 0, &mut tensors)?,
        }
        if tensors.is_empty() {
            bail!("holds a network without tensors");
        }
        Ok(tensors)
    }

    /// The state of a module: EDM's classes are rebuilt from a dict with their source and state, PyTorch's have a state.
    fn module_state(&self, id: Id) -> Option<Id> {
        let object = self.pickle.object(id)?;
        let state = match self.pickle.global(object.callee)? {
            ("torch_utils.persistence", _) => {
                let meta = *self.pickle.tuple(object.args).ok()?.first()?;
                self.pickle.get(meta, "state")?
            }
            (module, _) if module.starts_with("torch.nn.modules.") || module == "copyreg" => object.state?,
            _ => return None,
        };
        self.pickle.get(state, "_modules").map(|_| state)
    }

    fn module(&mut self, state: Id, prefix: &str, depth: usize, tensors: &mut Vec<(String, Tensor)>) -> Result<()> {
        if depth > DEPTH {
            bail!("its modules lie more than {DEPTH} deep");
        }
        self.look(state)?;
        let unsaved = self.unsaved(state)?;
        for part in ["_parameters", "_buffers"] {
            if let Some(dict) = self.pickle.get(state, part) {
                self.collect(dict, prefix, &unsaved, tensors)?;
            }
        }
        let children =
            self.pickle.get(state, "_modules").and_then(|dict| self.pickle.entries(dict)).unwrap_or_default();
        for &(name, child) in children {
            self.look(child)?;
            let name = self.text(name)?;
            match self.module_state(child) {
                Some(state) => self.module(state, &format!("{prefix}{name}."), depth + 1, tensors)?,
                None if matches!(self.pickle.node(child), Node::None) => {}
                None => bail!("its module `{prefix}{name}` is of a kind that is not known here"),
            }
        }
        Ok(())
    }

    /// Counts the entries of what a node holds: modules may share parts, but a small file is not to take hours.
    fn look(&mut self, id: Id) -> Result<()> {
        let within = |id| self.pickle.entries(id).map_or(1, |entries| 1 + entries.len());
        let object = self.pickle.object(id);
        let parts = object.map_or(0, |object| {
            let meta = self.pickle.tuple(object.args).ok().and_then(|args| args.first().copied());
            meta.map_or(0, within) + object.state.map_or(0, within)
        });
        match self.steps.checked_sub(within(id) + parts) {
            Some(left) => self.steps = left,
            None => bail!("its modules hold one another"),
        }
        Ok(())
    }

    /// The buffers of a module that its state dict leaves out.
    fn unsaved(&mut self, state: Id) -> Result<HashSet<&'a str>> {
        let Some(set) = self.pickle.get(state, "_non_persistent_buffers_set") else { return Ok(HashSet::new()) };
        // Before protocol 4 a set is a call with a list.
        let items = match self.pickle.node(set) {
            Node::Set(items) => Some(items.as_slice()),
            Node::Object(object) => {
                self.pickle.tuple(object.args).ok().and_then(|args| self.pickle.tuple(*args.first()?).ok())
            }
            _ => None,
        };
        let items = items.unwrap_or_default();
        self.steps = self.steps.checked_sub(items.len()).ok_or_else(|| Error::msg("its modules hold one another"))?;
        Ok(items.iter().filter_map(|&name| self.pickle.text(name).ok()).collect())
    }

    /// The tensors of a dict; entries that are `None` are left out, as PyTorch does.
    fn collect(
        &mut self,
        dict: Id,
        prefix: &str,
        unsaved: &HashSet<&str>,
        tensors: &mut Vec<(String, Tensor)>,
    ) -> Result<()> {
        self.look(dict)?;
        for &(key, value) in self.pickle.entries(dict).unwrap_or_default() {
            let key = self.text(key)?;
            if matches!(self.pickle.node(value), Node::None) || unsaved.contains(key) {
                continue;
            }
            self.spend(prefix.len() + key.len() + OVERHEAD)?;
            let name = format!("{prefix}{key}");
            let tensor = self.tensor(value).map_err(|e| Error::msg(format!("its tensor `{name}`: {e}")))?;
            tensors.push((name, tensor));
        }
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        match self.budget.checked_sub(bytes) {
            Some(left) => self.budget = left,
            None => bail!("the file's tensors take many times its own length"),
        }
        Ok(())
    }

    fn text(&self, id: Id) -> Result<&'a str> {
        self.pickle.text(id).map_err(|e| Error::msg(e.to_string()))
    }

    fn is_tensor(&self, id: Id) -> bool {
        self.pickle
            .object(id)
            .is_some_and(|object| matches!(self.pickle.global(object.callee), Some(("torch._utils", _))))
    }

    fn tensor(&mut self, id: Id) -> Result<Tensor> {
        let pickle = self.pickle;
        let Some(object) = pickle.object(id).filter(|_| self.is_tensor(id)) else { bail!("is no tensor") };
        let args = pickle.tuple(object.args).map_err(|e| Error::msg(e.to_string()))?;
        match (pickle.global(object.callee), args) {
            // A parameter is a tensor with a flag; it holds no further one.
            (Some((_, "_rebuild_parameter")), &[tensor, ..]) => match pickle.object(tensor) {
                Some(inner) if !pickle.is_global(inner.callee, "torch._utils", "_rebuild_parameter") => {
                    self.tensor(tensor)
                }
                _ => bail!("is a parameter without tensor"),
            },
            (_, &[storage, offset, size, stride, ..]) => {
                let int = |id| pickle.int(id).map_err(|e| Error::msg(e.to_string()));
                let ints = |id: Id| -> Result<Vec<i64>> {
                    pickle.tuple(id).map_err(|e| Error::msg(e.to_string()))?.iter().map(|&id| int(id)).collect()
                };
                let (offset, size, stride) = (int(offset)?, ints(size)?, ints(stride)?);
                let budget = self.budget;
                let tensor = self.storage(storage)?.view(offset, &size, &stride, budget)?;
                self.spend(tensor.numel() * tensor.kind().elt_size_in_bytes())?;
                Ok(tensor)
            }
            _ => bail!("is a tensor of an unknown make"),
        }
    }

    fn storage(&mut self, id: Id) -> Result<&Storage<'a>> {
        let pickle = self.pickle;
        match pickle.node(id) {
            Node::Persistent(name) => {
                let (key, kind) = named(pickle, *name)?;
                self.storages.get(key, kind)
            }
            Node::Object(object) if pickle.is_global(object.callee, "torch.storage", "_load_from_bytes") => {
                let &[bytes] = pickle.tuple(object.args).map_err(|e| Error::msg(e.to_string()))? else {
                    bail!("lies in a storage without bytes")
                };
                Ok(match self.nested.entry(bytes) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(nested(pickle, bytes)?),
                })
            }
            _ => bail!("lies in something that is no storage"),
        }
    }
}

/// The storage in the bytes of a legacy stream of its own.
fn nested<'a>(pickle: &Pickle<'a>, bytes: Id) -> Result<Storage<'a>> {
    let wrong = |e: &dyn std::fmt::Display| Error::msg(format!("its storage is no stream of torch.save's ({e})"));
    let Node::Bytes(bytes) = pickle.node(bytes) else { return Err(wrong(&"no bytes")) };
    let (inner, mut storages) = read_legacy(bytes)?;
    let Node::Persistent(name) = inner.node(inner.root()) else { return Err(wrong(&"another object")) };
    let (key, _) = named(&inner, *name)?;
    storages.remove(key).ok_or_else(|| wrong(&"without the storage that it names"))
}
