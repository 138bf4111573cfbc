"""The choice of precision follows measured times, is kept, and reaches training and generation apart."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models import generate, loading, precision, with_precision
from edgesafe_jax.models.precision import Precision, choose_precision, with_chosen

BFLOAT16, FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESAFE_CACHE", str(tmp_path))
    return tmp_path / "precision"


def seconds(training, decoding):
    """Times of a machine where bfloat16 takes these fractions of the time of float32."""
    return {
        "training": {"float32": 0.02, "bfloat16": 0.02 * training},
        "decoding": {"float32": 0.001, "bfloat16": 0.001 * decoding},
    }


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (seconds(0.5, 0.6), ("bfloat16", "bfloat16")),
        (seconds(1.3, 1.1), ("float32", "float32")),
        (seconds(0.5, 8.0), ("bfloat16", "float32")),
        (seconds(0.97, 0.94), ("float32", "bfloat16")),  # less than the noise decides nothing
    ],
)
def test_the_faster_dtype_is_chosen_for_each_use(times, expected, cache, monkeypatch, tiny_model, caplog):
    monkeypatch.setattr(precision, "_measure", lambda shapes: times)
    with caplog.at_level("INFO"):
        chosen = choose_precision(tiny_model.config)
    assert (chosen.training, chosen.decoding) == expected
    assert f"decoding {expected[1]} (1.0 ms in float32" in caplog.text


def test_a_machine_measures_each_size_once(cache, monkeypatch, tiny_model):
    seen = []
    monkeypatch.setattr(precision, "_measure", lambda shapes: seen.append(shapes) or seconds(0.5, 0.5))
    assert choose_precision(tiny_model.config) == choose_precision(tiny_model.config)
    assert len(seen) == 1
    choose_precision(dataclasses.replace(tiny_model.config, mlp_dim=48))
    choose_precision(dataclasses.replace(tiny_model.config, mlp_dim=10**6))
    assert [shapes["up"][1] for shapes in seen[1:]] == [48, precision.LARGEST]
    # Another compiler setting may have other kernels.
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    choose_precision(tiny_model.config)
    assert len(seen) == 4
    # A damaged file is made again.
    for file in cache.iterdir():
        file.write_text("{")
    choose_precision(tiny_model.config)
    assert len(seen) == 5


def test_both_dtypes_are_timed_in_both_uses(cache, tiny_model):
    choose_precision(tiny_model.config)
    (file,) = cache.iterdir()
    record = json.loads(file.read_text())
    for use in ("training", "decoding"):
        assert all(0 < record["seconds"][use][dtype] < 10 for dtype in ("float32", "bfloat16"))


def test_generation_has_a_precision_of_its_own(tiny_model):
    prompts, low = ["hello", "the user"], with_precision(tiny_model, matmul_dtype=BFLOAT16)
    mixed = with_chosen(tiny_model, Precision("float32", "bfloat16"))
    assert mixed.decoder == tiny_model.decoder
    assert mixed.for_decoding.decoder == low.decoder
    answers = generate(mixed, prompts, max_tokens=2, keep_hidden=True)
    assert (answers.hidden == generate(low, prompts, max_tokens=2, keep_hidden=True).hidden).all()
    other = with_chosen(tiny_model, Precision("bfloat16", "float32"))
    assert (other.matmul_dtype, other.for_decoding.decoder.factors_dtype) == (BFLOAT16, FLOAT32)
    same = with_chosen(tiny_model, Precision("bfloat16", "bfloat16"))
    assert same.for_decoding is same


def test_answers_in_float32_are_decoded_with_matrices_that_are_stored_outputs_first(tiny_model, monkeypatch):
    decoding = tiny_model.for_decoding
    kernel = decoding.params["layers"]["mlp"]["up"]
    np.testing.assert_array_equal(kernel.matrix, tiny_model.params["layers"]["mlp"]["up"].swapaxes(1, 2))
    assert decoding.for_decoding.params["layers"]["mlp"]["up"] is kernel
    prompts = ["hello", "the user", "a b"]
    found = generate(tiny_model, prompts, max_tokens=5, keep_hidden=True)
    plain = dataclasses.replace(tiny_model)
    plain.__dict__["for_decoding"] = plain
    expected = generate(plain, prompts, max_tokens=5, keep_hidden=True)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.hidden, expected.hidden, rtol=1e-4, atol=1e-4)
    # Large models are not kept twice.
    monkeypatch.setattr(loading, "LARGEST_COPY", 100)
    assert (large := dataclasses.replace(tiny_model)).for_decoding is large


def test_other_names_are_refused():
    with pytest.raises(ConfigError, match="decoding='int8': expected one of float32, bfloat16"):
        Precision("float32", "int8")
