"""How the benchmarks end: their tables on the terminal, and in a file where one is named."""

from pathlib import Path


def publish(text: str, out: Path | None) -> None:
    """Print a benchmark's text and write it to `out`, if there is one."""
    print(text)
    if out:
        out.write_text(f"Written by `make benchmark`.\n\n{text}")
