"""Pictures for the Prefect UI, as `data:` URLs that contain the image."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Interval = Mapping[str, float]
Curve = Sequence[tuple[float, float]]
_TONES = ("#8a8f98", "#1f6feb", "#c2410c", "#15803d")


def intervals(scores: Mapping[str, Interval], x_label: str) -> str:
    """Draw each score as a point with its interval; return its URL."""
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
    return _data_url(figure)


def curves(series: Mapping[str, Sequence[Curve]], x_label: str, y_label: str) -> str:
    """Draw a name's curves in a colour of their own; return its URL."""
    from matplotlib import colormaps

    figure = _figure(1.2 + max(2.4, 0.2 * len(series)))
    axes = figure.add_subplot()
    tones = cycle(colormaps["tab10" if len(series) <= 10 else "tab20"].colors)  # type: ignore[attr-defined]
    for (name, several), tone in zip(series.items(), tones, strict=False):
        for nth, curve in enumerate(several):
            xs, ys = zip(*curve, strict=True)
            label = name if nth == 0 else None
            axes.plot(xs, ys, label=label, color=tone, linewidth=1.0, alpha=0.8)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return _data_url(figure)


def _figure(height: float) -> "Figure":
    from matplotlib.figure import Figure  # without pyplot: stages run in threads

    return Figure(figsize=(7, height), layout="constrained")


def _data_url(figure: "Figure") -> str:
    image = BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return f"data:image/png;base64,{b64encode(image.getvalue()).decode()}"
