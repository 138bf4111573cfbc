"""Training: a run's work directory, metrics, checkpoints and the training loop."""

from edgesafe_jax.assets.digests import is_whole, write_checked
from edgesafe_jax.training.checkpoints import CheckpointError, Checkpoints
from edgesafe_jax.training.data_order import make_data_order
from edgesafe_jax.training.loop import (
    Best,
    EvalSchedule,
    Trained,
    TrainingError,
    TrainingStopped,
    TrainState,
    apply_gradients,
    init_state,
    train,
)
from edgesafe_jax.training.metric_writers import MetricWriter, read_metrics
from edgesafe_jax.training.workdir import (
    WorkdirError,
    check_folder,
    check_output,
    check_whole,
    close_workdir,
    open_workdir,
    write_json,
    write_summary,
)

__all__ = [
    "Best",
    "CheckpointError",
    "Checkpoints",
    "EvalSchedule",
    "MetricWriter",
    "TrainState",
    "Trained",
    "TrainingError",
    "TrainingStopped",
    "WorkdirError",
    "apply_gradients",
    "check_folder",
    "check_output",
    "check_whole",
    "close_workdir",
    "init_state",
    "is_whole",
    "make_data_order",
    "open_workdir",
    "read_metrics",
    "train",
    "write_checked",
    "write_json",
    "write_summary",
]
