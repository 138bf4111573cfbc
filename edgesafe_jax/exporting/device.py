"""Measurements of the packaged soft prompt inside llama.cpp: agreement with JAX, time and memory.

Times are seconds of the processor on one thread, which do not depend on what else runs on the machine. A cold request
computes its prompt from the first token on; a warm one follows a chat whose beginning is cached, as in a running
server. Memory is what the process of llama.cpp holds at most beyond what one without a model holds, pages of the file
included.
"""

import contextlib
import dataclasses
import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.adapters import load_adapter, packaged_soft_prompt
from edgesafe_jax.assets import resolve_model
from edgesafe_jax.exporting.agreement import Agreement, agreement, own_differences
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType, copy_gguf, stored_as
from edgesafe_jax.exporting.llama_cpp import LlamaCpp
from edgesafe_jax.exporting.registry import EXPORTERS
from edgesafe_jax.exporting.runtime import RuntimeSettings
from edgesafe_jax.metrics import bootstrap_interval, rate_interval
from edgesafe_jax.models.decoder_config import DecoderConfig, flops_per_token
from edgesafe_jax.models.loading import load_model

MAX_TOKENS = 40
NUM_PROMPTS, NUM_TIMED = 100, 12

SYSTEMS = ("base", "grafted", "prefix cache", "base + guard")


