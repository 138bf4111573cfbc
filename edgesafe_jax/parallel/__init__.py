"""Devices and hosts: meshes, shardings, pmapped planners and the start on several hosts.

A step function is written for one device; `jax.jit` inserts the collectives. The batch is split along its first axis.
A model is copied to all devices, or split by the table of `models.sharding` (`Layout`: FSDP and tensor parallelism).
On one device every function here returns arrays unchanged.

Planning uses `jax.pmap`: over problems (`pmap_problems`), or over the population of one problem (`split_population`
with `pmap_population`).
"""

from edgesafe_jax.parallel.hosts import (
    MultihostError,
    StopVote,
    any_process,
    check_platform,
    initialize_multihost,
    is_main_process,
    main_process_first,
)
from edgesafe_jax.parallel.meshes import (
    Layout,
    distribute,
    make_data_mesh,
    make_mesh,
    make_model_mesh,
    place,
    replicate,
    shard_batch,
    to_host,
    to_local,
)
from edgesafe_jax.parallel.planners import pmap_population, pmap_problems, split_population

__all__ = [
    "Layout",
    "MultihostError",
    "StopVote",
    "any_process",
    "check_platform",
    "distribute",
    "initialize_multihost",
    "is_main_process",
    "main_process_first",
    "make_data_mesh",
    "make_mesh",
    "make_model_mesh",
    "place",
    "pmap_population",
    "pmap_problems",
    "replicate",
    "shard_batch",
    "split_population",
    "to_host",
    "to_local",
]
