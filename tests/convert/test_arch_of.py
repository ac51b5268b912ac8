"""Weights in mmplugin's own format say what network they are, also without notes."""

import json

import pytest
import torch

from mmplugin.backbones import FAMILIES
from mmplugin.convert import convert, load_pretrained
from mmplugin.convert.arch_file import read_arch
from mmplugin.convert.arch_of import arch_of
from mmplugin.engine.weights import load_exactly
from mmplugin.errors import UserError

CUSTOM = {
    'v1': dict(widths=(8, 16, 24, 32), depths=(1, 0, 2, 2), attention_blocks=1, key_dim=4),
    'v2': dict(
        widths=(8, 16, 24, 32),
        depths=(1, 1, 2, 2),
        attention_blocks=(1, 2),
        ratios=((4,), (3,), (1, 2.5), (1, 1)),
        value_dim=4,
    ),
    'evit': dict(widths=(16, 24, 32), depths=(1, 2, 1), heads=(2, 3, 4), kernels=(3, 5, 1, 1), merge_ratio=(1, 2.5)),
}
PUBLISHED = [(family, name) for family, cls in FAMILIES.items() for name in cls.ARCHS]
LIKE = {'v1': 'l1', 'v2': 's0', 'evit': 'm0'}


def build(family: str, arch: str | dict, device: str = 'cpu', **arguments) -> torch.nn.Module:
    with torch.device(device):
        return FAMILIES[family](arch, **arguments)


@pytest.mark.parametrize(('family', 'name'), PUBLISHED)
def test_published_variants_have_their_names(family, name):
    assert arch_of(build(family, name, 'meta').state_dict()) == (family, name)


@pytest.mark.parametrize(('family', 'name'), [row for row in PUBLISHED if row[1] != 'm4'])
def test_the_first_stages_are_enough_for_a_name(family, name):
    """All but m4, whose first stage equals that of m2."""
    for i in range(len(FAMILIES[family].STRIDES)):
        assert arch_of(build(family, name, 'meta', out_indices=(i,)).state_dict()) == (family, name)


@pytest.mark.parametrize('family', CUSTOM)
def test_missing_stages_are_completed_to_a_valid_arch(family):
    for i in range(len(FAMILIES[family].STRIDES)):
        weights = build(family, CUSTOM[family], 'meta', out_indices=(i,)).state_dict()
        _, arch = arch_of(weights)
        rebuilt = build(family, arch, 'meta', out_indices=(i,)).state_dict()
        assert {key: value.shape for key, value in rebuilt.items()} == {key: v.shape for key, v in weights.items()}


@pytest.mark.parametrize('family', CUSTOM)
def test_a_detector_without_notes_converts_and_initializes(family, tmp_path):
    own = build(family, CUSTOM[family], out_indices=(0, 1))
    detector = {f'backbone.{key}': value for key, value in own.state_dict().items()}
    torch.save({'state_dict': {**detector, 'bbox_head.bias': torch.rand(3)}, 'meta': {'epoch': 12}}, tmp_path / 'e.pth')
    result = convert(torch.load(tmp_path / 'e.pth'))
    rebuilt = FAMILIES[family](**{key: value for key, value in result.backbone.items() if key != 'type'})
    rebuilt.load_state_dict(result.state_dict, strict=True)
    assert result.backbone['out_indices'] == (0, 1)
    json.dumps(result.backbone)
    again = build(family, CUSTOM[family], out_indices=(1,))
    assert 'custom: widths' in load_pretrained(again, tmp_path / 'e.pth')
    assert torch.equal(again.stem[0].conv.weight, own.stem[0].conv.weight)


