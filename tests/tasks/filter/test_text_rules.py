"""Hand-written answers for the filters on form, language and phrases."""

import pytest
from pydantic import ValidationError

from tests.tasks.filter.test_filters import judged, response

OBJECT = {"type": "object", "required": ["label"], "properties": {"label": {"type": "string"}}}


def test_schema():
    answers = [
        '{"label": "animal"}',
        ' {"label": "animal", "why": "fur"}\n',
        '{"label": 3}',
        '{"kind": "animal"}',
        "animal",
        '{"label": "animal"} I hope',
        '{"label": NaN}',
        "[" * 100_000,
    ]
    verdicts = judged({"type": "schema", "json_schema": OBJECT}, [response(a) for a in answers])
    assert verdicts == ["kept", "kept", *["JSON of another schema"] * 2, *["not JSON"] * 4]
    with pytest.raises(ValidationError, match="not a JSON schema"):
        judged({"type": "schema", "json_schema": {"type": "thing"}}, [])


def test_language():
    english = "The animal lives under the ground and eats the roots of plants."
    german = "Das Tier lebt unter der Erde und frisst die Wurzeln der Pflanzen."
    russian = "Животное живёт под землёй и ест корни растений."
    rows = [response(text) for text in (english, german, russian, " Tier")]
    assert judged({"type": "language", "wanted": ["en"]}, rows) == [
        "kept",
        "not in en",
        "not in en",
        "kept",  # too short to tell
    ]
    both = judged({"type": "language", "wanted": ["en", "de"]}, rows)
    assert both == ["kept", "kept", "not in en or de", "kept"]
    responses = [response(english, prompt=german)]
    of_prompt = {"type": "language", "wanted": ["en"], "of": "prompt"}
    assert judged(of_prompt, responses) == ["not in en"]
    with pytest.raises(ValidationError, match="not an ISO 639 code"):
        judged({"type": "language", "wanted": ["English"]}, [])


def test_language_of_short_texts():
    glosses = [  # where py3langid is surest of another language
        "German baroque composer (1681-1767)",
        "orange; lemon; lime; etc.",
        "consort of Dumuzi (Tammuz)",
        "a genus of Stichaeidae",
        "a particular service",
    ]
    foreign = [
        "Un petit animal qui vit dans les arbres",
        "La casa está cerca del mar",
        "Un piccolo animale che vive nel bosco",
        "Een klein dier dat in het bos leeft",
        "Kot śpi na kanapie",
        "Amanhã vamos ao mercado",
        "猫在沙发上睡觉猫在沙发上睡觉猫在沙发上睡觉",
    ]
    rows = [response(text) for text in (*glosses, *foreign)]
    verdicts = judged({"type": "language", "wanted": ["en"], "min_characters": 18}, rows)
    assert verdicts == ["kept"] * len(glosses) + ["not in en"] * len(foreign)
    strict = judged({"type": "language", "wanted": ["en"], "min_probability": 0.9}, rows)
    assert strict.count("kept") < len(glosses)


DECLINING = [
    "I'm sorry, but I can't help with that request.",
    "I am sorry, but I cannot answer.",
    "Unfortunately, I am unable to find it.",
    "I cannot assist with this.",
    "As an AI language model, I have no opinion.",
    "I'm not able to browse the web.",
]
STOCK = [
    "Sure! Here is the answer: animal",
    "It is an animal. I hope this helps!",
    "Dear [Your Name], it is a plant.",
    "My knowledge cutoff is 2023, but it is a plant.",
]
HONEST = [
    " animal",
    "a feeling of being sorry for somebody",
    "the state of being unable to act",
    "I can not only swim but also run.",
    "a person who cannot help others",
    "It cannot be done: 7 is prime.",
]


def test_boilerplate():
    rows = [response(text) for text in (*DECLINING, *STOCK, *HONEST)]
    verdicts = judged({"type": "boilerplate"}, rows)
    assert verdicts[: len(DECLINING)] == ["refusal to answer"] * len(DECLINING)
    assert verdicts[len(DECLINING) : -len(HONEST)] == ["boilerplate"] * len(STOCK)
    assert verdicts[-len(HONEST) :] == ["kept"] * len(HONEST)
    own = {"type": "boilerplate", "refusals": False, "phrases": ["(Of Being)"]}
    rows = [response(DECLINING[0]), response("a feeling (of being) sorry"), response("of being")]
    assert judged(own, rows) == ["kept", "boilerplate", "kept"]
