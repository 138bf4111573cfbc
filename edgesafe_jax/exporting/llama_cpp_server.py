"""The process of llama.cpp's server; run as a script by `LlamaCpp`, it imports nothing of this library.

It reads its options, one line of JSON, from standard input, starts the server and writes one line of JSON: the address,
or the error. It runs until standard input is closed, so that it does not outlive the process that started it.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import Any


def main() -> None:
    """Serves a model."""
    options = json.loads(sys.stdin.readline())
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = options["path"]
    params.verbosity = -1
    params.n_parallel = options["num_parallel"]
    params.n_ctx = options["context"] * options["num_parallel"]
    params.cpuparams.n_threads = options["num_threads"]
    params.n_gpu_layers = 0
    params.use_jinja = True
    if options["batch"] is not None:
        params.n_ubatch = options["batch"]
    if options["exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if options["lora"] is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options["lora"], 1.0)]
    if options["slots"] is not None:
        params.endpoint_slots, params.slot_save_path = True, f"{options['slots']}{os.sep}"
    if options["template"] is not None:
        params.chat_template = pathlib.Path(options["template"]).read_text(encoding="utf-8")
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        _say({"error": str(error)})
        return
    _say({"address": server.listening_address})
    sys.stdin.read()


def _say(message: dict[str, str]) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # without waiting for the threads of the server
