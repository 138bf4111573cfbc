"""Guards by the text that a config gives."""

import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.guards import named
from edgesafe_jax.guards.scoring import LanguageModelGuard
from edgesafe_jax.models.decoder_config import num_params


def test_a_function_of_a_module_in_the_current_folder_is_a_guard(tmp_path, monkeypatch, tiny_model):
    (tmp_path / "my_guard_of_words.py").write_text(
        "def words(prompts, responses):\n    return [float('bomb' in text) for text in responses]\n\nLIMIT = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    guard = named.load_guard("my_guard_of_words:words", tiny_model)
    np.testing.assert_array_equal(guard(["a", "a"], ["a bomb", "bread"]), [1.0, 0.0])
    assert named.guard_identity("my_guard_of_words:words", guard) is None
    assert named.guard_cost(guard, tiny_model) is None
    with pytest.raises(ConfigError, match=r"has no function 'word'; it has words, LIMIT"):
        named.check_guard("my_guard_of_words:word")


def test_a_public_format_with_a_model_is_a_guard(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr(named, "load_model", lambda path: tiny_model)
    spec = f"smolguard:{tmp_path}"
    guard = named.load_guard(spec, tiny_model)
    assert isinstance(guard, LanguageModelGuard)
    assert named.guard_identity(spec, guard) == f"{tiny_model.hash} {guard.template_hash}"
    cost = named.guard_cost(guard, tiny_model)
    assert cost is not None
    assert cost.parameters == num_params(tiny_model.params)
    assert cost.flops_per_token > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.safetensors", "guard='missing.safetensors' is no file: expected nothing for the packaged guard"),
        ("no_such_module_anywhere:f", "cannot import 'no_such_module_anywhere'"),
        (":f", "':f': '' is no module"),
        ("smolguard:/no/such/model", "there is no model at /no/such/model"),
        ("smolguard:", "is no file"),
    ],
)
def test_a_text_that_names_no_guard_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        named.check_guard(spec)
