#!/usr/bin/env python3
"""The ratios of a run of scripts/bench.sh, each with its bar: `table.py FOLDER`."""

import json
import statistics
import sys
from pathlib import Path

# Work, precision of ours, mode of the peer's, bar on ours / peer's: on a CPU, on a GPU.
BARS = {
    "cpu": [
        ("train-tiny", "f32", "f32", 0.85),
        ("train-cifar10", "f32", "f32", 1.0),
        ("train-imagenet64", "f32", "f32", None),
        ("sample-one-step", "f32", "f32", 0.7),
        ("sample-heun", "f32", "f32", 0.7),
        ("merge", "f32", "loop", 0.65),
        ("merge", "f32", "stack", None),
        ("merge-many", "f32", "loop", None),
        ("merge-many", "f32", "stack", None),
        ("features", "f32", "f32", None),
        ("frechet", "f32", "scipy", 0.12),
        ("evaluation", "f32", "f32", 0.6),
        ("fid", "f32", "f32", None),
    ],
    "cuda": [
        ("train-cifar10", "bf16", "f32", 0.35),
        ("train-cifar10", "bf16", "f16", None),
        ("train-cifar10", "bf16", "bf16", 0.85),
        ("train-cifar10", "bf16", "bf16-compile", 1.0),
        ("train-cifar10", "f32", "f32", None),
        ("train-tiny", "f32", "f32", None),
        ("train-imagenet64", "bf16", "bf16", None),
        ("sample-one-step", "f32", "f32", None),
        ("sample-heun", "f32", "f32", None),
        ("merge", "f32", "loop", None),
        ("features", "f32", "f32", None),
        ("frechet", "f32", "scipy", None),
        ("evaluation", "f32", "f32", None),
        ("fid", "f32", "f32", 0.5),
    ],
}


def collected(folder):
    """Seconds of ours by (work, precision), of the peer's by (work, mode); shares of the ceilings; what ran."""
    ours, peers, shares, about = {}, {}, {}, {}
    for path in sorted(folder.glob("lcsc-*.json")):
        found = json.loads(path.read_text())
        about |= {"threads": found["threads"], "device": found["device"]}
        for row in found["rows"]:
            key = row["work"], found["precision"]
            ours.setdefault(key, []).extend(row["repeats"])
            shares.setdefault(key, []).append(row["fraction"])
    for path in sorted(folder.glob("peer-*.json")):
        found = json.loads(path.read_text())
        about |= found["versions"]
        for row in found["rows"]:
            peers.setdefault((row["work"], row["mode"]), []).extend(row["repeats"])
    shares = {key: statistics.median(found) for key, found in shares.items() if None not in found}
    medians = [{key: statistics.median(times) for key, times in found.items()} for found in (ours, peers)]
    return *medians, shares, about


def verdict(value, bar, met=lambda value, bar: value <= bar):
    return ("", "") if bar is None else (f"{bar:g}", "met" if met(value, bar) else "missed")


def milliseconds(seconds):
    return f"{1e3 * seconds:,.4g} ms"


def main(folder):
    ours, peers, shares, about = collected(folder)
    print(f"{about}\n" if about else "")
    lines = []
    for work, precision, mode, bar in BARS["cpu" if folder.name == "cpu" else "cuda"]:
        mine, theirs = ours.get((work, precision)), peers.get((work, mode))
        if mine is None or theirs is None:
            continue
        share = shares.get((work, precision))
        share = "" if share is None else f"{share:.0%}"
        ratio = mine / theirs
        names = f"{work} {precision}", f"{mode}"
        lines.append((*names, milliseconds(mine), milliseconds(theirs), share, f"{ratio:.2f}", *verdict(ratio, bar)))
    one, many = (ours.get((work, "f32")) for work in ("merge", "merge-many"))
    if one and many:
        ratio, read = many / (8 * one), shares["merge", "f32"]
        mine = milliseconds(many), milliseconds(8 * one)
        lines.append(("merge-many f32", "8 × ours", *mine, "", f"{ratio:.2f}", *verdict(ratio, 0.35)))
        bar = verdict(read, 0.8, lambda value, bar: value >= bar)
        lines.append(("merge f32", "a plain sum", milliseconds(one), "", f"{read:.0%}", "", "≥ " + bar[0], bar[1]))
    step = ours.get(("train-tiny" if folder.name == "cpu" else "train-cifar10", "f32"))
    lost = ours.get(("checkpoint", "f32"))
    if step and lost:
        ratio = lost / (100 * step)
        mine = milliseconds(lost), milliseconds(100 * step)
        lines.append(("checkpoint f32", "100 steps of ours", *mine, "", f"{ratio:.3f}", *verdict(ratio, 0.02)))
    head = "work", "against", "ours", "theirs", "of the ceiling", "ratio", "bar", ""
    for line in (head, ["---"] * len(head), *lines):
        print("| " + " | ".join(line) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
