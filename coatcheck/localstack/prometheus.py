"""What Prometheus needs to watch a stack: the files of `deploy/prometheus` with the stack's own workers as targets.

`prometheus --config.file=<data_dir>/prometheus/prometheus.yml` watches it. The stack itself does not start one.
"""

import json
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from coatcheck.localstack.files import private_dir, write_private
from coatcheck.localstack.ports import LOOPBACK


def port_name(worker: str) -> str:
    """Under which a worker's port is kept in `ports.json`."""
    return f"metrics_{worker}"


def metrics_url(port: int) -> str:
    """Where a worker answers."""
    return f"http://{LOOPBACK}:{port}/metrics"


def prepare(data_dir: Path, ports: Mapping[str, int]) -> None:
    """Write the configuration; `ports` are those of the workers, by name."""
    folder = private_dir(data_dir / "prometheus")
    # The wheel installs `deploy/` beside the package, as it lies in a checkout.
    source = Path(str(files("coatcheck"))).parent / "deploy" / "prometheus"
    shutil.copyfile(source / "prometheus.yml", folder / "prometheus.yml")
    shutil.copytree(source / "rules", folder / "rules", dirs_exist_ok=True)
    targets = [{"targets": [f"{LOOPBACK}:{port}"], "labels": {"worker": name}} for name, port in ports.items()]
    write_private(private_dir(folder / "targets") / "coatcheck.json", json.dumps(targets, indent=2))
