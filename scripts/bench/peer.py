#!/usr/bin/env python3
"""The works of `lcsc bench` as one writes them in plain PyTorch, NumPy and SciPy: what `lcsc` is measured against.

  peer.py check FOLDER                compares with what `lcsc bench --outputs FOLDER` wrote
  peer.py time [WORK …] --json FILE   times them: warm-up, then repeats
  peer.py kernels WORK                what takes the time of a training step, by PyTorch's profiler

Only what needs SciPy and safetensors imports them, so that training steps are timed with PyTorch and NumPy alone.
"""

import argparse
import copy
import importlib.util
import json
import statistics
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from networks import UNETS, Denoiser, Features, Inception, cast_where_used

CHECKPOINTS, PARAMETERS, PIECE, CANDIDATES = 50, 20_000_000, 62_500, 8
IMAGES = 1000


# -- What is computed ----------------------------------------------------------------------------------------------------


def edm_loss(denoise, y, sigma, noise):
    """Karras et al. 2022, eq. 2: summed over pixels, [B]."""
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    error = denoise(y + noise * sigma.reshape(-1, 1, 1, 1), sigma) - y
    return weight * error.square().flatten(1).sum(1)


@torch.no_grad()
def one_step(net, latents, sigma_min=0.003):
    return net(latents * 80, torch.full([len(latents)], 80.0, device=latents.device), sigma_min)


@torch.no_grad()
def heun(net, latents, steps=18):
    """EDM's algorithm 1 without noise: 2·steps − 1 evaluations, in float64 outside the network."""
    i = torch.arange(steps, dtype=torch.float64, device=latents.device)
    grid = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = torch.cat([grid, torch.zeros_like(grid[:1])])

    def slope(x, t):
        d = net(x.float(), t.float().expand(len(x))).double()
        return (x - d) / t

    x = latents.double() * grid[0]
    for t, s in zip(grid, grid[1:]):
        d = slope(x, t)
        ahead = x + (s - t) * d
        x = ahead if s == 0 else x + (s - t) * (d + slope(ahead, s)) / 2
    return x.float()


def merge_loop(states, alpha):
    merged = {}
    for name in states[0]:
        total = alpha[0] * states[0][name]
        for a, state in zip(alpha[1:], states[1:]):
            total = total + a * state[name]
        merged[name] = total
    return merged


def merge_stack(states, alpha):
    alpha = torch.tensor(alpha, dtype=torch.float32)
    return {name: torch.tensordot(alpha, torch.stack([s[name] for s in states]), 1) for name in states[0]}


def statistics_of(features):
    return features.mean(0), np.cov(features, rowvar=False)


def frechet(features, mu, sigma):
    """As pytorch-fid does: float64 features, `sqrtm` of the product, its imaginary part dropped."""
    import scipy

    m, s = statistics_of(features)
    root = scipy.linalg.sqrtm(s @ sigma)
    return ((m - mu) ** 2).sum() + np.trace(s) + np.trace(sigma) - 2 * np.trace(np.real(root))


def to_u8(x):
    return (x * 127.5 + 128).clip(0, 255).to(torch.uint8)


@torch.no_grad()
def inception_features(net, images, chunk):
    return torch.cat([net(part.float() / 255) for part in images.split(chunk)])


@torch.no_grad()
def evaluate(net, states, alpha, latents, extractor, mu, sigma):
    """A candidate of a search: merged, sampled in one batch, measured."""
    net.model.load_state_dict(merge_loop(states, alpha))
    images = to_u8(one_step(net, latents))
    features = extractor(images.float() / 127.5 - 1)
    return frechet(features.double().cpu().numpy(), mu, sigma)


# -- Whether it is the same ----------------------------------------------------------------------------------------------


