"""``mmplugin search --rank-only``: the published networks in the user's model, on the user's machine."""

import argparse
import copy
import datetime
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from mmplugin import stack
from mmplugin.backbones import FAMILIES
from mmplugin.benchmark.measure import (
    WARM_UP,
    Settings,
    allocated_peak,
    clock,
    images,
    in_new_process,
    interleave,
    quartiles,
)
from mmplugin.benchmark.published import PUBLISHED
from mmplugin.benchmark.results import mes, size_text
from mmplugin.benchmark.sizes import ARCHS, deployed_parameters, multiply_adds
from mmplugin.benchmark.subjects import Subject, apply_mode_, from_backbone, from_config
from mmplugin.config_edits import is_segmentation
from mmplugin.engine.work_dir import locked, prepare_folder
from mmplugin.errors import UserError
from mmplugin.search.budget import Budget, Figures
from mmplugin.search.conditions import processor_name
from mmplugin.search.other_archs import DoesNotFit, family_of, published_name, with_arch
from mmplugin.tables import show

PARTS = ('backbone', 'neck')  # what is timed inside a model; the rest is the head
SCORE = 'top-1'  # the accuracy that is published for all networks


@dataclass
class Row:
    """One network: what it costs here, and how accurate it is elsewhere."""

    name: str
    figures: Figures
    low: float  # lower and upper quartile of the latency
    high: float
    parts: dict[str, float] = field(default_factory=dict)  # milliseconds of backbone, neck and head
    mes: float = 0.0  # the start has 100
    published: dict[str, float] = field(default_factory=dict)
    unmet: list[str] = field(default_factory=list)  # limits of the budget that it exceeds
    on_frontier: bool = False  # no network that is as fast is more accurate


@dataclass
class Ranking:
    """All networks, the fastest first."""

    rows: list[Row]
    budget: Budget
    start: str
    notes: list[str] = field(default_factory=list)


class Timed(nn.Module):
    """A part of a model that notes how long it takes."""

    def __init__(self, part: nn.Module, now: Callable[[], float]):
        super().__init__()
        self.part, self.now = part, now
        self.milliseconds: list[float] = []

    def forward(self, *args: Any) -> Any:
        """Run the part."""
        start = self.now()
        result = self.part(*args)
        self.milliseconds.append((self.now() - start) * 1e3)
        return result


def configs(cfg: Config, of: str) -> tuple[dict[str, Any], str, list[str]]:
    """Return what to measure by name: configs, or backbones for ``of='backbone'``; the name of the start; and notes."""
    start = published_name(cfg.model.backbone)
    own: Any = dict(cfg.model.backbone, out_indices=None) if of == 'backbone' else cfg
    found, notes = {start: own}, []
    for name, (cls, arch) in ARCHS.items():
        if name == start:
            continue
        try:
            found[name] = dict(type=cls.__name__, arch=arch) if of == 'backbone' else with_arch(cfg, name)
        except DoesNotFit as error:
            notes = [f'Other networks are omitted: {error}.']
    return found, start, notes


def measure(
    settings: Settings, sources: Mapping[str, Any], size: tuple[int, int], mode: str, show_progress: bool = True
) -> list[Row]:
    """Measure all networks in turn. Run this in a new process."""
    stack.ignore_known_warnings()
    x = images(settings.batches[0], size, settings.device)
    columns = (TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not show_progress)
    rows, calls, timed = [], {}, {}
    with bar:
        task = bar.add_task('counting', total=len(sources) + WARM_UP + settings.rounds)
        for name, source in sources.items():
            subject = _build(source, size, settings.device)
            params = deployed_parameters(subject.model)
            macs = multiply_adds(subject.model, partial(subject.infer, x[:1]))
            calls[name] = partial(apply_mode_(subject, mode), x)
            with torch.inference_mode():
                calls[name]()
                memory = allocated_peak(calls[name], settings.device)
            timed[name] = _time_parts_(subject.model, clock(settings))
            accuracy = dict(PUBLISHED[name].accuracy) if name in PUBLISHED else {}
            rows.append(Row(name, Figures(0.0, params, macs, memory), 0.0, 0.0, published=accuracy))
            bar.advance(task)
        bar.update(task, description=f'measuring {len(calls)} networks in turn')
        with torch.inference_mode():
            times = interleave(calls, settings, partial(bar.advance, task))
    for row in rows:
        _set_times_(row, times[row.name], timed[row.name])
    return sorted(rows, key=lambda row: row.figures.latency_ms)


