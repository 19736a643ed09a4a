"""Reasoning from a service, rejected by the known answers, learnt and evaluated: whole rounds.

The problems are those of reasoning-gym. One service sends its reasoning in a field of its own, the
other leaves it in the text.
"""

import json
import re
from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.loopback_teacher import LoopbackTeacher
from tests.tiny_rounds import API, Round

SETTINGS = (
    *API,
    "collect.source={type: reasoning_gym, path: tasks/collect/reasoning.py, rows: 120, "
    "tasks: {chain_sum: 0}}",
    'collect.template={prompt: "{question}", answer: " {answer}"}',
    'task.verifier={type: numeric, after: "Answer:"}',
    "generate.prompts=labelled",
    "generate.decoding.max_tokens=200",
    "filter.filters=[{type: unfinished}, {type: length, min_reasoning: 1}, "
    "{type: verified, unknown: refuse}]",
    "evaluate.metrics=[{type: verifier}]",
    "evaluate.decoding.max_tokens=32",
    "evaluate.robustness={rows: 4, perturbations: [{type: case, to: upper}]}",
)


def solution(prompt: str) -> tuple[str, str]:
    """Reasoning and answer; every third is wrong."""
    terms = re.findall(r"[-+]?\s*\d+", prompt)
    total = sum(int(term.replace(" ", "")) for term in terms)
    wrong = total % 3 == 0
    return f"First {terms[0]}, then the rest.", f"It is 7, I think. Answer: {total + wrong}"


@pytest.mark.parametrize("apart", [True, False], ids=["in a field", "in the text"])
def test_a_round_on_reasoning_runs_to_the_report(
    tiny_round_project: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    pytest.importorskip("reasoning_gym")

    def good(service: LoopbackTeacher, body: dict, path: str) -> bytes:
        reasoning, answer = solution(body["messages"][-1]["content"])
        inside = {"content": f"<think>\n{reasoning}\n</think>\n\n{answer}"}
        message = {"content": answer, "reasoning_content": reasoning} if apart else inside
        usage = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
        choices = [{"finish_reason": "stop", "message": message}]
        return json.dumps({"choices": choices, "usage": usage}).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", good)
    what = Round("reasoning", "recipes/sequence-kd.yaml", SETTINGS, served="text")
    tiny_rounds.in_process(tiny_round_project, what)
    assert "sequence-kd" in (tiny_round_project / "reports/report.html").read_text()
    assert (tiny_round_project / "models/export/safetensors").is_dir()
    funnel = json.loads((tiny_round_project / "data/filter/funnel.json").read_text())
    dropped = {step["filter"]: step["reasons"] for step in funnel}
    assert dropped["verified"]["wrong (numeric)"] > 2 and not dropped["length"]
    with (tiny_round_project / "data/curriculum/train.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    written = [(row["reasoning"], row["answer"]) for row in rows]
    assert rows and written == [solution(row["prompt"]) for row in rows]
    metrics = json.loads((tiny_round_project / "reports/metrics.json").read_text())
    assert 0.5 < metrics["teacher"]["score"] < 0.8  # of what stands behind its reasoning
