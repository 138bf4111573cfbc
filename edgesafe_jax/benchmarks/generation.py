"""Greedy generation of SmolLM2 here, in transformers and torch, and in llama.cpp on the same Q4_1 file.

Answers of 40 tokens, whatever token would end them, to 1 and to 32 plain questions. Every system answers with one token
and with 40, in turn: the first is the time of the prompts, the difference that of the other 39 tokens of each answer.
llama.cpp has all processor cores, with one and with eight requests at once; it and torch read each prompt with its
template, here the head of the template is computed once and kept. Ratios are medians over runs that followed one
another, with bootstrap intervals.

The limits stand beside the times: one step reads all weights at the measured rate of memory, and computes two
operations for each weight and answer at the measured rate of matrix products. Peers that are not installed are named.
Matrices that are kept in 4 bits are made floats at every step, which one question shows well enough.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.assets import resolve_model
from edgesafe_jax.benchmarks.harness import Times, in_turn, key_of, on_accelerator, ratio_interval, same_columns
from edgesafe_jax.benchmarks.rates import product_rate, read_rate
from edgesafe_jax.exporting.llama_cpp import LlamaCpp
from edgesafe_jax.exporting.runtime import RuntimeFailure, RuntimeSettings
from edgesafe_jax.metrics import Interval
from edgesafe_jax.models import generate
from edgesafe_jax.models.decoder_config import flops_per_token
from edgesafe_jax.models.loading import DEFAULT_MODEL, LanguageModel, load_model, with_precision
from edgesafe_jax.models.precision import FACTORS, choose_precision
from edgesafe_jax.models.quantised import num_bytes

_log = logging.getLogger(__name__)

MAX_TOKENS, STREAMS = 40, 8
NUM_RUNS = {1: 7, 32: 3}
"""Runs of each system by number of questions."""

OURS, KEPT = "edgesafe_jax", "4-bit kept"
Answer: TypeAlias = Callable[[int], Any]
"""Answers all questions with so many tokens each."""

Peers: TypeAlias = Callable[[LanguageModel, Sequence[str]], Mapping[str, Answer]]
"""Makes the same answers in other libraries, by name; nothing where they are not installed."""


class _Endless:
    """A tokenizer without a token that ends an answer."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self.eos_ids = tokenizer, (-1,)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def endless(model: LanguageModel) -> LanguageModel:
    """The model whose answers never end by themselves."""
    tokenizer: Any = _Endless(model.tokenizer)
    return dataclasses.replace(model, tokenizer=tokenizer)


def _ours() -> dict[str, LanguageModel]:
    """The model in each precision."""
    model = load_model()
    found = {name: with_precision(model, matmul_dtype=dtype) for name, dtype in FACTORS.items()}
    found |= {"int8": load_model(quantization="int8"), KEPT: load_model(quantization="keep")}
    return {f"{OURS}, {name}": endless(each) for name, each in found.items()}


def llama_cpp(prompts: Sequence[str], num_parallel: int, stack: contextlib.ExitStack) -> dict[str, Answer]:
    """llama.cpp on the packaged file, with so many requests at once; nothing where it is not installed."""
    path = resolve_model(DEFAULT_MODEL).path
    try:
        runtime = stack.enter_context(LlamaCpp(path, RuntimeSettings(num_parallel=num_parallel, context=512)))
    except RuntimeFailure as error:
        _log.info(f"{error} It is left out.")
        return {}

    def answer(num: int) -> list[list[int]]:
        return runtime.answer(prompts, max_tokens=num, ignore_eos=True, cache_prompt=False).tokens

    return {f"llama.cpp, {num_parallel} at once": answer}


