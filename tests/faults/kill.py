"""Kill trainings at random moments, resume them, and compare all weights with those of an uninterrupted run.

Run as ``python tests/faults/kill.py --kills 50 --seed 0 --out kills.json``. Every story is one training that is killed
several times with ``kill -9`` and then finished. The kills take turns: at a random moment of the whole command, while a
checkpoint is being written, and at a random moment after the first iteration. ``docs/scripts/kills.py`` writes the
result into docs/reliability.md.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.processes import Command
from tiny_training import tiny_config, use_tiny_sets

from mmplugin.engine.resume import NAME, find_last_checkpoint

CONFIGS = {'detection': 'retinanet_evit_m0', 'segmentation': 'semfpn_evit_m0'}
WORKERS = (0, 2)
KILLS_PER_STORY = 5
ANY_TIME, IN_A_SAVE, IN_TRAINING = range(3)


@dataclass
class Story:
    """One training that was killed several times.

    Args:
        config: Kind of the training.
        workers: Number of data loading processes.
        moments: What the training did at every kill: 'start', 'training' or 'writing'.
        different: Number of tensors that differ from those of the uninterrupted run.
        tensors: Number of tensors that were compared.
    """

    config: str
    workers: int
    moments: list[str] = field(default_factory=list)
    different: int = -1
    tensors: int = 0


def training(config: Path, work_dir: Path) -> Command:
    """Start a training, or continue it if it has saved a checkpoint."""
    resume = ['--resume'] if any(NAME.fullmatch(path.name) for path in work_dir.glob('*.pth')) else []
    arguments = ['train', config, '--work-dir', work_dir, '--no-check', '--no-report', *resume]
    log = work_dir.with_suffix('.log')
    log.unlink(missing_ok=True)  # what the command before it printed
    return Command(arguments, log)


def all_tensors(work_dir: Path) -> dict[str, torch.Tensor]:
    """Return the weights and the state of the optimizer of the last checkpoint."""
    checkpoint = torch.load(find_last_checkpoint(work_dir), weights_only=False)
    tensors = dict(checkpoint['state_dict'])
    for number, state in checkpoint['optimizer']['state'].items():
        tensors.update({f'optimizer.{number}.{name}': value for name, value in state.items()})
    return tensors


def _is_training(command: Command) -> bool:
    return 'train ' in command.printed()


def _kill_once(command: Command, work_dir: Path, seconds: float, when: int) -> str | None:
    """Kill at a moment of this kind, ``seconds`` later; return when, or None if the run ended before."""
    if when == IN_A_SAVE:
        command.wait_until(lambda: any(work_dir.glob('.*.pth.*.part')))
    else:
        if when == IN_TRAINING:
            command.wait_until(lambda: _is_training(command))
        started = time.monotonic()
        command.wait_until(lambda: time.monotonic() - started > seconds)
    if not command.process.is_alive():
        assert command.wait() == 0, command.printed()
        return None
    command.kill()
    if any(work_dir.glob(f'.*.{command.process.pid}.part')):
        return 'writing'
    return 'training' if _is_training(command) else 'start'


def run(kills: int, seed: int, folder: Path, say: Callable[[str], object]) -> list[Story]:
    """Kill this many times and return what happened."""
    draw, stories, done = random.Random(seed), [], 0
    reference: dict[tuple[str, int], tuple[Path, dict, float]] = {}
    with use_tiny_sets(folder):
        while done < kills:
            kind = list(CONFIGS)[len(stories) % 2]
            workers = WORKERS[len(stories) // 2 % 2]
            if (kind, workers) not in reference:
                changes = {'train_dataloader.num_workers': workers, 'train_dataloader.persistent_workers': workers > 0}
                config = tiny_config(CONFIGS[kind], folder / f'{kind}{workers}', **changes)
                for _ in range(1 + (not reference)):  # the first command also starts the server
                    whole = folder / f'whole_{kind}{workers}'
                    shutil.rmtree(whole, ignore_errors=True)
                    started = time.monotonic()
                    command = training(config, whole)
                    assert command.wait() == 0, command.printed()
                reference[kind, workers] = config, all_tensors(whole), time.monotonic() - started
            config, expected, duration = reference[kind, workers]
            story, work_dir = Story(kind, workers), folder / f'story{len(stories)}'
            work_dir.mkdir()
            while len(story.moments) < min(KILLS_PER_STORY, kills - done):
                when = len(story.moments) % 3
                longest = 0.1 * duration if when == IN_TRAINING else 0.9 * duration  # most of it is the start
                moment = _kill_once(training(config, work_dir), work_dir, draw.uniform(0.0, longest), when)
                if moment is None:
                    break
                story.moments.append(moment)
            done += len(story.moments)
            command = training(config, work_dir)
            assert command.wait() == 0, command.printed()
            leftovers = list(work_dir.glob('.*.part'))
            assert not leftovers, leftovers
            found = all_tensors(work_dir)
            assert found.keys() == expected.keys()
            story.tensors = len(expected)
            story.different = sum(not torch.equal(found[key], value) for key, value in expected.items())
            stories.append(story)
            say(f'{done}/{kills} kills | {asdict(story)}')
            shutil.rmtree(work_dir)
    return stories


def _say(text: str) -> None:
    sys.stdout.write(text + '\n')
    sys.stdout.flush()


def main() -> int:
    """Run from the command line; return 1 if any tensor differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=50)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, help='JSON file for the result')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stories = run(options.kills, options.seed, Path(folder), _say)
    moments = [moment for story in stories for moment in story.moments]
    result = {
        'command': f'python tests/faults/kill.py --kills {options.kills} --seed {options.seed}',
        'date': str(date.today()),
        'kills': len(moments),
        'moments': {name: moments.count(name) for name in ('start', 'training', 'writing')},
        'trainings': len(stories),
        'different tensors': sum(story.different for story in stories),
        'stories': [asdict(story) for story in stories],
    }
    _say(str({key: value for key, value in result.items() if key != 'stories'}))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + '\n')
    return int(result['different tensors'] > 0)


if __name__ == '__main__':
    sys.exit(main())
