#!/usr/bin/env python3
"""How long a convolution takes, forward and backward, by type, layout and the place of its weight: `align.py [--device cpu]`.

Weights of `lcsc` are views of one flat vector: where a layer's weight begins off a multiple of 16 bytes, cuDNN may have to take
another kernel. Here a weight begins 0 or 3 elements after such a place. Prints a table in Markdown, a line as it is measured,
and then how many times longer the latter takes where it matters most.
"""

import argparse
import time

import torch

CHANNELS, SIDE = 256, 32


def milliseconds(run, device, repeats):
    """The mean of `repeats` runs after one that is not timed."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    run()
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return 1e3 * (time.perf_counter() - began) / repeats


def convolution(device, batch, channels, side, dtype, offset, layout):
    """A 3×3 convolution with its gradients by input and weight."""
    numel = channels * channels * 9
    flat = torch.randn(offset + numel, device=device, dtype=dtype)
    weight = flat[offset:].view(channels, channels, 3, 3).requires_grad_()
    x = torch.randn(batch, channels, side, side, device=device, dtype=dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()

    def run():
        y = torch.conv2d(x, weight, padding=1)
        torch.autograd.grad(y, (x, weight), y)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="two small images, one repeat: whether it runs at all")
    args = parser.parse_args()
    device = torch.device(args.device)
    batch, channels, side, repeats = (2, 16, 8, 1) if args.tiny else (512, CHANNELS, SIDE, 10)
    torch.backends.cudnn.allow_tf32 = False
    print("| type | offset | layout | as it is | cudnn.benchmark |\n|---|---|---|---|---|", flush=True)
    found = {}
    for dtype in (torch.bfloat16, torch.float32):
        for layout in (torch.contiguous_format, torch.channels_last):
            for offset in (0, 3):
                times = []
                for torch.backends.cudnn.benchmark in (False, True):
                    try:
                        run = convolution(device, batch, channels, side, dtype, offset, layout)
                        key = dtype, layout, torch.backends.cudnn.benchmark
                        found[*key, offset] = milliseconds(run, device, repeats)
                        times.append(f"{found[*key, offset]:.2f} ms")
                    except RuntimeError as e:
                        times.append(str(e).splitlines()[0][:60])
                names = str(dtype).removeprefix("torch."), offset, "NHWC" if layout is torch.channels_last else "NCHW"
                print("| " + " | ".join(map(str, (*names, *times))) + " |", flush=True)
    ratios = [found[*key, 3] / found[*key, 0] for *key, offset in found if offset == 3 and (*key, 0) in found]
    print(f"\noff 16 bytes it takes up to {max(ratios):.2f} of the time" if ratios else "\nnothing to compare")


if __name__ == "__main__":
    main()
