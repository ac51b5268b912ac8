"""Transforms that mmdet and mmseg do not have."""

from mmplugin.data.seeded_sampler import seed_everything


class SeedSample:
    """First step of a training pipeline: seed the augmentation of one image.

    The seed comes with the index that ``SeededSampler`` draws. With other samplers this step does nothing.
    """

    def __call__(self, results: dict) -> dict:
        """Seed all random number generators."""
        seed = getattr(results.get('sample_idx'), 'seed', None)
        if seed is not None:
            seed_everything(seed)
        return results
