"""The second look: reads the finished bytes with other eyes than the redactor's, and refuses what shows a secret.

Two independent scans. Kingfisher, another scanner with rules of its own, in a process of its own, without network:
it neither validates what it finds nor looks for updates. And a plain search for every secret of this installation, in
each way in which it may be spelled in such a file. A scan that did not see every byte counts as one that found
something.
"""

import json
import mmap
import subprocess
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.training.files import Staged
from coatcheck.training.ownsecrets import spellings

TIMEOUT_SECONDS: Final = 600.0
"""It reads 200 MB/s; its rules are compiled in 7 s when it runs for the first time."""
SHOWN: Final = 5
_FOUND: Final = 200
"""Exit code of a scan that found something."""


class ExportRefusedError(CoatcheckError):
    """A finished file shows a secret, or nobody can say that it does not; nothing of its day was published."""

    code = "export.refused"


class FinishedScan:
    """Looks finished files over.

    Args:
        secrets: The values of `own_secrets`.
        cache: A folder for the scanner's compiled rules.
    """

    def __init__(self, secrets: Iterable[str], *, cache: Path) -> None:
        self._spelled = sorted({spelled for secret in secrets for spelled in spellings(secret)})
        self._cache = cache.absolute()

    def check(self, folder: Path, staged: Sequence[Staged]) -> None:
        """Look at every file below a folder.

        Raises:
            ExportRefusedError: something was found, or a scan was not complete.
        """
        for file in staged:
            self._search(file)
        self._scan(folder, staged)

    def _search(self, file: Staged) -> None:
        if not file.bytes:
            return
        with file.source.open("rb") as reading, mmap.mmap(reading.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for spelled in self._spelled:
                if (at := content.find(spelled)) >= 0:
                    raise ExportRefusedError(
                        f"{file.path} has one of this installation's own secrets at byte {at:,}; nothing was published"
                    )

    def _scan(self, folder: Path, staged: Sequence[Staged]) -> None:
        report = folder.with_name(f"{folder.name}-findings.json")
        report.unlink(missing_ok=True)
        arguments = ["--no-validate", "--no-update-check", "--no-ignore", "--no-ignore-if-contains", "--no-dedup"]
        arguments += ["--git-history", "none", "--max-file-size", "0", "--confidence", "low", "--no-extract-archives"]
        arguments += ["--rule-cache-dir", str(self._cache), "--format", "json", "--output", str(report), "--quiet"]
        self._cache.mkdir(parents=True, exist_ok=True)
        try:
            done = subprocess.run(  # noqa: S603  our own program, no shell
                [str(_program()), "scan", *arguments, str(folder)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
                env={"HOME": str(self._cache), "NO_PROXY": "*"},
                check=False,
            )
            found = json.loads(report.read_bytes()) if done.returncode in {0, _FOUND} else None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ExportRefusedError(f"the finished files could not be scanned: {type(error).__name__}") from error
        finally:
            report.unlink(missing_ok=True)
        if found is None:
            raise ExportRefusedError(f"the finished files could not be scanned: exit code {done.returncode}")
        self._judge(found, staged)

    def _judge(self, found: dict[str, Any], staged: Sequence[Staged]) -> None:
        if findings := found["findings"]:
            lines = [
                f"{Path(item['finding']['path']).name} line {item['finding']['line']}: {item['rule']['id']}"
                for item in findings[:SHOWN]
            ]
            more = f" and {len(findings) - SHOWN:,} more" if len(findings) > SHOWN else ""
            raise ExportRefusedError(
                f"{len(findings):,} secrets got through: {'; '.join(lines)}{more}; nothing was published",
                hint="this is a gap of the redactor: report the rules' names, never the values",
            )
        seen, there = found["metadata"]["summary"], {file.sha256: file.bytes for file in staged if file.bytes}
        # Files with the same bytes are looked at once.
        if seen["bytes_scanned"] < sum(there.values()) or seen["blobs_scanned"] < len(there):
            raise ExportRefusedError(
                f"only {seen['bytes_scanned']:,} of {sum(there.values()):,} bytes were scanned; nothing was published"
            )


def _program() -> Path:
    spec = find_spec("kingfisher")
    if spec is None or spec.origin is None:
        raise ExportRefusedError("the scanner is not installed", hint="pip install 'coatcheck[training]'")
    return Path(spec.origin).parent / "bin" / "kingfisher"
