-- One step of a run, in one statement. $1 is the step (RecordInput without its events) as JSON text, $2 and $3 are the
-- attempts after the first and the seconds that a stage's activity has. Returns the turns of the rounds that ended.
--
-- Every row carries the revision of the step that wrote it (state_data, input_data): a repeated step changes nothing
-- and a late one overwrites nothing newer. A step that is made anew under the same revision (the worker died before
-- Temporal knew of it, and more has happened since) does count.
WITH step AS MATERIALIZED (
    SELECT $1::text::jsonb AS document
),
run AS MATERIALIZED (
    SELECT given.*
    FROM step, jsonb_to_record(document -> 'run') AS given (
        run_key text, revision bigint, temporal_workflow_id text, namespace text, feature text, tenant text, status text,
        current_step text, total_steps int, completed_steps int, step_results jsonb, assigned_agents jsonb,
        error text, started_at timestamptz, completed_at timestamptz, brief text, budget jsonb
    )
),
task AS MATERIALIZED (
    SELECT given.*
    FROM step, jsonb_to_recordset(document -> 'tasks') AS given (
        task_key text, agent text, stage text, task_type text, round int, status text, input_data jsonb,
        output_data jsonb, error text, retry_count int, started_at timestamptz, completed_at timestamptz
    )
),
written AS (
    INSERT INTO workflows AS kept (
        workflow_id, name, description, workflow_type, status, current_step, total_steps, completed_steps,
        state_data, step_results, assigned_agents, error, error_count, metadata, started_at, completed_at
    )
    SELECT
        run_key, feature, brief, 'FeaturePipeline', status, current_step, total_steps, completed_steps,
        jsonb_build_object('revision', revision), step_results, assigned_agents, error, (error IS NOT NULL)::int,
        jsonb_build_object(
            'temporal_workflow_id', temporal_workflow_id, 'namespace', namespace, 'feature', feature, 'tenant', tenant
        ),
        started_at, completed_at
    FROM run
    ON CONFLICT (workflow_id) DO UPDATE SET
        description = coalesce(excluded.description, kept.description),
        status = excluded.status,
        current_step = excluded.current_step,
        total_steps = excluded.total_steps,
        completed_steps = excluded.completed_steps,
        state_data = kept.state_data || excluded.state_data,
        step_results = excluded.step_results,
        assigned_agents = excluded.assigned_agents,
        error = excluded.error,
        error_count = kept.error_count + (excluded.error IS NOT NULL AND excluded.error IS DISTINCT FROM kept.error)::int,
        metadata = kept.metadata || excluded.metadata,
        updated_at = now(),
        started_at = excluded.started_at,
        completed_at = excluded.completed_at
    WHERE (kept.state_data ->> 'revision')::bigint < (excluded.state_data ->> 'revision')::bigint
        OR (
            kept.state_data ->> 'revision' = excluded.state_data ->> 'revision'
            AND (kept.status, kept.current_step, kept.step_results, kept.error, kept.completed_at)
                IS DISTINCT FROM
                (excluded.status, excluded.current_step, excluded.step_results, excluded.error, excluded.completed_at)
        )
    RETURNING workflow_id
),
funded AS ( -- the table's trigger moves the money; a step that comes late takes back no later change
    INSERT INTO run_budgets AS kept (run_key, tenant, credits, tokens, calls, agents, revision)
    SELECT
        run_key, tenant, (budget ->> 'usd')::numeric * 1000000, (budget ->> 'tokens')::bigint,
        (budget ->> 'calls')::bigint, coalesce((
            SELECT jsonb_object_agg(agent, jsonb_build_object(
                'credits', ((most ->> 'usd')::numeric * 1000000)::bigint, 'tokens', most -> 'tokens', 'calls', most -> 'calls'
            ))
            FROM jsonb_each(budget -> 'agents') AS given (agent, most)
        ), '{}'), revision
    FROM run
    WHERE jsonb_typeof(budget) = 'object' AND completed_at IS NULL
    ON CONFLICT (run_key) DO UPDATE SET
        credits = excluded.credits, tokens = excluded.tokens, calls = excluded.calls, agents = excluded.agents,
        revision = excluded.revision, closed_at = NULL
    WHERE kept.revision < excluded.revision
),
refunded AS (
    UPDATE run_budgets AS kept SET closed_at = run.completed_at
    FROM run
    WHERE kept.run_key = run.run_key AND run.completed_at IS NOT NULL AND kept.closed_at IS NULL
),
late_brief AS ( -- the first step alone has the brief, and may arrive after a later one
    UPDATE workflows AS kept SET description = run.brief
    FROM run
    WHERE kept.workflow_id = run.run_key AND kept.description IS NULL AND run.brief IS NOT NULL
        AND NOT EXISTS (SELECT FROM written)
),
written_tasks AS (
    INSERT INTO task_executions AS kept (
        execution_id, workflow_id, agent_id, task_name, task_type, status, input_data, output_data, error,
        retry_count, max_retries, timeout_seconds, execution_time_ms, started_at, completed_at
    )
    SELECT
        task.task_key, run.run_key, task.agent, task.stage, task.task_type, task.status,
        task.input_data || jsonb_build_object('round', task.round, 'revision', run.revision), task.output_data,
        task.error, task.retry_count, $2::int, $3::int,
        extract(EPOCH FROM task.completed_at - task.started_at) * 1000, task.started_at, task.completed_at
    FROM task, run
    ON CONFLICT (execution_id) DO UPDATE SET
        status = excluded.status,
        input_data = kept.input_data || excluded.input_data,
        output_data = coalesce(excluded.output_data, kept.output_data),
        error = coalesce(excluded.error, kept.error),
        retry_count = excluded.retry_count,
        execution_time_ms = coalesce(excluded.execution_time_ms, kept.execution_time_ms),
        started_at = excluded.started_at,
        completed_at = coalesce(excluded.completed_at, kept.completed_at)
    WHERE kept.status <> 'completed'
        AND (kept.input_data ->> 'revision')::bigint <= (excluded.input_data ->> 'revision')::bigint
),
compacted AS ( -- the last answer of a finished task holds the whole report, which is on its stream
    UPDATE agent_playground_messages AS message
    SET content = jsonb_build_object('deliverable', jsonb_build_object(
        'stream', meta -> 'stream', 'sequence', meta -> 'sequence', 'sha256', meta -> 'sha256', 'bytes', meta -> 'bytes'
    ))::text
    FROM task, LATERAL (SELECT task.output_data -> 'metadata' AS meta) AS notice
    WHERE task.status = 'completed'
        AND meta ? 'stream'
        AND message.message_id = (
            SELECT last.message_id
            FROM agent_playground_messages AS last
            WHERE last.instance_id = task.task_key AND last.role = 'assistant'
            ORDER BY last.message_id DESC
            LIMIT 1
        )
        AND left(message.content, 16) <> '{"deliverable": '
)
-- What the journal has of the rounds that ended; complete, since a turn is journalled before its agent hears of it.
SELECT
    task.task_key, task.stage, task.round, task.agent, turn.turn, turn.model, turn.calls, turn.tokens_in,
    turn.tokens_out, turn.tokens_cached, turn.cost_usd, turn.completed_at,
    extract(EPOCH FROM turn.completed_at - turn.started_at)::float8 AS seconds, said.messages, said.tool_calls
FROM task
JOIN llm_turns AS turn ON turn.task_key = task.task_key AND turn.status = 'done'
CROSS JOIN LATERAL (
    SELECT count(*) AS messages, max(message.tool_calls::text)::jsonb AS tool_calls -- only the answer has any
    FROM agent_playground_messages AS message
    WHERE message.instance_id = task.task_key AND message.metadata ->> 'turn' = turn.turn::text
) AS said
WHERE task.status <> 'running'
ORDER BY task.task_key, turn.turn
