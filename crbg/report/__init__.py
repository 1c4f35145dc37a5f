"""Records -> tables, figures, numbers, verdicts, one HTML page and the paper.

This package only reads result files and never imports torch.
"""

from crbg.report.brief import brief
from crbg.report.build import build

__all__ = ["brief", "build"]
