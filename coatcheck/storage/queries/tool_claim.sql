-- Claim a tool call, or learn why not. $1 task key, $2 tool call id, $3 agent, $4 server, $5 tool, $6 gateway, $7 sha256
-- of the request, $8 whether the tool may be called again, $9 most calls, $10 lease, $11 whether the claimer may take
-- over from silent gateways, $12 what the call may cost (`reserve_tool`), or NULL when it costs nothing.
--
-- A call that this gateway has begun and does not hold was never made: it holds a call from before the tool is called
-- until its outcome is here. What a dead gateway has begun is made again only if the tool allows it, now and then.
WITH task AS MATERIALIZED (
    SELECT execution_id, status FROM task_executions WHERE execution_id = $1 AND agent_id = $3
),
claimed AS (
    INSERT INTO tool_calls AS kept (
        task_key, tool_call_id, agent_id, server, tool, status, gateway_id, repeatable, request_sha256
    )
    SELECT task.execution_id, $2, $3, $4, $5, 'called', $6, $8, $7 FROM task WHERE task.status = 'running'
    ON CONFLICT (task_key, tool_call_id) DO UPDATE SET
        gateway_id = excluded.gateway_id,
        calls = kept.calls + 1,
        repeatable = kept.repeatable AND excluded.repeatable,
        started_at = now()
    WHERE kept.status = 'called' AND kept.request_sha256 = $7
        AND (
            kept.gateway_id = $6
            OR (
                kept.repeatable AND $8 AND kept.calls < $9 AND $11::bool
                AND NOT EXISTS (
                    SELECT FROM llm_gateways AS gateway
                    WHERE gateway.gateway_id = kept.gateway_id AND gateway.seen_at >= now() - $10::interval
                )
            )
        )
    RETURNING calls, CASE WHEN $12::text IS NOT NULL THEN reserve_tool($1, $2, $3, $4, $12::jsonb) END AS reserved
)
SELECT
    task.status AS task_status,
    claimed.calls,
    kept.status,
    kept.request_sha256,
    kept.gateway_id,
    kept.outcome,
    kept.status = 'called' AND $11::bool AND NOT EXISTS (
        SELECT FROM llm_gateways AS gateway
        WHERE gateway.gateway_id = kept.gateway_id AND gateway.seen_at >= now() - $10::interval
    ) AS is_orphan
FROM (SELECT 1) AS always
LEFT JOIN task ON true
LEFT JOIN claimed ON true
LEFT JOIN tool_calls AS kept ON task.execution_id IS NOT NULL AND kept.task_key = $1 AND kept.tool_call_id = $2
