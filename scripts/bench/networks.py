"""The networks of the comparison in plain PyTorch, from their definitions. Tensors bear the names of `lcsc`'s files."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def norm(channels, eps):
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class Block(nn.Module):
    """A residual block told of the noise level, with optional attention after it."""

    def __init__(self, ins, outs, net, resample=None, attention=False):
        super().__init__()
        self.resample, self.adaptive, self.scale, self.dropout = resample, net.adaptive, net.skip_scale, net.dropout
        self.outs = outs
        self.norm0 = norm(ins, net.eps)
        self.conv0 = nn.Conv2d(ins, outs, 3, padding=1)
        self.affine = nn.Linear(net.emb, outs * (2 if net.adaptive else 1))
        self.norm1 = norm(outs, net.eps)
        self.conv1 = nn.Conv2d(outs, outs, 3, padding=1)
        projects = ins != outs or (resample and net.project)
        self.skip = nn.Conv2d(ins, outs, 1) if projects else None
        self.heads = net.heads(outs) if attention else 0
        if self.heads:
            self.norm2 = norm(outs, net.eps)
            self.qkv = nn.Conv2d(outs, 3 * outs, 1)
            self.proj = nn.Conv2d(outs, outs, 1)

    def resampled(self, x):
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x, emb):
        h = self.conv0(self.resampled(F.silu(self.norm0(x))))
        emb = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive:
            scale, shift = emb.chunk(2, 1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + emb))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self.resampled(x)
        x = (h + (self.skip(x) if self.skip else x)) * self.scale
        if self.heads:
            b, c, height, width = x.shape
            qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, height * width)
            q, k, v = (part.transpose(2, 3) for part in qkv.unbind(3))
            a = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, c, height, width)
            x = (self.proj(a) + x) * self.scale
        return x


class UNet(nn.Module):
    """What DDPM++ and ADM share: encoder, decoder, and the names of both."""

    def build(self, resolution, channels, width, mults, blocks, attends, first, every):
        """`first`: channels of the first convolution; `every`: attention in every decoder block of a level, or the last."""
        levels = [(resolution >> i, width * m) for i, m in enumerate(mults)]
        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), []
        at = first
        for i, (res, outs) in enumerate(levels):
            if i == 0:
                self.enc[f"{res}x{res}_conv"] = nn.Conv2d(channels, at, 3, padding=1)
            else:
                self.enc[f"{res}x{res}_down"] = Block(at, at, self, "down")
            skips.append(at)
            for j in range(blocks):
                self.enc[f"{res}x{res}_block{j}"] = Block(at, outs, self, attention=res in attends)
                skips.append(at := outs)
        for i, (res, outs) in reversed(list(enumerate(levels))):
            if i == len(levels) - 1:
                self.dec[f"{res}x{res}_in0"] = Block(at, at, self, attention=True)
                self.dec[f"{res}x{res}_in1"] = Block(at, at, self)
            else:
                self.dec[f"{res}x{res}_up"] = Block(at, at, self, "up")
            for j in range(blocks + 1):
                here = res in attends and (every or j == blocks)
                self.dec[f"{res}x{res}_block{j}"] = Block(at + skips.pop(), outs, self, attention=here)
                at = outs
        return at

    def body(self, x, emb):
        skips = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if not isinstance(layer, Block):
                continue
            if "_block" in name:
                x = torch.cat([x, skips.pop()], 1)
            x = layer(x, emb)
        return x


class DDPMpp(UNet):
    """DDPM++ (Song et al. 2021) as EDM configures it."""

    eps, adaptive, skip_scale, project = 1e-6, False, math.sqrt(0.5), True

    def __init__(self, resolution, channels, width, mults, blocks, attends, dropout):
        super().__init__()
        self.width, self.emb, self.dropout = width, 4 * width, dropout
        self.map_layer0, self.map_layer1 = nn.Linear(width, self.emb), nn.Linear(self.emb, self.emb)
        last = self.build(resolution, channels, width, mults, blocks, attends, first=width, every=False)
        self.dec[f"{resolution}x{resolution}_aux_norm"] = norm(last, self.eps)
        self.dec[f"{resolution}x{resolution}_aux_conv"] = nn.Conv2d(last, channels, 3, padding=1)
        self.last = [f"{resolution}x{resolution}_aux_{part}" for part in ("norm", "conv")]

    @staticmethod
    def heads(channels):
        return 1

    def forward(self, x, c_noise):
        half = self.width // 2
        freqs = 1e4 ** (-torch.arange(half, device=x.device) / max(half - 1, 1))
        angles = c_noise.outer(freqs)
        emb = torch.cat([angles.sin(), angles.cos()], 1)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        out_norm, out_conv = (self.dec[name] for name in self.last)
        return out_conv(F.silu(out_norm(self.body(x, emb))))


class ADM(UNet):
    """ADM (Dhariwal & Nichol 2021) as EDM configures it."""

    eps, adaptive, skip_scale, project = 1e-5, True, 1.0, False

    def __init__(self, resolution, channels, width, mults, blocks, attends, dropout):
        super().__init__()
        self.width, self.emb, self.dropout = width, 4 * width, dropout
        self.map_layer0, self.map_layer1 = nn.Linear(width, self.emb), nn.Linear(self.emb, self.emb)
        first = width * mults[0]
        last = self.build(resolution, channels, width, mults, blocks, attends, first, every=True)
        self.out_norm = norm(last, self.eps)
        self.out_conv = nn.Conv2d(last, channels, 3, padding=1)

    @staticmethod
    def heads(channels):
        return channels // 64

    def forward(self, x, c_noise):
        half = self.width // 2
        angles = c_noise.outer(1e4 ** (-torch.arange(half, device=x.device) / half))
        emb = torch.cat([angles.cos(), angles.sin()], 1)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        return self.out_conv(F.silu(self.out_norm(self.body(x, emb))))


UNETS = {
    "tiny": lambda: DDPMpp(8, 1, 16, [1, 2], 1, [], 0.0),
    "ddpmpp-cifar10": lambda: DDPMpp(32, 3, 128, [2, 2, 2], 4, [16], 0.13),
    "adm-imagenet64": lambda: ADM(64, 3, 192, [1, 2, 3, 4], 3, [32, 16, 8], 0.1),
}


class Denoiser(nn.Module):
    """D(x;σ) of EDM (Karras et al. 2022, table 1); `boundary` is the σ at which a consistency model is the identity.

    `dtype` is that of the network's input."""

    def __init__(self, model, autocast=None, dtype=torch.float32):
        super().__init__()
        self.model, self.autocast, self.dtype = model, autocast, dtype

    def forward(self, x, sigma, boundary=None):
        s = sigma.reshape(-1, 1, 1, 1)
        near = s if boundary is None else s - boundary
        c_skip, c_out = 0.25 / (near**2 + 0.25), near * 0.5 / (s**2 + 0.25).sqrt()
        c_in = 1 / (s**2 + 0.25).sqrt()
        with torch.autocast(x.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            f = self.model((c_in * x).to(self.dtype), sigma.log() / 4)
        return c_skip * x + c_out * f.float()


def cast_where_used(model):
    """Weights stay f32; convolutions and norms cast theirs to the type of their input, as EDM's layers do."""

    def convolution(layer):
        return lambda x: F.conv2d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), padding=layer.padding)

    def group_norm(layer):
        return lambda x: F.group_norm(x, layer.num_groups, layer.weight.to(x.dtype), layer.bias.to(x.dtype), layer.eps)

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.forward = convolution(layer)
        elif isinstance(layer, nn.GroupNorm):
            layer.forward = group_norm(layer)


