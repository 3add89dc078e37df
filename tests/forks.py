"""Processes of our programs that have imported beforehand what others wrote: two thirds of what a start costs.

Our own modules are imported by each process anew, in the order in which it comes to them, so that none can lean on what
another process has loaded.
"""

import multiprocessing

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.imported"])
