-- The LLM proxy's journal of turns, and the role that may do nothing else (coatcheck/storage/journal.py).

-- migrate:up
CREATE TABLE llm_turns (
    task_key VARCHAR(255) COLLATE "C" NOT NULL, -- a run's turns are one range of the primary key
    turn INTEGER NOT NULL CHECK (turn BETWEEN 1 AND 999),
    agent_id VARCHAR(255) NOT NULL,
    status VARCHAR(20) NOT NULL CHECK (status IN ('in_flight', 'done', 'failed')),
    gateway_id VARCHAR(255) NOT NULL, -- who makes, or made, the call
    calls INTEGER NOT NULL DEFAULT 1, -- provider calls begun
    failures INTEGER NOT NULL DEFAULT 0, -- of those, the failed ones that count
    request_sha256 CHAR(64) NOT NULL,
    model VARCHAR(255) NOT NULL,
    tokens_in INTEGER NOT NULL DEFAULT 0,
    tokens_out INTEGER NOT NULL DEFAULT 0,
    tokens_cached INTEGER NOT NULL DEFAULT 0,
    cost_usd NUMERIC, -- NULL: no price is known
    error TEXT,
    error_code VARCHAR(100),
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    started_at TIMESTAMPTZ NOT NULL DEFAULT NOW(), -- of the latest call
    completed_at TIMESTAMPTZ,
    PRIMARY KEY (task_key, turn)
);

CREATE TABLE llm_gateways (
    gateway_id VARCHAR(255) PRIMARY KEY,
    seen_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

-- Not compressed: a report of 20 KB is here only until its task is recorded, and compressing it was half of
-- PostgreSQL's CPU for a turn (0.9 ms against 0.5 ms, and 1.9 ms against 1.3 ms of waiting).
ALTER TABLE agent_playground_messages ALTER COLUMN content SET STORAGE EXTERNAL;

-- Roles belong to the cluster: another database may have made it already, or be making it now.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'coatcheck_gateway') THEN
        CREATE ROLE coatcheck_gateway NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;

GRANT SELECT, INSERT, UPDATE ON llm_turns, llm_gateways TO coatcheck_gateway;
GRANT SELECT, INSERT ON agent_playground_messages TO coatcheck_gateway;
GRANT SELECT (workflow_id, description) ON workflows TO coatcheck_gateway;
GRANT SELECT (execution_id, agent_id, status, output_data) ON task_executions TO coatcheck_gateway;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'migrations only go forward: restore a backup to go back'; END $$;
