"""Writes the results of run folders as a table between the two `recipes` marks of a Markdown file."""

import json
import pathlib
import sys

folder, page = map(pathlib.Path, sys.argv[1:])
BEGIN, END = "<!-- recipes: begin -->\n", "<!-- recipes: end -->"


def cell(models, label):
    model = models[label]
    return f"{model['fd_heldout']:.2f} ({model['fd_independent']:.2f})"


rows = ["| config | NFE | last | best EMA | LCSC | LCSC/EMA | training | search |", "|---|---|---|---|---|---|---|---|"]
for path in sorted(folder.glob("*/summary.json")):
    summary = json.loads(path.read_text())
    models = {model["label"]: model for model in summary["models"]}
    share = models["lcsc"]["fd_heldout"] / models["ema"]["fd_heldout"]
    train = sum(stage["seconds"] for stage in summary["stages"])
    labels = " | ".join(cell(models, label) for label in ("last", "ema", "lcsc"))
    rows.append(
        f"| {path.parent.name} | {summary['metric']['nfe']} | {labels} | {share:.2f} "
        f"| {train:.0f} s | {summary['search']['seconds']:.0f} s |"
    )
text = page.read_text()
before, rest = text.split(BEGIN)
page.write_text(before + BEGIN + "\n".join(rows) + "\n" + END + rest.split(END)[1])
