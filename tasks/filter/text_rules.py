"""Rule-based filters on text: JSON schema, language, boilerplate, repetition."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from cohobate.data.messages import prompt_text
from cohobate.data.records import Response
from cohobate.data.text_comparison import words_of
from tasks.filter.base_filter import KEEP, Context, Drop, Filter, Rows, Verdict

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
_TABLE_RULES = frozenset("|-")


class JsonSchemaFilter(Filter):
    """Drop answers that are not JSON, or do not match a JSON schema."""

    type: Literal["schema"]
    json_schema: dict[str, Any]
    """The schema of an answer, in JSON Schema (draft 2020-12)."""

    @field_validator("json_schema")
    @classmethod
    def _sound(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"not a JSON schema: {error.message}") from None
        return schema

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Parse each answer and validate it."""
        from jsonschema import Draft202012Validator

        validator = Draft202012Validator(self.json_schema)
        for row in rows:
            try:
                value = json.loads(row.answer or "", parse_constant=_refuse_constant)
            except (ValueError, RecursionError):
                yield Drop("not JSON")
                continue
            yield KEEP if validator.is_valid(value) else Drop("JSON of another schema")


class LanguageFilter(Filter):
    """Drop rows in other languages than the wanted ones (py3langid, after Lui & Baldwin 2012).

    A row is dropped where the language is certainly another one, not where it is uncertain, as it
    often is for short texts. Measured on 7,000 English glosses of WordNet (median ten words): a
    bound of 0.5 dropped one in ten, 0.01 one in 7,000; both dropped all of 47 sentences in 14
    other languages.
    """

    type: Literal["language"]
    any_target: ClassVar[bool] = True
    wanted: tuple[str, ...] = Field(min_length=1)
    """ISO 639-1 codes, such as [en, de]."""
    of: Literal["prompt", "answer", "both", "reasoning"] = "answer"
    """Which text is classified; both: prompt and answer."""
    min_probability: float = Field(0.01, gt=0, lt=1)
    """Lowest summed probability of the wanted languages. Higher values drop more short rows that
    are in fact in one of them."""
    min_characters: int = Field(20, ge=1)
    """Shorter texts are kept: one or two words are part of many languages."""

    @field_validator("wanted")
    @classmethod
    def _codes(cls, wanted: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [code for code in wanted if not re.fullmatch("[a-z]{2,3}", code)]:
            raise ValueError(f"{odd[0]!r} is not an ISO 639 code")
        return wanted

    def verdicts(self, rows: Rows, context: Context) -> Iterator[Verdict]:
        """Identify the language of each row's text."""
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        reason = f"not in {' or '.join(self.wanted)}"
        for row in rows:
            text = self._text(row)
            if len(text) < self.min_characters:
                yield KEEP
                continue
            ranked = dict(identifier.rank(text))
            probability = round(sum(float(ranked.get(code, 0.0)) for code in self.wanted), 4)
            is_wanted = probability >= self.min_probability
            yield KEEP if is_wanted else Drop(reason, probability)

    def _text(self, row: Response) -> str:
        texts = {"prompt": prompt_text(row.prompt), "answer": row.answer or ""}
        texts["both"] = "\n".join(texts.values())
        return (texts | {"reasoning": row.reasoning or ""})[self.of]


class BoilerplateFilter(Filter):
    """Drop refusals (`I cannot help with that`) and answers with stock phrases."""

    type: Literal["boilerplate"]
    any_target: ClassVar[bool] = True
    refusals: bool = True
    """Whether answers such as `I'm sorry, but I cannot help with that` are dropped."""
    phrases: tuple[str, ...] = ()
    """Further phrases, in any letter case."""

    def verdict(self, row: Response) -> Verdict:
        """Search the answer for the phrases."""
        answer = row.answer or ""
        if self.refusals and self._refusal_pattern.search(answer):
            return Drop("refusal to answer")
        return Drop("boilerplate") if self._phrase_pattern.search(answer) else KEEP

    @cached_property
    def _refusal_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(_REFUSALS), re.IGNORECASE)

    @cached_property
    def _phrase_pattern(self) -> re.Pattern[str]:
        own = map(re.escape, self.phrases)
        return re.compile("|".join([*_BOILERPLATE, *own]), re.IGNORECASE)


class RepetitionFilter(Filter):
    """Drop answers with many repeated word n-grams (Rae et al. 2021, appendix A.1.1)."""

    type: Literal["repetition"]
    any_target: ClassVar[bool] = True
    words: int = Field(3, ge=1)
    """Length n of the n-grams."""
    max_share: float = Field(0.3, ge=0, lt=1)
    """Largest share of n-grams that repeat an earlier one."""
    of: Literal["answer", "reasoning"] = "answer"
    """Which text is searched."""

    def verdict(self, row: Response) -> Verdict:
        """Count the repeated n-grams."""
        text = row.answer if self.of == "answer" else row.reasoning
        words = [word for word in words_of(text or "") if word not in _TABLE_RULES]
        ngrams = [tuple(words[i : i + self.words]) for i in range(len(words) - self.words + 1)]
        repeated = len(ngrams) - len(set(ngrams))
        if repeated <= self.max_share * len(ngrams):
            return KEEP
        return Drop("repeated n-grams", round(repeated / len(ngrams), 4))


def _refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{name} is not JSON")
