"""`python -m coatcheck.localstack`: the supervisor as a child process, its `StackConfig` as the first line of stdin.

With `--controlled` it also reads commands from there, and stops when its parent closes the pipe or dies.
"""

import asyncio
import sys

from coatcheck.localstack.config import StackConfig
from coatcheck.localstack.foreground import supervise


def main() -> int:
    """Run the supervisor; the exit code is the program's."""
    config = StackConfig.model_validate_json(sys.stdin.buffer.readline())
    commands = sys.stdin if "--controlled" in sys.argv[1:] else None
    return asyncio.run(supervise(config, commands=commands))


if __name__ == "__main__":
    sys.exit(main())
