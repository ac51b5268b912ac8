"""Export whole models that were trained, compare the files with PyTorch, and write the table of docs/deploy.md.

    python docs/scripts/deploy_models.py [CONFIG ...]

RetinaNet, Mask R-CNN and Semantic FPN, each with a backbone of each family, train on the built-in set. Each becomes a
file of a fixed size and a dynamic one, which onnxruntime and OpenVINO run. 20 images, and the same at other sizes, are
compared object by object or pixel by pixel; AP or mIoU is that of 100 images. Trainings and results are kept in
work_dirs/deploy_models, so that a second call continues; the table shows all that are there.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markers import ROOT, replace_between
from rich.console import Console

from mmplugin import Predictor, stack
from mmplugin.config_edits import dicts
from mmplugin.deploy import export
from mmplugin.deploy.check import Proof, headlines, prove
from mmplugin.deploy.models import Choice, traceable
from mmplugin.deploy.runtimes import open_file
from mmplugin.deploy.samples import Data, Reference, resize_rule
from mmplugin.engine.config import load_config
from mmplugin.engine.resume import find_last_checkpoint
from mmplugin.files import atomic_write
from mmplugin.search.conditions import processor_name
from mmplugin.tables import Table, show

PAGE, FOLDER = ROOT / 'docs/deploy.md', ROOT / 'work_dirs/deploy_models'
MODELS = dict(retinanet=200, maskrcnn=200, semfpn=150)  # training steps
ARCHS = ('v2_s0', 'v1_l1', 'evit_m0')
SIZE = (224, 224)  # of fixed files
LARGE = (576, 512)  # a dynamic file of EfficientViT takes images with a side of 449 pixels or more
COMPARED, IMAGES = 40, 100
RUN_BY = ('onnxruntime', 'openvino')
SHOWN = ('box AP', 'mask AP', 'mIoU %')  # all others are compared, too
console = Console(highlight=False, soft_wrap=True)


def trained(name: str, steps: int) -> Path:
    """Return a checkpoint of a config, which is trained from random weights if there is none."""
    folder = FOLDER / name
    if not (folder / 'done').is_file():
        command = [sys.executable, '-m', 'mmplugin', 'train', name, '--mini', '--weights', 'none']
        command += ['--iters', str(steps), '--workers', '0', '--no-report', '--work-dir', str(folder)]
        command += ['--cfg-options', f'train_cfg.val_interval={steps + 1}']  # the files are evaluated, not the training
        subprocess.run(command, check=True)
        (folder / 'done').touch()
    checkpoint = find_last_checkpoint(folder)
    assert checkpoint is not None
    return Path(checkpoint)


def result_file(name: str, dynamic: bool) -> Path:
    """Return where the result of a file is kept."""
    return FOLDER / f'{name}-{"dynamic" if dynamic else "fixed"}.json'


def proofs(name: str, checkpoint: Path, dynamic: bool) -> dict[str, Any]:
    """Export a model, and return what each runtime answered."""
    cfg = load_config(name, mini=True)
    if dynamic and '_evit_' in name:
        for step in dicts([cfg.test_dataloader]):
            if step.get('type') == 'Resize':
                step['scale'] = LARGE
    predictor = Predictor(cfg, checkpoint, device='cpu')
    size = LARGE[::-1] if dynamic and '_evit_' in name else SIZE
    choice = Choice(size=size, dynamic=dynamic)
    path = result_file(name, dynamic).with_suffix('.onnx')
    start = time.perf_counter()
    found = traceable(predictor.model, predictor.classes, choice, name, checkpoint, resize_rule(cfg))
    export.write(export.program_of(found), found, 'onnx', path)
    written = time.perf_counter() - start
    data = Data(cfg, IMAGES)
    if not dynamic:
        data.fit_(size)
    reference = Reference(predictor.model, None if dynamic else size)
    results = []
    for runtime in RUN_BY:
        start = time.perf_counter()
        run = open_file(path, runtime)
        proof = prove(run, f'{run.name} {run.version}', reference, data, found.metadata, compared=COMPARED)
        results.append(dict(result_of(proof), seconds=written + time.perf_counter() - start))
    return dict(model=name, dynamic=dynamic, results=results)


def result_of(proof: Proof) -> dict[str, Any]:
    """Return what the table shows of a proof."""
    return dict(
        runtime=proof.runtime,
        lost=proof.file.lost,
        total=proof.file.total,
        noise=proof.noise.lost,
        errors=proof.file.errors,
        metrics=[(text, before, after) for name, text, before, after in headlines(proof)],
        problems=proof.problems,
    )


def rows(records: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each file and runtime."""
    for record in records:
        for result in record['results']:
            boxes, masks = (result['errors'].get(key) for key in ('boxes', 'mask pixels'))
            shown = [metric for metric in result['metrics'] if metric[0] in SHOWN]
            yield (
                record['model'],
                'dynamic' if record['dynamic'] else 'fixed',
                result['runtime'],
                f'{result["lost"]} of {result["total"]:,} ({result["noise"]})',
                '' if boxes is None else f'{boxes:.1g} px',
                '' if masks is None else f'{masks:.0f}',
                ', '.join(f'{text} {before:.4f}' for text, before, _ in shown),
                ', '.join(f'{after:.4f}' for *_, after in shown),
                f'{result["seconds"]:.0f} s',
                'proven' if not result['problems'] else '**' + '; '.join(result['problems']) + '**',
            )


def main() -> None:
    """Run what is missing of the named configs, and write the table."""
    names = [f'{model}_{arch}' for model in MODELS for arch in ARCHS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='*', metavar='CONFIG', choices=[*names, []], help='default: all')
    chosen = parser.parse_args().configs or names
    stack.ignore_known_warnings()
    for name in chosen:
        checkpoint = trained(name, MODELS[name.partition('_')[0]])
        for dynamic in (False, True):
            path = result_file(name, dynamic)
            if not path.is_file():
                console.print(f'{path.stem} ...')
                record = proofs(name, checkpoint, dynamic)
                with atomic_write(path) as draft:
                    draft.write_text(json.dumps(record, default=float), encoding='utf-8')
    files = [result_file(name, dynamic) for name in names for dynamic in (False, True)]
    records = [json.loads(path.read_text(encoding='utf-8')) for path in files if path.is_file()]
    columns = (
        'model', 'file', 'runtime', 'objects or pixels that differ (PyTorch from itself)', 'largest error of boxes',
        'pixels of a mask', 'PyTorch', 'file', 'export and checks', '',
    )  # fmt: skip
    table = Table('', columns, list(rows(records)))
    show([table])
    steps = ', '.join(f'{model} {count}' for model, count in MODELS.items())
    note = f'({time.strftime("%Y-%m-%d")}, {processor_name("cpu")}; training steps: {steps}.)'
    replace_between(PAGE, 'models', f'{table.markdown()}\n\n{note}')


if __name__ == '__main__':
    main()
