"""Record which operators of torch run, for tests that promise that something is not computed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """``names`` of the operators that run inside, and ``most_bytes`` of one storage that they return."""

    def __enter__(self):
        self.names: list[str] = []
        self.most_bytes = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_mkldnn:  # a packed weight has no storage
            self.most_bytes = max(self.most_bytes, result.untyped_storage().nbytes())
        return result
