"""Numbers as text for people: rounded, with their unit."""

MINUS = "−"


def points(share: float | None) -> str:
    """Write a share of 1 in percent points: 0.6772 is `67.7`, or a dash where it is unknown."""
    return "–" if share is None else _signless(f"{100 * share:.1f}")


def signed(share: float) -> str:
    """Write a difference of shares in percent points, with its sign: `+8.4`, `−0.2`."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def count(number: float) -> str:
    """Write a whole number with thousands apart: `2,500`."""
    return f"{round(number):,}".replace("-", MINUS)


def short(number: float | None) -> str:
    """Write a large number in three digits: 134515008 is `135 M`; a dash where it is unknown."""
    if number is None:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{_three(number / size)} {unit}"
    return _three(number)


def size(count_of_bytes: float | None) -> str:
    """Write a size on disk or in memory: `269 MB` (decimal units); a dash where it is unknown."""
    if count_of_bytes is None:
        return "–"
    text = short(count_of_bytes)
    return f"{text}B" if " " in text else f"{text} B"


def times(ratio: float | None) -> str:
    """Write how many times as much: `3.2×`, or a dash where it is unknown."""
    return "–" if ratio is None else f"{_three(ratio)}×"


def duration(seconds: float) -> str:
    """Write a duration: `0.4 s`, `92 s`, `5 min 12 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02d} s"


def milliseconds(value: float) -> str:
    """Write a latency: `71.5 ms`."""
    return f"{_three(value)} ms"


def joules(value: float) -> str:
    """Write an energy: `0.42 J`, `38.1 mJ`."""
    return f"{_three(value)} J" if value >= 1 else f"{_three(1e3 * value)} mJ"


def figure(value: object) -> str:
    """Write any key figure of a stage's summary."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    return f"{value:.4g}".replace("-", MINUS) if isinstance(value, float) else str(value)


def _three(value: float) -> str:
    """Write three significant digits, without an exponent."""
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS)


def _signless(text: str) -> str:
    return ("0.0" if text == "-0.0" else text).replace("-", MINUS)
