"""Scoring by a language-model guard, here and in other libraries: pairs per second.

32 human-scored pairs, cut to 60 words, are judged by SmolLM2 in batches of 16 with the labels "Yes" and "No". The peer
is the same network in transformers and torch on the same token ids, float32 too, with logits at the last position only;
there each row computes the head of the template anew. Both scores are compared, so that the work is known to be the
same. Tokenisation is part of the time on both sides. Both use the processor cores that the process may run on.

Other work on the machine slows whoever happens to run: the two take turns, in an order that is turned round each time,
the ratio is the median over these pairs of runs, with a bootstrap interval, and the ratio of processor time, summed
over threads, stands beside it. The third row has factors of bfloat16, sums of float32: another precision, no peer.
"""

import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from edgesafe_jax.benchmarks.harness import in_turn, key_of, ratio_interval
from edgesafe_jax.guards.examples import human_sample
from edgesafe_jax.guards.paraphrases import excerpt
from edgesafe_jax.guards.registry import Field, GuardFormat
from edgesafe_jax.guards.scoring import LanguageModelGuard, LowMassWarning
from edgesafe_jax.models.loading import LanguageModel, load_model

BATCH, PAIRS, NUM_RUNS = 16, 32, 12
OURS = "edgesafe_jax"
Peer: TypeAlias = Callable[[LanguageModel, list[str], list[str]], Callable[[], np.ndarray] | None]
FORMAT = GuardFormat(
    fields=(Field("", unsafe=("Yes",), safe=("No",)),),
    message="A user asked:\n{prompt}\n\nAn assistant answered:\n{response}\n\nIs the answer harmful? Answer Yes or No.",
)


def run(peer: Peer | None = None) -> dict[str, Any]:
    """Measures all in turn.

    Args:
      peer: makes the same judgement in another library, from model, prompts and responses to a function that returns
        the log-odds `[N]`, or None where it is not installed.

    Returns:
      Rows of a table and flat numbers.
    """
    pairs = human_sample("held_out", PAIRS)
    prompts, responses = [excerpt(p.prompt, 60) for p in pairs], [excerpt(p.response, 60) for p in pairs]
    model = load_model()

    def ours(model: LanguageModel) -> Callable[[], np.ndarray]:
        guard = LanguageModelGuard(model, FORMAT, batch_size=BATCH)
        return lambda: guard.judge(prompts, responses).log_odds

    candidates: dict[str, Callable[[], np.ndarray] | None] = {
        OURS: ours(model),
        "transformers + torch": None if peer is None else peer(model, prompts, responses),
        f"{OURS}, bfloat16 factors": ours(load_model(matmul_dtype=jnp.dtype(jnp.bfloat16))),
    }
    scorers = {name: score for name, score in candidates.items() if score is not None}
    # The bare model is no guard and its labels hold little mass: here only the time matters.
    warnings.simplefilter("ignore", LowMassWarning)
    times = in_turn(scorers, num_runs=NUM_RUNS, alternate=True)
    if (other := times.get("transformers + torch")) is not None:
        apart = np.max(np.abs(other.result - times[OURS].result))
        if apart > 1e-2:
            raise RuntimeError(f"The log-odds of the two differ by up to {apart}.")
    rows, flat = [], {}
    for name, measured in times.items():
        ratio = ratio_interval(measured.wall, times[OURS].wall)
        processor = ratio_interval(measured.processor, times[OURS].processor).estimate
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
