#!/usr/bin/env bash
# Times training steps and the sum of a gradient on one and on two processes of one thread each on this machine (or on
# RANKS="2 4"), and writes the tables of docs/scaling.md: the measured one from that, the computed one from formulas.
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
steps="bench train-tiny train-cifar10 --repeats 3"

# In turn, since machines are not always equally fast.
# shellcheck disable=SC2086
for round in 1 2 3; do
  "$lcsc" $steps --json "$out/steps-1-$round.json"
  for ranks in ${RANKS:-2}; do
    "$lcsc" launch --nproc "$ranks" -- $steps --json "$out/steps-$ranks-$round.json"
    # As many that know nothing of each other: what they share is the machine alone.
    for i in $(seq "$ranks"); do "$lcsc" $steps --json "$out/apart-$ranks-$round-$i.json" & done
    wait
    for precision in f32 bf16; do
      "$lcsc" launch --nproc "$ranks" -- bench all-reduce --repeats 5 --precision $precision \
        --json "$out/sum-$precision-$ranks-$round.json"
    done
  done
done
python3 scripts/scaling_table.py "$out" docs/scaling.md
