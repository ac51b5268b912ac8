"""The processes that ``torchrun`` starts: how they meet, and whether they were started again."""

import os

import torch
from torch import distributed as dist


def restarted_by_torchrun() -> bool:
    """Return whether torchrun started these processes again after one of them failed."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def start_group(backend: str) -> None:
    """Start a process group where mmengine's own start fails: without NCCL, and after torchrun restarted the processes.

    torchrun keeps one store for all attempts, so a process can find the address of a dead one there and be refused. On
    a single machine each attempt gets a part of the store; several machines do not count attempts together.
    """
    own_part = restarted_by_torchrun() and os.environ.get('GROUP_WORLD_SIZE') == '1'
    if dist.is_initialized() or (backend == 'nccl' and not own_part):
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    if not own_part:
        dist.init_process_group(backend)
        return
    store, rank, world_size = next(dist.rendezvous('env://'))
    store = dist.PrefixStore(f'attempt {os.environ["TORCHELASTIC_RESTART_COUNT"]}', store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
