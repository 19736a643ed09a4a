"""What one large GPU does, in ten minutes: a 7B teacher and a 0.5B student of random weights.

    python -m benchmarks.gpu [--minutes 10] [--only PART ...] [--small] [--here]

Parts: the dense peak of the chip in bfloat16; a bare forward pass of the teacher; capture beside
it; a step of KD from the live teacher, plain and by FSDP with one rank; generation by this library
and by vLLM, where it is installed. Each part is a process of its own with a limit of time: where
one fails, hangs or is killed, the error takes the place of its figures, and its log lies beside the
JSON. What is measured is written after each part, and printed also where the script is stopped
(Ctrl-C, or `timeout`). `--here` runs the parts in one process, which saves some seconds each.
`--small` runs all of it on a CPU, with models of a few thousand weights: a test, whose
figures mean nothing. This script was never run on a GPU.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measuring import table

SHAPES = {
    "student": {"width": 896, "neurons": 4864, "layers": 24, "heads": 14, "keys": 2, "tied": True},
    "teacher": {"width": 3584, "neurons": 18944, "layers": 28, "heads": 28, "keys": 4},
}
"""Of Qwen2.5 0.5B and 7B, as Llamas."""
FEW = {"width": 32, "neurons": 64, "layers": 2, "heads": 2, "keys": 1}
VOCABULARY = 151_936
TOP_K = 64
LIMIT = 240
"""Seconds after which a part is ended; vLLM's start is the longest."""


class Setting:
    """Device, shapes and a batch, the same for every part."""

    def __init__(self, *, small: bool) -> None:
        import torch

        self.small = small
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.vocabulary = 300 if small else VOCABULARY
        self.rows, self.tokens = (2, 16) if small else (8, 1024)
        self.steps = 1 if small else 5
        torch.manual_seed(0)
        self.ids_BS = torch.randint(self.vocabulary, (self.rows, self.tokens), device=self.device)
        half = self.tokens // 2
        first_B1 = self.tokens * torch.arange(self.rows)[:, None]
        answer_S = torch.arange(half - 1, self.tokens - 1)
        self.positions_N = (first_B1 + answer_S).flatten().to(self.device)
        self.labels_N = self.ids_BS[:, half:].flatten()
        self.peak = 0.0
        """FLOP/s of dense products in bfloat16, once measured."""

    def config(self, name: str) -> Any:
        """Return the configuration of the student or the teacher."""
        from transformers import LlamaConfig

        shapes = FEW | {"tied": name == "student"} if self.small else SHAPES[name]
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=shapes["width"],
            intermediate_size=shapes["neurons"],
            num_hidden_layers=shapes["layers"],
            num_attention_heads=shapes["heads"],
            num_key_value_heads=shapes["keys"],
            tie_word_embeddings=shapes.get("tied", False),
            architectures=["LlamaForCausalLM"],  # vLLM goes by it
            max_position_embeddings=4096,
        )

    def model(self, name: str, *, frozen: bool) -> Any:
        """Return a model of random weights, in bfloat16 where it is frozen."""
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                self.config(name), dtype=torch.bfloat16 if frozen else torch.float32
            )
        return model.eval().requires_grad_(False) if frozen else model.train()

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the median wall time of some work, after one call that is not timed."""
        work()
        times = []
        for _ in range(self.steps):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        """Wait for the GPU."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def speed(self, flop: float, seconds: float) -> dict[str, float]:
        """Return tokens and FLOP a second, and their share of the dense peak."""
        figures = {
            "tokens_per_second": self.ids_BS.numel() / seconds,
            "tflops": flop / seconds / 1e12,
        }
        return figures | ({"share_of_peak": flop / seconds / self.peak} if self.peak else {})


def dense(setting: Setting) -> dict[str, float]:
    """Measure a large product in bfloat16: what the chip reaches at best."""
    import torch

    size = 64 if setting.small else 8192
    factor = torch.randn(size, size, device=setting.device, dtype=torch.bfloat16)
    seconds = setting.seconds(lambda: factor @ factor)
    setting.peak = 2 * size**3 / seconds
    return {"tflops": setting.peak / 1e12}


def bare_forward(setting: Setting) -> dict[str, float]:
    """Measure the teacher's body over whole rows: the floor of a capture."""
    import torch

    from cohobate.models.layers import body_of

    teacher = setting.model("teacher", frozen=True)
    with torch.no_grad():
        seconds = setting.seconds(lambda: body_of(teacher)(setting.ids_BS, use_cache=False))
    return setting.speed(2 * weights_of_body(teacher) * setting.ids_BS.numel(), seconds)


