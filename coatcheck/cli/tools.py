"""`tools list|call|log` and `mcp`: tools that agents may call, and Coatcheck as a tool of others."""

from typing import Annotated

import typer

from coatcheck.cli.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer()
tools = typer.Typer(
    no_args_is_help=True,
    help="Tools of the MCP servers in coatcheck.toml.\n\nExample: coatcheck tools list",
)
app.add_typer(tools, name="tools")


@tools.command("list")
def list_tools(*, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Show every server, how it is, and the tools that may be called; servers are started for it.

    Exits with 1 when a server cannot be reached.

    Example: coatcheck tools list --json
    """
    from coatcheck.cli import session, toolbench  # noqa: PLC0415

    session.run(toolbench.list_tools(as_json=as_json, data_dir=data_dir))


@tools.command()
def call(
    server: Annotated[str, typer.Argument(help="Name in coatcheck.toml.")],
    tool: Annotated[str, typer.Argument(help="The tool's name at its server.")],
    arguments: Annotated[str, typer.Argument(help="A JSON object; - reads it from stdin.")] = "{}",
    *,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Call a tool once, through the gateway but for no agent, to see what it says; it is not recorded.

    Example: coatcheck tools call time get_current_time '{"timezone": "Europe/Berlin"}'
    """
    from coatcheck.cli import session, toolbench  # noqa: PLC0415

    session.run(toolbench.call(server, tool, arguments, as_json=as_json, data_dir=data_dir))


@tools.command()
def log(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="A feature, a workflow id or a run key.")] = None,
    *,
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the latest.")] = 50,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show the calls that agents have made: which, when, how they ended, and what they cost.

    Example: coatcheck tools log customer-search --agent roy
    """
    from coatcheck.cli import session, toolbench  # noqa: PLC0415

    session.run(toolbench.log(run, agent=agent, limit=limit, as_json=as_json, data_dir=data_dir))


@app.command()
def mcp(
    *,
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="Serve streamable HTTP there instead of stdio.")
    ] = None,
    host: Annotated[str, typer.Option(help="With --port: the address to listen on.")] = "127.0.0.1",
    read_only: Annotated[bool, typer.Option("--read-only", help="Offer nothing that changes a run.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Be an MCP server: assistants hand features over, see how far they are, decide, and read what was delivered.

    Over stdio it has the rights of who starts it. Over HTTP a request needs a token: COATCHECK_MCP_TOKEN may do
    everything, COATCHECK_MCP_READ_TOKEN may only read. Paths: /mcp.

    Example: coatcheck mcp --read-only

    Example: COATCHECK_MCP_TOKEN=… coatcheck mcp --port 8765
    """
    from coatcheck.cli import assistance, session  # noqa: PLC0415

    if port is None:
        session.run(assistance.serve_stdio(may_write=not read_only, data_dir=data_dir))
    else:
        session.run(assistance.serve_http(host, port, may_write=not read_only, data_dir=data_dir))
