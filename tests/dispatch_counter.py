"""Which operators of torch run: for tests that promise that something is not computed."""

from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Names of the operators that run inside."""

    def __enter__(self):
        self.names: list[str] = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
