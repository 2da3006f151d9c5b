"""llama.cpp's server in a process of its own: where it aborts, it takes nothing with it.

Started by finetune.exporting.llama_cpp.server; standard library and xllamacpp only. It reads its orders from
standard input (JSON, one line), answers with its address, and ends when standard input does.
"""

import json
import os
import sys
from typing import Any


def main() -> None:
    """Serve one model on the loopback."""
    orders, answers = json.loads(sys.stdin.readline()), os.dup(1)
    os.dup2(2, 1)  # what llama.cpp prints is no answer
    import xllamacpp

    params: Any = xllamacpp.CommonParams()
    params.model.path = orders["model"]
    params.n_ctx = params.n_batch = params.n_ubatch = orders["context"]
    # What llama.cpp rounds by itself is not the file's: keys and values stay in float32.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = orders["threads"]
    params.n_parallel, params.port, params.hostnames = 1, 0, ["127.0.0.1"]
    params.warmup = params.fit_params = params.ui = False
    if orders["lora"]:
        lora: Any = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = orders["lora"], 1.0
        params.lora_adapters = [lora]
    server: Any = xllamacpp.Server(params)
    os.write(answers, json.dumps({"address": server.listening_address}).encode() + b"\n")
    sys.stdin.read()
    os._exit(0)  # its threads would be waited for


if __name__ == "__main__":
    main()
