"""The table of methods, what a policy is trained on: raw data, hindsight goals, symmetries of several origins."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from edgesafe_jax.dynamics import TransformBank, WorldModel, is_wrong
from edgesafe_jax.offline_rl import baselines, tasks
from edgesafe_jax.offline_rl.datasets import OfflineDataset, concatenate
from edgesafe_jax.offline_rl.relabelling import SamplerData, make_sampler_data
from edgesafe_jax.typing import PRNGKey


def draw_key(seed: int, number: int) -> PRNGKey:
    """Returns the key of one kind of draws in a run; the data and the fits have the seed's own key."""
    return jax.random.fold_in(jax.random.key(seed), 1000 + number)


@dataclasses.dataclass(frozen=True)
class MethodInputs:
    """Inputs that the methods of one run share.

    Attributes:
      seed: of the run.
      task: the task.
      dataset: its data.
      model: the learned world.
      learned: returns the bank of learned and tested translations; made at the first call.
      tested: returns the bank of translations to anywhere in the domain that passed the test.
      untested: returns the bank of translations that nothing has tested.
      noise_scale: of state noise, in standard deviations of the states.
      rollouts_per_row: rollouts of the model for each row of the data.
      rollout_length: steps of each.
    """

    seed: int
    task: tasks.Task
    dataset: OfflineDataset
    model: WorldModel
    learned: Callable[[], TransformBank]
    tested: Callable[[], TransformBank]
    untested: Callable[[], TransformBank]
    noise_scale: float = 0.01
    rollouts_per_row: float = 0.2
    rollout_length: int = 5


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to make the training data of a policy.

    Attributes:
      data: from the inputs of a run to what batches are drawn from.
      her: whether goals are relabelled.
      symmetry: whether elements of the bank act.
      noise: whether states get noise.
      goal_fixed: whether the elements act on the state alone, which is false: goals do not move with it.
      simulated: whether the data need the true dynamics, which a world of data alone lacks.
    """

    data: Callable[[MethodInputs], SamplerData]
    her: bool = False
    symmetry: bool = False
    noise: bool = False
    goal_fixed: bool = False
    simulated: bool = False


def _data(inputs: MethodInputs, bank: TransformBank | None = None, **settings: Any) -> SamplerData:
    return make_sampler_data(inputs.dataset, bank=bank, **settings)


def _oracle(inputs: MethodInputs) -> SamplerData:
    """The untested bank without what is wrong in the true world."""
    task, bank = inputs.task, inputs.untested()
    wrong = is_wrong(task.step, task.group, bank.elements, inputs.dataset.transitions(), tolerance=task.tolerance)
    return _data(inputs, bank.replace(accepted=bank.accepted & ~jnp.asarray(wrong)))


def _model(inputs: MethodInputs) -> SamplerData:
    rolled = baselines.model_rollouts(
        draw_key(inputs.seed, 5),
        inputs.model.ensemble,
        inputs.dataset,
        inputs.task.reward,
        num_rollouts=round(inputs.dataset.num_transitions * inputs.rollouts_per_row),
        length=inputs.rollout_length,
        terminal_fn=inputs.task.ends,
    )
    return make_sampler_data(concatenate([inputs.dataset, rolled]))


def _full_coverage(inputs: MethodInputs) -> SamplerData:
    everywhere = tasks.Stratum(inputs.task.domain, inputs.task.domain)
    num = inputs.dataset.num_episodes
    return make_sampler_data(
        tasks.generate(draw_key(inputs.seed, 6), inputs.task, num_episodes=num, stratum=everywhere)
    )


METHODS: dict[str, Method] = {
    "none": Method(_data),
    "s4rl": Method(lambda inputs: _data(inputs, noise_scale=inputs.noise_scale), noise=True),
    "her": Method(_data, her=True),
    "translation": Method(lambda inputs: _data(inputs, inputs.untested()), symmetry=True),
    "her_translation": Method(lambda inputs: _data(inputs, inputs.untested()), her=True, symmetry=True),
    "her_state_only": Method(lambda inputs: _data(inputs, inputs.untested()), her=True, symmetry=True, goal_fixed=True),
    "her_learned": Method(lambda inputs: _data(inputs, inputs.learned()), her=True, symmetry=True),
    "her_tested": Method(lambda inputs: _data(inputs, inputs.tested()), her=True, symmetry=True),
    "her_oracle": Method(_oracle, her=True, symmetry=True, simulated=True),
    "her_model": Method(_model, her=True),
    "full_coverage": Method(_full_coverage, her=True, simulated=True),
}
"""The methods that are compared, by name; another one is an entry of this table."""
