"""Makes pillow.npz: what Pillow gives for random images, to compare `resize` and `Crop` with bit by bit.

    pip install pillow==11.3.0 numpy && python make.py

Not with Pillow 13, which resizes some images rows first (those that shrink more in height): other bits than those of the
published datasets and statistics, which older versions made.

Arrays are u8 H×W×C, named by case: `3.in` is an image, `3.lanczos` what `Image.resize` makes of it; `crop2.in` is an
image, `crop2.center` and `crop2.center-dhariwal` its squares of the side that they have.
"""

import numpy as np
from PIL import Image

RESIZED = [  # C, H×W, H'×W'
    (1, (13, 9), (5, 7)),
    (3, (13, 9), (29, 31)),
    (3, (17, 64), (64, 17)),
    (1, (7, 5), (7, 3)),
    (1, (5, 7), (11, 7)),
    (3, (31, 33), (1, 1)),
    (3, (1, 2), (3, 7)),
    (3, (40, 101), (13, 16)),
]
CROPPED = [(3, (70, 45), 16), (1, (33, 64), 16), (3, (23, 17), 16), (3, (11, 9), 16), (1, (16, 16), 16), (3, (50, 97), 13)]
FILTERS = {"box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}


def image(rng, channels, size):
    """Noise, half of it black and white so that filters overshoot."""
    noise = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
    return np.where(rng.random(noise.shape) < 0.5, noise, (noise > 127) * np.uint8(255))


def pil(array):
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def array(picture):
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def middle(picture, side):
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def center(picture, side):
    return middle(picture, min(picture.size)).resize((side, side), Image.LANCZOS)


def center_dhariwal(picture, side):
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.BOX)
    scale = side / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    return middle(picture.resize(size, Image.BICUBIC), side)


rng = np.random.default_rng(0)
arrays = {}
for i, (channels, size, (height, width)) in enumerate(RESIZED):
    arrays[f"{i}.in"] = image(rng, channels, size)
    for name, resample in FILTERS.items():
        arrays[f"{i}.{name}"] = array(pil(arrays[f"{i}.in"]).resize((width, height), resample))
for i, (channels, size, side) in enumerate(CROPPED):
    arrays[f"crop{i}.in"] = image(rng, channels, size)
    arrays[f"crop{i}.center"] = array(center(pil(arrays[f"crop{i}.in"]), side))
    arrays[f"crop{i}.center-dhariwal"] = array(center_dhariwal(pil(arrays[f"crop{i}.in"]), side))
np.savez_compressed("pillow.npz", **arrays)
