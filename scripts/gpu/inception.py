#!/usr/bin/env python3
"""Random weights under the names of FID's Inception, where the published ones are not at hand: `inception.py FILE.pt`."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "bench"))
from networks import Inception

torch.manual_seed(0)
net = Inception()
for layer in net.modules():
    if isinstance(layer, torch.nn.Conv2d):
        torch.nn.init.kaiming_normal_(layer.weight)
torch.save(net.state_dict(), sys.argv[1])
