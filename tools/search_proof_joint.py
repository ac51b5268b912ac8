"""The joint search against other ways to reach a latency: the part ``joint`` of search_proof.py.

All networks that are compared train from random weights, with equal steps, and are tested on validation images that no
search has seen. First, one network is trained with several seeds: gains are read against that deviation.
"""

import random
import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from search_proof_common import FOLDER, SEEDS, kept, kept_all, make_task, relative_latency, verdict

from mmplugin.backbones import FAMILIES
from mmplugin.convert import checkpoint_io
from mmplugin.search.elastic import ElasticBackbone
from mmplugin.search.elastic_space import LEAST_DEPTHS, ElasticSpace, State, rounded
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


@cache
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


def train_supernet(seed: int, steps: int) -> float:
    """Train a supernet, keep it in a file, and return the loss of the start in it."""
    task, space = task_of(seed, START), ElasticSpace.below(FAMILY, START)
    used = sort_(task, 0)
    task.model.backbone = ElasticBackbone(task.model.backbone)
    for _ in Sandwich(task, space, steps, used).train():
        pass
    checkpoint_io.write(FOLDER / f'supernet_{seed}_{steps}.pth', dict(state_dict=task.model.state_dict(), used=used))
    (losses,) = Evaluator(task, space, used + steps)([space.largest()])
    return statistics.mean(losses)


def supernet(seed: int, steps: int) -> tuple[ElasticSpace, Evaluator]:
    """Return the space of a trained supernet, and what scores its networks."""
    task, space = task_of(seed, START), ElasticSpace.below(FAMILY, START)
    saved = checkpoint_io.read(FOLDER / f'supernet_{seed}_{steps}.pth')
    task.model.backbone = ElasticBackbone(task.model.backbone)
    task.model.load_state_dict(saved['state_dict'])
    return space, Evaluator(task, space, saved['used'] + steps)


def found(seed: int, target: float, steps: int) -> dict[str, Any]:
    """Return the arch that each way finds for one target, and its latency."""
    space, evaluator = supernet(seed, steps)
    predict = table().predict
    limit = target * predict(START)

    def cost(state: State) -> float:
        return predict(space.arch(state))

    def slimmed(own: ElasticSpace) -> tuple[State, int]:
        greedy = Greedy(own, own.largest(), evaluator, dict(latency_ms=cost), dict(latency_ms=limit), floor=NEAR)
        while greedy.step():
            pass
        return greedy.state, greedy.evaluations

    searched, evaluations = slimmed(space)
    coarse, _ = slimmed(ElasticSpace.below(FAMILY, START, ('ratio', 'attention')))
    archs = {
        'searched': space.arch(searched),
        'uniform width': uniform(limit, depth=False),
        'uniform width and depth': uniform(limit, depth=True),
        'random search': space.arch(best_of_random(space, evaluator, cost, limit, evaluations, seed)),
        'coarse': space.arch(coarse),
    }
    ms = {way: predict(arch) for way, arch in archs.items()}
    return dict(evaluations=evaluations, limit=limit, archs=archs, ms=ms)


def scaled(width: float, depth: float) -> dict[str, Any]:
    """Return the start with a share of all its channels, also below the space of the search, and of its blocks."""
    depths = [max(least, round(depth * n)) for n, least in zip(START['depths'], LEAST_DEPTHS[FAMILY], strict=True)]
    return FAMILIES[FAMILY].explicit(
        START | dict(
            widths=tuple(rounded(width * n) for n in START['widths']),
            depths=tuple(depths),
            hidden=tuple((rounded(width * stage[0]),) * n for stage, n in zip(START['hidden'], depths, strict=True)),
            attention_blocks=tuple(map(min, START['attention_blocks'], depths[2:])),
        )
    )  # fmt: skip


