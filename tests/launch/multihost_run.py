"""One of several processes of an alignment run on a tiny model, for the test of training on several hosts.

`python -m tests.launch.multihost_run ADDRESS NUM_PROCESSES PROCESS_ID WORKDIR` trains, the model split over the two
devices of each process, takes the last checkpoint and
the result away, trains on from the checkpoint before, and fails in process 0 while the other waits for it.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax

from edgesafe_jax.models.loading import with_precision
from edgesafe_jax.parallel import (
    Layout,
    any_process,
    initialize_multihost,
    is_main_process,
    main_process_first,
    make_model_mesh,
)
from edgesafe_jax.safety.system import SafeSystem
from launch import alignment
from tests.launch.test_alignment import EveryOtherGuard, small
from tests.tiny import make_tiny_model

if __name__ == "__main__":
    assert initialize_multihost(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    assert any_process(is_main_process())
    assert not any_process(False)
    mesh, guard = make_model_mesh(Layout(fsdp=2)), EveryOtherGuard()
    model = with_precision(dataclasses.replace(make_tiny_model(), mesh=mesh))
    alignment.load_system = lambda config, workdir: (model, guard, SafeSystem(model, guard, config["refusal"]))  # type: ignore
    workdir = Path(sys.argv[4])
    config = small(parallel={"fsdp": 2, "tensor": 1})
    stored = alignment.train(config, workdir)
    with main_process_first("test/taken"):
        if is_main_process():
            stored.rename(workdir / "first.safetensors")
            shutil.rmtree(workdir / "checkpoints" / "4")
    alignment.train(config, workdir)
    try:
        with main_process_first("test/failing"):
            if is_main_process():
                raise FileNotFoundError("no prompts")
    except (FileNotFoundError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
    print(f"{jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices")
