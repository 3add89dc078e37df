-- The record of tool calls: intent before, outcome after (coatcheck/storage/tool_calls.py).

-- migrate:up
CREATE TABLE tool_calls (
    task_key VARCHAR(255) COLLATE "C" NOT NULL, -- a run's calls are one range of the primary key
    tool_call_id VARCHAR(255) COLLATE "C" NOT NULL,
    agent_id VARCHAR(255) NOT NULL,
    server VARCHAR(64) NOT NULL,
    tool VARCHAR(255) NOT NULL,
    status VARCHAR(20) NOT NULL CHECK (status IN ('called', 'result', 'error', 'outcome_unknown')),
    gateway_id VARCHAR(255) NOT NULL, -- who makes, or made, the call
    calls INTEGER NOT NULL DEFAULT 1, -- begun; more than one only of a tool that may be called again
    repeatable BOOLEAN NOT NULL,
    request_sha256 CHAR(64) NOT NULL,
    outcome TEXT, -- a `schemas.mcp.ToolOutcome` as JSON; results over the size limit are elsewhere, it has a reference
    reference VARCHAR(255),
    error_code VARCHAR(100),
    result_bytes INTEGER NOT NULL DEFAULT 0,
    cost_usd NUMERIC NOT NULL DEFAULT 0,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), -- of the latest call
    completed_at TIMESTAMPTZ,
    PRIMARY KEY (task_key, tool_call_id),
    CHECK ((status = 'called') = (outcome IS NULL))
);
CREATE INDEX tool_calls_by_time ON tool_calls (created_at);

GRANT SELECT, INSERT, UPDATE ON tool_calls TO coatcheck_gateway;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
