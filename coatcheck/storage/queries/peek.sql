-- Look whether a turn needs a provider call, before waiting for leave to make one. $1 task key, $2 turn, $3 agent,
-- $4 gateway, $5 lease. The columns are those of claim.sql, and the run's tenant. A turn that failed, is new, is an
-- orphan of this gateway or belongs to a silent one may be claimed: its status is NULL here.
WITH task AS MATERIALIZED (
    SELECT execution_id, workflow_id, status, output_data FROM task_executions
    WHERE execution_id = $1 AND agent_id = $3
)
SELECT
    task.status AS task_status,
    CASE WHEN task.status = 'completed' THEN task.output_data END AS notice,
    run.metadata ->> 'tenant' AS tenant,
    NULL::int AS calls,
    NULL::int AS failures,
    NULL::jsonb AS reserved,
    CASE
        WHEN kept.status = 'done' THEN 'done'
        WHEN kept.status = 'in_flight' AND kept.gateway_id <> $4 AND EXISTS (
            SELECT FROM llm_gateways AS gateway
            WHERE gateway.gateway_id = kept.gateway_id AND gateway.seen_at >= now() - $5::interval
        ) THEN 'in_flight'
    END AS status,
    kept.gateway_id,
    kept.model,
    kept.cost_usd,
    CASE WHEN kept.status = 'done' THEN (
        SELECT content FROM agent_playground_messages
        WHERE instance_id = $1 AND role = 'assistant' AND (metadata ->> 'turn')::int = $2
    ) END AS answer,
    NULL::int AS next_turn
FROM (SELECT 1) AS always
LEFT JOIN task ON true
LEFT JOIN workflows AS run ON run.workflow_id = task.workflow_id
LEFT JOIN llm_turns AS kept ON task.status = 'running' AND kept.task_key = $1 AND kept.turn = $2
