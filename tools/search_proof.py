"""Test the claims of the search on this machine, and write what came out into docs/search.md.

    python tools/search_proof.py [--part PART ...] [--quick] [--write docs/search.md]

``table``: error and rank correlation of predicted latency, on networks that the table has not seen. ``prune``: 30 % of
the backbone's latency is removed from a trained segmentor, by Taylor expansion, by magnitude and at random, with three
seeds; then the result is trained, next to a network that was narrowed uniformly and starts from random weights.
``joint``: networks that the joint search finds, next to those of other ways to reach the same latency, trained from
random weights. ``own-segmentation`` and ``own-detection``: networks that are found as fast as published ones, next to
them. Each result is kept in work_dirs/search_proof, so that a second call continues. A claim that fails is printed as
failed.
"""

import argparse
import copy
import statistics
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

from search_proof_common import CONFIG, FOLDER, SEEDS, console, kept, make_task, threads_of_one, verdict
from search_proof_joint import joint_part
from search_proof_own import own_part

from mmplugin import stack
from mmplugin.backbones import FAMILIES
from mmplugin.convert import checkpoint_io
from mmplugin.errors import UserError
from mmplugin.search.conditions import processor_name
from mmplugin.search.latency import LatencyTable, kendall_tau
from mmplugin.tables import Table, show

FAMILY = 'v2'
CUT = 0.7
START, RECOVER = 600, 200  # training steps
SIZE = (512, 512)  # of the latency that is removed; at the 160 x 160 of the training, calls take longer than arithmetic


def measure_table(family: str, side: int, rounds: int) -> dict[str, Any]:
    """Measure and check one table of a whole family, and predict the published networks.

    These run before and after the table, so that a machine that gets slower or faster changes both alike.
    """
    before = measure_published(family, side, rounds)
    table = LatencyTable.measure(family, (side, side), clock='cpu', threads=1, rounds=rounds)
    after = measure_published(family, side, rounds)
    try:
        check, problem = table.check(), ''
    except UserError as error:
        check, problem = table.compare(), str(error)
    return dict(
        tau=check.tau,
        ceiling=check.ceiling,
        median_error=check.median_error,
        worst_error=check.worst_error,
        wanted=check.wanted_tau,
        problem=problem,
        predicted=[table.predict(name) for name in before],
        measured=[statistics.median(before[name] + after[name]) for name in before],
    )


