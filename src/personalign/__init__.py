"""personalign: compose, train, decode and compare personalized alignment methods for language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Experiment", "__version__", "compose"]

if TYPE_CHECKING:
    from personalign.composition.compose import compose
    from personalign.experiment import Experiment


def __getattr__(name: str) -> Any:
    """Import on first use, so that `import personalign` costs nothing and touches no torch."""
    if name == "compose":
        from personalign.composition.compose import compose

        return compose
    if name == "Experiment":
        from personalign.experiment import Experiment

        return Experiment
    raise AttributeError(f"module 'personalign' has no attribute {name!r}")
