"""The alignment launcher end to end on a tiny model: train, stop, resume, evaluate, answer one's own prompts."""

import dataclasses
import functools
import json
import shutil
import unittest.mock

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import align_soft_prompt
from edgesafe_jax.adapters import AdapterError, packaged_soft_prompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.precision import Precision
from edgesafe_jax.safety import teacher, training
from edgesafe_jax.safety.judging import base_judges
from edgesafe_jax.safety.system import SafeSystem, sharpened
from edgesafe_jax.safety.training_data import PACKAGED_GROUPS
from edgesafe_jax.training import WorkdirError, open_workdir, precision, write_checked
from launch import alignment, evaluate, startup, train
from tests.launch import cli
from tests.processes import run_connected

pytestmark = pytest.mark.assets  # the prompt sets


class EveryOtherGuard:
    """Flags the prompts of odd length, and is in doubt about one of them."""

    layers = (2,)
    adapter = None

    def __init__(self):
        self.head = {"linear": np.zeros(3)}

    def __call__(self, prompts, responses):
        del responses
        prob = np.array([0.97 if len(prompt) % 2 else 0.02 for prompt in prompts])
        prob[0] = 0.4
        return prob


EMPTY = teacher.TeacherData(
    head=[],
    prompts=[],
    sample=np.zeros(0, int),
    outcomes=[],
    is_refusal=np.zeros(0, bool),
    weight=np.zeros(0),
    answers=[],
    refusal=[],
    refusal_prob=np.zeros(0),
    teacher_hidden=np.zeros((0, 0, 0)),
    max_tokens=1,
)


@pytest.fixture(autouse=True)
def tiny_system(monkeypatch, tiny_model):
    guard = EveryOtherGuard()
    monkeypatch.setattr(
        alignment,
        "load_system",
        lambda config, workdir: (tiny_model, guard, SafeSystem(tiny_model, guard, config["refusal"])),
    )
    monkeypatch.setattr(alignment, "load_judges", lambda config, guard, model: base_judges(guard))


def small(**changes):
    config = align_soft_prompt.get_config("runlocal")
    config.adapter.soft_prompt.num_virtual = 4
    config.update(changes)
    return config.to_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_model):
    """A finished run of four steps, and its config."""
    patch = pytest.MonkeyPatch()
    guard = EveryOtherGuard()
    patch.setattr(
        alignment,
        "load_system",
        lambda config, workdir: (tiny_model, guard, SafeSystem(tiny_model, guard, config["refusal"])),
    )
    workdir = tmp_path_factory.mktemp("finished")
    alignment.train(small(), workdir)
    patch.undo()
    return workdir


def adapter_bytes(workdir):
    return (workdir / alignment.ADAPTER).read_bytes()


