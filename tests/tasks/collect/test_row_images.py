"""Pictures of rows: checked, kept once, and quarantined by name where they cannot be used."""

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.images import load_image, stored_image
from cohobate.data.records import COLLECT, DEV, IMAGES, LABELLED, TEST, UNLABELLED, Row, read_rows
from cohobate.errors import UserError
from tasks.collect import stage
from tasks.collect.emoji import concept
from tests.tiny_pictures import COLOURS, folder_of_rows, picture

CAPTION = {"text": "Emoji: {text}\nCategory:"}


def collect(**changes: Any) -> None:
    settings = {
        "source": {"type": "files", "path": "seen", "group": "answer"},
        "images": "image",
        "template": {"prompt": "Category:"},
        "teacher_prompt": CAPTION,
        "split": {"labelled": 20, "unlabelled": 20, "dev": 10, "test": 10},
    }
    stage.run(params.validated(stage.CollectParams, settings | changes, "collect"))


def quarantined() -> dict[str, str]:
    lines = (COLLECT / "quarantine.jsonl").read_text().splitlines()
    return {json.loads(line)["reason"]: json.loads(line)["text"] for line in lines}


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder_of_rows(tmp_path / "seen", 80)


def add(folder: Path, **columns: Any) -> None:
    with (folder / "rows.jsonl").open("a") as lines:
        lines.write(json.dumps({"text": "another", "answer": "plant"} | columns) + "\n")


def test_rows_name_pictures_by_content_and_the_stage_keeps_those_in_use(seen: Path) -> None:
    collect()
    rows = [row for path in (LABELLED, DEV, TEST, UNLABELLED) for row in read_rows(path, Row)]
    names = [name for row in rows for name in row.images]
    assert len(rows) == len({row.id for row in rows}) == len(set(names)) == 60
    assert {path.name for path in IMAGES.iterdir()} == set(names)
    assert load_image(names[0]).getpixel((15, 15)) in COLOURS.values()
    first = rows[0]
    assert first.prompt == "Category:" and first.teacher_prompt.startswith("Emoji: a thing")
    assert first.for_teacher().images is None
    assert json.loads((COLLECT / "summary.json").read_text())["pictures"] == 60


def test_rows_with_one_picture_are_on_one_side_of_the_split(seen: Path) -> None:
    for _ in range(3):
        lines = (seen / "rows.jsonl").read_text()
        (seen / "rows.jsonl").write_text(lines + lines.replace("number", "number again"))
    collect(template={"prompt": "{text}\nCategory:"})
    sides = [
        {name for row in read_rows(path, Row) for name in row.images}
        for path in (LABELLED, DEV, TEST)
    ]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_unusable_pictures_are_quarantined_with_the_reason(seen: Path) -> None:
    from PIL import Image

    whole = (seen / "pictures/0.png").read_bytes()
    (seen / "cut.png").write_bytes(whole[: len(whole) // 2])
    (seen / "text.png").write_text("no picture")
    (seen / "empty.png").write_bytes(b"")
    Image.new("1", (5000, 5000)).save(seen / "bomb.png")
    for name in ("cut", "text", "empty", "bomb", "absent"):
        add(seen, image=f"{name}.png")
    add(seen, image="../params.yaml")
    add(seen, image=None)
    add(seen, image="https://example.org/a.png")
    add(seen, image=7)
    add(seen)
    collect()
    reasons = quarantined()
    for reason in (
        "a broken picture",
        "not a picture",
        "the file of a picture is empty",
        "a picture of more than 16 million pixels",
        "there is no such picture",
        "the picture lies outside collect.source.path",
        "no picture: column 'image' is empty",
        "a picture is a file, not an address",
        "a picture is a path or bytes, not a number",
        "no column 'image' with a picture",
    ):
        assert any(one.startswith(reason) for one in reasons), reason


def test_zip_files_bytes_and_data_addresses_are_read(seen: Path) -> None:
    content = picture(Path("one.png"), "plant", 500).read_bytes()
    with zipfile.ZipFile(seen / "more.zip", "w") as packed:
        packed.writestr("a/one.png", content)
    add(
        seen,
        image=["more.zip/a/one.png", "data:image/png;base64," + base64.b64encode(content).decode()],
    )
    add(seen, image="more.zip/a/two.png")
    collect(split={"labelled": 30, "unlabelled": 30, "dev": 10, "test": 11})
    name = stored_image(content).name
    rows = [row for path in (LABELLED, DEV, TEST, UNLABELLED) for row in read_rows(path, Row)]
    assert [row.images for row in rows if name in row.images] == [(name, name)]
    assert "there is no such picture in the zip file" in quarantined()


def test_a_data_file_alone_is_refused_as_dvc_would_not_see_its_pictures(seen: Path) -> None:
    with pytest.raises(UserError, match="no folder") as raised:
        collect(source={"type": "files", "path": "seen/rows.jsonl"})
    assert "collect.source.path=" in raised.value.fix


def test_one_prompt_for_all_records_needs_pictures() -> None:
    with pytest.raises(UserError, match="name at least one column"):
        collect(images=None)


def test_transparent_parts_become_white_and_the_name_is_of_what_came() -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(out, "PNG")
    stored = stored_image(out.getvalue())
    assert stored.name.endswith(".png")
    with Image.open(io.BytesIO(stored.content)) as image:
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


def test_variants_of_an_emoji_are_one_concept() -> None:
    runner, by_man = concept("1F3C3"), concept("1F3C3-1F3FD-200D-2642-FE0F")
    assert runner == by_man
    assert concept("1F550") == concept("1F55F") == "clock"
    assert concept("1F1E7-1F1F4") != concept("1F1EC-1F1F2")
    assert concept("1F468-200D-1F469-200D-1F467") == "people"
