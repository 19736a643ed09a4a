"""Pictures for the Prefect UI, which shows an image from its address: here the image itself."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = Mapping[str, float]
Curve = Sequence[tuple[float, float]]
_TONES = ("#8a8f98", "#1f6feb", "#c2410c", "#15803d")


def intervals(scores: Mapping[str, Interval], x_label: str) -> str:
    """Draw each score as a point with its interval; return the picture's address."""
    figure = _figure(1.2 + 0.45 * len(scores))
    axes = figure.add_subplot()
    for place, (name, score) in enumerate(scores.items()):
        tone = _TONES[place % len(_TONES)]
        axes.plot([score["low"], score["high"]], [name, name], color=tone, linewidth=3)
        axes.plot([score["mean"]], [name], "o", color=tone, markersize=9)
        axes.annotate(
            f"{score['mean']:.3f}", (score["mean"], name), (0, 9), textcoords="offset points",
            ha="center",
        )  # fmt: skip
    axes.invert_yaxis()
    axes.margins(y=0.5)
    axes.set_xlabel(x_label)
    return _address(figure)


def curves(found: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """Draw a curve for each name; return the picture's address."""
    figure = _figure(3.6)
    axes = figure.add_subplot()
    for name, curve in found.items():
        axes.plot([x for x, _ in curve], [y for _, y in curve], label=name, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False)
    return _address(figure)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot: stages run in threads

    return Figure(figsize=(7, height), layout="constrained")


def _address(figure: "Figure") -> str:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return f"data:image/png;base64,{b64encode(image.getvalue()).decode()}"
