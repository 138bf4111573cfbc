r"""Runs a launcher in N connected processes of this machine, as the hosts of one run are.

    python -m launch.local_processes 2 python -m launch.train --config=configs/align_soft_prompt.py --workdir=DIR

On a machine with GPUs each process sees its part of them. A process that fails ends the others.
"""

import sys

from edgesafe_jax.processes import run_local
from . import errors

if __name__ == "__main__":
    with errors.reported():
        raise SystemExit(run_local(sys.argv[1:]))
