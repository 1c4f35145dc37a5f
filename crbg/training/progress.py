"""The progress bar of a search in the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, int], None]

DELAY = 3.0  # seconds; no bar is shown for a search that is faster


@contextmanager
def reporting(progress: bool | Report | None) -> Iterator[Report]:
    """Yield a function of (steps done, total steps) that shows the progress of a search.

    Args:
        progress: None shows a bar with the remaining time on a terminal, if the search takes longer than `DELAY`
            seconds; True shows it everywhere and at once; False shows nothing; a function is called after each step.
    """
    if callable(progress):
        yield progress
        return
    if progress is False:
        yield lambda done, total: None
        return
    from tqdm import tqdm

    always = progress is True  # otherwise, tqdm itself finds out whether stderr is a terminal
    delay, disable = (0.0, False) if always else (DELAY, None)
    with tqdm(desc="find_ticket", unit=" steps", delay=delay, disable=disable) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
