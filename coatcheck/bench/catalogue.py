"""The scenarios that come with Coatcheck, and those that somebody has in a file."""

from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from coatcheck.errors import ConfigError
from schemas.scenario import Scenario

_FOLDER = resources.files("coatcheck.bench").joinpath("scenarios")


def scenario_ids() -> list[str]:
    """The ids of the scenarios that come with Coatcheck, in order."""
    return sorted(item.name.removesuffix(".json") for item in _FOLDER.iterdir() if item.name.endswith(".json"))


def load_scenario(name: str) -> Scenario:
    """A scenario by its id, or by the path of its file.

    Raises:
        ConfigError: there is none of that name, or it breaks a rule; one line per mistake.
    """
    if name in scenario_ids():
        return parse_scenario(_FOLDER.joinpath(f"{name}.json").read_text("utf-8"), name)
    try:
        text = Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"there is no scenario {name!r}, nor a file of that name that can be read",
            hint=f"there are {', '.join(scenario_ids())}",
        ) from error
    return parse_scenario(text, name)


def parse_scenario(text: str, name: str) -> Scenario:
    """A scenario from JSON; `name` is what mistakes are told under.

    Raises:
        ConfigError: it is not JSON or breaks a rule.
    """
    try:
        return Scenario.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [f"{name}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problems]
        raise ConfigError("\n".join(lines)) from error
