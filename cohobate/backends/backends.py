"""Backends: where a teacher's answers are computed.

A backend is opened for a teacher and then receives the requests that the ledger has no answer for.
It yields answers in batches. Each batch is written to the ledger before the next is computed, so a
backend of a paid service yields every answer as it arrives.

To add one: a class with `key_parts` and `open` in a file beside this one, and its name in
`Backend`.
"""

from typing import Annotated

from pydantic import Field

from cohobate.backends.openai import OpenAI
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm

Backend = Annotated[Transformers | Vllm | OpenAI | OpenAIBatch, Field(discriminator="type")]
