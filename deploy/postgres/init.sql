-- Run once by the image of PostgreSQL, on an empty data folder: what Coatcheck needs, and what Temporal needs.
-- The passwords come from files; $SECRETS_DIR names their folder.
\set coatcheck_password `cat "$SECRETS_DIR/postgres_coatcheck"`
\set gateway_password `cat "$SECRETS_DIR/postgres_gateway"`
\set temporal_password `cat "$SECRETS_DIR/postgres_temporal"`
\ir include/roles.sql
CREATE ROLE temporal LOGIN PASSWORD :'temporal_password';
CREATE DATABASE temporal OWNER temporal;
CREATE DATABASE temporal_visibility OWNER temporal;
REVOKE ALL ON DATABASE temporal, temporal_visibility FROM PUBLIC;
