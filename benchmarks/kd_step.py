"""One training step of distillation, side by side with TRL's losses.

    python -m benchmarks.kd_step [--vocabulary 32000 128000] [--steps 3] [--compiled] [--check]

A step is the student's forward, backward and AdamW, and the teacher's forward, on right-padded rows
whose second half is the answer. Each variant runs in a process of its own with one thread, and the
variants take turns. The figures are ratios to TRL's GKD loss in the same run. Variants in bfloat16
are left out where the processor has no bfloat16 products.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import in_own_process, machine, table, timed

FLOOR = "floor bf16, no teacher"
VARIANTS = {
    "trl gkd fp32": ("trl_gkd", "float32", {}),
    "trl gkd bf16": ("trl_gkd", "bfloat16", {}),
    "trl distillation fp32": ("trl_distillation", "float32", {}),
    "cohobate live fp32": ("cohobate", "float32", {}),
    "cohobate live fp32 compiled": ("cohobate", "float32", {"compiled": True}),
    "cohobate live bf16": ("cohobate", "bfloat16", {}),
    "cohobate live bf16 compiled": ("cohobate", "bfloat16", {"compiled": True}),
    "cohobate stored fp32": ("cohobate", "float32", {"stored": True}),
    "cohobate stored bf16": ("cohobate", "bfloat16", {"stored": True}),
    FLOOR: ("floor", "bfloat16", {}),
}
BOUNDS = [
    ("cohobate live fp32", "trl gkd fp32", 0.60, 0.25),
    ("cohobate live bf16", "trl gkd bf16", 0.45, 0.30),
    ("cohobate stored bf16", "trl gkd fp32", 0.25, 0.22),
]
"""A variant, the peer's, and the bounds of the ratios of time and peak memory."""
FLOOR_BOUND = 1.5
"""Bound of the time of stored signals over that of the products alone."""
ROWS, LENGTH, TOP_K = 8, 256, 64


class Setting:
    """Student, teacher, optimiser and one batch, all random and the same in every variant."""

    def __init__(self, vocabulary: int, precision: str) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.vocabulary, self.bf16 = vocabulary, precision == "bfloat16"

        def llama(width: int, layers: int) -> Any:
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=width,
                    intermediate_size=width * 8 // 3,
                    num_hidden_layers=layers,
                    num_attention_heads=width // 64,
                    num_key_value_heads=width // 64,
                    max_position_embeddings=LENGTH,
                    tie_word_embeddings=True,
                    attn_implementation="eager",
                )
            )

        self.student, self.teacher = llama(256, 4), llama(512, 6).eval().requires_grad_(False)
        if self.bf16:
            self.teacher = self.teacher.bfloat16()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, fused=True)
        self.ids_BS = torch.randint(vocabulary, (ROWS, LENGTH))
        self.answer = LENGTH // 2

    def step(self, loss: Callable[[], Any]) -> Callable[[], None]:
        """Return one step of the optimiser on a loss."""
        import torch

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                value = loss()
            value.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return run


def trl_gkd(setting: Setting, **_: Any) -> Callable[[], Any]:
    """Return the loss as GKDTrainer.compute_loss has it."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    labels = setting.ids_BS.clone()
    labels[:, : setting.answer] = -100

    def loss() -> Any:
        student = setting.student(input_ids=setting.ids_BS, use_cache=False)
        with torch.no_grad():
            teacher = setting.teacher(input_ids=setting.ids_BS, use_cache=False)
        return GKDTrainer.generalized_jsd_loss(
            student.logits[:, :-1], teacher.logits[:, :-1], labels[:, 1:], beta=0
        )

    return loss


def trl_distillation(setting: Setting, **_: Any) -> Callable[[], Any]:
    """Return the chunked loss of DistillationTrainer."""
    import torch
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    def loss() -> Any:
        part = slice(setting.answer - 1, -1)
        hidden = setting.student.model(setting.ids_BS, use_cache=False).last_hidden_state[:, part]
        with torch.no_grad():
            target = setting.teacher.model(setting.ids_BS, use_cache=False).last_hidden_state
        return _chunked_divergence_loss(
            hidden,
            target[:, part],
            setting.student.lm_head.weight,
            setting.teacher.lm_head.weight,
            torch.ones(hidden.shape[:2]),
            beta=0,
        )[0]

    return loss


def cohobate(
    setting: Setting, *, stored: bool = False, compiled: bool = False, **_: Any
) -> Callable[[], Any]:
    """Return the loss of the trainer's `CausalLMLoss`."""
    import torch

    from cohobate.losses.divergences import ForwardKL
    from cohobate.losses.top_k import TopK
    from cohobate.teachers.target_sources import LiveSource
    from cohobate.training.model_loss import CausalLMLoss

    tokens, vocabulary = ROWS * (LENGTH - setting.answer), setting.vocabulary
    positions = torch.arange(setting.answer - 1, LENGTH - 1) + LENGTH * torch.arange(ROWS)[:, None]
    batch = {
        "ids_BS": setting.ids_BS,
        "positions_N": positions.flatten(),
        "labels_N": setting.ids_BS[:, setting.answer :].flatten(),
        "divisor": tokens,
    }

    class StoredSignals:
        """A target source whose signals are in memory already."""

        matching = progressive = None
        live_models: tuple[Any, ...] = ()

        def __init__(self) -> None:
            ids_NK = torch.rand(tokens, vocabulary).topk(TOP_K).indices
            logp_NC = torch.randn(tokens, TOP_K + 1).log_softmax(-1)
            self.signals = TopK(ids_NK, logp_NC[:, :-1], logp_NC[:, -1:])

        def targets(self, batch: Any) -> Any:
            return self.signals, None

    if stored:
        del setting.teacher
    source: Any = StoredSignals() if stored else LiveSource({"main": setting.teacher}, vocabulary)
    chunk = 512 if vocabulary <= 1 << 16 else 256
    loss_fn = CausalLMLoss(
        setting.student, [ForwardKL()], chunk, source, vocabulary, compiled=compiled
    )
    return lambda: loss_fn(**batch)[0]


