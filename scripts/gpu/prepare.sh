#!/usr/bin/env bash
# What scripts/gpu.sh carries to a machine without cargo: `prepare.sh KIT [CIFAR10.zip]`. LCSC=… and PARITY=… name binaries
# that are already built.
set -euo pipefail
kit=$1 data=${2:-}
LIMIT=60000000

fail() { echo "gpu: $*" >&2; exit 2; }

# The test binary of the parity files, which cargo names in a message.
parity() {
  cargo test --release --no-run --package lcsc-tests --test parity --message-format json |
    sed -n 's/.*"name":"parity".*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

[ -z "$data" ] || [ -f "$data" ] || fail "$data: there is no such file (expected an EDM zip of CIFAR-10)"
lcsc=${LCSC:-target/release/lcsc}
if [ -z "${LCSC:-}" ]; then
  scripts/setup.sh
  scripts/build_cuda.sh
  cargo build --release --package lcsc-cli
fi
parity=${PARITY:-$([ -n "${LCSC:-}" ] || parity)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$kit"
strip -o "$kit/lcsc" "$lcsc"
rm -f "$kit/parity"
if [ -n "$parity" ]; then strip -o "$kit/parity" "$parity"; else echo "gpu: without PARITY no parity files are checked" >&2; fi

cuda=.libtorch/liblcsc_cuda.so
rm -f "$kit/liblcsc_cuda.so"
if [ -e $cuda ]; then strip -o "$kit/liblcsc_cuda.so" $cuda; else echo "gpu: without $cuda (scripts/build_cuda.sh) there are no CUDA graphs" >&2; fi

# A network and what a CPU samples of it.
"$lcsc" --quiet train configs/tiny/smoke.toml --set device=cpu --set stage.0.nimg=512 --out "$work/run"
cp "$work/run/trajectory/ckpt-000000000512-raw.safetensors" "$kit/tiny.safetensors"
"$lcsc" --quiet sample --weights "$kit/tiny.safetensors" --n 64 --device cpu --out "$kit/tiny-cpu.npz"

rm -f "$kit/cifar10.zip" "$kit"/*.pth
if [ -n "$data" ]; then
  # What the search of the real run sees.
  cp .libtorch/weights/efficientnet-lite0-*.pth "$kit" || fail "EfficientNet-Lite0 is missing: run scripts/setup.sh"
  left=$((LIMIT - $(du -sb "$kit" | cut -f 1)))
  "${LCSC_PYTHON:-python3}" scripts/gpu/first_images.py "$data" "$kit/cifar10.zip" $left
fi
size=$(du -sb "$kit" | cut -f 1)
[ "$size" -le $LIMIT ] || fail "$kit holds $size bytes, more than $LIMIT: leave out what does not belong there"
echo "gpu: $kit is ready, $size bytes; on the GPU: scripts/gpu.sh --kit $kit"
