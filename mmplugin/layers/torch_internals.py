"""Every function of PyTorch that its documentation does not promise, each with a fallback to public functions.

All of them are known to work with torch 2.13.0, the tested version. A release without one of them costs time or memory,
but gives the same numbers: ``tests/layers/test_torch_internals.py`` takes every fallback.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _python_dispatch


def _operator(namespace: str, name: str) -> Any:
    return getattr(getattr(torch.ops, namespace), name, None)


def _find_statically_known_true() -> Callable[..., bool] | None:
    from torch.fx.experimental import symbolic_shapes  # imports sympy, which only a compiler needs

    return getattr(symbolic_shapes, 'statically_known_true', None)


_aten_gelu_ = _operator('aten', 'gelu_')
_aten_gelu_backward = _operator('aten', 'gelu_backward')
_aten_avg_pool2d_backward = _operator('aten', 'avg_pool2d_backward')
_aten_convolution_backward = _operator('aten', 'convolution_backward')
# The two operators that torch.compile itself uses on a CPU.
_mkldnn_prepack = _operator('mkldnn', '_reorder_convolution_weight')
_mkldnn_convolution = _operator('mkldnn', '_convolution_pointwise')
_disable_current_modes = getattr(_python_dispatch, '_disable_current_modes', None)
_tensors_have_versions = hasattr(Tensor, '_version')


def gelu_(x: Tensor) -> Tensor:
    """Apply exact GELU in place, which ``F.gelu`` does not offer."""
    return x.copy_(F.gelu(x)) if _aten_gelu_ is None else _aten_gelu_(x)


def gelu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Overwrite ``grad``, the gradient of ``gelu(x)``, with the gradient of ``x``."""
    if _aten_gelu_backward is None:
        return grad.copy_(_gradients(F.gelu, (x,), (True,), grad)[0])
    return _aten_gelu_backward.grad_input(grad, x, grad_input=grad)


def avg_pool3x3_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of ``x`` for ``F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)``."""
    if _aten_avg_pool2d_backward is None:
        return _gradients(lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), (x,), (True,), grad)[0]
    return _aten_avg_pool2d_backward(grad, x, [3, 3], [1, 1], [1, 1], False, False, None)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: nn.Conv2d, needs: tuple[bool, bool, bool]
) -> Sequence[Tensor | None]:
    """Return the gradients of input, weight and bias, each if it is needed, without running the convolution again."""
    if _aten_convolution_backward is None:

        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

        return *_gradients(convolve, (x, weight), needs[:2], grad), grad.sum((0, 2, 3)) if needs[2] else None
    settings = conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
    return _aten_convolution_backward(grad, x, weight, [grad.shape[1]], *settings, needs)


def can_prepack() -> bool:
    """Return whether convolutions can run with prepacked weights; if not, use ``F.conv2d``."""
    return _mkldnn_prepack is not None and _mkldnn_convolution is not None and torch.backends.mkldnn.is_available()


def prepack(weight: Tensor, conv: nn.Conv2d, input_shape: torch.Size) -> Tensor:
    """Return a copy of ``weight`` in the layout that oneDNN prefers for this convolution."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    return _mkldnn_prepack(weight, conv.padding, conv.stride, conv.dilation, conv.groups, input_shape)


def prepacked_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, relu: bool) -> Tensor:
    """Convolve with a weight from ``prepack``, then apply ReLU if wanted."""
    settings = conv.padding, conv.stride, conv.dilation, conv.groups
    return _mkldnn_convolution(x, weight, bias, *settings, 'relu' if relu else 'none', [], '')


def without_modes() -> AbstractContextManager:
    """Leave all dispatch modes, so that torch.export's fake tensors are not used inside.

    The fallback stays in the modes: the caller must expect that a result is a fake tensor.
    """
    return nullcontext() if _disable_current_modes is None else _disable_current_modes()


def known_true(condition: bool | torch.SymBool) -> bool:
    """Return whether a condition on symbolic sizes always holds, without adding a guard to the graph.

    The fallback is False.
    """
    statically_known_true = _find_statically_known_true()
    return statically_known_true is not None and statically_known_true(condition)


def cache_key(tensor: Tensor) -> tuple:
    """Return (address, version). Keep the tensor alive while the key is cached, or its address may be reused.

    Writing through ``.data`` does not change the version. Inference tensors have none: do not cache what belongs to
    them. The fallback is a key that equals no other.
    """
    return tensor.data_ptr(), tensor._version if _tensors_have_versions else object()


def _gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needs: Sequence[bool], grad: Tensor
) -> list[Any]:
    """Run ``function`` again under autograd and return the gradients of the inputs that need one."""
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(need) for x, need in zip(inputs, needs, strict=True)]
        result = function(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    gradients = iter(torch.autograd.grad(result, wanted, grad) if wanted else ())
    return [next(gradients) if need else None for need in needs]
