"""Attention bias that depends on the offset between query and key, at any map size."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .torch_internals import cache_key, without_modes

MAX_CACHED_CONSTANTS = 256
# Threads may share a module. One lock for all modules, because a lock cannot be copied or pickled with its module.
_CACHE_LOCK = threading.Lock()


def ceil_div(size: int, stride: int) -> int:
    """Return ``ceil(size / stride)`` without a negative number, whose division ONNX rounds towards zero."""
    return (size - 1) // stride + 1


def is_symbolic(*sizes: object) -> bool:
    """Return whether one of these is the symbolic size of a file for images of any size."""
    return torch.compiler.is_exporting() and any(isinstance(size, torch.SymInt) for size in sizes)


def cached_constant(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cache a function that computes a constant matrix, safe with torch.export and torch.compile.

    torch.export runs the model on fake tensors, and a cached fake tensor would break every later call. The matrix is
    therefore computed outside of the trace and enters it as a constant. torch.compile traces the function instead, and
    so does torch.export for symbolic sizes.
    """
    cache: dict[tuple, Tensor] = {}

    @wraps(function)
    def call(*args) -> Tensor:
        if torch.compiler.is_dynamo_compiling() or is_symbolic(*args):
            return function(*args)
        matrix = cache.get(args)
        if matrix is None:
            # Neither fake tensors nor inference tensors, which would break a later training step.
            with without_modes(), torch.inference_mode(False):
                matrix = function(*args)
            if type(matrix) is Tensor:
                if len(cache) >= MAX_CACHED_CONSTANTS:
                    cache.clear()
                cache[args] = matrix
        return matrix

    return call


