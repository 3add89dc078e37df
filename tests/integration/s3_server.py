"""An S3 server (rclone's) in front of a folder, that can be taken away and brought back."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

KEY, SECRET = "key-of-the-test", "secret-of-the-test"


class S3Server:
    """Serves the folders below `root` as buckets, with signed requests."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root = root
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    @property
    def variables(self) -> dict[str, str]:
        """What a client finds in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        """Begin to serve; returns when it listens."""
        program = shutil.which("rclone", path=str(Path(sys.executable).parent))
        assert program is not None
        where = ["--addr", f"127.0.0.1:{self._port}", "--auth-key", f"{KEY},{SECRET}"]
        options = ["--config", str(self._scratch / "rclone.conf"), "--vfs-cache-mode", "off"]
        with (self._scratch / "rclone.log").open("a") as log:
            self._process = subprocess.Popen([program, "serve", "s3", str(self._root), *where, *options], stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the S3 server does not listen")

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
