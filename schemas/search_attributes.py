"""Temporal search attributes: few and coarse, since each change is an event and a visibility write.

They must be registered on the server; the core worker refuses to start without them, because a workflow that
upserts an unknown attribute hangs as "Running".
"""

from typing import Final

from temporalio.common import SearchAttributeKey

FEATURE: Final = SearchAttributeKey.for_keyword("CoatcheckFeature")
STATUS: Final = SearchAttributeKey.for_keyword("CoatcheckStatus")

ALL: Final = (FEATURE, STATUS)
