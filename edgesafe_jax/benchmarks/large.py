"""Distillation step and decoding at the shapes of a 1B model, as fractions of what the device can do.

The weights are random, in bfloat16, at the sizes of Llama-3.2-1B (16 layers, D 2048, F 8192, 32 / 8 heads of 64,
vocabulary 128256): the time of a dense model does not depend on their values. A step is the forward KL to given teacher
states at the last quarter of each row, full vocabulary, with the gradient of a soft prompt of 46 vectors. Its model
FLOPs are two per weight and position forward and two backward (a frozen weight has no gradient of its own), the
attention products, and three products with the output head. They are divided by the time and by the rate of products of
large square bfloat16 matrices measured in the same run; MFU divides by the data sheet's rate instead. Decoding is
greedy; the bytes of a step are the weights and the keys and values that exist, divided by the time and by the rate at
which the device copies a large array. On a CPU the sizes are small: that checks the suite and measures nothing.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import losses
from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.benchmarks.harness import on_accelerator, same_columns
from edgesafe_jax.benchmarks.rates import copy_rate, median_seconds, product_rate
from edgesafe_jax.models import decoding, generation
from edgesafe_jax.models.decoder import Decoder, DecoderOutput
from edgesafe_jax.models.decoder_config import DecoderConfig, flops_per_token
from edgesafe_jax.safety.teacher import project
from edgesafe_jax.typing import Array

CONFIG = DecoderConfig(
    vocab_size=128_256,
    num_layers=16,
    embed_dim=2048,
    mlp_dim=8192,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    rope_base=500_000.0,
    max_context=8192,
)
VIRTUAL, HEAD = 46, 24
_NO_END = decoding.TokenIds(eos=(-1,), pad=0)

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16 products by the data sheet, by a part of the device's name."""


def make_params(decoder: Decoder, config: DecoderConfig) -> Any:
    """Random bfloat16 parameters, made on the device."""

    @jax.jit
    def init(key: jax.Array) -> Any:
        params = decoder.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)

    return init(jax.random.key(0))


