"""`coatcheck cost --prices`: which price is used, how new it is and who says so; needs no server."""

from pathlib import Path

from tests.acceptance.program import coatcheck

AGREED = """
[prices."openai:house-model"]
input_usd = 1.5
output_usd = 6
cached_input_usd = 0.25
as_of = 2026-10-01
source = "contract 17"
"""


def test_prices_of_the_table_and_of_the_configuration(tmp_path: Path) -> None:
    """Each with its date and its source; what is unknown says so."""
    config = tmp_path / "coatcheck.toml"
    config.write_text(AGREED)
    outcome = coatcheck("cost", "--prices", "--json", data_dir=tmp_path, COATCHECK_CONFIG=str(config))
    assert outcome.code == 0, outcome
    prices = {price["model"]: price for price in outcome.json}
    house, mini, scripted = prices["openai:house-model"], prices["openai:gpt-5-mini"], prices["scripted"]
    assert (house["origin"], house["as_of"], house["source"]) == ("configured", "2026-10-01", "contract 17")
    assert (house["input_usd"], house["cached_input_usd"]) == ("1.5", "0.25")
    assert mini["origin"] == "table"
    assert mini["source"].startswith("genai-prices ")
    assert mini["as_of"] is not None
    assert (scripted["origin"], scripted["input_usd"]) == ("free", "0")


def test_the_price_of_one_model(tmp_path: Path) -> None:
    """Also of one that nothing here uses; at an endpoint of one's own the table's price means nothing."""
    outcome = coatcheck("cost", "--prices", "anthropic:claude-sonnet-4-5", data_dir=tmp_path)
    assert outcome.code == 0, outcome
    assert outcome.out.splitlines()[1].split()[:4] == ["anthropic:claude-sonnet-4-5", "$3", "$15", "$0.3"]
    own = coatcheck("cost", "--prices", "openai:gpt-5", data_dir=tmp_path, OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert own.out.splitlines()[1].split() == ["openai:gpt-5", "unknown", "unknown", "unknown"]
    assert "endpoint of your own" in own.err


def test_what_does_not_go_together_is_misuse(tmp_path: Path) -> None:
    """Before anything connects; and without servers there are no costs to tell."""
    for arguments in (["openai:gpt-5"], ["--prices", "--run", "x"], ["--since", "soon"], ["--by", "moon"]):
        outcome = coatcheck("cost", *arguments, data_dir=tmp_path)
        assert (outcome.code, outcome.out) == (2, "")
    for arguments in (["cost"], ["why", "x"]):
        assert coatcheck(*arguments, data_dir=tmp_path).code == 3
