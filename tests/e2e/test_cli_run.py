"""`run`, `status`, `report` and `evaluate` on a random model: what they leave behind and what they say."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.conftest import TINY, Command
