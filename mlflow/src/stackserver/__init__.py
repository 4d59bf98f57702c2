"""What stands around MLflow's server in the stack: start, readiness, storage, limits."""

__version__ = "0.1.0"
