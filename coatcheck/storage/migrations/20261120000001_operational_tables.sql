-- The operational tables of the requirements (storage architecture): same tables, columns, types and defaults, with
-- TIMESTAMPTZ for TIMESTAMP. Ours are the CHECKs of the closed sets, the indexes and the append-only trigger.
--
-- Keys: workflows.workflow_id is a run key, task_executions.execution_id and agent_playground_messages.instance_id
-- are task keys (schemas/workflow_ids.py), events.event_id is deterministic: every write can be repeated.

-- migrate:up
CREATE TABLE workflows (
    workflow_id VARCHAR(255) PRIMARY KEY,
    name VARCHAR(255),
    description TEXT,
    workflow_type VARCHAR(100),
    status VARCHAR(50) DEFAULT 'pending',
    current_step VARCHAR(255),
    total_steps INTEGER DEFAULT 0,
    completed_steps INTEGER DEFAULT 0,
    state_data JSONB DEFAULT '{}'::jsonb,
    step_results JSONB DEFAULT '{}'::jsonb,
    assigned_agents JSONB DEFAULT '[]'::jsonb,
    checkpoints JSONB DEFAULT '[]'::jsonb,
    error TEXT,
    error_count INTEGER DEFAULT 0,
    metadata JSONB DEFAULT '{}'::jsonb,
    tags JSONB DEFAULT '[]'::jsonb,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    updated_at TIMESTAMPTZ DEFAULT NOW(),
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    deadline TIMESTAMPTZ,
    CONSTRAINT workflows_status_check CHECK (status IN (
        'pending', 'running', 'paused', 'waiting', 'completed', 'rejected', 'expired', 'cancelled', 'failed'
    ))
);

CREATE INDEX workflows_status_idx ON workflows (status, updated_at);
CREATE INDEX workflows_name_idx ON workflows (name, started_at);
CREATE INDEX workflows_temporal_id_idx ON workflows ((metadata ->> 'temporal_workflow_id'), started_at);
CREATE INDEX workflows_started_idx ON workflows (started_at);

CREATE TABLE task_executions (
    execution_id VARCHAR(255) PRIMARY KEY,
    workflow_id VARCHAR(255) REFERENCES workflows (workflow_id),
    agent_id VARCHAR(255),
    task_name VARCHAR(255) NOT NULL,
    task_type VARCHAR(100),
    priority VARCHAR(20) DEFAULT 'normal',
    status VARCHAR(50) DEFAULT 'pending',
    input_data JSONB DEFAULT '{}'::jsonb,
    output_data JSONB,
    error TEXT,
    retry_count INTEGER DEFAULT 0,
    max_retries INTEGER DEFAULT 3,
    timeout_seconds INTEGER DEFAULT 300,
    execution_time_ms FLOAT,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ,
    CONSTRAINT task_executions_status_check CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled'))
);

CREATE INDEX task_executions_workflow_idx ON task_executions (workflow_id, started_at);
CREATE INDEX task_executions_status_idx ON task_executions (status, agent_id);

CREATE TABLE events (
    event_id VARCHAR(255) PRIMARY KEY,
    event_type VARCHAR(100) NOT NULL,
    entity_type VARCHAR(100),
    entity_id VARCHAR(255),
    workflow_id VARCHAR(255),
    agent_id VARCHAR(255),
    session_id VARCHAR(255),
    source VARCHAR(100) DEFAULT 'cyrex',
    payload JSONB DEFAULT '{}'::jsonb,
    severity VARCHAR(20) DEFAULT 'info',
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT events_severity_check CHECK (severity IN ('debug', 'info', 'warning', 'error', 'critical'))
);

CREATE INDEX events_workflow_idx ON events (workflow_id, created_at);
-- Hash indexes where only equality is asked for: the keys have 70 characters, and a hash of them is all that is kept.
CREATE INDEX events_entity_idx ON events USING hash (entity_id);

CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events is append-only: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END
$$;

-- Per statement, so that even a change of no row is refused; ALWAYS, so that replication mode does not switch it off.
CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change();
ALTER TABLE events ENABLE ALWAYS TRIGGER events_append_only;

CREATE TABLE agent_playground_messages (
    message_id VARCHAR(255) PRIMARY KEY,
    instance_id VARCHAR(255) NOT NULL,
    agent_id VARCHAR(255),
    role VARCHAR(20) NOT NULL,
    content TEXT NOT NULL,
    tool_calls JSONB,
    is_error BOOLEAN DEFAULT FALSE,
    metadata JSONB DEFAULT '{}'::jsonb,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    CONSTRAINT agent_playground_messages_role_check CHECK (role IN ('user', 'assistant', 'tool', 'system'))
);

CREATE INDEX agent_playground_messages_instance_idx ON agent_playground_messages USING hash (instance_id);

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
