"""Frozen language models: loading, generation, scoring, and a sentence encoder.

`load_model` reads GGUF files and Hugging Face directories of the families in `families.FAMILIES`; `generate` answers
one-turn chats with or without an adapter; `answer_log_probs`, `first_token_margins` and `kl_from_base` read
likelihoods. The decoder itself is `decoder.Decoder`, a pure function of tokens or embeddings.
"""

from edgesafe_jax.models.decoder import Decoder, DecoderOutput, KeyValues
from edgesafe_jax.models.decoder_config import DecoderConfig
from edgesafe_jax.models.encoder import SentenceEncoder
from edgesafe_jax.models.families import FAMILIES
from edgesafe_jax.models.finite import NonFiniteError, check_finite
from edgesafe_jax.models.generation import ContextError, Generation, generate
from edgesafe_jax.models.loading import LanguageModel, LoadingError, load_model, with_precision
from edgesafe_jax.models.precision import Precision, choose_precision, with_chosen
from edgesafe_jax.models.scoring import answer_log_probs, first_token_margins, kl_from_base
from edgesafe_jax.models.templates import TokenizerError
from edgesafe_jax.models.tokenization import ChatTokenizer

__all__ = [
    "FAMILIES",
    "ChatTokenizer",
    "ContextError",
    "Decoder",
    "DecoderConfig",
    "DecoderOutput",
    "Generation",
    "KeyValues",
    "LanguageModel",
    "LoadingError",
    "NonFiniteError",
    "Precision",
    "SentenceEncoder",
    "TokenizerError",
    "answer_log_probs",
    "check_finite",
    "choose_precision",
    "first_token_margins",
    "generate",
    "kl_from_base",
    "load_model",
    "with_chosen",
    "with_precision",
]
