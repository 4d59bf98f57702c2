#!/bin/sh
# The names that page.js and page.css rely on must stand in MLflow's bundle: a new
# version that renamed one fails the build instead of showing the panel again.
set -eu
bundle=$1
for name in mlflow.assistant.fab.autoOpenedOnFirstLoad mlflow.assistant.panelOpen \
    mlflow.telemetry.info.alert.dismissed mlflow.settings.telemetry.enabled data-assistant-ui \
    mlflow.experiment_side_nav.assistant_button mlflow.evaluations_review.modal.analyze-trace \
    mlflow.run-view-evaluations.analyze-button mlflow.home.telemetry-alert \
    mlflow.settings.telemetry.toggle-switch mlflow.traces-v4.actions.run-judges \
    mlflow.eval-runs.start-run-button mlflow-artifact-html-view \
    admin.users.create_button admin.users.bulk_delete_button admin.users.select_header \
    admin.users.select_row admin.edit_access_modal.is_admin; do
    grep --recursive --quiet --fixed-strings "$name" "$bundle" --include='*.js' ||
        { echo "MLflow's web interface has no '$name' any more: correct nginx/ui" >&2; exit 1; }
done
grep --quiet --fixed-strings '<script defer="defer"' "$bundle/index.html" ||
    { echo "MLflow's index.html has another form: correct server.d/70-ui.conf" >&2; exit 1; }
