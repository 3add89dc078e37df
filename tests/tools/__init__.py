"""An MCP server that misbehaves as asked and counts what it does: the judge of what was done twice."""
