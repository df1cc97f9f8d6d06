"""Writes scripted.pt (PyTorch 2.11): a TorchScript module that is asked for features as NVIDIA's Inception is."""
import torch


class Module(torch.nn.Module):
    def forward(self, img: torch.Tensor, use_fp16: bool = False, return_features: bool = False):
        features = img.mean([2, 3])
        if use_fp16:
            features = features * 0
        if return_features:
            return features
        return features.sum(1)


torch.jit.script(Module()).save("scripted.pt")
