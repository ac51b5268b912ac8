"""The forms of the three heads: in PyTorch their results are those of mmdet and mmseg, bit for bit."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from tiny_heads import as_truth, sample, tiny

from mmplugin.deploy.masks import paste_masks
from mmplugin.deploy.models import Choice, form_of
from mmplugin.deploy.samples import Reference


def run(form, image, size):
    inputs = {name: torch.from_numpy(np.array(value)) for name, value in image.inputs(size).items()}
    with torch.no_grad():
        return dict(zip(form.outputs, form(**inputs), strict=True))


@pytest.mark.parametrize('size', [None, (160, 192)], ids=['any size', 'padded to a fixed size'])
@pytest.mark.parametrize('head', ['retina', 'mask', 'semantic'])
def test_a_form_in_pytorch_gives_the_results_of_the_model_bit_for_bit(head, size):
    model, classes = tiny(head)
    form = form_of(model, classes, Choice()).eval()
    image = sample(120, 171, (300, 401))
    expected, found = Reference(model, size)(as_truth(head, image)), run(form, image, size)
    if head == 'semantic':
        assert torch.equal(expected.pred_sem_seg.data[0], found['classes'].long())
        assert len(found['classes'].unique()) > 1
        return
    objects = expected.pred_instances
    assert len(objects) == 20
    assert torch.equal(objects.labels, found['labels'])
    assert torch.equal(objects.scores, found['scores'])
    torch.testing.assert_close(objects.bboxes, found['boxes'], rtol=0, atol=2e-5)  # a division more or less
    if head == 'mask':
        masks = paste_masks(found['masks'].numpy(), objects.bboxes.numpy(), 300, 401, 0.5)
        assert np.array_equal(masks, objects.masks.numpy())
        full = run(form_of(model, classes, Choice(full_masks=True)).eval(), image, size)['masks']
        assert torch.equal(full, objects.masks)
        assert 0 < masks.mean() < 1
