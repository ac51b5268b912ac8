"""All 39 configs load, build, train a step and predict, and state the published results."""

import copy
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS, DefaultScope

from mmplugin import registration, stack
from mmplugin.backbones import FAMILIES
from mmplugin.config_edits import dicts, is_segmentation
from mmplugin.engine.config import load_config
from mmplugin.engine.runner import build_model
from mmplugin.errors import UserError
from mmplugin.paths import config_names, configs_root

ARCHS = [(family, arch) for family, cls in FAMILIES.items() for arch in cls.ARCHS]
HEADS = {'maskrcnn': 'detection', 'retinanet': 'detection', 'semfpn': 'segmentation'}
NAMES = [f'{head}_{family}_{arch}' for head in HEADS for family, arch in ARCHS]
PUBLISHED = {  # the papers' tables: box AP, mask AP, mIoU of Semantic FPN
    'v1_l1': (37.9, 35.4, 38.9),
    'v1_l3': (41.4, 38.1, 43.5),
    'v1_l7': (42.6, 39.0, 45.1),
    'v2_s2': (43.4, 39.5, 42.4),
    'v2_l': (44.7, 40.4, 45.2),
    'evit_m4': (32.8, 31.0, None),
}


def _samples(cfg, loader: str, count: int) -> dict:
    """Return a collated batch from the pipeline of the config."""
    scope = cfg.default_scope
    registry = importlib.import_module(f'{scope}.registry')
    importlib.import_module(f'{scope}.datasets')
    with DefaultScope.overwrite_default_scope(scope):
        dataset = registry.DATASETS.build(copy.deepcopy(cfg[loader].dataset))
    return pseudo_collate([dataset[i] for i in range(count)])


def _shrink(cfg) -> None:
    """Use images of a third of the size, for speed only."""
    for step in dicts([cfg.train_dataloader, cfg.val_dataloader]):
        if step.get('type') in ('Resize', 'RandomResize'):
            step['scale'] = (96, 64)
        elif step.get('type') == 'RandomCrop':
            step['crop_size'] = (64, 64)
    if is_segmentation(cfg):
        cfg.model.data_preprocessor.size = (64, 64)


def test_every_arch_has_three_configs():
    assert sorted(NAMES) == config_names()
    for name in NAMES:
        assert (configs_root() / HEADS[name.split('_')[0]] / f'{name}.py').is_file()


@pytest.mark.parametrize('name', NAMES)
def test_the_first_line_states_the_published_result(name: str):
    head, variant = name.split('_', 1)
    line = (configs_root() / HEADS[head] / f'{name}.py').read_text().splitlines()[0]
    numbers = PUBLISHED.get(variant, (None, None, None))
    expected = {
        'maskrcnn': f'box AP {numbers[0]}, mask AP {numbers[1]}' if numbers[0] else 'Published: none.',
        'retinanet': 'box AP 32.7' if variant == 'evit_m4' else 'Published: none.',
        'semfpn': f'mIoU {numbers[2]}' if numbers[2] else 'Published: none.',
    }
    assert expected[head] in line


LARGE = ('v1_l3', 'v1_l7', 'v2_l')  # their steps take longest; the blocks are those of the smaller ones


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name.endswith(LARGE) else name for name in NAMES]
)
def test_trains_a_step_and_predicts(name: str, tiny_sets: Path):
    cfg = load_config(name, mini=True, data_root=tiny_sets)
    _shrink(cfg)
    model = build_model(cfg).train()
    batch = model.data_preprocessor(_samples(cfg, 'train_dataloader', 2), training=True)
    losses = model(**batch, mode='loss')
    loss = model.parse_losses(losses)[0]
    assert torch.isfinite(loss)
    loss.backward()
    without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without, 'parameters without a gradient stop distributed training'
    model.eval()
    batch = _samples(cfg, 'val_dataloader', 1)
    if is_segmentation(cfg):  # a size that is not a multiple of 32
        batch['inputs'] = [torch.zeros(3, 97, 131, dtype=torch.uint8)]
        batch['data_samples'][0].set_metainfo(dict(ori_shape=(101, 135), img_shape=(97, 131)))
    with torch.no_grad():
        (found,) = model.test_step(batch)
    if is_segmentation(cfg):
        assert found.pred_sem_seg.data.shape == (1, 101, 135)
    else:
        assert len(found.pred_instances.labels) <= 30
        assert found.gt_instances.labels.max() < 6


