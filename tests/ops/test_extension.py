"""The stand-in for mmcv._ext: when it is put in place, what it answers, and that compile and export see through it."""

import subprocess
import sys
from importlib import machinery, util
from types import ModuleType

import pytest
import torch

import mmplugin  # noqa: F401 - puts the stand-in in place
from mmplugin import ops
from mmplugin.errors import UserError
from mmplugin.ops import extension, library

ops.install()  # nothing happens the second time
stand_in = pytest.mark.skipif(ops.backend() == 'compiled', reason='mmcv brings compiled operators')


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
def test_missing_operators_say_their_name_and_the_way():
    from mmcv.ops import box_iou_rotated

    with pytest.raises(UserError, match=r"'box_iou_rotated' of mmcv is not compiled here.*onedl-mmcv"):
        box_iou_rotated(torch.rand(1, 5), torch.rand(1, 5))
    with pytest.raises(AttributeError, match="has no attribute '__path__'"):
        sys.modules['mmcv._ext'].__path__  # noqa: B018


@stand_in
def test_every_operator_of_mmcv_exists_by_name():
    """load_ext asserts that each name is there; the import of mmcv.ops alone goes through all of them."""
    import mmcv.ops

    names = {name for name in dir(mmcv.ops) if not name.startswith('_')}
    assert {'nms', 'RoIAlign', 'CARAFE', 'MultiScaleDeformableAttention', 'Voxelization'} <= names


def test_compiled_operators_are_left_alone(tmp_path, monkeypatch):
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


def test_guards_that_closed_before_mmplugin_came_are_opened(monkeypatch):
    def nms(*args):
        raise RuntimeError('nms requires mmcv to be compiled with ops.')

    early = ModuleType('mmdet.early')
    early.nms, early.roi_pool = nms, lambda: 'my own'
    monkeypatch.setitem(sys.modules, 'mmdet.early', early)
    extension._mend_guards()
    import mmcv.ops

    assert early.nms is mmcv.ops.nms
    assert early.roi_pool() == 'my own'


@stand_in
def test_importing_mmplugin_imports_no_mmcv_and_reads_no_operator():
    code = (
        'import sys, mmplugin.ops as ops; ops.install();'
        'print([name for name in ("mmcv", "mmplugin.ops.library") if name in sys.modules])'
    )
    assert run(code).strip() == '[]'


def test_operators_keep_torch_librarys_rules():
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
def test_compile_takes_mmcvs_wrappers_whole():
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
    other = torch.rand(40, 4).cumsum(1)  # keeps another number of boxes
    for args in ((boxes, scores, labels), (other, scores, labels)):
        torch.testing.assert_close(program.module()(*args), Detector()(*args))
