"""The filters that ask a model: IFD, judge and reward, with the models' figures made by hand."""

from dataclasses import replace
from types import SimpleNamespace

from cohobate.generation.likelihood import Likelihood
from cohobate.scoring.judge import Judge
from tests.tasks.filter.test_filters import context, judged, response

ROWS = [response(f" answer {n}", f"p{n}") for n in range(6)]


def test_ifd_drops_what_the_prompt_does_not_help_and_keeps_the_highest(monkeypatch):
    scores = [0.2, 1.0, 0.9, 1.7, 0.5, 0.7]
    likelihood = SimpleNamespace(instruction_following_difficulty=lambda rows: iter(scores))
    monkeypatch.setattr(Likelihood, "of", lambda *_: likelihood)
    useless, low = "the prompt does not help (IFD)", "not selected (low IFD)"
    assert judged({"type": "ifd"}, ROWS) == ["kept", useless, "kept", useless, "kept", "kept"]
    half = judged({"type": "ifd", "keep_share": 0.5}, ROWS)
    assert half == [low, useless, "kept", useless, low, "kept"]


def test_ifd_of_a_model(checkpoint):
    known = replace(context(), scorer=lambda: checkpoint)
    spelt = {"type": "ifd", "precision": "float32", "threads": 1}
    likelihood = Likelihood.of(checkpoint, "float32", 1)
    scores = [round(score, 4) for score in likelihood.instruction_following_difficulty(ROWS)]
    verdicts = judged(spelt, ROWS, known)
    assert [verdict == "kept" for verdict in verdicts] == [score < 1 for score in scores]


def test_educational_value_drops_low_scores_and_keeps_the_highest(monkeypatch):
    scores, prompts = [0.2, -1.0, 0.9, 1.7, 0.5, 0.7], []
    likelihood = SimpleNamespace(
        log_odds=lambda texts, one, other: prompts.extend(texts) or iter(scores)
    )
    monkeypatch.setattr(Likelihood, "of", lambda *_: likelihood)
    low, other = "low educational value", "not selected (educational value)"
    assert judged({"type": "educational"}, ROWS) == ["kept"] * 6
    chosen = judged({"type": "educational", "min_score": 0, "keep_share": 0.6}, ROWS)
    assert chosen == [other, low, "kept", "kept", other, "kept"]
    assert prompts[0].startswith("p0 answer 0\n\nIs this text") and prompts[0].endswith("Answer:")
    raw = ROWS[0].model_copy(update={"prompt": "", "answer": "A text."})
    judged({"type": "educational"}, [raw, *ROWS[:5]])
    assert prompts[-6].startswith("A text.\n\n")


def test_educational_value_of_a_model(checkpoint):
    known = replace(context(), scorer=lambda: checkpoint)
    spelt = {"type": "educational", "precision": "float32", "threads": 1, "keep_share": 0.5}
    assert judged(spelt, ROWS, known).count("kept") == 3


def test_a_judge_is_asked_where_the_verifier_does_not_know(monkeypatch):
    judged_texts = []

    def opened(self, folder):
        replies = iter(['{"score": 9}', '{"score": 3}', "Nice!", '{"score": 6}'])
        return lambda conversations: [
            judged_texts.append(c) or next(replies) for c in conversations
        ]

    monkeypatch.setattr(Judge, "open", opened)
    known = replace(context(), references={ROWS[0].id: " answer 0", ROWS[1].id: " other"})
    low = "low judge score"
    verdicts = judged({"type": "judge"}, ROWS, known)
    assert verdicts == ["kept", low, "kept", low, "no verdict from the judge", "kept"]
    assert len(judged_texts) == 4
    kept = judged({"type": "judge", "no_verdict": "keep"}, ROWS, known)
    assert kept[4] == "kept"


def test_rewards(monkeypatch):
    scores = SimpleNamespace(scores=lambda pairs: iter([0.1, 2.0, -1.0, 0.3, 0.2, 5.0]))
    monkeypatch.setattr("cohobate.scoring.reward_models.RewardModel.of", lambda *_: scores)
    low = "low reward"
    by_value = judged({"type": "reward", "min_reward": 0.2}, ROWS)
    assert by_value == [low, "kept", low, "kept", "kept", "kept"]
    by_share = judged({"type": "reward", "drop_lowest": 0.17}, ROWS)
    assert by_share == ["kept", "kept", low, "kept", "kept", "kept"]
