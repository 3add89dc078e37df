-- The operational tables as the requirements (storage architecture, 004) declare them, word for word but for the
-- schema's name and TIMESTAMPTZ in place of TIMESTAMP.
CREATE SCHEMA seed;

CREATE TABLE seed.workflows (
    workflow_id VARCHAR(255) PRIMARY KEY,
    name VARCHAR(255),
    description TEXT,
    workflow_type VARCHAR(100),
    status VARCHAR(50) DEFAULT 'pending',  -- pending, running, completed, failed
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
    deadline TIMESTAMPTZ
);

CREATE TABLE seed.task_executions (
    execution_id VARCHAR(255) PRIMARY KEY,
    workflow_id VARCHAR(255) REFERENCES seed.workflows(workflow_id),
    agent_id VARCHAR(255),
    task_name VARCHAR(255) NOT NULL,
    task_type VARCHAR(100),
    priority VARCHAR(20) DEFAULT 'normal',
    status VARCHAR(50) DEFAULT 'pending',  -- pending, running, completed, failed
    input_data JSONB DEFAULT '{}'::jsonb,
    output_data JSONB,
    error TEXT,
    retry_count INTEGER DEFAULT 0,
    max_retries INTEGER DEFAULT 3,
    timeout_seconds INTEGER DEFAULT 300,
    execution_time_ms FLOAT,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    started_at TIMESTAMPTZ,
    completed_at TIMESTAMPTZ
);

CREATE TABLE seed.events (
    event_id VARCHAR(255) PRIMARY KEY,
    event_type VARCHAR(100) NOT NULL,
    entity_type VARCHAR(100),  -- workflow, task, agent
    entity_id VARCHAR(255),
    workflow_id VARCHAR(255),
    agent_id VARCHAR(255),
    session_id VARCHAR(255),
    source VARCHAR(100) DEFAULT 'cyrex',
    payload JSONB DEFAULT '{}'::jsonb,
    severity VARCHAR(20) DEFAULT 'info',
    created_at TIMESTAMPTZ DEFAULT NOW()
);

CREATE TABLE seed.agent_playground_messages (
    message_id VARCHAR(255) PRIMARY KEY,
    instance_id VARCHAR(255) NOT NULL,
    agent_id VARCHAR(255),
    role VARCHAR(20) NOT NULL,
    content TEXT NOT NULL,
    tool_calls JSONB,
    is_error BOOLEAN DEFAULT FALSE,
    metadata JSONB DEFAULT '{}'::jsonb,
    created_at TIMESTAMPTZ DEFAULT NOW()
);
