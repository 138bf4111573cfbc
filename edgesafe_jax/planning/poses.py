"""Poses of a MuJoCo model as line segments, to be drawn without a renderer."""

import numpy as np

from edgesafe_jax.planning.physics import MjModel, import_mujoco


def figure_segments(model: MjModel, physics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a pose as line segments, to be drawn without a renderer.

    Each capsule or cylinder is the segment along its axis; every other moving body is a segment from its parent.

    Args:
      model: the model.
      physics: full physics state `[S]`.

    Returns:
      Ends `[L, 2, 3]` and radii `[L]`, both in metres.
    """
    mujoco = import_mujoco()

    data = mujoco.MjData(model)
    mujoco.mj_setState(model, data, np.asarray(physics, np.float64), mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
    mujoco.mj_kinematics(model, data)
    long = (mujoco.mjtGeom.mjGEOM_CAPSULE.value, mujoco.mjtGeom.mjGEOM_CYLINDER.value)
    moves = (model.body_weldid != 0) & (model.body_mocapid < 0)
    ends, radii, drawn = [], [], set()
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if int(model.geom_type[geom]) in long and moves[body]:
            reach = model.geom_size[geom, 1] * data.geom_xmat[geom].reshape(3, 3)[:, 2]
            ends.append((data.geom_xpos[geom] - reach, data.geom_xpos[geom] + reach))
            radii.append(model.geom_size[geom, 0])
            drawn.add(body)
    for body in range(1, model.nbody):
        if moves[body] and body not in drawn:
            parent = int(model.body_parentid[body])
            ends.append((data.xpos[parent if moves[parent] else body], data.xpos[body]))
            radii.append(0.015)
    return np.array(ends).reshape(-1, 2, 3), np.array(radii)
