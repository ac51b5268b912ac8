"""The stand-in for ``mmcv._ext``: when it is installed, its operators, and ``torch.compile`` and ``torch.export``."""

import subprocess
import sys
from importlib import machinery, util
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import torch

import mmplugin  # noqa: F401 - installs the stand-in
from mmplugin import ops
from mmplugin.errors import UserError
from mmplugin.ops import extension, library, signatures

ops.install()  # a second call changes nothing
stand_in = pytest.mark.skipif(ops.backend() == 'compiled', reason='mmcv has compiled operators')


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True
    ).stdout


@stand_in
def test_mmcv_finds_the_operators():
    from mmcv.utils.ext_loader import check_ops_exist

    assert check_ops_exist()
    import mmcv.ops

    assert isinstance(sys.modules['mmcv._ext'], extension.StandIn)
    assert mmcv.ops.get_compiler_version() == 'none (mmplugin.ops)'
    assert ops.backend() in ('torch', 'torchvision')


@stand_in
def test_an_operator_that_is_not_implemented_says_how_to_get_it():
    from mmcv.ops import box_iou_rotated

    with pytest.raises(UserError, match=r"'box_iou_rotated' of mmcv is not compiled.*onedl-mmcv"):
        box_iou_rotated(torch.rand(1, 5), torch.rand(1, 5))
    with pytest.raises(AttributeError, match="has no attribute '__path__'"):
        sys.modules['mmcv._ext'].__path__  # noqa: B018


@stand_in
def test_mmcv_calls_every_function_of_the_stand_in():
    import mmcv.ops

    sources = ''.join(path.read_text(encoding='utf-8') for path in Path(mmcv.ops.__file__).parent.glob('*.py'))
    functions = {
        name: function
        for name, function in vars(signatures).items()
        if isinstance(function, FunctionType) and function.__module__ == signatures.__name__ and name[0] != '_'
    }
    assert len(functions) == 18
    for name, function in functions.items():
        assert getattr(sys.modules['mmcv._ext'], name) is function
        assert f'ext_module.{name}(' in sources


def _inputs() -> dict[str, tuple]:
    """Arguments for every operator, with fresh tensors of the same values."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    corner = torch.rand(40, 2, generator=generator) * 30
    boxes = torch.cat((corner, corner + torch.rand(40, 2, generator=generator) * 20), 1)
    scores, labels = torch.rand(40, generator=generator), torch.arange(40) % 3
    rois = torch.tensor([[0, 1.0, 1, 20, 15], [1, -9, 3, 70, 40], [1, 8, 4, 8, 30]])
    x, offset, mask, weight, bias = leaf(2, 4, 8, 8), leaf(2, 18, 8, 8), leaf(2, 9, 8, 8), leaf(5, 4, 3, 3), leaf(5)
    return {
        'batched_nms': (boxes, scores, labels, dict(type='nms', iou_threshold=0.5)),
        'deform_conv2d': (x, offset, weight, 1, 1),
        'modulated_deform_conv2d': (x, offset, mask, weight, bias, 1, 1),
        'nms': (boxes, scores, 0.5),
        'nms_match': (torch.cat((boxes, scores[:, None]), 1), 0.5),
        'roi_align': (x, rois, (3, 2), 0.25),
        'roi_pool': (x, rois, (3, 2), 0.25),
        'sigmoid_focal_loss': (leaf(6, 3), torch.arange(6) % 4),
        'soft_nms': (boxes, scores, 0.3),
        'softmax_focal_loss': (leaf(6, 3), torch.arange(6) % 4),
    }


@stand_in
@pytest.mark.parametrize('name', ops._FUNCTIONS)
def test_mmcvs_wrapper_of_every_operator_equals_the_function(name):
    import mmcv.ops

    results = []
    for function in (getattr(ops, name), getattr(mmcv.ops, name)):
        args = _inputs()[name]
        outputs = function(*args)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
        leaves = [value for value in args if isinstance(value, torch.Tensor) and value.requires_grad]
        results.append(outputs + list(torch.autograd.grad(outputs[0].square().sum(), leaves) if leaves else []))
    for of_function, of_wrapper in zip(*results, strict=True):
        torch.testing.assert_close(of_wrapper, of_function)


def test_compiled_operators_are_not_replaced(tmp_path, monkeypatch):
    (tmp_path / f'_ext{machinery.EXTENSION_SUFFIXES[0]}').touch()
    spec = machinery.ModuleSpec('mmcv', None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(util, 'find_spec', lambda name: spec)
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    extension.backend.cache_clear()
    try:
        assert ops.backend() == 'compiled'
        ops.install()
        assert 'mmcv._ext' not in sys.modules
    finally:
        extension.backend.cache_clear()


def test_fallbacks_in_modules_imported_before_mmplugin_are_replaced(monkeypatch):
    def nms(*args):
        raise RuntimeError('nms requires mmcv to be compiled with ops.')

    early = ModuleType('mmdet.early')
    early.nms, early.roi_pool = nms, lambda: 'custom'
    monkeypatch.setitem(sys.modules, 'mmdet.early', early)
    extension._replace_fallbacks()
    import mmcv.ops

    assert early.nms is mmcv.ops.nms
    assert early.roi_pool() == 'custom'


@stand_in
def test_importing_mmplugin_imports_neither_mmcv_nor_operators():
    code = (
        'import sys, mmplugin.ops as ops; ops.install();'
        'print([name for name in ("mmcv", "mmplugin.ops.library") if name in sys.modules])'
    )
    assert run(code).strip() == '[]'


def test_operators_pass_the_checks_of_torch_library():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1, 20, 15], [1, 4, 2, 30, 28]])
    tests = ('test_schema', 'test_faketensor', 'test_autograd_registration')
    for average in (True, False):
        torch.library.opcheck(library.roi_align, (x, rois, 3, 3, 0.25, 0, average, True), test_utils=tests)
    torch.library.opcheck(library.roi_pool, (x, rois, 3, 3, 0.25), test_utils=tests)
    boxes, scores = torch.rand(6, 4), torch.rand(6)
    torch.library.opcheck(library.nms, (boxes, scores, 0.5, 0), test_utils=tests)
    torch.library.opcheck(library.soft_nms, (boxes, scores, 0.5, 0.5, 0.01, 1, 0), test_utils=tests)
    offset, weight = torch.randn(2, 18, 8, 8, requires_grad=True), torch.randn(5, 4, 3, 3, requires_grad=True)
    geometry = ([1, 1], [1, 1], [1, 1], 1, 1)
    torch.library.opcheck(library.deform_conv2d, (x, offset, None, weight, None, *geometry), test_utils=tests)


@stand_in
def test_compile_and_export_keep_mmcvs_wrappers_as_one_node():
    from mmcv.ops import RoIAlign, batched_nms

    align = RoIAlign(3, 0.25)

    def head(x, rois):
        return align(x, rois).relu()

    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 1, 20, 15], [1, 4, 2, 30, 28]])
    compiled = torch.compile(head, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x, rois), head(x, rois))
    assert torch.equal(*(torch.autograd.grad(run(x, rois).sum(), x)[0] for run in (compiled, head)))

    class Detector(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))[0]

    boxes, scores, labels = torch.rand(40, 4).cumsum(1), torch.rand(40), torch.arange(40) % 3
    program = torch.export.export(Detector(), (boxes, scores, labels))
    other = torch.rand(40, 4).cumsum(1)  # NMS keeps another number of boxes
    for args in ((boxes, scores, labels), (other, scores, labels)):
        torch.testing.assert_close(program.module()(*args), Detector()(*args))
