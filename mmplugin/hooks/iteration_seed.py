"""IterationSeedHook: a training step draws the same random numbers before and after a resume."""

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmplugin.data.seeded_sampler import combine_seeds, seed_everything


class IterationSeedHook(Hook):
    """Seeds what the training step itself draws (sampled RoIs, dropout, drop path) by the number of the iteration."""

    priority = 'VERY_LOW'  # the last before the step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        seed_everything(combine_seeds(runner.seed or 0, get_rank(), runner.iter, 1))
