#!/usr/bin/env bash
# Formatting, lints and all tests. `scripts/test.sh NAME…` runs only the tests whose names contain one of these.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
# One OpenMP thread a process: tests run side by side, and their results must not depend on the machine.
export OMP_NUM_THREADS=1

cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run --workspace "$@"
  cargo test --quiet --workspace --doc -- "$@"
else
  cargo test --workspace -- "$@"
fi
