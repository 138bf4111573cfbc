"""Poses of a MuJoCo model as line segments, to be drawn without a renderer."""

import itertools

import numpy as np

from edgesafe_jax.planning.physics import MjModel, MujocoState, import_mujoco

_EDGES = [pair for pair in itertools.combinations(range(8), 2) if (pair[0] ^ pair[1]).bit_count() == 1]
_CORNERS = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
_THIN, _LINK = 0.004, 0.015  # radii in metres: of the edges of a box, and of a body that is drawn as a link


def figure_segments(
    model: MjModel, state: MujocoState | np.ndarray, *, mocap: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a pose as line segments, to be drawn without a renderer.

    Of the bodies that move or that the user places, a capsule or cylinder is the segment along its axis, a box its
    twelve edges, a sphere a point and an ellipsoid its three axes; a body with none of these is a segment from its
    parent.

    Args:
      model: the model.
      state: the state, or its full physics state `[S]`.
      mocap: where the placed bodies are `[7 m]`; None takes it from the state, or from the model.

    Returns:
      Ends `[L, 2, 3]` and radii `[L]`, both in metres.
    """
    mujoco = import_mujoco()

    physics = state
    if isinstance(state, MujocoState):
        physics, mocap = state.physics, state.mocap if mocap is None else mocap
    data, kinds = mujoco.MjData(model), mujoco.mjtState
    mujoco.mj_setState(model, data, np.asarray(physics, np.float64), kinds.mjSTATE_FULLPHYSICS.value)
    if mocap is not None:
        placed = kinds.mjSTATE_MOCAP_POS.value | kinds.mjSTATE_MOCAP_QUAT.value
        mujoco.mj_setState(model, data, np.asarray(mocap, np.float64), placed)
    mujoco.mj_kinematics(model, data)
    placed, moves = model.body_mocapid >= 0, model.body_weldid != 0
    ends, radii, drawn = [], [], set()
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if not moves[body] or (placed[body] and model.geom_rgba[geom, 3] == 0):
            continue
        centre, axes = data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3)
        for one, other, radius in _geom_segments(model, geom):
            ends.append((centre + axes @ one, centre + axes @ other))
            radii.append(radius)
            drawn.add(body)
    for body in range(1, model.nbody):
        if moves[body] and not placed[body] and body not in drawn:
            parent = int(model.body_parentid[body])
            ends.append((data.xpos[parent if moves[parent] and not placed[parent] else body], data.xpos[body]))
            radii.append(_LINK)
    return np.array(ends).reshape(-1, 2, 3), np.array(radii)


def _geom_segments(model: MjModel, geom: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Segments of a geom in its own axes: ends and radius."""
    geoms, size = import_mujoco().mjtGeom, np.asarray(model.geom_size[geom], np.float64)
    kind = int(model.geom_type[geom])
    if kind in (geoms.mjGEOM_CAPSULE.value, geoms.mjGEOM_CYLINDER.value):
        reach = np.array([0.0, 0.0, size[1]])
        return [(-reach, reach, float(size[0]))]
    if kind == geoms.mjGEOM_SPHERE.value:
        return [(np.zeros(3), np.zeros(3), float(size[0]))]
    if kind == geoms.mjGEOM_ELLIPSOID.value:
        return [(-reach, reach, _THIN) for reach in np.diag(size)]
    if kind == geoms.mjGEOM_BOX.value:
        corners = _CORNERS * size
        return [(corners[one], corners[other], _THIN) for one, other in _EDGES]
    return []
