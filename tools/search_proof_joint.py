"""The joint search against other ways to reach a latency: the part ``joint`` of search_proof.py.

All networks that are compared train from random weights, with equal steps, and are tested on validation images that no
search has seen. First, one network is trained with several seeds: gains are read against that deviation.
"""

import random
import statistics
from collections.abc import Callable
from typing import Any

from search_proof_common import FOLDER, SEEDS, kept, make_task, threads_of_one, verdict

from mmplugin.backbones import FAMILIES
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.elastic_space import ElasticSpace, State
from mmplugin.search.evaluate import Evaluator
from mmplugin.search.greedy import Greedy
from mmplugin.search.joint import sort_
from mmplugin.search.latency import LatencyTable, kendall_tau
from mmplugin.search.sandwich import Sandwich
from mmplugin.tables import Table

FAMILY, CROP = 'v2', 128
START = FAMILIES[FAMILY].explicit(
    dict(widths=(32, 48, 96, 160), depths=(2, 2, 4, 3), ratios=((4, 4), (4, 4), (4,) * 4, (4,) * 3),
         attention_blocks=(4, 3))
)  # fmt: skip
TARGETS = (0.7, 0.5)  # of the latency of the start's backbone, predicted at 512 x 512
NEAR = 0.97  # of a target: random networks are at least so slow
RANKED, TAU = 12, 0.5  # networks whose losses in the supernet are compared with training from scratch
WAYS = ('searched', 'uniform width', 'uniform width and depth', 'random search', 'coarse')
GAIN = 0.01  # of mIoU, that the search is to win over uniform scaling on average


def task_of(seed: int, arch: dict[str, Any]) -> Any:
    """Return the task with small crops."""
    return make_task(seed, arch, CROP)


def table() -> LatencyTable:
    """Return the latency table around the start; it is measured once."""
    path = FOLDER / 'latency_joint.json'
    if not path.is_file():
        LatencyTable.measure(FAMILY, (512, 512), around=START, clock='cpu', threads=1).save(path)
    return LatencyTable.load(path, family=FAMILY, size=(512, 512))


def mean_iou(task: Any) -> float:
    """Return the mIoU of the task's model on the validation images."""
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope(task.cfg.default_scope):
        dataset: Any = DATASETS.build(task.cfg.val_dataloader.dataset)
    classes = len(dataset.metainfo['classes'])
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    task.model.eval()
    with torch.inference_mode():
        for sample in dataset:
            (result,) = task.model.test_step(pseudo_collate([sample]))
            found, wanted = result.pred_sem_seg.data.flatten(), result.gt_sem_seg.data.flatten().long()
            valid = wanted < classes
            pairs = wanted[valid] * classes + found[valid]
            confusion += torch.bincount(pairs, minlength=classes * classes).view(classes, classes)
    both = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - both
    return float((both[union > 0] / union[union > 0]).mean())


def from_scratch(seed: int, arch: dict[str, Any], steps: int) -> float:
    """Return the mIoU of a network that is trained from random weights."""
    task = task_of(seed, arch)
    list(task.train(0, steps))
    task.recalibrate_(steps, 16)
    return mean_iou(task)


def supernet(seed: int, steps: int) -> tuple[Any, ElasticSpace, Evaluator]:
    """Return a trained supernet; it is trained once."""
    from mmplugin.convert import checkpoint_io

    task, space, path = task_of(seed, START), ElasticSpace.below(FAMILY, START), FOLDER / f'supernet_{seed}_{steps}.pth'
    used = sort_(task, 0)
    task.model.backbone = ElasticBackbone(task.model.backbone)
    if path.is_file():
        task.model.load_state_dict(checkpoint_io.read(path)['state_dict'])
    else:
        for _ in Sandwich(task, space, steps, used).train():
            pass
        checkpoint_io.write(path, dict(state_dict=task.model.state_dict()))
    return task, space, Evaluator(task, space, used + steps)


def found(seed: int, target: float, steps: int) -> dict[str, Any]:
    """Return the arch that each way finds for one target, and its latency."""
    _, space, evaluator = supernet(seed, steps)
    predict = table().predict
    limit = target * predict(START)

    def cost(state: State) -> float:
        return predict(space.arch(state))

    def slimmed(own: ElasticSpace) -> tuple[State, int]:
        greedy = Greedy(own, own.largest(), evaluator, dict(latency_ms=cost), dict(latency_ms=limit))
        while greedy.step():
            pass
        return greedy.state, greedy.evaluations

    searched, evaluations = slimmed(space)
    coarse, _ = slimmed(ElasticSpace.below(FAMILY, START, ('ratio', 'attention')))
    states = {
        'searched': searched,
        'uniform width': largest_that_fits(lambda share: widths_only(space, share), cost, limit),
        'uniform width and depth': largest_that_fits(space.uniform, cost, limit),
        'random search': best_of_random(space, evaluator, cost, limit, evaluations, seed),
        'coarse': coarse,
    }
    return dict(
        evaluations=evaluations, limit=limit, archs={way: space.arch(state) for way, state in states.items()},
        ms={way: cost(state) for way, state in states.items()},
    )  # fmt: skip


