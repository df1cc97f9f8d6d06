#!/usr/bin/env python3
"""The first images of an EDM zip with their labels, as many as fit: `first_images.py FROM.zip TO.zip BYTES`."""

import json
import sys
import zipfile

# What an archive takes an image beside the image and its name twice, and its line of `dataset.json`.
BESIDE = 150


def main(source, target, limit):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        images = sorted(name for name in old.namelist() if name.endswith((".png", ".jpg", ".jpeg")))
        labels = json.loads(old.read("dataset.json"))["labels"] if "dataset.json" in old.namelist() else None
        kept, size = set(), 0
        for name in images:
            size += old.getinfo(name).compress_size + 3 * len(name) + BESIDE
            if size > limit:
                break
            kept.add(name)
            new.writestr(old.getinfo(name), old.read(name))
        if labels:
            new.writestr("dataset.json", json.dumps({"labels": [row for row in labels if row[0] in kept]}))
    if not kept:
        sys.exit(f"first_images: not one image of {source} fits {limit} bytes")
    print(f"first_images: {len(kept)} of {len(images)} images of {source}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
