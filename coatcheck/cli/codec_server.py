"""`codec-server`: decrypts payloads for Temporal's UI and program, for whoever may see them.

The protocol is Temporal's: POST /decode and /encode with `Payloads` as JSON. The UI runs in a browser and calls it from
there, so only its own origin is let in; others are refused before anything is decrypted.
"""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Final

import uvicorn
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.converter import PayloadCodec

from coatcheck.cli.voice import MisuseError, tell
from coatcheck.errors import CoatcheckError, PayloadKeyMissingError
from coatcheck.settings import Settings
from workers.encryption import EncryptionCodec, read_keys

MAX_BODY_BYTES: Final = 16 * 1024**2
"""A page of a history: Temporal's own messages have 4 MB at most, a third more in base64."""


async def serve(settings: Settings, *, host: str, port: int, origins: Sequence[str]) -> None:
    """Serve until Ctrl-C.

    Args:
        settings: With the keys and, unless only this machine can ask, the token.
        host: Where it listens.
        port: The same.
        origins: Of the UIs that may ask.

    Raises:
        MisuseError: it would decrypt for everybody in the network.
        CoatcheckError: there are no keys, or they are wrong.
    """
    if settings.payload_keys is None:
        raise CoatcheckError("there are no payload keys here", hint="COATCHECK_PAYLOAD_KEYS, as the workers have it")
    if settings.codec_token is None and not _is_loopback(host):
        raise MisuseError(
            f"on {host}, whoever reaches it could decrypt everything",
            hint="set COATCHECK_CODEC_TOKEN, or --host 127.0.0.1",
        )
    app = codec_app(EncryptionCodec(read_keys(settings.payload_keys)), token=settings.codec_token, origins=origins)
    tell(f"serving http://{host}:{port}; Ctrl-C ends it")
    tell(f"hint: `temporal workflow show --codec-endpoint http://{host}:{port} …`")
    await uvicorn.Server(uvicorn.Config(app, host=host, port=port, lifespan="off", log_level="warning")).serve()


def codec_app(codec: PayloadCodec, *, token: SecretStr | None, origins: Sequence[str]) -> Starlette:
    """The application: two routes, nothing else."""

    def route(
        work: Callable[[Sequence[Payload]], Awaitable[list[Payload]]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if (refusal := _refusal(request, token, origins)) is not None:
                return refusal
            body = b""
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    return PlainTextResponse("too large", 413)
            try:
                payloads = Parse(body, Payloads()).payloads
                done = Payloads(payloads=await work(payloads))
            except (ParseError, UnicodeDecodeError):
                return PlainTextResponse("not Payloads in JSON", 400)
            except PayloadKeyMissingError as error:
                return PlainTextResponse(str(error), 422)
            return Response(MessageToJson(done), media_type="application/json")

        return answer

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["POST"],
        allow_headers=["authorization", "content-type", "x-namespace"],
    )
    routes = [
        Route("/decode", route(codec.decode), methods=["POST"]),
        Route("/encode", route(codec.encode), methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[cors])


def _refusal(request: Request, token: SecretStr | None, origins: Sequence[str]) -> Response | None:
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins:
        return PlainTextResponse("not for this origin", 403)
    given = request.headers.get("authorization", "").encode()
    if token is not None and not hmac.compare_digest(given, f"Bearer {token.get_secret_value()}".encode()):
        return PlainTextResponse("who are you?", 401, {"www-authenticate": "Bearer"})
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
