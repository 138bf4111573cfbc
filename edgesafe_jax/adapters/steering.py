r"""Steering vectors: a trained vector added to the output of layers at every position.

.. math:: h_l \leftarrow h_l + v_l

Trained: Subramani, Suresh, Peters, "Extracting Latent Steering Vectors from Pretrained Language Models", 2022.
Untrained, as the difference of mean hidden states: Rimsky et al., "Steering Llama 2 via Contrastive Activation
Addition", 2023, section 3; Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", 2024,
equation 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters.kind import AdapterKind, Cost, Examples, Option
from edgesafe_jax.adapters.states import check_layers, prompt_states
from edgesafe_jax.errors import NON_NEGATIVE, POSITIVE, POSITIVE_COUNT, ConfigError, lookup
from edgesafe_jax.models.chats import Chat, check_chats
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.typing import Adapter, Array, PRNGKey

_INITS: dict[str, None] = dict.fromkeys(("zeros", "contrastive"))


@flax.struct.dataclass
class Steering(Adapter):
    """One vector for each of some layers, added to the layer's output at every position.

    Attributes:
      vectors: `[M, D]` float32, in units of the residual stream.
      layers: numbers of the M layers, counted from 0, in rising order.
      num_layers: L, of the decoder.
      contrast: how much of the contrastive direction `fit_adapter` adds before the training; 0 for none.
    """

    vectors: Array
    layers: tuple[int, ...] = flax.struct.field(pytree_node=False)
    num_layers: int = flax.struct.field(pytree_node=False)
    contrast: float = flax.struct.field(pytree_node=False, default=0.0)

    def steering(self) -> Array:
        """The vectors by layer, zero in the layers that are left alone."""
        zeros = jnp.zeros((self.num_layers, self.vectors.shape[1]), self.vectors.dtype)
        return zeros.at[np.array(self.layers)].set(self.vectors)

    def slots(self) -> frozenset[str]:
        """The outputs of the layers."""
        return frozenset(f"output of layer {layer}" for layer in self.layers)


def init_steering(
    key: PRNGKey,
    model: LanguageModel,
    *,
    layers: Sequence[int] = (),
    init: str = "zeros",
    contrast: float = 1.0,
) -> Steering:
    """Makes steering vectors to train.

    Args:
      key: unused: both starts are fixed.
      model: the frozen language model.
      layers: numbers of the layers, counted from 0; none for the middle one.
      init: `"zeros"`: the base model; `"contrastive"`: `contrast` times the mean difference between prompts that the
        teacher refuses and the others. It is known once the teacher is, see `fit_adapter`.
      contrast: factor of the mean difference.

    Returns:
      The vectors, zero.

    Raises:
      ConfigError: a layer that does not exist or is named twice, or an unknown `init`.
    """
    del key
    lookup(_INITS, init, "init")
    config = model.config
    layers = check_layers(config, tuple(layers) or (config.num_layers // 2,))
    vectors = jnp.zeros((len(layers), config.embed_dim), jnp.float32)
    return Steering(vectors, layers, config.num_layers, float(contrast) if init == "contrastive" else 0.0)


def contrastive_steering(
    model: LanguageModel,
    *,
    harmful: Sequence[str | Chat],
    harmless: Sequence[str | Chat],
    layers: Sequence[int] = (),
    contrast: float = 1.0,
) -> Steering:
    r"""Makes the untrained form: the difference of mean hidden states at the last position of the prompts.

    .. math:: v_l = c \, (\bar h_l(\text{harmful}) - \bar h_l(\text{harmless}))

    Args:
      model: the frozen language model.
      harmful: prompts that are to be refused, texts or chats.
      harmless: prompts that are to be answered.
      layers: numbers of the layers, counted from 0; none for the middle one.
      contrast: c.

    Returns:
      The vectors.

    Raises:
      ConfigError: an empty list of prompts, or a layer that does not exist.
    """
    layers = check_layers(model.config, tuple(layers) or (model.config.num_layers // 2,))
    means = []
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if not check_chats(name, prompts):
            raise ConfigError(f"{name} is empty: a contrast needs prompts of both kinds.")
        means.append(np.mean(prompt_states(model, prompts, layers=layers), axis=0))
    return Steering(jnp.asarray(contrast * (means[0] - means[1]), jnp.float32), layers, model.config.num_layers)


def _fit(steering: Steering, model: LanguageModel, examples: Examples) -> Steering:
    """Adds the contrastive direction of the prompts that the teacher refuses."""
    if not steering.contrast:
        return steering
    refused = examples.refusal_prob > 0.5
    sides = {
        name: [text for text, is_it in zip(examples.prompts, mask, strict=True) if is_it]
        for name, mask in (("harmful", refused), ("harmless", ~refused))
    }
    added = contrastive_steering(model, **sides, layers=steering.layers, contrast=steering.contrast)
    return steering.replace(vectors=steering.vectors + added.vectors, contrast=0.0)  # type: ignore[attr-defined]


def _shapes(
    model: LanguageModel, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    del arrays
    layers = check_layers(model.config, fields["layers"])
    if model.config.num_layers != fields["num_layers"]:
        raise ConfigError(f"num_layers={fields['num_layers']}: expected {model.config.num_layers}.")
    return {"vectors": (len(layers), model.config.embed_dim)}


def _match(config: DecoderConfig, parameters: int) -> dict[str, Any]:
    """As many layers as have that many numbers, evenly spread; the middle one where it is one."""
    num = min(max(1, round(parameters / config.embed_dim)), config.num_layers)
    return {"layers": tuple((2 * i + 1) * config.num_layers // (2 * num) for i in range(num))}


STEERING = AdapterKind(
    type=Steering,
    init=init_steering,
    options={"layers": Option(()), "init": Option("zeros", tuple(_INITS)), "contrast": Option(1.0, POSITIVE)},
    to_arrays=lambda steering: (
        {"vectors": steering.vectors},
        {"layers": list(steering.layers), "num_layers": steering.num_layers, "contrast": steering.contrast},
    ),
    shapes=_shapes,
    from_arrays=lambda arrays, fields: Steering(
        jnp.asarray(arrays["vectors"]), tuple(fields["layers"]), fields["num_layers"], float(fields["contrast"])
    ),
    fields={"layers": Option(), "num_layers": Option(allowed=POSITIVE_COUNT), "contrast": Option(0.0, NON_NEGATIVE)},
    fit=_fit,
    cost=lambda steering, config, prompt_tokens: Cost(float(steering.vectors.size)),
    match=_match,
)
