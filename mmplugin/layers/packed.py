"""Convolutions for inference on a CPU, their weights laid out once in the way that oneDNN wants them."""

import torch
from torch import Tensor, nn


class PackedConv:
    """Calls a convolution without reordering its weight each time, which for small maps is much of the work.

    The packed copy belongs to the weight as it was at the first call and is made anew when that changes, except by
    what writes through ``.data``, which torch does not count; it is never saved, copied or moved.
    """

    def __init__(self):
        self.origin: tuple | None = None
        self.weight: Tensor | None = None

    def __reduce__(self) -> tuple:
        return PackedConv, ()

    @staticmethod
    def serves(x: Tensor) -> bool:
        """Whether ``x`` can take this path: plain inference in float32 on a CPU, and nobody recording the operators."""
        return (
            x.device.type == 'cpu'
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled('cpu')
            and torch.backends.mkldnn.is_available()
        )

    def __call__(self, conv: nn.Conv2d, x: Tensor, relu: bool) -> Tensor:
        # These operators are what torch.compile itself uses on a CPU.
        weight, settings = conv.weight, (conv.padding, conv.stride, conv.dilation, conv.groups)
        origin = weight.data_ptr(), weight._version if not weight.is_inference() else None
        if origin != self.origin:
            plain = weight.contiguous(memory_format=torch.channels_last)
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(plain, *settings, x.shape)
            self.origin = origin
        activation = 'relu' if relu else 'none'
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, conv.bias, *settings, activation, [], '')
