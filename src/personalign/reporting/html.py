"""The report as one self-contained page: no script, nothing fetched, and every text from outside escaped."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from personalign.reporting.answers import answers
from personalign.reporting.collect import Results
from personalign.reporting.figure import caption, inline
from personalign.reporting.records import Published
from personalign.reporting.rows import Row
from personalign.reporting.table import Column, beside, best, columns, interval, marks, notes, value