@pytest.mark.parametrize(
    'name', ['maskrcnn_v1_l1', 'retinanet_v2_l', 'maskrcnn_evit_m4', 'semfpn_v2_s0', 'semfpn_v1_l7']
)
def test_full_recipe_is_the_authors(name: str):
    """Compare with numbers of the papers and released configs, typed independently."""
    cfg = load_config(name)
    head, family, _ = name.split('_')
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer.type == 'AdamW'
    if head == 'semfpn':
        assert (optimizer.lr, optimizer.weight_decay) == (2e-4, 1e-4)
        assert cfg.train_cfg.max_iters == 40000
        (poly,) = cfg.param_scheduler
        assert (poly.type, poly.power, poly.eta_min) == ('PolyLR', 0.9, 1e-6 if family == 'v2' else 0.0)
        assert cfg.auto_scale_lr.base_batch_size == 32
        steps = {step.type: step for step in cfg.train_pipeline}
        assert steps['RandomCrop'].crop_size == (512, 512)
        assert steps['RandomResize'].ratio_range == (0.5, 2.0)
        return
    expected = {'v1': (2e-4, 1e-4), 'v2': (2e-4, 0.05), 'evit': (1e-4, 0.05)}[family]
    assert (optimizer.lr, optimizer.weight_decay) == expected
    decays = cfg.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    assert decays == ({'attention_biases': {'decay_mult': 0.0}} if family == 'evit' else {})
    assert cfg.model.backbone.get('norm_eval', False) is (family != 'v1')
    assert cfg.train_cfg.max_epochs == 12
    warmup, steps = cfg.param_scheduler
    assert warmup.end == 500
    assert steps.milestones == [8, 11]
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_sampler.type == 'AspectRatioBatchSampler'
    assert {step.type: step for step in cfg.train_pipeline}['Resize'].scale == (1333, 800)


def test_bias_tables_do_not_decay():
    cfg = load_config('retinanet_evit_m0', cfg_options={'model.backbone.init_cfg': None})
    model = build_model(cfg)
    from mmengine.optim import build_optim_wrapper

    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decay = {id(value): group['weight_decay'] for group in groups for value in group['params']}
    for key, value in model.named_parameters():
        assert decay[id(value)] == (0.0 if 'attention_biases' in key else 0.05), key


def test_one_process_builds_for_both_libraries(tiny_sets: Path):
    for name in ('semfpn_v2_s0', 'retinanet_v2_s0', 'semfpn_v2_s0'):
        cfg = load_config(name, mini=True, data_root=tiny_sets)
        model = build_model(cfg)
        assert type(model).__module__.split('.')[0] == cfg.default_scope


@pytest.mark.parametrize(
    ('name', 'option', 'message'),
    [
        ('maskrcnn_v2_s0', {'model.rpn_head.anchor_generator.strides': [8, 16, 32, 64, 128]}, 'rpn_head.anchor_gen'),
        ('retinanet_evit_m0', {'model.neck.out_strides': [4, 8, 16, 32, 64]}, 'bbox_head.anchor_generator.strides'),
        ('maskrcnn_evit_m0', {'model.neck.in_strides': [8, 16, 32]}, 'neck.in_strides'),
        ('maskrcnn_v2_s0', {'model.roi_head.mask_roi_extractor.featmap_strides': [8, 16, 32]}, 'mask_roi_extractor'),
        ('semfpn_v1_l1', {'model.decode_head.feature_strides': [8, 16, 32, 64]}, 'decode_head.feature_strides'),
    ],
)
def test_strides_that_do_not_fit_are_refused(name: str, option: dict, message: str):
    with pytest.raises(UserError, match=message):
        build_model(load_config(name, cfg_options={**option, 'model.backbone.init_cfg': None}))


SIZES = {  # (height, width): fit into 2048 x 512, then up to a multiple of 32
    (512, 683): (512, 704),  # factor 1: 512 and 683 -> 704
    (375, 500): (512, 704),  # 512/375: 512 and 682.67 -> 683 -> 704
    (500, 375): (704, 512),
    (300, 1800): (352, 2048),  # 2048/1800 is the smaller factor: 341.33 -> 341 -> 352
    (1000, 1001): (512, 544),  # 0.512: 512 and 512.5 -> 513 -> 544
}


def _aligned(image: np.ndarray, ratio: float = 1.0) -> np.ndarray:
    """Resize as the authors' ``AlignResize`` does: keep the ratio, then stretch both sides to a multiple of 32."""
    image = mmcv.imrescale(image, tuple(int(side * ratio + 0.5) for side in (2048, 512)))
    height, width = (math.ceil(side / 32) * 32 for side in image.shape[:2])
    return mmcv.imresize(image, (width, height))


def _build_transforms(steps: list[dict]) -> list:
    importlib.import_module('mmseg.datasets.transforms')
    with DefaultScope.overwrite_default_scope('mmseg'):
        return [TRANSFORMS.build(copy.deepcopy(step)) for step in steps]


