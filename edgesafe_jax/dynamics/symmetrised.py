r"""A model averaged over the elements of a group that passed the test: predictions where the data are, carried back.

For a state far from the data an element g that leads it to them gives a prediction there, and its inverse carries the
prediction back,

.. math:: \bar f(s, a) = \frac1{|V(s)|} \sum_{g \in V(s)} g^{-1} \hat f(g s, g a), \qquad
          V(s) = \{g \text{ verified}: g s \text{ inside the support}\} ,

which is equivariant on the orbit and needs no new training. Where V(s) is empty the prediction is the plain model's.
The spread holds what remains: that of the members and that among the elements.

Elements are tested as a whole, each on all transitions. A composition of verified elements is a symmetry where the path
of its parts stays inside the support; beyond it, using compositions declares that the law goes on as in the data.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from edgesafe_jax.dynamics.ensemble import Ensemble, Prediction
from edgesafe_jax.dynamics.equivalence_report import summarize
from edgesafe_jax.dynamics.equivariance import Verdict, check_group, equivalence_test
from edgesafe_jax.dynamics.groups import Element, GroupAction
from edgesafe_jax.dynamics.support import SupportTable, tabulate_support
from edgesafe_jax.dynamics.transitions import DynamicsError, Transitions
from edgesafe_jax.dynamics.world_model import WorldModel
from edgesafe_jax.errors import check_counts
from edgesafe_jax.typing import Array

_log = logging.getLogger(__name__)


class ElementVerdicts(struct.PyTreeNode):
    """Verdicts on elements as a whole.

    Attributes:
      elements: leaves `[M, ...]`.
      verdicts: `[M]` int8, see `Verdict`.
      support: of the data that they were tested on, in the dimensions that the group moves.
      data_mean: mean of the inputs of the model that they were tested with, by which the data are told.
    """

    elements: Element
    verdicts: Array
    support: SupportTable
    data_mean: Array

    @property
    def num_verified(self) -> int:
        """How many elements are verified."""
        return int(np.sum(np.asarray(self.verdicts) == Verdict.VERIFIED))


def check_elements(group: GroupAction, elements: Element) -> int:
    """Returns the number of elements, leaves `[M, ...]`.

    Raises:
      DynamicsError: there is none, or one lies outside the group; the message says which.
    """
    leaves = jax.tree.leaves(elements)
    numbers = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in leaves}
    if len(numbers) != 1 or 0 in numbers:
        raise DynamicsError(f"elements of shapes {[leaf.shape for leaf in leaves]}: expected one first axis, not empty")
    outside = np.flatnonzero(~np.isfinite(np.asarray(jax.vmap(group.log_prob)(elements))))
    if len(outside):
        bad = jax.tree.map(lambda leaf: np.asarray(leaf)[outside[0]].tolist(), elements)
        raise DynamicsError(f"element {outside[0]}, {bad}, lies outside its group: expected one of {group}")
    return int(numbers.pop())


def verify_elements(
    model: WorldModel,
    group: GroupAction,
    elements: Element,
    data: Transitions,
    *,
    exceptions: float = 0.05,
) -> ElementVerdicts:
    """Tests elements one by one, each on all transitions.

    Args:
      model: the world model.
      group: the group.
      elements: leaves `[M, ...]`.
      data: transitions.
      exceptions: fraction of the tested transitions that a verified element may leave out, see `summarize`.

    Returns:
      The verdict on each. `EXTRAPOLATED` where too few transitions stay inside the support.

    Raises:
      DynamicsError: the group acts on other sizes, or an element lies outside it.
    """
    check_group(group, data)
    number = check_elements(group, elements)
    verdicts = []
    for index in range(number):
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf[index], (len(data.states), *leaf.shape[1:])),  # noqa: B023
            elements,
        )
        result = equivalence_test(model.ensemble, model.calibration, model.support, group, repeated, data)
        verdicts.append(summarize(result, exceptions=exceptions).overall)
    table = tabulate_support(model.support)
    return ElementVerdicts(elements, jnp.asarray(verdicts, jnp.int8), table, model.ensemble.input_mean)


def compositions(group: GroupAction, elements: Element, *, num_factors: int) -> Element:
    """Returns all products of up to `num_factors` of some elements that lie within the group's range, each once.

    Args:
      group: the group.
      elements: leaves `[M, ...]`.
      num_factors: most factors; 1 returns the elements.

    Returns:
      Elements, leaves `[N, ...]`, those with the fewest factors first.
    """
    check_counts(num_factors=num_factors)
    check_elements(group, elements)
    found = elements
    for _ in range(num_factors - 1):
        pairs = jax.vmap(jax.vmap(group.compose, in_axes=(None, 0)), in_axes=(0, None))(elements, found)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), pairs)
        joined = jax.tree.map(lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)]), found, flat)
        inside = np.isfinite(np.asarray(jax.vmap(group.log_prob)(joined)))
        rows = np.concatenate(
            [np.asarray(leaf, np.float64).reshape(len(inside), -1) for leaf in jax.tree.leaves(joined)], axis=1
        )
        _, first = np.unique(np.round(rows, 5), axis=0, return_index=True)
        chosen = np.sort(first[inside[first]])
        found = jax.tree.map(lambda leaf: jnp.asarray(leaf[chosen]), joined)  # noqa: B023
    return found


class SymmetrisedEnsemble(struct.PyTreeNode):
    """An ensemble averaged over verified elements; it predicts and is asked for members as an `Ensemble`.

    Attributes:
      ensemble: the plain one.
      elements: verified ones, the identity first, leaves `[V, ...]`.
      support: where the data are.
      group: the group.
      num_averaged: elements that are averaged at most, the first that lead to the data.
    """

    ensemble: Ensemble
    elements: Element
    support: SupportTable
    group: GroupAction = struct.field(pytree_node=False)
    num_averaged: int = struct.field(pytree_node=False)

    @property
    def num_members(self) -> int:
        """E, how many networks there are."""
        return self.ensemble.num_members

    def member(self, index: Array | int) -> "SymmetrisedEnsemble":
        """Returns one network, averaged over the same elements; the index may be traced."""
        return self.replace(ensemble=self.ensemble.member(index))

    def predict(self, state: Array, action: Array) -> Prediction:
        """Predicts the next state of one state `[S]` and action `[A]`."""
        moved = jax.vmap(self.group.state, in_axes=(0, None))(self.elements, state)
        acted = jax.vmap(self.group.action, in_axes=(0, None))(self.elements, action)
        inputs = jax.vmap(self.ensemble.normalize)(moved, acted)
        known = self.support.contains(inputs)
        first = jnp.argsort(~known, stable=True)[: self.num_averaged]
        # Where no element leads to the data the plain model is asked, which is that of the identity.
        inside = known[first]
        none = ~jnp.any(inside)
        chosen = jnp.where(none, 0, first)
        weights = jnp.where(none, 1.0, inside.astype(state.dtype))
        weights = weights / jnp.sum(weights)

        def back(index: Array) -> tuple[Array, Array, Array]:
            prediction = self.ensemble.predict(moved[index], acted[index])
            inverse = self.group.inverse(jax.tree.map(lambda leaf: leaf[index], self.elements))
            act = functools.partial(self.group.state, inverse)
            squared = jax.jacfwd(act)(prediction.mean) ** 2
            return act(prediction.mean), squared @ prediction.spread**2, squared @ prediction.disagreement**2

        means, noise, disagreement = jax.vmap(back)(chosen)
        mean = weights @ means
        among = weights @ (means - mean[None]) ** 2
        return Prediction(mean, _root(weights @ noise + among), _root(weights @ disagreement + among))

    def rollout(self, state: Array, actions: Array) -> Prediction:
        """Predicts the states after each of the actions `[T, A]`; leaves `[T, S]`, spreads of each step alone."""

        def step(state: Array, action: Array) -> tuple[Array, Prediction]:
            prediction = self.predict(state, action)
            return prediction.mean, prediction

        return jax.lax.scan(step, state, actions)[1]


def symmetrise(
    ensemble: Ensemble,
    group: GroupAction,
    verdicts: ElementVerdicts,
    *,
    num_factors: int = 1,
    num_averaged: int = 4,
) -> SymmetrisedEnsemble | Ensemble:
    """Averages a model over the elements that were verified on its data.

    Args:
      ensemble: the model that the elements were tested with.
      group: the group.
      verdicts: from `verify_elements`.
      num_factors: most factors of the compositions of verified elements and their inverses that are used too (where
        one leads to, the inverse is a symmetry as well). More than one declares that the law goes on beyond the data as
        the composed elements lead.
      num_averaged: elements that are averaged at most.

    Returns:
      The symmetrised model. Where nothing is verified, the ensemble itself, which a message of the log says.

    Raises:
      DynamicsError: the verdicts belong to other data, the group to other sizes, or an element to no group.
    """
    check_counts(num_factors=num_factors, num_averaged=num_averaged)
    check_elements(group, verdicts.elements)
    if group.sizes.state + group.sizes.action + len(ensemble.relations) != len(ensemble.input_mean):
        raise DynamicsError(
            f"the group acts on {group.sizes}, the model has {len(ensemble.input_mean)} inputs: expected the same world"
        )
    if verdicts.data_mean.shape != ensemble.input_mean.shape or not np.allclose(
        verdicts.data_mean, ensemble.input_mean, rtol=1e-5, atol=1e-6
    ):
        raise DynamicsError(
            "the verdicts were found with a model of other data: expected those of `verify_elements` with this model"
        )
    chosen = np.flatnonzero(np.asarray(verdicts.verdicts) == Verdict.VERIFIED)
    if not len(chosen):
        _log.info("none of %d elements is verified: the symmetrised model is the plain one", len(verdicts.verdicts))
        return ensemble
    verified = jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], verdicts.elements)
    if num_factors > 1:
        backward = jax.vmap(group.inverse)(verified)
        both = jax.tree.map(lambda one, other: jnp.concatenate([one, other.astype(one.dtype)]), verified, backward)
        inside = np.isfinite(np.asarray(jax.vmap(group.log_prob)(both)))
        both = jax.tree.map(lambda leaf: leaf[np.flatnonzero(inside)], both)
        verified = compositions(group, both, num_factors=num_factors)
    elements = jax.tree.map(
        lambda one, many: jnp.concatenate([one[None].astype(many.dtype), many]), group.identity(), verified
    )
    total = jax.tree.leaves(elements)[0].shape[0]
    return SymmetrisedEnsemble(ensemble, elements, verdicts.support, group=group, num_averaged=min(num_averaged, total))


def _root(variance: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
