"""One of several processes of an alignment run on a tiny model, for the test of training on several hosts.

`python -m tests.launch.multihost_run ADDRESS NUM_PROCESSES PROCESS_ID WORKDIR` trains, takes the last checkpoint and
the result away, trains on from the checkpoint before, and fails in process 0 while the other waits for it.
"""

import shutil
import sys
from pathlib import Path

import jax

from edgesafe_jax.parallel import any_process, initialize_multihost, is_main_process, main_process_first
from edgesafe_jax.safety.system import SafeSystem
from launch import alignment
from tests.launch.test_alignment import EveryOtherGuard, small
from tests.tiny import make_tiny_model

if __name__ == "__main__":
    assert initialize_multihost(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    assert any_process(is_main_process())
    assert not any_process(False)
    model, guard = make_tiny_model(), EveryOtherGuard()
    alignment.load_system = lambda config, workdir: (model, guard, SafeSystem(model, guard, config["refusal"]))  # type: ignore
    workdir = Path(sys.argv[4])
    stored = alignment.train(small(), workdir)
    with main_process_first("test/taken"):
        if is_main_process():
            stored.rename(workdir / "first.safetensors")
            shutil.rmtree(workdir / "checkpoints" / "4")
    alignment.train(small(), workdir)
    try:
        with main_process_first("test/failing"):
            if is_main_process():
                raise FileNotFoundError("no prompts")
    except (FileNotFoundError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
    print(f"{jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices")
