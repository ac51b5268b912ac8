"""Time ``mmcv.ops`` with whichever operators it uses. ``operators.py`` runs this script in two interpreters.

It imports mmplugin only with ``--mmplugin``. Its last line is JSON: seconds, or null where a kernel is missing.
"""

import json
import sys
import time

import torch

BEST_OF = 2


def _rois(count: int, low: float, high: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)

    def between(a: float, b: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (b - a) + a

    size, aspect = between(low, high), between(-0.7, 0.7).exp()
    center, half = (
        torch.stack((between(0, 1333), between(0, 800)), 1),
        torch.stack((size * aspect, size / aspect), 1) / 2,
    )
    limit = torch.tensor([1333.0, 800.0])
    corners = (center - half).clamp(min=0).minimum(limit), (center + half).clamp(min=0).minimum(limit)
    return torch.cat((torch.arange(count)[:, None] % 2, *corners), 1)


def _align(rois: int, level: int, out: int, **options):
    from mmcv.ops import RoIAlign

    x = torch.randn(2, 256, 800 // level, 1344 // level, requires_grad=True)
    boxes, layer = _rois(rois, 5.0 * level, 28.0 * level), RoIAlign(out, 1 / level, **options)
    return lambda: layer(x, boxes).sum().backward()


def _pool():
    from mmcv.ops import RoIPool

    x, boxes, layer = torch.randn(2, 256, 50, 84, requires_grad=True), _rois(100, 64, 448), RoIPool(7, 1 / 16)
    return lambda: layer(x, boxes).sum().backward()


def _suppress(name: str, count: int, **options):
    import mmcv.ops

    boxes, scores = _rois(count, 10, 200)[:, 1:].contiguous(), torch.rand(count)
    if name == 'batched_nms':
        labels = torch.arange(count) % 80
        return lambda: mmcv.ops.batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5, **options))
    if name == 'nms_match':
        dets = torch.cat((boxes, scores[:, None]), 1)
        return lambda: mmcv.ops.nms_match(dets, 0.5)
    return lambda: getattr(mmcv.ops, name)(boxes, scores, 0.5, **options)


def _focal(name: str):
    import mmcv.ops

    x, labels = torch.randn(5000, 80, requires_grad=True), torch.arange(5000) % 81
    labels = labels % 80 if name.startswith('softmax') else labels
    return lambda: getattr(mmcv.ops, name)(x, labels, 2.0, 0.25, None, 'mean').backward()


def _deform(modulated: bool):
    import mmcv.ops

    x, weight = torch.randn(2, 64, 25, 42, requires_grad=True), torch.randn(64, 64, 3, 3, requires_grad=True)
    offset, mask = torch.randn(2, 18, 25, 42, requires_grad=True), torch.rand(2, 9, 25, 42, requires_grad=True)
    if modulated:
        return lambda: mmcv.ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1).sum().backward()
    return lambda: mmcv.ops.deform_conv2d(x, offset, weight, 1, 1).sum().backward()


CASES = {
    'nms, 1,000 boxes': lambda: _suppress('nms', 1000),
    'nms, 5,000 boxes': lambda: _suppress('nms', 5000),
    'batched_nms, 4,000 boxes, 80 classes': lambda: _suppress('batched_nms', 4000),
    'batched_nms, 4,000 boxes, 80 classes, split': lambda: _suppress('batched_nms', 4000, split_thr=1000),
    'soft_nms, linear, 1,000 boxes': lambda: _suppress('soft_nms', 1000),
    'soft_nms, gaussian, 1,000 boxes': lambda: _suppress('soft_nms', 1000, method='gaussian'),
    'nms_match, 1,000 boxes': lambda: _suppress('nms_match', 1000),
    'roi_align, 200 RoIs, stride 4, 7x7': lambda: _align(200, 4, 7),
    'roi_align, 100 RoIs, stride 32, 7x7': lambda: _align(100, 32, 7),
    'roi_align, 100 RoIs, stride 4, 14x14': lambda: _align(100, 4, 14),
    'roi_align, 200 RoIs, stride 8, 7x7, 2 samples': lambda: _align(200, 8, 7, sampling_ratio=2),
    'roi_align, 50 RoIs, stride 16, 7x7, max': lambda: _align(50, 16, 7, pool_mode='max'),
    'roi_pool, 100 RoIs, stride 16, 7x7': _pool,
    'sigmoid_focal_loss, 5,000 x 80': lambda: _focal('sigmoid_focal_loss'),
    'softmax_focal_loss, 5,000 x 80': lambda: _focal('softmax_focal_loss'),
    'deform_conv2d, 64 channels, 25x42': lambda: _deform(False),
    'modulated_deform_conv2d, 64 channels, 25x42': lambda: _deform(True),
}


def measure() -> dict[str, float | None]:
    """Return the seconds of each case, the fastest of ``BEST_OF`` runs, or None where there is no kernel for CPUs."""
    # mmcv's CPU kernels use one thread, so both sides do
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, float | None] = {}
    for name, make in CASES.items():
        run, times = make(), []
        try:
            for _ in range(BEST_OF):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
        except RuntimeError:  # mmcv compiles the focal losses and RoIPool for GPUs only
            times = []
        found[name] = min(times, default=None)
    return found


if __name__ == '__main__':
    if '--mmplugin' in sys.argv:
        import mmplugin.ops

        mmplugin.ops.install()
    sys.stdout.write(json.dumps(measure()) + '\n')