@pytest.mark.parametrize('notes', [True, False])
@pytest.mark.parametrize('family', CUSTOM)
def test_another_arch_is_refused_with_the_differences_first(family, notes, tmp_path):
    arch, name = CUSTOM[family], LIKE[family]
    meta = {'meta': {'backbone': {'arch': arch}}} if notes else {}
    torch.save({'state_dict': build(family, arch).state_dict(), **meta}, tmp_path / 'own.pth')
    torch.save(build(family, name).state_dict(), tmp_path / 'published.pth')
    row = FAMILIES[family].ARCHS[name]
    for built, file, depths in (
        (name, 'own.pth', (row['depths'], arch['depths'])),
        (arch, 'published.pth', (arch['depths'], row['depths'])),
    ):
        with pytest.raises(UserError) as caught:
            load_pretrained(build(family, built), tmp_path / file)
        assert 'depths {}, the file has {}'.format(*depths) in str(caught.value)
        assert 'Set backbone=dict(type=' in str(caught.value)
        assert 'unknown' not in str(caught.value)
    with pytest.raises(UserError, match=r'the backbone has widths .*, the file has .*The file holds .* custom: widths'):
        load_exactly(build(family, name), torch.load(tmp_path / 'own.pth')['state_dict'], 'own.pth')
    with pytest.raises(UserError, match=f'not of {name} .*depths .*omit --arch'):
        convert(torch.load(tmp_path / 'own.pth'), name)


@pytest.mark.parametrize('family', CUSTOM)
def test_notes_that_contradict_the_weights_are_refused(family):
    weights, arch = build(family, CUSTOM[family]).state_dict(), CUSTOM[family]
    wrong = dict(arch, widths=tuple(2 * width for width in arch['widths']))
    with pytest.raises(UserError, match=r"not of the arch in the file's own meta: widths .*, the file has .*Use arch="):
        convert({'state_dict': weights, 'meta': {'backbone': {'arch': wrong}}})
    with pytest.raises(UserError, match=r"the arch in the file's own meta does not fit: .*widths, stage 1, is 0"):
        convert({'state_dict': weights, 'meta': {'backbone': {'arch': dict(arch, widths=(0, *arch['widths'][1:]))}}})
    huge = dict(arch, depths=(1000,) * len(arch['depths']), hidden=[[8] * 1000] * len(arch['depths']))
    with pytest.raises(UserError, match=r'\d+ blocks or heads in arch, but only \d+ tensors'):
        convert(
            {'state_dict': weights, 'meta': {'backbone': {'arch': {k: v for k, v in huge.items() if k != 'ratios'}}}}
        )


def test_a_damaged_published_file_is_still_called_by_its_name():
    weights = build('v2', 's0').state_dict()
    weights['stages.2.blocks.1.mlp.fc1.conv.weight'] = torch.rand(7, 96, 1, 1)
    with pytest.raises(UserError, match=r'recognized as EfficientFormerV2 s0 \(mmplugin\)[^?]*1 of a wrong shape'):
        convert(weights)


def test_other_formats_need_an_arch_and_say_so():
    with pytest.raises(UserError, match="not the weights of a backbone in mmplugin's format"):
        arch_of({'patch_embed.0.weight': torch.rand(8, 3, 3, 3)})
    with pytest.raises(UserError, match=r'other than that of mmplugin, pass its arch: --arch FILE\.json'):
        convert({'layer1.0.conv1.weight': torch.rand(8, 8, 1, 1)})


def test_a_json_file_names_a_family_and_an_arch(tmp_path):
    path = tmp_path / 'arch.json'
    path.write_text(json.dumps(dict(type='EfficientFormerV2', arch=CUSTOM['v2'])))
    assert read_arch(path) == ('v2', FAMILIES['v2'].explicit(CUSTOM['v2']))
    path.write_text(json.dumps(CUSTOM['evit']))
    assert read_arch(path)[0] == 'evit'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'is not JSON'),
        ('[1]', 'holds a list'),
        ('[' * 100_000, 'is not JSON'),
        ('{"widths": [8]}', 'no family can build this arch'),
        ('{"type": "ResNet", "arch": {}}', 'expected a type of EfficientFormer, EfficientFormerV2'),
        ('{"type": ["x"], "arch": {}}', 'expected a type of'),
        ('{"type": "EfficientFormer", "arch": {"widths": 5}}', 'lacks'),
    ],
)
def test_json_files_that_hold_no_arch_are_refused(text, message, tmp_path):
    path = tmp_path / 'arch.json'
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_arch(path)
