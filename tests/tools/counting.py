"""An MCP server over stdio, without the SDK: it starts in 30 ms, and can say what no SDK would let it say.

`python counting.py LEDGER [ANNOTATION…]`: every call of `count` appends a line to LEDGER, in one write, before it
answers. `ANNOTATION` such as `count=idempotentHint` is what the list of tools then claims.
"""

import itertools
import json
import os
import sys
import threading
import time
from typing import Any

_OBJECT: dict[str, Any] = {"type": "object"}
TOOLS: dict[str, dict[str, Any]] = {
    "count": {
        "type": "object",
        "properties": {"key": {"type": "string"}, "seconds": {"type": "number"}},
        "required": ["key"],
        "additionalProperties": False,
    },
    "echo": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    "flood": {"type": "object", "properties": {"bytes": {"type": "integer"}}, "required": ["bytes"]},
    "garbage": _OBJECT,
    "never": _OBJECT,
    "fail": _OBJECT,
    "die": _OBJECT,
    "secrets": _OBJECT,
    "rename": _OBJECT,
}
_lock = threading.Lock()
_hints: dict[str, str] = {}
_extra: list[str] = []
_lists = itertools.count()
"""How often the tools were asked for."""


def _send(message: dict[str, Any]) -> None:
    with _lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def _tools() -> list[dict[str, Any]]:
    next(_lists)
    schemas = TOOLS | dict.fromkeys(_extra, _OBJECT)
    return [
        {"name": name, "inputSchema": schema, **({"annotations": {_hints[name]: True}} if name in _hints else {})}
        for name, schema in schemas.items()
    ]


def _call(name: str, arguments: dict[str, Any]) -> str | None:  # noqa: PLR0911  one tool per line
    match name:
        case "count":
            time.sleep(arguments.get("seconds", 0) / 2)
            ledger = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(ledger, f"{arguments['key']} {os.getpid()}\n".encode())
            os.close(ledger)
            time.sleep(arguments.get("seconds", 0) / 2)
            return f"counted {arguments['key']}"
        case "echo":
            return str(arguments["text"])
        case "flood":
            return "x" * int(arguments["bytes"])
        case "garbage":
            with _lock:
                sys.stdout.write("this is no JSON\n{}\n[1, 2\n")
                sys.stdout.flush()
            return None
        case "never":
            return None
        case "die":
            os._exit(1)
        case "secrets":
            return json.dumps(dict(os.environ))
        case "rename":
            _extra.append("renamed")
            _send({"method": "notifications/tools/list_changed"})
            return f"listed {next(_lists)} times"
    raise ValueError(f"{name} failed")


def _answer(request: dict[str, Any]) -> None:
    try:
        text = _call(request["params"]["name"], request["params"].get("arguments") or {})
    except ValueError as error:
        result = {"content": [{"type": "text", "text": str(error)}], "isError": True}
    else:
        if text is None:
            return
        result = {"content": [{"type": "text", "text": text}]}
    _send({"id": request["id"], "result": result})


def main() -> None:
    """Serve until the input ends."""
    _hints.update(argument.split("=") for argument in sys.argv[2:])
    for line in sys.stdin:
        request = json.loads(line)
        match request.get("method"):
            case "initialize":
                version = request["params"]["protocolVersion"]
                capabilities = {"tools": {"listChanged": True}}
                info = {"name": "counting", "version": "1"}
                result = {"protocolVersion": version, "capabilities": capabilities, "serverInfo": info}
                _send({"id": request["id"], "result": result})
            case "tools/list":
                _send({"id": request["id"], "result": {"tools": _tools()}})
            case "tools/call":
                threading.Thread(target=_answer, args=(request,), daemon=True).start()
            case _ if "id" in request:
                _send({"id": request["id"], "error": {"code": -32601, "message": "no such method"}})


if __name__ == "__main__":
    main()
