"""A convolution that runs in the form in which a CPU is fastest."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # channels to the last place and back
# Up to so many pixels a matrix product takes less time than oneDNN's 1x1 convolution, whose calls alone cost as much
# as the work on a window of 7x7; above, it takes up to a quarter more.
MOST_PIXELS = 4096


class Convolution(nn.Conv2d):
    """``nn.Conv2d`` with 'same' padding for odd kernels, of the same names and results.

    On a CPU a 1x1 convolution of a small map is run as the matrix product that it is, and other convolutions, in plain
    inference, with a copy of their weight in oneDNN's layout, which they would otherwise make at every call. That copy
    belongs to the weight as it was, and is made anew when this changes (:func:`state_of`); it is never saved, copied
    or moved.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int, bias: bool):
        super().__init__(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias)
        self.pointwise = kernel_size == stride == groups == 1
        self._packed: tuple[tuple, Tensor, Tensor] | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_packed': None}

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        weight, bias = self.weight, self.bias
        if self._packs(x, weight):
            return self._run_packed(x, weight, bias, relu)
        x = self.using(x, weight, bias)
        return F.relu_(x) if relu else x

    def using(self, x: Tensor, weight: Tensor, bias: Tensor | None, own: bool = False) -> Tensor:
        """Convolves with another weight and bias.

        Args:
            own: Under gradients, too, the result is no view: autograd lets nobody change one in place that a function
                of ours returned.
        """
        if not self._is_product(x):
            return self._conv_forward(x, weight, bias)
        rows, weight = x.permute(LAST), weight.flatten(1)  # (B, H, W, C), (O, C)
        learning, recorded = torch.is_grad_enabled(), torch.compiler.is_compiling()
        if not own and (learning or recorded or torch.is_autocast_enabled('cpu')):
            return F.linear(rows, weight, bias).permute(FIRST)
        shape = x.shape[0], len(weight), *x.shape[2:]
        result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        product = result.permute(LAST).flatten(0, 2)
        if bias is None:
            torch.mm(rows.flatten(0, 2), weight.t(), out=product)
        else:
            torch.addmm(bias, rows.flatten(0, 2), weight.t(), out=product)
        return result

    def _is_product(self, x: Tensor) -> bool:
        if not self.pointwise or not x.is_cpu or torch.jit.is_tracing():
            return False
        few = x.numel() <= MOST_PIXELS * self.in_channels
        if not torch.compiler.is_compiling():
            return few
        if torch.compiler.is_exporting():  # what is exported stays a convolution
            return False
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(few)  # without tying a graph for many sizes to some of them

    def _packs(self, x: Tensor, weight: Tensor) -> bool:
        """Whether this is plain inference in float32 on a CPU, and nobody records the operators."""
        return (
            x.is_cpu
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled('cpu')
            and not self._is_product(x)
            and not weight.is_inference()
            and torch.backends.mkldnn.is_available()
        )

    def _run_packed(self, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        # These operators are what torch.compile itself uses on a CPU.
        settings, state = (self.padding, self.stride, self.dilation, self.groups), state_of(weight)
        if self._packed is None or self._packed[0] != state:
            plain = weight.contiguous(memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(plain, *settings, x.shape)
            self._packed = state, packed, weight.detach()
        activation = 'relu' if relu else 'none'
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed[1], bias, *settings, activation, [], '')


def state_of(tensor: Tensor) -> tuple[int, int]:
    """What tells whether a tensor changed: a change in place raises the version, another tensor has another address.

    Whoever remembers a state holds on to the tensor, or a later one may get its address. What writes through ``.data``
    does not show, and tensors made in inference mode count no versions at all.
    """
    return tensor.data_ptr(), tensor._version
