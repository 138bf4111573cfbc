"""Offline RL: data sets, relabelling with symmetries, learners and evaluation."""

from edgesafe_jax.offline_rl.awr import binary_weights, exponential_weights, make_awr
from edgesafe_jax.offline_rl.bc import make_bc
from edgesafe_jax.offline_rl.datasets import DatasetError, OfflineDataset, Provenance, concatenate, make_dataset
from edgesafe_jax.offline_rl.evaluation import Episodes, interquartile_mean, make_evaluator, seed_interval
from edgesafe_jax.offline_rl.iql import expectile_loss, make_iql
from edgesafe_jax.offline_rl.learners import LEARNERS, make_learner
from edgesafe_jax.offline_rl.learning import Agent, Learner, Trainer, check_agent, make_trainer
from edgesafe_jax.offline_rl.relabelling import (
    Batch,
    BatchSampler,
    LearningError,
    RewardFn,
    RewardPolicy,
    Row,
    SamplerData,
    Sampling,
    TerminalFn,
    make_sampler,
    make_sampler_data,
    reward_checked,
    reward_invariant,
    reward_recomputed,
)
from edgesafe_jax.offline_rl.td3_bc import make_td3_bc

__all__ = [
    "LEARNERS",
    "Agent",
    "Batch",
    "BatchSampler",
    "DatasetError",
    "Episodes",
    "Learner",
    "LearningError",
    "OfflineDataset",
    "Provenance",
    "RewardFn",
    "RewardPolicy",
    "Row",
    "SamplerData",
    "Sampling",
    "TerminalFn",
    "Trainer",
    "binary_weights",
    "check_agent",
    "concatenate",
    "expectile_loss",
    "exponential_weights",
    "interquartile_mean",
    "make_awr",
    "make_bc",
    "make_dataset",
    "make_evaluator",
    "make_iql",
    "make_learner",
    "make_sampler",
    "make_sampler_data",
    "make_td3_bc",
    "make_trainer",
    "reward_checked",
    "reward_invariant",
    "reward_recomputed",
    "seed_interval",
]
