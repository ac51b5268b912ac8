"""Every supported format converts without a remainder, computes the same features, and converts back bit by bit."""

import copy
import re

import pytest
import torch
from mmengine.registry import MODELS
from parity import kit, parity

from mmplugin.convert import convert
from mmplugin.convert.export import export
from mmplugin.errors import UserError

SMALL = ['official/efficientformer_l1', 'official/efficientformerv2_s0', 'official/efficientvit_m0']


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in other)


def origin_of(name):
    project = name.split('/')[0]
    return {'official': 'original', 'timm': 'timm'}.get(project, 'original dense')


def load_strictly(result):
    with torch.device('meta'):
        backbone = MODELS.build(result.backbone)
    backbone.load_state_dict(result.state_dict, strict=True, assign=True)
    return backbone


@pytest.mark.parametrize('name', kit.FORMATS)
def test_every_format_converts_and_converts_back_bit_by_bit(name):
    source = kit.cheap(name)
    result = convert(source)
    assert (result.origin, result.backbone['arch']) == (origin_of(name), name.rsplit('_', 1)[1])
    load_strictly(result)
    assert len(source) == len(result.state_dict) + sum(result.dropped.values())

    back, notes = export(result, 'timm' if name.startswith('timm') else 'original')
    assert back.keys() == source.keys()
    resized = {key for key in source if 'evit' in result.family and re.match(r'(blocks3|stages\.2)\..*biases$', key)}
    assert len(result.resized) == len(resized)
    assert bool(notes) == bool(resized)
    for key, value in source.items():
        if key in resized:
            torch.testing.assert_close(back[key], value, rtol=1e-5, atol=1e-5)
        else:
            assert back[key].dtype == value.dtype, key
            assert torch.equal(back[key], value), key


@pytest.mark.parametrize(('kind', 'name'), [(kind, name) for kind, found in kit.PROBES.items() for name in found])
def test_features_equal_those_of_the_original_code(kind, name):
    result = convert(kit.measured(name))
    backbone = MODELS.build(result.backbone).eval()
    backbone.load_state_dict(result.state_dict, strict=True)
    if kind == 'dense_zero_bias':
        for table in (value for key, value in backbone.named_parameters() if key.endswith('.table')):
            torch.nn.init.zeros_(table)
    probes = kit.PROBES[kind][name]
    for size, wanted in (probes if isinstance(probes, dict) else {'224x224': probes}).items():
        with torch.inference_mode():
            features = backbone(parity.image(*map(int, size.split('x'))))
        for feature, probe in zip(features, wanted, strict=True):
            assert parity.worst_error(feature, probe) < 1e-4


def test_dense_files_determine_attention_bias_and_grid():
    assert convert(kit.cheap('upstream-coco/efficientformer_l1')).backbone == {
        'type': 'EfficientFormer', 'arch': 'l1', 'attention_bias': 'upstream', 'bias_grid': 25, 'out_norm': True,
    }  # fmt: skip
    assert convert(kit.cheap('upstream-ade/efficientformerv2_s2')).backbone == {
        'type': 'EfficientFormerV2', 'arch': 's2', 'attention_bias': 'upstream', 'bias_grid': 16,
    }  # fmt: skip


def test_bias_tables_of_smaller_windows_are_enlarged():
    """At 384 px the last stage has 6x6 windows; Microsoft's dense files have 7x7 already."""
    source = kit.cheap(SMALL[2])
    tables = [key for key, value in source.items() if key.endswith('biases') and value.shape[1] == 16]
    for key in tables:
        source[key] = torch.rand(4, 36)
    assert list(convert(source).resized.values()) == [(36, 49)] * 3
    for key in tables:
        source[key] = torch.rand(4, 49)
    result = convert(source)
    assert not result.resized
    assert torch.equal(result.state_dict['stages.2.blocks.0.mixer.attention_biases.table'], source[tables[0]])


def test_a_finer_pretraining_grid_follows_from_the_tables():
    source = kit.cheap('timm/efficientformerv2_s0')
    for key in [key for key in source if key.endswith('attention_biases')]:
        source[key] = torch.rand(8, 576 if 'downsample' in key else 144)
    assert convert(source).backbone == {'type': 'EfficientFormerV2', 'arch': 's0', 'bias_grid': 12}


def test_four_input_channels_follow_from_the_stem():
    source = kit.cheap('timm/efficientformer_l1')
    source['stem.conv1.weight'] = torch.rand(24, 4, 3, 3)
    assert load_strictly(convert(source)).in_channels == 4


def test_the_source_is_not_changed():
    source = kit.cheap(SMALL[2])
    before = {key: value.clone() for key, value in source.items()}
    convert(source)
    assert equal(source, before)


