"""The same examples in every run, and nothing stored on the disk."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    'deterministic',
    derandomize=True,
    database=None,
    deadline=None,  # a busy machine is not a failure
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile('deterministic')
