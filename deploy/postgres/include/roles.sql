-- Roles and the database of Coatcheck: the local stack, the tests and docker-compose.yml run this file with psql.
-- Can be repeated; sets the passwords anew. Wants the variables coatcheck_password and gateway_password.
SET client_min_messages = warning;
SELECT 'CREATE ROLE coatcheck LOGIN'
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'coatcheck') \gexec
SELECT 'CREATE ROLE coatcheck_gateway NOLOGIN'
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'coatcheck_gateway') \gexec
SELECT 'CREATE ROLE coatcheck_gateway_login LOGIN IN ROLE coatcheck_gateway'
  WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'coatcheck_gateway_login') \gexec
ALTER ROLE coatcheck PASSWORD :'coatcheck_password';
ALTER ROLE coatcheck_gateway_login PASSWORD :'gateway_password';
SELECT 'CREATE DATABASE coatcheck OWNER coatcheck'
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'coatcheck') \gexec
REVOKE ALL ON DATABASE coatcheck FROM PUBLIC;
GRANT CONNECT ON DATABASE coatcheck TO coatcheck_gateway;
