"""Scoring by a language-model guard, here and in PyTorch: pairs per second.

32 human-scored pairs, cut to 60 words, are judged by SmolLM2 in batches of 16 with the labels "Yes" and "No". The peer
is the same network in transformers and torch on the same token ids, with logits at the last position only; there each
row computes the head of the template anew. Both scores are compared, so that the work is known to be the same.
Tokenisation is part of the time on both sides. Both use the processor cores that the process may run on.
"""

import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from edgesafe_jax.guards.paraphrases import excerpt
from edgesafe_jax.guards.registry import Field, GuardFormat
from edgesafe_jax.guards.scoring import LanguageModelGuard, LowMassWarning, label_ids
from edgesafe_jax.models.loading import LanguageModel, load_model
from launch.bench_align import torch_model
from launch.paraphrases import pairs_of

BATCH, PAIRS, NUM_RUNS = 16, 32, 5
FORMAT = GuardFormat(
    fields=(Field("", unsafe=("Yes",), safe=("No",)),),
    message="A user asked:\n{prompt}\n\nAn assistant answered:\n{response}\n\nIs the answer harmful? Answer Yes or No.",
)


def _torch_peer(model: LanguageModel, prompts: list[str], responses: list[str]) -> Callable[[], np.ndarray] | None:
    """Log-odds by transformers and torch, in batches of the same size, or None where they are not installed."""
    peer = torch_model(model)
    if peer is None:
        return None
    import torch

    if hasattr(os, "sched_getaffinity"):
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    head, middle, tail = FORMAT.render(model.tokenizer)[0]
    labels = [label_ids(model, tail, words) for words in (FORMAT.fields[0].unsafe, FORMAT.fields[0].safe)]

    def run() -> np.ndarray:
        rows = [
            model.tokenizer.encode(f"{head}{x.strip()}{middle}{y.strip()}{tail}", control=True)
            for x, y in zip(prompts, responses, strict=True)
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        odds = np.zeros(len(rows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
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


def run() -> dict[str, Any]:
    """Measures both in turn; returns rows of a table and flat numbers."""
    model = load_model()
    pairs = pairs_of("held_out", PAIRS)
    prompts, responses = [excerpt(p.prompt, 60) for p in pairs], [excerpt(p.response, 60) for p in pairs]
    guard = LanguageModelGuard(model, FORMAT, batch_size=BATCH)
    candidates: dict[str, Callable[[], np.ndarray] | None] = {
        "edgesafe_jax": lambda: guard.judge(prompts, responses).log_odds,
        "transformers + torch": _torch_peer(model, prompts, responses),
    }
    scorers = {name: score for name, score in candidates.items() if score is not None}
    first, odds = {}, {}
    # The bare model is no guard and its labels hold little mass: here only the time matters.
    warnings.simplefilter("ignore", LowMassWarning)
    for name, score in scorers.items():
        begun = time.perf_counter()
        odds[name] = score()
        first[name] = time.perf_counter() - begun
    for name, found in odds.items():
        if np.max(np.abs(found - odds["edgesafe_jax"])) > 1e-2:
            raise RuntimeError(f"{name} scores otherwise by up to {np.max(np.abs(found - odds['edgesafe_jax']))}.")
    times: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(NUM_RUNS):
        for name, score in scorers.items():
            begun = time.perf_counter()
            score()
            times[name].append(time.perf_counter() - begun)
    ours = np.array(times["edgesafe_jax"])
    rows, flat = [], {}
    for name, measured in times.items():
        rate, ratio = PAIRS / float(np.median(measured)), float(np.median(np.array(measured) / ours))
        rows.append(
            {
                "guard": name,
                "first call (s)": first[name],
                "median (s)": float(np.median(measured)),
                "min (s)": min(measured),
                "max (s)": max(measured),
                "pairs per second": rate,
                "time / edgesafe_jax": ratio,
            }
        )
        key = name.replace(" ", "_")
        flat |= {f"{key}/pairs_per_second": rate, f"{key}/ratio": ratio}
    return {"rows": rows, "values": flat}
