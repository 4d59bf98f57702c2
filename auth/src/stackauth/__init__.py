"""The login service: says whether an Authorization header belongs to a user."""

__version__ = "0.1.0"
