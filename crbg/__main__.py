"""Run the command `crbg` with `python -m crbg`."""

import os
import sys

from crbg.cli import main
from crbg.training import distributed

code = main()
if distributed.started():
    # All files are written. While the interpreter shuts down, a thread of the process group can still abort a process
    # that has finished its work; torchrun would then report a failure.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