class Features(nn.Module):
    """The small classifier that a search measures against: convolutions, a pool to 2×2, 64 features."""

    def __init__(self, channels=1, side=8):
        super().__init__()
        strides = [1] if side <= 16 else []
        while side > 2:
            strides, side = strides + [2], (side + 1) // 2
        widths = [channels] + [min(16 << i, 64) for i in range(len(strides))]
        self.convs = [f"conv{i}" for i in range(len(strides))]
        for name, ins, outs, stride in zip(self.convs, widths, widths[1:], strides):
            self.add_module(name, nn.Conv2d(ins, outs, 3, stride, 1))
        self.features = nn.Linear(4 * widths[-1], 64)
        self.scale = 1.0

    def forward(self, x):
        for name in self.convs:
            x = F.relu(getattr(self, name)(x))
        return F.relu(self.features(F.adaptive_avg_pool2d(x, 2).flatten(1))) * self.scale


class Conv(nn.Module):
    """Convolution, batch normalisation by fixed statistics, ReLU."""

    def __init__(self, ins, outs, kernel=(1, 1), stride=1, padded=True):
        super().__init__()
        h, w = kernel
        self.conv = nn.Conv2d(ins, outs, kernel, stride, (h // 2, w // 2) if padded else 0, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=1e-3)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Branches side by side. `spec`: branch name → (pool before it or None, convolutions, fork at its end or None)."""

    def __init__(self, ins, spec, halving=False):
        super().__init__()
        self.halving, self.branches = halving, []
        for pool, layers, fork in spec:
            at, names = ins, []
            for name, *shape in layers:
                self.add_module(name, Conv(at, *shape))
                at, names = shape[0], [*names, name]
            for name, kernel in fork:
                self.add_module(name, Conv(at, 384, kernel))
            self.branches.append((pool, names, [name for name, _ in fork]))

    def forward(self, x):
        outs = []
        for pool, names, fork in self.branches:
            y = pool(x) if pool else x
            for name in names:
                y = getattr(self, name)(y)
            outs += [getattr(self, name)(y) for name in fork] if fork else [y]
        return torch.cat([*outs, F.max_pool2d(x, 3, 2)] if self.halving else outs, 1)


def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


def block_a(ins, pooled):
    double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3))]
    return InceptionBlock(ins, [
        (None, [("branch1x1", 64)], []),
        (None, [("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))], []),
        (None, double, []),
        (average, [("branch_pool", pooled)], []),
    ])


def block_b(ins):
    double = [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, (3, 3)), ("branch3x3dbl_3", 96, (3, 3), 2, False)]
    return InceptionBlock(ins, [(None, [("branch3x3", 384, (3, 3), 2, False)], []), (None, double, [])], True)


def block_c(ins, c):
    single = [("branch7x7_1", c), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))]
    double = [("branch7x7dbl_1", c)] + [
        (f"branch7x7dbl_{i}", 192 if i == 5 else c, (7, 1) if i % 2 == 0 else (1, 7)) for i in range(2, 6)
    ]
    pool = (average, [("branch_pool", 192)], [])
    return InceptionBlock(ins, [(None, [("branch1x1", 192)], []), (None, single, []), (None, double, []), pool])


