-- Claim a turn, or learn why not. $1 task key, $2 turn, $3 agent, $4 gateway, $5 sha256 of the request, $6 model,
-- $7 lease, $8 whether the claimer may take over from silent gateways, $9 what the turn may cost (`reserve_turn`), $10
-- whether a limit besides the run's budget may apply, $11 the run key. An in-flight turn of the claimer's own is an
-- orphan: the claimer knows which calls it holds.
--
-- The task's row, which the core worker commits before it asks the agent, is the authority: without one of this agent's
-- nothing is claimed and nothing is read, and turns are claimed and read only while it is running.
--
-- A row that another transaction is writing right now is waited for, but read as it was before, or not at all: asking
-- again sees it.
WITH task AS MATERIALIZED (
    SELECT execution_id, status, output_data FROM task_executions WHERE execution_id = $1 AND agent_id = $3
),
claimed AS (
    INSERT INTO llm_turns AS kept (task_key, turn, agent_id, status, gateway_id, request_sha256, model)
    SELECT task.execution_id, $2::int, $3, 'in_flight', $4, $5, $6
    FROM task
    WHERE task.status = 'running'
        AND ($2 = 1 OR EXISTS (SELECT FROM llm_turns WHERE task_key = $1 AND turn = $2 - 1 AND status = 'done'))
    ON CONFLICT (task_key, turn) DO UPDATE SET
        status = 'in_flight',
        gateway_id = excluded.gateway_id,
        calls = kept.calls + 1,
        request_sha256 = excluded.request_sha256,
        model = excluded.model,
        error = NULL,
        error_code = NULL,
        started_at = now(),
        completed_at = NULL
    WHERE kept.status = 'failed'
        OR (kept.status = 'in_flight' AND kept.gateway_id = $4)
        OR (
            kept.status = 'in_flight' AND kept.gateway_id <> $4 AND $8::bool AND kept.started_at < now() - $7::interval
            AND NOT EXISTS (
                SELECT FROM llm_gateways AS gateway
                WHERE gateway.gateway_id = kept.gateway_id AND gateway.seen_at >= now() - $7
            )
        )
    RETURNING
        calls,
        failures,
        CASE WHEN $10::bool OR EXISTS (SELECT FROM run_budgets AS budget WHERE budget.run_key = $11::text)
            THEN reserve_turn($1, $2::int, $3, $9::text::jsonb) END AS reserved
)
SELECT
    task.status AS task_status,
    CASE WHEN task.status = 'completed' THEN task.output_data END AS notice,
    claimed.calls,
    claimed.failures,
    claimed.reserved,
    kept.status,
    kept.gateway_id,
    kept.model,
    kept.cost_usd,
    extract(epoch FROM now() - kept.created_at)::float8 AS age_seconds,
    extract(epoch FROM now() - kept.completed_at)::float8 AS failed_seconds_ago, -- read as it was before the claim
    CASE WHEN claimed.calls IS NULL AND kept.status = 'done' THEN (
        SELECT content FROM agent_playground_messages
        WHERE instance_id = $1 AND role = 'assistant' AND (metadata ->> 'turn')::int = $2
    ) END AS answer,
    CASE WHEN $2 > 1 AND task.status = 'running' AND claimed.calls IS NULL AND kept.status IS NULL THEN (
        SELECT coalesce(max(turn), 0) + 1 FROM llm_turns WHERE task_key = $1 AND status = 'done'
    ) END AS next_turn
FROM (SELECT 1) AS always
LEFT JOIN task ON true
LEFT JOIN claimed ON true
LEFT JOIN llm_turns AS kept ON task.status = 'running' AND kept.task_key = $1 AND kept.turn = $2
