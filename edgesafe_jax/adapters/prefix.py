"""Prefix tuning: trained keys and values in front of every layer's attention.

Li & Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", 2021, equations 2 and 3. They train the
prefix through a feed-forward network, since a prefix of random numbers is unstable; here it starts from keys and values
that the model computes itself, and is trained as it is.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters.kind import LENGTH, AdapterKind, Cost, Option, attention_cost, check_length
from edgesafe_jax.adapters.soft_prompt import INITS, initial_ids, match_positions
from edgesafe_jax.errors import POSITIVE_COUNT, check_counts, lookup
from edgesafe_jax.models.generation import encode_shared_once
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, Array, PRNGKey


@flax.struct.dataclass
class Prefix(Adapter):
    r"""P trained keys and values in each layer.

    .. math:: \mathrm{softmax}\left(q \, [K_P; K]^\top / \sqrt{E}\right) [V_P; V]

    A prefix takes the positions 0 to P - 1, and the sequence begins at position P, as in PEFT. The keys are those that
    are attended to: they are neither normed nor rotated, so what is trained includes the rotation of their positions.

    Attributes:
      keys: `[L, K, P, E]` float32.
      values: `[L, K, P, E]` float32.
    """

    keys: Array
    values: Array

    @property
    def num_virtual(self) -> int:
        """P."""
        return self.keys.shape[2]

    def prefix(self) -> tuple[Array, Array]:
        """The keys and values themselves."""
        return self.keys, self.values

    def slots(self) -> frozenset[str]:
        """The prefix."""
        return frozenset({"prefix"})


def init_prefix(
    key: PRNGKey, model: LanguageModel, *, init: str = "text", text: str = "", num_virtual: int | None = None
) -> Prefix:
    """Makes a prefix to train.

    Args:
      key: random key; unused by `"text"`.
      model: which computes keys and values.
      init: how it starts. `"text"`: the keys and values of an instruction, whose tokens are repeated or cut to fit: the
        model then behaves as with this text in front; `"vocabulary"`: those of tokens drawn uniformly from the
        vocabulary; `"random"`: Gaussian numbers with their mean and standard deviation, per layer, head and dimension.
      text: the instruction, for `"text"`.
      num_virtual: P; default as many as the text has tokens.

    Returns:
      The prefix.

    Raises:
      ConfigError: an unknown `init`, an empty text or a P below one.
    """
    lookup(INITS, init, "init")
    check_length(num_virtual, model.config)
    if init != "random":
        return Prefix(*_key_values(model, initial_ids(key, model, init=init, text=text, num_virtual=num_virtual)))
    check_counts(num_virtual=num_virtual)
    assert num_virtual is not None
    sample = initial_ids(key, model, init="vocabulary", text="", num_virtual=_NUM_SAMPLED)
    keys = jax.random.split(jax.random.fold_in(key, 1))
    return Prefix(
        *(
            jnp.mean(leaf, axis=2, keepdims=True)
            + jnp.std(leaf, axis=2, keepdims=True)
            * jax.random.normal(k, (*leaf.shape[:2], num_virtual, leaf.shape[3]), jnp.float32)
            for k, leaf in zip(keys, _key_values(model, sample), strict=True)
        )
    )


_NUM_SAMPLED = 64  # tokens of the vocabulary from which the moments of a random prefix are taken


def _key_values(model: LanguageModel, ids: Array) -> list[Array]:
    block = encode_shared_once(model.decoder, model.params, None, ids)
    return [leaf[:, 0].astype(jnp.float32) for leaf in (block.keys, block.values)]


def _shapes(
    model: LanguageModel, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    del arrays
    c = model.config
    return dict.fromkeys(("keys", "values"), (c.num_layers, c.num_kv_heads, fields["num_virtual"], c.head_dim))


PREFIX = AdapterKind(
    type=Prefix,
    init=init_prefix,
    options={"init": Option("text", tuple(INITS)), "text": Option(""), "num_virtual": Option(None, LENGTH)},
    to_arrays=lambda prefix: (
        {"keys": prefix.keys, "values": prefix.values},
        {"num_virtual": prefix.num_virtual},
    ),
    shapes=_shapes,
    from_arrays=lambda arrays, fields: Prefix(jnp.asarray(arrays["keys"]), jnp.asarray(arrays["values"])),
    fields={"num_virtual": Option(allowed=POSITIVE_COUNT)},
    cost=lambda prefix, config, prompt_tokens: Cost(attention_cost(config, prefix.num_virtual)),
    match=lambda c, parameters: match_positions(parameters, 2 * c.num_layers * c.num_kv_heads * c.head_dim),
)