@pytest.mark.parametrize('name', SMALL)
def test_converting_a_converted_file_changes_nothing(name):
    first = convert(kit.cheap(name))
    again = convert({'state_dict': first.state_dict, 'head': first.head, 'meta': {'backbone': first.backbone}})
    assert (again.backbone, again.origin) == (first.backbone, 'mmplugin')
    assert equal(again.state_dict, first.state_dict)
    assert equal(again.head, first.head)


def test_missing_upper_stages_follow_from_the_keys():
    result = convert(kit.cheap(SMALL[1]))
    lower = {key: value for key, value in result.state_dict.items() if not key.startswith('stages.3.')}
    assert convert(lower).backbone == {**result.backbone, 'out_indices': (0, 1, 2)}


def test_v1_converts_without_distillation_head_and_without_head():
    source = {key: value for key, value in kit.cheap('timm/efficientformer_l1').items() if 'head_dist' not in key}
    assert set(convert(source).head) == {'norm.weight', 'norm.bias', 'head.weight', 'head.bias'}
    source = {key: value for key, value in source.items() if not key.startswith(('head', 'norm'))}
    assert convert(source).head == {}


def mmpretrain_l1():
    """The keys of mmpretrain's EfficientFormer l1, written down from its module names; values by their number."""
    keys = [f'patch_embed.{i}.{layer}' for i in range(2) for layer in ('conv', 'bn')]
    for stage, depth in enumerate((3, 2, 6, 4)):
        first = 0 if stage == 0 else 1
        keys += [f'network.{stage}.0.{layer}' for layer in ('conv', 'bn')] if stage else []
        pooling = depth - 1 if stage == 3 else depth
        for i in range(first, first + pooling):
            keys += [f'network.{stage}.{i}.{layer}' for layer in ('mlp.fc1', 'mlp.norm1', 'mlp.fc2', 'mlp.norm2')]
            keys += [f'network.{stage}.{i}.ls{j}' for j in (1, 2)]
    # The last pooling block is followed by a flattening layer, so block 5 has attention.
    keys += [f'network.3.5.{layer}' for layer in ('norm1', 'token_mixer.qkv', 'token_mixer.proj', 'norm2')]
    keys += [f'network.3.5.{layer}' for layer in ('mlp.fc1', 'mlp.fc2', 'ls1', 'ls2')]
    return keys


def test_mmpretrain_converts_to_the_same_weights_as_timm():
    source = kit.cheap('timm/efficientformer_l1')
    ours = convert(source)
    modules = {}
    for key, value in source.items():
        if not key.startswith(('norm.', 'head')) and 'attention_bias' not in key:
            modules.setdefault(key.rsplit('.', 1)[0], {})[key.rsplit('.', 1)[1].replace('gamma', 'weight')] = value
    # Both list modules from input to output; only the order inside a block differs.
    order = ['ls1', 'ls2', 'norm1', 'norm2', 'qkv', 'proj', 'fc1', 'fc2', 'conv', 'bn']

    theirs = mmpretrain_l1()
    stem = [name for name in modules if name.startswith('stem')]
    timm_order = stem + sorted((n for n in modules if n not in stem), key=lambda n: position(n, order))
    their_stem = [name for name in theirs if name.startswith('patch_embed')]
    their_order = their_stem + sorted((n for n in theirs if n not in their_stem), key=lambda n: position(n, order))
    foreign = {
        f'backbone.{theirs}.{leaf}': value
        for theirs, timm in zip(their_order, timm_order, strict=True)
        for leaf, value in modules[timm].items()
    }
    mixer = 'stages.3.blocks.4.token_mixer.attention_bias'
    foreign['backbone.network.3.5.token_mixer.attention_biases'] = source[f'{mixer}es']
    foreign['backbone.network.3.5.token_mixer.attention_bias_idxs'] = source[f'{mixer}_idxs']
    for leaf in ('weight', 'bias'):
        foreign[f'backbone.norm3.{leaf}'] = source[f'norm.{leaf}']
        foreign[f'head.head.{leaf}'] = source[f'head.{leaf}']
        foreign[f'head.dist_head.{leaf}'] = source[f'head_dist.{leaf}']

    result = convert({'state_dict': foreign, 'meta': {'epoch': 300}})
    assert (result.origin, result.backbone) == ('mmpretrain', ours.backbone)
    assert equal(result.state_dict, ours.state_dict)
    assert equal(result.head, ours.head)


