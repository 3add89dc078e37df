#!/bin/sh
# Makes what docker-compose.yml mounts and nobody may commit: `deploy/compose/prepare.sh SECRETS DATA`.
# Can be repeated: passwords and keys stay, certificates are renewed. The folders belong to whoever runs this, and
# COATCHECK_UID and COATCHECK_GID must say the same.
set -eu
umask 077
secrets=${1:?folder for secrets} data=${2:?folder for data}
coatcheck=${COATCHECK:-.venv/bin/coatcheck}

mkdir -p "$secrets" "$data/nats-1" "$data/nats-2" "$data/nats-3" "$data/postgres"
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
for provider in openai anthropic; do # empty: none
  test -e "$secrets/${provider}_api_key" || : > "$secrets/${provider}_api_key"
done
