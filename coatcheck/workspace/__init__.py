"""Files and processes of the agents, confined: the workspace, the sandbox, and the checks that run in it."""
