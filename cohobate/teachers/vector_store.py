"""Vector store: a teacher's vectors of texts, written once and read by training.

It is a sealed folder, data/capture/<teacher>:

    vectors.npy   float16 (N, D), of length one: a vector for each distinct text
    texts.npy     uint64 (N,), a hash of each text, ascending
    about.json    what they were computed with:

    {"max_tokens": 256, "number_format": "bfloat16", "pooling": "mean", "teacher": "53aa…",
     "texts": 12034, "width": 384}

Texts are encoded in shards of `capture.shard_rows`. A capture that was killed resumes after its
last complete shard, and writes the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cohobate import sealed_folder
from cohobate.code_fingerprint import fingerprints
from cohobate.data.messages import prompt_text
from cohobate.data.records import Response, Row, read_rows, write_json
from cohobate.errors import UserError
from cohobate.models import checkpoints, embedders
from cohobate.models.number_formats import resolve
from cohobate.progress import Meter, say
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import WORK

if TYPE_CHECKING:
    import torch

    from cohobate.data.examples import Example
    from cohobate.fast.forward_pass import ForwardOutputs
    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.losses.soft_targets import SoftTargets
    from cohobate.teachers.ensembles import Progressive
    from cohobate.teachers.micro_batch import MicroBatch

ABOUT = "about.json"
_VECTORS, _TEXTS = "vectors.npy", "texts.npy"


def texts_of(row: Row) -> list[str]:
    """Return the texts of a row: a query and its document, or raw text."""
    texts = [] if row.is_raw_text else [prompt_text(row.full_prompt)]
    return texts if row.answer is None else [*texts, row.answer]


def text_hash(text: str) -> int:
    """Return a hash of a text, of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def capture_vectors(
    teacher: Path, rows: Path, folder: Path, capture: CaptureParams, *, label: str
) -> dict[str, Any]:
    """Write the vector store of an embedder over the texts of a file of `Response` rows.

    Args:
        teacher: folder of the teacher's checkpoint.
        rows: the rows.
        folder: where the store is published.
        capture: precision, threads, and texts of a shard.
        label: name of this run in the progress.

    Returns:
        Key figures: texts, width, bytes a text.

    Raises:
        UserError: there are no rows, the checkpoint is damaged, or a vector is not finite.
    """
    encoder = _Encoder(teacher, capture)
    total = sum(1 for _ in _distinct(rows))
    if not total:
        raise UserError("there are no rows to capture", where=str(rows), fix="dvc repro filter")
    work = WORK / folder.name / _key(encoder.about, rows, capture)
    meter, shards = Meter(label, total), list[Path]()
    texts = _distinct(rows)
    while part := list(islice(texts, capture.shard_rows)):
        shards.append(work / f"shard-{len(shards):05}")
        if _is_complete(shards[-1]):
            say(f"shard {len(shards) - 1} is complete: its {len(part)} texts are kept")
            meter.skip(len(part))
            continue
        with sealed_folder.staged(shards[-1]) as partial:
            np.save(partial / _VECTORS, encoder.encode(part))
            np.save(partial / _TEXTS, np.array([text_hash(text) for text in part], np.uint64))
        meter.advance(len(part))
    _publish(shards, folder, encoder.about | {"texts": total})
    shutil.rmtree(WORK / folder.name)
    meter.finish()
    about = _about(folder)
    return {"texts": total, "width": about["width"], "bytes_per_text": 2 * about["width"] + 8}


class _Encoder:
    """A teacher that is loaded when the first text has to be encoded."""

    def __init__(self, teacher: Path, capture: CaptureParams) -> None:
        self._folder, self._threads = teacher, capture.threads
        number_format = resolve(capture.precision, checkpoints.accelerator())
        config = json.loads((teacher / "config.json").read_bytes())
        self.about: dict[str, Any] = {
            **config[checkpoints.SENTENCE_EMBEDDING],
            "teacher": checkpoints.fingerprint(teacher),
            "number_format": number_format,
        }

    @cached_property
    def _model(self) -> Any:
        from cohobate.fast.frozen import load_frozen

        number_format, device = self.about["number_format"], checkpoints.accelerator()
        return load_frozen(self._folder, precision=number_format, device=device)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts, float16 (N, D)."""
        model, tokenizer = self._model
        vectors_ND = embedders.encode(model, tokenizer, texts, self._threads).numpy()
        finite_N = np.isfinite(vectors_ND).all(1)
        if not finite_N.all():
            bad = texts[int((~finite_N).argmax())]
            raise UserError("the teacher's vector of a text is not finite", where=repr(bad[:80]))
        packed: np.ndarray = vectors_ND.astype(np.float16)
        return packed


def _distinct(rows: Path) -> Iterator[str]:
    """Yield each text of a file's rows once, in the order of the rows."""
    seen: set[int] = set()
    for row in read_rows(rows, Response):
        for text in texts_of(row):
            key = text_hash(text)
            if key not in seen:
                seen.add(key)
                yield text


