"""The scripted author: a deterministic stand-in for a language model, used when no provider key is configured."""

from coatcheck.agents.scripted.model import ScriptedModel

__all__ = ["ScriptedModel"]
