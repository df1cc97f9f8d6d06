#!/usr/bin/env bash
# The steps of scripts/gpu.sh: `steps.sh NAME`, with lcsc, kit, device, tiny, python, work and limit (seconds) exported.
# Status 77: skipped. Lines of $work/figures go into the summary, $work/logs/NAME.md is a table of it.
set -euo pipefail
name=$1
: "${lcsc:?} ${kit:?} ${device:?} ${python:?} ${work:?} ${limit:?}"
bench=$work/bench/${device%%:*}
mkdir -p "$bench"
# In half precision a CPU computes slowly, and the digits are all it needs.
precision=bf16 work_of_bench=train-cifar10 repeats=5 source=$kit/cifar10.zip edm=configs/cifar10-edm.toml
if [ -n "$tiny" ]; then
  precision=f32 work_of_bench=train-tiny repeats=1 source=digits edm=configs/tiny/cifar10-edm.toml
fi

figure() { [ -z "$*" ] || echo "$*" >> "$work/figures"; }

# What comes in as a table of the summary, named as the step unless told; it is in the log, too.
table() { tee "$work/logs/${1:-$name}.md"; }

skip() { figure "$*"; exit 77; }

has() { "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec(sys.argv[1]) is None)' "$1"; }

# Skips the step where Python lacks a package.
needs() {
  local package
  for package in "$@"; do has "$package" || skip "$python has no $package"; done
}

needs_data() {
  [ "$source" = digits ] || [ -f "$source" ] || skip "$source is missing: --prepare was called without --data"
}

# The table of a search, and its held-out distances.
results() {
  "$python" scripts/gpu/figures.py results "$1" | table
  figure "held-out: $(sed -n 's/^| \(last\|ema\|lcsc\) | \([^ ]*\) .*/\1 \2/p' "$work/logs/$name.md" | paste -sd ' ')"
}

step_devices() {
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi
    figure "$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1)"
  else
    figure "no nvidia-smi"
  fi
  "$lcsc" doctor | tee "$work/doctor"
  "$python" -c 'import sys; print("Python", sys.version)'
  "$python" -c 'import torch; print("PyTorch", torch.__version__, "CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version())' || true
  figure "$(grep -E '^(libtorch|CUDA) ' "$work/doctor" | tr -s ' ' | sed 's/ (\/.*//')"
  [ "$device" = cpu ] || grep -qE '^CUDA +[0-9]' "$work/doctor"
}

step_samples() {
  "$lcsc" sample --weights "$kit/tiny.safetensors" --n 64 --device "$device" --out "$work/samples.npz"
  figure "$("$python" scripts/gpu/figures.py difference "$work/samples.npz" "$kit/tiny-cpu.npz")"
}

step_smoke() {
  local sizes=()
  if [ -n "$tiny" ]; then sizes=(search.budget.evaluations=4 search.report_seeds=1 search.finalists=1); fi
  "$lcsc" run configs/tiny/smoke.toml --set device="$device" "${sizes[@]/#/--set=}" --out "$work/smoke"
  figure "$("$python" scripts/gpu/figures.py training "$work/smoke")"
  results "$work/smoke/summary.json"
}

step_parity() {
  [ -x "$kit/parity" ] || skip "$kit/parity is missing"
  LCSC_PARITY_DIR=$PWD/tests/parity LCSC_PARITY_DEVICE=$device "$kit/parity" --test-threads 1 ${tiny:+loss} | tee "$work/parity" ||
    true
  figure "$(sed -n 's/.*test \([^ ]*\) .*FAILED.*/\1 FAILED/p' "$work/parity")"
  figure "$(sed -n 's/^test result: [a-zA-Z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$work/parity")"
  figure "largest error $(sed -n 's/.*parity .*: largest error //p' "$work/parity" | sort -g | tail -n 1)"
  grep -q '^test result: ok' "$work/parity"
}

step_align() {
  needs torch
  "$python" scripts/gpu/align.py --device "$device" ${tiny:+--tiny} | table
  figure "$(tail -n 1 "$work/logs/align.md")"
}

step_outputs() {
  needs torch numpy scipy safetensors
  local works="train-tiny train-cifar10 features"
  [ -z "$tiny" ] || works=train-tiny
  # shellcheck disable=SC2086
  "$lcsc" --quiet bench --outputs "$work/outputs" --device "$device" $works
  "$python" scripts/bench/peer.py check "$work/outputs" | tee "$work/outputs.txt"
  rm -r "$work/outputs"
  figure "$(tr -s ' ' < "$work/outputs.txt")"
}

step_bench() {
  "$lcsc" bench --device "$device" --repeats $repeats --precision $precision --json "$bench/lcsc-$precision.json" $work_of_bench |
    tee "$work/bench.txt"
  figure "$(grep "^$work_of_bench" "$work/bench.txt" | tr -s ' ') in $precision"
  [ -n "$tiny" ] ||
    "$lcsc" bench --device "$device" --repeats 3 --json "$bench/lcsc-f32.json" train-cifar10 sample-one-step features evaluation
}

# peers MODES…: those of one argument in one process.
peers() {
  local modes
  for modes in "$@"; do
    # shellcheck disable=SC2086
    "$python" scripts/bench/peer.py time --device "$device" --repeats $repeats --modes $modes \
      --json "$bench/peer-${modes// /-}.json" $work_of_bench | tee "$work/peer.txt"
    figure "$(cut -c18- "$work/peer.txt" | tr -s ' ')"
    "$python" scripts/bench/table.py "$bench" | table peers
  done
}

