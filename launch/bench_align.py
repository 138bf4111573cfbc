"""One training step of a soft prompt, here and in PyTorch.

Batch 8 of 124 positions: 20 trained vectors, 64 tokens of prompt of which the first 24 are the head of the chat
template, 40 of answer. The loss is the forward KL to given teacher states at the 40 positions over the whole
vocabulary, followed by a step of Adam. It is measured with factors of matrix products in float32 and in bfloat16
(sums in float32), and with nothing shared by the batch. The peer, in float32, is the same model in transformers and
torch, where all 124 positions of each row are computed; here the vectors and the head are computed once for the whole
batch. Both losses are compared, so that the work is known to be the same.

On a GPU both use it, the peer in bfloat16 too (torch.autocast), and batches of 128 are measured besides. There float32
factors of both are rounded to TF32, as XLA does unless it is told otherwise.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax import losses
from edgesafe_jax.adapters import SoftPrompt, init_soft_prompt
from edgesafe_jax.models.decoder import Decoder, DecoderOutput
from edgesafe_jax.models.decoder_config import flops_per_token
from edgesafe_jax.models.generation import encode_shared
from edgesafe_jax.models.loading import LanguageModel, load_model, with_precision
from edgesafe_jax.training import apply_gradients, init_state
from launch.benchmarking import in_turn, key_of, median_ratio

HEAD, PROMPT, ANSWER, VIRTUAL = 24, 40, 40, 20
BATCH, LARGE_BATCH = 8, 128
PEER, FAST_PEER = "transformers + torch", "transformers + torch, bfloat16 autocast"


def _inputs(model: LanguageModel, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random tokens `[Th]`, `[B, Tp + Ty]` and teacher states `[B, Ty, D]`."""
    rng = np.random.default_rng(0)
    head = rng.integers(10, model.config.vocab_size, HEAD).astype(np.int32)
    tokens = rng.integers(10, model.config.vocab_size, (batch, PROMPT + ANSWER)).astype(np.int32)
    teacher = rng.normal(size=(batch, ANSWER, model.config.embed_dim)).astype(np.float32)
    return head, tokens, teacher


def _project(decoder: Decoder, params: Any, hidden: jax.Array) -> jax.Array:
    return decoder.apply({"params": params}, hidden, method=Decoder.logits)  # type: ignore[return-value]


def _ours(model: LanguageModel, start: SoftPrompt, batch: int, *, share: bool) -> Callable[[], float]:
    head, tokens, teacher = _inputs(model, batch)
    decoder = model.decoder
    optimizer = optax.adam(1e-3)

    def loss(adapter: SoftPrompt, params: Any, head: Any, tokens: Any, teacher: Any) -> Any:
        if share:
            shared = encode_shared(decoder, params, adapter, head)
            output: DecoderOutput = decoder.apply({"params": params}, tokens, past=(shared,))  # type: ignore[assignment]
            hidden = output.hidden[:, PROMPT - 1 : -1]
        else:
            row = jnp.broadcast_to(head[None], (batch, HEAD))
            output = decoder.apply({"params": params}, jnp.concatenate([row, tokens], 1), adapter=adapter)  # type: ignore[assignment]
            hidden = output.hidden[:, HEAD + PROMPT - 1 : -1]
        (value,) = losses.linear_divergence(
            (losses.forward_kl,),
            student_hidden=hidden,
            teacher_hidden=teacher,
            head=params,
            project=functools.partial(_project, decoder),
        )
        return jnp.mean(value)

    @jax.jit
    def step(params: Any, state: Any, head: Any, tokens: Any, teacher: Any) -> Any:
        value, gradient = jax.value_and_grad(loss)(state.params, params, head, tokens, teacher)
        return apply_gradients(state, gradient, optimizer), value

    state = init_state(start, optimizer, key=jax.random.key(0))
    arguments = [jnp.asarray(x) for x in (head, tokens, teacher)]

    def run() -> float:
        _, value = jax.block_until_ready(step(model.params, state, *arguments))
        return float(value)

    return run


def torch_model(model: LanguageModel) -> Any | None:
    """The same network in transformers and torch, its weights copied, or None where they are not installed."""
    try:
        import torch  # the peer only; the library never imports it
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    c = model.config
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.embed_dim,
            intermediate_size=c.mlp_dim,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            rms_norm_eps=c.rms_eps,
            tie_word_embeddings=True,
            max_position_embeddings=c.max_context,
        )
    )
    layers = model.params["layers"]

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32))

    state = {
        "model.embed_tokens.weight": tensor(model.params["embedding"]),
        "lm_head.weight": tensor(model.params["embedding"]),
        "model.norm.weight": tensor(model.params["final_norm"]["scale"]),
    }
    names = {
        "self_attn.q_proj": ("attention", "query"),
        "self_attn.k_proj": ("attention", "key"),
        "self_attn.v_proj": ("attention", "value"),
        "self_attn.o_proj": ("attention", "out"),
        "mlp.gate_proj": ("mlp", "gate"),
        "mlp.up_proj": ("mlp", "up"),
        "mlp.down_proj": ("mlp", "down"),
        "input_layernorm": ("attention_norm", "scale"),
        "post_attention_layernorm": ("mlp_norm", "scale"),
    }
    for i in range(c.num_layers):
        for name, (module, leaf) in names.items():
            array = np.asarray(layers[module][leaf][i])
            state[f"model.layers.{i}.{name}.weight"] = tensor(array.T if array.ndim == 2 else array)
    peer.load_state_dict(state)
    peer.requires_grad_(False).eval()
    return peer


