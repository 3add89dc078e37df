"""`VectorCache`: vectors by model and sha256 of the deliverable, in one SQLite file of the data folder.

Derived from what is stored elsewhere, so it may be deleted at any time, and no migration is owed to it.
"""

import contextlib
import sqlite3
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

Vector: TypeAlias = "array[float]"
"""Of length 1."""
FILE: Final = "embeddings.sqlite"
_BUSY_SECONDS: Final = 10.0


class VectorCache:
    """Several processes may use one at the same time.

    Args:
        path: Of the file; made when it is missing.
        model: Whose vectors are meant.
    """

    def __init__(self, path: Path, model: str) -> None:
        self._path = path
        self._model = model

    def get(self, digests: Collection[str]) -> dict[str, Vector]:
        """Those that are there, by sha256."""
        with self._open() as connection:
            rows = connection.execute("SELECT sha256, vector FROM vectors WHERE model = ?", (self._model,))
            return {digest: array("f", blob) for digest, blob in rows if digest in digests}

    def put(self, vectors: Mapping[str, Vector]) -> None:
        """Keep them; one that is there already stays."""
        rows = [(self._model, digest, vector.tobytes()) for digest, vector in vectors.items()]
        with self._open() as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors "
                "(model TEXT, sha256 TEXT, vector BLOB, PRIMARY KEY (model, sha256)) WITHOUT ROWID"
            )
            yield connection