def _key(about: dict[str, Any], rows: Path, capture: CaptureParams) -> str:
    """Return the key of a capture: a hash of all that decides the bytes of its shards."""
    import torch

    code = fingerprints("cohobate.teachers.vector_store", Path(__file__).parents[2])
    device = checkpoints.accelerator()
    content = sealed_folder.sha256_of(rows)
    parts = [about, content, capture.shard_rows, code, device, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _is_complete(shard: Path) -> bool:
    if not shard.exists():
        return False
    try:
        sealed_folder.verify(shard)
    except UserError as error:
        say(f"{shard} is damaged and written again: {error.what}")
        return False
    return True


def _publish(shards: Sequence[Path], folder: Path, about: dict[str, Any]) -> None:
    """Publish complete shards as one store, its texts sorted by hash."""
    hashes_N = np.concatenate([np.load(shard / _TEXTS) for shard in shards])
    parts = [np.load(shard / _VECTORS, mmap_mode="r") for shard in shards]
    starts = np.cumsum([0, *map(len, parts)])
    order_N = np.argsort(hashes_N, kind="stable")
    with sealed_folder.staged(folder) as partial:
        np.save(partial / _TEXTS, hashes_N[order_N])
        shape = (len(hashes_N), parts[0].shape[1])
        # on disk: the vectors of all texts may not fit into memory
        out = np.lib.format.open_memmap(partial / _VECTORS, "w+", np.float16, shape)
        place_N = np.empty(len(order_N), np.int64)
        place_N[order_N] = np.arange(len(order_N))
        for start, part in zip(starts, parts, strict=False):
            out[place_N[start : start + len(part)]] = part
        out.flush()
        del out
        write_json(partial / ABOUT, about | {"width": shape[1]})


def _about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
    return about


class VectorStore:
    """A published vector store.

    Raises:
        UserError: it is not there, or a file of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / ABOUT).exists():
            raise UserError(
                "there are no vectors of a teacher here",
                where=str(folder),
                fix="targets: data/capture/<a teacher of kind: embedder>",
            )
        sealed_folder.verify(folder)
        self.folder, self.about = folder, _about(folder)
        self._texts_N = np.load(folder / _TEXTS)
        self._vectors_ND = np.load(folder / _VECTORS, mmap_mode="r")

    @property
    def width(self) -> int:
        """Length of the vectors."""
        return int(self._vectors_ND.shape[1])

    def find(self, texts: Iterable[str]) -> list[int]:
        """Return the place of each text in the store; −1 where it has none."""
        hashes = np.array([text_hash(text) for text in texts], np.uint64)
        at = np.searchsorted(self._texts_N, hashes).clip(max=len(self._texts_N) - 1)
        places: list[int] = np.where(self._texts_N[at] == hashes, at, -1).tolist()
        return places

    def read(self, places: Sequence[int]) -> "torch.Tensor":
        """Return the vectors at some places, (N, D), in float32."""
        import torch

        return torch.from_numpy(self._vectors_ND[list(places)].astype(np.float32))


class StoredVectors:
    """A target source whose targets are the vectors of the rows' texts, one after the other."""

    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __init__(self, store: VectorStore, places: dict[str, list[int]]) -> None:
        """Open a source; `places` are those of each example's texts in the store, by its key."""
        self.store, self.places = store, places

    @property
    def live_models(self) -> list[Any]:
        """None."""
        return []

    def collate(self, rows: "Sequence[Example]") -> dict[str, Any]:
        """Return the vectors of all texts of the rows, (N, D)."""
        places = [place for row in rows for place in self.places[row.key]]
        return {"vectors_ND": self.store.read(places)}

    def targets(self, batch: "MicroBatch") -> "tuple[SoftTargets, ForwardOutputs | None]":
        """There are no distributions of tokens."""
        raise NotImplementedError