def _build(source: Any, size: tuple[int, int], device: str) -> Subject:
    torch.manual_seed(0)
    if isinstance(source, Config):
        cfg = copy.deepcopy(source)
        cfg.model.backbone.init_cfg = None  # speed does not depend on the weights
        subject = from_config(cfg, *size)
    else:
        options = {key: value for key, value in source.items() if key not in ('type', 'init_cfg')}
        subject = from_backbone(FAMILIES[family_of(source)](**options))
    subject.model.to(device).eval()
    return subject


def _time_parts_(model: nn.Module, now: Callable[[], float]) -> dict[str, Timed]:
    """Wrap backbone and neck, so that they note their times, and return the wrappers by name."""
    timed = {}
    for name in PARTS:
        if isinstance(part := getattr(model, name, None), nn.Module):
            timed[name] = Timed(part, now)
            setattr(model, name, timed[name])
    return timed


def _set_times_(row: Row, times: list[float], timed: Mapping[str, Timed]) -> None:
    row.low, row.figures.latency_ms, row.high = quartiles(times)
    own = {name: part.milliseconds[-len(times) :] for name, part in timed.items()}
    if own:
        rest = [total - sum(parts) for total, *parts in zip(times, *own.values(), strict=True)]
        row.parts = {name: quartiles(values)[1] for name, values in {**own, 'head': rest}.items()}


def judge(rows: list[Row], budget: Budget, start: str, notes: list[str]) -> Ranking:
    """Compare what was measured with the budget, with the start and with each other.

    Args:
        rows: The networks, the fastest first.
        budget: Its shares are those of the start.
        start: Name of the start.
        notes: What else to tell the user.
    """
    own = next(row.figures for row in rows if row.name == start)
    budget = budget.of_start(own)
    best = 0.0
    for row in rows:
        row.unmet = budget.unmet(row.figures)
        row.mes = mes(row.figures.params, row.figures.latency_ms, (own.params, own.latency_ms))
        row.on_frontier = row.published.get(SCORE, 0.0) > best
        best = max(best, row.published.get(SCORE, 0.0))
    return Ranking(rows, budget, start, notes)


def accuracies_of(cfg: Config) -> tuple[str, ...]:
    """Return the names of the published accuracies that concern a config."""
    if is_segmentation(cfg):
        return SCORE, 'mIoU'
    return (SCORE, 'box AP', 'mask AP') if 'roi_head' in cfg.model else (SCORE, 'RetinaNet AP')


def run_rank(cfg: Config, options: argparse.Namespace, budget: Budget) -> int:
    """Run the command."""
    from mmplugin.search.rank_output import sentence, tables, write_json, write_picture

    folder = prepare_folder(cfg.work_dir)
    sources, start, notes = configs(cfg, options.of)
    settings = Settings(
        batches=[options.batch], rounds=options.rounds, clock=options.clock, device=options.device,
        threads=options.threads,
    )  # fmt: skip
    with locked(folder):
        try:
            rows = in_new_process(measure, settings, sources, options.size, options.mode)
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise UserError(
                'the process that measures ran out of memory or was killed; try a smaller --size or --batch'
            ) from error
        ranking = judge(rows, budget, start, notes)
        meta = dict(
            date=datetime.date.today().isoformat(), machine=processor_name(options.device), command=options.command,
            device=options.device, threads=options.threads or torch.get_num_threads(), torch=torch.__version__,
            clock=options.clock, rounds=options.rounds, size=list(options.size), batch=options.batch, mode=options.mode,
            of=options.of,
        )  # fmt: skip
        write_json(ranking, meta, folder / 'rank.json')
        write_picture(ranking, meta, folder / 'rank.png')
    console = Console(highlight=False)
    title = f'Networks as {options.of} at {size_text(options.size)}, batch {options.batch}, {options.mode}'
    show(tables(ranking, accuracies_of(cfg), title), console)
    lines = [
        f'Measured {meta["date"]} on {meta["machine"]}. Device: {meta["device"]}, threads: {meta["threads"]}, torch: '
        f'{meta["torch"]}, clock: {meta["clock"]}, rounds: {meta["rounds"]} or more. Times are medians.',
        'M: million parameters as deployed. MES: the start has 100. Accuracies are published; frontier: no network '
        'that is as fast is more accurate on ImageNet.',
        *notes,
        sentence(ranking),
        f'Wrote {folder / "rank.json"} and {folder / "rank.png"}.',
    ]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    return 0
