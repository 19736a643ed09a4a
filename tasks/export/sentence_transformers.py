"""Sentence-transformers form: a folder that SentenceTransformer opens, and transformers too."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from cohobate.data.messages import prompt_text
from cohobate.data.records import Row, write_json
from cohobate.models import checkpoints
from cohobate.scoring.rankings import DEPTH, distinct_documents
from tasks.export.form import Form, Questions, Tolerance, not_installed

_MODULES = "sentence_transformers.models."
_FIXED: dict[str, Any] = {
    "similarity_fn_name": "cosine",
    "prompts": {},
    "default_prompt_name": None,
}


class SentenceTransformers(Form):
    """An embedder with the files by which sentence-transformers knows how it pools."""

    type: Literal["sentence_transformers"]
    # two of ten documents change places by the rounding of bfloat16: the score decides
    tolerance: Tolerance = Tolerance(score=0.01, agreement=0.5)

    reader: ClassVar[str] = "sentence-transformers"
    writes_generators: ClassVar[bool] = False
    writes_embedders: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return `sentence-transformers`."""
        return "sentence-transformers"

    @property
    def usage(self) -> str:
        """Return a few lines of sentence-transformers."""
        return (
            "```python\n# pip install sentence-transformers\n"
            "from sentence_transformers import SentenceTransformer\n\n"
            'embedder = SentenceTransformer(".")\n'
            "vectors = embedder.encode([query, document])\n"
            "print(embedder.similarity(vectors, vectors))   # cosines\n"
            "```"
        )

    def write(self, student: Path, folder: Path) -> None:
        """Copy the checkpoint, and describe its modules."""
        checkpoints.copy_parts(student, folder)
        config = json.loads((folder / "config.json").read_bytes())
        facts = config[checkpoints.SENTENCE_EMBEDDING]
        static = config["model_type"] == "static_embedding"
        modules = [("StaticEmbedding", "")] if static else [("Transformer", ""), _pooling_folder()]
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        for name, path in modules[1:]:
            (folder / path).mkdir()
            write_json(folder / path / "config.json", _module_config(name, facts, config))
        written = [
            {"idx": n, "name": str(n), "path": path, "type": f"{_MODULES}{name}"}
            for n, (name, path) in enumerate(modules)
        ]
        write_json(folder / "modules.json", written)
        write_json(folder / "config_sentence_transformers.json", _FIXED)
        if not static:
            limits = {"max_seq_length": facts["max_tokens"], "do_lower_case": False}
            write_json(folder / "sentence_bert_config.json", limits)

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Rank the documents by sentence-transformers' own vectors and similarity.

        Raises:
            UserError: sentence-transformers is not installed.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise not_installed("sentence-transformers", self.name, "embedders") from error
        embedder: Any = SentenceTransformer(str(folder), local_files_only=True)
        documents = distinct_documents(questions.documents)
        queries = [prompt_text(prompt) for prompt in questions.prompts]
        options = {"convert_to_tensor": True, "show_progress_bar": False}
        vectors_CD, vectors_RD = (embedder.encode(x, **options) for x in (list(documents), queries))
        cosines_RC = embedder.similarity(vectors_RD, vectors_CD)
        order_RC = cosines_RC.sort(descending=True, stable=True).indices[:, :DEPTH]
        return ["\n".join(documents[n] for n in order) for order in order_RC.tolist()]

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> None:
        """Return None: it gives no probabilities."""
        return


def _pooling_folder() -> tuple[str, str]:
    return "Pooling", "1_Pooling"


def _module_config(name: str, facts: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    if name != "Pooling":
        return {}
    return {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_cls_token": facts["pooling"] == "cls",
        "pooling_mode_mean_tokens": facts["pooling"] == "mean",
    }
