"""llama.cpp as a runtime, through the bindings `xllamacpp` (the extra `llama_cpp`).

The server of llama.cpp runs inside this process and listens on a free port of the loopback; it is asked as any
`llama-server` is, over HTTP, so that what is measured is what a device does with the same file.
"""

import concurrent.futures
import importlib
import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgesafe_jax.errors import ConfigError, check_counts, check_texts
from edgesafe_jax.exporting.runtime import RuntimeAnswers, RuntimeFailure, RuntimeSettings
from edgesafe_jax.typing import ProgressFn

Row = TypeVar("Row")

_TIMEOUT = 600.0  # seconds of one request
_CERTAIN = 1e5  # added to a token's logit, so that it is chosen; its probability is reported without it


class LlamaCpp:
    """A model inside llama.cpp.

    Args:
      path: the GGUF file.
      settings: of the runtime.
      lora: a GGUF file of a LoRA on top, or None.
      slots: a folder of prompt-cache files that `restore` can read, or None.
      template: a file with a chat template in place of the model's own, or None.

    Raises:
      RuntimeFailure: the bindings are not installed, or the file cannot be loaded.
    """

    def __init__(
        self,
        path: str | Path,
        settings: RuntimeSettings | None = None,
        *,
        lora: str | Path | None = None,
        slots: str | Path | None = None,
        template: str | Path | None = None,
    ):
        settings = settings or RuntimeSettings()
        if not Path(path).is_file():
            raise RuntimeFailure(f"There is no model {path}: expected a GGUF file.")
        try:
            xllamacpp = importlib.import_module("xllamacpp")
        except ImportError as error:
            raise RuntimeFailure(
                "llama.cpp is not installed here: pip install 'edgesafe-jax[llama_cpp]', which brings xllamacpp."
            ) from error
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.verbosity = -1
        params.n_parallel = settings.num_parallel
        params.n_ctx = settings.context * settings.num_parallel
        params.cpuparams.n_threads = settings.num_threads or len(os.sched_getaffinity(0))
        params.n_gpu_layers = 0
        params.use_jinja = True
        if settings.exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        if slots is not None:
            params.endpoint_slots, params.slot_save_path = True, f"{Path(slots).absolute()}{os.sep}"
        if template is not None:
            params.chat_template = Path(template).read_text(encoding="utf-8")
        self._num_parallel = settings.num_parallel
        try:
            self._server: Any = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise RuntimeFailure(f"llama.cpp cannot load {path}: {error}") from error
        # The address is on the loopback, whatever proxy the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> "LlamaCpp":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops the server."""
        self.close()

    def close(self) -> None:
        """Stops the server and frees the model."""
        self._server = None

    def post(self, endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request to the server.

        Args:
          endpoint: such as `/completion`.
          request: its JSON fields.

        Returns:
          The fields of the reply.

        Raises:
          RuntimeFailure: the server refuses the request, or is stopped.
        """
        if self._server is None:
            raise RuntimeFailure("The runtime has been stopped.")
        message = urllib.request.Request(
            self._server.listening_address + endpoint,
            json.dumps(request).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with self._opener.open(message, timeout=_TIMEOUT) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")[:300]
            raise RuntimeFailure(f"llama.cpp refuses {endpoint}: {text}") from error
        except OSError as error:
            raise RuntimeFailure(f"llama.cpp does not reply to {endpoint}: {error}") from error

    def chat(self, prompt: str) -> str:
        """Renders a one-turn chat up to where the answer begins, with the chat template of the file."""
        messages = [{"role": "user", "content": prompt.strip()}]
        return self.post("/apply-template", {"messages": messages})["prompt"]

    def tokenize(self, text: str, *, whole: bool = True) -> list[int]:
        """Encodes text, in which control tokens are read.

        Args:
          text: what to encode.
          whole: whether it stands at the beginning, where a file may ask for a token before it.
        """
        return self.post("/tokenize", {"content": text, "add_special": whole, "parse_special": True})["tokens"]

    def complete(self, prompt: str | Sequence[int], *, max_tokens: int, **fields: Any) -> dict[str, Any]:
        """Continues a text or a row of tokens greedily; returns the reply of `/completion`."""
        sampling = {"temperature": 0, "samplers": ["temperature"], "return_tokens": True}
        given = prompt if isinstance(prompt, str) else list(prompt)
        return self.post("/completion", {"prompt": given, "n_predict": max_tokens, **sampling, **fields})

    def restore(self, name: str) -> int:
        """Reads a prompt-cache file of the folder `slots` into the first slot; returns its number of tokens."""
        return int(self.post("/slots/0?action=restore", {"filename": name})["n_restored"])

    def answer(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int,
        prefills: Sequence[str] | None = None,
        on_batch: ProgressFn | None = None,
        **fields: Any,
    ) -> RuntimeAnswers:
        """Answers one-turn chats greedily, see `Runtime.answer`.

        Args:
          prompts: N user texts.
          max_tokens: longest answer.
          prefills: how each answer is made to begin, part of the texts but not of the tokens; or None.
          on_batch: called with (answers done, answers in total).
          **fields: further fields of `/completion`.

        Raises:
          ConfigError: other numbers of prompts and prefills, or something else than texts.
          RuntimeFailure: a prompt is longer than the context.
        """
        prompts = check_texts("prompts", prompts)
        check_counts(max_tokens=max_tokens)
        begun = [""] * len(prompts) if prefills is None else check_texts("prefills", prefills)
        if len(begun) != len(prompts):
            raise ConfigError(f"{len(begun)} prefills for {len(prompts)} prompts: expected as many.")

        def one(row: tuple[str, str]) -> dict[str, Any]:
            return self.complete(self.chat(row[0]) + row[1], max_tokens=max_tokens, **fields)

        replies = self._all(one, list(zip(prompts, begun, strict=True)), on_batch)
        timings = [reply["timings"] for reply in replies]
        return RuntimeAnswers(
            texts=[f"{start}{reply['content']}".strip() for start, reply in zip(begun, replies, strict=True)],
            tokens=[reply["tokens"] for reply in replies],
            first_seconds=np.array([timing["prompt_ms"] / 1e3 for timing in timings]),
            tokens_per_second=np.array([_rate(timing) for timing in timings]),
        )

    def answer_log_probs(
        self, prompts: Sequence[str], answers: Sequence[str], *, on_batch: ProgressFn | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of given answers to one-turn chats, see `Runtime.answer_log_probs`.

        Every token of an answer is made certain in a request of its own, whose reply gives the probability that the
        model itself has for it.
        """
        prompts, answers = check_texts("prompts", prompts), check_texts("answers", answers)
        if len(prompts) != len(answers):
            raise ConfigError(f"{len(prompts)} prompts and {len(answers)} answers: expected as many of each.")

        def one(row: tuple[str, str]) -> tuple[float, int]:
            before = self.chat(row[0])
            start, whole = self.tokenize(before), self.tokenize(before + row[1])
            if whole[: len(start)] != start or len(whole) == len(start):  # merged across the border
                whole = start + self.tokenize(row[1], whole=False)
            return sum(self._log_prob(whole[:end], whole[end]) for end in range(len(start), len(whole))), len(
                whole
            ) - len(start)

        found = self._all(one, list(zip(prompts, answers, strict=True)), on_batch)
        return np.array([total for total, _ in found]), np.array([num for _, num in found])

    def _log_prob(self, tokens: Sequence[int], following: int) -> float:
        reply = self.complete(tokens, max_tokens=1, n_probs=1, logit_bias=[[following, _CERTAIN]])
        [chosen] = reply["completion_probabilities"]
        return float(chosen["logprob"]) if chosen["id"] == following else -math.inf

    def _all(self, ask: Callable[[Row], Any], rows: Sequence[Row], on_batch: ProgressFn | None) -> list[Any]:
        """Asks for every row, several at once; the replies are in the order of the rows."""
        replies = []
        with concurrent.futures.ThreadPoolExecutor(self._num_parallel) as pool:
            for reply in pool.map(ask, rows):
                replies.append(reply)
                if on_batch is not None:
                    on_batch(len(replies), len(rows))
        return replies


def _rate(timing: Mapping[str, float]) -> float:
    """Tokens per second after the first token; NaN where there is one alone."""
    num = timing["predicted_n"] - 1
    return num / (timing["predicted_ms"] / 1e3) if num > 0 else math.nan
