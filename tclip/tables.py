"""Tables that read well in a terminal and in Markdown alike."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    first, *others = widths
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in others)])
    return "\n".join([line(header), f"|{rule}|", *map(line, cells)])


def percent(fraction: float) -> str:
    """A fraction of one as a percentage with two decimals."""
    return f"{100 * fraction:.2f}%"


def megabytes(size: int) -> str:
    """Bytes as millions of bytes with two decimals."""
    return f"{size / 1e6:.2f} MB"
