"""IterationSeedHook: training steps draw the same random numbers in a resumed run."""

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmplugin.data.seeded_sampler import combine_seeds, seed_everything


class IterationSeedHook(Hook):
    """Seed every training step, which draws RoI samples, dropout and drop path, by the number of its iteration."""

    priority = 'VERY_LOW'  # the last hook before the step

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seed all random number generators."""
        seed_everything(combine_seeds(runner.seed or 0, get_rank(), runner.iter, 1))
