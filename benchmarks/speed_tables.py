"""Statistics and Markdown tables of the results of `speed.py`."""

import statistics
from collections.abc import Sequence


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Format the median, the minimum and the maximum: '371 (365..380)'."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def quotients(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Divide round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def table(rows: Sequence[dict[str, str]]) -> str:
    """Format the rows of a CSV as two Markdown tables."""
    head = "| student | batch | CE, images/s | FRSKD, images/s | time ratio | GMAC ratio | speed-up over float32 |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row['model']}`", _shape(row), row["ce_images_per_s"], row["frskd_images_per_s"], row["ratio"]]
        lines.append(f"| {' | '.join([*cells, row['multiply_adds_ratio'], row['times_float32']])} |")
    head = (
        "| student | batch | CE, peak MiB | FRSKD, peak MiB | in memory, images/s | lost | streaming, images/s | lost |"
    )
    lines += ["", head, "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = [f"`{row['model']}`", _shape(row), row.get("ce_peak_mib", ""), row.get("frskd_peak_mib", "")]
        for mode in ("memory", "stream"):
            lost = row.get(f"{mode}_lost_to_data_percent")
            cells += [row.get(f"{mode}_loop_images_per_s", ""), f"{lost}%" if lost else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _shape(row: dict[str, str]) -> str:
    """Return batch, precision and compilation of a measurement."""
    shape = f"{row['batch_size']} of {row['img_size']}x{row['img_size']}, {row['precision']}"
    return shape + (", compiled" if row.get("torchcompile") == "True" else "")


def costs(rows: Sequence[dict[str, str]]) -> str:
    """Format what FRSKD costs for each student as a Markdown table."""
    lines = [
        "| student | images | student (M) | self-teacher (M) | GMAC ratio | time ratio |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        millions = [f"{int(row[f'{network}_parameters']) / 1e6:.2f}" for network in ("student", "self_teacher")]
        cells = [f"`{row['model']}`", f"{row['img_size']}x{row['img_size']}", *millions, row["multiply_adds_ratio"]]
        lines.append(f"| {' | '.join([*cells, row['ratio']])} |")
    return "\n".join(lines)
