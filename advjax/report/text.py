"""Tables as text for a terminal."""

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of cells as lines of text: the first ``left`` columns to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def ruled(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A header, a rule, and rows, aligned."""
    head, *body = aligned([header, *rows])
    return "\n".join([head, "-" * max(map(len, [head, *body])), *body])
