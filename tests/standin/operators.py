"""Lists the operators that PyTorch's CUDA build has kernels for: python operators.py > operators.txt, with torch 2.11."""

import torch

names = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
print("\n".join(sorted(name for name in names if name.startswith("aten::"))))
