"""Searched networks next to the published ones: the parts ``own-...`` of search_proof.py.

For a detector and a segmentor, the joint search looks for a network that is as fast as V2-S0, below V2-S1, and one that
is as fast as V2-S1, below V2-S2. Both train from random weights, with equal steps and three seeds, and are tested on
validation images that no search has seen. What comes out is written down, also if the published networks win.
"""

import copy
import statistics
from functools import partial
from typing import Any

from search_proof_common import FOLDER, SEEDS, kept, kept_all, make_task, relative_latency

from mmplugin.backbones import FAMILIES
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.elastic_space import ElasticSpace, State
from mmplugin.search.evaluate import Evaluator
from mmplugin.search.greedy import Greedy
from mmplugin.search.latency import LatencyTable
from mmplugin.search.sandwich import Sandwich
from mmplugin.search.supernet import sort_
from mmplugin.tables import Table

FAMILY, SIZE = 'v2', (512, 512)  # of the latency
PAIRS = {'s0': 's1', 's1': 's2'}  # a published network, and the one that is searched below
# Config, side of the training crops, metric, training steps of each network, and training steps of each supernet.
TASKS = {
    'segmentation': ('semfpn_v2_s0', 128, 'mIoU', 300, 300),
    'detection': ('retinanet_v2_s0', None, 'coco/bbox_mAP_50', 600, 300),
}
NEAR = 0.97  # of the latency of the published network: what is found is at least so slow
TRIES = 6


def task_of(kind: str, seed: int, arch: dict[str, Any]) -> Any:
    """Return the detector or segmentor with random weights."""
    config, crop, *_ = TASKS[kind]
    return make_task(seed, arch, crop, config)


def metric(task: Any, name: str) -> float:
    """Return a metric of the task's model on the validation images."""
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.evaluator import Evaluator as Metrics
    from mmengine.registry import DATASETS, DefaultScope

    task.model.eval()
    with DefaultScope.overwrite_default_scope(task.cfg.default_scope), torch.inference_mode():
        dataset: Any = DATASETS.build(task.cfg.val_dataloader.dataset)
        metrics = Metrics(copy.deepcopy(task.cfg.val_evaluator))
        metrics.dataset_meta = dataset.metainfo
        for sample in dataset:
            batch = pseudo_collate([sample])
            metrics.process(data_samples=task.model.test_step(batch), data_batch=batch)
        return float(metrics.evaluate(len(dataset))[name])


def from_scratch(kind: str, seed: int, arch: dict[str, Any], steps: int) -> float:
    """Return the metric of a network that is trained from random weights."""
    task = task_of(kind, seed, arch)
    list(task.train(0, steps))
    task.recalibrate_(steps, 16)
    return metric(task, TASKS[kind][2])


def published(name: str) -> dict[str, Any]:
    """Return a published arch in explicit form."""
    return FAMILIES[FAMILY].explicit(name)


def table(start: str) -> LatencyTable:
    """Return the latency table around a start; it is measured once."""
    path = FOLDER / f'latency_own_{start}.json'
    if not path.is_file():
        LatencyTable.measure(FAMILY, SIZE, around=published(start), clock='cpu', threads=1).save(path)
    return LatencyTable.load(path, family=FAMILY, size=SIZE)


def found(kind: str, rival: str, steps: int) -> dict[str, Any]:
    """Return the network that the joint search finds, as fast as ``rival``."""
    start = published(PAIRS[rival])
    task, space = task_of(kind, 0, start), ElasticSpace.below(FAMILY, start)
    used = sort_(task, 0)
    task.model.backbone = ElasticBackbone(task.model.backbone)
    for _ in Sandwich(task, space, steps, used).train():
        pass
    predict = table(PAIRS[rival]).predict

    def cost(state: State) -> float:
        return predict(space.arch(state))

    limit = predict(rival)
    greedy = Greedy(
        space, space.largest(), Evaluator(task, space, used + steps), dict(latency_ms=cost), dict(latency_ms=limit),
        floor=NEAR,
    )  # fmt: skip
    memories = [greedy.memory()]
    for _ in range(TRIES):
        while greedy.step():
            memories.append(greedy.memory())
        ratio = relative_latency(FAMILY, rival, {'found': space.arch(greedy.state)}, SIZE, 8)['found']
        if NEAR <= ratio <= 1:
            break
        limit = cost(greedy.state) * (1 + NEAR) / 2 / ratio
        greedy.limits = dict(latency_ms=limit)
        while ratio < NEAR and len(memories) > 1 and not greedy.unmet():
            memories.pop()
            greedy.remember(memories[-1])
    return dict(arch=space.arch(greedy.state), evaluations=greedy.evaluations)


def own_part(kind: str, quick: bool) -> list[Table]:
    """Search networks for a kind of task, and train them next to the published ones."""
    share = 0.4 if quick else 1.0
    for start in PAIRS.values():
        table(start)
    searches = kept_all(
        {f'own_{kind}_{rival}_{share}': partial(found, kind, rival, round(share * TASKS[kind][4])) for rival in PAIRS}
    )
    steps = round(share * TASKS[kind][3])
    trainings = {}
    for rival in PAIRS:
        archs = {'found': searches[f'own_{kind}_{rival}_{share}']['arch'], 'published': published(rival)}
        for who, arch in archs.items():
            for seed in SEEDS:
                name = f'own_{who}_{kind}_{rival}_{seed}_{share}'
                trainings[name] = partial(from_scratch, kind, seed, arch, steps)
    scores = kept_all(trainings)
    rows, archs = [], []
    for rival in PAIRS:
        name = f'own_{kind}_{rival}_{share}'
        arch = searches[name]['arch']
        ratio = kept(
            f'{name}_measured', lambda a=arch, r=rival: relative_latency(FAMILY, r, {'found': a}, SIZE, 12)['found']
        )
        own, theirs = (
            [scores[f'own_{who}_{kind}_{rival}_{seed}_{share}'] for seed in SEEDS] for who in ('found', 'published')
        )
        gains = [a - b for a, b in zip(own, theirs, strict=True)]
        rows.append((
            f'v2_{rival}', f'{ratio:.0%}', ' '.join(f'{score:.3g}' for score in own),
            ' '.join(f'{score:.3g}' for score in theirs), f'{statistics.mean(gains):+.2g}',
            f'{sum(gain > 0 for gain in gains)} of {len(SEEDS)}',
        ))  # fmt: skip
        archs.append((f'v2_{rival}', *(' '.join(map(str, arch[key])) for key in ('widths', 'depths')),
                      ' '.join(map(str, arch['attention_blocks'])), hidden_text(arch)))  # fmt: skip
    return [
        Table(
            f'Found and published networks, trained from random weights ({kind}, {steps} steps, {TASKS[kind][2]}; '
            f'seeds {" ".join(map(str, SEEDS))})',
            ['next to', 'latency', 'found', 'published', 'mean difference', 'found is better'], rows,
        ),
        Table('The networks', ['next to', 'widths', 'depths', 'attention', 'hidden channels'], archs),
    ]  # fmt: skip


def hidden_text(arch: dict[str, Any]) -> str:
    """Return the hidden channels of the blocks, by stage."""
    return '; '.join(' '.join(map(str, stage)) for stage in arch['hidden'])