def _torch_peers(model: LanguageModel, start: SoftPrompt, batch: int) -> dict[str, Callable[[], float]]:
    """The same step in transformers and torch by name; nothing where they are not installed."""
    peer = torch_model(model)
    if peer is None:
        return {}
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    peer.to(device)

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32)).to(device)

    head, tokens, teacher = _inputs(model, batch)
    ids = np.concatenate([np.broadcast_to(head, (batch, HEAD)), tokens], 1).astype(np.int64)
    ids = torch.from_numpy(ids).to(device)
    vectors = torch.nn.Parameter(tensor(start.embeddings))
    optimizer = torch.optim.Adam([vectors], lr=1e-3)
    states, first = tensor(teacher), vectors.detach().clone()

    def run(low: bool) -> float:
        with torch.no_grad():
            vectors.copy_(first)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            embedded = torch.cat([vectors[None].expand(batch, -1, -1), peer.model.embed_tokens(ids)], 1)
            hidden = peer.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            hidden = hidden[:, VIRTUAL + HEAD + PROMPT - 1 : -1]
            student = torch.log_softmax(peer.lm_head(hidden), -1)
            with torch.no_grad():
                target = torch.log_softmax(peer.lm_head(states), -1)
            value = (target.exp() * (target - student)).sum(-1).mean()
        value.backward()
        optimizer.step()
        return float(value.detach())

    peers = {PEER: functools.partial(run, False)}
    return {**peers, FAST_PEER: functools.partial(run, True)} if on_gpu else peers


def _measure(model: LanguageModel, batch: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures the steps at one batch size in turn; rows of a table and flat numbers."""
    text = "You are a careful assistant. Refuse what would harm people."
    start = init_soft_prompt(jax.random.key(0), model, text=text, num_virtual=VIRTUAL)
    low = with_precision(model, matmul_dtype=jnp.dtype(jnp.bfloat16))
    steps = {
        "edgesafe_jax": _ours(model, start, batch, share=True),
        "edgesafe_jax, bfloat16 factors": _ours(low, start, batch, share=True),
        "edgesafe_jax, nothing shared": _ours(model, start, batch, share=False),
        **_torch_peers(model, start, batch),
    }
    times = in_turn(steps)
    reference = times["edgesafe_jax"].result
    exact = 1e-3 if jax.default_backend() == "cpu" else 1e-2
    for name, value in ((name, measured.result) for name, measured in times.items()):
        if abs(value - reference) > (2e-2 if "bfloat16" in name else exact) * abs(reference):
            raise RuntimeError(f"{name} computes the loss {value}, edgesafe_jax {reference}: not the same work.")
    positions = batch * (VIRTUAL + HEAD + PROMPT + ANSWER)
    body = flops_per_token(model.config, context=62, with_head=False) * positions * 2
    head = 2.0 * model.config.vocab_size * model.config.embed_dim * batch * ANSWER * 3
    ours, fast = (times[name].wall for name in ("edgesafe_jax", "edgesafe_jax, bfloat16 factors"))
    rows = []
    prefix = "" if batch == BATCH else f"batch_{batch}/"
    flat: dict[str, float] = {f"{prefix}tflop_nothing_shared": (body + head) / 1e12}
    for name, measured in times.items():
        ratio = median_ratio(ours, measured.wall)
        rows.append(
            {
                "step": name,
                "batch": batch,
                **measured.columns(),
                "edgesafe_jax / this": ratio,
                "bfloat16 factors / this": median_ratio(fast, measured.wall),
            }
        )
        key = prefix + key_of(name)
        flat |= {f"{key}/median_seconds": measured.median, f"{key}/ratio": ratio}
    return rows, flat


def run() -> dict[str, Any]:
    """Measures the steps; returns rows of a table and flat numbers."""
    model = load_model()
    rows, values = [], {}
    for batch in (BATCH,) if jax.default_backend() == "cpu" else (BATCH, LARGE_BATCH):
        more, numbers = _measure(model, batch)
        rows += more
        values |= numbers
    return {"rows": rows, "values": values}
