"""Backends: where a teacher's answers are computed.

A backend is opened on a teacher and then given prompts that have no answer yet. It yields answers
in batches; each batch is safe in the ledger before the next is computed, so a backend that talks to
a paid service yields every answer as it comes.

To add one: a class with `decided_by` and `open` in a file beside this one, and its name in
`Backend`.
"""

from typing import Annotated

from pydantic import Field

from cohobate.backends.openai import OpenAI
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm

Backend = Annotated[Transformers | Vllm | OpenAI | OpenAIBatch, Field(discriminator="type")]
