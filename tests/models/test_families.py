"""Every decoder family against transformers: logits, cached generation and the gradients of a soft prompt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.families import FAMILIES
from edgesafe_jax.models.generation import generate
from edgesafe_jax.models.loading import LoadingError, load_model
from tests.models.networks import NETWORKS, WINDOW, save_random_network

LENGTH, NUM_VIRTUAL = 20, 4
CONTEXTS = {"dynamic_rope": LENGTH + NUM_VIRTUAL, "longrope": 64}
"""Of the models whose frequencies depend on it: beyond the context of their first training stage."""
CACHED = ("llama3_rope", "mistral", "gemma2", "gemma3", "phi3", "longrope", "smollm3", "olmo2", "gpt2")
PROMPT = "hello, the user in the wall of it"

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """From the name of a network to itself, to its folder, and to the model that is loaded from there."""

    @functools.cache
    def pair(name):
        path = tmp_path_factory.mktemp(name)
        network = save_random_network(path, name)
        return network, path, load_model(str(path), max_context=CONTEXTS.get(name))

    return pair


@functools.partial(jax.jit, static_argnames="decoder")
def logits_and_gradient(decoder, params, virtual, tokens, where, weight):
    """Logits behind a soft prompt, and the gradient of their weighted sum by it."""

    def value(virtual):
        variables = {"params": params}
        hidden = decoder.apply(variables, tokens, where=where, adapter=SoftPrompt(virtual)).hidden
        logits = decoder.apply(variables, hidden, method=Decoder.logits)
        return jnp.sum(logits * weight), logits

    gradient, logits = jax.grad(value, has_aux=True)(virtual)
    return logits, gradient


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_equal_those_of_transformers(models, name):
    """A soft prompt in front of two rows, of which the second is padded on the left; sequences beyond the window."""
    torch = pytest.importorskip("torch")
    network, _, model = models(name)
    assert LENGTH > WINDOW + NUM_VIRTUAL
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, model.config.vocab_size, (2, LENGTH))
    pad = 0 if name in ("dynamic_rope", "longrope") else 5  # these rotate by the length of the longest row
    where = np.ones((2, LENGTH), bool)
    where[1, :pad] = False
    virtual = rng.normal(size=(NUM_VIRTUAL, model.config.embed_dim)).astype(np.float32)
    weight = rng.normal(size=(2, LENGTH, model.config.vocab_size)).astype(np.float32) * where[..., None] / 100

    prompt = torch.tensor(virtual, requires_grad=True)
    # Gemma scales what it looks up; Granite scales all embeddings.
    scale = model.config.embedding_scale if name.startswith("gemma") else 1.0
    rows = []
    for row in range(2):  # padding in front of the soft prompt
        embedded = network.get_input_embeddings()(torch.tensor(tokens[row, ~where[row]]))
        rows.append(
            torch.cat([embedded, prompt * scale, network.get_input_embeddings()(torch.tensor(tokens[row, where[row]]))])
        )
    mask = np.ones((2, NUM_VIRTUAL + LENGTH), np.int64)
    mask[1, :pad] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    logits = network(
        inputs_embeds=torch.stack(rows), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)
    ).logits[:, NUM_VIRTUAL:]
    (logits * torch.tensor(weight)).sum().backward()

    found, gradient = logits_and_gradient(
        model.decoder, model.params, jnp.asarray(virtual), jnp.asarray(tokens, jnp.int32), jnp.asarray(where), weight
    )
    assert prompt.grad is not None
    np.testing.assert_allclose(np.asarray(found)[where], logits.detach().numpy()[where], atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(gradient, prompt.grad.numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CACHED)
def test_cached_generation_equals_that_of_transformers(models, name):
    torch = pytest.importorskip("torch")
    network, _, model = models(name)
    head, rows = model.tokenizer.chat_parts.head, model.tokenizer.encode_prompts([PROMPT])
    ids = [*head, *rows[0]]
    answer = generate(model, [PROMPT, "hello"], max_tokens=8, batch_size=2, keep_hidden=True)
    expected = network.generate(
        torch.tensor([ids]),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        attention_mask=torch.ones(1, len(ids)),
        return_dict_in_generate=True,
        output_logits=True,
    )
    num = len(answer.tokens[0])
    assert num > 2
    assert answer.tokens[0] == expected.sequences[0, len(ids) : len(ids) + num].tolist()
    assert answer.hidden is not None
    logits = model.decoder.apply({"params": model.params}, answer.hidden[0, :num], method=Decoder.logits)
    np.testing.assert_allclose(logits, torch.cat(expected.logits[:num]).numpy(), atol=1e-4, rtol=1e-4)
    assert len(ids) > 4 * WINDOW


def test_every_family_has_a_network(models):
    saved = {name.lower() for name, _ in NETWORKS.values()}
    assert {name.replace("_", "") for name in FAMILIES} == saved


def test_a_context_of_ones_own(models):
    _, path, model = models("longrope")
    short = load_model(str(path))
    assert (short.config.max_context, model.config.max_context) == (16, 64)
    assert short.config.rope_divisors == (1.0, 1.1, 1.2)
    assert model.config.rope_divisors == (1.5, 2.0, 4.0)
    assert short.config.rope_magnitude > 1
    with pytest.raises(ConfigError, match="max_context=512: expected 1 to 256"):
        load_model(str(path), max_context=512)
    _, path, model = models("gpt2")
    short = load_model(str(path), max_context=8)
    np.testing.assert_array_equal(short.params["positions"], model.params["positions"][:8])
    with pytest.raises(ConfigError, match="max_context=0: expected 1 to 256"):
        load_model(str(path), max_context=0)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("qwen3", "model.layers.1.self_attn.q_norm.weight", "tensors are missing"),
        ("gemma3", "model.layers.0.pre_feedforward_layernorm.weight", "tensors are missing"),
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight", r"shape \(3, 3\); expected \(64, 32\)"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", r"shape \(3, 3\); expected \(32, 96\)"),
        ("olmo2", "model.layers.0.input_layernorm.weight", "unexpected tensors"),
    ],
)
def test_a_family_with_other_tensors_is_refused(models, tmp_path, name, tensor, message):
    _, path, _ = models(name)
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    if "missing" in message:
        del tensors[tensor]
    else:
        tensors[tensor] = np.zeros((3, 3), np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(LoadingError, match=f"{tensor}.*{message}|{message}.*{tensor}"):
        load_model(str(tmp_path))


def test_the_body_of_gpt2_alone(models, tmp_path):
    """Early files name the tensors without their module, and have the causal masks among them."""
    _, path, model = models("gpt2")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    body = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    body["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    safetensors.numpy.save_file(body, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_model(str(tmp_path)).params, model.params)