def widths_only(space: ElasticSpace, share: float) -> State:
    """Return the start with this share of all widths."""
    narrow, state = space.uniform(share), space.largest()
    return {size: narrow[size] if size.startswith('width') else value for size, value in state.items()}


def largest_that_fits(scaled: Callable[[float], State], cost: Callable[[State], float], limit: float) -> State:
    """Return the largest of the scaled networks that meets the limit."""
    states = (scaled(percent / 100) for percent in range(100, 19, -1))
    return next(state for state in states if cost(state) <= limit)


def best_of_random(
    space: ElasticSpace, evaluator: Evaluator, cost: Callable[[State], float], limit: float, count: int, seed: int
) -> State:
    """Return the best in the supernet of so many random networks that are as fast as the target."""
    rng, states = random.Random(seed), list[State]()
    while len(states) < count:
        state = space.random(rng)
        if NEAR * limit <= cost(state) <= limit:
            states.append(state)
    losses = [statistics.mean(own) for own in evaluator(states)]
    return states[losses.index(min(losses))]


def ranking(steps: int, final: int) -> dict[str, list[float]]:
    """Return the losses of random networks in the supernet, and their mIoU from scratch."""
    _, space, evaluator = supernet(0, steps)
    rng = random.Random(0)
    states = [space.random(rng) for _ in range(RANKED)]
    losses = [statistics.mean(own) for own in evaluator(states)]
    return dict(
        losses=losses,
        miou=[
            kept(f'ranked_{i}_{final}', lambda state=state: from_scratch(0, space.arch(state), final))
            for i, state in enumerate(states)
        ],
    )


def measured(archs: dict[str, dict[str, Any]], rounds: int) -> dict[str, float]:
    """Return the milliseconds of networks that run in turn, each divided by those of the start."""
    import torch

    from mmplugin.search.timing import Network, run_in_turn

    x = torch.randn(1, 3, 512, 512)
    networks = [Network(FAMILY, arch, x, 'fused', 'cpu', False) for arch in (START, *archs.values())]
    with threads_of_one():
        times = [[ms for (ms,) in own] for own in run_in_turn(networks, rounds, 0, None)]
    start = times[0]
    return {
        name: statistics.median(a / b for a, b in zip(own, start, strict=True))
        for name, own in zip(archs, times[1:], strict=True)
    }


def joint_part(quick: bool) -> list[Table]:
    """Compare the joint search with other ways to reach the same latency."""
    steps, final = (150, 120) if quick else (400, 300)
    again = [kept(f'again_{seed}_{final}', lambda seed=seed: from_scratch(seed, dict(START), final)) for seed in SEEDS]
    rows, pairs = [], dict[str, list[float]]()
    for target in TARGETS:
        for seed in SEEDS:
            name = f'{target}_{seed}_{steps}'
            networks = kept(f'found_{name}', lambda s=seed, t=target: found(s, t, steps))
            ratios = kept(f'measured_{name}', lambda n=networks: measured(n['archs'], 12))
            scores = {
                way: kept(f'{way}_{name}_{final}', lambda s=seed, a=arch: from_scratch(s, a, final))
                for way, arch in networks['archs'].items()
            }
            for way in WAYS[1:]:
                pairs.setdefault(way, []).append(scores['searched'] - scores[way])
            rows.append((
                f'{target:.0%}', str(seed), *(f'{scores[way]:.3f} ({ratios[way]:.0%})' for way in WAYS),
                str(networks['evaluations']),
            ))  # fmt: skip
    ranked = kept(f'ranking_{steps}_{final}', lambda: ranking(steps, final))
    tau = kendall_tau([-loss for loss in ranked['losses']], ranked['miou'])
    return [
        Table(
            f'Joint search: mIoU from scratch ({final} steps), and measured latency as a share of the start',
            ['target', 'seed', *WAYS, 'evaluations'],
            rows,
        ),
        Table('Claims', ['claim', 'figures', 'result'], claims(again, pairs, tau), left=('figures', 'result')),
    ]


def claims(again: list[float], pairs: dict[str, list[float]], tau: float) -> list[tuple[str, str, str]]:
    """Return the claims of the joint search and whether they hold."""
    wins = {way: sum(gain > 0 for gain in gains) for way, gains in pairs.items()}
    means = {way: statistics.mean(gains) for way, gains in pairs.items()}
    found, count = [], len(pairs['coarse'])
    for way, needed, gain in (
        ('uniform width', 5, GAIN), ('uniform width and depth', 5, GAIN), ('random search', 4, 0.0),
        ('coarse', 0, 0.0),
    ):  # fmt: skip
        least = f'in at least {needed} of {count}, ' if needed else ''
        found.append((
            f'better than {way} {least}by {gain:g} mIoU on average',
            f'{wins[way]} of {count}, mean {means[way]:+.3f}',
            verdict(wins[way] >= needed and means[way] >= gain),
        ))  # fmt: skip
    found.append((
        f'losses in the supernet rank {RANKED} networks as training from scratch does: tau of {TAU}',
        f'tau {tau:.2f}',
        verdict(tau >= TAU),
    ))  # fmt: skip
    deviation = statistics.stdev(again)
    return [('the start, three seeds', f'mIoU {statistics.mean(again):.3f}, deviation {deviation:.3f}', ''), *found]
