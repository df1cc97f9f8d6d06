#!/usr/bin/env bash
# Builds .libtorch/liblcsc_cuda.so, by which several GPUs compute together and work of a GPU is recorded (scripts/setup.sh --cuda
# calls this). It needs CUDA's headers, not its libraries: those that lie beside the CUDA build of torch, else the packages of
# PyPI. No GPU is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$PWD/.libtorch headers=$PWD/.libtorch/cuda-headers library=$PWD/.libtorch/liblcsc_cuda.so
sources=(crates/torch/csrc/nccl.cpp crates/torch/csrc/graph.cpp)

newest=$(ls -t "${sources[@]}" "$out/build-version" | head -n 1)
[ -e "$library" ] && [ "$library" -nt "$newest" ] && exit 0
# Of the versions that libtorch 2.11.0 was built with: the layout of its classes depends on them.
packages=('nvidia-cuda-runtime==13.0.96' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*')
nccl=$(find -L "$(readlink -f "$out/include")/../../nvidia/nccl/include" -name nccl.h -print -quit 2>/dev/null || true)
if [ -z "$nccl" ] || ! grep -q 'define NCCL_MINOR 28' "$nccl"; then packages+=('nvidia-nccl-cu13==2.28.9') nccl=; fi
if [ ! -e "$headers/ready" ]; then
  echo "setup: fetching CUDA's headers from PyPI"
  rm -rf "$headers" && mkdir -p "$headers/wheels"
  python3 -m pip download --quiet --no-deps --dest "$headers/wheels" --only-binary=:all: "${packages[@]}" ||
    { echo "setup: pip could not fetch ${packages[*]}: check the network" >&2; exit 1; }
  python3 - "$headers" <<'PY'
import glob, sys, zipfile
for wheel in glob.glob(sys.argv[1] + "/wheels/*.whl"):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(sys.argv[1], [n for n in z.namelist() if "/include/" in n])
PY
  rm -r "$headers/wheels"
  touch "$headers/ready"
fi
cuda=$headers/nvidia/cu13/include
echo "setup: building liblcsc_cuda.so"
c++ -std=c++17 -O2 -fPIC -shared -w -fvisibility=hidden -DUSE_C10D_NCCL -I crates/torch/csrc/stubs/cuda \
  -I "$out/include" -I "$out/include/torch/csrc/api/include" -I "$cuda" -I "$cuda/cccl" \
  -I "$(dirname "${nccl:-$headers/nvidia/nccl/include/nccl.h}")" -o "$library" "${sources[@]}"
