"""iCEM: the cross-entropy method with coloured noise, memory and a shrinking population."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from edgesafe_jax.errors import POSITIVE, Range
from edgesafe_jax.planning.budgets import Builder, divide_budget
from edgesafe_jax.planning.knots import Knots
from edgesafe_jax.planning.noise import ActionSampler, Convention, clipped_noise
from edgesafe_jax.planning.planner import (
    Outcomes,
    Planner,
    PlanningError,
    Simulator,
    check_numbers,
    checked_count,
    clipped,
    is_finite,
    rank,
)
from edgesafe_jax.planning.search import (
    Candidates,
    Iteration,
    Population,
    SearchSpace,
    Selection,
    make_search,
    make_space,
)
from edgesafe_jax.typing import Array, ArrayLike, PRNGKey, PyTree

Execute: TypeAlias = Literal["best", "mean"]
"""The sequence that is executed: the best of the last iteration, or the mean of its elites."""

Moved: TypeAlias = Literal["repeat_last", "middle_last", "middle"]
"""mu at the next step: moved one step on with its last entry repeated, or set to the middle; or all in the middle."""

Proposal: TypeAlias = Callable[[PRNGKey, PyTree], Array]
"""From a key and the state of the environment to candidates `[N, K, A]`: actions, or knots where those are searched."""

_RANGES = {
    "init_std": POSITIVE,
    "momentum": Range(0, 1, below=True),
    "decay": Range(1),
    "elite_fraction": Range(0, 1),
}


@dataclasses.dataclass(frozen=True)
class IcemSettings:
    """The settings of iCEM; those of the paper by default.

    Attributes:
      num_elites: E at most; fewer where that is more than half of the first population.
      noise_convention: normalisation of the noise, see `colored_noise`.
      init_std: sigma at the start of each step, in units of half the range.
      momentum: alpha, the fraction of mean and std that stays.
      decay: gamma, by which the population shrinks from one iteration to the next; 1 for not.
      elite_fraction: xi, the fraction of the elites that is carried over.
      keep_elites: whether elites are carried over from one iteration to the next.
      shift_elites: whether they are carried over from one step to the next.
      mean_in_last_iteration: whether mu is among the candidates of the last iteration.
      execute: ``"best"`` or ``"mean"``, which with a learned simulator exploits its errors less.
      population: ``"unrolled"`` simulates no more than needed and compiles every size; ``"padded"`` compiles one
        iteration at the largest size and leaves the surplus out of the ranking. The plans are the same.
    """

    num_elites: int = 10
    noise_convention: Convention = "classic"
    init_std: float = 0.5
    momentum: float = 0.1
    decay: float = 1.25
    elite_fraction: float = 0.3
    keep_elites: bool = True
    shift_elites: bool = True
    mean_in_last_iteration: bool = True
    execute: Execute = "best"
    population: Population = "unrolled"


ABLATIONS: dict[str, dict[str, Any]] = {
    "icem_white": {"noise_beta": 0.0},
    "icem_no_shift": {"shift_elites": False},
    "icem_no_keep": {"keep_elites": False},
    "icem_no_decay": {"decay": 1.0},
    "icem_no_mean": {"mean_in_last_iteration": False},
    "icem_execute_mean": {"execute": "mean"},
}
"""Ablations: iCEM without one of its components, as changed settings by name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ElitesState:
    """Memory from one step to the next.

    Attributes:
      mean: centre of the search at the coming step `[K, A]`.
      elites: best sequences of the last step, best first, not yet shifted `[N, K, A]`.
      has_elites: whether there are any: not before the first step of an episode `[]`.
    """

    mean: Array
    elites: Array
    has_elites: Array


def population_sizes(num_samples: int, num_iterations: int, *, decay: float = 1.25, least: int = 1) -> list[int]:
    """Returns how many sequences each iteration draws: N_0 = num_samples, N_i = max(least, int(N_{i-1} / decay)).

    Args:
      num_samples: sequences of the first iteration.
      num_iterations: iterations.
      decay: gamma; 1 keeps the size.
      least: smallest size, twice the elites in iCEM.

    Returns:
      The sizes.

    Example:
      >>> population_sizes(40, 3, decay=1.25, least=20)
      [40, 32, 25]
    """
    sizes = [num_samples]
    for _ in range(num_iterations - 1):
        sizes.append(max(min(least, num_samples), int(sizes[-1] / decay)))
    return sizes


