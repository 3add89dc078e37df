-- Puts rows right that say something else than Temporal. $1 is a list of repairs (storage/reconcile.py) as JSON text.
-- Returns the runs whose rows were changed, with how many of their tasks were.
--
-- A repair changes a run only at the revision at which it was found, so a step that was recorded meanwhile wins; and it
-- leaves a revision behind that no step of the ended execution reaches, so a step that comes late loses. A step of a
-- later execution (after a reset) is later in time, so its revision is higher.
WITH given AS MATERIALIZED (
    SELECT repair.*
    FROM jsonb_to_recordset($1::text::jsonb) AS repair (
        run_key text, found_revision bigint, revision bigint, status text, reason text, completed_at timestamptz,
        completed_steps int, tasks jsonb, task_status text
    )
),
repaired AS (
    UPDATE workflows AS kept
    SET
        status = given.status,
        current_step = NULL,
        completed_steps = given.completed_steps,
        state_data = kept.state_data
            || jsonb_build_object('revision', given.revision, 'repaired_from', kept.status, 'repaired_at', now()),
        error = CASE WHEN given.status IN ('running', 'completed') THEN NULL ELSE given.reason END,
        error_count = kept.error_count + (given.status NOT IN ('running', 'completed'))::int,
        completed_at = given.completed_at,
        updated_at = now()
    FROM given
    WHERE kept.workflow_id = given.run_key AND (kept.state_data ->> 'revision')::bigint = given.found_revision
    RETURNING kept.workflow_id
),
repaired_tasks AS (
    UPDATE task_executions AS kept
    SET
        status = given.task_status,
        error = coalesce(kept.error, given.reason),
        input_data = kept.input_data || jsonb_build_object('revision', given.revision),
        completed_at = given.completed_at,
        execution_time_ms = extract(EPOCH FROM given.completed_at - kept.started_at) * 1000
    FROM repaired JOIN given ON given.run_key = repaired.workflow_id
    WHERE kept.workflow_id = given.run_key
        AND kept.status IN ('pending', 'running')
        AND given.tasks ? kept.execution_id
    RETURNING kept.workflow_id
)
SELECT repaired.workflow_id AS run_key, count(repaired_tasks.workflow_id)::int AS tasks
FROM repaired LEFT JOIN repaired_tasks USING (workflow_id)
GROUP BY 1
