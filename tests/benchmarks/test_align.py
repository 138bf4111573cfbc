"""The operations of a distillation step; nothing is timed here."""

import jax
import pytest

from edgesafe_jax.benchmarks import align, rates


def test_operations_of_a_step(tiny_model):
    c = tiny_model.config
    matrices = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads) + 3 * c.embed_dim * c.mlp_dim
    attention = 2 * 2 * c.num_heads * c.head_dim * 62  # scores and mixing, half of the 124 positions
    position = c.num_layers * (2 * matrices + attention)
    head = 2 * c.embed_dim * c.vocab_size * 40
    assert align.step_flops(tiny_model, 8, share=False) == pytest.approx(2 * 8 * 124 * position + 3 * 8 * head)
    # Twenty vectors and 24 tokens are the same in all rows.
    assert align.step_flops(tiny_model, 8, share=True) == pytest.approx(2 * (8 * 80 + 44) * position + 3 * 8 * head)
    assert align.step_flops(tiny_model, 1, share=True) == align.step_flops(tiny_model, 1, share=False)


def test_square_products_are_as_many_as_said():
    run, flops = rates.square_products("float32", 8)
    assert flops == 2 * 8**3 * rates.REPEATS
    assert run().shape == (8, 8)
    assert jax.numpy.isfinite(run()).all()