@pytest.mark.parametrize(('size', 'expected'), SIZES.items())
def test_segmentation_resizes_as_the_published_evaluations(size: tuple[int, int], expected: tuple[int, int]):
    cfg = load_config('semfpn_v2_s0')
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert [step.type for step in cfg.test_pipeline[1:4]] == ['Resize', 'ResizeToMultiple', 'LoadAnnotations']
    results = {'img': image.copy(), 'img_shape': size, 'seg_fields': []}
    for transform in _build_transforms(cfg.test_pipeline[1:3]):
        results = transform(results)
    assert results['img'].shape[:2] == results['img_shape'] == expected
    np.testing.assert_array_equal(results['img'], _aligned(image))


def test_augmented_tests_resize_as_the_published_evaluations():
    scales, to_multiple = load_config('semfpn_v2_s0').tta_pipeline[1].transforms[:2]
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    (multiple,) = _build_transforms(to_multiple)
    for ratio, resize in zip((0.75, 1.0, 1.25, 1.5), _build_transforms(scales), strict=True):
        results = multiple(resize({'img': image.copy(), 'img_shape': (375, 500), 'seg_fields': []}))
        np.testing.assert_array_equal(results['img'], _aligned(image, ratio))


def test_the_ground_truth_keeps_its_size(tiny_sets: Path):
    for name in ('semfpn_v2_s0', 'maskrcnn_v2_s0'):
        cfg = load_config(name, mini=True, data_root=tiny_sets)
        _shrink(cfg)
        (sample,) = _samples(cfg, 'val_dataloader', 1)['data_samples']
        truth = sample.gt_sem_seg.shape if is_segmentation(cfg) else sample.gt_instances.masks.masks.shape[1:]
        assert truth == sample.ori_shape != sample.img_shape


# What a user's own config has to import is all that this process imports.
EVERY_PART = """
import sys
from mmengine import registry
from mmengine.config import Config

REGISTRIES = [value for name, value in vars(registry).items() if name.isupper() and hasattr(value, 'module_dict')]
BUILT = {'transform': registry.TRANSFORMS, 'hook': registry.HOOKS, 'metric': registry.METRICS}

def find(place, name):
    with place.switch_scope_and_registry(None) as scoped:
        return scoped.get(name)

def dicts(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for value in node:
            yield from dicts(value)

built = set()
for path in sys.argv[1:]:
    cfg = Config.fromfile(path)
    assert cfg.pop('custom_imports')['imports'] == ['mmplugin']
    with registry.DefaultScope.overwrite_default_scope(cfg.default_scope):
        names = {node['type'] for node in dicts(cfg._cfg_dict) if 'type' in node}
        names -= {'nms', 'RoIAlign'}  # mmdet looks these up in mmcv.ops
        missing = [name for name in names if not any(find(place, name) for place in REGISTRIES)]
        assert not missing, f'{path}: {missing}'
        pipelines = [cfg.train_pipeline, cfg.test_pipeline, cfg.get('tta_pipeline', [])]
        parts = {
            'transform': [step for pipeline in pipelines for step in pipeline],
            'hook': [*cfg.default_hooks.values(), *cfg.custom_hooks],
            'metric': [cfg.val_evaluator],
        }
        for kind, configs in parts.items():
            for part in configs:
                part = {key: value for key, value in part.items() if key != 'ann_file'}  # needs no data set
                if (cfg.default_scope, repr(part)) not in built:
                    BUILT[kind].build(part)
                    built.add((cfg.default_scope, repr(part)))
print(len(built))
"""


def test_importing_mmplugin_is_enough_for_every_part_of_every_config():
    left_out = {'_base_', 'classification'}  # classification requires an optional package
    paths = [path for path in configs_root().rglob('*.py') if not left_out.intersection(path.parts)]
    environment = {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[1])}
    command = [sys.executable, '-c', EVERY_PART, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(paths) == len(NAMES) + 2
    assert int(done.stdout.split()[-1]) > 30


def test_every_registered_part_exists():
    for modules in registration.PARTS.values():
        for name, module in modules.items():
            expected = stack.current() is stack.ONEDL or name != 'FasterDetectionMetric'
            assert hasattr(importlib.import_module(module), name) == expected, name


def test_evaluators_are_those_of_mmdet_and_mmseg():
    cfg = load_config('maskrcnn_v2_s2', cfg_options={'val_evaluator.metric': 'bbox'})
    assert (cfg.val_evaluator.type, cfg.val_evaluator.metric) == ('CocoMetric', 'bbox')
    assert load_config('maskrcnn_v2_s2').test_evaluator.metric == ['bbox', 'segm']
    boxes = load_config('retinanet_v2_s2')
    assert boxes.val_evaluator.metric == 'bbox'
    assert boxes.val_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
    for loader in (boxes.train_dataloader, boxes.val_dataloader, boxes.test_dataloader):
        (step,) = [step for step in loader.dataset.pipeline if step.type == 'LoadAnnotations']
        assert (step.with_bbox, step.with_mask) == (True, False)
    assert load_config('semfpn_v2_s2').val_evaluator == dict(type='IoUMetric', iou_metrics=['mIoU'])