def uniform(limit: float, depth: bool) -> dict[str, Any]:
    """Return a uniformly scaled network that is as fast as the limit.

    Args:
        limit: Milliseconds.
        depth: Scale depths, too. The two shares are as alike as the steps of depth allow.
    """
    shares = [percent / 100 for percent in range(100, 9, -1)]
    pairs = [(width, share) for width in shares for share in (shares if depth else [1.0])]
    fits = []
    for width, depth_share in pairs:
        arch = scaled(width, depth_share)
        ms = table().predict(arch)
        if ms <= limit:
            fits.append((ms < NEAR * limit, abs(width - depth_share) if depth else 0.0, -ms, arch))
    return min(fits, key=lambda found: found[:3])[3]


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


def ranked(steps: int) -> dict[str, Any]:
    """Return random networks and their losses in the supernet."""
    space, evaluator = supernet(0, steps)
    rng = random.Random(0)
    states = [space.random(rng) for _ in range(RANKED)]
    return dict(
        archs=[space.arch(state) for state in states], losses=[statistics.mean(own) for own in evaluator(states)]
    )


def joint_part(quick: bool) -> list[Table]:
    """Compare the joint search with other ways to reach the same latency."""
    steps, final = (150, 120) if quick else (400, 300)
    table()
    again = kept_all({f'again_{seed}_{final}': partial(from_scratch, seed, START, final) for seed in SEEDS})
    kept_all({f'supernet_{seed}_{steps}': partial(train_supernet, seed, steps) for seed in SEEDS})
    runs = {f'{target}_{seed}_{steps}': (target, seed) for target in TARGETS for seed in SEEDS}
    searches = kept_all({f'found_{run}': partial(found, seed, target, steps) for run, (target, seed) in runs.items()})
    ranks = kept(f'ranked_{steps}', lambda: ranked(steps))
    trainings = {
        f'{way}_{run}_{final}': partial(from_scratch, seed, searches[f'found_{run}']['archs'][way], final)
        for run, (_, seed) in runs.items()
        for way in WAYS
    } | {f'ranked_{i}_{steps}_{final}': partial(from_scratch, 0, arch, final) for i, arch in enumerate(ranks['archs'])}
    scores = kept_all(trainings)
    rows, pairs = [], dict[str, list[float]]()
    for run, (target, seed) in runs.items():
        networks = searches[f'found_{run}']
        ratios = kept(
            f'measured_{run}', lambda archs=networks['archs']: relative_latency(FAMILY, START, archs, (512, 512), 12)
        )
        own = {way: scores[f'{way}_{run}_{final}'] for way in WAYS}
        for way in WAYS[1:]:
            pairs.setdefault(way, []).append(own['searched'] - own[way])
        rows.append((
            f'{target:.0%}', str(seed), *(f'{own[way]:.3f} ({ratios[way]:.0%})' for way in WAYS),
            str(networks['evaluations']),
        ))  # fmt: skip
    miou = [scores[f'ranked_{i}_{steps}_{final}'] for i in range(RANKED)]
    tau = kendall_tau([-loss for loss in ranks['losses']], miou)
    return [
        Table(
            f'Joint search: mIoU from scratch ({final} steps), and measured latency as a share of the start',
            ['target', 'seed', *WAYS, 'evaluations'],
            rows,
        ),
        Table(
            'Claims',
            ['claim', 'figures', 'result'],
            claims(list(again.values()), pairs, tau, miou),
            left=('figures', 'result'),
        ),
    ]


def claims(
    again: list[float], pairs: dict[str, list[float]], tau: float, ranked_miou: list[float]
) -> list[tuple[str, str, str]]:
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
        f'tau {tau:.2f}; deviation of their mIoU {statistics.stdev(ranked_miou):.3f}',
        verdict(tau >= TAU),
    ))  # fmt: skip
    deviation = statistics.stdev(again)
    return [('the start, three seeds', f'mIoU {statistics.mean(again):.3f}, deviation {deviation:.3f}', ''), *found]
