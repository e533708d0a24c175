#!/bin/sh
# Writes new random passwords as files for the dev overlay and for Compose. Nothing is overwritten.
#
#   infra/k8s/make-secrets.sh infra/k8s/overlays/dev/secrets
#
# In production make the same Kubernetes secrets from your own vault; docs/operations.md lists their names and keys.
set -eu
folder=${1:?give the folder to write to}
mkdir -p "$folder"
chmod 700 "$folder"
umask 077
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -e "$folder/$1" ] || cat > "$folder/$1"; }

[ -e "$folder/postgres-password" ] || random > "$folder/postgres-password"
[ -e "$folder/mlflow-password" ] || random > "$folder/mlflow-password"
[ -e "$folder/prefect-password" ] || random > "$folder/prefect-password"
[ -e "$folder/s3-password" ] || random > "$folder/s3-password"
postgres=$(cat "$folder/postgres-password")
mlflow=$(cat "$folder/mlflow-password")
prefect=$(cat "$folder/prefect-password")
s3=$(cat "$folder/s3-password")

keep postgres.env <<EOF
password=$postgres
EOF
keep prefect-server.env <<EOF
connection-url=postgresql+asyncpg://ltsft:$postgres@postgres:5432/prefect
auth-string=ltsft:$prefect
EOF
keep prefect-client.env <<EOF
auth-string=ltsft:$prefect
EOF
keep mlflow-server.env <<EOF
backend-store-uri=postgresql+psycopg2://ltsft:$postgres@postgres:5432/mlflow
admin-password=$mlflow
session-key=$(random)
EOF
keep mlflow-client.env <<EOF
username=ltsft
password=$mlflow
EOF
keep s3.env <<EOF
access-key=ltsft
secret-key=$s3
EOF
keep basic_auth.ini <<EOF
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = postgresql+psycopg2://ltsft:$postgres@postgres:5432/mlflow_auth
admin_username = ltsft
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
keep compose.env <<EOF
POSTGRES_PASSWORD=$postgres
PREFECT_AUTH_STRING=ltsft:$prefect
MLFLOW_PASSWORD=$mlflow
MLFLOW_SESSION_KEY=$(random)
S3_PASSWORD=$s3
EOF
# Compose mounts this one as it is, and ignores the mode that it is told: the server's user in the container is nobody here.
# The folder lets nobody else on this machine come near it.
chmod 644 "$folder/basic_auth.ini"
