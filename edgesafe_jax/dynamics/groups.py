# ruff: noqa: D102  (the methods of the groups are documented once, in the protocol)
"""Transformations that may be symmetries: how a group acts on states, actions and goals.

Every method is written for one state, one action, one goal and one element; `jax.vmap` makes many. An element is an
array or, for a product, a tuple of them. Whether an action is a symmetry of a world is another question: see
`edgesafe_jax.dynamics.equivariance`.
"""

import dataclasses
import itertools
import math
from typing import Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.dynamics.transitions import DynamicsError
from edgesafe_jax.errors import check_counts
from edgesafe_jax.typing import Array, PRNGKey, PyTree

Element = PyTree
"""One group element: an array, or a tuple of elements."""
Indices = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The lengths of the vectors on which a group acts.

    Attributes:
      state: S.
      action: A.
      goal: G; 0 without goals.
    """

    state: int
    action: int
    goal: int = 0

    def check(self, what: str, kind: str, indices: Indices) -> None:
        """Raises DynamicsError if `indices` (of the argument `what`) names a dimension that the vector lacks."""
        size = getattr(self, kind)
        for index in indices:
            if not 0 <= index < size:
                raise DynamicsError(
                    f"{what} names dimension {index} of the {kind}, which has {size}: expected 0 to {size - 1}"
                )


@runtime_checkable
class GroupAction(Protocol):
    r"""A group with its action on states, actions and goals.

    It obeys :math:`e \cdot s = s`, :math:`(h g) \cdot s = h \cdot (g \cdot s)` and
    :math:`g^{-1} \cdot (g \cdot s) = s`. A world `f` is equivariant under it where
    :math:`f(g \cdot s, g \cdot a) = g \cdot f(s, a)`.
    """

    @property
    def sizes(self) -> Sizes:
        """The lengths of state, action and goal."""
        ...

    @property
    def moved(self) -> Indices:
        """The dimensions of the state that an element can change."""
        ...

    def state(self, element: Element, state: Array) -> Array:
        """Returns g . s, `[S]`."""
        ...

    def action(self, element: Element, action: Array) -> Array:
        """Returns g . a, `[A]`."""
        ...

    def goal(self, element: Element, goal: Array) -> Array:
        """Returns g . goal, `[G]`."""
        ...

    def identity(self) -> Element:
        """Returns e."""
        ...

    def compose(self, second: Element, first: Element) -> Element:
        """Returns the element that acts as `first`, then `second`."""
        ...

    def inverse(self, element: Element) -> Element:
        """Returns g^-1."""
        ...

    def sample(self, key: PRNGKey) -> Element:
        """Draws an element of the base distribution, which is uniform."""
        ...

    def log_prob(self, element: Element) -> Array:
        """Returns the log-density (log-probability of a finite group) under the base distribution; -inf outside it."""
        ...

    def entropy(self) -> float:
        """Returns the entropy of the base distribution in nats (differential for a continuous group)."""
        ...


@dataclasses.dataclass(frozen=True)
class Translation:
    r"""Masked translation: :math:`s + M d`, and the goal with it.

    Axis k of the element `d` is added to the state dimensions `state_axes[k]` and the goal dimensions `goal_axes[k]`,
    so that several bodies move together. The base distribution is uniform between `low` and `high`.

    Attributes:
      sizes: of state, action and goal.
      state_axes: for each of the K axes the state dimensions that it moves.
      goal_axes: for each axis the goal dimensions that it moves; may be empty tuples.
      low: `[K]` lower ends of the base distribution, in the units of the state.
      high: `[K]` upper ends.

    Example:
      >>> group = Translation(Sizes(4, 2), state_axes=((0,), (1,)), goal_axes=((), ()), low=(-1, -1), high=(1, 1))
      >>> group.state(jnp.array([0.5, -0.5]), jnp.zeros(4)).tolist()
      [0.5, -0.5, 0.0, 0.0]
    """

    sizes: Sizes
    state_axes: tuple[Indices, ...]
    goal_axes: tuple[Indices, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        lengths = {len(self.state_axes), len(self.goal_axes), len(self.low), len(self.high)}
        if len(lengths) != 1 or not self.state_axes:
            raise DynamicsError(
                f"state_axes {self.state_axes}, goal_axes {self.goal_axes}, low {self.low}, high {self.high}: expected "
                "one entry per axis in each, and at least one axis"
            )
        for axis, indices in enumerate(self.state_axes):
            self.sizes.check(f"state_axes[{axis}]", "state", indices)
        for axis, indices in enumerate(self.goal_axes):
            self.sizes.check(f"goal_axes[{axis}]", "goal", indices)
        for axis, (low, high) in enumerate(zip(self.low, self.high, strict=True)):
            if not low < high:
                raise DynamicsError(f"low[{axis}]={low}, high[{axis}]={high}: expected low below high")

    @property
    def moved(self) -> Indices:
        return _flat(self.state_axes)

    def state(self, element: Array, state: Array) -> Array:
        return state + element @ _mask(self.state_axes, self.sizes.state)

    def action(self, element: Array, action: Array) -> Array:
        del element
        return action

    def goal(self, element: Array, goal: Array) -> Array:
        return goal + element @ _mask(self.goal_axes, self.sizes.goal)

    def identity(self) -> Array:
        return jnp.zeros(len(self.low))

    def compose(self, second: Array, first: Array) -> Array:
        return first + second

    def inverse(self, element: Array) -> Array:
        return -element

    def sample(self, key: PRNGKey) -> Array:
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        return jax.random.uniform(key, low.shape, minval=low, maxval=high)

    def log_prob(self, element: Array) -> Array:
        inside = (element >= jnp.asarray(self.low, jnp.float32)) & (element <= jnp.asarray(self.high, jnp.float32))
        return jnp.where(jnp.all(inside), -self.entropy(), -jnp.inf)

    def entropy(self) -> float:
        return sum(math.log(high - low) for low, high in zip(self.low, self.high, strict=True))

    def without_goal(self) -> Self:
        """Returns the same action on states and actions, with goals left where they are."""
        return dataclasses.replace(self, goal_axes=((),) * len(self.goal_axes))


@dataclasses.dataclass(frozen=True)
class BaseRotation(Translation):
    r"""Rotation of a machine about its base, which its state has as an angle and its goal as a place in the plane.

    The element of one axis is the angle in radians: it is added to the state dimensions of `state_axes`, and each pair
    :math:`(u, v)` of the goal becomes :math:`R(d) (u, v)`. Because it acts on states as a translation does, all that
    learns or composes translations takes it.

    Attributes:
      goal_pairs: pairs of goal dimensions that turn.

    Example:
      >>> group = BaseRotation(Sizes(2, 1, 2), ((0,),), ((),), low=(-3,), high=(3,), goal_pairs=((0, 1),))
      >>> group.goal(jnp.array([jnp.pi / 2]), jnp.array([1.0, 0.0])).round(3).tolist()
      [-0.0, 1.0]
    """

    goal_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if len(self.low) != 1:
            raise DynamicsError(f"{len(self.low)} axes: expected one, the angle by which the base turns")
        _check_disjoint(self.sizes, "goal_pairs", "goal", self.goal_pairs, length=2)

    def goal(self, element: Array, goal: Array) -> Array:
        return _rotate(element[0], super().goal(element, goal), self.goal_pairs)

    def without_goal(self) -> Self:
        return dataclasses.replace(super().without_goal(), goal_pairs=())


@dataclasses.dataclass(frozen=True)
class PlanarRotation:
    r"""Rotation about the origin of a plane: each named pair :math:`(u, v)` becomes :math:`R(\theta) (u, v)`.

    The base distribution is uniform over the circle; an element is an angle in radians, of shape `[]`.

    Attributes:
      sizes: of state, action and goal.
      state_pairs: pairs of state dimensions that turn: positions, velocities.
      action_pairs: pairs of action dimensions.
      goal_pairs: pairs of goal dimensions.
    """

    sizes: Sizes
    state_pairs: tuple[tuple[int, int], ...]
    action_pairs: tuple[tuple[int, int], ...] = ()
    goal_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self):
        for kind in ("state", "action", "goal"):
            _check_disjoint(self.sizes, f"{kind}_pairs", kind, getattr(self, f"{kind}_pairs"), length=2)

    @property
    def moved(self) -> Indices:
        return _flat(self.state_pairs)

    def state(self, element: Array, state: Array) -> Array:
        return _rotate(element, state, self.state_pairs)

    def action(self, element: Array, action: Array) -> Array:
        return _rotate(element, action, self.action_pairs)

    def goal(self, element: Array, goal: Array) -> Array:
        return _rotate(element, goal, self.goal_pairs)

    def identity(self) -> Array:
        return jnp.zeros(())

    def compose(self, second: Array, first: Array) -> Array:
        return _wrap_angle(first + second)

    def inverse(self, element: Array) -> Array:
        return -element

    def sample(self, key: PRNGKey) -> Array:
        return jax.random.uniform(key, minval=-jnp.pi, maxval=jnp.pi)

    def log_prob(self, element: Array) -> Array:
        return jnp.full_like(element, -self.entropy())

    def entropy(self) -> float:
        return math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class Reflection:
    """Change of sign of the named dimensions: a group of two, whose element is 0 (nothing) or 1, int32 of shape `[]`.

    Attributes:
      sizes: of state, action and goal.
      state_dims: the state dimensions that change sign: a position, its velocity.
      action_dims: the action dimensions.
      goal_dims: the goal dimensions.
    """

    sizes: Sizes
    state_dims: Indices
    action_dims: Indices = ()
    goal_dims: Indices = ()

    def __post_init__(self):
        for kind in ("state", "action", "goal"):
            self.sizes.check(f"{kind}_dims", kind, getattr(self, f"{kind}_dims"))

    @property
    def moved(self) -> Indices:
        return tuple(sorted(self.state_dims))

    def state(self, element: Array, state: Array) -> Array:
        return _reflect(element, state, self.state_dims)

    def action(self, element: Array, action: Array) -> Array:
        return _reflect(element, action, self.action_dims)

    def goal(self, element: Array, goal: Array) -> Array:
        return _reflect(element, goal, self.goal_dims)

    def identity(self) -> Array:
        return jnp.zeros((), jnp.int32)

    def compose(self, second: Array, first: Array) -> Array:
        return first ^ second

    def inverse(self, element: Array) -> Array:
        return element

    def sample(self, key: PRNGKey) -> Array:
        return jax.random.bernoulli(key).astype(jnp.int32)

    def log_prob(self, element: Array) -> Array:
        return jnp.where((element == 0) | (element == 1), -self.entropy(), -jnp.inf)

    def entropy(self) -> float:
        return math.log(2)


@dataclasses.dataclass(frozen=True)
class Permutation:
    """Exchange of identical objects, each a block of state (and goal) dimensions.

    An element is a permutation `p` of the n objects, int32 `[n]`: object i moves to place `p[i]`.

    Attributes:
      sizes: of state, action and goal.
      state_blocks: for each object its state dimensions, in the same order.
      action_blocks: for each object its action dimensions; empty where actions name no object.
      goal_blocks: for each object its goal dimensions; empty where goals name no object.
    """

    sizes: Sizes
    state_blocks: tuple[Indices, ...]
    action_blocks: tuple[Indices, ...] = ()
    goal_blocks: tuple[Indices, ...] = ()

    def __post_init__(self):
        for kind in ("state", "action", "goal"):
            blocks = getattr(self, f"{kind}_blocks")
            if (blocks and len(blocks) != len(self.state_blocks)) or len(self.state_blocks) < 2:
                raise DynamicsError(
                    f"{kind}_blocks has {len(blocks)} objects, state_blocks {len(self.state_blocks)}: expected the "
                    "same number, at least 2"
                )
            if blocks:
                _check_disjoint(self.sizes, f"{kind}_blocks", kind, blocks, length=len(blocks[0]))

    @property
    def moved(self) -> Indices:
        return _flat(self.state_blocks)

    def state(self, element: Array, state: Array) -> Array:
        return _permute(element, state, self.state_blocks)

    def action(self, element: Array, action: Array) -> Array:
        return _permute(element, action, self.action_blocks)

    def goal(self, element: Array, goal: Array) -> Array:
        return _permute(element, goal, self.goal_blocks)

    def identity(self) -> Array:
        return jnp.arange(len(self.state_blocks), dtype=jnp.int32)

    def compose(self, second: Array, first: Array) -> Array:
        return second[first]

    def inverse(self, element: Array) -> Array:
        return jnp.argsort(element).astype(jnp.int32)

    def sample(self, key: PRNGKey) -> Array:
        return jax.random.permutation(key, self.identity())

    def log_prob(self, element: Array) -> Array:
        return jnp.where(jnp.all(jnp.sort(element) == self.identity()), -self.entropy(), -jnp.inf)

    def entropy(self) -> float:
        return math.lgamma(len(self.state_blocks) + 1)


@dataclasses.dataclass(frozen=True)
class Product:
    """Direct product of groups whose actions commute; an element is a tuple with one element of each factor.

    The base distributions of the factors are independent.

    Attributes:
      factors: the groups, over the same sizes.

    Raises:
      DynamicsError: if there is no factor, the sizes differ, or two actions do not commute (a translation and a
        rotation of the same dimensions do not: their product is no direct one).
    """

    factors: tuple[GroupAction, ...]

    def __post_init__(self):
        if not self.factors or any(factor.sizes != self.factors[0].sizes for factor in self.factors):
            raise DynamicsError(
                f"factors over sizes {[factor.sizes for factor in self.factors]}: expected at least one, all the same"
            )
        for (i, first), (j, second) in itertools.combinations(enumerate(self.factors), 2):
            if not _commute(first, second):
                raise DynamicsError(
                    f"factors {i} ({type(first).__name__}) and {j} ({type(second).__name__}) do not commute, so they "
                    "have no direct product: test them one at a time"
                )

    @property
    def sizes(self) -> Sizes:
        return self.factors[0].sizes

    @property
    def moved(self) -> Indices:
        return tuple(sorted({index for factor in self.factors for index in factor.moved}))

    def state(self, element: tuple[Element, ...], state: Array) -> Array:
        for factor, part in zip(self.factors, element, strict=True):
            state = factor.state(part, state)
        return state

    def action(self, element: tuple[Element, ...], action: Array) -> Array:
        for factor, part in zip(self.factors, element, strict=True):
            action = factor.action(part, action)
        return action

    def goal(self, element: tuple[Element, ...], goal: Array) -> Array:
        for factor, part in zip(self.factors, element, strict=True):
            goal = factor.goal(part, goal)
        return goal

    def identity(self) -> tuple[Element, ...]:
        return tuple(factor.identity() for factor in self.factors)

    def compose(self, second: tuple[Element, ...], first: tuple[Element, ...]) -> tuple[Element, ...]:
        return tuple(f.compose(b, a) for f, b, a in zip(self.factors, second, first, strict=True))

    def inverse(self, element: tuple[Element, ...]) -> tuple[Element, ...]:
        return tuple(factor.inverse(part) for factor, part in zip(self.factors, element, strict=True))

    def sample(self, key: PRNGKey) -> tuple[Element, ...]:
        keys = jax.random.split(key, len(self.factors))
        return tuple(factor.sample(keys[i]) for i, factor in enumerate(self.factors))

    def log_prob(self, element: tuple[Element, ...]) -> Array:
        logs = [factor.log_prob(part) for factor, part in zip(self.factors, element, strict=True)]
        return jnp.sum(jnp.stack(logs))

    def entropy(self) -> float:
        return sum(factor.entropy() for factor in self.factors)


def sample_elements(key: PRNGKey, group: GroupAction, num: int) -> Element:
    """Draws `num` elements of the base distribution; every leaf gets a leading axis `[num]`."""
    check_counts(num=num)
    return jax.vmap(group.sample)(jax.random.split(key, num))


def act_on_segment(
    group: GroupAction, element: Element, *, states: Array, actions: Array, goal: Array
) -> tuple[Array, Array, Array]:
    """Acts with one element on a whole segment: all its states, all its actions and its goal.

    Args:
      group: the group.
      element: one element.
      states: `[T+1, S]`.
      actions: `[T, A]`.
      goal: `[G]`.

    Returns:
      The transformed states, actions and goal, of the same shapes.
    """
    act = (jax.vmap(group.state, in_axes=(None, 0)), jax.vmap(group.action, in_axes=(None, 0)))
    return act[0](element, states), act[1](element, actions), group.goal(element, goal)


def _flat(groups: tuple[Indices, ...]) -> Indices:
    return tuple(sorted({index for indices in groups for index in indices}))


def _mask(axes: tuple[Indices, ...], size: int) -> Array:
    """Returns M transposed, `[K, size]`."""
    mask = np.zeros((len(axes), size), np.float32)
    for axis, indices in enumerate(axes):
        mask[axis, list(indices)] = 1.0
    return jnp.asarray(mask)


def _check_disjoint(sizes: Sizes, what: str, kind: str, blocks: tuple[Indices, ...], *, length: int) -> None:
    for number, block in enumerate(blocks):
        sizes.check(f"{what}[{number}]", kind, block)
        if len(block) != length:
            raise DynamicsError(f"{what}[{number}]={block}: expected {length} dimensions")
    every = [index for block in blocks for index in block]
    if len(set(every)) != len(every):
        raise DynamicsError(f"{what}={blocks}: expected every dimension at most once")


def _rotate(angle: Array, vector: Array, pairs: tuple[tuple[int, int], ...]) -> Array:
    if not pairs:
        return vector
    first, second = (jnp.array(dims) for dims in zip(*pairs, strict=True))
    cos, sin = jnp.cos(angle).astype(vector.dtype), jnp.sin(angle).astype(vector.dtype)
    u, v = vector[first], vector[second]
    return vector.at[first].set(cos * u - sin * v).at[second].set(sin * u + cos * v)


def _wrap_angle(angle: Array) -> Array:
    return jnp.arctan2(jnp.sin(angle), jnp.cos(angle))


def _reflect(element: Array, vector: Array, dims: Indices) -> Array:
    if not dims:
        return vector
    return vector.at[jnp.array(dims)].multiply((1 - 2 * element).astype(vector.dtype))


def _permute(permutation: Array, vector: Array, blocks: tuple[Indices, ...]) -> Array:
    if not blocks:
        return vector
    places = jnp.array(blocks)
    return vector.at[places[permutation]].set(vector[places])


def _commute(first: GroupAction, second: GroupAction) -> bool:
    """Whether two actions commute at random points."""
    sizes = first.sizes
    for seed in range(16):  # of a group of two, all draws are the identity once in 65,536 times
        key = jax.random.key(seed)
        g, h = first.sample(jax.random.fold_in(key, 1)), second.sample(jax.random.fold_in(key, 2))
        for kind in ("state", "action", "goal"):
            x = jax.random.normal(jax.random.fold_in(key, 3), (getattr(sizes, kind),))
            f, s = getattr(first, kind), getattr(second, kind)
            if not np.allclose(s(h, f(g, x)), f(g, s(h, x)), atol=1e-5):
                return False
    return True
