#!/bin/sh
# Makes what docker-compose.yml mounts and nobody may commit: `deploy/compose/prepare.sh SECRETS DATA`.
# Can be repeated: passwords and keys stay, certificates are renewed. The folders belong to whoever runs this, and
# COATCHECK_UID and COATCHECK_GID must say the same.
set -eu
umask 077
secrets=${1:?folder for secrets} data=${2:?folder for data}
coatcheck=${COATCHECK:-.venv/bin/coatcheck}

mkdir -p "$secrets"
for folder in nats-1 nats-2 nats-3 postgres archive otelcol phoenix prometheus grafana; do
  mkdir -p "$data/$folder"
done
once() { # name text
  test -s "$secrets/$1" || printf %s "$2" > "$secrets/$1"
}
random() {
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}

"$coatcheck" certs --out "$secrets/certs"
COATCHECK_NATS_KEYS_DIR="$secrets/keys" "$coatcheck" nats-config --out "$secrets/nats"
for role in superuser coatcheck gateway temporal; do
  once "postgres_$role" "$(random)"
done
place='@postgres:5432/coatcheck?sslmode=verify-full&sslrootcert=/run/secrets/ca.pem'
once database_url "postgresql://coatcheck:$(cat "$secrets/postgres_coatcheck")$place"
once gateway_database_url "postgresql://coatcheck_gateway_login:$(cat "$secrets/postgres_gateway")$place"
once collector_token "$(random)"
once phoenix_admin "$(random)"
once grafana_admin "$(random)"
token=$(cat "$secrets/collector_token") admin=$(cat "$secrets/phoenix_admin")
once telemetry.env "OTEL_EXPORTER_OTLP_HEADERS=authorization=Bearer%20$token"
# Until there is a key of a system user of Phoenix, the collector shows the secret that may make one.
once collector.env "COLLECTOR_TOKEN=$token
PHOENIX_API_KEY=$admin"
once phoenix.env "PHOENIX_SECRET=$(random)
PHOENIX_ADMIN_SECRET=$admin
PHOENIX_DEFAULT_ADMIN_INITIAL_PASSWORD=$(random)"
test -e "$secrets/payload_keys" || : > "$secrets/payload_keys" # empty: Temporal stores payloads as they are
for provider in openai anthropic; do # empty: none
  test -e "$secrets/${provider}_api_key" || : > "$secrets/${provider}_api_key"
done
