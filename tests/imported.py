"""What others wrote and our programs import, imported; for a server that forks processes (`tests.forks`)."""

from importlib import import_module

for name in (
    "asyncpg",
    "detect_secrets.core.plugins.util",
    "genai_prices",
    "nats.js",
    "nkeys",
    "phonenumbers",
    "psutil",
    "pydantic_settings",
    "rich.live",
    "rich.table",
    "slugify",
    "temporalio.client",
    "temporalio.contrib.pydantic",
    "tree_sitter_toml",
    "typer",
):
    import_module(name)
