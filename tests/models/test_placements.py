"""Where virtual positions stand among the ids of a chat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edgesafe_jax.adapters import SoftPrompt, make_adapter
from edgesafe_jax.models.generation import encode_prompts
from edgesafe_jax.models.placements import PLACEMENTS, head_of, insert_virtual
from edgesafe_jax.models.templates import TokenizerError
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model():
    model = make_tiny_model(num_layers=1)
    model.tokenizer.bos_token = "<|im_start|>"
    return model


def prompt_at(placement, num=3):
    return SoftPrompt(jnp.zeros((num, 16)), placement)


def test_ids_of_each_placement(model):
    head = model.tokenizer.chat_parts.head
    plain, virtual = encode_prompts(model, ["hello"], max_tokens=1)[0], [-1, -2, -3]
    for placement in PLACEMENTS:
        adapter = prompt_at(placement)
        [row] = encode_prompts(model, ["hello"], max_tokens=1, adapter=adapter)
        assert row == (plain + virtual if placement == "before_answer" else plain)
        found = head_of(model, adapter).tolist()
        if placement == "after_bos":
            assert found == [head[0], *virtual, *head[1:]]
        elif placement != "system":
            assert tuple(found) == head


def test_the_system_slot_is_where_a_system_message_stands(model):
    text = "in the hello"
    ids = model.tokenizer.encode(text)
    found = head_of(model, prompt_at("system", len(ids))).tolist()
    row = encode_prompts(model, ["w us"], max_tokens=1)[0]
    messages = [{"role": "system", "content": text}, {"role": "user", "content": "w us"}]
    whole = model.tokenizer.encode(model.tokenizer.render_chat(messages), control=True)
    assert [ids[-1 - token] if token < 0 else token for token in found] + row == whole


def test_virtual_ids_are_inserted_behind_each_prompt():
    tokens = jnp.array([[5, 6, 7, 8, 0], [4, 3, 2, 1, 9]], jnp.int32)
    where = jnp.array([[True, True, True, True, False], [True] * 5])
    found, exists = insert_virtual(tokens, where, jnp.array([1, 4], jnp.int32), 2)
    np.testing.assert_array_equal(found, [[5, 6, -1, -2, 7, 8, 0], [4, 3, 2, 1, 9, -1, -2]])
    np.testing.assert_array_equal(exists, [[True] * 6 + [False], [True] * 7])


def test_places_that_a_template_does_not_have_are_refused(tiny_model, monkeypatch):
    key = jax.random.key(0)
    with pytest.raises(TokenizerError, match="do not begin with a token for the beginning of a text"):
        make_adapter(key, "soft_prompt", tiny_model, text="hello", placement="after_bos")
    with pytest.raises(ValueError, match="placement='behind': expected one of after_bos, before_answer"):
        make_adapter(key, "soft_prompt", tiny_model, text="hello", placement="behind")
    other = make_tiny_model(num_layers=1)
    other.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(TokenizerError, match="takes no system message"):
        make_adapter(key, "soft_prompt", other, text="hello", placement="system")
