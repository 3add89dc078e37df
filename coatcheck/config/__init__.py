"""`coatcheck.toml`: reading it, and its JSON schema for editors. Every mistake is told with file, line and key.

Owns the file's *form*, which is shorter than `schemas.config.Config`: a role of ours needs only the keys that change, a
stage takes its task type and kind from the role, names are the tables' keys, and prompts are files beside it.
"""

from coatcheck.config.document_schema import document_schema
from coatcheck.config.loading import load_config
from coatcheck.config.mistakes import nearest

__all__ = ["document_schema", "load_config", "nearest"]
