"""Deliverables outlive retention.

`archiver` copies them and their files, `desk` gives them out, `verifying` looks over all that is kept, `monitoring`
says how far the archive is behind the streams. Reading it from afar is `coatcheck.messaging.archive`.
"""