def position(name, order):
    """Stage, block (downsampling first), layer."""
    parts = name.split('.')
    if parts[0] == 'network':
        stage, block = int(parts[1]), int(parts[2])
        downsampling = parts[3] in ('conv', 'bn')
        block -= stage > 0
    else:
        stage, downsampling = int(parts[1]), parts[2] == 'downsample'
        block = -1 if downsampling else int(parts[3])
    leaf = 'bn' if downsampling and parts[-1] == 'norm' else parts[-1]
    return stage, -1 if downsampling else block, 'mlp' in parts, order.index(leaf)


class TestDamage:
    """The error names the one change in an otherwise good file."""

    @pytest.fixture
    def source(self):
        return kit.cheap('official/efficientformerv2_s0')

    @pytest.mark.parametrize(
        'key', ['network.4.5.token_mixer.q.0.weight', 'norm.weight', 'dist_head.bias', 'patch_embed.0.weight']
    )
    def test_a_key_renamed(self, source, key):
        source[f'{key}x'] = source.pop(key)
        with pytest.raises(UserError, match=f'(?s)1 unknown:\n *{re.escape(key)}x.*1 missing:\n *{re.escape(key)}\n'):
            convert(source)

    @pytest.mark.parametrize('key', ['network.6.3.token_mixer.attention_biases', 'head.weight', 'network.5.bn.bias'])
    def test_a_key_missing(self, source, key):
        del source[key]
        with pytest.raises(UserError, match=f'1 missing:\n *{re.escape(key)}\n'):
            convert(source)

    def test_a_dense_table_missing(self):
        """Without its only dense table, a dense file of V1 is not mistaken for a classification file."""
        source = kit.cheap('upstream-coco/efficientformer_l1')
        del source['network.6.4.token_mixer.attention_biases_seg']
        with pytest.raises(UserError, match=r'1 missing:\n *network\.6\.4\.token_mixer\.attention_biases_seg'):
            convert(source)

    @pytest.mark.parametrize('key', ['network.2.0.mlp.fc1.weight', 'network.0.0.layer_scale_2', 'head.bias'])
    def test_a_wrong_shape(self, source, key):
        source[key] = source[key][:-1]
        with pytest.raises(UserError, match=rf'1 of a wrong shape or type:\n *{re.escape(key)} is [\dx]+, expected'):
            convert(source)

    @pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
    def test_not_finite(self, source, value):
        source['network.2.0.mlp.fc1.weight'][3, 2] = value
        with pytest.raises(UserError, match=r'1 not finite \(NaN or infinity\):\n *network\.2\.0\.mlp\.fc1\.weight'):
            convert(source)

    def test_whole_numbers_in_place_of_weights(self, source):
        source['network.2.0.mlp.fc1.weight'] = source['network.2.0.mlp.fc1.weight'].long()
        with pytest.raises(UserError, match=r'fc1.weight is int64, expected floating point'):
            convert(source)

    def test_mixed_families(self, source):
        with pytest.raises(UserError, match=r'(?s)recognized as .* unknown:'):
            convert({**kit.cheap('official/efficientvit_m0'), **source})

    def test_all_problems_at_once_and_counted(self, source):
        for key in [key for key in source if key.startswith('network.0.')]:
            source[f'{key}x'] = source.pop(key)
        with pytest.raises(UserError, match=r'(?s)44 unknown:.*and 36 more.*44 missing:.*and 36 more'):
            convert(source)

    def test_another_network(self):
        with pytest.raises(UserError, match=r'not the weights of a supported network.*: conv1.weight'):
            convert({'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.weight': torch.zeros(1000, 512)})
        with pytest.raises(UserError, match=r'not the weights of a supported network.*: none'):
            convert({})

    def test_arch_only_confirms(self, source):
        assert convert(source, 's0').backbone == convert(source, 'efficientformerv2_s0').backbone
        with pytest.raises(UserError, match=r'weights of EfficientFormerV2 s0 .original., not of s1'):
            convert(source, 's1')
        with pytest.raises(UserError, match="unknown arch 's7'; allowed: l1, l3"):
            convert(source, 's7')


