#!/usr/bin/env bash
# Times `lcsc` and the same works in plain PyTorch, NumPy and SciPy in turn on this machine, and prints the ratios.
#
#   scripts/bench.sh                  on the CPU (about 25 minutes on two cores, 5 GB for the peer's PyTorch)
#   scripts/bench.sh --device cuda    on a GPU as well prepared as scripts/setup.sh --cuda
#   scripts/bench.sh --works "merge merge-many" --rounds 3 --repeats 5
#
# What both compute is compared first. Times are medians over all rounds and repeats; each round times one side after the
# other. The peer lives in .bench/venv; results in .bench/<device>/. LCSC=… uses a binary that is already built.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

device=cpu rounds=2 repeats=3 works=
threads=${OMP_NUM_THREADS:-$(nproc)}
while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) sed -n '2,10p' "$0" | cut -c3-; exit 0 ;;
    --*) [ $# -ge 2 ] || { echo "bench: $1 needs a value" >&2; exit 2; } ;;
  esac
  case $1 in
    --device) device=$2 ;;
    --rounds) rounds=$2 ;;
    --repeats) repeats=$2 ;;
    --works) works=$2 ;;
    --threads) threads=$2 ;;
    *) echo "bench: unknown option $1 (see --help)" >&2; exit 2 ;;
  esac
  shift 2
done
all="train-tiny train-cifar10 train-imagenet64 checkpoint sample-one-step sample-heun merge merge-many features frechet evaluation fid"
works=${works:-$all}
export OMP_NUM_THREADS=$threads

lcsc=${LCSC:-}
if [ -z "$lcsc" ]; then
  scripts/setup.sh
  cargo build --release --package lcsc-cli
  lcsc=target/release/lcsc
fi
# A PyTorch of the same version that is already there serves as well.
python=.bench/venv/bin/python
if python3 -c 'import torch, scipy, safetensors; assert torch.__version__.split("+")[0] == "2.11.0"' 2>/dev/null; then
  python=python3
elif [ ! -x .bench/venv/ready ]; then
  python3 -m venv .bench/venv
  .bench/venv/bin/pip install --quiet torch==2.11.0 numpy scipy safetensors
  ln -sf bin/python .bench/venv/ready
fi
out=.bench/${device%%:*}
rm -rf "$out" && mkdir -p "$out"

peer="$python scripts/bench/peer.py"
# The peer has no checkpoints to write.
of_peer=${works//checkpoint/}
modes="f32"
[ "$device" = cpu ] || modes="f32 f16 bf16 bf16-compile"

# shellcheck disable=SC2046,SC2086
{
  "$lcsc" --quiet bench --outputs "$out/outputs" --device "$device" $works
  $peer check "$out/outputs"
  rm -r "$out/outputs"
  for round in $(seq "$rounds"); do
    "$lcsc" --quiet bench --device "$device" --repeats "$repeats" --json "$out/lcsc-$round.json" $works
    if [ "$device" != cpu ]; then
      "$lcsc" --quiet bench --device "$device" --repeats "$repeats" --precision bf16 --json "$out/lcsc-bf16-$round.json" \
        $(for w in $works; do case $w in train-*) echo "$w" ;; esac; done)
    fi
    [ -z "${of_peer// /}" ] ||
      $peer time --device "$device" --threads "$threads" --repeats "$repeats" --modes $modes --json "$out/peer-$round.json" $of_peer
  done
}
$python scripts/bench/table.py "$out" | tee "$out/table.md"
