"""NATS: identities, the client that survives, streams, deliverables, request-reply. The one owner of nats-py."""
