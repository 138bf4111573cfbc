import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edgesafe_jax.errors import StorageError
from edgesafe_jax.parallel import make_data_mesh, replicate, shard_batch
from edgesafe_jax.training import (
    Checkpoints,
    EvalSchedule,
    MetricWriter,
    Trained,
    TrainingError,
    TrainingStopped,
    TrainState,
    WorkdirError,
    apply_gradients,
    init_state,
    make_data_order,
    read_metrics,
    train,
)
from tests.training import linear_run


def bits(trained: Trained) -> list[bytes]:
    """All numbers of a result as bytes."""
    raw = []
    for leaf in jax.tree.leaves(trained):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        raw.append(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return raw


def lines(workdir: Path) -> list[dict]:
    """The metrics without the wall time."""
    return [{k: v for k, v in line.items() if k != "time"} for line in read_metrics(workdir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Trained, list[dict]]:
    """A run of 20 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    return linear_run.run(workdir), lines(workdir)


class Kill(BaseException):
    pass


def test_learns_and_logs_every_step_once(whole):
    trained, logged = whole
    assert [line["step"] for line in logged] == list(range(20))
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert [line["step"] for line in logged if "eval/score" in line] == [4, 9, 14, 19]
    assert int(trained.state.step) == 20


def test_equals_a_plain_loop(whole):
    state = linear_run.start_state()
    losses = []
    for step in range(20):
        state, metrics = linear_run.step_fn(state, linear_run.make_batch(step))
        losses.append(float(metrics["loss"]))
    np.testing.assert_array_equal(state.params["w"], whole[0].state.params["w"])
    assert losses == [line["loss"] for line in whole[1]]


@pytest.mark.parametrize("stop_at", [0, 1, 5, 6, 7, 11, 12, 18, 19])
def test_killed_before_any_step_ends_the_same(tmp_path, whole, stop_at):
    def batches(step):
        if step == stop_at:
            raise Kill
        return linear_run.make_batch(step)

    with pytest.raises(Kill):
        linear_run.run(tmp_path, batches=batches)
    assert bits(linear_run.run(tmp_path)) == bits(whole[0])
    assert lines(tmp_path) == whole[1]


def test_killed_twice_and_while_saving_ends_the_same(tmp_path, whole, monkeypatch):
    real_save = Checkpoints.save

    def killed_save(self, step, state):
        if step == 12:
            raise Kill
        real_save(self, step, state)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "save", killed_save)
            with pytest.raises(Kill):
                linear_run.run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')
    assert bits(linear_run.run(tmp_path)) == bits(whole[0])
    assert lines(tmp_path) == whole[1]


@pytest.mark.parametrize(("change", "gone", "first"), [("deleted", 12, 0), ("thinned", 6, 1), ("cut", 9, 3)])
def test_metrics_that_were_changed_are_noticed(tmp_path, whole, caplog, change, gone, first):
    with pytest.raises(TrainingStopped):
        linear_run.run(tmp_path, batches=interrupted_at(11))
    file = tmp_path / "metrics.jsonl"
    kept = file.read_text().splitlines(keepends=True)
    file.unlink()
    if change != "deleted":
        file.write_text("".join(kept[::2] if change == "thinned" else kept[:3]))
    assert bits(linear_run.run(tmp_path)) == bits(whole[0])
    assert f"metrics.jsonl has no line for {gone} of the 12 steps done (the first is step {first})" in caplog.text


def test_a_finished_run_is_left_as_it_is(tmp_path, whole):
    linear_run.run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def never(step):
        raise AssertionError("a finished run takes no step")

    assert bits(linear_run.run(tmp_path, batches=never)) == bits(whole[0])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def truncate_newest(workdir: Path) -> None:
    """Cuts every file of the newest checkpoint in half, as a disk that failed may have left it."""
    newest = workdir / "checkpoints" / str(Checkpoints(workdir / "checkpoints").steps()[-1])
    for file in newest.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_kills_a_full_disk_and_a_damaged_checkpoint_of_a_process_end_the_same(tmp_path):
    killed, steady = tmp_path / "killed", tmp_path / "steady"
    trained = linear_run.run(steady, num_steps=120)

    def start() -> subprocess.Popen:
        command = [sys.executable, "-m", "tests.training.linear_run", str(killed), "120", "0.05"]
        root = Path(__file__).parents[2]
        return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)

    def wait_for(process: subprocess.Popen, num_lines: int) -> None:
        end = time.monotonic() + 300
        while len(read_metrics(killed)) < num_lines:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    with start() as process:
        wait_for(process, 17)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    seen = len(read_metrics(killed))
    assert 17 <= seen < 120
    truncate_newest(killed)

    with start() as process:
        wait_for(process, seen)
        if hasattr(resource, "prlimit"):  # No file may grow from now on.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
            message = process.communicate()[1]
            assert "StorageError: cannot use" in message
            assert "damaged" in message
        process.kill()
    seen = len(read_metrics(killed))

    with start() as process:
        wait_for(process, seen + 8)
        process.terminate()
        message = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in message
    assert "the same command continues" in message
    steps = Checkpoints(killed / "checkpoints").steps()
    assert steps[-1] == len(read_metrics(killed)) < 120

    assert bits(linear_run.run(killed, num_steps=120)) == bits(trained)
    assert lines(killed) == lines(steady)


def interrupted_at(last):
    """Batches that bring a SIGINT during one step."""

    def batches(step):
        if step == last:
            os.kill(os.getpid(), signal.SIGINT)
        return linear_run.make_batch(step)

    return batches


@pytest.fixture
def limited_files():
    """Makes writes fail as on a full disk: no file may grow beyond a number of bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limit(num_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.mark.parametrize(("num_bytes", "place"), [(500, "metrics.jsonl"), (1000, "checkpoints")])
def test_a_write_that_the_system_refuses_is_one_message_and_the_same_command_continues(
    tmp_path, whole, limited_files, capfd, caplog, num_bytes, place
):
    with (
        pytest.raises(StorageError, match=rf"cannot use .*/{place}: .*larger than .*start the same command again"),
        limited_files(num_bytes),
    ):
        linear_run.run(tmp_path)
    shown = capfd.readouterr()
    assert shown.out == shown.err == caplog.text == ""
    assert bits(linear_run.run(tmp_path)) == bits(whole[0])
    assert lines(tmp_path) == whole[1]
    assert all(name.isdigit() for name in os.listdir(tmp_path / "checkpoints"))


@pytest.mark.parametrize("then", ["moved", "copied back"])
def test_a_work_directory_that_is_moved_while_it_is_written_does_not_split(tmp_path, whole, then):
    workdir, place = tmp_path / "a", tmp_path / "b"

    def batches(step):
        if step == 8:
            workdir.rename(place)
            if then == "copied back":
                shutil.copytree(place, workdir)
        return linear_run.make_batch(step)

    with pytest.raises(WorkdirError, match=r"a/metrics.jsonl was moved or deleted.*new place"):
        linear_run.run(workdir, batches=batches)
    if then == "moved":
        assert not workdir.exists()
    assert bits(linear_run.run(place)) == bits(whole[0])
    assert lines(place) == whole[1]


def test_a_signal_in_the_last_step_stops_what_comes_after_it(tmp_path):
    with pytest.raises(TrainingStopped) as stopped:
        linear_run.run(tmp_path, batches=interrupted_at(19))
    assert stopped.value.code == 130
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 20


def test_signal_saves_at_the_step_boundary_and_restores_handlers(tmp_path, whole, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    with pytest.raises(TrainingStopped) as stopped:
        linear_run.run(tmp_path, batches=interrupted_at(8))
    assert stopped.value.code == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert "stopped by SIGINT after 9 of 20 steps" in capsys.readouterr().err
    assert Checkpoints(tmp_path / "checkpoints").steps() == [6, 9]
    assert bits(linear_run.run(tmp_path)) == bits(whole[0])
    assert lines(tmp_path) == whole[1]


@pytest.fixture
def interruptible():
    """SIGINT as Python sets it up; a process started in the background of a shell ignores it instead."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_second_signal_acts_at_once(tmp_path):
    def batches(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return linear_run.make_batch(step)

    with pytest.raises(KeyboardInterrupt):
        linear_run.run(tmp_path, batches=batches)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_trains_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(linear_run.run(tmp_path, num_steps=2)))
    thread.start()
    thread.join()
    assert int(results[0].state.step) == 2


def test_keeps_the_best_parameters(tmp_path, whole):
    trained, logged = whole
    scores = {line["step"] + 1: line["eval/score"] for line in logged if "eval/score" in line}
    best_step = max(scores, key=scores.__getitem__)
    assert best_step not in (5, 20), "the example should peak on the way"
    assert trained.best.step == best_step
    assert trained.best.score == scores[best_step]
    np.testing.assert_array_equal(trained.params["w"], linear_run.run(tmp_path, num_steps=best_step).state.params["w"])


def test_patience_stops_early_also_when_resumed(tmp_path, whole):
    best_step = whole[0].best.step
    stopped = linear_run.run(tmp_path / "a", patience=1)
    assert int(stopped.state.step) == best_step + 5
    assert stopped.best.num_worse == 1

    def batches(step):
        if step == best_step + 2:
            raise Kill
        return linear_run.make_batch(step)

    with pytest.raises(Kill):
        linear_run.run(tmp_path / "b", patience=1, batches=batches)
    assert bits(linear_run.run(tmp_path / "b", patience=1)) == bits(stopped)
    assert bits(linear_run.run(tmp_path / "b", patience=1)) == bits(stopped)
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def simple(optimizer=None, *, donate=False):
    """A step on (w - target)^2, and its start."""
    optimizer = optimizer or optax.sgd(0.25)

    def step_fn(state: TrainState, target):
        loss, gradients = jax.value_and_grad(lambda w: (w - target) ** 2)(state.params)
        return apply_gradients(state, gradients, optimizer), {"loss": loss}

    step_fn = jax.jit(step_fn, donate_argnums=(0,) if donate else ())
    return step_fn, init_state(jnp.float32(0.0), optimizer, key=jax.random.key(0))


def test_params_are_the_last_ones_without_an_evaluation():
    step_fn, state = simple()
    trained = train(step_fn, state, lambda step: jnp.float32(4.0), num_steps=2, progress=False)
    assert float(trained.params) == 3.0  # 0 -> 2 -> 3.
    assert trained.best.step == 0


def test_a_step_may_donate_its_state(tmp_path):
    step_fn, state = simple(donate=True)
    with Checkpoints(tmp_path, save_interval=1) as checkpoints:
        trained = train(
            step_fn,
            state,
            lambda step: jnp.float32(4.0),
            num_steps=3,
            checkpoints=checkpoints,
            evaluation=EvalSchedule(lambda state: -float(state.params), every=1),
            progress=False,
        )
    assert float(trained.params) == 2.0
    assert float(trained.state.params) == 3.5


def test_evaluation_may_return_several_numbers_or_none(tmp_path):
    step_fn, state = simple()

    def on_eval(state):
        return {"score": float(state.params), "agreement": 0.5} if int(state.step) > 1 else None

    with MetricWriter(tmp_path, tensorboard=False) as writer:
        arguments = {"num_steps": 3, "writer": writer, "evaluation": EvalSchedule(on_eval, every=1), "progress": False}
        trained = train(step_fn, state, lambda step: jnp.float32(4.0), **arguments)
    assert trained.best.score == 3.5
    logged = lines(tmp_path)
    assert set(logged[0]) == {"step", "loss"}
    assert logged[1] == {"step": 1, "loss": 4.0, "eval/score": 3.0, "eval/agreement": 0.5}


def test_metrics_are_fetched_only_when_they_are_logged(monkeypatch, tmp_path):
    step_fn, state = simple()
    fetched = []
    real_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or real_get(tree))
    with MetricWriter(tmp_path, tensorboard=False) as writer:
        train(step_fn, state, lambda step: jnp.float32(1.0), num_steps=10, log_every=4, writer=writer, progress=False)
    assert [n for n in fetched if n] == [1, 3, 4, 2]  # The first alone, then at 4, 8 and the end.


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    step_fn, state = simple()
    targets = [1.0, 1.0, 1.0, np.nan, 1.0, 1.0, 1.0, 1.0]
    with (
        MetricWriter(tmp_path, tensorboard=False) as writer,
        Checkpoints(tmp_path / "checkpoints", save_interval=2) as checkpoints,
        pytest.raises(TrainingError, match=r"loss is nan at step 3\. The checkpoint of step 2 is kept\. Try a smaller"),
    ):
        train(
            step_fn,
            state,
            lambda step: jnp.float32(targets[step]),
            num_steps=8,
            writer=writer,
            checkpoints=checkpoints,
            log_every=100,
            progress=False,
        )
    assert checkpoints.steps() == [2]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["loss"]) == (3, None)


def test_a_loss_that_is_not_finite_is_named_before_an_evaluation():
    step_fn, state = simple()

    def never(state):
        raise AssertionError("broken parameters are not evaluated")

    with pytest.raises(TrainingError, match=r"loss is nan at step 1\. There is no checkpoint\. .*batches\(1\)"):
        train(
            step_fn,
            state,
            lambda step: jnp.float32(np.nan if step else 1.0),
            num_steps=4,
            evaluation=EvalSchedule(never, every=2),
            progress=False,
        )


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    @jax.jit
    def step_fn(state, batch):
        bad = jnp.where(state.step == 2, jnp.nan, 0.0)
        return state.replace(step=state.step + 1, params=state.params + bad), {"loss": jnp.float32(0.0)}

    state = init_state(jnp.float32(1.0), optax.sgd(0.1), key=jax.random.key(0))
    with (
        Checkpoints(tmp_path, save_interval=1) as checkpoints,
        pytest.raises(TrainingError, match=r"parameter \(root\) is not finite after step 2\. .* step 2 is kept"),
    ):
        train(step_fn, state, lambda step: None, num_steps=5, checkpoints=checkpoints, progress=False)
    assert checkpoints.steps() == [1, 2]


def test_a_checkpoint_past_the_end_is_refused(tmp_path):
    linear_run.run(tmp_path, num_steps=6)
    with pytest.raises(TrainingError, match=r"at step 6, past num_steps=4"):
        linear_run.run(tmp_path, num_steps=4)


def test_resumes_on_several_devices(tmp_path):
    mesh = make_data_mesh(4)
    data = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)

    def run(stop_at=None):
        def batches(step):
            if step == stop_at:
                raise Kill
            return shard_batch(data + np.float32(step), mesh)

        with Checkpoints(tmp_path, save_interval=2) as checkpoints:
            return train(
                linear_run.step_fn,
                replicate(linear_run.start_state(), mesh),
                batches,
                num_steps=5,
                checkpoints=checkpoints,
                evaluation=EvalSchedule(linear_run.score, every=2),
                progress=False,
            )

    with pytest.raises(Kill):
        run(stop_at=3)
    trained = run()
    assert Checkpoints(tmp_path).steps() == [2, 4, 5]
    for leaf in jax.tree.leaves((trained.state, trained.best.params)):
        assert len(leaf.sharding.device_set) == 4
        assert leaf.sharding.is_fully_replicated
    state = linear_run.start_state()
    for step in range(5):
        state, _ = linear_run.step_fn(state, data + np.float32(step))
    chex.assert_trees_all_close(trained.state.params["w"], state.params["w"], rtol=1e-5)


def test_a_resumed_run_compiles_its_step_once(tmp_path):
    step_fn = jax.jit(chex.assert_max_traces(1)(linear_run.step_fn.__wrapped__))

    def run(num_steps):
        with Checkpoints(tmp_path) as checkpoints:
            start = linear_run.start_state()
            train(step_fn, start, linear_run.make_batch, num_steps=num_steps, checkpoints=checkpoints, progress=False)

    run(3)
    run(6)


def test_bad_arguments_are_named():
    step_fn, state = simple()

    def call(**kwargs):
        train(step_fn, state, lambda step: jnp.float32(1.0), progress=False, **kwargs)

    with pytest.raises(ValueError, match="num_steps=0"):
        call(num_steps=0)
    with pytest.raises(ValueError, match="log_every=0"):
        call(num_steps=1, log_every=0)
    with pytest.raises(ValueError, match="every=0"):
        EvalSchedule(lambda state: 0.0, every=0)
    with pytest.raises(ValueError, match="patience=0"):
        EvalSchedule(lambda state: 0.0, every=1, patience=0)
    with pytest.raises(TrainingError, match="score nan after 1 steps"):
        call(num_steps=1, evaluation=EvalSchedule(lambda state: float("nan"), every=1))
    with pytest.raises(ValueError, match=r"state\.step is 0 after 1 steps"):
        train(lambda state, batch: (state, {}), state, lambda step: None, num_steps=1, progress=False)


def test_progress_shows_step_loss_rate_and_time_left(capsys):
    step_fn, state = simple()
    train(step_fn, state, lambda step: jnp.float32(1.0), num_steps=4, log_every=2)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "step 1/4  loss 1"
    assert shown[1].startswith("step 2/4  loss 0.25  ")
    assert shown[1].endswith(" left")
    assert "steps/s" in shown[1]
    assert shown[-1].endswith("0:00:00 left")


def test_start_state_is_a_strongly_typed_copy():
    params = jnp.asarray(1.0)
    state = init_state({"w": params}, optax.sgd(0.1), key=jax.random.key(0))
    assert params.weak_type
    assert not state.params["w"].weak_type
    assert state.params["w"] is not params


def test_data_order_deals_every_item_once_an_epoch():
    order = make_data_order(10, 4, seed=3)
    dealt = np.concatenate([order(step) for step in range(5)])  # 20 places: two epochs.
    assert sorted(dealt[:10]) == sorted(dealt[10:]) == list(range(10))
    assert dealt[:10].tolist() != dealt[10:].tolist()
    np.testing.assert_array_equal(make_data_order(10, 4, seed=3)(3), order(3))
    assert any((make_data_order(10, 4, seed=4)(step) != order(step)).any() for step in range(3))
    assert np.bincount(make_data_order(3, 7, seed=0)(0), minlength=3).max() == 3
    with pytest.raises(ValueError, match="num_items=0"):
        make_data_order(0, 4, seed=0)
