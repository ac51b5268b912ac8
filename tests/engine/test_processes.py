"""Processes of torchrun find each other, and not the dead ones of an earlier attempt."""

import os
import signal
import time

import torch
from torch import distributed as dist
from two_processes import run_in_two_processes

from mmplugin.engine.processes import start_group


def _meet(rank: int, port: int, attempt: int) -> None:
    variables = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, GROUP_WORLD_SIZE=1, MASTER_ADDR='localhost')
    variables |= dict(MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE=True, TORCHELASTIC_RESTART_COUNT=attempt)
    os.environ.update({name: str(value) for name, value in variables.items()})
    signal.alarm(60)  # a process that is refused or waits ends the test
    time.sleep(rank)  # the first process looks for the second one before that is there
    start_group('gloo')
    ranks = torch.tensor([float(rank)])
    dist.all_reduce(ranks)
    assert ranks.item() == 1


def test_a_restarted_process_does_not_look_for_dead_ones():
    """A process that finds no other one, or a dead one, fails, and with it the test."""
    store = dist.TCPStore('localhost', 0, is_master=True, wait_for_workers=False)  # as torchrun keeps it
    for attempt in range(2):
        run_in_two_processes(_meet, store.port, attempt)