def floor(setting: Setting, **_: Any) -> Callable[[], Any]:
    """Return a loss that costs no more than the products with the head that training needs."""
    import torch

    class Products(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, hidden_ND: Any, weight_VD: Any) -> Any:
            ctx.grad_ND, ctx.grad_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
            product_VD = weight_VD.to(hidden_ND.dtype)
            for start in range(0, len(hidden_ND), 512):
                part = slice(start, start + 512)
                logits_NV = hidden_ND[part] @ product_VD.T
                ctx.grad_ND[part] = logits_NV @ product_VD
                ctx.grad_VD += logits_NV.T @ hidden_ND[part]
            return hidden_ND.sum()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return ctx.grad_ND * 1e-6, ctx.grad_VD * 1e-6

    del setting.teacher

    def loss() -> Any:
        part = slice(setting.answer - 1, -1)
        hidden = setting.student.model(setting.ids_BS, use_cache=False).last_hidden_state[:, part]
        dtype = torch.bfloat16 if setting.bf16 else torch.float32
        with torch.autocast("cpu", enabled=False):
            return Products.apply(hidden.flatten(0, 1).to(dtype), setting.student.lm_head.weight)

    return loss


def measure(name: str, vocabulary: int, steps: int) -> dict[str, float]:
    """Measure a variant in this process."""
    kind, precision, options = VARIANTS[name]
    setting = Setting(vocabulary, precision)
    return timed(setting.step(globals()[kind](setting, **options)), steps)


def measure_all(
    vocabulary: int, rounds: int, steps: int, compiled: bool
) -> dict[str, dict[str, float]]:
    """Measure every variant in turns, each in a process of its own; return the median figures."""
    figures: dict[str, list[dict[str, float]]] = {
        name: []
        for name, (_, precision, _) in VARIANTS.items()
        if (compiled or not name.endswith("compiled"))
        and precision in ("float32", machine()["number_format"])
    }
    for _ in range(rounds):
        for name, of_variant in figures.items():
            arguments = ["--variant", name, "--vocabulary", str(vocabulary), "--steps", str(steps)]
            of_variant.append(in_own_process(__file__, arguments))
            last = of_variant[-1]
            line = f"{last['cpu_seconds']:.2f} s, {last['peak_mb']:.0f} MB"
            print(f"  {vocabulary} {name}: {line}", file=sys.stderr, flush=True)
    return {
        name: {key: median(turn[key] for turn in of_variant) for key in of_variant[0]}
        for name, of_variant in figures.items()
    }


def compare_with_bounds(
    figures: dict[str, dict[str, float]],
) -> list[tuple[str, float, float, bool]]:
    """Return the ratios of time and memory of each bounded variant, and whether they hold."""
    rows = []
    for variant, peer, time, memory in BOUNDS:
        if variant not in figures:
            continue
        seconds, peak = (
            figures[variant][key] / figures[peer][key] for key in ("cpu_seconds", "peak_mb")
        )
        name = f"{variant} / {peer}"
        rows.append((name, seconds, peak, seconds <= time and peak <= memory))
    if FLOOR not in figures:
        return rows
    above = figures["cohobate stored bf16"]["cpu_seconds"] / figures[FLOOR]["cpu_seconds"]
    return [*rows, (f"cohobate stored bf16 / {FLOOR}", above, 0.0, above <= FLOOR_BOUND)]


def main() -> int:
    """Print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all variants")
    parser.add_argument("--compiled", action="store_true", help="compiled too: minutes more")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--check", action="store_true", help="fail where a bound does not hold")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/kd_step.json"))
    options = parser.parse_args()
    if options.variant:
        print(json.dumps(measure(options.variant, options.vocabulary[0], options.steps)))
        return 0
    results: dict[int, Any] = {}
    all_hold = True
    for vocabulary in options.vocabulary:
        figures = measure_all(vocabulary, options.rounds, options.steps, options.compiled)
        base = figures["trl gkd fp32"]
        rows = [
            [name, f["cpu_seconds"], f["peak_mb"], f["cpu_seconds"] / base["cpu_seconds"],
             f["peak_mb"] / base["peak_mb"]]
            for name, f in figures.items()
        ]  # fmt: skip
        bounds = compare_with_bounds(figures)
        print(f"\nvocabulary {vocabulary}; {', '.join(machine().values())}")
        print(table(["variant", "CPU s", "peak MB", "time ratio", "peak ratio"], rows))
        print(table(["bound", "time ratio", "peak ratio", "holds"], bounds))
        all_hold = all_hold and all(bound[-1] for bound in bounds)
        results[vocabulary] = {"variants": figures, "bounds": bounds}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"machine": machine(), "vocabularies": results}, indent=2) + "\n"
    )
    return 0 if all_hold or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