def run() -> dict[str, Any]:
    """Exports the packaged soft prompt, runs it, and returns `rows` (a table) and `values` (flat numbers)."""
    model = load_model()
    adapter = load_adapter(packaged_soft_prompt(), model)
    harmful, plain = corpora.strongreject(), corpora.questions(as_sentences=True)
    prompts = [prompt.text for prompt in [*harmful[: NUM_PROMPTS // 2], *plain[: NUM_PROMPTS // 2]]]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        graft = EXPORTERS["vocabulary_graft"](adapter, model, files / "graft") / "model.gguf"
        EXPORTERS["prefix_cache"](adapter, model, files / "cache")
        base = GgufBase(Path(graft), model.config)
        wide = {name: stored_as(_values(tensor), QuantType.F32) for name, tensor in base.tensors.items()}
        copy_gguf(base, files / "float32.gguf", tensors=wide)
        values = _agreements(graft, files / "float32.gguf", prompts, model.config.vocab_size)
        original = Path(resolve_model(model.name).path)
        values["size/graft_over_base"] = graft.stat().st_size / original.stat().st_size
        timed = prompts[-NUM_TIMED:]
        costs = {name: _measure(name, original, graft, files / "cache", timed) for name in SYSTEMS}
    values |= _operations(model.config, adapter.num_virtual)
    return {"rows": _rows(costs), "values": values | _cost_numbers(costs)}


def _values(tensor: Any) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _operations(config: DecoderConfig, num_virtual: int) -> dict[str, float]:
    """Floating-point operations of a token at a context of 512, in the terms of the paper's table of costs."""
    base = flops_per_token(config, context=512)
    return {
        "operations/base/gflop_per_token": base / 1e9,
        "operations/grafted/gflop_per_token": flops_per_token(config, context=512 + num_virtual) / 1e9,
        "operations/base + guard/gflop_per_token": 2 * base / 1e9,
    }


def _agreements(graft: Path, wide: Path, prompts: Sequence[str], num_tokens: int) -> dict[str, float]:
    """Agreement with JAX by file, settings of the runtime and arithmetic of JAX; and of the runtime with itself."""
    settings = RuntimeSettings(num_threads=1, context=512)
    exact = dataclasses.replace(settings, exact=True)
    asked = {
        ("float32", "exact"): (wide, exact),
        ("float32", "default"): (wide, settings),
        ("Q4_1", "exact"): (graft, exact),
        ("Q4_1", "default"): (graft, settings),
        ("Q4_1", "default, prompts in parts of 16"): (graft, dataclasses.replace(settings, batch=16)),
    }
    answers = {}
    for name, (path, chosen) in asked.items():
        with LlamaCpp(path, chosen) as runtime:
            answers[name] = runtime.answer(prompts, max_tokens=MAX_TOKENS).tokens
    values: dict[str, float] = {}
    kept: dict[str, Agreement] = {}
    plain, rounded = (load_model(str(graft), quantization=name) for name in ("keep", "ggml"))
    for (file, how), tokens in answers.items():
        for arithmetic, model in (("float32 inputs", plain), ("8-bit inputs", rounded)):
            if file == "Q4_1" or model is plain:
                found = agreement(model, prompts, tokens, num_tokens=num_tokens)
                stem = f"agreement/{file}/{how}/{arithmetic}"
                values |= {f"{stem}/{quantity}": value for quantity, value in found.numbers().items()}
                kept[how] = found  # the last of each is that of 8-bit inputs
    reference = answers["Q4_1", "default"]
    for how in ("exact", "default, prompts in parts of 16"):
        same = np.array([a == b for a, b in zip(reference, answers["Q4_1", how], strict=True)])
        stem = f"agreement/Q4_1/default/the runtime itself, {how}"
        values |= rate_interval(same).named(f"{stem}/equal_answers")
        gaps = own_differences((reference, answers["Q4_1", how]), (kept["default"], kept[how]))
        values |= {f"{stem}/first_margin_median": float(np.median(gaps)), f"{stem}/first_margin_max": float(gaps.max())}
    return values


def _measure(name: str, original: Path, graft: Path, cache: Path, prompts: Sequence[str]) -> dict[str, Any]:
    """Time and memory of one system."""
    settings = RuntimeSettings(num_threads=1, context=512)
    restored = name == "prefix cache"
    more: dict[str, Any] = {"slots": cache, "template": cache / "chat_template.jinja"} if restored else {}
    found: dict[str, Any] = {"first": [], "cold": [], "warm": [], "rate": []}
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(LlamaCpp(graft if name == "grafted" else original, settings, **more))
        processes = [runtime]
        guard = stack.enter_context(LlamaCpp(original, settings)) if name == "base + guard" else None
        processes += [] if guard is None else [guard]

        def answer(chat: str, cached: bool) -> float:
            reply = runtime.complete(chat, max_tokens=MAX_TOKENS, ignore_eos=True, cache_prompt=cached)
            if guard is not None:  # it reads the question and the answer, and says one word
                guard.complete(chat + reply["content"], max_tokens=1, cache_prompt=cached)
            return reply["timings"]["predicted_per_second"]

        for prompt in prompts:
            chat, marks = runtime.chat(prompt), [_seconds(processes)]
            for step in ("first", "cold", "warm"):
                if restored and step != "warm":
                    runtime.restore("prefix.slot")
                if step == "first":
                    runtime.complete(chat, max_tokens=1, cache_prompt=restored)
                else:
                    rate = answer(chat, restored or step == "warm")
                    found["rate"].append(rate)
                marks.append(_seconds(processes))
                found[step].append(marks[-1] - marks[-2])
        found["memory"] = sum(_peak_mib(each.pid) - _bare_mib() for each in processes)
    return found


def _seconds(processes: Sequence[LlamaCpp]) -> float:
    """CPU seconds of the processes so far: the clock that POSIX keeps for each, of Linux."""
    return sum(time.clock_gettime(~each.pid << 3 | 2) for each in processes)


def _peak_mib(pid: int | str) -> float:
    """The largest resident memory of a process so far, of Linux."""
    return _high_water(Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))


@functools.cache
def _bare_mib() -> float:
    """What a process holds that has imported the bindings and loaded no model."""
    code = "import xllamacpp; print(open('/proc/self/status').read())"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout
    return _high_water(told)


def _high_water(status: str) -> float:
    """The largest resident memory, in MiB, that the text of a process's status tells."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("The system does not tell VmHWM.")


def _rows(costs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    base = costs["base"]
    return [
        {
            "system": name,
            "first token, CPU seconds": float(np.median(found["first"])),
            f"cold request of {MAX_TOKENS} tokens": float(np.median(found["cold"])),
            "of the base": float(np.median(found["cold"]) / np.median(base["cold"])),
            f"warm request of {MAX_TOKENS} tokens": float(np.median(found["warm"])),
            "of the base, warm": float(np.median(found["warm"]) / np.median(base["warm"])),
            "tokens per second": float(np.median(found["rate"])),
            "memory, MiB": found["memory"],
            "memory of the base": found["memory"] / base["memory"],
        }
        for name, found in costs.items()
    ]


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _cost_numbers(costs: dict[str, dict[str, Any]]) -> dict[str, float]:
    values: dict[str, float] = {}
    base = costs["base"]
    for name, found in costs.items():
        stem = f"cost/{name}"
        values[f"{stem}/memory_mib"] = found["memory"]
        values[f"{stem}/memory_over_base"] = found["memory"] / base["memory"]
        values[f"{stem}/tokens_per_second"] = float(np.median(found["rate"]))
        for quantity in ("first", "cold", "warm"):
            values |= bootstrap_interval(found[quantity], statistic=_median).named(f"{stem}/{quantity}_cpu_seconds")
            ratios = np.array(found[quantity]) / np.array(base[quantity])
            values |= bootstrap_interval(ratios, statistic=_median).named(f"{stem}/{quantity}_over_base")
    return values
