-- Events of the audit log as rows, in the log's order; what is there already stays as it is.
INSERT INTO events (
    event_id, event_type, entity_type, entity_id, workflow_id, agent_id, session_id, source, severity, created_at,
    payload
)
SELECT
    event_id, event_type, entity_type, entity_id, workflow_id, agent_id, session_id, source, severity, created_at,
    payload::jsonb
FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
    $10::timestamptz[], $11::text[]
) WITH ORDINALITY AS given (
    event_id, event_type, entity_type, entity_id, workflow_id, agent_id, session_id, source, severity, created_at,
    payload, position
)
ORDER BY position
ON CONFLICT (event_id) DO NOTHING
