#!/usr/bin/env python3
"""Compiles our kernel for GPUs (crates/torch/csrc/norm.cu) by NVRTC, as a run on one does; no GPU is needed.

NVRTC is that of the CUDA build of torch in .libtorch, else of its package on PyPI (90 MB), which is kept in .libtorch/nvrtc.
"""

import ctypes
import pathlib
import subprocess
import sys
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "nvidia-cuda-nvrtc==13.0.88"
ARCHITECTURES = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]
TYPES = ["f32", "bf16", "f16"]


def library_folder():
    cuda = (ROOT / ".libtorch/cuda").resolve().parent.parent / "nvidia/cu13/lib"
    if (cuda / "libnvrtc.so.13").exists():
        return cuda
    kept = ROOT / ".libtorch/nvrtc"
    folder = kept / "nvidia/cu13/lib"
    if not (folder / "libnvrtc.so.13").exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", kept]
        subprocess.run([*pip, PACKAGE], check=True)
        for wheel in kept.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(kept, [name for name in archive.namelist() if "/lib/" in name])
            wheel.unlink()
    return folder


def compiled(nvrtc, text, architecture, value):
    """The length of the program, or an error with NVRTC's log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"norm.cu", 0, None, None) != 0:
        sys.exit("NVRTC takes no program")
    options = [f"--gpu-architecture={architecture}", f"--define-macro=VALUE={value}", "--std=c++17"]
    options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if nvrtc.nvrtcCompileProgram(program, len(options), options) != 0:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        sys.exit(f"norm.cu, {architecture}, {TYPES[value]}: {log.value.decode()}")
    nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return size.value


def main():
    folder = library_folder()
    # Found by its name when the compiler asks for it.
    ctypes.CDLL(str(folder / "libnvrtc-builtins.so.13.0"), ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(folder / "libnvrtc.so.13"))
    text = (ROOT / "crates/torch/csrc/norm.cu").read_bytes()
    for architecture in ARCHITECTURES:
        for value, name in enumerate(TYPES):
            began = time.perf_counter()
            size = compiled(nvrtc, text, architecture, value)
            print(f"norm.cu  {architecture:6}  {name:4}  {size} bytes in {time.perf_counter() - began:.2f} s")


main()