def measure_published(family: str, side: int, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of the published networks of a family, timed in turn."""
    import torch

    from mmplugin.search.timing import Network, run_in_turn

    x, archs = torch.randn(1, 3, side, side), FAMILIES[family].ARCHS
    networks = [Network(family, arch, x, 'fused', 'cpu', False) for arch in archs.values()]
    with threads_of_one():
        times = run_in_turn(networks, rounds // 2, 0, None)
    return {name: [ms for (ms,) in own] for name, own in zip(archs, times, strict=True)}


def table_part(quick: bool) -> list[Table]:
    """Check the promise of the latency tables of all families, at two sizes."""
    rounds = 6 if quick else 12
    rows = []
    for family in FAMILIES:
        for side in (128, 512):
            found = kept(
                f'table_{family}_{side}_{rounds}',
                lambda family=family, side=side: measure_table(family, side, rounds),
            )
            tau = kendall_tau(found['predicted'], found['measured'])
            errors = [abs(a / b - 1) for a, b in zip(found['predicted'], found['measured'], strict=True)]
            rows.append((
                f'{family} {side}', f'{found["tau"]:.2f}', f'{found["wanted"]:.2f}', f'{found["ceiling"]:.2f}',
                f'{found["median_error"]:.1%}', f'{found["worst_error"]:.1%}', verdict(not found['problem']),
                f'{tau:.2f}', f'{statistics.median(errors):.1%}',
            ))  # fmt: skip
    head = [
        'family, size', 'tau', 'promised', 'ceiling', 'median error', 'largest', 'promise', 'published: tau',
        'median error',
    ]  # fmt: skip
    return [Table('Latency tables: 12 networks that they have not seen, and the published ones', head, rows)]


@cache
def latency_table() -> LatencyTable:
    """Return the table around the start; it is measured once."""
    path = FOLDER / 'latency.json'
    if not path.is_file():
        LatencyTable.measure(FAMILY, SIZE, around='s0', clock='cpu', threads=1).save(path)
    return LatencyTable.load(path, family=FAMILY, size=SIZE)


def latency(arch: Any) -> float:
    """Return the predicted milliseconds of a backbone."""
    return latency_table().predict(arch)


def uniform_arch(target: float) -> dict[str, Any]:
    """Return the start, all of whose channels are multiplied by the largest factor that meets the target."""
    from mmplugin.search.space import arch_with, sizes_of

    start = sizes_of(FAMILY, 's0')
    for percent in range(100, 20, -1):
        scaled = {
            size: max(8, round(n * percent / 800) * 8)
            for size, n in start.items()
            if size.startswith(('width', 'hidden'))
        }
        arch = arch_with(FAMILY, 's0', scaled)
        if latency(arch) <= target:
            return arch
    raise AssertionError('no factor meets the target')


def prune_with_seed(seed: int, start: int, recover: int) -> dict[str, Any]:
    """Train a start, prune it in three ways, train the one by Taylor expansion, and a uniform one from scratch."""
    from mmplugin.search.prune import Pruner, Settings

    task, path = make_task(seed), FOLDER / f'start_{seed}_{start}.pth'
    if not path.is_file():
        list(task.train(0, start))
        task.recalibrate_(start, 16)
        checkpoint_io.write(path, dict(state_dict=task.model.state_dict()))
    task.model.load_state_dict(checkpoint_io.read(path)['state_dict'])
    found: dict[str, Any] = dict(start=task.score())
    trained = copy.deepcopy(task.model)
    for score in ('taylor', 'magnitude', 'random'):
        task.model = copy.deepcopy(trained)
        pruner = Pruner(task, latency, Settings(recover=0, batches=16, score=score))
        pruner.batches_used = start + 16
        limit = CUT * pruner.start_cost
        while pruner.cost(pruner.arch) > limit:
            record = pruner.round(limit)
        found[score] = record.loss
        if score == 'taylor':
            found['arch'] = pruner.arch
            list(task.train(pruner.batches_used, recover, 0.5))
            task.recalibrate_(0, 16)
            found['recovered'] = task.score()
    return found


def train_uniform(seed: int, steps: int) -> float:
    """Return the loss of the uniformly narrowed network, trained from random weights."""
    task = make_task(seed, uniform_arch(CUT * latency('s0')))
    list(task.train(0, steps))
    task.recalibrate_(0, 16)
    return task.score()


def prune_part(quick: bool) -> list[Table]:
    """Compare ways to remove 30 % of the latency, and the recovered network with a uniform one."""
    start, recover = (200, 80) if quick else (START, RECOVER)
    rows, all_lower = [], True
    differences, uniform, long_differences, uniform_long = [], [], [], []
    for seed in SEEDS:
        found = kept(f'prune_{seed}_{start}_{recover}', lambda seed=seed: prune_with_seed(seed, start, recover))
        short, long = (
            kept(f'uniform_{seed}_{steps}', lambda seed=seed, steps=steps: train_uniform(seed, steps))
            for steps in (recover, start + recover)
        )
        rises = [found[score] - found['start'] for score in ('taylor', 'magnitude', 'random')]
        lower = rises[0] < min(rises[1:])
        all_lower &= lower
        differences.append(found['recovered'] - short)
        long_differences.append(found['recovered'] - long)
        uniform.append(short)
        uniform_long.append(long)
        rows.append((
            str(seed), f'{found["start"]:.3f}', *(f'{rise:+.3f}' for rise in rises), verdict(lower),
            f'{found["recovered"]:.3f}', f'{short:.3f}', f'{long:.3f}',
        ))  # fmt: skip
    comparisons = []
    for steps, by, losses in ((recover, differences, uniform), (start + recover, long_differences, uniform_long)):
        mean, deviation = statistics.mean(by), statistics.stdev(losses)
        comparisons.append((
            f'after {recover} steps of recovery, within one standard deviation of the uniformly narrowed network '
            f'after {steps} steps from random weights, or better',
            f'difference {mean:+.3f}, deviation {deviation:.3f}',
            verdict(mean <= deviation),
        ))  # fmt: skip
    head = [
        'seed', 'loss of the start', 'rise: Taylor', 'magnitude', 'random', 'Taylor lowest', 'recovered',
        f'uniform, {recover} steps', f'uniform, {start + recover}',
    ]  # fmt: skip
    claims = Table(
        'Claims',
        ['claim', 'figures', 'result'],
        [
            ('the loss rises least by Taylor expansion, each seed', f'{len(SEEDS)} seeds', verdict(all_lower)),
            *comparisons,
        ],
        left=('figures', 'result'),
    )
    return [
        Table(f'30 % of the latency of the backbone removed ({CONFIG}, {start} steps, hold-out loss)', head, rows),
        claims,
    ]


PARTS = {
    'table': table_part,
    'prune': prune_part,
    'joint': joint_part,
    'own-segmentation': partial(own_part, 'segmentation'),
    'own-detection': partial(own_part, 'detection'),
}


def main() -> None:
    """Run the parts, print the tables, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--part', choices=PARTS, nargs='+', default=list(PARTS))
    parser.add_argument('--quick', action='store_true', help='fewer rounds and steps')
    parser.add_argument('--write', type=Path, metavar='PAGE', help='replace the generated part of a page')
    options = parser.parse_args()
    stack.ignore_known_warnings()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in options.part:
        tables = PARTS[part](options.quick)
        show(tables, console)
        if options.write:
            write(options.write, part, tables, options.quick)


def write(page: Path, part: str, tables: list[Table], quick: bool) -> None:
    """Replace what a page says about a part."""
    begin, end = (f'<!-- search_proof {part}: {word} -->' for word in ('begin', 'end'))
    text = page.read_text(encoding='utf-8')
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    command = f'python tools/search_proof.py --part {part}{" --quick" if quick else ""} --write {page}'
    head = f'`{command}`, {date.today()}, {processor_name("cpu")}, one thread where times are compared.'
    body = '\n\n'.join([head, *(f'**{table.title}**\n\n{table.markdown()}' for table in tables)])
    page.write_text(f'{before}{begin}\n\n{body}\n\n{end}{after}', encoding='utf-8')


if __name__ == '__main__':
    main()
