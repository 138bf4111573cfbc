"""One training step of a soft prompt, here and in other libraries.

Batch 8 of 124 positions: 20 trained vectors, 64 tokens of prompt of which the first 24 are the head of the chat
template, 40 of answer. The loss is the forward KL to given teacher states at the 40 positions over the whole
vocabulary, followed by a step of Adam. It is measured with factors of matrix products in float32 and in bfloat16
(sums in float32), and with nothing shared by the batch. The peer, in float32, is the same model in transformers and
torch, where all 124 positions of each row are computed; here the vectors and the head are computed once for the whole
batch. Both losses are compared, so that the work is known to be the same.

Beside each of our steps stands its floor: the operations of its matrix products, forward and by the inputs (a frozen
matrix has no gradient), at the rate that products of large square matrices have in the same dtype, measured in the same
run. What is shared is counted once, and the teacher's product with the head is one of three.

On a GPU both use it, the peer in bfloat16 too (torch.autocast), and batches of 128 are measured besides. There float32
factors of both are rounded to TF32, as XLA does unless it is told otherwise.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edgesafe_jax import losses
from edgesafe_jax.adapters import SoftPrompt, init_soft_prompt
from edgesafe_jax.benchmarks.harness import in_turn, key_of, ratio_interval, same_columns
from edgesafe_jax.benchmarks.rates import square_products
from edgesafe_jax.models.decoder import DecoderOutput
from edgesafe_jax.models.decoder_config import flops_per_token
from edgesafe_jax.models.generation import encode_shared
from edgesafe_jax.models.loading import LanguageModel, load_model, with_precision
from edgesafe_jax.safety.teacher import project
from edgesafe_jax.training import apply_gradients, init_state

HEAD, PROMPT, ANSWER, VIRTUAL = 24, 40, 40, 20
BATCH, LARGE_BATCH = 8, 128
Peers: TypeAlias = Callable[[LanguageModel, SoftPrompt, int], Mapping[str, Callable[[], float]]]


def make_inputs(model: LanguageModel, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random tokens `[Th]`, `[B, Tp + Ty]` and teacher states `[B, Ty, D]`."""
    rng = np.random.default_rng(0)
    head = rng.integers(10, model.config.vocab_size, HEAD).astype(np.int32)
    tokens = rng.integers(10, model.config.vocab_size, (batch, PROMPT + ANSWER)).astype(np.int32)
    teacher = rng.normal(size=(batch, ANSWER, model.config.embed_dim)).astype(np.float32)
    return head, tokens, teacher


def _ours(model: LanguageModel, start: SoftPrompt, batch: int, *, share: bool) -> Callable[[], float]:
    head, tokens, teacher = make_inputs(model, batch)
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
            project=functools.partial(project, decoder),
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


def step_flops(model: LanguageModel, batch: int, *, share: bool) -> float:
    """Operations of a step's matrix products; the virtual positions and the head are computed once or in every row."""
    shared, own = VIRTUAL + HEAD, PROMPT + ANSWER
    positions = shared + batch * own if share else batch * (shared + own)
    body = 2 * flops_per_token(model.config, context=(shared + own) // 2, with_head=False) * positions
    return body + 3 * 2.0 * model.config.vocab_size * model.config.embed_dim * batch * ANSWER


def _measure(model: LanguageModel, batch: int, peers: Peers | None) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Measures the steps at one batch size in turn; rows of a table and flat numbers."""
    text = "You are a careful assistant. Refuse what would harm people."
    start = init_soft_prompt(jax.random.key(0), model, text=text, num_virtual=VIRTUAL)
    low = with_precision(model, matmul_dtype=jnp.dtype(jnp.bfloat16))
    steps = {
        "edgesafe_jax": _ours(model, start, batch, share=True),
        "edgesafe_jax, bfloat16 factors": _ours(low, start, batch, share=True),
        "edgesafe_jax, nothing shared": _ours(model, start, batch, share=False),
        **({} if peers is None else peers(model, start, batch)),
    }
    size = 1024 if jax.default_backend() == "cpu" else 8192
    products = {dtype: square_products(dtype, size) for dtype in (jnp.float32, jnp.bfloat16)}
    everything = in_turn(steps | {dtype: multiply for dtype, (multiply, _) in products.items()})
    rates = {dtype: flops / everything[dtype].median for dtype, (_, flops) in products.items()}
    times = {name: everything[name] for name in steps}
    reference = times["edgesafe_jax"].result
    exact = 1e-3 if jax.default_backend() == "cpu" else 1e-2
    for name, value in ((name, measured.result) for name, measured in times.items()):
        if abs(value - reference) > (2e-2 if "bfloat16" in name else exact) * abs(reference):
            raise RuntimeError(f"{name} computes the loss {value}, edgesafe_jax {reference}: not the same work.")
    parts = {"edgesafe_jax": times["edgesafe_jax"].wall}
    parts["bfloat16 factors"] = times["edgesafe_jax, bfloat16 factors"].wall
    rows = []
    prefix = "" if batch == BATCH else f"batch_{batch}/"
    flat = {f"{prefix}tflop_nothing_shared": step_flops(model, batch, share=False) / 1e12}
    flat |= {f"{prefix}rates/{jnp.dtype(dtype).name}_gflops": rate / 1e9 for dtype, rate in rates.items()}
    for name, measured in times.items():
        key = prefix + key_of(name)
        ratios = {part: ratio_interval(times_of, measured.wall) for part, times_of in parts.items()}
        row = {"step": name, "batch": batch, **measured.columns()}
        row |= {f"{part} / this": ratio.estimate for part, ratio in ratios.items()}
        flat[f"{key}/median_seconds"] = measured.median
        flat |= ratios["edgesafe_jax"].named(f"{key}/ratio")
        flat |= ratios["bfloat16 factors"].named(f"{key}/bfloat16_ratio")
        if name.startswith("edgesafe_jax"):
            flops = step_flops(model, batch, share="nothing shared" not in name)
            floor = flops / rates[jnp.bfloat16 if "bfloat16" in name else jnp.float32]
            row |= {"floor (s)": floor, "floor / this": floor / measured.median}
            flat |= {f"{key}/floor_seconds": floor, f"{key}/fraction_of_rate": floor / measured.median}
        rows.append(row)
    return rows, flat


def run(peers: Peers | None = None) -> dict[str, Any]:
    """Measures the steps.

    Args:
      peers: makes the same step in other libraries, from model, starting vectors and batch size to functions that
        return the loss, by name; None measures this library alone.

    Returns:
      Rows of a table and flat numbers.
    """
    model = load_model()
    rows, values = [], {}
    for batch in (BATCH,) if jax.default_backend() == "cpu" else (BATCH, LARGE_BATCH):
        more, numbers = _measure(model, batch, peers)
        rows += more
        values |= numbers
    return {"rows": same_columns(rows), "values": values}
