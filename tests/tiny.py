"""A tiny language model with a real tokenizer: what needs no real weights is tested on it."""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from edgesafe_jax.models.decoder import Decoder
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.loading import LanguageModel
from edgesafe_jax.models.tokenization import ChatTokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_pair_vocabulary() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary with the control tokens first, and its merges as "left right"."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "i n", "Ġ a", "e r", "u s", "us er", "s y", "Ġ w"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return [*CONTROL_TOKENS, *letters, *(merge.replace(" ", "") for merge in merges)], merges


def make_tiny_tokenizer() -> ChatTokenizer:
    """A byte-level BPE with a ChatML template that has a default system message."""
    tokens, merges = byte_pair_vocabulary()
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={token: i for i, token in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]
        )
    )
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL_TOKENS))
    return ChatTokenizer(tokenizer, chat_template=CHATML, eos_ids=[2], pad_id=0, eos_token="<|im_end|>")


def random_params(config: DecoderConfig, seed: int = 0):
    """Parameters of a decoder with every leaf random, norms and biases included."""
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), "int32"))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        std = 0.5 if name in ("embedding", "head") or name.endswith("bias") else leaf.shape[-2] ** -0.5
        if name in ("query", "out", "down"):
            std *= 3  # the context decides what comes next, not the last token alone
        return (std * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def make_tiny_model(**changes) -> LanguageModel:
    """A language model of three layers with random weights: what needs no real ones is tested on it."""
    tokenizer = make_tiny_tokenizer()
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "num_layers": 3,
        "embed_dim": 16,
        "mlp_dim": 24,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "max_context": 512,
    }
    config = DecoderConfig(**{**sizes, **changes})
    return LanguageModel("tiny", config, random_params(config), tokenizer, hash="0123456789abcdef" * 4)
