#!/usr/bin/env bash
# Times training steps and the sum of a gradient on one and on two processes of one thread each on this machine (or on
# RANKS="1 2 4"), and writes the tables of docs/scaling.md: the measured one from that, the computed one from formulas.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
lcsc=${LCSC:-}
if [ -z "$lcsc" ]; then
  scripts/setup.sh
  cargo build --release --package lcsc-cli
  lcsc=target/release/lcsc
fi
out=.bench/scaling
rm -rf "$out" && mkdir -p "$out"
export OMP_NUM_THREADS=1
for ranks in ${RANKS:-1 2}; do
  launch=
  [ "$ranks" = 1 ] || launch="launch --nproc $ranks --"
  # shellcheck disable=SC2086
  "$lcsc" $launch bench train-tiny train-cifar10 --repeats 3 --json "$out/steps-$ranks.json"
  if [ "$ranks" != 1 ]; then
    for precision in f32 bf16; do
      # shellcheck disable=SC2086
      "$lcsc" $launch bench all-reduce --repeats 5 --precision $precision --json "$out/sum-$ranks-$precision.json"
    done
  fi
done
python3 scripts/scaling_table.py "$out" docs/scaling.md