def _measure(
    models: Mapping[str, LanguageModel], prompts: Sequence[str], peers: Peers | None
) -> dict[str, dict[str, Times]]:
    """Times of one token and of all, by system."""
    with contextlib.ExitStack() as stack:
        systems: dict[str, Answer] = {
            name: lambda num, model=model: generate(model, prompts, max_tokens=num).tokens
            for name, model in models.items()
        }
        systems |= {} if peers is None else peers(next(iter(models.values())), prompts)
        systems |= llama_cpp(prompts, min(STREAMS, len(prompts)), stack)
        runs = {
            (name, num): functools.partial(answer, num) for name, answer in systems.items() for num in (1, MAX_TOKENS)
        }
        times = in_turn(runs, num_runs=NUM_RUNS[len(prompts)], alternate=True)
    for name in systems:
        short = [len(row) for row in times[name, MAX_TOKENS].result if len(row) != MAX_TOKENS]
        if short:
            raise RuntimeError(f"{name} made {len(short)} answers of other lengths than {MAX_TOKENS}: {short[:3]}.")
    return {name: {"prompt": times[name, 1], "whole": times[name, MAX_TOKENS]} for name in systems}


def _decode_seconds(times: Mapping[str, Times]) -> np.ndarray:
    """Seconds of one step in each run: all tokens of all answers behind their first."""
    return (np.array(times["whole"].wall) - np.array(times["prompt"].wall)) / (MAX_TOKENS - 1)


def run(peers: Peers | None = None) -> dict[str, Any]:
    """Measures all systems with one question and with many.

    Args:
      peers: makes the same answers in other libraries.

    Returns:
      Rows of a table and flat numbers.
    """
    models = _ours()
    any_model = next(iter(models.values()))
    questions = [prompt.text for prompt in corpora.questions(as_sentences=True)]
    chosen = choose_precision(any_model.config).decoding
    size = 8192 if on_accelerator() else 1024
    rates = {name: product_rate(dtype, size) for name, dtype in FACTORS.items()}
    read = read_rate()
    flops = flops_per_token(any_model.config, context=64)
    values = {"rates/read_gbytes_per_second": read / 1e9, "auto/decoding_in_bfloat16": float(chosen == "bfloat16")}
    values |= {f"rates/{name}_gflops": rate / 1e9 for name, rate in rates.items()}
    rows: list[dict[str, Any]] = []
    for batch in NUM_RUNS:
        asked = {name: model for name, model in models.items() if batch == 1 or not name.endswith(KEPT)}
        times = _measure(asked, questions[:batch], peers)
        for name, found in times.items():
            key, steps = f"batch_{batch}/{key_of(name)}", _decode_seconds(found)
            row: dict[str, Any] = {"questions": batch, "system": name}
            row["prompts (s)"] = found["prompt"].median
            row["step (ms)"] = 1e3 * float(np.median(steps))
            row["tokens / s"] = batch * MAX_TOKENS / found["whole"].median
            values |= {f"{key}/prompt_seconds": row["prompts (s)"], f"{key}/step_seconds": row["step (ms)"] / 1e3}
            values[f"{key}/tokens_per_second"] = row["tokens / s"]
            if name in models:
                matrices = num_bytes(models[name].params)
                rate = rates["float32" if name.endswith("float32") else "bfloat16"]
                row["weights read (ms)"], row["arithmetic (ms)"] = 1e3 * matrices / read, 1e3 * batch * flops / rate
                values |= {f"{key}/weights_read_seconds": matrices / read}
                values |= {f"{key}/arithmetic_seconds": batch * flops / rate}
                for peer in [other for other in times if other not in models]:
                    ratios = _ratios(found, times[peer])
                    row |= {f"{part} / {peer}": ratio.estimate for part, ratio in ratios.items()}
                    for part, ratio in ratios.items():
                        values |= ratio.named(f"{key}/{part}_over_{key_of(peer)}")
            rows.append(row)
    return {"rows": same_columns(rows), "values": values}


def _ratios(ours: Mapping[str, Times], peer: Mapping[str, Times]) -> dict[str, Interval]:
    """Our time over a peer's: of the prompts, of a step, and of the whole."""
    found = {part: ratio_interval(ours[part].wall, peer[part].wall) for part in ("prompt", "whole")}
    return found | {"step": ratio_interval(_decode_seconds(ours), _decode_seconds(peer))}
