"""Run the command `crbg` with `python -m crbg`."""

import sys

from crbg.cli import main

sys.exit(main())