def step_flops(config: DecoderConfig, *, batch: int, prompt: int, answer: int) -> float:
    """Model FLOPs of a distillation step; what all rows share is counted once."""
    shared, row = VIRTUAL + HEAD, prompt + answer
    body = 2 * batch * row * flops_per_token(config, context=shared + row // 2, with_head=False)
    body += 2 * shared * flops_per_token(config, context=shared // 2, with_head=False)
    return body + 3 * 2.0 * config.vocab_size * config.embed_dim * batch * answer


def make_step(decoder: Decoder, num_answer: int) -> Callable[..., Any]:
    """Loss and gradient of a soft prompt, jitted."""

    def loss(adapter: SoftPrompt, params: Any, head: Any, tokens: Any, teacher: Any) -> Any:
        shared = generation.encode_shared(decoder, params, adapter, head)
        output: DecoderOutput = decoder.apply({"params": params}, tokens, past=(shared,))  # type: ignore[assignment]
        (value,) = losses.linear_divergence(
            (losses.forward_kl,),
            student_hidden=output.hidden[:, -num_answer - 1 : -1],
            teacher_hidden=teacher,
            head=params,
            project=functools.partial(project, decoder),
        )
        return jnp.mean(value)

    return jax.jit(jax.value_and_grad(loss))


def measure_step(config: DecoderConfig, *, batch: int, prompt: int, answer: int, dtype: Any) -> float:
    """Seconds of a step."""
    decoder = Decoder(config, dtype=jnp.dtype(dtype), matmul_dtype=jnp.dtype(jnp.bfloat16))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(10, config.vocab_size, (batch, prompt + answer)), jnp.int32)
    head = jnp.asarray(rng.integers(10, config.vocab_size, HEAD), jnp.int32)
    teacher = jnp.asarray(rng.normal(size=(batch, answer, config.embed_dim)), dtype)
    adapter = SoftPrompt(jnp.asarray(rng.normal(size=(VIRTUAL, config.embed_dim)) * 0.02, jnp.float32))
    return median_seconds(make_step(decoder, answer), adapter, make_params(decoder, config), head, tokens, teacher)


def measure_decoding(config: DecoderConfig, *, batch: int, prompt: int, num_steps: int, dtype: Any) -> float:
    """Seconds of one decoding step: the difference of a long and a short answer over their difference in steps."""
    decoder = Decoder(config, dtype=jnp.dtype(dtype), matmul_dtype=jnp.dtype(jnp.bfloat16))
    params = make_params(decoder, config)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(10, config.vocab_size, (batch, prompt)), jnp.int32)
    head = jnp.asarray(rng.integers(10, config.vocab_size, HEAD), jnp.int32)
    shared = generation.encode_shared_once(decoder, params, None, head)
    prompts = decoding.Prompts(
        tokens=tokens,
        where=jnp.ones((batch, prompt), bool),
        forced=jnp.zeros((batch, 0), jnp.int32),
        num_forced=jnp.zeros((batch,), jnp.int32),
        keys=jax.random.split(jax.random.key(0), batch),
    )
    common = (decoder, params, {}, shared)

    def answer(steps: int) -> Array:
        slots = decoding.empty_slots(
            decoder, batch, prompt + steps, max_tokens=steps, num_forced=0, keep_hidden=False, pad_id=0
        )
        places = np.arange(batch, dtype=np.int32)
        slots = decoding.fill(*common, slots, prompts, places, None, ids=_NO_END)
        return decoding.decode(*common, slots, np.int32(batch), None, ids=_NO_END).answers

    def seconds(steps: int) -> float:
        return median_seconds(answer, steps)

    return (seconds(num_steps) - seconds(num_steps // 4)) / (num_steps - num_steps // 4)


def decode_bytes(config: DecoderConfig, *, batch: int, prompt: int, num_steps: int, itemsize: int) -> float:
    """Bytes that a decoding step must read: the weights in bfloat16 and the mean of the keys and values that exist."""
    weights = 2.0 * (flops_per_token(config, context=0) / 2)
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * itemsize
    return weights + per_position * (HEAD + batch * (prompt + num_steps * 5 / 8))


def run() -> dict[str, Any]:
    """Measures step and decoding; returns rows of a table and flat numbers."""
    small = not on_accelerator()
    config = dataclasses.replace(CONFIG, num_layers=2, embed_dim=256, mlp_dim=512, vocab_size=4096) if small else CONFIG
    peak = next((value for part, value in PEAKS.items() if part in jax.devices()[0].device_kind), None)
    flops, copied = product_rate(jnp.bfloat16, 512 if small else 8192), copy_rate(1 << (26 if small else 32))
    rows: list[dict[str, Any]] = [{"what": "large products", "TFLOP/s": flops / 1e12}]
    rows.append({"what": "copy", "GB/s": copied / 1e9})
    values = {"rates/tflops": flops / 1e12, "rates/gbytes_per_second": copied / 1e9}
    prompt, answer = (48, 16) if small else (384, 128)
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        for batch in (2,) if small else (8, 32):
            seconds = measure_step(config, batch=batch, prompt=prompt, answer=answer, dtype=dtype)
            rate = step_flops(config, batch=batch, prompt=prompt, answer=answer) / seconds
            rows.append(
                {
                    "what": f"step, {name} activations",
                    "batch": batch,
                    "ms": seconds * 1e3,
                    "TFLOP/s": rate / 1e12,
                    "fraction of the device's rate": rate / flops,
                    "MFU": rate / peak if peak else None,
                }
            )
            values |= {f"step/{name}/{batch}/mfu": rate / peak} if peak else {}
            values |= {f"step/{name}/{batch}/seconds": seconds, f"step/{name}/{batch}/fraction": rate / flops}
        for batch in (1, 2) if small else (1, 32, 128):
            sizes = {"batch": batch, "prompt": 16 if small else 128, "num_steps": 16 if small else 128}
            seconds = measure_decoding(config, dtype=dtype, **sizes)
            read = decode_bytes(config, itemsize=jnp.dtype(dtype).itemsize, **sizes) / seconds
            rows.append(
                {
                    "what": f"decoding, {name} activations",
                    "batch": batch,
                    "ms": seconds * 1e3,
                    "tokens/s": batch / seconds,
                    "GB/s": read / 1e9,
                    "fraction of the device's rate": read / copied,
                }
            )
            values |= {f"decode/{name}/{batch}/tokens_per_second": batch / seconds}
            values |= {f"decode/{name}/{batch}/fraction": read / copied}
    return {"rows": same_columns(rows), "values": values}
