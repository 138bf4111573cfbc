"""The base model's own representation of prompts: what gates and contrastive directions are made from."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.errors import ConfigError, Range, check_counts
from edgesafe_jax.models.chats import Chat
from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, truncate
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.models.generation import (
    PROMPT_BUCKETS,
    bucket_length,
    encode_rows,
    encode_shared_once,
    pad_tokens,
)
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Array, Params, ProgressFn


def check_layers(config: DecoderConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """Returns layer numbers, counted from 0, in rising order.

    Raises:
      ConfigError: none, one twice, or one that the decoder does not have.
    """
    last = config.num_layers - 1
    if not isinstance(layers, (list, tuple)) or not layers:
        raise ConfigError(f"layers={layers!r}: expected some numbers from 0 to {last}.")
    for layer in layers:
        if layer not in Range(0, last, integer=True):
            raise ConfigError(f"layers={tuple(layers)}: layer {layer!r} does not exist, expected 0 to {last}.")
    if len(set(layers)) < len(layers):
        raise ConfigError(f"layers={tuple(layers)} names a layer twice: expected different ones.")
    return tuple(sorted(int(layer) for layer in layers))


@functools.partial(jax.jit, static_argnames=("decoder", "layers"))
def _last_states(
    decoder: Decoder, params: Params, shared: KeyValues, tokens: Array, where: Array, *, layers: tuple[int, ...]
) -> Array:
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,)
    )
    last = jnp.sum(where, axis=1, dtype=jnp.int32) - 1
    states = output.layer_hidden[jnp.array(layers, jnp.int32)]
    return jnp.take_along_axis(states, last[None, :, None, None], axis=2)[:, :, 0].swapaxes(0, 1)


def prompt_states(
    model: LanguageModel,
    prompts: Sequence[str | Chat],
    *,
    layers: Sequence[int],
    batch_size: int = 32,
    on_batch: ProgressFn | None = None,
) -> np.ndarray:
    """Hidden states of the bare model at the last position of chats, where the answer begins.

    Only the layers up to the last one that is asked for are computed.

    Args:
      model: the frozen language model.
      prompts: N user texts, or chats of several turns.
      layers: M numbers of layers, counted from 0; the states are those of the residual stream after them.
      batch_size: rows that run at once.
      on_batch: called with (rows done, rows in total).

    Returns:
      `[N, M, D]` float32.

    Raises:
      ConfigError: a layer that does not exist, or a count below 1.
      NonFiniteError: the model computed NaN or infinity.
    """
    check_counts(batch_size=batch_size)
    layers = check_layers(model.config, layers)
    config, params = truncate(model.config, model.params, layers[-1] + 1)
    decoder = Decoder(config, model.dtype, model.matmul_dtype)
    head, rows = encode_rows(model, prompts, max_tokens=1)
    shared = encode_shared_once(decoder, params, None, jnp.array(head, jnp.int32))
    states = np.zeros((len(rows), len(layers), config.embed_dim), np.float32)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + [chosen[-1]] * (min(batch_size, 1 << (len(chosen) - 1).bit_length()) - len(chosen))
        length = bucket_length(max(len(rows[i]) for i in chosen), PROMPT_BUCKETS)
        tokens, where = pad_tokens([rows[i] for i in filled], pad_id=model.tokenizer.pad_id, length=length)
        found = _last_states(decoder, params, shared, tokens, where, layers=layers)
        states[chosen] = np.asarray(found, np.float32)[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    check_finite(states, "The hidden states of prompt", sources=(("parameter", model.params),))
    return states
