"""Kinds of places: a declaration that the law depends on the place only through what is seen of it.

A map or a camera tells ice from sand where no data were taken. Declared is that the law at two places of one kind is
the same; whether it is the same for two kinds is left to the test.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics.groups import Translation
from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions
from edgesafe_jax.errors import check_counts
from edgesafe_jax.typing import Array, PRNGKey

KindsFn = Callable[[Array], Array]
"""From a state `[S]` to the memberships `[C]` of its place in C kinds; what they lack to 1 is unclear."""


class Kinds(struct.PyTreeNode):
    """What is seen of places, with states of the data for each kind.

    Attributes:
      examples: `[C + 1, R, S]` states of the data by kind, drawn with replacement; those that are unclear last.
      present: `[C + 1]` whether the data hold states of the kind; false for the last, of which nothing is declared.
      memberships: of a state; smooth at borders, so that a reach can be learned up to them.
    """

    examples: Array
    present: Array
    memberships: KindsFn = struct.field(pytree_node=False)

    def weights(self, state: Array) -> Array:
        """Returns the memberships of a state `[S]` with what is unclear, `[C + 1]`; they add up to 1."""
        return with_rest(self.memberships(state))

    def draw(self, key: PRNGKey) -> Array:
        """Draws one state of the data of each kind, `[C, S]`."""
        number, rows = self.examples.shape[:2]
        return self.examples[jnp.arange(number), jax.random.randint(key, (number,), 0, rows)]


def with_rest(memberships: Array) -> Array:
    """Appends to memberships `[C]` what is missing to 1."""
    return jnp.append(memberships, 1 - jnp.sum(memberships))


def find_kinds(memberships: KindsFn, group: Translation, data: Transitions, *, max_examples: int = 2048) -> Kinds:
    """Finds states of each kind in some data.

    Args:
      memberships: of a state, see `KindsFn`; it may depend on the dimensions that the group moves alone.
      group: the translations.
      data: the transitions.
      max_examples: R, states of each kind that are kept.

    Returns:
      The kinds.

    Raises:
      DynamicsError: the memberships are no fractions that add up to 1 at most, or depend on a dimension that the group
        does not move.
    """
    check_counts(max_examples=max_examples)
    states = jnp.asarray(data.states)
    shape = jax.eval_shape(memberships, states[0]).shape
    if len(shape) != 1:
        raise DynamicsError(f"memberships of shape {list(shape)}: expected those of one state, one of each kind")
    found = np.asarray(jax.jit(jax.vmap(lambda state: with_rest(memberships(state))))(states))
    bad = np.flatnonzero(found.min(1) < -1e-4)
    if len(bad):
        given = found[bad[0], :-1].tolist()
        raise DynamicsError(f"memberships of state {bad[0]} are {given}: expected fractions that add up to 1 at most")
    others = np.setdiff1d(np.arange(states.shape[1]), group.moved)
    elsewhere = jax.vmap(memberships)(states.at[:, others].set(states[::-1, others]))
    if not np.allclose(elsewhere, found[:, :-1], atol=1e-4):
        raise DynamicsError(
            f"memberships depend on dimensions other than {group.moved}, those that the group moves: expected what is "
            "seen of a place"
        )
    kind, rng = np.argmax(found, axis=1), np.random.default_rng(0)
    rows = [np.flatnonzero(kind == each) for each in range(found.shape[1])]
    chosen = np.stack([rng.choice(each if len(each) else len(states), max_examples) for each in rows])
    present = jnp.array([*(len(each) > 0 for each in rows[:-1]), False])
    return Kinds(states[chosen], present, memberships)
