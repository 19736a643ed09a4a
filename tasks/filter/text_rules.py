"""Filters on what an answer says: its form, its language, and what is no answer at all."""

import json
import re
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from cohobate.data.records import Response, prompt_text
from cohobate.data.text_comparison import words_of
from tasks.filter.verdicts import KEPT, Context, Filter, Keep, Refused, Rows, Verdict

_REFUSALS = (
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b",
    r"^\W*(?:i(?:['’]m| am) (?:very |so |truly )?sorry|sorry|unfortunately|i apologi[sz]e)\b"
    r".{0,80}\b(?:can(?:no|['’])t|unable|not able|won['’]t|cannot)\b",
    r"^\W*i (?:can(?:no|['’])t|(?:am|['’]m) (?:unable|not able) to|won['’]t|must decline to) "
    r"(?:help|assist|answer|provide|comply|fulfil|do|discuss|generate|create|engage|share)\b",
    r"\bi(?:['’]m| am) not (?:able|allowed|programmed|designed) to\b",
    r"\b(?:is|goes) against my (?:programming|guidelines|policy|policies)\b",
)
_BOILERPLATE = (
    r"\b(?:my|the) (?:knowledge|training) (?:cut-?off|data (?:ends|goes))\b",
    r"\blorem ipsum\b",
    r"\b(?:enable|turn on) javascript\b",
    r"\ball rights reserved\b",
    r"\bterms of (?:use|service) and privacy policy\b",
    r"\b(?:click here|subscribe) to (?:our|read|continue)\b",
    r"\bi hope this helps\b",
    r"\blet me know if (?:you|there)\b",
    r"^\W*(?:sure|certainly|of course|absolutely)[,!.]* (?:here|i['’]d be happy)",
    r"\[(?:your|insert|company|name)[ _a-z]*\]",
)
_RULES = frozenset("|-")  # of tables


class Schema(Filter):
    """Refuse answers that are not JSON of a given JSON schema."""

    type: Literal["schema"]
    json_schema: dict[str, Any]
    """What an answer must be, in JSON Schema (draft 2020-12)."""

    @field_validator("json_schema")
    @classmethod
    def _sound(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"no JSON schema: {error.message}") from None
        return schema

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what parses an answer and compares it with the schema."""
        from jsonschema import Draft202012Validator

        validator = Draft202012Validator(self.json_schema)

        def keep(row: Response) -> Verdict:
            try:
                value = json.loads(row.answer or "", parse_constant=_no_number)
            except (ValueError, RecursionError):
                return Refused("not JSON")
            return KEPT if validator.is_valid(value) else Refused("JSON of another schema")

        return keep


class Language(Filter):
    """Refuse rows in another language than those wanted (py3langid, after Lui & Baldwin 2012).

    A row is refused where the language is surely another, not where it is unsure: of short texts
    it often is. On 7,000 English glosses of WordNet (ten words in the middle) a bound of 0.5
    refused one in ten, 0.01 one in 7,000; either found all of 47 sentences in 14 other languages.
    """

    type: Literal["language"]
    any_target: ClassVar[bool] = True
    wanted: tuple[str, ...] = Field(min_length=1)
    """ISO 639-1 codes, such as [en, de]."""
    of: Literal["prompt", "answer", "both"] = "answer"
    """Which text is looked at."""
    min_probability: float = Field(0.01, gt=0, lt=1)
    """Lowest probability of the wanted languages together; the higher, the more short rows are
    refused although they are in one of them."""
    min_characters: int = Field(20, ge=1)
    """Shorter texts are kept: a word or two belong to many languages."""

    @field_validator("wanted")
    @classmethod
    def _known(cls, wanted: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [code for code in wanted if not re.fullmatch("[a-z]{2,3}", code)]:
            raise ValueError(f"{odd[0]!r} is no ISO 639 code")
        return wanted

    def over(self, rows: Rows, context: Context) -> Keep:
        """Return what identifies the language of a row's text."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        reason = f"not in {' or '.join(self.wanted)}"

        def keep(row: Response) -> Verdict:
            text = self._text(row)
            if len(text) < self.min_characters:
                return KEPT
            known = dict(identifier.rank(text))
            probability = round(sum(float(known.get(code, 0.0)) for code in self.wanted), 4)
            return KEPT if probability >= self.min_probability else Refused(reason, probability)

        return keep

    def _text(self, row: Response) -> str:
        texts = {"prompt": prompt_text(row.prompt), "answer": row.answer or ""}
        return "\n".join(texts.values()) if self.of == "both" else texts[self.of]


class Boilerplate(Filter):
    """Refuse answers that decline to answer, and phrases that are there for their own sake."""

    type: Literal["boilerplate"]
    any_target: ClassVar[bool] = True
    refusals: bool = True
    """Whether answers such as `I'm sorry, but I cannot help with that` are refused."""
    phrases: tuple[str, ...] = ()
    """Phrases of your own, in any letter case."""

    def keep(self, row: Response) -> Verdict:
        """Look for the phrases."""
        answer = row.answer or ""
        if self.refusals and self._declining.search(answer):
            return Refused("declines to answer")
        return Refused("boilerplate") if self._stock.search(answer) else KEPT

    @cached_property
    def _declining(self) -> re.Pattern[str]:
        return re.compile("|".join(_REFUSALS), re.IGNORECASE)

    @cached_property
    def _stock(self) -> re.Pattern[str]:
        own = map(re.escape, self.phrases)
        return re.compile("|".join([*_BOILERPLATE, *own]), re.IGNORECASE)


class Repetition(Filter):
    """Refuse answers that say the same again and again (Rae et al. 2021, appendix A.1.1)."""

    type: Literal["repetition"]
    any_target: ClassVar[bool] = True
    words: int = Field(3, ge=1)
    """Length of the runs of words that are counted."""
    max_share: float = Field(0.3, ge=0, lt=1)
    """Largest share of runs that were there before."""

    def keep(self, row: Response) -> Verdict:
        """Judge the share of repeated runs."""
        said = [word for word in words_of(row.answer or "") if word not in _RULES]
        runs = [tuple(said[i : i + self.words]) for i in range(len(said) - self.words + 1)]
        again = len(runs) - len(set(runs))
        if again <= self.max_share * len(runs):
            return KEPT
        return Refused("repeats itself", round(again / len(runs), 4))


def _no_number(spelt: str) -> float:
    raise ValueError(f"{spelt} is no JSON")
