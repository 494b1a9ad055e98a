"""What a network makes of users' texts as numbers, each worked out once: in memory and on disk, every user's apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from personalign.runtime import traces
from personalign.runtime.files import content_hash, write_atomic
from personalign.runtime.progress import track

R = TypeVar("R", bound=Hashable)


class Readings(Generic[R]):
    """Lists of numbers, a file each below the user, named by the hash of all that it depends on.

    A file is written whole and never changed; a damaged one, or one of another length, counts as none.
    """

    def __init__(self, cache: str, folder: str) -> None:
        self._cache, self._folder = cache, folder
        self._known: dict[str, dict[Path, list[float]]] = {}

    def of(
        self,
        asked: Sequence[tuple[str, R]],
        settings: Sequence[object],
        size: Callable[[R], int],
        read: Callable[[R], list[float]],
        description: str,
    ) -> dict[tuple[str, R], list[float]]:
        """The numbers of each (user, what is read), as many as `size` says; what is missing is read, one by one.

        `settings` are what they depend on beside what is read: the weights, say.
        """
        files = {one: self._file(one[0], [*settings, one[1]]) for one in asked}
        found = {one: values for one, file in files.items() if (values := self._kept(one, file, size))}
        missing = [one for one in files if one not in found]
        with track(description, len(missing), "texts") as bar:
            for one in missing:
                found[one] = read(one[1])
                write_atomic(files[one], json.dumps(found[one]))
                bar.advance(1)
        for one, values in found.items():
            self._known.setdefault(one[0], {})[files[one]] = values
        return found

    def forget(self, user: str) -> None:
        """Remove a user's numbers from memory and from disk."""
        self._known.pop(user, None)
        traces.forget(self._cache, user)

    def _kept(self, one: tuple[str, R], file: Path, size: Callable[[R], int]) -> list[float] | None:
        if known := self._known.get(one[0], {}).get(file):
            return known
        try:
            values = [float(value) for value in json.loads(file.read_bytes())]
        except (OSError, ValueError, TypeError):
            return None
        return values if len(values) == size(one[1]) else None

    def _file(self, user: str, made_of: Sequence[object]) -> Path:
        return traces.folder(self._cache, user) / self._folder / f"{content_hash(made_of)[:32]}.json"
