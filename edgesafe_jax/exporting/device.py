"""Measurements of the packaged soft prompt inside llama.cpp: agreement with JAX, time and memory.

Times are seconds of the processor on one thread, which do not depend on what else runs on the machine. Memory is what
the process holds at most beyond what it held before the model was loaded, pages of the file included.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from edgesafe_jax import corpora
from edgesafe_jax.adapters import load_adapter, packaged_soft_prompt
from edgesafe_jax.assets import resolve_model
from edgesafe_jax.exporting.agreement import agreement
from edgesafe_jax.exporting.gguf_base import GgufBase, QuantType, copy_gguf, stored_as
from edgesafe_jax.exporting.llama_cpp import LlamaCpp
from edgesafe_jax.exporting.registry import EXPORTERS
from edgesafe_jax.exporting.runtime import RuntimeSettings
from edgesafe_jax.metrics import bootstrap_interval
from edgesafe_jax.models.gguf_files import read_gguf
from edgesafe_jax.models.loading import LanguageModel, load_model

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
        values = _agreements({"Q4_1": graft, "float32": files / "float32.gguf"}, prompts, model.config.vocab_size)
        original = Path(resolve_model(model.name).path)
        values["size/graft_over_base"] = graft.stat().st_size / original.stat().st_size
        costs = _costs(original, graft, files / "cache", prompts[-NUM_TIMED:])
    return {"rows": _rows(costs), "values": values | _cost_numbers(costs)}


def _values(tensor: Any) -> np.ndarray:
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


def _read(path: Path) -> LanguageModel:
    """Loads a file without leaving a converted copy of it in the cache."""
    config, params, tokenizer = read_gguf(path)
    return LanguageModel(path.name, config, jax.tree.map(jnp.asarray, params), tokenizer, hash="")


def _agreements(files: dict[str, Path], prompts: Sequence[str], num_tokens: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for name, path in files.items():
        exact = name == "float32"
        with LlamaCpp(path, RuntimeSettings(num_threads=1, context=512, exact=exact)) as runtime:
            answers = runtime.answer(prompts, max_tokens=MAX_TOKENS)
        found = agreement(_read(path), prompts, answers.tokens, num_tokens=num_tokens)
        values |= {f"agreement/{name}/{quantity}": value for quantity, value in found.numbers().items()}
    return values


def _costs(original: Path, graft: Path, cache: Path, prompts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Measures each system in a process of its own, one after another."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for name in SYSTEMS:
        with context.Pool(1) as pool:
            found[name] = pool.apply(_measure, (name, str(original), str(graft), str(cache), list(prompts)))
    return found


def _measure(name: str, original: str, graft: str, cache: str, prompts: Sequence[str]) -> dict[str, Any]:
    """Time and memory of one system; runs in a process of its own."""
    before = _resident("VmRSS")
    settings = RuntimeSettings(num_threads=1, context=512)
    restored = name == "prefix cache"
    more: dict[str, Any] = {"slots": cache, "template": f"{cache}/chat_template.jinja"} if restored else {}
    runtime = LlamaCpp(graft if name == "grafted" else original, settings, **more)
    guard = LlamaCpp(original, settings) if name == "base + guard" else None
    first, whole, rate = [], [], []
    for prompt in prompts:
        chat = runtime.chat(prompt)
        start = time.process_time()
        if restored:
            runtime.restore("prefix.slot")
        runtime.complete(chat, max_tokens=1, cache_prompt=restored)
        first.append(time.process_time() - start)
        start = time.process_time()
        reply = runtime.complete(chat, max_tokens=MAX_TOKENS, ignore_eos=True)
        if guard is not None:  # it reads the question and the answer, and says one word
            guard.complete(chat + reply["content"], max_tokens=1, cache_prompt=True)
        whole.append(time.process_time() - start)
        rate.append(reply["timings"]["predicted_per_second"])
    return {"first": first, "whole": whole, "rate": rate, "memory": _resident("VmHWM") - before}


def _resident(field: str) -> float:
    """A field of the memory of this process in MiB, of Linux."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"The system does not tell {field}.")


def _rows(costs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    base = costs["base"]
    return [
        {
            "system": name,
            "first token, CPU seconds": float(np.median(found["first"])),
            f"{MAX_TOKENS} tokens, CPU seconds": float(np.median(found["whole"])),
            "of the base": float(np.median(found["whole"]) / np.median(base["whole"])),
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
        for quantity in ("first", "whole"):
            values |= bootstrap_interval(found[quantity], statistic=_median).named(f"{stem}/{quantity}_cpu_seconds")
            ratios = np.array(found[quantity]) / np.array(base[quantity])
            values |= bootstrap_interval(ratios, statistic=_median).named(f"{stem}/{quantity}_over_base")
    return values