def capture(setting: Setting) -> dict[str, float]:
    """Measure a teacher's pass with the top k of each answer token, as capture stores it."""
    import torch

    from cohobate.fast.forward_pass import forward
    from cohobate.models.lm_head import Head
    from cohobate.teachers.signal_store.forms import StoredTopK

    teacher = setting.model("teacher", frozen=True)
    head, form = Head.of(teacher), StoredTopK(type="top_k", k=min(TOP_K, setting.vocabulary // 2))

    def work() -> None:
        hidden_ND = forward(teacher, setting.ids_BS, setting.positions_N).last_hidden_ND
        for chunk_ND in hidden_ND.split(512):
            form.measure(head, chunk_ND, chunk_ND)  # the last is for draws, which this form has not

    with torch.no_grad():
        seconds = setting.seconds(work)
    flop = 2 * weights_of_body(teacher) * setting.ids_BS.numel()
    flop += 2 * head.weight_VD.numel() * len(setting.labels_N)
    return setting.speed(flop, seconds)


def kd_step(setting: Setting, *, sharded: bool = False) -> dict[str, float]:
    """Measure an update of the student against the live teacher; its memory beside the estimate.

    Where the loss cannot be compiled, it is measured as it is.
    """
    compiled = setting.device == "cuda"
    try:
        return _kd_step(setting, sharded=sharded, compiled=compiled)
    except Exception as error:
        if not compiled:
            raise
        print(f"not compiled: {error}", file=sys.stderr)
    return _kd_step(setting, sharded=sharded, compiled=False) | {"compiled": 0.0}


def _kd_step(setting: Setting, *, sharded: bool, compiled: bool) -> dict[str, float]:
    import torch

    from cohobate.losses.divergences import ForwardKL
    from cohobate.models import sharding
    from cohobate.models.lm_head import check_head
    from cohobate.models.model_size import size_of_model
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training import Hyperparameters, peak_memory
    from cohobate.training.memory import Placement, TeacherSize
    from cohobate.training.model_loss import CausalLMLoss

    student = setting.model("student", frozen=False)
    teacher = setting.model("teacher", frozen=True)
    how = Hyperparameters(
        updates=1, batch_size=setting.rows, precision="bfloat16", max_tokens=setting.tokens,
        freeze={"embeddings": False},
    )  # fmt: skip
    teachers = [TeacherSize(size_of_model(teacher), 2)]
    estimate = peak_memory(
        size_of_model(student), how, setting.tokens, teachers, placement=Placement(setting.device)
    )
    check_head(student)  # it is measured in whole weights
    flop = kd_flop(student, teacher, setting)
    source = LiveSource({"main": teacher}, setting.vocabulary)
    loss_fn = CausalLMLoss(
        student, [ForwardKL()], how.chunk_tokens, source, setting.vocabulary,
        compiled=compiled,
    )  # fmt: skip
    batch: dict[str, Any] = {"ids_BS": setting.ids_BS, "positions_N": setting.positions_N}
    batch |= {"labels_N": setting.labels_N, "divisor": len(setting.labels_N)}
    if sharded:
        sharding.shard(teacher, [teacher])
        sharding.shard(loss_fn, [student], torch.bfloat16)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            loss, _ = loss_fn(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    figures = setting.speed(flop, setting.seconds(step))
    if setting.device == "cuda":
        figures |= {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
        figures |= {"estimated_gib": (sum(estimate.values()) - estimate["the program"]) / 2**30}
    return figures


def fsdp_step(setting: Setting) -> dict[str, float]:
    """Measure the same update with student and teacher sharded over one rank."""
    with one_rank(setting):
        return kd_step(setting, sharded=True)


def generate(setting: Setting) -> dict[str, float]:
    """Measure generation by the student, as on-policy phases and the backend transformers do."""
    from cohobate.generation.decoding import decode_batch
    from cohobate.generation.requests import Batching, Decoding, Request

    student = setting.model("student", frozen=True)
    new = 4 if setting.small else 128
    half = setting.tokens // 2
    requests = [Request([int(i) for i in row[:half]]) for row in setting.ids_BS.tolist()]
    batching, decoding = Batching(rows=setting.rows), Decoding(max_tokens=new)
    seconds = setting.seconds(
        lambda: decode_batch(student, requests, decoding, frozenset(), batching)
    )
    return {"tokens_per_second": setting.rows * new / seconds}


def generate_vllm(setting: Setting) -> dict[str, float]:
    """Measure vLLM's generation by the teacher's shapes, where it is installed."""
    import vllm

    new, half = 4 if setting.small else 128, setting.tokens // 2
    prompts = [{"prompt_token_ids": row[:half]} for row in setting.ids_BS.tolist()]
    with tempfile.TemporaryDirectory() as folder:
        setting.config("teacher").save_pretrained(folder)
        model = vllm.LLM(
            model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
            gpu_memory_utilization=0.6, max_model_len=setting.tokens,
        )  # fmt: skip
        sampling = vllm.SamplingParams(
            max_tokens=new, temperature=0, ignore_eos=True, detokenize=False, logprobs=0
        )
        many = prompts * (1 if setting.small else 16)
        seconds = setting.seconds(lambda: model.generate(many, sampling, use_tqdm=False))
    return {"tokens_per_second": len(many) * new / seconds}


PARTS: dict[str, Callable[[Setting], dict[str, float]]] = {
    "dense peak": dense,
    "teacher's forward": bare_forward,
    "capture": capture,
    "KD step": kd_step,
    "KD step, FSDP of one rank": fsdp_step,
    "generation": generate,
    # last: it keeps memory of the GPU until the process ends
    "generation by vLLM": generate_vllm,
}
COLUMNS = ("tokens_per_second", "tflops", "share_of_peak", "peak_gib", "estimated_gib")


def weights_of_body(model: Any) -> int:
    """Return the weights of a model that every token goes through."""
    ends = {id(x.weight): x.weight.numel() for x in (model.get_input_embeddings(), model.lm_head)}
    return int(model.num_parameters() - sum(ends.values()))


def kd_flop(student: Any, teacher: Any, setting: Setting) -> float:
    """Return the FLOP of products of an update: bodies over all tokens, heads over answers."""
    tokens, answers = setting.ids_BS.numel(), len(setting.labels_N)
    bodies = 6 * weights_of_body(student) + 2 * weights_of_body(teacher)
    heads = 6 * student.lm_head.weight.numel() + 2 * teacher.lm_head.weight.numel()
    return float(tokens * bodies + answers * heads)


@contextmanager
def one_rank(setting: Setting) -> Iterator[None]:
    """Form a process group of this process alone."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if setting.device == "cuda" else "gloo"
        place = f"file://{folder}/store"
        dist.init_process_group(backend, init_method=place, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def run(part: str, setting: Setting) -> dict[str, Any]:
    """Return the figures of a part in this process, or its error: the other parts go on."""
    import torch

    try:
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return PARTS[part](setting)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def run_apart(part: str, options: argparse.Namespace, peak: float, seconds: float) -> Any:
    """Return the figures of a part in a process of its own, or why there are none."""
    logs = options.out.with_suffix("")
    logs.mkdir(parents=True, exist_ok=True)
    figures, log = (logs / f"{part.replace(' ', '-')}.{kind}" for kind in ("json", "log"))
    figures.unlink(missing_ok=True)
    small = ["--small"] if options.small else []
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--peak", str(peak), *small]
    with log.open("wb") as written:
        process = subprocess.Popen(
            [*command, "--out", str(figures.absolute())], cwd=Path(__file__).parents[1],
            stdout=written, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | str = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = f"more than {seconds:.0f} s"
        finally:
            # what the part itself started has the GPU's memory too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if figures.exists():
        return json.loads(figures.read_text())
    lines = log.read_text(errors="replace").strip().splitlines() or ["nothing printed"]
    return {"error": f"ended with {code}: {lines[-1][:200]}"}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--small", action="store_true", help="all of it on a CPU, in a minute")
    parser.add_argument("--here", action="store_true", help="all parts in this process")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/gpu.json"))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--peak", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts, write the JSON after each, and print the table."""
    options = parsed(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.part:
        setting = Setting(small=options.small)
        setting.peak = options.peak
        options.out.write_text(json.dumps(run(options.part, setting)))
        return 0
    # `timeout` ends it by SIGTERM: what there is then is printed all the same
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: dict[str, Any] = {"small": options.small, "parts": {}}
    try:
        measure_all(options, results)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)
        show(results)
    return 0


def measure_all(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Fill in the figures of the parts, one after the other."""
    from cohobate.models.number_formats import device_name

    end, setting = time.monotonic() + 60 * options.minutes, Setting(small=options.small)
    results["device"], parts = device_name(setting.device), results["parts"]
    for part in options.only:
        left = end - time.monotonic()
        if left <= 0:
            parts[part] = {"error": "no time left"}
        elif options.here:
            parts[part] = run(part, setting)
        else:
            parts[part] = run_apart(part, options, setting.peak, min(left, LIMIT))
            if "tflops" in (dense := parts[part]) and part == "dense peak":
                setting.peak = dense["tflops"] * 1e12
        print(f"  {part}: {parts[part]}", file=sys.stderr, flush=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n")


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    rows = [
        [part, *(f"{x:.4g}" if (x := figures.get(name)) is not None else "-" for name in COLUMNS),
         figures.get("error", "")]
        for part, figures in results["parts"].items()
    ]  # fmt: skip
    note = " (small: the figures mean nothing)" if results["small"] else ""
    print(f"{results.get('device', 'no device')}{note}")
    print(table(["part", *COLUMNS, "error"], rows))


if __name__ == "__main__":
    sys.exit(main())