def make_icem(
    simulator: Simulator,
    *,
    low: ArrayLike,
    high: ArrayLike,
    horizon: int = 30,
    num_iterations: int = 3,
    num_samples: int = 40,
    noise_beta: ArrayLike = 2.0,
    settings: IcemSettings = IcemSettings(),
    knots: Knots | None = None,
    proposal: Proposal | None = None,
) -> Planner:
    r"""Makes the iCEM planner.

    At each step of the environment, from mean mu and std sigma = init_std (high - low) / 2, iteration i

    1. draws N_i = max(2 E, int(N_{i-1} / decay)) sequences clip(mu + sigma noise_beta, low, high), of which the last
       iteration replaces the first by mu;
    2. at i = 0 adds the best int(elite_fraction E) elites of the last step, one step later, each with a fresh last
       action;
    3. simulates them; at i > 0 adds the best int(elite_fraction E) elites of iteration i - 1, which are not simulated
       again;
    4. takes the best E = max(2, min(num_elites, N_0 / 2)) as elites and moves
       mu <- (1 - momentum) mean(elites) + momentum mu, and sigma likewise with their population std.

    The first action of the best sequence of the last iteration is executed and mu moves one step on, its last entry
    repeated. Trajectories with a cost that is not finite never count among the elites; without a finite one mu and
    sigma stay.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      low: lower bounds of the actions `[A]`, finite.
      high: upper bounds `[A]`.
      horizon: T, actions of a plan.
      num_iterations: iterations at each step of the environment.
      num_samples: N_0, sequences of the first iteration.
      noise_beta: exponent of the coloured noise, a number or one per action dimension `[A]`.
      settings: everything else of the search; the names above are its fields.
      knots: searches a spline instead of single actions, see `make_knots`.
      proposal: adds candidates to the first iteration, such as the actions of a policy, clipped to the bounds.

    Returns:
      The planner; its state is an `ElitesState`.

    Raises:
      PlanningError: if a number is out of its range, the bounds are reversed or not finite, there are more elites
        than samples, or (at the first call, before anything is compiled) the simulator's outcomes have a wrong shape.

    Example:
      >>> def to_origin(position, actions):  # a point that moves by its actions
      ...     path = position + jnp.cumsum(actions, axis=1)
      ...     return Outcomes(jnp.sum(path**2, axis=(1, 2)), jnp.zeros(actions.shape[0]))
      >>> planner = make_icem(to_origin, low=[-1.0], high=[1.0], horizon=4)
      >>> action, state, plan = jax.jit(planner.plan)(jax.random.key(0), planner.init(), jnp.full((1, 1, 1), 0.5))
      >>> bool(abs(action[0] + 0.5) < 0.2)
      True

    Reference: Pinneri et al., Sample-efficient cross-entropy method for real-time planning, arXiv 2008.06389,
      algorithm 1; the details are those of the authors' code.
    """
    space = make_space(low, high, horizon, knots)
    sampler = clipped_noise(noise_beta, convention=settings.noise_convention)
    return make_elite_search(
        simulator,
        space,
        sampler,
        settings,
        num_iterations=num_iterations,
        num_samples=num_samples,
        proposal=proposal,
    )


