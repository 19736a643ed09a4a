"""Shards of a signal store: written one after the other, and published together.

A shard has the signals of `capture.shard_rows` consecutive rows of the file. It is written below
`.cohobate/capture/<teacher>/<key>`, where the key is a hash of all that decides its bytes. It takes
its final name when it is complete. A capture that was killed continues after the last complete
shard. When all are complete they become the store (`publish`), and are removed from there.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel

from cohobate import sealed_folder
from cohobate.code_fingerprint import fingerprints
from cohobate.data.examples import Example
from cohobate.data.records import write_json
from cohobate.errors import UserError
from cohobate.models.lm_head import Head
from cohobate.progress import say
from cohobate.teachers.signal_store.form import Packed, Signals
from cohobate.teachers.signal_store.store import (
    ABOUT,
    HEAD,
    INDEX,
    ROW,
    VOCABULARY,
    Origin,
    ids_hash,
    row_hash,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORK = Path(".cohobate/capture")
FIGURES = "figures.json"
"""In the folder of a shard: its rows and tokens, and sums of statistics."""


def capture_key(
    origin: BaseModel,
    rows: Path,
    decided_by: dict[str, Any],
    module: str = "cohobate.teachers.signal_store.capture",
) -> str:
    """Return the key of a capture: a hash of the teacher, the rows, the params and the code.

    Args:
        origin: what the signals are captured with.
        rows: a file, which counts by its content.
        decided_by: the settings that decide the bytes.
        module: whose code writes the shards.
    """
    with rows.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    # comments and docstrings do not count: an edit of them leaves the finished shards in use
    code = fingerprints(module, Path(__file__).parents[3])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = [origin.model_dump(mode="json"), content, decided_by, code, device, torch.__version__]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def line_chunks(path: Path, rows: int) -> Iterator[list[bytes]]:
    """Yield the lines of a file, `rows` at a time."""
    with path.open("rb") as lines:
        while chunk := list(islice(lines, rows)):
            yield chunk


def read_figures(shard: Path) -> dict[str, float] | None:
    """Return the figures of a complete shard; None where it has to be written."""
    if not shard.exists():
        return None
    try:
        sealed_folder.verify(shard)
    except UserError as error:
        say(f"{shard} is damaged and written again: {error.what}")
        return None
    figures: dict[str, float] = json.loads((shard / FIGURES).read_bytes())
    return figures


class ShardWriter:
    """Writer of one shard; leaving the `with` block publishes all of it, an error nothing."""

    def __init__(self, shard: Path, number: int, origin: Origin) -> None:
        self.origin, self.number = origin, number
        self.figures: dict[str, float] = {"rows": 0, "tokens": 0}
        self._staged = sealed_folder.staged(shard)
        self._rows: list[tuple[int, ...]] = []
        self._token = self._draw = 0

    def __enter__(self) -> "ShardWriter":
        self._folder = self._staged.__enter__()
        self._tokens = (self._folder / f"tokens-{self.number:05}.bin").open("wb")
        self._draws = (self._folder / f"draws-{self.number:05}.bin").open("wb")
        return self

    def add(self, examples: Sequence[Example], signals: Signals) -> None:
        """Append rows and the signals of all their completions, one row after the other.

        Raises:
            UserError: the teacher's logits are not finite: names the row.
        """
        self._refuse_not_finite(examples, signals)
        self._write(examples, self.origin.form.pack(signals, self.origin.vocabulary), signals)

    def add_packed(self, examples: Sequence[Example], packed: Packed) -> None:
        """Append rows whose signals are packed already, in the form of this store."""
        signals = self.origin.form.unpack(packed, self.origin.vocabulary)
        self._write(examples, packed, signals)

    def _write(self, examples: Sequence[Example], packed: Packed, signals: Signals) -> None:
        sizes = self.origin.form.draw_sizes(packed.tokens, self.origin.vocabulary)
        draw_starts = np.cumsum([0, *sizes])
        at = 0
        for row in examples:
            ids = ids_hash(row.ids.tolist(), row.spans, row.teacher_prompt)
            hashes = (row_hash(row.key), ids)
            # where the row begins in the shard: its first token, and its first byte of draws
            starts = (self._token + at, self._draw + int(draw_starts[at]))
            self._rows.append((*hashes, self.number, row.length, *starts))
            at += row.length
        self._tokens.write(packed.tokens.tobytes())
        self._draws.write(packed.draws.tobytes())
        self._token += at
        self._draw += len(packed.draws)
        for name, each in self.origin.form.figures(signals).items():
            total = float(each.sum(dtype=torch.float64))
            self.figures[name] = self.figures.get(name, 0.0) + total

    def _refuse_not_finite(self, examples: Sequence[Example], signals: Signals) -> None:
        finite_N = torch.ones(sum(row.length for row in examples), dtype=torch.bool)
        for tensor in signals.values():
            # one flag a token, over all that is kept of it
            finite_N &= tensor.isfinite().reshape(len(tensor), -1).all(1)
        if not finite_N.all():
            owners = [row.key for row in examples for _ in range(row.length)]
            bad = owners[int((~finite_N).nonzero()[0])]
            raise UserError("the teacher's logits are not finite", where=f"row {bad}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # before the folder is published: its manifest has the hashes of these files
        self._tokens.close()
        self._draws.close()
        if kind is None:
            if not self._draw:
                Path(self._draws.name).unlink()
            np.save(self._folder / INDEX, np.array(self._rows, dtype=ROW))
            self.figures |= {"rows": len(self._rows), "tokens": self._token}
            write_json(self._folder / FIGURES, self.figures)
        self._staged.__exit__(kind, error, trace)


def publish(
    shards: Sequence[Path],
    folder: Path,
    origin: Origin,
    tokenizer: "PreTrainedTokenizerBase",
    head: Head | None = None,
    *,
    keep_tokenizer: bool = False,
) -> None:
    """Publish complete shards as a store at `folder`; `head` for a form that needs it.

    With `keep_tokenizer` the store has the tokenizer's files.

    Raises:
        UserError: two shards have the same row.
    """
    index = np.concatenate([np.load(shard / INDEX) for shard in shards])
    # sorted over all shards, for the binary search of a row
    index.sort(order="key")
    if (index["key"][1:] == index["key"][:-1]).any():
        raise UserError("the same row was captured twice", where=str(folder))
    with sealed_folder.staged(folder) as partial:
        # links, not copies: signals are the bulk of the bytes, and the shards are removed next
        for path in (path for shard in shards for path in sorted(shard.glob("*.bin"))):
            _link(path, partial / path.name)
        np.save(partial / INDEX, index)
        strings = {number: token for token, number in tokenizer.get_vocab().items()}
        tokens = [strings.get(number) for number in range(origin.vocabulary)]
        (partial / VOCABULARY).write_text(json.dumps(tokens, ensure_ascii=False))
        if keep_tokenizer:
            tokenizer.save_pretrained(partial)
        if origin.form.needs_head:
            assert head is not None
            _save_head(head, partial / HEAD)
        sizes = {"shards": len(shards), "rows": len(index), "tokens": int(index["length"].sum())}
        write_json(partial / ABOUT, origin.model_copy(update=sizes).model_dump(mode="json"))


def _save_head(head: Head, path: Path) -> None:
    from safetensors.torch import save_file

    parts = {"weight": head.weight_VD, "bias": head.bias_V}
    save_file({k: v.detach().cpu().contiguous() for k, v in parts.items() if v is not None}, path)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one that has no hard links
        shutil.copyfile(source, target)
