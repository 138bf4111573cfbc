"""The same work in transformers and torch, for `launch.bench`.

Each function returns nothing where its library is not installed; the package itself imports none of them.
"""

import copy
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from edgesafe_jax.adapters import SoftPrompt
from edgesafe_jax.benchmarks import align, guards
from edgesafe_jax.guards.scoring import label_ids
from edgesafe_jax.models.generation import encode_rows
from edgesafe_jax.models.loading import LanguageModel

PEER, FAST_PEER = "transformers + torch", "transformers + torch, bfloat16 autocast"


def torch_model(model: LanguageModel) -> Any | None:
    """The same network in transformers and torch, its weights copied, or None where they are not installed."""
    try:
        import torch  # the peer only; the library never imports it
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    c = model.config
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.embed_dim,
            intermediate_size=c.mlp_dim,
            num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads,
            num_key_value_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_base},
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=True,
            max_position_embeddings=c.max_context,
        )
    )
    layers = model.params["layers"]

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32))

    state = {
        "model.embed_tokens.weight": tensor(model.params["embedding"]),
        "lm_head.weight": tensor(model.params["embedding"]),
        "model.norm.weight": tensor(model.params["final_norm"]["scale"]),
    }
    names = {
        "self_attn.q_proj": ("attention", "query"),
        "self_attn.k_proj": ("attention", "key"),
        "self_attn.v_proj": ("attention", "value"),
        "self_attn.o_proj": ("attention", "out"),
        "mlp.gate_proj": ("mlp", "gate"),
        "mlp.up_proj": ("mlp", "up"),
        "mlp.down_proj": ("mlp", "down"),
        "input_layernorm": ("attention_norm", "scale"),
        "post_attention_layernorm": ("mlp_norm", "scale"),
    }
    for i in range(c.num_layers):
        for name, (module, leaf) in names.items():
            array = np.asarray(layers[module][leaf][i])
            state[f"model.layers.{i}.{name}.weight"] = tensor(array.T if array.ndim == 2 else array)
    peer.load_state_dict(state)
    peer.requires_grad_(False).eval()
    return peer


def align_peers(model: LanguageModel, start: SoftPrompt, batch: int) -> dict[str, Callable[[], float]]:
    """The same step in transformers and torch by name; nothing where they are not installed."""
    peer = torch_model(model)
    if peer is None:
        return {}
    import torch

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    peer.to(device)

    def tensor(array: Any) -> Any:
        return torch.from_numpy(np.array(array, np.float32)).to(device)

    head, tokens, teacher = align.make_inputs(model, batch)
    ids = np.concatenate([np.broadcast_to(head, (batch, align.HEAD)), tokens], 1).astype(np.int64)
    ids = torch.from_numpy(ids).to(device)
    vectors = torch.nn.Parameter(tensor(start.embeddings))
    optimizer = torch.optim.Adam([vectors], lr=1e-3)
    states, first = tensor(teacher), vectors.detach().clone()

    def run(low: bool) -> float:
        with torch.no_grad():
            vectors.copy_(first)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            embedded = torch.cat([vectors[None].expand(batch, -1, -1), peer.model.embed_tokens(ids)], 1)
            hidden = peer.model(inputs_embeds=embedded, use_cache=False).last_hidden_state
            hidden = hidden[:, align.VIRTUAL + align.HEAD + align.PROMPT - 1 : -1]
            student = torch.log_softmax(peer.lm_head(hidden), -1)
            with torch.no_grad():
                target = torch.log_softmax(peer.lm_head(states), -1)
            value = (target.exp() * (target - student)).sum(-1).mean()
        value.backward()
        optimizer.step()
        return float(value.detach())

    peers = {PEER: functools.partial(run, False)}
    return {**peers, FAST_PEER: functools.partial(run, True)} if on_gpu else peers


def guard_peer(model: LanguageModel, prompts: list[str], responses: list[str]) -> Callable[[], np.ndarray] | None:
    """Log-odds by transformers and torch, in batches of the same size, or None where they are not installed."""
    peer = torch_model(model)
    if peer is None:
        return None
    import torch

    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    head, middle, tail = guards.FORMAT.render(model.tokenizer)[0]
    labels = [label_ids(model, tail, words) for words in (guards.FORMAT.fields[0].unsafe, guards.FORMAT.fields[0].safe)]

    def run() -> np.ndarray:
        rows = [
            model.tokenizer.encode(f"{head}{x.strip()}{middle}{y.strip()}{tail}", control=True)
            for x, y in zip(prompts, responses, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        odds = np.zeros(len(rows))
        for start in range(0, len(order), guards.BATCH):
            chosen = order[start : start + guards.BATCH]
            longest = max(len(rows[i]) for i in chosen)
            # Padded on the left, so that the last position is every row's own.
            ids = torch.full((len(chosen), longest), model.tokenizer.pad_id)
            mask = torch.zeros((len(chosen), longest), dtype=torch.long)
            for row, index in enumerate(chosen):
                ids[row, longest - len(rows[index]) :] = torch.tensor(rows[index])
                mask[row, longest - len(rows[index]) :] = 1
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad():
                output = peer(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=False)
            unsafe, safe = (torch.logsumexp(output.logits[:, -1, found], dim=1) for found in labels)
            odds[chosen] = (unsafe - safe).numpy()
        return odds

    return run


def generation_peers(model: LanguageModel, prompts: Sequence[str]) -> dict[str, Callable[[int], Any]]:
    """Greedy answers of a given length by transformers and torch, in float32 and in bfloat16; nothing without them."""
    peer = torch_model(model)
    if peer is None:
        return {}
    import torch

    head, rows = encode_rows(model, prompts, max_tokens=1)
    longest = max(map(len, rows)) + len(head)
    ids = torch.full((len(rows), longest), model.tokenizer.pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, -len(row) - len(head) :] = torch.tensor([*head, *row])
        mask[index, -len(row) - len(head) :] = 1

    def answers(peer: Any, num: int) -> list[list[int]]:
        lengths = {"min_new_tokens": num, "max_new_tokens": num}
        with torch.no_grad():
            found = peer.generate(
                ids, attention_mask=mask, do_sample=False, pad_token_id=model.tokenizer.pad_id, **lengths
            )
        return found[:, longest:].tolist()

    low = copy.deepcopy(peer).to(torch.bfloat16)
    return {PEER: functools.partial(answers, peer), f"{PEER}, bfloat16": functools.partial(answers, low)}