step_peers() {
  needs torch numpy
  if [ -n "$tiny" ]; then peers "f16 f32"; else peers bf16 f16 f32; fi
}

step_compile() {
  needs torch numpy
  # On a CPU the compiler alone takes minutes.
  if [ -n "$tiny" ]; then export TORCH_COMPILE_DISABLE=1; fi
  peers bf16-compile
}

# Trains the network of EDM until it is interrupted after so many seconds, which has to save the state.
interrupted() {
  local status=0
  local sizes=(stage.0.nimg=2000000 stage.0.tick_nimg=5120 'stage.0.trajectory={ every_nimg = 10240, tracks = ["raw"], dtype = "bf16" }')
  if [ -n "$tiny" ]; then sizes=(stage.0.tick_nimg=64 stage.0.trajectory.every_nimg=128); fi
  timeout --foreground --preserve-status --signal INT "$1" "$lcsc" train $edm --out "$work/edm" \
    "${sizes[@]/#/--set=}" --set device="$device" --set precision=$precision --set data.source="$source" \
    --set metric.extractor=classifier || status=$?
  [ $status = 130 ] || { echo "status $status after SIGINT, expected 130"; exit 1; }
  figure "$("$python" scripts/gpu/figures.py training "$work/edm")"
}

step_resume() {
  needs_data
  local first=$((limit * 2 / 5)) second=$((limit * 3 / 10))
  if [ -n "$tiny" ]; then first=4 second=3; fi
  interrupted $first
  cp "$work/edm/train.jsonl" "$work/before.jsonl"
  interrupted $second
  [ "$(wc -l < "$work/edm/train.jsonl")" -gt "$(wc -l < "$work/before.jsonl")" ] || { echo "it did not go on"; exit 1; }
}

step_search() {
  [ -d "$work/edm/trajectory" ] || skip "the step resume left no run"
  # One after the other from the best baseline.
  local sizes=('search.method=["gradient", "evolution"]' search.images=250 search.selection_images=250 search.report_images=250
    search.report_seeds=1 search.finalists=1 search.checkpoints=4 sampler.heun.steps=3 search.budget.evaluations=4)
  needs torch
  "$python" scripts/gpu/inception.py "$work/inception.pt"
  if [ -n "$tiny" ]; then
    # Inception takes a CPU a tenth of a second an image: a few are measured, and the search is by the small classifier.
    sizes=("${sizes[@]//=250/=50}")
    "$lcsc" --quiet sample --weights "$kit/tiny.safetensors" --n 4 --device "$device" --out "$work/few.npz"
    "$lcsc" --quiet eval --images "$work/few.npz" --reference "$work/few.npz" --metrics fd --device "$device" \
      --extractor "inception = \"$work/inception.pt\""
  else
    sizes+=("metric.extractor={ inception = \"$work/inception.pt\" }" metric.independent=classifier search.budget.evaluations=16)
  fi
  # The training was interrupted: its own search comes at its end.
  "$lcsc" search "$work/edm" --name gpu "${sizes[@]/#/--set=}"
  results "$work/edm/search/gpu/summary.json"
}

step_kernels() {
  needs_data
  if command -v ncu >/dev/null; then
    # About one of six steps; in the first, kernels are chosen.
    ncu --target-processes all --clock-control none --metrics gpu__time_duration.sum --csv --log-file "$work/ncu.csv" \
      --launch-skip 5000 --launch-count 2500 "$lcsc" train $edm --out "$work/profiled" --set device="$device" --set metric.extractor=classifier \
      --set precision=$precision --set data.source="$source" --set stage.0.nimg=3072 --set search.when=off || figure "ncu failed"
    "$python" scripts/gpu/figures.py kernels "$work/ncu.csv" | table && figure "$(sed -n '1p; 5p' "$work/logs/kernels.md" | tr '|' ' ')"
  else
    figure "no ncu: kernels of the peer alone"
    needs torch numpy
  fi
  if has torch && has numpy; then
    "$python" scripts/bench/peer.py kernels $work_of_bench --device "$device" --mode $precision | table kernels-of-peer
  fi
}

step_study() {
  needs_data
  local config=configs/studies/gpu-cifar10.toml batch=256 of_pilot=51200 sizes=() began=$SECONDS left
  local common=(device="$device" precision="$precision" data.source="$source")
  if [ -n "$tiny" ]; then
    batch=16 of_pilot=64
    common+=(model.song.model_channels=8 model.song.num_blocks=1 stage.0.batch=16 stage.1.batch=16 search.images=50
      search.selection_images=50 search.report_images=50 search.report_seeds=1 search.finalists=1 search.checkpoints=5)
  fi
  # How fast it is, and then as much as there is time for.
  "$lcsc" train $config --out "$work/pilot" "${common[@]/#/--set=}" --set=stage.{0,1}.nimg=$of_pilot \
    --set stage.1.trajectory.every_nimg=$((of_pilot / 2))
  left=$((limit - (SECONDS - began) - 10))
  [ -z "$tiny" ] || left=8
  mapfile -t sizes < <("$python" scripts/gpu/figures.py budget "$work/pilot" $left $batch)
  "$lcsc" train $config --out "$work/study" "${common[@]/#/--set=}" "${sizes[@]/#/--set=}"
  figure "$("$python" scripts/gpu/figures.py training "$work/study")"
  "$lcsc" search "$work/study"
  results "$work/study/summary.json"
  cp "$work/study/summary.json" "$work/study/train.jsonl" "$work/study/samples/comparison.png" "$work/logs"
}

"step_$name"