class TestWrappers:
    """Wrappers and prefixes of the weights in a file."""

    @pytest.fixture
    def source(self):
        return kit.cheap('official/efficientvit_m0')

    def test_prefixes(self, source):
        wanted = convert(source).state_dict
        distributed = {f'module.{key}': value for key, value in source.items()}
        assert equal(convert({'model': distributed}).state_dict, wanted)
        deep = {f'student.net.{key}': value for key, value in source.items()} | {'teacher.x': torch.zeros(1)}
        assert equal(convert(deep, prefix='student.net').state_dict, wanted)
        with pytest.raises(UserError, match=r"no key has the prefix 'nets\."):
            convert(deep, prefix='nets')

    def test_moving_average_only_when_asked(self, source):
        average = {key: value + 1 for key, value in source.items()}
        both = {'model': source, 'model_ema': average}
        key = 'stem.0.conv.weight'
        assert torch.equal(convert(both, ema=True).state_dict[key], convert(both).state_dict[key] + 1)
        with pytest.raises(UserError, match='no moving average'):
            convert({'model': source}, ema=True)
        with pytest.raises(UserError, match=r'only a moving average of the weights \(state_dict_ema\).*--ema'):
            convert({'state_dict_ema': average})
        mmengine = {'steps': torch.tensor(5), **{f'module.backbone.{key}': value for key, value in average.items()}}
        assert convert({'state_dict': source, 'ema_state_dict': mmengine}, ema=True).backbone['arch'] == 'm0'

    def test_whole_detector(self, source):
        """Microsoft numbers the output convolutions from the finest map, mmplugin in the order of computation."""
        body = {f'backbone.{key}': value for key, value in source.items() if not key.startswith('head')}
        neck = {
            'neck.lateral_convs.0.conv.weight': 'neck.lateral_convs.0.conv.weight',
            'neck.extra_trans_convs.0.conv.weight': 'neck.upsample_convs.0.conv.weight',
            'neck.extra_fpn_convs.0.conv.weight': 'neck.upsampled_fpn_convs.1.conv.weight',
            'neck.extra_fpn_convs.1.conv.weight': 'neck.upsampled_fpn_convs.0.conv.weight',
            'rpn_head.rpn_conv.weight': 'rpn_head.rpn_conv.weight',
            'roi_head.bbox_head.fc_cls.weight': 'roi_head.bbox_head.fc_cls.weight',
        }
        result = convert({'state_dict': {**body, **{key: torch.rand(2) for key in neck}}, 'optimizer': {}})
        assert result.dropped['neck and heads'] == len(neck)
        assert set(result.others) == set(neck.values())
        with pytest.raises(UserError, match=r'belong neither to the backbone.*backbones.stem'):
            convert({**body, 'backbones.stem': torch.zeros(1)})

    def test_an_entry_that_is_not_a_tensor(self, source):
        with pytest.raises(UserError, match='1 entries are not tensors: lr'):
            convert({**source, 'lr': 0.1})


@pytest.mark.parametrize(
    'name',
    [
        *(f'efficientformer_{arch}' for arch in ('l1', 'l3')),
        pytest.param('efficientformer_l7', marks=pytest.mark.slow),
        *(f'efficientformerv2_{arch}' for arch in ('s0', 's1', 's2', 'l')),
        *(f'efficientvit_m{i}' for i in range(6)),
    ],
)
def test_features_and_logits_equal_those_of_timm(timm, name):
    """timm also loads the exported weights strictly."""
    from mmplugin.convert.classifier import from_head

    model = timm.create_model(name).eval()
    for value in (value for key, value in model.named_parameters() if 'bias' in key or 'gamma' in key):
        torch.nn.init.uniform_(value, 0.1, 0.4)
    image = parity.image(224, 224)
    result = convert(model.state_dict())
    backbone = MODELS.build(result.backbone).eval()
    backbone.load_state_dict(result.state_dict, strict=True)
    with torch.inference_mode():
        logits, wanted = model(image), model.forward_intermediates(image, intermediates_only=True)
        features = backbone(image)
        classified = from_head(result.family, backbone.settings['widths'][-1], result.head)(features[-1])
    for feature, want in zip(features, wanted[-len(features) :], strict=True):
        torch.testing.assert_close(feature, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classified, logits, rtol=1e-4, atol=1e-4)

    # From the authors' format to timm's, which has index tables for some archs.
    official = export(result, 'original')[0]
    again = copy.deepcopy(model)  # faster than a new one
    for value in again.state_dict().values():
        value.zero_()
    again.load_state_dict(export(convert(official), 'timm')[0], strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), logits, rtol=1e-4, atol=1e-4)


def test_exports_that_are_not_possible_are_user_errors():
    dense = convert(kit.cheap('upstream-coco/efficientformerv2_s0'))
    with pytest.raises(UserError, match='timm does not support'):
        export(dense, 'timm')
    headless = {key: value for key, value in kit.cheap('timm/efficientformer_l1').items() if 'head' not in key}
    with pytest.raises(UserError, match='no classification head, which this format requires'):
        export(convert(headless), 'timm')
    ours = convert({key: v for key, v in convert(headless).state_dict.items() if not key.startswith('stages.3')})
    with pytest.raises(UserError, match='stages or norms are missing'):
        export(ours, 'original')
