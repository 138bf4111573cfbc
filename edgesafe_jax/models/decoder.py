"""A decoder-only transformer of the Llama family and its relatives, frozen, with its layers scanned.

The forward pass is a pure function of a plain parameter tree. Three things make it a good host for adapters on a frozen
model:

* it takes embeddings as well as tokens, so that trained vectors can stand in front of a prompt;
* it takes any number of *past* blocks of keys and values, each either one per row or shared by the whole batch. A soft
  prompt and the constant head of a chat template are computed once at batch size one and read by every row;
* the attention mask and the positions are arguments, so that several continuations of one prompt can share a row.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from edgesafe_jax.errors import ConfigError
from edgesafe_jax.models.attention import Attention, Block, CachedBlock, causal_mask
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.layers import FeedForward, add_bias, make_norm, softcap, weight
from edgesafe_jax.models.matmul import matmul
from edgesafe_jax.models.quantised import QuantizedMatrix, look_up
from edgesafe_jax.models.rope import View, make_views
from edgesafe_jax.models.sharding import constrain
from edgesafe_jax.typing import IN_FRONT, Adapter, Array, LowRank, Params

FLOAT32 = jnp.dtype(jnp.float32)


@flax.struct.dataclass
class KeyValues:
    """Keys and values of a block of past positions, for every layer.

    Attributes:
      keys: `[L, B | 1, K, S, E]`, rotated; a batch of one is shared by all rows.
      values: `[L, B | 1, K, S, E]`.
      where: `[B | 1, S]` bool, which of the positions exist, or None for all of them.
    """

    keys: Array
    values: Array
    where: Array | None = None

    @property
    def batch(self) -> int:
        """B, or 1."""
        return self.keys.shape[1]

    @property
    def exists(self) -> Array:
        """Which positions exist, `[B | 1, S]` bool."""
        return jnp.ones((1, self.keys.shape[3]), bool) if self.where is None else self.where


@flax.struct.dataclass
class Cache:
    """Preallocated keys and values of past positions, for every layer, in pieces that are read when they are filled.

    It has no gradient.

    Attributes:
      keys: `[L, P, B, K, Q, E]`, rotated, in P pieces of Q positions: S = P Q.
      values: the same.
      exists: `[B, S]` bool, which of the positions exist.
      filled: `[]` int32, positions behind the first so many exist in no row.
    """

    keys: Array
    values: Array
    exists: Array
    filled: Array

    @property
    def batch(self) -> int:
        """B."""
        return self.keys.shape[2]

    def layer(self, number: Array) -> CachedBlock:
        """The block of one layer."""
        return CachedBlock(self.keys, self.values, number, self.filled)


@flax.struct.dataclass
class DecoderOutput:
    """The output of a forward pass.

    Attributes:
      hidden: `[B, T, D]` final hidden states after the last norm, aligned with the tokens that went in (the virtual
        positions of an adapter are not among them).
      key_values: keys and values of the new positions, the adapter's virtual ones included and first.
      layer_hidden: `[L, B, T, D]` residual stream after each layer, aligned like `hidden`. Costs nothing under `jit`
        when it is not used.
    """

    hidden: Array
    key_values: KeyValues
    layer_hidden: Array


class Layer(nn.Module):
    """One transformer layer, in the calling convention of `nn.scan`."""

    config: DecoderConfig
    matmul_dtype: jnp.dtype
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self,
        x: Array,
        past: tuple[Block | Array, ...],
        changes: Mapping[str, Any],
        kind: Array,
        views: tuple[View, ...],
        caches: tuple[Cache, ...],
    ) -> tuple[Array, tuple[tuple[Array, Array], Array]]:
        """Returns the carry of the scan and what it stacks: keys and values, and the residual stream.

        In `past`, the number of the layer stands for its block in the next of the caches. `changes` are an adapter's in
        this layer: the low-rank factors of each module, and the vector "output".
        """
        rest = iter(caches)
        blocks = [block if isinstance(block, Block) else next(rest).layer(block) for block in past]
        view = views[0] if len(views) == 1 else jax.tree.map(lambda *leaves: jax.lax.select_n(kind, *leaves), *views)
        attended, key_values = Attention(self.config, self.matmul_dtype, name="attention")(
            self._normed(x, "attention_norm"), view, blocks, changes.get("attention", {})
        )
        x = x + self._added(attended, "attention_post_norm")
        feed_forward = FeedForward(self.config, self.matmul_dtype, name="mlp")
        fed = feed_forward(self._normed(x, "mlp_norm"), changes.get("mlp", {}))
        x = x + self._added(fed, "mlp_post_norm")
        if (steering := changes.get("output")) is not None:
            x = add_bias(x, steering)
        x = constrain(x, self.mesh, "batch", None, None)
        return x, (key_values, x)

    def _normed(self, x: Array, name: str) -> Array:
        """The input of a sublayer."""
        return make_norm(self.config, name)(x) if self.config.pre_norms else x

    def _added(self, y: Array, post_norm: str) -> Array:
        """The addition of a sublayer to the residual stream."""
        if self.config.post_norms:
            y = make_norm(self.config, post_norm)(y)
        return y if self.config.residual_scale == 1 else y * self.config.residual_scale


class Decoder(nn.Module):
    """A decoder of the Llama family or of a relative, see `families.FAMILIES`.

    Example:
      >>> config = DecoderConfig(vocab_size=11, num_layers=2, embed_dim=8, mlp_dim=16,
      ...                        num_heads=2, num_kv_heads=1, head_dim=4)
      >>> decoder = Decoder(config)
      >>> tokens = jnp.array([[1, 2, 3]])
      >>> variables = decoder.init(jax.random.key(0), tokens)
      >>> decoder.apply(variables, tokens).hidden.shape
      (1, 3, 8)

    Attributes:
      config: sizes and constants.
      dtype: dtype of activations; norms, softmax and attention scores are float32.
      matmul_dtype: dtype of the factors of matrix products, see `matmul`; None for that of the activations.
      mesh: devices over which parameters and activations are split, see `models.sharding`; None for one.
    """

    config: DecoderConfig
    dtype: jnp.dtype = FLOAT32
    matmul_dtype: jnp.dtype | None = None
    mesh: Mesh | None = None

    def setup(self):
        """Declares embedding tables, layers, final norm and head."""
        c = self.config
        table: Any = functools.partial(weight, self, init=nn.initializers.normal(0.02))  # never an `OutputsFirst`
        self.embedding: Array | QuantizedMatrix = table("embedding", shape=(c.vocab_size, c.embed_dim))
        if c.learned_positions:
            self.positions = self.param("positions", nn.initializers.normal(0.02), (c.max_context, c.embed_dim))
        scanned = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            out_axes=0,
            length=c.num_layers,
        )
        self.layers = scanned(c, self.factors_dtype, self.mesh)
        self.final_norm = make_norm(c)
        if not c.tie_embeddings:
            self.head: Array | QuantizedMatrix = table("head", shape=(c.embed_dim, c.vocab_size))

    @property
    def factors_dtype(self) -> jnp.dtype:
        """Dtype of the factors of matrix products."""
        return self.dtype if self.matmul_dtype is None else self.matmul_dtype

    def embed(self, tokens: Array, virtual: Array | None = None) -> Array:
        """Looks tokens `[..., T]` up in the embedding table: `[..., T, D]`.

        With virtual embeddings `[P, D]`, the id -1 - p stands for the p-th of them.
        """
        found = look_up(self.embedding, tokens if virtual is None else jnp.maximum(tokens, 0))
        if virtual is not None:
            drawn = jnp.take(virtual, jnp.maximum(-1 - tokens, 0), axis=0).astype(found.dtype)
            found = jnp.where((tokens < 0)[..., None], drawn, found)
        return found.astype(self.dtype)

    def logits(self, hidden: Array) -> Array:
        """Maps hidden states `[..., D]` to float32 logits `[..., V]`."""
        head = self.embedding if self.config.tie_embeddings else self.head
        if not isinstance(head, QuantizedMatrix):
            head = constrain(head, self.mesh, *(("vocab", None) if self.config.tie_embeddings else (None, "vocab")))
        # As float32 from here on, so that low-precision factors have a float32 result.
        hidden = hidden.astype(self.dtype).astype(jnp.float32)
        logits = matmul(hidden, head, dtype=self.factors_dtype, transposed=self.config.tie_embeddings)
        if self.config.logit_scale != 1:
            logits = logits * self.config.logit_scale
        logits = constrain(logits, self.mesh, "batch", *(None,) * (logits.ndim - 2), "vocab")
        return softcap(logits, self.config.logit_softcap)

    def __call__(
        self,
        tokens: Array | None = None,
        *,
        embeddings: Array | None = None,
        adapter: Adapter | None = None,
        where: Array | None = None,
        positions: Array | None = None,
        mask: Array | None = None,
        past: Sequence[KeyValues | Cache] = (),
        low_rank: LowRank | None = None,
        steering: Array | None = None,
        virtual: Array | None = None,
    ) -> DecoderOutput:
        """Runs the decoder over new positions.

        Args:
          tokens: `[B, T]` int32; exactly one of `tokens` and `embeddings` is given.
          embeddings: `[B, T, D]` input embeddings instead of tokens.
          adapter: its virtual positions are put in front of the sequence: they see `past` and one another and every
            new position sees them (at another placement, negative ids among the tokens stand for them, see `virtual`).
            Its prefix is put in front of `past`; the first new position follows both. What it changes in the layers
            is used unless `low_rank` or `steering` is given. None for the bare model.
          where: `[B, T]` bool, which positions exist (padding may be anywhere); default all.
          positions: `[B | 1, T]` int32, rotary positions of the new tokens, counted from the first position after the
            adapter; default: the number of existing positions before each one, after those of `past`.
          mask: `[B | 1, T, T]` bool, which new token sees which; default causal over `where`.
          past: blocks of keys and values that every new position sees, in the order of their positions.
          low_rank: factors of what is added to the matrices of the layers, or None. Past blocks are as they were
            computed: give the same factors there.
          steering: `[L, D]`, added to the output of each layer at every new position, or None.
          virtual: `[P, D]` embeddings for which the ids -1 to -P stand; None where all ids are tokens.

        Returns:
          Hidden states, keys and values. See `DecoderOutput`.

        Raises:
          ConfigError: both or neither of `tokens` and `embeddings`, or a block of another batch size.
        """
        if (tokens is None) == (embeddings is None):
            raise ConfigError("Give exactly one of tokens and embeddings.")
        of_adapter = {**behind(adapter), **_given(low_rank=low_rank, steering=steering, virtual=virtual)}
        in_front = adapter.virtual_embeddings() if adapter is not None and adapter.placement == IN_FRONT else None
        prefix = _prefix_block(adapter)
        if prefix is not None:
            past = (prefix, *past)
        if embeddings is None:
            assert tokens is not None
            embeddings = self.embed(tokens, of_adapter.get("virtual"))
        embeddings = embeddings.astype(self.dtype)
        batch, length = embeddings.shape[:2]
        if where is None:
            where = jnp.ones((batch, length), bool)
        for block in past:
            if block.batch not in (1, batch):
                raise ConfigError(f"A past block has batch size {block.batch}; expected 1 (shared) or {batch}.")
        key_positions, offset = _past_positions(past)  # [B | 1, S] each, and [B | 1]
        if positions is None:
            positions = offset[:, None] + jnp.cumsum(where, axis=1, dtype=jnp.int32) - 1
        if mask is None:
            mask = causal_mask(where)

        num_virtual = 0
        if in_front is not None:
            in_front = in_front.astype(self.dtype)
            num_virtual = in_front.shape[0]
            repeated = jnp.broadcast_to(in_front[None], (batch, *in_front.shape))
            embeddings = jnp.concatenate([repeated, embeddings], axis=1)
            ahead = offset[:, None] + jnp.arange(num_virtual, dtype=jnp.int32)[None]
            rows = max(ahead.shape[0], positions.shape[0])
            positions = jnp.concatenate(
                [
                    jnp.broadcast_to(ahead, (rows, num_virtual)),
                    jnp.broadcast_to(positions + num_virtual, (rows, length)),
                ],
                axis=1,
            )
            mask = jnp.pad(mask, ((0, 0), (num_virtual, 0), (num_virtual, 0)))
            lower = jnp.tril(jnp.ones((num_virtual + length, num_virtual), bool))
            mask = mask.at[:, :, :num_virtual].set(lower[None])
        if self.config.embedding_scale != 1:
            embeddings = embeddings * self.config.embedding_scale
        if self.config.learned_positions:
            embeddings = embeddings + jnp.take(self.positions, positions, axis=0).astype(self.dtype)

        masks = [block.exists[:, None, :] for block in past] + [mask]
        kinds, views = make_views(
            self.config, positions=positions, key_positions=[*key_positions, positions], masks=masks, dtype=self.dtype
        )
        blocks, caches = _by_layer([_cast(block, self.dtype) for block in past])
        changes = {**of_adapter.get("low_rank", {}), **_given(output=of_adapter.get("steering"))}
        embeddings = constrain(embeddings, self.mesh, "batch", None, None)
        x, ((keys, values), layer_hidden) = self.layers(embeddings, blocks, changes, kinds, views, caches)
        if prefix is not None:
            keys, values = _joined(prefix.keys, keys), _joined(prefix.values, values)
        if keys.shape[3] > length:
            where = jnp.pad(where, ((0, 0), (keys.shape[3] - length, 0)), constant_values=True)
        return DecoderOutput(
            hidden=self.final_norm(x[:, num_virtual:]),
            key_values=KeyValues(keys=keys, values=values, where=where),
            layer_hidden=layer_hidden[:, :, num_virtual:],
        )


def low_rank_of(adapter: Adapter | None) -> LowRank | None:
    """The low-rank factors of an adapter for passes that continue behind its virtual positions; or None."""
    return None if adapter is None else adapter.low_rank()


def behind(adapter: Adapter | None) -> dict[str, Any]:
    """What passes behind an adapter's first block of keys and values need of it, as keyword arguments of a `Decoder`.

    Its prefix and the virtual positions in front are in the block already.
    """
    if adapter is None:
        return {}
    virtual = None if adapter.placement == IN_FRONT else adapter.virtual_embeddings()
    return _given(low_rank=adapter.low_rank(), steering=adapter.steering(), virtual=virtual)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _joined(shared: Array, new: Array) -> Array:
    """Puts keys or values `[L, 1, K, P, E]` of all rows in front of those of each, `[L, B, K, T, E]`."""
    shared = jnp.broadcast_to(shared.astype(new.dtype), (*new.shape[:3], *shared.shape[3:]))
    return jnp.concatenate([shared, new], axis=3)


def _prefix_block(adapter: Adapter | None) -> KeyValues | None:
    """The keys and values that an adapter puts in front of everything, shared by the batch."""
    found = None if adapter is None else adapter.prefix()
    return None if found is None else KeyValues(keys=found[0][:, None], values=found[1][:, None])


def _cast(block: KeyValues | Cache, dtype: jnp.dtype) -> KeyValues | Cache:
    return dataclasses.replace(block, keys=block.keys.astype(dtype), values=block.values.astype(dtype))


def _by_layer(past: Sequence[KeyValues | Cache]) -> tuple[tuple[Block | Array, ...], tuple[Cache, ...]]:
    """What is scanned over the layers: the blocks, the number of the layer for a cache; and the caches."""
    caches = tuple(block for block in past if isinstance(block, Cache))
    numbers = jnp.arange(past[0].keys.shape[0] if past else 0, dtype=jnp.int32)
    return tuple(numbers if isinstance(block, Cache) else Block(block.keys, block.values) for block in past), caches


def _past_positions(past: Sequence[KeyValues | Cache]) -> tuple[list[Array], Array]:
    """Returns the positions of the keys of each block, `[B | 1, S]` int32, and how many exist in all, `[B | 1]`."""
    found, total = [], jnp.zeros((1,), jnp.int32)
    for block in past:
        exists = block.exists
        rows = max(total.shape[0], exists.shape[0])
        total, exists = jnp.broadcast_to(total, (rows,)), jnp.broadcast_to(exists, (rows, exists.shape[1]))
        found.append(total[:, None] + jnp.cumsum(exists, axis=1, dtype=jnp.int32) - 1)
        total = total + jnp.sum(exists, axis=1, dtype=jnp.int32)
    return found, total


def truncate(config: DecoderConfig, params: Params, num_layers: int) -> tuple[DecoderConfig, Params]:
    """Keeps the first layers only: for reading hidden states of the middle without computing the rest.

    Args:
      config: of the whole decoder.
      params: of the whole decoder.
      num_layers: how many layers to keep.

    Returns:
      Config and parameters of the shorter decoder; its final norm is the whole one's.

    Raises:
      ConfigError: num_layers is not between 1 and the decoder's.
    """
    if not 1 <= num_layers <= config.num_layers:
        raise ConfigError(f"num_layers={num_layers}: expected 1 to {config.num_layers}.")
    layers = jax.tree.map(lambda leaf: leaf[:num_layers], params["layers"])
    return config.with_layers(slice(num_layers)), {**params, "layers": layers}


def remainder(config: DecoderConfig, params: Params, num_layers: int) -> tuple[DecoderConfig, Params]:
    """Leaves the first layers out: what `truncate` with the same number computes is this decoder's input.

    Args:
      config: of the whole decoder.
      params: of the whole decoder.
      num_layers: how many layers to leave out.

    Returns:
      Config and parameters of a decoder that takes `layer_hidden[-1]` of the shorter one as `embeddings`, and past
      blocks of its own layers only; `hidden` and `logits` are then those of the whole.

    Raises:
      ConfigError: num_layers is not between 0 and the decoder's less one.
    """
    if not 0 <= num_layers < config.num_layers:
        raise ConfigError(f"num_layers={num_layers}: expected 0 to {config.num_layers - 1}.")
    layers = jax.tree.map(lambda leaf: leaf[num_layers:], params["layers"])
    kept = {**params, "layers": layers}
    if num_layers == 0:
        return config, kept
    # Inputs were scaled, and have got their positions, where the embeddings were looked up.
    kept.pop("positions", None)
    return config.with_layers(slice(num_layers, None), embedding_scale=1.0, learned_positions=False), kept
