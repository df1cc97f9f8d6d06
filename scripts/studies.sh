#!/usr/bin/env bash
# Trains the models of docs/search.md and prints its tables. On an idle machine: budgets are in seconds.
#   scripts/studies.sh [CIFAR-10.zip]      the zip is an EDM dataset; without it the tables of CIFAR-10 are left out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
cargo build --release --package lcsc-cli
lcsc=target/release/lcsc
methods=ema-grid,evolution:one,cma-es:one,gradient:one,gradient:levels,finetune

for seed in 0 1 2; do
  cm=runs/digits-cm-$seed dm=runs/digits-dm-$seed
  $lcsc -q train configs/studies/digits-cm.toml --set seed=$seed --out "$cm"
  $lcsc -q train configs/studies/digits-dm.toml --set seed=$seed --out "$dm"
  $lcsc -q search "$cm" --compare $methods --seconds 20
  $lcsc -q search "$cm" --prefix 0.05,0.1,0.25,0.5,1 --seconds 20
  $lcsc -q search "$dm" --compare $methods --seconds 40
  $lcsc -q search "$dm" --nfe 5,9,15,35 --seconds 40 --set search.checkpoints=16
  whole=runs/digits-dm-whole-$seed
  $lcsc -q train configs/studies/digits-dm.toml --set seed=$seed --set stage.0.trajectory.window_nimg=128000 --out "$whole"
  $lcsc -q search "$whole" --prefix 0.1,0.25,0.5,1 --seconds 40
done
if [ $# -gt 0 ]; then
  cifar=runs/cifar10-8x8
  $lcsc -q train configs/studies/cifar10-8x8.toml --set data.source="$1" --out $cifar
  $lcsc -q search $cifar --compare $methods --seconds 40
  $lcsc -q search $cifar --prefix 0.1,0.25,0.5,1 --seconds 40
  $lcsc -q search $cifar --name compare-dm --compare $methods --seconds 40 \
    --set search.stage=edm --set 'sampler={ heun = { steps = 5, sigma_max = 20.0 } }'
fi
