"""`python -m personalign` is the command `personalign`."""

from __future__ import annotations

import sys

from personalign.cli import main

sys.exit(main())
