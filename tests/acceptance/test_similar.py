"""`coatcheck similar`: research finds what has already been written."""

from tests.acceptance.test_cli import Cli, wait_for

BRIEFS = {
    "weather-map": "A map that shows tomorrow's weather: rain, wind and temperature for every region.",
    "bill-download": "Customers download their bills as PDF or spreadsheet, filtered by month.",
    "invoice-files": "Export invoices as PDF and CSV files for the accounting department.",
}


def test_research_finds_what_was_written_before(cli: Cli) -> None:
    """The nearest comes first; only what is earlier and of other features."""
    for feature, brief in BRIEFS.items():
        assert cli("run", feature, brief, "--gate", "research").code == 0
        wait_for(cli, feature, "waiting")
    found = cli("similar", "agog.deliverables.cynthia.research.invoice-files", "--limit", "1000", "--json")
    assert found.code == 0, found.err
    order = [match["subject"].rpartition(".")[2] for match in found.json]
    assert order.index("bill-download") < order.index("weather-map")
    assert "invoice-files" not in order
    assert [match["similarity"] for match in found.json] == sorted((m["similarity"] for m in found.json), reverse=True)
    shown = cli("similar", "agog.deliverables.cynthia.research.weather-map", "--type", "research")
    assert shown.out.splitlines()[0].split() == ["SIMILARITY", "STAGE", "MESSAGE", "SUBJECT", "WHEN", "SUMMARY"]
    assert "bill-download" not in shown.out


def test_what_cannot_be_compared(cli: Cli) -> None:
    """No such subject, no number; an endpoint that is away is a dependency."""
    assert cli("similar", "agog.deliverables.cynthia.research.never-written").code == 1
    assert cli("similar", "agog_features_research:first").code == 2
    away = {"COATCHECK_EMBEDDING_MODEL": "small", "OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "OPENAI_API_KEY": "none"}
    refused = cli("similar", "agog_features_research:1", **away)
    assert (refused.code, "does not answer" in refused.err) == (3, True), refused.err
