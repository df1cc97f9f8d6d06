#!/usr/bin/env bash
# Sets up libtorch, builds, and makes the quick start: digits → diffusion model → consistency model → LCSC.
# Further arguments go to `lcsc run`, for instance: scripts/quickstart.sh --set seed=1 --out runs/seed1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
echo "quickstart: building; the first time some 300 crates, which takes longer than the run itself"
cargo build --release --package lcsc-cli
exec target/release/lcsc run configs/quickstart.toml "$@"
