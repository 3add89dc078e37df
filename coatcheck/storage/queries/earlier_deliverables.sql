-- The last round of every stage of every run of another feature than $3, of the task type $4 when it is not null, that was
-- completed before the deliverable $1 (stream), $2 (sequence); before now when nothing of that is recorded.
WITH given AS (
    SELECT min(completed_at) AS completed_at
    FROM task_executions
    WHERE status = 'completed'
        AND output_data -> 'metadata' ->> 'stream' = $1
        AND (output_data -> 'metadata' ->> 'sequence')::bigint = $2
)
SELECT DISTINCT ON (task.workflow_id, task.task_name)
    task.workflow_id AS run_key,
    execution_id AS task_key,
    agent_id AS agent,
    task_name AS stage,
    task_type,
    (input_data ->> 'round')::int AS round,
    output_data ->> 'nats_channel' AS subject,
    output_data ->> 'summary' AS summary,
    output_data -> 'metadata' ->> 'verdict' AS verdict,
    output_data -> 'metadata' AS ref,
    coalesce((output_data ->> 'files_modified')::int, 0) AS files,
    task.completed_at
FROM task_executions AS task
JOIN workflows AS run USING (workflow_id)
CROSS JOIN given
WHERE run.name <> $3
    AND ($4::text IS NULL OR task_type = $4)
    AND task.status = 'completed'
    AND output_data -> 'metadata' ? 'stream'
    AND task.completed_at < coalesce(given.completed_at, now())
ORDER BY task.workflow_id, task.task_name, (input_data ->> 'round')::int DESC
