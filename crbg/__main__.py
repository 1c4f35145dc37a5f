"""`python -m crbg` is the command `crbg`."""

import sys

from crbg.cli import main

sys.exit(main())
