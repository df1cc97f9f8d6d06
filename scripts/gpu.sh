#!/usr/bin/env bash
# The first nine minutes on a GPU: whether `lcsc` computes there what it computes on a CPU, how fast, and a real run.
#
#   scripts/gpu.sh --prepare KIT [--data CIFAR10.zip]   where cargo is: fills the folder KIT, at most 60 MB
#   scripts/gpu.sh [--kit KIT]                          on the GPU, in a copy of this tree with KIT: without cargo or network
#   scripts/gpu.sh --device cpu --tiny                  the same in small on a CPU
#
# Needed on the GPU: a Python (python3, or LCSC_PYTHON) with PyTorch 2.11, whose libraries `lcsc` opens. KIT is .gpu unless
# told. --out DIR (default: $OUT, else runs/gpu) gets summary.md and logs.tgz, written anew after each step. --seconds N (540)
# is what all may take: what no longer fits is skipped. A step that fails does not stop the next.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "gpu: $*" >&2; exit 2; }

export kit=.gpu device=cuda tiny=''
out=${OUT:-runs/gpu} seconds=540 prepare='' data=''
while [ $# -gt 0 ]; do
  case $1 in
    -h|--help) sed -n '2,11p' "$0" | cut -c3-; exit 0 ;;
    --tiny) tiny=yes; shift; continue ;;
    --*) [ $# -ge 2 ] || fail "$1 needs a value" ;;
  esac
  case $1 in
    --prepare) prepare=$2 ;;
    --kit) kit=$2 ;;
    --data) data=$2 ;;
    --device) device=$2 ;;
    --out) out=$2 ;;
    --seconds) seconds=$2 ;;
    *) fail "unknown option $1 (see --help)" ;;
  esac
  shift 2
done
if [ -n "$prepare" ]; then exec bash scripts/gpu/prepare.sh "$prepare" "$data"; fi

export lcsc=$kit/lcsc python=${LCSC_PYTHON:-python3}
command -v "$python" >/dev/null || fail "$python, which reads the results, is missing (LCSC_PYTHON names another)"
[ -x "$lcsc" ] || fail "$lcsc is missing: make it with scripts/gpu.sh --prepare $kit where cargo is, and copy it here"
# PyTorch's libraries, else those of scripts/setup.sh.
torch=$("$python" -c 'import importlib.util as u; print((u.find_spec("torch") or u.find_spec("os")).origin)')
torch=$(dirname "$torch")
if [ -e "$torch/lib/libtorch_cpu.so" ]; then
  grep -q "__version__ = '2\.11\." "$torch/version.py" || fail "$python has another PyTorch than 2.11 (LCSC_PYTHON names another)"
  libraries=$torch/lib$(printf ':%s' "$torch"/../nvidia/*/lib)
elif [ -e .libtorch/lib/libtorch_cpu.so ]; then
  libraries=$PWD/.libtorch/lib
else
  fail "$python has no PyTorch 2.11, whose libraries lcsc opens (LCSC_PYTHON names another; scripts/setup.sh fetches them)"
fi
export LD_LIBRARY_PATH=$(realpath "$kit"):$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Runs, and what the steps leave for each other; too large to keep.
work=$(mktemp -d) && export work LCSC_CACHE=${LCSC_CACHE:-$work/cache}
mkdir -p "$out" "$work/logs" "$LCSC_CACHE"
# Weights that images are judged by.
find "$kit" -maxdepth 1 -name '*.pth' -exec cp {} "$LCSC_CACHE" \;
running=''
trap 'if [ -n "$running" ]; then kill "$running" 2>/dev/null || true; wait; fi; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# One line for each step so far, and what it found as tables.
summary() {
  printf '# scripts/gpu.sh on %s\n\n| step | | seconds | |\n|---|---|---|---|\n' "$device"
  sed 's/^/| /; s/\t/ | /g; s/$/ |/' "$work/rows"
  local table
  for table in "$work"/logs/*.md; do
    [ ! -s "$table" ] || { printf '\n## %s\n\n' "$(basename "$table" .md)"; cat "$table"; }
  done
}

keep() {
  summary > "$out/summary.md"
  tar czf "$out/logs.tgz.new" -C "$work" logs
  mv "$out/logs.tgz.new" "$out/logs.tgz"
}

# What the running step failed of: what an error says first, else the last line.
reason() {
  { grep -m 1 -E '×|Error|error:|panicked' "$out/running.log" || tail -n 1 "$out/running.log"; } | cut -c-160
}

# step NAME SECONDS [LEAST]: the function of scripts/gpu/steps.sh, for at most so long where so much is left (a third unless
# told); all are shares of 540.
failed=0 deadline=$((SECONDS + seconds))
step() {
  local name=$1 limit=$(($2 * seconds / 540)) least=$((${3:-$(($2 / 3))} * seconds / 540)) left=$((deadline - SECONDS - 5)) began=$SECONDS status=0 said
  [ $limit -ge 5 ] || limit=5
  if [ $left -lt 5 ] || [ $left -lt $least ]; then
    said=skipped
    echo "no time left" > "$work/figures"
  else
    [ $limit -le $left ] || limit=$left
    : > "$work/figures"
    echo "gpu: $name, at most $limit s" >&2
    export limit
    timeout --kill-after 5 "$limit" bash scripts/gpu/steps.sh "$name" > "$out/running.log" 2>&1 &
    running=$!
    wait $running || status=$?
    running=''
    case $status in
      0) said=ok ;;
      77) said=skipped ;;
      124|137) said="timed out" failed=1 ;;
      *) said="failed ($status)" failed=1; reason >> "$work/figures" ;;
    esac
    mv "$out/running.log" "$work/logs/$name.log"
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$said" $((SECONDS - began)) "$(paste -sd '\t' "$work/figures" | sed 's/\t/; /g')" >> "$work/rows"
  keep
}

# The most telling ones first.
step devices 20
step samples 40
step smoke 40
step parity 45
step align 45
step outputs 45
step bench 60
step peers 80
step resume 60
step search 75
step kernels 60
step compile 90
step study 540 60

awk -F '\t' '{ printf "%-9s %-12s %4d s  %s\n", $1, $2, $3, $4 }' "$work/rows" | cut -c-240
echo "gpu: the tables are in $out/summary.md, all that was said in $out/logs.tgz"
exit $failed
