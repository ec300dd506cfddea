#!/usr/bin/env bash
# Back up databases and artifacts of the tracking server, or bring them back: deploy/backup.sh save|restore FOLDER
#
# In the environment of the server, as docs/operations.md says. Where PGHOST is not set the database is Compose's, and
# the artifacts are in its object store.
set -euo pipefail
deploy=$(dirname "$0")

if [ $# -ne 2 ] || [[ ! $1 =~ ^(save|restore)$ ]]; then
    echo "backup.sh: found ${*:-nothing}, expected save FOLDER or restore FOLDER; say which" >&2
    exit 2
fi
folder=$2

if [ -n "${PGHOST:-}" ]; then
    with_database() { "$@"; }
    artifacts=${MLFLOW_ARTIFACTS_DESTINATION:?found nothing, expected where the artifacts are; export it}
else
    with_database() { docker compose --file "$deploy/compose.yaml" exec -T database "$@"; }
    set -a && . "$deploy/.env" && set +a
    artifacts=s3://mitoflow/mlflow
fi
if [[ $artifacts == s3://* ]]; then
    endpoint=${MLFLOW_S3_ENDPOINT_URL:-http://127.0.0.1:8333}
    artifacts=":s3,provider=Other,env_auth,endpoint='$endpoint':${artifacts#s3://}"
fi

export RCLONE_CONFIG=/dev/null  # all that it needs is said here

# Saved are the databases first: artifacts are only ever added, so what a database names is then among the artifacts.
# An old dump stays until all new ones are whole, and nothing is deleted from the copy of the artifacts.
if [ "$1" = save ]; then
    umask 077
    mkdir -p "$folder"
    for name in mlflow accounts optuna; do
        with_database pg_dump --format=custom "$name" >"$folder/$name.dump.new"
    done
    for name in mlflow accounts optuna; do
        mv "$folder/$name.dump.new" "$folder/$name.dump"
    done
    rclone copy "$artifacts" "$folder/artifacts"
else
    for name in mlflow accounts optuna; do
        owner=$([ "$name" = optuna ] && echo studies || echo mitoflow)
        with_database pg_restore --exit-on-error --single-transaction --no-owner --role="$owner" --dbname="$name" \
            <"$folder/$name.dump"
    done
    rclone copy "$folder/artifacts" "$artifacts"
fi
