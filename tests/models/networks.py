"""Tiny models with random weights that transformers saves, one for each decoder family and for what sets it apart."""

import json

import pytest

from tests.tiny import CHATML, byte_pair_vocabulary, make_tiny_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [1.5, 2.0, 4.0],
}
VOCAB_SIZE = len(byte_pair_vocabulary()[0])
WINDOW = 6
NETWORKS = {
    "llama": ("Llama", {}),
    "llama3_rope": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}, "tie_word_embeddings": False}),
    "linear_rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}}),
    "dynamic_rope": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0},
            "max_position_embeddings": 16,
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 5.0,
            "sliding_window": WINDOW,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 24,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            },
        },
    ),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "pad_token_id": 0, "tie_word_embeddings": False}),
    "longrope": ("Phi3", {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16, "pad_token_id": 0}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "olmo2": ("Olmo2", {"tie_word_embeddings": False, "pad_token_id": 0}),
    "gpt2": ("GPT2", {"n_inner": 48}),
}
"""Class of transformers and options, with what sets each family apart away from its neutral value."""


def save_random_network(path, family, vocab_size=VOCAB_SIZE):
    """Lets transformers save a tiny model with random weights; returns the network."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, options = NETWORKS[family]
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    }
    if name == "GPT2":
        sizes = {new: sizes.get(old) for old, new in _GPT2_NAMES.items()}
    config = getattr(transformers, f"{name}Config")(**{**sizes, **options})
    torch.manual_seed(0)
    network = getattr(transformers, _CLASSES.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.5))
    network.save_pretrained(path)
    (path / "tokenizer.json").write_text(make_tiny_tokenizer().to_json(), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}), encoding="utf-8")
    return network.eval()


_CLASSES = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
_GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "eos_token_id": "eos_token_id",
}
