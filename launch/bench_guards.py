"""Scoring by a language-model guard, here and in PyTorch: pairs per second.

32 human-scored pairs, cut to 60 words, are judged by SmolLM2 in batches of 16 with the labels "Yes" and "No". The peer
is the same network in transformers and torch on the same token ids, float32 too, with logits at the last position only;
there each row computes the head of the template anew. Both scores are compared, so that the work is known to be the
same. Tokenisation is part of the time on both sides. Both use the processor cores that the process may run on.

Other work on the machine slows whoever happens to run: the two take turns, in an order that is turned round each time,
the ratio is the median over these pairs of runs, with a bootstrap interval, and the ratio of processor time, summed
over threads, stands beside it. The third row has factors of bfloat16, sums of float32: another precision, no peer.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from edgesafe_jax import metrics
from edgesafe_jax.guards.examples import human_sample
from edgesafe_jax.guards.paraphrases import excerpt
from edgesafe_jax.guards.registry import Field, GuardFormat
from edgesafe_jax.guards.scoring import LanguageModelGuard, LowMassWarning, label_ids
from edgesafe_jax.models.loading import LanguageModel, load_model
from launch.bench_align import torch_model
from launch.benchmarking import in_turn, key_of

BATCH, PAIRS, NUM_RUNS = 16, 32, 12
OURS = "edgesafe_jax"
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
    """Measures all in turn; returns rows of a table and flat numbers."""
    pairs = human_sample("held_out", PAIRS)
    prompts, responses = [excerpt(p.prompt, 60) for p in pairs], [excerpt(p.response, 60) for p in pairs]
    model = load_model()

    def ours(model: LanguageModel) -> Callable[[], np.ndarray]:
        guard = LanguageModelGuard(model, FORMAT, batch_size=BATCH)
        return lambda: guard.judge(prompts, responses).log_odds

    candidates: dict[str, Callable[[], np.ndarray] | None] = {
        OURS: ours(model),
        "transformers + torch": _torch_peer(model, prompts, responses),
        f"{OURS}, bfloat16 factors": ours(load_model(matmul_dtype=jnp.dtype(jnp.bfloat16))),
    }
    scorers = {name: score for name, score in candidates.items() if score is not None}
    # The bare model is no guard and its labels hold little mass: here only the time matters.
    warnings.simplefilter("ignore", LowMassWarning)
    times = in_turn(scorers, num_runs=NUM_RUNS, alternate=True)
    if (peer := times.get("transformers + torch")) is not None:
        apart = np.max(np.abs(peer.result - times[OURS].result))
        if apart > 1e-2:
            raise RuntimeError(f"The log-odds of the two differ by up to {apart}.")
    rows, flat = [], {}
    for name, measured in times.items():
        ratio = _median_ratio(measured.wall, times[OURS].wall)
        processor = _median_ratio(measured.processor, times[OURS].processor).estimate
        rows.append(
            {
                "guard": name,
                **measured.columns(),
                "pairs per second": PAIRS / measured.median,
                f"time / {OURS}": ratio.estimate,
                "low": ratio.low,
                "high": ratio.high,
                f"processor time / {OURS}": processor,
            }
        )
        key = key_of(name)
        flat |= {f"{key}/pairs_per_second": PAIRS / measured.median, **ratio.named(f"{key}/ratio")}
        flat[f"{key}/processor_ratio"] = processor
    return {"rows": rows, "values": flat}


def _median_ratio(times: Sequence[float], ours: Sequence[float]) -> metrics.Interval:
    """The median ratio of runs that followed one another, with an interval over the runs."""
    return metrics.bootstrap_interval(
        np.array(times) / np.array(ours), statistic=lambda drawn: float(np.median(drawn)), num_samples=1000
    )
