"""Rows with pictures of a few pixels, made on the spot: a colour is a category."""

import json
from pathlib import Path

COLOURS = {"animal": (200, 40, 40), "plant": (40, 200, 40), "person": (40, 40, 200)}


def picture(path: Path, category: str, number: int, side: int = 20) -> Path:
    """Write a picture of a category: its colour, and a few pixels that make it another picture."""
    from PIL import Image

    image = Image.new("RGB", (side, side), COLOURS[category])
    for bit in range(10):
        image.putpixel((bit, 0), (255, 255, 255) if number >> bit & 1 else (0, 0, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def folder_of_rows(folder: Path, rows: int = 120) -> Path:
    """Write a data file and its pictures into a folder."""
    lines = []
    for number in range(rows):
        category = list(COLOURS)[number % len(COLOURS)]
        picture(folder / f"pictures/{number}.png", category, number)
        caption = f"a thing of the colour {COLOURS[category][number % 3]}, number {number}"
        row = {"image": f"pictures/{number}.png", "text": caption, "answer": category}
        lines.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder
