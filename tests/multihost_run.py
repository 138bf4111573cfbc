"""One of several processes of a sharded step, for the test of the start on several hosts.

`python -m tests.multihost_run ADDRESS NUM_PROCESSES PROCESS_ID` prints the loss and the gradient.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.parallel import initialize_multihost, make_data_mesh, replicate, shard_batch


def value_and_grad(params: dict, batch: np.ndarray | jax.Array) -> tuple[jax.Array, dict]:
    noise = jax.random.normal(params["key"], (3,))
    weights = {"w": params["w"]}
    return jax.value_and_grad(lambda p: jnp.mean((batch @ (p["w"] + noise)) ** 2))(weights)


def make_problem() -> tuple[dict, np.ndarray]:
    batch = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    return {"w": jnp.arange(3, dtype=jnp.float32), "key": jax.random.key(1)}, batch


if __name__ == "__main__":
    assert initialize_multihost(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    assert initialize_multihost()  # A second call changes nothing.
    mesh = make_data_mesh()
    try:
        make_data_mesh(1)
    except ValueError as error:
        assert "all 4 devices take part" in str(error)  # noqa: PT017
    params, batch = make_problem()
    sharded = shard_batch(batch, mesh)
    assert sharded.addressable_shards[0].data.shape == (2, 3)
    assert len(sharded.addressable_shards) == 2
    loss, gradients = jax.jit(value_and_grad)(replicate(params, mesh), sharded)
    print(json.dumps({"devices": mesh.size, "loss": float(loss), "gradient": np.asarray(gradients["w"]).tolist()}))
