"""Attention bias learned over the offset between query and key, at any map size."""

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .convolution import state_of


def remembered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A cache for functions that make constant matrices, safe under torch.export and torch.compile.

    torch.export runs the model on fake tensors. One of these, remembered, would break every later call, so the matrix
    is made outside the trace and enters it as a constant. torch.compile traces the function itself instead.
    """
    cached = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*args) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            return function(*args)
        with _disable_current_modes():
            return cached(*args)

    return call


@remembered
def resize_matrix(size_in: int, size_out: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Matrix (size_out, size_in) that resizes a vector by cubic interpolation."""
    with torch.inference_mode(False):  # an inference tensor, remembered, would break a later training step
        eye = torch.eye(size_in, dtype=torch.float64)[None, None]
        matrix = F.interpolate(eye, size=(size_in, size_out), mode='bicubic', align_corners=align_corners)[0, 0].T
        return matrix.to(device, dtype).contiguous()


def _offsets_of_keys(size: int, stride: int, device: torch.device) -> Tensor:
    """Where the offset of each query (a row of the result) to each key, the last first, stands in a signed table."""
    keys = torch.arange(size, device=device)
    return keys[::stride, None] + keys


def unfolded(offsets: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """A view of signed offsets as (heads, query rows, query columns, key rows, key columns), the last key first."""
    # window y starts at offset y - (height - 1): its keys run backwards
    return offsets.unfold(1, height, stride).unfold(2, width, stride)


class OffsetBias(nn.Module):
    """A table over (|dy|, |dx|), resized as a table to the map at hand, height and width separately.

    The table keeps the resolution that it was pretrained at. Offset 0 stays offset 0 and the farthest offset stays the
    farthest; in between, entries are interpolated (bicubic). At the pretraining size nothing changes.

    Args:
        heads: Number of attention heads.
        grid: Side of the key map at pretraining; the table has ``grid * grid`` entries a head.
        stride: Distance between neighbouring queries, in keys (2 where attention halves the map).
    """

    kind = 'offset'
    by_offset = True  # what `offsets` returns is a table over offsets
    default_grid = 7  # 224 px at stride 32
    # A resized table is small (8 heads at 1333x800: 130 KB), so the sizes of a whole validation set may stay.
    max_cached_sizes = 64

    def __init__(self, heads: int, grid: int, stride: int = 1):
        super().__init__()
        self.heads, self.grid, self.stride = heads, grid, stride
        self.table = nn.Parameter(torch.zeros(heads, grid * grid))
        self._cache: OrderedDict[tuple, tuple] = OrderedDict()

    def train(self, mode: bool = True) -> 'OffsetBias':
        self._cache.clear()  # what writes through `.data` raises no version; mmengine's EMAHook does, before eval()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f'heads={self.heads}, grid={self.grid}, stride={self.stride}'

    def forward(self, height: int, width: int) -> Tensor:
        """Bias (heads, queries, keys) for a key map of ``height`` x ``width``."""
        windows = self.rows(self.offsets(height, width), height, width, self.stride)
        return windows.flip(3, 4).reshape(self.heads, -1, height * width)

    @staticmethod
    def rows(offsets: Tensor, height: int, width: int, stride: int, start: int = 0, stop: int | None = None) -> Tensor:
        """The bias of the query rows from ``start`` to ``stop``, as :func:`unfolded` gives it, from :meth:`offsets`."""
        if torch.compiler.is_compiling():  # the size of a window would tie the graph to one size of image
            rows, columns = (_offsets_of_keys(size, stride, offsets.device) for size in (height, width))
            return offsets[:, rows][..., columns].transpose(2, 3)
        if stop is not None:  # cut before unfolding: backward of a cut view would fill all of it with zeros
            offsets = offsets[:, start * stride : (stop - 1) * stride + height]
        return unfolded(offsets, height, width, stride)

    def offsets(self, height: int, width: int) -> Tensor:
        """The table over signed offsets (heads, 2 * height - 1, 2 * width - 1)."""
        return self._remembered(self._offsets, height, width)

    def _remembered(self, compute: Callable[[int, int], Tensor], height: int, width: int) -> Tensor:
        """What ``compute`` makes of the table for a size, remembered where nothing learns."""
        learns = torch.is_grad_enabled() and self.table.requires_grad
        if learns or torch.compiler.is_compiling() or self.table.is_inference():
            return compute(height, width)
        table, mode = self.table, torch.is_inference_mode_enabled()
        key = (compute.__name__, height, width, table.device, table.dtype, mode)
        known, state = self._cache.get(key), state_of(table)
        if known is None or known[0] != state:
            known = self._cache[key] = (state, compute(height, width), table.detach())
        self._cache.move_to_end(key)
        if len(self._cache) > self.max_cached_sizes:
            self._cache.popitem(last=False)
        return known[1]

    def _offsets(self, height: int, width: int) -> Tensor:
        table = self.table.view(self.heads, self.grid, self.grid)
        rows = resize_matrix(self.grid, height, True, table.device, table.dtype)
        columns = resize_matrix(self.grid, width, True, table.device, table.dtype)
        return self.signed(rows @ table @ columns.T)

    @staticmethod
    def signed(table: Tensor) -> Tensor:
        """Mirrors a table over (|dy|, |dx|) into one over (dy, dx)."""
        table = torch.cat([table.flip(1)[:, :-1], table], 1)
        return torch.cat([table.flip(2)[:, :, :-1], table], 2)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_cache': OrderedDict()}  # a copy starts with an empty memory


class UpstreamBias(OffsetBias):
    """The dense computation of V1's and V2's authors, for their COCO and ADE20K checkpoints.

    The table is expanded to the full matrix queries x keys of its own grid, and that matrix is resized as if it were
    an image. This mixes offsets that are far apart; it is here to reproduce published detectors, for nothing else.
    """

    kind = 'upstream'
    by_offset = False  # but the full matrix, so that memory grows with the square of the number of pixels
    default_grid = 25  # 800 px at stride 32, as for COCO
    max_cached_sizes = 1

    def forward(self, height: int, width: int) -> Tensor:
        return self.offsets(height, width)

    @staticmethod
    def rows(offsets: Tensor, height: int, width: int, stride: int, start: int = 0, stop: int | None = None) -> Tensor:
        """(heads, queries, keys), the first key first."""
        row = -(-width // stride)
        return offsets[:, start * row : None if stop is None else stop * row]

    def _offsets(self, height: int, width: int) -> Tensor:
        own = self.signed(self.table.view(self.heads, self.grid, self.grid))
        windows = own.unfold(1, self.grid, self.stride).unfold(2, self.grid, self.stride)
        matrix = windows.flip(3, 4).reshape(self.heads, -1, self.grid**2)
        queries = -(-height // self.stride) * -(-width // self.stride)
        return F.interpolate(matrix[None], size=(queries, height * width), mode='bicubic', align_corners=False)[0]


BIASES = {bias.kind: bias for bias in (OffsetBias, UpstreamBias)}
