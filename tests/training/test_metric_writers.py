import json
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.training import MetricWriter, read_metrics


def board_points(directory, tag: str) -> list[tuple[int, float]]:
    """The points that TensorBoard would draw, read with the record format's own fields."""
    from tensorboardX.proto import event_pb2

    points: list[tuple[int, float]] = []
    for file in sorted(directory.iterdir()):
        data = file.read_bytes()
        position = 0
        while position < len(data):
            size = int.from_bytes(data[position : position + 8], "little")
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + size])
            position += 16 + size
            if event.session_log.status == 1:  # A start marker drops the points from its step on.
                points = [point for point in points if point[0] < event.step]
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return points


def test_lines_have_step_time_and_numbers(tmp_path):
    before = time.time()
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": jnp.float32(0.1), "count": np.int64(3), "half": jnp.bfloat16(0.5)})
        writer.write(1, {"loss": float("nan")})
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert before <= first.pop("time") <= time.time()
    assert first == {"step": 0, "loss": float(np.float32(0.1)), "count": 3, "half": 0.5}
    assert second["loss"] is None
    assert not (tmp_path / "tensorboard").exists()


def test_a_line_is_readable_before_the_file_is_closed(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write(0, {"loss": 1.0})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0]
    writer.sync()
    writer.close()


def test_resume_drops_the_steps_that_will_be_written_again(tmp_path):
    with MetricWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"loss": float(step)})
    with MetricWriter(tmp_path) as writer:
        writer.resume(3)
        assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
        writer.write(3, {"loss": 30.0})
        writer.sync()
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert board_points(tmp_path / "tensorboard", "loss") == [(0, 0), (1, 1), (2, 2), (3, 30)]
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.resume(0)
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2, "loss": 3.0}', "\x00\x00\x00", "{}\n", "\x00\n"])
def test_a_torn_last_line_is_removed(tmp_path, torn):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(0, {"loss": 1.0})
        writer.write(1, {"loss": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    assert len(read_metrics(tmp_path)) == 2
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"loss": 4.0})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [1.0, 2.0, 4.0]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nbroken\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 .*'broken'"):
        read_metrics(tmp_path)
    with pytest.raises(ValueError, match="line 2"):
        MetricWriter(tmp_path, tensorboard=False).resume(1)


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


def test_bad_scalars_are_named_and_nothing_is_written(tmp_path):
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        for scalars in ({"step": 1}, {"time": 1.0}, {"x": np.ones(2)}, {"x": "1"}, {"x": None}):
            with pytest.raises(ValueError, match=f"metric '{next(iter(scalars))}': expected one number"):
                writer.write(0, scalars)
    assert read_metrics(tmp_path) == []


def test_weights_and_biases_gets_the_same_numbers_under_one_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def __getattr__(self, name):
            return lambda *args, **options: calls.append((name, *args))

    client = types.ModuleType("wandb")
    client.init = lambda **options: calls.append(("init", options)) or Run()  # type: ignore
    monkeypatch.setitem(sys.modules, "wandb", client)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    for step in (0, 1):
        with MetricWriter(tmp_path, tensorboard=False, wandb="safe") as writer:
            writer.write(step, {"loss": jnp.float32(0.5)})
    assert [name for name, *_ in calls] == ["init", "define_metric", "log", "finish"] * 2
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second
    assert (first["project"], first["resume"], first["config"]) == ("safe", "allow", {"seed": 3})
    assert [args[0] for name, *args in calls if name == "log"] == [{"step": n, "loss": 0.5} for n in (0, 1)]


def test_weights_and_biases_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb='safe': the package wandb is not installed; .*edgesafe-jax\[wandb\]"):
        MetricWriter(tmp_path, wandb="safe")
