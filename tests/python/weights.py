"""Writes weights as PyTorch programs do, and reads back what lcsc exports: the other side of tests/tests/interop.rs.

weights.py write FOLDER         files of tensors with the names and shapes in FOLDER/shapes.json
weights.py check FILE FOLDER    an exported state dict against these tensors
"""
import collections
import json
import pickle
import sys
import types

import torch


def tensors(folder):
    """Tensors of the shapes in shapes.json, with values that all bits of a float matter for."""
    shapes = json.load(open(f"{folder}/shapes.json"))
    generator = torch.Generator().manual_seed(1)
    return collections.OrderedDict((name, torch.randn(shape, generator=generator)) for name, shape in shapes.items())


def modules(state):
    """Nested modules that pickle as EDM's persistent classes do: a call of a function with a dict of source and state."""
    persistence = types.ModuleType("torch_utils.persistence")
    sys.modules["torch_utils"] = types.ModuleType("torch_utils")
    sys.modules["torch_utils.persistence"] = persistence

    def _reconstruct_persistent_obj(meta):
        raise RuntimeError("never called here")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj

    class Module(torch.nn.Module):
        def __reduce__(self):
            meta = dict(type="class", version=6, module_src="raise SystemExit", class_name="Module", state=self.__dict__)
            return _reconstruct_persistent_obj, (meta,), None

    def put(module, path, name, tensor):
        *parents, last = path
        for part in parents:
            if part not in module._modules:
                module.add_module(part, torch.nn.ModuleDict() if part in ("enc", "dec") else Module())
            module = module._modules[part]
        if "resample_filter" in last or "freqs" in last:
            module.register_buffer(last, tensor)
        else:
            module.register_parameter(last, torch.nn.Parameter(tensor))

    root = Module()
    for name, tensor in state.items():
        put(root, name.split("."), name, tensor)
    return root


def write(folder):
    state = tensors(folder)
    torch.save(state, f"{folder}/zip.pt")
    torch.save(state, f"{folder}/legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, f"{folder}/wrapped.pth")
    # A view into a larger, transposed storage.
    strided = {k: (v.t().contiguous().t() if v.dim() == 2 else v) for k, v in state.items()}
    torch.save(strided, f"{folder}/strided.pt")
    net = modules(state).eval().requires_grad_(False)
    with open(f"{folder}/network-snapshot-000123.pkl", "wb") as f:
        pickle.dump(dict(ema=net, loss_fn=None, dataset_kwargs={"path": "x"}), f)
    torch.save(dict(net=net, optimizer_state={}), f"{folder}/training-state-000123.pt")


def check(path, folder):
    found, expected = torch.load(path, weights_only=True), tensors(folder)
    assert sorted(found) == sorted(expected), set(found) ^ set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor), name
    print(f"{len(found)} tensors are the same")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])
