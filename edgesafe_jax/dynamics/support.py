"""The support of the data, and the box in which a user declares the dynamics to be the same everywhere."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics.ensemble import Ensemble, model_inputs
from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions, check_dims, largest, varies
from edgesafe_jax.errors import check_counts
from edgesafe_jax.typing import Array


class CalibrationError(DynamicsError):
    """Too little calibration data for the requested level."""


def episode_quantile(scores: np.ndarray, episodes: np.ndarray, alpha: float) -> float:
    """The conformal quantile of scores that come in episodes, each episode of the same weight.

    Args:
      scores: `[N]`.
      episodes: `[N]` the episode of each score.
      alpha: the level.

    Returns:
      The smallest score q such that the scores up to q weigh at least 1 - alpha, where each of the K episodes weighs
      1 / (K + 1) in all; infinity if there is none.

    Example:
      >>> episode_quantile(np.arange(19.0), np.arange(19), 0.1)   # the 18th smallest of 19: ceil(20 * 0.9)
      17.0
    """
    _, inverse, counts = np.unique(episodes, return_inverse=True, return_counts=True)
    weights = 1.0 / ((len(counts) + 1) * counts[inverse])
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order]) >= 1 - alpha - 1e-9
    return float(scores[order[np.argmax(reached)]]) if reached.any() else math.inf


def fewest_episodes(alpha: float) -> int:
    """The smallest K with 1 / (K + 1) <= alpha."""
    return math.ceil(1 / alpha - 1e-9) - 1


class Support(struct.PyTreeNode):
    """The support of the data: distance to the nearest training input, in one or several views of the input.

    Attributes:
      references: `[R, M]` normalised training inputs.
      thresholds: `[V]` largest distance of each view that is still inside.
      constant: `[M]` for a dimension of the input that does not vary in the training data the largest distance from its
        value that is rounding; 0 for those that vary.
      views: for each view its dimensions of the input (state, action, differences).
    """

    references: Array
    thresholds: Array
    constant: Array
    views: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)

    def distances(self, inputs: Array) -> Array:
        """Returns how far normalised inputs `[N, M]` are, in thresholds, `[V, N]`.

        Another value than the one that a dimension has in all training data is outside, however near: nothing is known
        of what depends on it.
        """
        near = jnp.stack([_nearest(inputs, self.references, view) for view in self.views])
        tied = (self.constant > 0)[None]
        away = jnp.abs(inputs) / jnp.where(tied, self.constant[None], 1.0)
        off = largest(jnp.where(tied, away, 0.0), 1)
        return jnp.maximum(near / self.thresholds[:, None], off[None])

    def contains(self, inputs: Array) -> Array:
        """Returns whether normalised inputs `[N, M]` are inside, `[N]`."""
        return jnp.all(self.distances(inputs) <= 1, axis=0)


def fit_support(
    ensemble: Ensemble,
    training: Transitions,
    calibration: Transitions,
    *,
    moved: Sequence[int],
    alpha: float = 0.05,
    max_references: int = 8192,
) -> Support:
    """Fits how near to a training input an input has to be to count as inside the support.

    Two views or three: the dimensions of the state that the group moves, in which the shift happens; the whole input of
    the model; and the differences of dimensions among its inputs (`Ensemble.relations`), if there are any, such as the
    place of an object seen from the agent. Where a group moves one body alone, each body may be where the data are and
    both together nowhere near them, one inside the other, say; the whole input, in many dimensions, is too coarse to
    tell. The thresholds are conformal quantiles over the calibration episodes, alpha over the number of views each: at
    most a fraction `alpha` of fresh data is called outside.

    Args:
      ensemble: its normaliser is the metric.
      training: what the ensemble was fitted on.
      calibration: other episodes.
      moved: the state dimensions of the first view, such as `GroupAction.moved`.
      alpha: fraction of fresh data that may be called outside.
      max_references: at most so many training inputs are kept, evenly spaced.

    Returns:
      The support.

    Raises:
      CalibrationError: if there are fewer calibration episodes than V / alpha - 1, for V views.
      DynamicsError: if a dimension is named that the state lacks.
    """
    check_dims("moved", moved, training.states.shape[1])
    check_counts(max_references=max_references)
    size = len(ensemble.input_mean)
    views = [tuple(moved), tuple(range(size))]
    if ensemble.relations:
        views.append(tuple(range(size - len(ensemble.relations), size)))
    level = alpha / len(views)
    num = len(np.unique(np.asarray(calibration.episodes)))
    if num < fewest_episodes(level):
        raise CalibrationError(
            f"{num} calibration episodes for a support with alpha={alpha}: expected at least {fewest_episodes(level)}"
        )
    inputs = model_inputs(jnp.asarray(training.states), jnp.asarray(training.actions), ensemble.relations)
    rounding = 1e-5 * jnp.maximum(jnp.abs(ensemble.input_mean), 1e-2)
    rows = np.unique(np.linspace(0, len(training.states) - 1, max_references).astype(int))
    normalize = jax.vmap(ensemble.normalize)
    references = normalize(jnp.asarray(training.states)[rows], jnp.asarray(training.actions)[rows])
    fresh = normalize(jnp.asarray(calibration.states), jnp.asarray(calibration.actions))
    near = [np.asarray(_nearest(fresh, references, view)) for view in views]
    thresholds = [episode_quantile(each, np.asarray(calibration.episodes), level) for each in near]
    return Support(
        references=references,
        thresholds=jnp.asarray(thresholds, jnp.float32),
        constant=jnp.where(varies(inputs), 0.0, rounding),
        views=tuple(views),
    )


class SupportTable(struct.PyTreeNode):
    """The first view of a support as a table of cells, which answers in one look-up: for use inside a simulator.

    Attributes:
      inside: `[n ** D]` whether the centre of each cell is inside, for the D dimensions of the view.
      low: `[D]` lower corner of the table, normalised.
      cell: `[D]` sizes of a cell.
      view: the dimensions of the input.
      num_cells: n, along each dimension.
    """

    inside: Array
    low: Array
    cell: Array
    view: tuple[int, ...] = struct.field(pytree_node=False)
    num_cells: int = struct.field(pytree_node=False)

    def contains(self, inputs: Array) -> Array:
        """Returns whether normalised inputs `[N, M]` are in a cell whose centre is inside, `[N]`."""
        places = jnp.floor((inputs[:, jnp.array(self.view)] - self.low[None]) / self.cell[None])
        within = jnp.all((places >= 0) & (places < self.num_cells), axis=1)
        powers = jnp.array([self.num_cells**power for power in range(len(self.view))], jnp.int32)
        index = jnp.sum(jnp.clip(places, 0, self.num_cells - 1).astype(jnp.int32) * powers[None], axis=1)
        return within & self.inside[index]


def tabulate_support(support: Support, *, max_cells: int = 65_536) -> SupportTable:
    """Makes a table of the first view of a support.

    Args:
      support: the support.
      max_cells: cells in all: 256 along each of two dimensions, 40 of three, 16 of four.

    Returns:
      The table.

    Raises:
      DynamicsError: the view has so many dimensions that there is not one cell for each side.
    """
    check_counts(max_cells=max_cells)
    view = support.views[0]
    num = int(max_cells ** (1 / len(view)) + 1e-6)
    if num < 2:
        raise DynamicsError(f"a table of {max_cells} cells over {len(view)} dimensions: expected more cells")
    threshold = support.thresholds[0]
    known = support.references[:, jnp.array(view)]
    low, high = jnp.min(known, 0) - threshold, jnp.max(known, 0) + threshold
    cell = (high - low) / num
    axes = [jnp.arange(num, dtype=jnp.float32)] * len(view)
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(view))
    # The first dimension changes fastest, as in `SupportTable.contains`.
    centres = low[None] + (grid[:, ::-1] + 0.5) * cell[None]
    near = _nearest(centres, known, tuple(range(len(view))))
    return SupportTable(near <= threshold, low, cell, view=view, num_cells=num)


@functools.partial(jax.jit, static_argnums=2)
def _nearest(inputs: Array, references: Array, view: tuple[int, ...]) -> Array:
    """Distance of each input to the nearest reference, `[N]`, over some dimensions."""
    dims = jnp.array(view)
    x, y = inputs[:, dims], references[:, dims]
    lengths = jnp.sum(y**2, axis=1)

    def near(block: Array) -> Array:
        squared = jnp.sum(block**2, 1)[:, None] + lengths[None] - 2 * block @ y.T
        return jnp.sqrt(jnp.maximum(-largest(-squared, 1), 1e-12))

    size = min(256, len(x))
    padded = jnp.pad(x, ((0, -len(x) % size), (0, 0)))
    return jax.lax.map(near, padded.reshape(-1, size, x.shape[1])).reshape(-1)[: len(x)]


@dataclasses.dataclass(frozen=True)
class BoxDomain:
    """The region where the user declares the dynamics to equal those of the data: a box over state dimensions.

    It is a declaration by the user: no test of the data can find a break outside their support.

    Attributes:
      dims: dimensions of the state.
      low: lower ends, one per dimension.
      high: upper ends.
    """

    dims: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        lengths = {len(self.dims), len(self.low), len(self.high)}
        if len(lengths) != 1 or any(not low < high for low, high in zip(self.low, self.high, strict=True)):
            raise DynamicsError(
                f"dims {self.dims}, low {self.low}, high {self.high}: expected one low below one high for each"
            )

    def excess(self, state: Array) -> Array:
        """Returns how far a state `[S]` is outside, as a fraction of the box's size, the largest; 0 inside."""
        check_dims("dims", self.dims, state.shape[-1])
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        values = state[jnp.array(self.dims)]
        return largest(jnp.maximum(jnp.maximum(low - values, values - high), 0.0) / (high - low))

    def contains(self, state: Array) -> Array:
        """Returns whether a state `[S]` is inside."""
        return self.excess(state) == 0
