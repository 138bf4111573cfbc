"""A user's own prompts, guard, refusal and chat template from a config, on a tiny model."""

import json

import pytest

from configs import align_soft_prompt
from edgesafe_jax.corpora import CorpusError
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.safety.judging import base_judges
from edgesafe_jax.training.workdir import read_summary
from launch import alignment, startup
from tests import tiny

pytestmark = pytest.mark.assets  # the evaluation sets, which own prompts must not overlap

TEXTS = [f"hello {word} in the user" for word in ("war", "sky", "sea", "sun", "fog", "ice", "mud", "oak")]

CHAT = [{"role": "system", "content": "Be calm."}, {"role": "user", "content": TEXTS[4]}]
PROMPTS = [*TEXTS[:4], CHAT, *TEXTS[5:]]


@pytest.fixture
def own(tmp_path, monkeypatch, tiny_model):
    """A folder with prompts, a guard and a template, and the changes of a config that name them."""
    monkeypatch.setattr(startup, "load_model", lambda name, **_: tiny_model)
    monkeypatch.setattr(alignment, "load_judges", lambda config, guard, model: base_judges(guard))
    monkeypatch.chdir(tmp_path)
    rows = [{"text": prompt, "topic": "even" if i % 2 else "odd"} for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own_guard_for_test.py").write_text(
        "def judge(prompts, responses):\n    return [0.9 if prompt < 'hello n' else 0.1 for prompt in prompts]\n"
    )
    (tmp_path / "own.jinja").write_text(tiny.CHATML.replace("Be brief.", "Be kind."))
    return {
        "guard": "own_guard_for_test:judge",
        "chat_template": "own.jinja",
        "refusal": "No, thank you.",
        "matmul_dtype": "float32",
        "data": {"path": "mine.jsonl", "column": "text"},
    }


def config_of(changes, **more):
    config = align_soft_prompt.get_config("runlocal")
    config.adapter.soft_prompt.num_virtual = 2
    config.update(changes)
    config.update(more)
    return config.to_dict()


def test_own_prompts_guard_refusal_and_template_train_a_student_that_is_measured(own, tmp_path):
    config = config_of(own, num_steps=1, mining={"start": 1.0})
    config["evaluation"] |= {"plain": 0, "strongreject": 2, "sensitive": 0, "multiple_choice": (), "num_kl": 0}
    alignment.train(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert kept["prompts"] == PROMPTS
    assert kept["guard"] is None  # a function has no name by which its verdicts could be known again
    stored = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert stored["tokenizer_hash"] != tiny.make_tiny_tokenizer().hash
    alignment.evaluate(alignment.read_run(tmp_path / "run"), tmp_path / "run")
    summary = read_summary(tmp_path / "run")
    assert "alignment/cost/student/params" in summary
    assert "alignment/cost/system/params" not in summary


def test_labels_become_the_groups_of_a_batch(own):
    own["data"]["label_column"] = "topic"
    config = config_of(own)
    assert alignment.training_data(config).groups() == ("refuse", "odd", "even")
    assert set(alignment.check(config).mining.mixture) == {
        *("refuse", "odd", "even"),
        *("hard_refuse", "hard_odd", "hard_even"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"column": "prompt"}}, "has no column 'prompt': the keys of its first row are text, topic"),
        ({"data": {"label_column": "kind"}}, "has no column 'kind'"),
        ({"data": {"path": "none.jsonl"}}, "There is no file none.jsonl"),
        ({"guard": "own_guard_for_test:jugde"}, "config.guard='own_guard_for_test:jugde'.*it has judge"),
        ({"guard": "no_such_module_at_all:f"}, "config.guard=.*cannot import"),
        ({"guard": "llama-guard-3:/none"}, "config.guard=.*there is no model at /none"),
        ({"chat_template": "none.jinja"}, "config.chat_template='none.jinja' is no file"),
    ],
)
def test_what_is_not_there_is_refused_before_work_starts(own, tmp_path, changes, message):
    with pytest.raises((ConfigError, CorpusError, FileNotFoundError), match=message):
        alignment.train(config_of(own, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_row_that_no_prompt_is_left_of_is_named(own, tiny_model, tmp_path):
    own["data"] |= {"max_prompt_tokens": 1, "label_column": "topic"}
    config = config_of(own)
    with pytest.raises(ConfigError, match=r"no row with the label 'even' is left .*max_prompt_tokens=1"):
        alignment.training_prompts(config, tiny_model)
