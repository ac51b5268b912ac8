"""What the processes of one search share: the first one measures, the others wait for what it found."""

from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process

from .whole import Meter


class SharedMeter(Meter):
    """Measures in the first process, while the others wait, and tells them what it found."""

    def start_ms(self) -> tuple[float, float]:
        """Return the milliseconds of the start, and of its backbone alone."""
        return from_main(super().start_ms)

    def ratio(self, model: Any) -> float:
        """Return the latency of a model divided by that of the start."""
        return from_main(partial(super().ratio, model))


def from_main(compute: Callable[[], Any]) -> Any:
    """Return what a function returns in the first process; the others wait."""
    found = [compute() if is_main_process() else None]
    broadcast_object_list(found)
    return found[0]
