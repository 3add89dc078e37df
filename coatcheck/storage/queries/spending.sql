-- What model calls took, by one dimension, and all of them together. $1 dimension, $2 run key or NULL, $3 tenant or
-- NULL, $4 begin or NULL. The rows come in the order in which the groups began, the total last.
--
-- A turn's tokens and cost are of its finished call; calls that failed or were lost left none. A group's cost is NULL
-- when a finished turn in it has no price: what is unknown does not add up. A run's turns are one range of the primary
-- key, since `0` follows `/`.
--
-- Turns are joined from the left: what was paid for counts also where rows of its task were removed.
--
-- Calls of tools that cost something are lines of the model `tool:<server>`, without turns and tokens.
--
-- A finished round without turns, whose notice has no cost, is a command agent's, which pays its provider itself: one
-- line without numbers, so that what it is part of is unknown, and not 0.
WITH kept AS (
    SELECT
        task_key, turn, agent_id, model, status, error_code, calls, tokens_in, tokens_out, tokens_cached, cost_usd,
        started_at, completed_at
    FROM llm_turns
    UNION ALL
    SELECT
        task_key, NULL, agent_id, 'tool:' || server, 'tool', error_code, 0, 0, 0, 0, cost_usd, started_at, completed_at
    FROM tool_calls
    WHERE cost_usd > 0
    UNION ALL
    SELECT
        execution_id COLLATE "C", NULL, agent_id, 'command', 'unmetered', NULL, 0, 0, 0, 0, NULL,
        started_at, completed_at
    FROM task_executions
    WHERE task_executions.status = 'completed'
        AND output_data -> 'metadata' ->> 'cost_usd' IS NULL
        AND NOT EXISTS (SELECT FROM llm_turns WHERE task_key = execution_id COLLATE "C")
),
turn AS (
    SELECT
        kept.*,
        run.workflow_id AS run_key,
        CASE $1::text
            WHEN 'call' THEN jsonb_build_object(
                'task', kept.task_key, 'turn', kept.turn, 'agent', kept.agent_id, 'model', kept.model,
                'status', kept.status, 'error', kept.error_code
            )
            WHEN 'stage' THEN jsonb_build_object('stage', task.task_name)
            WHEN 'agent' THEN jsonb_build_object('agent', kept.agent_id)
            WHEN 'model' THEN jsonb_build_object('model', kept.model)
            WHEN 'run' THEN jsonb_build_object('run', run.workflow_id, 'feature', run.name, 'status', run.status)
            WHEN 'tenant' THEN jsonb_build_object('tenant', run.metadata ->> 'tenant')
            WHEN 'day' THEN jsonb_build_object('day', (kept.started_at AT TIME ZONE 'UTC')::date)
        END AS label
    FROM kept
    LEFT JOIN task_executions AS task ON task.execution_id = kept.task_key
    LEFT JOIN workflows AS run ON run.workflow_id = task.workflow_id
    WHERE ($2::text IS NULL OR (kept.task_key >= $2 || '/' AND kept.task_key < $2 || '0'))
        AND ($3::text IS NULL OR run.metadata ->> 'tenant' = $3)
        AND ($4::timestamptz IS NULL OR kept.started_at >= $4)
)
SELECT
    CASE WHEN grouping(label) = 0 THEN label END AS label,
    coalesce(sum(calls), 0) AS calls,
    count(*) FILTER (WHERE status = 'done') AS turns,
    coalesce(sum(tokens_in), 0) AS tokens_in,
    coalesce(sum(tokens_out), 0) AS tokens_out,
    coalesce(sum(tokens_cached), 0) AS tokens_cached,
    CASE WHEN count(*) FILTER (WHERE status IN ('done', 'unmetered') AND cost_usd IS NULL) = 0
        THEN coalesce(sum(cost_usd), 0) END AS cost_usd,
    coalesce(sum(cost_usd), 0) AS priced_usd,
    count(*) FILTER (WHERE status = 'done' AND cost_usd IS NULL) AS unpriced,
    count(*) FILTER (WHERE status = 'unmetered') AS unmetered,
    coalesce(array_agg(DISTINCT model ORDER BY model) FILTER (WHERE status IN ('done', 'unmetered', 'tool')), '{}') AS models,
    min(started_at) AS first_at,
    max(coalesce(completed_at, started_at)) AS last_at
FROM turn
GROUP BY GROUPING SETS ((label), ())
ORDER BY grouping(label), min(started_at), label
