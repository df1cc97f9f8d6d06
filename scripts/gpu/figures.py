#!/usr/bin/env python3
"""What the steps of scripts/gpu.sh found, from their files: one line of key figures, or a table in Markdown.

  figures.py difference OURS.npz THEIRS.npz   how far two sets of images are apart
  figures.py training RUN                     the last line of each stage
  figures.py results SUMMARY.json             the table of a search
  figures.py kernels NCU.csv                  what takes the time of the kernels that ncu measured
  figures.py budget RUN SECONDS BATCH         a run like RUN that trains and searches for so long, as `--set` takes it

Only Python's own library is needed.
"""

import collections
import csv
import json
import sys
import zipfile
from pathlib import Path

# Pixels of 255 by which images of two devices may differ: rounding to 8 bits, and its growth over the steps of a sampler.
TOLERATED = 8
TOP = 20


def pixels(path):
    """The bytes of a uint8 array in an npz file, without its header."""
    with zipfile.ZipFile(path) as archive:
        array = archive.read("arr_0.npy")
    return array[10 + int.from_bytes(array[8:10], "little") :]


def difference(ours, theirs):
    ours, theirs = pixels(ours), pixels(theirs)
    if len(ours) != len(theirs):
        sys.exit(f"{len(ours)} pixels, expected {len(theirs)}")
    apart = [abs(a - b) for a, b in zip(ours, theirs)]
    print(f"largest pixel difference {max(apart)} of 255, {sum(map(bool, apart)) / len(apart):.2%} of the pixels differ")
    if max(apart) > TOLERATED:
        sys.exit(f"more than {TOLERATED}: these are other images")


def last_lines(run):
    """The last line of each stage in the order of training."""
    lines = map(json.loads, Path(run, "train.jsonl").read_text().splitlines())
    return list({line["stage"]: line for line in lines}.values())


def training(run):
    for line in last_lines(run):
        print(f"{line['stage']} at {line['nimg']:,} images: {line['img_per_s']:,.0f} img/s, loss {line['loss']:.4g}")


def results(path):
    found = json.loads(Path(path).read_text())
    print(f"{found['metric']['extractor']}, {found['metric']['n_heldout']} images, {found['search']['evaluations']} evaluations\n")
    print("| model | held-out | independent | pixel |\n|---|---|---|---|")
    for model in found["models"]:
        distances = (model.get(f"fd_{of}") for of in ("heldout", "independent", "pixel"))
        cells = ("" if distance is None else f"{distance:.4g}" for distance in distances)
        print("| " + " | ".join([model["label"], *cells]) + " |")


def kernels(path):
    rows = list(csv.reader(line for line in Path(path).read_text().splitlines() if line.startswith('"')))
    name, value, unit = (rows[0].index(column) for column in ("Kernel Name", "Metric Value", "Metric Unit"))
    to_ms = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1, "msecond": 1}
    times, calls = collections.Counter(), collections.Counter()
    for row in rows[1:]:
        times[row[name]] += float(row[value].replace(",", "")) * to_ms[row[unit]]
        calls[row[name]] += 1
    total = sum(times.values())
    print(f"{sum(calls.values())} kernels, {total:.1f} ms\n\n| share | calls | kernel |\n|---|---|---|")
    for kernel, spent in times.most_common(TOP):
        print(f"| {spent / total:.1%} | {calls[kernel]} | {kernel[:100]} |")


def budget(run, seconds, batch):
    """35 % of the time for the diffusion model, 20 % for the consistency model, 15 % for candidates; baselines, selection and
    table take theirs beside."""
    edm, ect = (line["img_per_s"] for line in last_lines(run))
    seconds, batch = float(seconds), int(batch)
    # Whole batches, and fifty checkpoints.
    every = max(1, int(0.2 * seconds * ect / batch / 50)) * batch
    print(f"stage.0.nimg={max(1, int(0.35 * seconds * edm / batch)) * batch}")
    print(f"stage.1.nimg={50 * every}")
    print(f"stage.1.objective.ect.stage_every_nimg={25 * every}")
    print(f"stage.1.trajectory.every_nimg={every}")
    print(f"search.budget.seconds={0.15 * seconds:.1f}")


if __name__ == "__main__":
    {f.__name__: f for f in (difference, training, results, kernels, budget)}[sys.argv[1]](*sys.argv[2:])
