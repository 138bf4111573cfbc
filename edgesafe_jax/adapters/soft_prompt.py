"""Soft prompts: trained vectors in front of the input embeddings of a frozen decoder.

Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning" (2021); the alignment method is
Alfarra et al., "Distilling Safe LLM Systems via Soft Prompts for On Device Settings", arXiv 2606.09388.
"""

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax.adapters.kind import LENGTH, AdapterKind, Cost, Option, attention_cost, check_length
from edgesafe_jax.assets import check_packaged
from edgesafe_jax.errors import POSITIVE_COUNT, ConfigError, check_counts, lookup
from edgesafe_jax.models.decoder_config import DecoderConfig, flops_per_token
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.placements import BEFORE_ANSWER, PLACEMENTS, check_placement
from edgesafe_jax.models.quantised import QuantizedMatrix, dequantize, look_up
from edgesafe_jax.typing import IN_FRONT, Adapter, Array, PRNGKey


@flax.struct.dataclass
class SoftPrompt(Adapter):
    """P trained vectors in a chat.

    Attributes:
      embeddings: `[P, D]` float32, in units of the embedding table.
      placement: where they stand, a name in `models.placements.PLACEMENTS`.
    """

    embeddings: Array
    placement: str = flax.struct.field(pytree_node=False, default=IN_FRONT)  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    @property
    def num_virtual(self) -> int:
        """P."""
        return self.embeddings.shape[0]

    def virtual_embeddings(self) -> Array:
        """The vectors themselves."""
        return self.embeddings

    def slots(self) -> frozenset[str]:
        """The virtual positions."""
        return frozenset({"virtual positions"})


def init_soft_prompt(
    key: PRNGKey,
    model: LanguageModel,
    *,
    init: str = "text",
    text: str = "",
    num_virtual: int | None = None,
    placement: str = IN_FRONT,
) -> SoftPrompt:
    """Makes a soft prompt to train.

    Args:
      key: random key; unused by `"text"`.
      model: whose embedding table and tokenizer are used.
      init: how it starts. `"text"`: from the embeddings of an instruction, whose tokens are repeated or cut to fit;
        `"vocabulary"`: from those of tokens drawn uniformly from the vocabulary; `"random"`: from Gaussian vectors with
        the mean and standard deviation of the embedding table, per dimension. The last is an ablation: random vectors
        reduce safety by themselves before any training (Alfarra et al.).
      text: the instruction, for `"text"`.
      num_virtual: P; default as many as the text has tokens.
      placement: `"before_chat_template"`, in front of everything; `"after_bos"`, behind the token that begins a text;
        `"system"`, where the text of a system message stands; or `"before_answer"`, behind the prompt.

    Returns:
      The soft prompt.

    Raises:
      ConfigError: an unknown `init` or placement, an empty text or a P below one.
      TokenizerError: the chat template has no such place.
    """
    check_placement(model.tokenizer, placement)
    check_length(num_virtual, model.config)
    lookup(INITS, init, "init")
    if init == "random":
        check_counts(num_virtual=num_virtual)
        assert num_virtual is not None
        table = model.params["embedding"]
        table = dequantize(table) if isinstance(table, QuantizedMatrix) else table.astype(jnp.float32)
        noise = jax.random.normal(key, (num_virtual, table.shape[1]), jnp.float32)
        return SoftPrompt(jnp.mean(table, axis=0)[None] + noise * jnp.std(table, axis=0)[None], placement)
    ids = initial_ids(key, model, init=init, text=text, num_virtual=num_virtual)
    return SoftPrompt(look_up(model.params["embedding"], ids).astype(jnp.float32), placement)


INITS: dict[str, None] = dict.fromkeys(("text", "vocabulary", "random"))
"""How virtual positions can start."""


def initial_ids(key: PRNGKey, model: LanguageModel, *, init: str, text: str, num_virtual: int | None) -> Array:
    """Returns the tokens `[P]` from which virtual positions start.

    Args:
      key: random key; unused by `"text"`.
      model: whose tokenizer is used.
      init: `"text"` for those of the text, repeated or cut to fit; `"vocabulary"` for ones drawn uniformly.
      text: the instruction.
      num_virtual: P; default as many as the text has tokens.

    Raises:
      ConfigError: an empty text or a P below one.
    """
    ids = model.tokenizer.encode(text) if init == "text" and text else []
    if init == "text" and not ids:
        raise ConfigError("The instruction text is empty: virtual positions need at least one token to start from.")
    if num_virtual is None and ids:
        num_virtual = len(ids)
    check_counts(num_virtual=num_virtual)
    assert num_virtual is not None
    if init == "vocabulary":
        return jax.random.randint(key, (num_virtual,), 0, model.tokenizer.vocab_size)
    return jnp.array((ids * (num_virtual // len(ids) + 1))[:num_virtual], jnp.int32)


def _shapes(
    model: LanguageModel, arrays: Mapping[str, np.ndarray], fields: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    del arrays
    check_placement(model.tokenizer, fields["placement"])
    return {"embeddings": (fields["num_virtual"], model.config.embed_dim)}


def match_positions(parameters: int, per_position: int) -> dict[str, Any]:
    """The number of virtual positions that have nearest to so many parameters."""
    return {"num_virtual": max(1, round(parameters / per_position))}


def _cost(prompt: SoftPrompt, config: DecoderConfig, prompt_tokens: int) -> Cost:
    """Before the answer the vectors are computed for each prompt, elsewhere once for all."""
    each = flops_per_token(config, context=prompt_tokens, with_head=False) if prompt.placement == BEFORE_ANSWER else 0.0
    return Cost(attention_cost(config, prompt.num_virtual), prompt.num_virtual * each)


SOFT_PROMPT = AdapterKind(
    type=SoftPrompt,
    init=init_soft_prompt,
    options={
        "init": Option("text", tuple(INITS)),
        "text": Option(""),
        "num_virtual": Option(None, LENGTH),
        "placement": Option(IN_FRONT, tuple(PLACEMENTS)),
    },
    to_arrays=lambda prompt: (
        {"embeddings": prompt.embeddings},
        {"num_virtual": prompt.num_virtual, "placement": prompt.placement},
    ),
    shapes=_shapes,
    from_arrays=lambda arrays, fields: SoftPrompt(jnp.asarray(arrays["embeddings"]), fields["placement"]),
    fields={"num_virtual": Option(allowed=POSITIVE_COUNT), "placement": Option(IN_FRONT, tuple(PLACEMENTS))},
    cost=_cost,
    match=lambda config, parameters: match_positions(parameters, config.embed_dim),
)


def packaged_soft_prompt() -> Path:
    """Returns the path of the soft prompt that ships with the package, for `load_adapter`.

    It belongs to SmolLM2-135M-Instruct and is what configs/align_soft_prompt.py trains; its results are in
    configs/RESULTS.md.
    """
    path = Path(str(importlib.resources.files("edgesafe_jax.adapters") / "data" / "smollm2_soft_prompt.safetensors"))
    check_packaged(path.with_suffix(".json"))
    return check_packaged(path)
