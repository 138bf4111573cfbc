"""llama.cpp as a runtime, through the bindings `xllamacpp` (the extra `llama_cpp`).

The server of llama.cpp runs in a process of its own, which ends with this one, and listens on a free port of the
loopback. It is asked as any `llama-server` is, over HTTP, so that what is measured is what a device does with the same
file.
"""

import concurrent.futures
import contextlib
import dataclasses
import http
import http.client
import importlib.util
import json
import math
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgesafe_jax.errors import ConfigError, check_counts, check_texts
from edgesafe_jax.exporting.runtime import RuntimeAnswers, RuntimeFailure, RuntimeSettings
from edgesafe_jax.models.piped import end_piped, start_piped
from edgesafe_jax.typing import ProgressFn

Row = TypeVar("Row")

_TIMEOUT = 600.0  # seconds of one request
_PATIENCE = 10.0  # seconds that the server is given to end
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
        if importlib.util.find_spec("xllamacpp") is None:
            raise RuntimeFailure(
                "llama.cpp is not installed here: pip install 'edgesafe-jax[llama_cpp]', which brings xllamacpp."
            )
        options = {
            **dataclasses.asdict(settings),
            "path": str(path),
            "num_threads": settings.num_threads or len(os.sched_getaffinity(0)),
            "lora": None if lora is None else str(lora),
            "slots": None if slots is None else str(Path(slots).absolute()),
            "template": None if template is None else str(template),
        }
        self._num_parallel = settings.num_parallel
        self._process, self._address = _started(options)

    def __enter__(self) -> "LlamaCpp":
        """Returns itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stops the server."""
        self.close()

    def close(self) -> None:
        """Stops the server and frees the model."""
        if self._process is not None:
            end_piped(self._process, _PATIENCE)
        self._process = None

    @property
    def pid(self) -> int:
        """The number of the server's process.

        Raises:
          RuntimeFailure: it is stopped.
        """
        if self._process is None:
            raise RuntimeFailure("The runtime has been stopped.")
        return self._process.pid

    def post(self, endpoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request to the server.

        Args:
          endpoint: such as `/completion`.
          request: its JSON fields.

        Returns:
          The fields of the reply.

        Raises:
          RuntimeFailure: the server refuses the request, has ended, or is stopped.
        """
        if self._process is None:
            raise RuntimeFailure("The runtime has been stopped.")
        connection = http.client.HTTPConnection(self._address.removeprefix("http://"), timeout=_TIMEOUT)
        try:
            connection.request("POST", endpoint, json.dumps(request), {"Content-Type": "application/json"})
            _wait(connection.sock, self._process)
            reply = connection.getresponse()
            text = reply.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that ends closes its connections first
                self._process.wait(1)
            ended = "" if self._process.poll() is None else f"; its process {_reason(self._process)}"
            raise RuntimeFailure(f"llama.cpp does not reply to {endpoint}: {error}{ended}") from error
        finally:
            connection.close()
        if reply.status != http.HTTPStatus.OK:
            raise RuntimeFailure(f"llama.cpp refuses {endpoint}: {text[:300]}")
        return json.loads(text)

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


def _started(options: Mapping[str, Any]) -> tuple[subprocess.Popen[str], str]:
    """Starts the server; returns its process and its address."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("llama_cpp_server.py"))]
    # Without the variable, llama.cpp attaches a debugger to itself where it aborts.
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    process = start_piped(command, environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(options) + "\n")
        process.stdin.flush()
        reply = process.stdout.readline()
    except BrokenPipeError:
        reply = ""
    except BaseException:
        end_piped(process, _PATIENCE)
        raise
    found = json.loads(reply) if reply.startswith("{") else {}
    if "address" in found:
        return process, found["address"]
    end_piped(process, _PATIENCE)
    raise RuntimeFailure(f"llama.cpp cannot load {options['path']}: {found.get('error') or _reason(process)}.")


def _wait(connection: socket.socket, process: subprocess.Popen[str]) -> None:
    """Waits for a reply as long as the server runs."""
    deadline = time.monotonic() + _TIMEOUT
    while not select.select([connection], [], [], 1.0)[0]:
        if process.poll() is not None:
            raise ConnectionError("it has ended")
        if time.monotonic() > deadline:
            raise TimeoutError(f"no reply in {_TIMEOUT:.0f} seconds")


def _reason(process: subprocess.Popen[str]) -> str:
    code = process.returncode
    return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"


def _rate(timing: Mapping[str, float]) -> float:
    """Tokens per second after the first token; NaN where there is one alone."""
    num = timing["predicted_n"] - 1
    return num / (timing["predicted_ms"] / 1e3) if num > 0 else math.nan
