#!/usr/bin/env bash
# Runs every configuration of configs/tiny whole, and writes their table into docs/recipes.md.
#   scripts/recipes.sh [FOLDER]        run folders go there (default: runs/recipes); runs that are there go on
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
cargo build --release --package lcsc-cli
out=${1:-runs/recipes}
for config in configs/tiny/{cifar10,imagenet64}-*.toml; do
  target/release/lcsc run "$config" --out "$out/$(basename "$config" .toml)"
done
python3 scripts/recipes_table.py "$out" docs/recipes.md
