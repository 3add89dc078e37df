-- Journal an answer: the turn's row and its messages, or nothing when the turn is done already (first commit wins).
-- $1 task key, $2 turn, $3 agent, $4 model, $5 $6 $7 tokens in, out, cached, $8 cost, then arrays, one element per
-- message: $9 message ids, $10 roles, $11 contents, $12 tool calls, $13 whether it reports an error; $14 whether the
-- turn was reserved, and is to be paid.
WITH done AS (
    UPDATE llm_turns SET
        status = 'done', model = $4, tokens_in = $5, tokens_out = $6, tokens_cached = $7, cost_usd = $8,
        error = NULL, error_code = NULL, completed_at = now()
    WHERE task_key = $1 AND turn = $2::int AND status <> 'done'
    RETURNING CASE WHEN $14::bool
        THEN settle_turn($1, $2::int, $4::text, $8::numeric, $5::bigint + $6::bigint) END AS settled
),
messages AS (
    INSERT INTO agent_playground_messages (
        message_id, instance_id, agent_id, role, content, tool_calls, is_error, metadata
    )
    SELECT
        message_id, $1, $3, role, content, tool_calls::jsonb, is_error,
        jsonb_build_object('turn', $2::int, 'model', $4::text)
    FROM done, unnest($9::text[], $10::text[], $11::text[], $12::text[], $13::bool[])
        AS given (message_id, role, content, tool_calls, is_error)
)
SELECT EXISTS (SELECT FROM done)
