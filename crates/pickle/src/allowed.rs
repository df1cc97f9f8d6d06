//! The names that a pickle may mention.

/// Whether data needs this class or function: those of state dicts, of NumPy arrays, and of the modules that EDM's snapshots
/// hold, none of which is ever called.
pub fn is_allowed(module: &str, name: &str) -> bool {
    match module {
        "collections" => name == "OrderedDict",
        "_codecs" => name == "encode",
        "builtins" | "__builtin__" => {
            matches!(name, "set" | "frozenset" | "bytearray" | "dict" | "list" | "tuple" | "object")
        }
        "copyreg" | "copy_reg" => name == "_reconstructor",
        "torch" => name.ends_with("Storage") || is_dtype(name) || matches!(name, "Size" | "device" | "Tensor"),
        "torch.cuda" => name.ends_with("Storage"),
        "torch.storage" => matches!(name, "_load_from_bytes" | "TypedStorage" | "UntypedStorage"),
        "torch._utils" => matches!(name, "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_parameter"),
        "torch.nn.parameter" => name == "Parameter",
        "numpy.core.multiarray" | "numpy._core.multiarray" => matches!(name, "_reconstruct" | "scalar"),
        "numpy.core.numeric" | "numpy._core.numeric" => name == "_frombuffer",
        "numpy" => matches!(name, "ndarray" | "dtype"),
        "torch_utils.persistence" => name == "_reconstruct_persistent_obj",
        "dnnlib.util" => name == "EasyDict",
        _ => module.starts_with("torch.nn.modules."),
    }
}

fn is_dtype(name: &str) -> bool {
    const TYPES: [&str; 10] =
        ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"];
    TYPES.contains(&name)
}
