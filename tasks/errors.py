"""The one kind of error that is meant for a person."""


class UserError(Exception):
    """Something a person can mend: what happened, where, and the next command.

    Both doors print it in three lines and exit non-zero; a traceback needs `--debug`.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)  # positional, so that it survives pickling
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  next:  {self.mend}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.mend)


def _rebuild(kind: type[UserError], what: str, where: str, mend: str) -> UserError:
    return kind(what, where=where, mend=mend)
