"""A real chat completions endpoint on this machine: the server that comes with transformers."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest


class Served:
    """A server in a process of its own, whose log tells what it was asked."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.log = folder, log
        self.url = f"http://127.0.0.1:{port}/v1"
        words = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        alone = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "transformers.cli.transformers", *words],
                env={**os.environ, **alone},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def wait(self, seconds: float = 240) -> None:
        """Until it answers; it listens when the model is loaded."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(self.url.replace("/v1", "/health"), timeout=5):
                return
            time.sleep(0.2)
        pytest.fail(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def asked(self) -> int:
        """How many questions it has been sent."""
        return len(re.findall(r'"POST /v1/chat/completions HTTP', self.log.read_text()))
