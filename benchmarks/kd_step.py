"""One step of distillation, side by side with TRL's losses: targets P1, P2 and P3.

    python -m benchmarks.kd_step [--vocabulary 32000 128000] [--steps 3] [--compiled] [--check]

A step is the student's forward, backward and AdamW, and the teacher's forward, on right-padded rows
whose second half is the answer. Each variant runs in a process of its own with one thread; the
variants take turns; what counts is the ratio to TRL's GKD loss in the same run. Variants in
bfloat16 are left out where the processor has no bfloat16 products.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import in_own_process, machine, table, timed

VARIANTS = {
    "trl gkd fp32": ("trl_gkd", "float32", {}),
    "trl gkd bf16": ("trl_gkd", "bfloat16", {}),
    "trl distillation fp32": ("trl_distillation", "float32", {}),
    "ours live fp32": ("ours", "float32", {}),
    "ours live fp32 compiled": ("ours", "float32", {"compiled": True}),
    "ours live bf16": ("ours", "bfloat16", {}),
    "ours live bf16 compiled": ("ours", "bfloat16", {"compiled": True}),
    "ours stored fp32": ("ours", "float32", {"stored": True}),
    "ours stored bf16": ("ours", "bfloat16", {"stored": True}),
    "floor bf16, no teacher": ("floor", "bfloat16", {}),
}
TARGETS = [
    ("P1", "ours live fp32", "trl gkd fp32", 0.60, 0.25),
    ("P2", "ours live bf16", "trl gkd bf16", 0.45, 0.30),
    ("P3", "ours stored bf16", "trl gkd fp32", 0.25, 0.22),
]
FLOOR = 1.5
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
            seen = setting.teacher.model(setting.ids_BS, use_cache=False).last_hidden_state[:, part]
        return _chunked_divergence_loss(
            hidden,
            seen,
            setting.student.lm_head.weight,
            setting.teacher.lm_head.weight,
            torch.ones(hidden.shape[:2]),
            beta=0,
        )[0]

    return loss


def ours(
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

    class Kept:
        """Signals that are read already."""

        matching = progressive = None

        def __init__(self) -> None:
            ids_NK = torch.rand(tokens, vocabulary).topk(TOP_K).indices
            logp_NC = torch.randn(tokens, TOP_K + 1).log_softmax(-1)
            self.signals = TopK(ids_NK, logp_NC[:, :-1], logp_NC[:, -1:])

        def targets(self, batch: Any) -> Any:
            return self.signals, None

    if stored:
        del setting.teacher
    source: Any = Kept() if stored else LiveSource({"main": setting.teacher}, vocabulary)
    chunk = 512 if vocabulary <= 1 << 16 else 256
    loss_fn = CausalLMLoss(
        setting.student, [ForwardKL()], chunk, source, vocabulary, compiled=compiled
    )
    return lambda: loss_fn(**batch)[0]


def floor(setting: Setting, **_: Any) -> Callable[[], Any]:
    """Return what costs no more than the products that no student can do without."""
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


def measured(name: str, vocabulary: int, steps: int) -> dict[str, float]:
    """Measure a variant in this process."""
    kind, precision, options = VARIANTS[name]
    setting = Setting(vocabulary, precision)
    return timed(setting.step(globals()[kind](setting, **options)), steps)


def compared(
    vocabulary: int, rounds: int, steps: int, compiled: bool
) -> dict[str, dict[str, float]]:
    """Measure every variant in turns, each in a process of its own; return the middle figures."""
    found: dict[str, list[dict[str, float]]] = {
        name: []
        for name, (_, precision, _) in VARIANTS.items()
        if (compiled or not name.endswith("compiled"))
        and precision in ("float32", machine()["number_format"])
    }
    for _ in range(rounds):
        for name, figures in found.items():
            arguments = ["--variant", name, "--vocabulary", str(vocabulary), "--steps", str(steps)]
            figures.append(in_own_process(__file__, arguments))
            seen = figures[-1]
            told = f"{seen['cpu_seconds']:.2f} s, {seen['peak_mb']:.0f} MB"
            print(f"  {vocabulary} {name}: {told}", file=sys.stderr, flush=True)
    return {
        name: {key: median(one[key] for one in figures) for key in figures[0]}
        for name, figures in found.items()
    }


def verdicts(found: dict[str, dict[str, float]]) -> list[tuple[str, float, float, bool]]:
    """Return each target's time and memory ratios, and whether it holds."""
    said = []
    for name, ours, peer, time, memory in TARGETS:
        if ours not in found:
            continue
        seconds, peak = (found[ours][key] / found[peer][key] for key in ("cpu_seconds", "peak_mb"))
        said.append((name, seconds, peak, seconds <= time and peak <= memory))
    if "floor bf16, no teacher" not in found:
        return said
    above = (
        found["ours stored bf16"]["cpu_seconds"] / found["floor bf16, no teacher"]["cpu_seconds"]
    )
    return [*said, ("P3 to the floor", above, 0.0, above <= FLOOR)]


def main() -> int:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--steps", type=int, default=3, help="timed, after one that is not")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all variants")
    parser.add_argument("--compiled", action="store_true", help="ours compiled too: minutes more")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--check", action="store_true", help="fail where a target does not hold")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks/kd_step.json"))
    chosen = parser.parse_args()
    if chosen.variant:
        print(json.dumps(measured(chosen.variant, chosen.vocabulary[0], chosen.steps)))
        return 0
    results: dict[int, Any] = {}
    held = True
    for vocabulary in chosen.vocabulary:
        found = compared(vocabulary, chosen.rounds, chosen.steps, chosen.compiled)
        base = found["trl gkd fp32"]
        rows = [
            [name, f["cpu_seconds"], f["peak_mb"], f["cpu_seconds"] / base["cpu_seconds"],
             f["peak_mb"] / base["peak_mb"]]
            for name, f in found.items()
        ]  # fmt: skip
        judged = verdicts(found)
        print(f"\nvocabulary {vocabulary}; {', '.join(machine().values())}")
        print(table(["variant", "CPU s", "peak MB", "time ratio", "peak ratio"], rows))
        print(table(["target", "time ratio", "peak ratio", "holds"], judged))
        held = held and all(verdict[-1] for verdict in judged)
        results[vocabulary] = {"variants": found, "targets": judged}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(
        json.dumps({"machine": machine(), "vocabularies": results}, indent=2) + "\n"
    )
    return 0 if held or not chosen.check else 1


if __name__ == "__main__":
    sys.exit(main())
