"""The MCP gateway: agents' calls of tools, through a durable queue, each made once or not without saying so."""
