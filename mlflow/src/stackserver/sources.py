"""Where the run of a model version keeps its artifacts, without all that the run has logged.

To see that a version's source is among its run's artifacts MLflow 3.17.2 reads the whole run
(server/handlers.py, _get_source_run): seven statements, and every param and metric, of which it
looks at one column. That was a third of the time of model-versions/create.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mlflow.exceptions import MlflowException


def read_less_of_source_runs() -> None:
    """Make this process read the run's own row alone. Raise AttributeError if MLflow has it elsewhere."""
    from mlflow.server import handlers

    whole_run = handlers._get_source_run

    def source_run(run_id: str, source: str) -> Any:
        store = handlers._get_tracking_store()
        try:
            with store.ManagedSessionMaker() as session:
                artifact_uri = store._get_run(session, run_id).artifact_uri
        except MlflowException:
            return whole_run(run_id, source)  # which says what is wrong
        return SimpleNamespace(info=SimpleNamespace(artifact_uri=artifact_uri))

    handlers._get_source_run = source_run