@cached_constant
def resize_matrix(size_in: int, size_out: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (size_out, size_in) that resizes a vector by cubic interpolation."""
    eye = torch.eye(size_in, dtype=torch.float64)[None, None]
    matrix = F.interpolate(eye, size=(size_in, size_out), mode='bicubic', align_corners=align_corners)[0, 0].T
    return matrix.to(device, dtype).contiguous()


@cached_constant
def offset_index(size: int, stride: int, device: torch.device) -> Tensor:
    """Return the entry of a side of ``OffsetBias.offsets`` for each pair of query and key, flat: (queries * keys,)."""
    queries = torch.arange(ceil_div(size, stride), dtype=torch.int32, device=device) * stride
    return (queries[:, None] - torch.arange(size, dtype=torch.int32, device=device) + (size - 1)).flatten()


def bias_windows(table: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """View a table over (dy, dx) as (heads, query rows, query columns, key rows, key columns), keys in reverse order.

    The offsets between the query at y and all keys, y - key, are ``height`` consecutive entries of the table. They
    start at entry y, which belongs to the last key.
    """
    return table.unfold(1, height, stride).unfold(2, width, stride)


def _window_indices(size: int, stride: int, device: torch.device) -> Tensor:
    """Return the entries of one side of the table that ``bias_windows`` views: (queries, keys)."""
    keys = torch.arange(size, device=device)
    return keys[::stride, None] + keys


class OffsetBias(nn.Module):
    """A table over (|dy|, |dx|), resized as a table to the map, height and width separately.

    The table keeps its resolution from pretraining. Offset 0 stays offset 0 and the largest offset stays the largest;
    the entries between them are interpolated (bicubic). At the pretraining size nothing changes.

    Args:
        heads: Number of attention heads.
        grid: Side of the key map in pretraining; the table has ``grid * grid`` entries per head.
        stride: Distance between neighboring queries, in keys (2 where attention halves the map).
    """

    by_offset = True  # `offsets` returns a table over offsets
    default_grid = 7  # 224 px at stride 32
    # A resized table is small (8 heads at 1333x800: 130 KB), so the sizes of a whole validation set may stay.
    max_cached_sizes = 64

    def __init__(self, heads: int, grid: int, stride: int = 1):
        super().__init__()
        self.heads, self.grid, self.stride = heads, grid, stride
        self.table = nn.Parameter(torch.zeros(heads, grid * grid))
        self._cache: OrderedDict[tuple, tuple] = OrderedDict()

    def train(self, mode: bool = True) -> 'OffsetBias':
        """Set the mode and clear the cache: mmengine's EMAHook writes through ``.data`` before it calls ``eval()``."""
        with _CACHE_LOCK:
            self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return f'heads={self.heads}, grid={self.grid}, stride={self.stride}'

    def forward(self, height: int, width: int) -> Tensor:
        """Return the bias (heads, queries, keys) for a key map of ``height`` x ``width``."""
        windows = self.rows(self.offsets(height, width), height, width, self.stride)
        if torch.compiler.is_exporting():
            return windows
        return windows.flip(3, 4).reshape(self.heads, -1, height * width)

    @staticmethod
    def rows(table: Tensor, height: int, width: int, stride: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the ``bias_windows`` of the query rows from ``start`` to ``stop`` of ``offsets``.

        In an exported file, where ``start`` and ``stop`` are those of the map, return the bias (heads, queries, keys).
        """
        if torch.compiler.is_exporting():
            # Columns first, while the table is small; then whole rows are copied. The two short indices replace a
            # constant of heads * queries * keys numbers in each layer.
            queries = ceil_div(height, stride), ceil_div(width, stride)
            table = table.index_select(2, offset_index(width, stride, table.device))
            table = table.index_select(1, offset_index(height, stride, table.device))
            bias = table.unflatten(2, (queries[1], width)).unflatten(1, (queries[0], height))
            return bias.transpose(2, 3).reshape(-1, queries[0] * queries[1], height * width)
        if torch.compiler.is_compiling():  # a window's size would tie the graph to one image size: index instead
            rows, columns = (_window_indices(size, stride, table.device) for size in (height, width))
            return table[:, rows][..., columns].transpose(2, 3)
        if stop is not None:  # slice first: the backward of a slice of the windows would fill all of them with zeros
            table = table[:, start * stride : (stop - 1) * stride + height]
        return bias_windows(table, height, width, stride)

    def offsets(self, height: int, width: int) -> Tensor:
        """Return the table over signed offsets (heads, 2 * height - 1, 2 * width - 1)."""
        return self._cached(self._offsets, height, width)

    def _cached(self, compute: Callable[[int, int], Tensor], height: int, width: int) -> Tensor:
        """Return ``compute(height, width)``, cached by size while the table needs no gradient and does not change."""
        needs_grad = torch.is_grad_enabled() and self.table.requires_grad
        if needs_grad or torch.compiler.is_compiling() or self.table.is_inference():
            return compute(height, width)
        table, mode = self.table, torch.is_inference_mode_enabled()
        place = (compute.__name__, height, width, table.device, table.dtype, mode)
        entry, key = self._cache.get(place), cache_key(table)
        if entry is None or entry[0] != key:
            entry = (key, compute(height, width), table.detach())
        with _CACHE_LOCK:
            self._cache[place] = entry
            self._cache.move_to_end(place)
            if len(self._cache) > self.max_cached_sizes:
                self._cache.popitem(last=False)
        return entry[1]

    def _offsets(self, height: int, width: int) -> Tensor:
        table = self.table.view(self.heads, self.grid, self.grid)
        if is_symbolic(height, width):
            return self.signed(F.interpolate(table[None], (height, width), mode='bicubic', align_corners=True)[0])
        rows = resize_matrix(self.grid, height, True, table.device, table.dtype)
        columns = resize_matrix(self.grid, width, True, table.device, table.dtype)
        return self.signed(rows @ table @ columns.T)

    @staticmethod
    def signed(table: Tensor) -> Tensor:
        """Mirror a table over (|dy|, |dx|) into one over (dy, dx)."""
        table = torch.cat([table.flip(1)[:, :-1], table], 1)
        return torch.cat([table.flip(2)[:, :, :-1], table], 2)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_cache': OrderedDict()}  # copies start with an empty cache


class UpstreamBias(OffsetBias):
    """The computation of the original dense code of V1 and V2, for the authors' COCO and ADE20K checkpoints.

    The table is expanded to the full matrix queries x keys of its own grid, and that matrix is resized like an image.
    This mixes distant offsets; use it only to reproduce the published detectors.
    """

    by_offset = False  # `offsets` returns the full matrix, whose size grows with the square of the number of pixels
    default_grid = 25  # 800 px at stride 32, as for COCO
    max_cached_sizes = 1

    def forward(self, height: int, width: int) -> Tensor:
        """Return the bias (heads, queries, keys) for a key map of ``height`` x ``width``."""
        return self.offsets(height, width)

    @staticmethod
    def rows(table: Tensor, height: int, width: int, stride: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Return (heads, queries, keys) for the query rows from ``start`` to ``stop``, keys in normal order."""
        row = ceil_div(width, stride)
        return table[:, start * row : None if stop is None else stop * row]

    def _offsets(self, height: int, width: int) -> Tensor:
        table = self.signed(self.table.view(self.heads, self.grid, self.grid))
        windows = bias_windows(table, self.grid, self.grid, self.stride)
        matrix = windows.flip(3, 4).reshape(self.heads, -1, self.grid**2)
        queries = ceil_div(height, self.stride) * ceil_div(width, self.stride)
        return F.interpolate(matrix[None], size=(queries, height * width), mode='bicubic', align_corners=False)[0]


BIASES = {'offset': OffsetBias, 'upstream': UpstreamBias}  # by the value of the backbones' attention_bias
