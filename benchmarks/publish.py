"""Output of the benchmarks: a table on the terminal and, optionally, in a file."""

from pathlib import Path


def publish(text: str, out: Path | None) -> None:
    """Print the text of a benchmark, and write it to `out` if it is given."""
    print(text)
    if out:
        out.write_text(f"Written by `make benchmark`.\n\n{text}")
