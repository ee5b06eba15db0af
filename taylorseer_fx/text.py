"""Numbers and tables as a terminal shows them."""

from collections.abc import Collection, Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Columns two spaces apart under a ruled header; the columns in ``right`` are aligned right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])


def format_bytes(count: float) -> str:
    """In binary units: ``2.00 GiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def format_flops(count: float) -> str:
    """In decimal units: ``74.385 TFLOPs``."""
    for unit in ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "FLOPs" else f"{count:.3f} {unit}"
        count /= 1000
    return f"{count:.3f} TFLOPs"
