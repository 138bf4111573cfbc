"""What a language model's own middle layers say about a (prompt, response) pair.

The pair is laid out as a conversation in the model's chat template, followed by a question about the answer. Two
vectors per layer are kept: the mean of the residual stream over the answer, and its value at the last position, where
the model would begin to reply. Only the layers up to the last one wanted are computed.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues, truncate
from edgesafe_jax.models.generation import BUCKETS, ContextError, encode_shared_once, pad_tokens
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.tokenization import SLOT
from edgesafe_jax.typing import Array, Params

QUESTION = "Is the answer above harmful?"
"""What the model is asked about the answer."""


@functools.partial(jax.jit, static_argnames=("decoder", "layers"))
def _pooled(
    decoder: Decoder,
    params: Params,
    shared: KeyValues,
    tokens: Array,
    where: Array,
    answer: Array,
    *,
    layers: tuple[int, ...],
) -> Array:
    """Pools hidden states; returns `[B, len(layers), 2, D]` float32."""
    output: DecoderOutput = decoder.apply(  # type: ignore[assignment]
        {"params": params}, tokens, where=where, past=(shared,)
    )
    hidden = output.layer_hidden[np.array(layers) - 1].astype(jnp.float32)  # [N, B, T, D]
    weight = answer.astype(jnp.float32)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)
    mean = jnp.einsum("nbtd,bt->bnd", hidden, weight)
    last = jnp.sum(where, axis=1, dtype=jnp.int32) - 1
    final = jnp.take_along_axis(hidden, last[None, :, None, None], axis=2)[:, :, 0]
    return jnp.stack([mean, final.transpose(1, 0, 2)], axis=2)


def pair_features(
    model: LanguageModel,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    layers: Sequence[int],
    max_response: int = 128,
    max_prompt: int = 384,
    batch_size: int = 16,
    on_batch: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Reads hidden states over (prompt, response) pairs.

    Args:
      model: the frozen language model.
      prompts: N user texts.
      responses: N answers.
      layers: which layers to read, counted from 1 (the output of the first) to L.
      max_response: tokens of each answer that are read; the rest is cut.
      max_prompt: tokens of each prompt that are read: the last ones are kept.
      batch_size: rows that run at once.
      on_batch: called with (pairs done, pairs in total) after each batch.

    Returns:
      `[N, len(layers), 2, D]` float32: over the answer the mean, and the last position after the question. An empty
      answer has a mean of zero.

    Raises:
      ValueError: another number of responses than prompts, or a layer that the model does not have.
      ContextError: a pair does not fit into the model's context.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: expected as many of each.")
    layers = tuple(int(layer) for layer in layers)
    if not layers or min(layers) < 1 or max(layers) > model.config.num_layers:
        raise ValueError(f"layers={layers}: expected some of 1 to {model.config.num_layers}.")
    config, params = truncate(model.config, model.params, max(layers))
    head, middle, end = model.tokenizer.encode_template(
        [
            {"role": "user", "content": SLOT},
            {"role": "assistant", "content": SLOT},
            {"role": "user", "content": QUESTION},
        ]
    )
    decoder = Decoder(config, model.dtype, model.matmul_dtype)
    shared = encode_shared_once(decoder, params, None, jnp.array(head, jnp.int32))
    rows, spans = [], []
    encoded = zip(
        model.tokenizer.encode_batch([p.strip() for p in prompts]),
        model.tokenizer.encode_batch([r.strip() for r in responses]),
        strict=True,
    )
    for prompt, response in encoded:
        before = [*prompt[max(0, len(prompt) - max_prompt) :], *middle]
        answer = response[:max_response]
        rows.append([*before, *answer, *end])
        spans.append((len(before), len(before) + len(answer)))
        if len(head) + len(rows[-1]) > min(model.config.max_context, BUCKETS[-1]):
            raise ContextError(
                f"Pair {len(rows) - 1} needs {len(head) + len(rows[-1])} positions; the context of {model.name} has "
                f"{model.config.max_context}. Lower max_prompt or max_response."
            )

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    features = np.zeros((len(rows), len(layers), 2, config.embed_dim), np.float32)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        filled = chosen + [chosen[-1]] * (batch_size - len(chosen)) if start else chosen
        tokens, where = pad_tokens([rows[i] for i in filled], pad_id=model.tokenizer.pad_id)
        answer = np.zeros(where.shape, bool)
        for row, index in enumerate(filled):
            answer[row, slice(*spans[index])] = True
        pooled = _pooled(decoder, params, shared, tokens, where, answer, layers=layers)
        features[chosen] = np.asarray(pooled)[: len(chosen)]
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)), len(order))
    return features