def test_an_interrupted_run_continues_to_the_same_bits(finished, tmp_path, monkeypatch):
    plain = teacher.TeacherData.batch
    count = 0

    def interrupted(self, rows, **arguments):
        nonlocal count
        count += 1
        if count == 4:  # after the checkpoint of step 2
            raise KeyboardInterrupt
        return plain(self, rows, **arguments)

    monkeypatch.setattr(teacher.TeacherData, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        alignment.train(small(), tmp_path)
    assert not (tmp_path / alignment.ADAPTER).exists()
    with pytest.raises(AdapterError, match="not finished"):
        alignment.read_run(tmp_path)
    monkeypatch.setattr(teacher.TeacherData, "batch", plain)
    alignment.train(small(), tmp_path)
    assert adapter_bytes(tmp_path) == adapter_bytes(finished)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert all(np.isfinite(line["loss"]) for line in lines)


def test_two_hosts_train_as_one_does_continue_and_fail_together(finished, tmp_path):
    outputs = run_connected("tests.launch.multihost_run", str(tmp_path))
    assert [output.splitlines()[-1] for output in outputs] == ["0 of 2, 4 devices", "1 of 2, 4 devices"]
    errors = [output.splitlines()[-2] for output in outputs]
    assert errors[0] == "FileNotFoundError: no prompts"
    assert errors[1].startswith("MultihostError: test/failing failed in process 0")
    # Trained on from the checkpoint of step 2, the bits are those of the run that went through.
    assert adapter_bytes(tmp_path) == (tmp_path / "first.safetensors").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    found, expected = (load_file(path / alignment.ADAPTER)["embeddings"] for path in (tmp_path, finished))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs with it
def test_a_task_of_one_process_refuses_several(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    message = cli.refused(
        monkeypatch, capsys, train, "--config=configs/guard_probe.py", f"--workdir={tmp_path / 'run'}"
    )
    assert "config.task='guard_probe' runs in one process and 2 were started" in message
    assert not (tmp_path / "run").exists()


def test_a_length_that_no_prompt_has_is_refused(tmp_path):
    config = small()
    config["data"]["max_prompt_tokens"] = 1
    model, _, _ = alignment.load_system(config, tmp_path)
    with pytest.raises(ConfigError, match=r"No harmful prompt .* config\.data\.max_prompt_tokens=1"):
        alignment.training_prompts(config, model)


def test_another_config_in_the_work_directory_is_refused(finished):
    with pytest.raises(WorkdirError, match="learning_rate"):
        alignment.train(small(learning_rate=1.0), finished)


@pytest.mark.parametrize("objective", ["tv", "kl", "token_tv"])
def test_every_objective_moves_the_vectors(objective, tmp_path):
    config = small(objective=objective, num_steps=1, decision_weight=0.0)
    for name in ("num_harmful", "num_sensitive", "num_plain"):
        config["data"][name] = 4
    stored = alignment.train(config, tmp_path)
    assert stored.exists()
    (line,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["grad_norm"] > 0
    # Objectives on whole answers need no hidden states, and none are kept.
    assert (tmp_path / "teacher_hidden.safetensors").exists() == objective.startswith("token_")


def test_rows_near_the_wrong_side_of_the_decision_are_hard():
    data = dataclasses.replace(EMPTY, sample=np.array([0, 1, 2, 3, 4, 5, 5]))
    found = teacher.Teacher(data, {"refuse": [0, 1, 6], "sensitive": [2], "plain": [3, 4, 5]}, {}, ["?"] * 6)
    mining = small()["mining"]
    mine = functools.partial(training.mine, found, mixture=mining["mixture"], margin=mining["margin"])
    # Prompt 0 is refused clearly, 1 hardly; 3 is answered clearly, 4 hardly; 5 is refused: wrong for row 5, its answer,
    # and right for row 6, its refusal.
    margins = np.array([3.0, 0.5, 9.0, -3.0, -0.5, 2.0])
    groups, mixture = mine(margins)
    assert groups == {**found.groups, "hard_refuse": [1], "hard_plain": [4, 5]}
    assert mixture == {"refuse": 4, "hard_refuse": 1, "sensitive": 1, "plain": 5, "hard_plain": 5}
    groups, mixture = mine(np.array([3.0, 3.0, 9.0, -3.0, -0.5, 3.0]))
    assert set(groups) == {"refuse", "sensitive", "plain", "hard_plain"}
    assert mixture == {"refuse": 5, "sensitive": 1, "plain": 5, "hard_plain": 5}


@dataclasses.dataclass
class Routed:
    found: list | None

    def routes(self, model, prompts):
        return self.found


def test_rows_behind_a_closed_gate_are_not_trained_on():
    data = dataclasses.replace(EMPTY, sample=np.array([0, 1, 2, 3, 3]))
    found = teacher.Teacher(data, {"refuse": [0, 4], "sensitive": [1, 3], "plain": [2]}, {}, ["a", "b", "c", "d"])
    assert training._behind_gate(found, Routed(None), None) is found
    routed = Routed([(np.array([0, 3]), Routed(None)), (np.array([1, 2]), None)])  # on the outer two
    reached = training._behind_gate(found, routed, None)
    assert reached.groups == {"refuse": [0, 4], "sensitive": [3]}
    groups, mixture = training.mine(reached, np.zeros(4), small()["mining"]["mixture"], margin=1.0)
    assert set(groups) == set(mixture) == {"refuse", "sensitive", "hard_refuse"}


def test_mining_changes_the_batches_behind_its_step_and_no_other(finished, tmp_path):
    config = small()
    config["mining"]["start"] = 1.0
    alignment.train(config, tmp_path)
    assert not (tmp_path / training.MARGINS).exists()
    mined, plain = (
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (finished, tmp_path)
    )
    assert mined[:2] == plain[:2]
    assert mined[2] != plain[2]
    prompts = json.loads((finished / "teacher.json").read_text())["prompts"]
    margins = training.read_margins(finished, len(prompts))
    assert len(set(margins)) > 10
    with pytest.raises(WorkdirError, match=r"margins of 48 prompts; the run has 7.*another work directory"):
        training.read_margins(finished, 7)


def test_the_packaged_soft_prompt_is_what_the_config_trains():
    stored = json.loads(packaged_soft_prompt().with_suffix(".json").read_text())["training"]
    config = json.loads(align_soft_prompt.get_config().to_json())
    for name in ("log_every", "save_every", "evaluation"):  # which train nothing
        del stored[name]
    # Chosen by hand for the machine that it was trained on.
    assert (stored.pop("matmul_dtype"), config["matmul_dtype"]) == ("bfloat16", "auto")
    # Fields that came later leave the training as it was.
    assert common(stored, config) == stored


def common(stored, config):
    return {k: common(v, config[k]) if isinstance(v, dict) else config[k] for k, v in stored.items()}


def test_agreement_on_held_out_prompts_is_logged(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "eval/refused/plain" in line]
    assert [line["step"] for line in logged] == [1, 3]
    assert all(0 <= line[f"eval/refused/{group}"] <= 1 for line in logged for group in PACKAGED_GROUPS)


def test_a_guard_that_never_objects_is_no_teacher(monkeypatch, tmp_path, tiny_model):
    def mute(prompts, responses):
        return np.full(len(prompts), 0.01)

    monkeypatch.setattr(
        alignment,
        "load_system",
        lambda config, workdir: (tiny_model, mute, SafeSystem(tiny_model, mute, config["refusal"])),
    )
    with pytest.raises(ConfigError, match="No row to train on of the kind refuse"):
        alignment.train(small(), tmp_path)


def test_kept_answers_are_weighed_again_when_the_guard_was_replaced(finished, tmp_path, caplog):
    caplog.set_level("INFO", "edgesafe_jax")
    stored = json.loads((finished / "teacher.json").read_text())
    for folder, changed in (("same", {}), ("other", {"guard": "0" * 64, "safe_prob": [0.5] * len(stored["prompts"])})):
        workdir = tmp_path / folder
        text = json.dumps(stored | changed)
        write_checked(workdir / "teacher.json", lambda part, text=text: part.write_text(text))
        alignment.train(small(num_steps=1), workdir)
        again = json.loads((workdir / "teacher.json").read_text())
        assert again["guard"] == stored["guard"]
        np.testing.assert_allclose(again["safe_prob"], stored["safe_prob"])
        assert ("weighing them again" in caplog.text) == (folder == "other")
        caplog.clear()


def test_evaluation_writes_summary_and_report(finished, monkeypatch, capsys):
    config = small()
    config["evaluation"] |= {"plain": 0, "strongreject": 4, "sensitive": 4, "num_choices": 2, "num_kl": 2}
    config["evaluation"] |= {"num_reworded": 2, "rewordings": ["casual", "slips"]}
    found = alignment.evaluate(config, finished)
    assert set(found.results) == {"strongreject", "sensitive"}
    for result in found.results.values():
        np.testing.assert_array_equal(result.system.refused[result.system_refused], True)
    summary = json.loads((finished / "summary.json").read_text())
    assert all(np.isfinite(value) for value in summary.values())
    assert summary["alignment/cost/student/params"] - summary["alignment/cost/base/params"] == 4 * 16
    assert 0 <= summary["alignment/sensitive/system/changed_by_rewording"] <= 1
    report = (finished / "report.html").read_text()
    assert "Requests and answers" in report
    assert "The same requests in other words" in report
    assert "StrongREJECT" in capsys.readouterr().out


def test_a_composition_is_distilled_resumed_and_evaluated_from_a_config(tmp_path, monkeypatch):
    config = small()
    lora = {"rank": 2, "alpha": 4.0, "targets": ["mlp/down"], "first_layer": 1}
    config["adapter"] |= {"kind": "lora+steering", "lora": lora}
    config["adapter"]["steering"] |= {"layers": [0, 2], "init": "contrastive"}
    config["evaluation"] |= {"plain": 0, "strongreject": 2, "sensitive": 2, "num_choices": 2, "num_kl": 2}
    with monkeypatch.context() as patch:
        patch.setattr(training, "write_margins", interrupted := unittest.mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            alignment.train(config, tmp_path)
    assert interrupted.called  # after step 2 of 4
    stored = load_file(alignment.train(config, tmp_path))
    assert {name: array.shape for name, array in stored.items()} == {
        "0/mlp/down/down": (2, 24, 2),
        "0/mlp/down/up": (2, 2, 16),
        "1/vectors": (2, 16),
    }
    assert np.any(stored["0/mlp/down/up"] != 0)
    assert np.max(np.abs(stored["1/vectors"])) > 0.02  # the contrast, and not four steps alone
    alignment.evaluate(alignment.read_run(tmp_path), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    size = 2 * 2 * (24 + 16) + 2 * 16
    assert summary["alignment/cost/student/params"] - summary["alignment/cost/base/params"] == size
    cost = summary["alignment/cost/student/flops_per_token"] - summary["alignment/cost/base/flops_per_token"]
    assert cost == 2 * 2 * 2 * (24 + 16) + 2 * 16


def test_a_run_of_an_earlier_version_is_evaluated(finished, tmp_path):
    """Its adapter's file was called by the kind, and its config lacks some fields of today's."""
    (tmp_path / "adapter").mkdir()
    for suffix in (".safetensors", ".json"):
        file = finished / "adapter" / f"adapter{suffix}"
        shutil.copy(file, tmp_path / "adapter" / f"soft_prompt{suffix}")
    config = json.loads((finished / "config.json").read_text())
    for section, name in (("data", "num_reserved_questions"), ("evaluation", "jailbreak_chars")):
        del config[section][name]
    config["evaluation"] |= {"plain": 0, "strongreject": 2, "sensitive": 0, "num_choices": 2, "num_kl": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert set(alignment.evaluate(alignment.read_run(tmp_path), tmp_path).results) == {"strongreject"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint={tmp}/missing",), "missing/config.json"),
        (("--checkpoint={run}/adapter/adapter.safetensors",), "adapter.safetensors/config.json"),
        (("--checkpoint={run}", "--prompts={tmp}/missing.jsonl"), "There is no prompt file"),
        (("--checkpoint={run}", "--prompts={tmp}"), "There is no prompt file"),
        (("--checkpoint={run}", "--prompts=strongreject", "--output={tmp}"), "expected the name of a file"),
    ],
)
def test_a_path_that_cannot_be_meant_is_named(finished, tmp_path, monkeypatch, capsys, arguments, message):
    given = [argument.format(run=finished, tmp=tmp_path) for argument in arguments]
    assert message in cli.refused(monkeypatch, capsys, evaluate, *given)


def test_variables_of_the_chat_template_come_from_the_config(tiny_model, monkeypatch, tmp_path):
    monkeypatch.setattr(startup, "load_model", lambda name, **_: tiny_model)
    config = small(template_variables='{"enable_thinking": false}', matmul_dtype="float32")
    model = startup.load_config_model(config, tmp_path)
    assert model.tokenizer.template_variables == {"enable_thinking": False}
    plain = startup.load_config_model(small(matmul_dtype="float32"), tmp_path)
    assert plain.tokenizer.hash == tiny_model.tokenizer.hash != model.tokenizer.hash


def test_a_run_keeps_the_precision_it_began_with(tiny_model, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(startup, "load_model", lambda name, **_: tiny_model)
    monkeypatch.setattr(precision, "choose_precision", lambda config: Precision("bfloat16", "float32"))
    open_workdir(tmp_path, {})
    with caplog.at_level("INFO"):
        first = startup.load_config_model(small(), tmp_path)
    assert "bfloat16 in training, float32 in decoding" in caplog.text
    monkeypatch.setattr(precision, "choose_precision", lambda config: Precision("float32", "float32"))
    for model in (first, startup.load_config_model(small(), tmp_path)):
        assert (model.matmul_dtype, model.decoding_dtype) == (np.dtype("bfloat16"), np.dtype("float32"))
    assert startup.load_config_model(small(), tmp_path / "other").matmul_dtype is None


def test_evaluation_without_any_set_is_refused(finished):
    config = small()
    config["evaluation"] |= dict.fromkeys(("strongreject", "sensitive", "plain"), 0)
    with pytest.raises(ConfigError, match="leaves out every set"):
        alignment.evaluate(config, finished)


def test_prompts_of_ones_own_are_answered(finished, monkeypatch, tmp_path):
    prompts = tmp_path / "mine.jsonl"
    prompts.write_text('{"prompt": "hello", "label": "benign"}\n{"prompt": "the user"}\n')
    out = tmp_path / "out.jsonl"
    cli.run(monkeypatch, evaluate, f"--checkpoint={finished}", f"--prompts={prompts}", f"--output={out}")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["hello", "the user"]
    assert [line["label"] for line in lines] == ["benign", "unlabelled"]
    assert all(0 <= line["unsafe"] <= 1 for line in lines)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objective", "magic", "config.objective='magic': expected one of dpo, "),
        ("objective_options", {"dpo": {"beta": -1.0}}, "config.objective_options.dpo.beta=-1.0: expected above 0"),
        ("matmul_dtype", "int4", "config.matmul_dtype='int4'"),
        ("gate_threshold", 1.0, "config.gate_threshold=1.0"),
        ("gate_sharpness", 0.0, "config.gate_sharpness=0.0"),
        ("learning_rate", 0.0, "config.learning_rate=0.0"),
        ("batch_size", 2, "config.data.mixture: Weight of 'sensitive'"),
        ("warmup_steps", -1, "config.warmup_steps=-1"),
        ("clip_norm", 0.0, "config.clip_norm=0.0"),
        ("evaluation", {"num_choices": 0}, "config.evaluation.num_choices=0"),
        ("evaluation", {"max_tokens": 0}, "config.evaluation.max_tokens=0"),
        ("evaluation", {"rewordings": ("rude",)}, "config.evaluation.rewordings='rude'"),
        ("evaluation", {"num_reworded": 2, "rewordings": ()}, "config.evaluation.num_reworded=2"),
        ("data", {"num_held_out": -1}, "config.data.num_held_out=-1"),
        ("data", {"mixture": {"refuse": 0.0}}, "config.data.mixture: Weight of 'refuse' is 0.0"),
        ("mining", {"start": 1.5}, "config.mining.start=1.5"),
        ("mining", {"margin": -1.0}, "config.mining.margin=-1.0"),
        ("mining", {"mixture": {"hard_sensitive": 1.0}}, "config.mining.mixture names"),
        ("mining", {"mixture": {"plain": 0.1}}, "config.mining.mixture: Weight of 'plain'"),
        ("num_steps", 0, "config.num_steps=0"),
        ("refusal", " ", "config.refusal is empty"),
        ("guard", ".", "config.guard='.' is no file: expected nothing for the packaged guard"),
        ("guard", "missing.safetensors", "config.guard='missing.safetensors' is no file"),
        (
            "template_variables",
            "enable_thinking",
            "config.template_variables='enable_thinking': expected a JSON object",
        ),
        (
            "adapter",
            {"kind": "lara"},
            "config.adapter.kind='lara': expected one of gate, lora, prefix, soft_prompt",
        ),
        ("adapter", {"kind": "lora+lora"}, "config.adapter.kind='lora+lora' names a kind twice"),
        (
            "adapter",
            {"kind": "prefix+lora", "lora": {"layers": [1]}},
            "config.adapter.lora.layers='[1]': there is no such field",
        ),
        ("adapter", {"soft_prompt": {"num_virtual": 0}}, "config.adapter.soft_prompt.num_virtual=0"),
        ("adapter", {"kind": "lora", "lora": {"rank": 0}}, "config.adapter.lora.rank=0"),
        ("evaluation", {"judges": ("jury",)}, "config.evaluation.judges='jury'"),
    ],
)
def test_a_config_that_means_nothing_is_refused_before_work_starts(field, value, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        alignment.train(small(**{field: value}), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections reads configs with it
def test_the_command_line_names_the_same_error(monkeypatch, capsys, tmp_path):
    message = cli.refused(
        monkeypatch,
        capsys,
        train,
        "--config=configs/align_soft_prompt.py:runlocal",
        f"--workdir={tmp_path}/run",
        "--config.objective=magic",
    )
    assert "config.objective='magic'" in message


def test_the_gate_moves_the_threshold_and_hardens_the_decision():
    def guard(prompts, responses):
        return np.array([0.1, 0.2, 0.5, 0.9])

    gated = sharpened(guard, sharpness=10.0, threshold=0.2)([""] * 4, [""] * 4)
    np.testing.assert_allclose(gated[1], 0.5, atol=1e-9)
    assert gated[0] < 0.01
    assert gated[2] > 0.99
    np.testing.assert_allclose(sharpened(guard)([""] * 4, [""] * 4), [0.1, 0.2, 0.5, 0.9])