def part(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def close(what, found, expected, tolerance):
    found, expected = torch.as_tensor(found).double(), torch.as_tensor(expected).double()
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < tolerance, f"{what}: the relative difference is {error:.1e}, expected less than {tolerance:.0e}"
    print(f"{what:<28} equal to {error:.0e}")


def loaded(name, tensors, prefix="theta/model."):
    model = UNETS[name]()
    model.load_state_dict(part(tensors, prefix))
    return Denoiser(model).eval()


def check_training(work, network, t):
    net = loaded(network, t)
    loss = edm_loss(net, t["y"], t["sigma"], t["noise"])
    close(f"{work}: loss", loss.detach(), t["loss"], 1e-4)
    loss.sum().backward()
    expected = part(t, "grad/model.")
    flat = torch.cat([p.grad.flatten() for _, p in sorted(net.model.named_parameters())])
    close(f"{work}: gradient", flat, torch.cat([expected[k].flatten() for k in sorted(expected)]), 1e-3)


def check(folder):
    from safetensors.torch import load_file

    for path in sorted(Path(folder).glob("*.safetensors")):
        work, t = path.stem, load_file(path)
        match work:
            case "train-tiny" | "train-cifar10" | "train-imagenet64":
                check_training(work, TRAINING[work][0], t)
            case "sample-one-step":
                close(work, one_step(loaded("tiny", t), t["latents"]), t["images"], 1e-4)
            case "sample-heun":
                close(work, heun(loaded("tiny", t), t["latents"]), t["images"], 1e-3)
            case "merge" | "merge-many":
                for alpha, theta in zip(t["alpha"].tolist(), t["theta"]):
                    states = [{"w": w} for w in t["w"]]
                    close(f"{work}: loop", merge_loop(states, alpha)["w"], theta, 1e-6)
                    close(f"{work}: stack", merge_stack(states, alpha)["w"], theta, 1e-6)
            case "features":
                net = Inception().eval()
                net.load_state_dict(part(t, "weights/"), strict=False)
                close(work, inception_features(net, t["images"], 16), t["features"], 1e-3)
            case "frechet":
                real, generated = (t[name].double().numpy() for name in ("real", "generated"))
                close(work, frechet(generated, *statistics_of(real)), t["distance"], 1e-6)
            case "evaluation":
                extractor = Features()
                extractor.load_state_dict({k: v for k, v in part(t, "classifier/").items() if "classes" not in k})
                real = extractor(t["real"].float() / 127.5 - 1).detach().double().numpy()
                # Features are scaled so that those of the real images have a covariance of trace 100.
                extractor.scale = (100 / np.trace(statistics_of(real)[1])) ** 0.5
                real *= extractor.scale
                states = [part(t, f"theta{i}/model.") for i in range(len(t["alpha"]))]
                net = loaded("tiny", t, "theta0/model.")
                found = evaluate(net, states, t["alpha"].tolist(), t["latents"], extractor, *statistics_of(real))
                close(work, found, t["distance"], 1e-3)
            case _:
                raise SystemExit(f"{path}: no such work")


# -- How long it takes ---------------------------------------------------------------------------------------------------

# Network, and the batch on a CPU and on a GPU.
TRAINING = {
    "train-tiny": ("tiny", 64, 64),
    "train-cifar10": ("ddpmpp-cifar10", 4, 512),
    "train-imagenet64": ("adm-imagenet64", 1, 64),
}
# What training steps are timed in; all but the last are eager, with contiguous tensors, as EDM's code is.
#   f32            without TF32, as EDM trains by default
#   f16            EDM's `fp16`: activations in half precision, weights f32, cast by each layer
#   bf16           autocast
#   bf16-compile   autocast under `torch.compile`, channels last
MODES = ["f32", "f16", "bf16", "bf16-compile"]


class Timer:
    """Times works, and keeps the times of all so far in a file."""

    def __init__(self, args):
        self.device, self.repeats, self.rows, self.json = torch.device(args.device), args.repeats, [], args.json

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def __call__(self, work, mode, run):
        # What is compiled may be compiled again for the gradients of a second step.
        for _ in range(3 if mode.endswith("compile") else 1):
            run()
        self.wait()
        times, first = [], time.perf_counter()
        while len(times) < self.repeats or time.perf_counter() - first < 1:
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        self.rows.append({"work": work, "mode": mode, "repeats": times})
        print(f"{work:<16} {mode:<12} {1e3 * statistics.median(times):>12.2f} ms", flush=True)
        if self.json:
            self.json.write_text(json.dumps({"versions": versions(), "rows": self.rows}, indent=2))


def versions():
    return {name: metadata.version(name) for name in ("torch", "numpy", "scipy") if importlib.util.find_spec(name)}


def training_step(network, batch, mode, device):
    """EDM's training loop (its batch in one round) with its settings: Adam, NaN-free gradients, moving average."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    autocast = torch.bfloat16 if mode.startswith("bf16") else None
    net = Denoiser(UNETS[network]().to(device), autocast, torch.float16 if mode == "f16" else torch.float32).train()
    layout = torch.channels_last if mode.endswith("compile") else torch.contiguous_format
    net = net.to(memory_format=layout)
    average = copy.deepcopy(net)
    if mode == "f16":
        cast_where_used(net)
    forward = torch.compile(net) if mode.endswith("compile") else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    shape = {"tiny": (1, 8, 8), "ddpmpp-cifar10": (3, 32, 32), "adm-imagenet64": (3, 64, 64)}[network]
    data = torch.randint(256, (2048, *shape), dtype=torch.uint8, device=device)

    def step():
        y = data[torch.randint(2048, (batch,), device=device)].float().contiguous(memory_format=layout) / 127.5 - 1
        sigma = (torch.randn(batch, device=device) * 1.2 - 1.2).exp()
        loss = edm_loss(forward, y, sigma, torch.randn_like(y)).sum() / batch
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in net.parameters():
            torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), net.parameters()):
                a.copy_(p.lerp(a, 0.9999))

    return step


def tiny_states():
    """50 state dicts of the tiny network."""
    net = Denoiser(UNETS["tiny"]()).eval()
    states = [{name: torch.randn_like(t) for name, t in net.model.state_dict().items()} for _ in range(CHECKPOINTS)]
    return net, states


def time_merging(timer, works):
    pieces = PARAMETERS // PIECE
    # Each tensor is one of its own, as `torch.load` gives them.
    states = [{f"layer{i}.weight": torch.randn(250, 250) for i in range(pieces)} for _ in range(CHECKPOINTS)]
    alpha = [1 / CHECKPOINTS] * CHECKPOINTS
    for work, passes in (("merge", 1), ("merge-many", CANDIDATES)):
        if work in works:
            timer(work, "loop", lambda: [merge_loop(states, alpha) for _ in range(passes)])
            timer(work, "stack", lambda: [merge_stack(states, alpha) for _ in range(passes)])


def time_evaluation(timer):
    net, states = tiny_states()
    extractor = Features().eval()
    real = torch.randint(256, (1797, 1, 8, 8), dtype=torch.uint8)
    mu, sigma = statistics_of(extractor(real.float() / 127.5 - 1).detach().double().numpy())
    net, extractor = net.to(timer.device), extractor.to(timer.device)
    states = [{name: t.to(timer.device) for name, t in state.items()} for state in states]

    def run():
        latents = torch.randn(IMAGES, 1, 8, 8, device=timer.device)
        return evaluate(net, states, [1 / CHECKPOINTS] * CHECKPOINTS, latents, extractor, mu, sigma)

    timer("evaluation", "f32", run)


def time_frechet(timer):
    rng = np.random.default_rng(0)
    mu, sigma = statistics_of(rng.standard_normal((5000, 2048)))
    generated = 1.1 * rng.standard_normal((5000, 2048))
    timer("frechet", "scipy", lambda: frechet(generated, mu, sigma))


@torch.no_grad()
def time_fid(timer, images, chunk):
    net = Denoiser(UNETS["ddpmpp-cifar10"]().to(timer.device)).eval()
    extractor = Inception().eval().to(timer.device)
    rng = np.random.default_rng(0)
    mu, sigma = statistics_of(rng.standard_normal((5000, 2048)))

    def run():
        features = []
        for n in [chunk] * (images // chunk):
            latents = torch.randn(n, 3, 32, 32, device=timer.device)
            features.append(inception_features(extractor, to_u8(one_step(net, latents)), n))
        return frechet(torch.cat(features).double().cpu().numpy(), mu, sigma)

    timer("fid", "f32", run)


def time_all(args):
    timer, gpu = Timer(args), args.device != "cpu"
    torch.manual_seed(0)
    for work in args.works:
        if work in TRAINING:
            network, *batches = TRAINING[work]
            for mode in args.modes:
                timer(work, mode, training_step(network, batches[gpu], mode, timer.device))
    net = Denoiser(UNETS["tiny"]().to(timer.device)).eval()
    for work, sample in (("sample-one-step", one_step), ("sample-heun", heun)):
        if work in args.works:
            timer(work, "f32", lambda: to_u8(sample(net, torch.randn(IMAGES, 1, 8, 8, device=timer.device))))
    if {"merge", "merge-many"} & set(args.works):
        time_merging(timer, args.works)
    if "features" in args.works:
        extractor, n = Inception().eval().to(timer.device), 512 if gpu else 16
        pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, device=timer.device)
        timer("features", "f32", lambda: inception_features(extractor, pixels, n))
    if "frechet" in args.works:
        time_frechet(timer)
    if "evaluation" in args.works:
        time_evaluation(timer)
    if "fid" in args.works:
        time_fid(timer, *((50_000, 500) if gpu else (16, 16)))


def kernels(args):
    """The operations that take most of a training step, on the device where it is a GPU."""
    from torch.profiler import ProfilerActivity, profile

    network, *batches = TRAINING[args.work]
    gpu = args.device != "cpu"
    step = training_step(network, batches[gpu], args.mode, torch.device(args.device))
    step()
    with profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as found:
        step()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows)
    print(f"{args.work} {args.mode}: {total / 1e3:.1f} ms in {sum(row.count for row in rows)} calls")
    print("| share | calls | operation |\n|---|---|---|")
    for row in rows[: args.top]:
        print(f"| {getattr(row, key) / total:.1%} | {row.count} | {row.key[:100]} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    checking = commands.add_parser("check")
    checking.add_argument("folder")
    checking.set_defaults(run=lambda args: check(args.folder))
    timing = commands.add_parser("time")
    timing.add_argument("works", nargs="+")
    timing.add_argument("--repeats", type=int, default=5)
    timing.add_argument("--threads", type=int)
    timing.add_argument("--device", default="cpu")
    timing.add_argument("--modes", nargs="+", choices=MODES, default=["f32"])
    timing.add_argument("--json", type=Path)
    timing.set_defaults(run=time_all)
    profiling = commands.add_parser("kernels")
    profiling.add_argument("work", choices=TRAINING)
    profiling.add_argument("--device", default="cpu")
    profiling.add_argument("--mode", choices=MODES, default="f32")
    profiling.add_argument("--top", type=int, default=20)
    profiling.set_defaults(run=kernels)
    args = parser.parse_args()
    if getattr(args, "threads", None):
        torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
