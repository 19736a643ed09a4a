"""Safetensors form: a Hugging Face folder with the checkpoint's own weights, byte for byte."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from cohobate.data.records import Row
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision
from cohobate.models.seeing import PROCESSOR, is_seeing
from tasks.export.form import Form, Questions, Tolerance


class Safetensors(Form):
    """A Hugging Face folder: safetensors, configuration, tokenizer."""

    type: Literal["safetensors"]
    precision: Precision = "auto"
    """Number format in which it is opened for the check, like the original."""
    tolerance: Tolerance = Tolerance(score=0, agreement=1, loss=0.001)

    reader: ClassVar[str] = "transformers"
    writes_classifiers: ClassVar[bool] = True
    writes_embedders: ClassVar[bool] = True
    writes_masked: ClassVar[bool] = True
    writes_seeing: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return `safetensors`."""
        return self.type

    @property
    def usage(self) -> str:
        """Return a few lines of transformers."""
        return pipeline_usage("auto")

    def usage_of(self, folder: Path) -> str:
        """Return a few lines of transformers, of the pipeline that fits the model."""
        if checkpoints.is_embedder(folder):
            return embedder_usage(folder)
        if checkpoints.is_masked(folder):
            return masked_usage()
        if is_seeing(folder):
            return seeing_usage(folder)
        return classifier_usage() if checkpoints.is_classifier(folder) else self.usage

    def serving(self, student: Path, folder: Path, example: Row) -> str:
        """Return lines of vLLM for a model that generates, and where llama.cpp and Ollama are."""
        if checkpoints.is_embedder(folder) or checkpoints.is_classifier(folder):
            return ""
        if checkpoints.is_masked(folder) or is_seeing(folder):
            return ""
        key, route = '"prompt": "..."', ""
        if not isinstance(example.prompt, str):
            key, route = '"messages": [{"role": "user", "content": "..."}]', "chat/"
        request = f'{{"model": "student", {key}, "max_tokens": 16, "temperature": 0}}'
        return (
            f"vLLM, OpenAI's API on port 8000, where it has this architecture:\n\n```bash\n"
            "vllm serve . --served-model-name student\n"
            f"curl http://127.0.0.1:8000/v1/{route}completions \\\n"
            f"  -H 'Content-Type: application/json' -d '{request}'\n```\n\n"
            "llama.cpp and Ollama open the form `gguf` (`export.forms: [{type: gguf}]`)."
        )

    def write(self, student: Path, folder: Path) -> None:
        """Copy the checkpoint's files; the same bytes take no second place in DVC's cache."""
        checkpoints.copy_parts(student, folder)

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer with cohobate/generation/decoding.py, which every stage answers with."""
        return greedy_answers(folder, self.precision, questions)

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float]:
        """Read the answers with cohobate/generation/likelihood.py."""
        return read_losses(folder, self.precision, rows, threads)


def pipeline_usage(dtype: str, packages: str = "") -> str:
    """Return a few lines of transformers for the model card, and which packages they need."""
    install = f"# pip install {packages}\n" if packages else ""
    return (
        f"```python\n{install}"
        "from transformers import pipeline\n\n"
        f'generator = pipeline("text-generation", ".", dtype="{dtype}")\n'
        "print(generator(prompt, max_new_tokens=16, do_sample=False, return_full_text=False))\n"
        "```"
    )


def classifier_usage() -> str:
    """Return a few lines of transformers for the model card of a classifier."""
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classifier = pipeline("text-classification", ".")\n'
        'print(classifier(prompt))   # [{"label": ..., "score": ...}]\n'
        "```"
    )


def masked_usage() -> str:
    """Return a few lines of transformers for the model card of a masked model."""
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'filler = pipeline("fill-mask", ".")\n'
        'print(filler(f"{prompt} {filler.tokenizer.mask_token}"))   # the likeliest tokens\n'
        "```"
    )


def seeing_usage(folder: Path) -> str:
    """Return a few lines of transformers for the model card of a model that sees."""
    token = json.loads((folder / PROCESSOR).read_bytes()).get("image_token", "<image>")
    return (
        "```python\nfrom PIL import Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        'processor = AutoProcessor.from_pretrained(".")\n'
        'model = AutoModelForImageTextToText.from_pretrained(".", dtype="auto")\n'
        'picture = Image.open("picture.png").convert("RGB")   # transparent parts: on white\n'
        f'inputs = processor(images=picture, text="{token}" + prompt, return_tensors="pt")\n'
        "answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)\n"
        'print(processor.decode(answer[0, inputs["input_ids"].shape[1]:]))\n'
        "```"
    )


def embedder_usage(folder: Path) -> str:
    """Return a few lines of transformers for the model card of an embedder."""
    config = json.loads((folder / "config.json").read_bytes())
    if config["model_type"] == "static_embedding":
        return (
            "```python\n# pip install sentence-transformers\n"
            "from sentence_transformers import SentenceTransformer\n"
            "from sentence_transformers.models import Normalize, StaticEmbedding\n\n"
            'embedder = SentenceTransformer(modules=[StaticEmbedding.load("."), Normalize()])\n'
            "vectors = embedder.encode([query, document])\n"
            "```"
        )
    facts = config[checkpoints.SENTENCE_EMBEDDING]
    mean = "(hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)"
    vector = mean if facts["pooling"] == "mean" else "hidden[:, 0]"
    limit = f", truncation=True, max_length={facts['max_tokens']}" if facts["max_tokens"] else ""
    return (
        "```python\nimport torch\nfrom transformers import AutoModel, AutoTokenizer\n\n"
        'tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")\n'
        f'batch = tokenizer([query, document], padding=True{limit}, return_tensors="pt")\n'
        'hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"]\n'
        f"vectors = torch.nn.functional.normalize({vector}, dim=-1)\n"
        "print(vectors @ vectors.T)   # cosines\n"
        "```"
    )


def read_losses(
    folder: Path, precision: Precision, rows: Sequence[Row], threads: int
) -> list[float]:
    """Return a checkpoint's mean loss on each row's answer, in nats a token, or of its label."""
    return [*open_model(folder, precision).answer_losses(rows, threads=threads)]


def greedy_answers(folder: Path, precision: Precision, questions: Questions) -> list[str]:
    """Return the greedy answers of a checkpoint."""
    tested = open_model(folder, precision).with_documents(questions.documents)
    decoding = Decoding(max_tokens=questions.max_tokens)
    # batches are by length: answers come in another order than prompts
    answers = dict(tested.answers(questions.prompts, decoding, threads=questions.threads))
    return [answers[position].full_text for position in range(len(questions.prompts))]