def block_d(ins):
    long = [("branch7x7x3_1", 192), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
    long.append(("branch7x7x3_4", 192, (3, 3), 2, False))
    short = [("branch3x3_1", 192), ("branch3x3_2", 320, (3, 3), 2, False)]
    return InceptionBlock(ins, [(None, short, []), (None, long, [])], True)


def block_e(ins, pool):
    def fork(name):
        return [(f"{name}a", (1, 3)), (f"{name}b", (3, 1))]

    return InceptionBlock(ins, [
        (None, [("branch1x1", 320)], []),
        (None, [("branch3x3_1", 384)], fork("branch3x3_2")),
        (None, [("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3))], fork("branch3x3dbl_3")),
        (pool, [("branch_pool", 192)], []),
    ])


class Inception(nn.Module):
    """FID's Inception, as pytorch-fid defines it: images f32 [B,3,H,W] in [0,1] → [B,2048]."""

    def __init__(self):
        super().__init__()
        three = (3, 3)
        self.Conv2d_1a_3x3 = Conv(3, 32, three, 2, False)
        self.Conv2d_2a_3x3 = Conv(32, 32, three, 1, False)
        self.Conv2d_2b_3x3 = Conv(32, 64, three)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, three, 1, False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c = block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, average), block_e(2048, maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1
        layers = [m for name, m in self.named_children() if name != "fc"]
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in (2, 4):
                x = F.max_pool2d(x, 3, 2)
        return x.mean((2, 3))
