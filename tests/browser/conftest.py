"""Fixtures of the browser tests."""

from __future__ import annotations

import uuid

import mlflow
import pytest

from kit.stack import Stack


@pytest.fixture
def experiment_id(stack: Stack, request: pytest.FixtureRequest) -> str:
    """A fresh experiment of the test's own, made the active one."""
    experiment_id = mlflow.create_experiment(f"{request.node.name[:60]}-{uuid.uuid4().hex[:8]}")
    mlflow.set_experiment(experiment_id=experiment_id)
    return experiment_id


@pytest.fixture
def client(stack: Stack) -> mlflow.MlflowClient:
    """A client of the session's stack."""
    return mlflow.MlflowClient(tracking_uri=stack.url)
