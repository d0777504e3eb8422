"""Sharding, and real gloo processes: results do not depend on the number of workers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymeta.distributed import Group, join_group, leave_group
from raymeta.experiment import Experiment
from raymeta.experiment_file import load_experiment
from raymeta.models import Params
from raymeta.tasks import load_tasks
from raymeta.training import Trainer, build_recipe
from tests.reference import poisoned

CPU = torch.device("cpu")
WORLDS = (2, 3)
NUM_STEPS = 10

@given(total=st.integers(0, 50), world_size=st.integers(1, 12))
def test_shards_are_contiguous_cover_everything_once_and_differ_by_one_at_most(total, world_size):
    shards = [Group(rank, world_size).shard(range(total)) for rank in range(world_size)]
    assert [index for shard in shards for index in shard] == list(range(total))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
