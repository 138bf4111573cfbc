"""Rotary position embedding, and what the positions of each kind of layer see."""

from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp

from edgesafe_jax.models.decoder_config import PLAIN, DecoderConfig, LayerKind
from edgesafe_jax.typing import Array


@flax.struct.dataclass
class View:
    """How the positions of a layer are rotated, and what each of them sees.

    Attributes:
      cos: `[B | 1, T, 1, R / 2]` for the R rotated numbers of a head.
      sin: the same.
      masks: for each past block, and then for the new positions, `[B | 1, T | 1, S]` bool.
    """

    cos: Array
    sin: Array
    masks: tuple[Array, ...]


def rope_frequencies(config: DecoderConfig, kind: LayerKind = PLAIN) -> Array:
    """Returns the rotary frequencies of a kind of layer, `[R / 2]` in radians per position.

    Args:
      config: of the decoder.
      kind: a layer without RoPE has frequencies of zero.
    """
    if not kind.rotates:
        return jnp.zeros((config.rotary_size // 2,), jnp.float32)
    local = config.local_rope_base if kind.slides else None
    base = config.rope_base if local is None else local
    exponent = jnp.arange(0, config.rotary_size, 2, dtype=jnp.float32) / config.rotary_size
    frequencies = base**-exponent
    if local is not None or not config.rope_divisors:
        return frequencies
    return frequencies / jnp.array(config.rope_divisors, jnp.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Applies rotary position embedding.

    Args:
      x: `[B, T, H, E]`. Of its first R numbers, the first and second half are paired; the rest stay as they are.
      cos: `[B | 1, T, 1, R / 2]`.
      sin: `[B | 1, T, 1, R / 2]`.

    Returns:
      `[B, T, H, E]`.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def make_views(
    config: DecoderConfig,
    *,
    positions: Array,
    key_positions: Sequence[Array],
    masks: Sequence[Array],
    dtype: jnp.dtype,
) -> tuple[Array, tuple[View, ...]]:
    """Computes what each kind of layer sees.

    Args:
      config: of the decoder.
      positions: `[B | 1, T]` int32 of the new positions.
      key_positions: of each block of keys, `[B | 1, S]` int32.
      masks: of each block of keys for a layer that does not slide, `[B | 1, T | 1, S]` bool.
      dtype: of the rotation.

    Returns:
      The number of each layer's view, `[L]` int32, and the views: a layer that slides sees the last `window` positions,
      its own included. Their arrays have the same shapes, so that a layer can choose among them.
    """
    kinds = sorted(set(config.layer_kinds))
    views = []
    for kind in kinds:
        angles = positions.astype(jnp.float32)[..., None] * rope_frequencies(config, kind)[None, None]
        local = kind.slides and config.local_rope_base is not None
        magnitude = config.rope_magnitude if kind.rotates and not local else 1.0
        cos, sin = ((magnitude * turn(angles))[:, :, None, :].astype(dtype) for turn in (jnp.cos, jnp.sin))
        seen = list(masks)
        if kind.slides:
            assert config.window is not None
            near = [positions[:, :, None] - at[:, None, :] < config.window for at in key_positions]
            seen = [mask & close for mask, close in zip(masks, near, strict=True)]
        views.append(View(cos, sin, tuple(seen)))
    if len(views) > 1:
        alike = [jnp.broadcast_arrays(*each) for each in zip(*(view.masks for view in views), strict=True)]
        views = [View(view.cos, view.sin, tuple(each[i] for each in alike)) for i, view in enumerate(views)]
    return jnp.array([kinds.index(kind) for kind in config.layer_kinds], jnp.int32), tuple(views)