def make_elite_search(
    simulator: Simulator,
    space: SearchSpace,
    sampler: ActionSampler,
    settings: IcemSettings,
    *,
    num_iterations: int,
    num_samples: int,
    moved: Moved = "repeat_last",
    smooth_variance: bool = False,
    proposal: Proposal | None = None,
) -> Planner:
    """Makes a planner of the CEM family; `make_icem` and `edgesafe_jax.planning.cem` choose its parts.

    Args:
      simulator: from the state of the environment and sequences `[N, T, A]` to `Outcomes` `[N]`.
      space: what is searched.
      sampler: draws the candidates.
      settings: of the search; the noise convention is that of the sampler.
      num_iterations: iterations at each step of the environment.
      num_samples: N_0, sequences of the first iteration.
      moved: mu at the next step.
      smooth_variance: whether momentum averages variances instead of standard deviations.
      proposal: more candidates of the first iteration.

    Returns:
      The planner.

    Raises:
      PlanningError: as `make_icem`.
    """
    num_iterations = checked_count(num_iterations, "num_iterations")
    num_samples = checked_count(num_samples, "num_samples", least=2)
    num_elites = checked_count(settings.num_elites, "num_elites", least=2)
    if num_elites > num_samples:
        raise PlanningError(f"num_elites={num_elites}: expected at most num_samples={num_samples}")
    check_numbers(_RANGES, vars(settings))
    for name, choices in (("execute", Execute), ("population", Population)):
        value = getattr(settings, name)
        if value not in get_args(choices):
            raise PlanningError(f"{name}={value!r}: expected one of {', '.join(get_args(choices))}")
    num_elites = max(2, min(num_elites, num_samples // 2))
    sizes = population_sizes(num_samples, num_iterations, decay=settings.decay, least=2 * num_elites)
    method = _EliteSearch(
        space=space,
        sampler=sampler,
        settings=settings,
        num_elites=num_elites,
        num_carried=int(settings.elite_fraction * num_elites + 1e-9),  # 0.29 times 100 is 29, not 28.99...
        moved=moved,
        smooth_variance=smooth_variance,
        proposal=proposal,
    )
    return make_search(simulator, method, space, sampler, sizes=sizes, population=settings.population)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Search:
    """The distribution and the elites between two iterations, and the candidates that only the first one has."""

    mean: Array
    std: Array
    elites: Array
    outcomes: Outcomes
    extra: Candidates


@dataclasses.dataclass(frozen=True)
class _EliteSearch:
    """The method of CEM and iCEM: the distribution moves to its elites."""

    space: SearchSpace
    sampler: ActionSampler
    settings: IcemSettings
    num_elites: int
    num_carried: int
    moved: Moved
    smooth_variance: bool
    proposal: Proposal | None

    @property
    def num_extra(self) -> int:
        return self.num_carried if self.settings.shift_elites else 0

    @property
    def num_keys(self) -> int:
        return self.num_carried + 1

    def init(self) -> ElitesState:
        elites = jnp.broadcast_to(self.space.middle(), (self.num_carried, *self.space.shape))
        return ElitesState(self.space.middle(), elites, jnp.zeros((), bool))

    def begin(self, keys: PRNGKey, memory: ElitesState, env_state: PyTree) -> _Search:
        return _Search(
            mean=memory.mean,
            std=self.space.std(self.settings.init_std),
            elites=jnp.broadcast_to(self.space.middle(), (self.num_elites, *self.space.shape)),
            outcomes=Outcomes(
                jnp.full((self.num_elites,), jnp.inf, jnp.float32), jnp.zeros((self.num_elites,), jnp.float32)
            ),
            extra=self._extra(keys, memory, env_state),
        )

    def _extra(self, keys: PRNGKey, memory: ElitesState, env_state: PyTree) -> Candidates:
        """The elites of the last step, one step later, and what is proposed."""
        space = self.space
        found, present = [jnp.zeros((0, *space.shape), jnp.float32)], [jnp.zeros((0,), bool)]
        if self.num_extra:
            noise = jax.vmap(lambda each: self.sampler.draw(each, space.shape))(keys[:-1])
            fresh = self._placed(noise, memory.mean, space.std(self.settings.init_std))
            found.append(space.shifted(memory.elites).at[:, -1].set(fresh[:, -1]))
            present.append(jnp.broadcast_to(memory.has_elites, (self.num_carried,)))
        if self.proposal is not None:
            proposed = self.proposal(keys[-1], env_state)
            if proposed.ndim != 3 or proposed.shape[1:] != space.shape:
                expected = ", ".join(map(str, space.shape))
                raise PlanningError(f"the proposal has shape {list(proposed.shape)}: expected [N, {expected}]")
            found.append(clipped(proposed.astype(jnp.float32), space.low, space.high))
            present.append(jnp.ones((proposed.shape[0],), bool))
        return Candidates(jnp.concatenate(found), jnp.concatenate(present))

    def _placed(self, noise: Array, mean: Array, std: Array) -> Array:
        return self.sampler.place(noise, mean, std, self.space.low, self.space.high)

    def sample(self, search: _Search, noise: Array, iteration: Iteration) -> Candidates:
        candidates = self._placed(noise, search.mean, search.std)
        if self.settings.mean_in_last_iteration and iteration.is_last is not False:
            candidates = candidates.at[0].set(jnp.where(iteration.is_last, search.mean, candidates[0]))
        present = jnp.ones((len(candidates),), bool)
        if not isinstance(iteration.size, int):
            present = jnp.arange(len(candidates)) < iteration.size
        is_first = iteration.number == 0
        if is_first is False:
            return Candidates(candidates, present)
        sequences = jnp.concatenate([candidates, search.extra.sequences])
        return Candidates(sequences, jnp.concatenate([present, search.extra.present & is_first]))

    def update(self, search: _Search, candidates: Candidates, outcomes: Outcomes, iteration: Iteration) -> _Search:
        pool, pooled = candidates.sequences, outcomes
        keeps = (iteration.number > 0) if self.settings.keep_elites and self.num_carried else False
        if keeps is not False:
            kept = jax.tree.map(lambda leaf: leaf[: self.num_carried], search.outcomes)
            kept = Outcomes(jnp.where(keeps, kept.cost, jnp.inf), kept.violation)
            pool = jnp.concatenate([pool, search.elites[: self.num_carried]])
            pooled = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), pooled, kept)
        best = rank(pooled)[: self.num_elites]
        elites, elite_outcomes = pool[best], jax.tree.map(lambda leaf: leaf[best], pooled)
        weight = is_finite(elite_outcomes).astype(jnp.float32)[:, None, None]
        number = jnp.maximum(jnp.sum(weight), 1.0)
        elite_mean = jnp.sum(weight * elites, axis=0) / number
        elite_std = jnp.sqrt(jnp.sum(weight * (elites - elite_mean[None]) ** 2, axis=0) / number)
        stay = jnp.where(jnp.any(weight > 0), self.settings.momentum, 1.0)
        if self.smooth_variance:
            std = jnp.sqrt((1 - stay) * elite_std**2 + stay * search.std**2)
        else:
            std = (1 - stay) * elite_std + stay * search.std
        return dataclasses.replace(
            search,
            mean=(1 - stay) * elite_mean + stay * search.mean,
            std=std,
            elites=elites,
            outcomes=elite_outcomes,
        )

    def select(self, search: _Search) -> Selection:
        space = self.space
        found = is_finite(search.outcomes)[0]
        best = jnp.where(found, search.elites[0], search.mean)
        mean = space.middle() if self.moved == "middle" else space.shifted(search.mean)
        if self.moved == "middle_last":
            mean = mean.at[-1].set(space.middle()[-1])
        memory = ElitesState(
            mean=mean,
            elites=search.elites[: self.num_carried],
            has_elites=found,
        )
        return Selection(
            sequence=best if self.settings.execute == "best" else search.mean,
            memory=memory,
            best_cost=jnp.where(found, search.outcomes.cost[0], jnp.inf),
            spread=space.spread(jnp.std(search.elites, axis=0)),
        )


def icem_at_budget(
    simulator: Simulator, *, budget: int, settings: IcemSettings = IcemSettings(), **common: Any
) -> Planner:
    """Makes iCEM at a budget, see `edgesafe_jax.planning.budgets.Builder`.

    Where its population shrinks, iterations and samples are those of the paper's table; else the budget is divided
    over the same number of iterations.
    """
    sizes = divide_budget(budget, shrinking=settings.decay != 1.0)
    return make_icem(simulator, **common, **sizes, settings=settings)


def make_ablation(changes: Mapping[str, Any]) -> Builder:
    """Makes the builder of iCEM with some of its settings, or its noise_beta, changed."""
    changed = {name: value for name, value in changes.items() if name != "noise_beta"}

    def build(
        simulator: Simulator,
        *,
        noise_beta: ArrayLike,
        budget: int,
        settings: IcemSettings = IcemSettings(),
        **common: Any,
    ) -> Planner:
        settings = dataclasses.replace(settings, **changed)
        noise_beta = changes.get("noise_beta", noise_beta)
        return icem_at_budget(simulator, noise_beta=noise_beta, budget=budget, settings=settings, **common)

    return build
