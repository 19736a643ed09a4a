"""A teacher on loopback that writes a step before its answer, to sums and to tiny glosses.

It makes up tasks too, where it is to come up with some.
"""

import json
import random
import re

from tests.loopback_teacher import LoopbackTeacher, text_of
from tests.tiny_project import KINDS


class StepsTeacher(LoopbackTeacher):
    """`3 + 4 =` gives a step and `Answer: 7`; of three sums one is wrong."""

    def good(self, request: dict, path: str) -> bytes:
        reply = json.loads(super().good(request, path))
        reply["choices"][0]["message"]["content"] = worked(text_of(request))
        return json.dumps(reply).encode()


def worked(prompt: str) -> str:
    """Return a step and the answer to the last line of a prompt that has one, or two tasks."""
    if prompt.startswith("Come up with"):
        letters = " ".join(random.Random(prompt).sample("bcdefghijklmnopq", 8))
        return f" Sort {letters}.\nTask: Sort {letters}.\nTask: Wh"
    sums = re.findall(r"(-?\d+(?: [-+] \d+)+) =", prompt)
    if sums:
        terms = re.findall(r"[-+]?\d+", sums[-1].replace(" ", ""))
        total = sum(map(int, terms))
        return f"{sums[-1]} = {total}\nAnswer: {total + (total % 3 == 0)}"
    words = prompt.split()
    kind = next((kind for kind, known in KINDS.items() if {*known.split()} & {*words}), "thing")
    return f"Its words are those of a {kind}.\nAnswer: {kind}"
