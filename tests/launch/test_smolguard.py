"""SmolGuard: what its task refuses, a whole small run on a tiny model, and the packaged adapter on held-out pairs."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import guard_smol
from edgesafe_jax import metrics
from edgesafe_jax.adapters import AdapterError
from edgesafe_jax.fields import check_fields
from edgesafe_jax.guards import smolguard
from edgesafe_jax.guards.activated import load_smolguard, verdict_loss
from edgesafe_jax.guards.examples import human_sample
from edgesafe_jax.models.loading import load_model
from edgesafe_jax.training import WorkdirError, open_workdir
from launch import guards, startup
from launch.errors import ConfigError


def config(**changes):
    return {**guard_smol.get_config("runlocal").to_dict(), "first_layer": 1, "matmul_dtype": "float32", **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matmul_dtype": "int8"}, "config.matmul_dtype='int8'"),
        ({"targets": ("attention/norm",)}, "config.targets='attention/norm'"),
        ({"targets": ()}, "config.targets is empty"),
        ({"rank": 0}, "config.rank=0"),
        ({"learning_rate": 0.0}, "config.learning_rate=0.0"),
        ({"num_epochs": -1}, "config.num_epochs=-1"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_fields(config(**changes))


def test_loss_is_the_cross_entropy_of_the_right_labels():
    logits = jnp.array([[1.0, -0.5, 0.3, 2.0]] * 2)  # "unsafe" are the first two tokens, "safe" is the third
    probs = np.asarray(jax.nn.softmax(logits))[0]
    unsafe, safe = probs[:2].sum(), probs[2]
    found = verdict_loss(
        log_odds=jnp.full(2, np.log(unsafe / safe)),
        log_mass=jnp.full(2, np.log(unsafe + safe)),
        labels=jnp.array([1.0, 0.0]),
    )
    np.testing.assert_allclose(found, [-np.log(unsafe), -np.log(safe)], rtol=1e-5)


@pytest.fixture
def tiny(monkeypatch, tiny_model):
    """The tiny model in the place of the real one, and guards that know nothing beside it."""
    monkeypatch.setattr(startup, "load_model", lambda spec, **_: tiny_model)
    unsure = lambda prompts, responses: np.linspace(0, 1, len(prompts))  # noqa: E731
    monkeypatch.setattr(smolguard, "load_hidden_state_guard", lambda model: unsure)
    monkeypatch.setattr(smolguard, "load_encoder_guard", lambda encode: unsure)
    monkeypatch.setattr(guards, "load_sentence_encoder", lambda: types.SimpleNamespace(encode=None))
    return tiny_model


@pytest.mark.assets
@pytest.mark.filterwarnings("ignore::edgesafe_jax.guards.scoring.LowMassWarning")
def test_a_small_run_to_its_report(tmp_path, tiny, capsys):
    small = config(num_epochs=20, learning_rate=0.05)
    stored = guards.train_smolguard(small, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.5 * lines[0]["loss"]
    # The words are learnt first: what the labels hold of the probability.
    assert lines[-1]["captured"] > 10 * lines[0]["captured"]
    assert "eval/accuracy" in lines[-1]
    guard = load_smolguard(tiny, stored)
    assert (guard.max_prompt, guard.adapter.first_layer) == (16, 1)
    # The same again: nothing is left to do, and the bits are the same.
    before = stored.read_bytes()
    guards.train_smolguard(small, tmp_path / "run")
    assert stored.read_bytes() == before
    with pytest.raises(WorkdirError, match="another configuration"):
        guards.train_smolguard({**small, "rank": 3}, tmp_path / "run")
    values = guards.evaluate_smolguard(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["guard_smol/smolguard/auroc"] == pytest.approx(values["smolguard/auroc"])
    assert 0 <= values["hidden_states/flagged/sensitive"] <= 1
    assert "SmolGuard" in (tmp_path / "run" / "report.html").read_text()
    assert "AUROC StrongREJECT / sensitive" in capsys.readouterr().out
    sidecar = stored.with_suffix(".json")
    about = json.loads(sidecar.read_text())
    del about["sha256"]  # as earlier versions wrote it
    about["training"]["guard"]["template_hash"] = "f" * 64
    sidecar.write_text(json.dumps(about))
    with pytest.raises(AdapterError, match="trained on the template ffff"):
        load_smolguard(tiny, stored)


def test_an_unfinished_run(tmp_path):
    open_workdir(tmp_path, config())
    with pytest.raises(ConfigError, match=r"no smolguard\.safetensors.*continues it"):
        guards.evaluate_smolguard(tmp_path)


@pytest.mark.assets
def test_the_packaged_adapter_agrees_with_people_on_objectives_it_has_not_seen():
    model = load_model(matmul_dtype=jnp.dtype(jnp.bfloat16))
    guard = load_smolguard(model)
    pairs = human_sample("held_out", 40)
    labels = np.array([p.score >= 0.5 for p in pairs], float)
    found = guard.judge([p.prompt for p in pairs], [p.response for p in pairs])
    assert metrics.auroc(scores=found.log_odds, labels=labels) > 0.65
    assert np.min(found.captured) > 0.9
