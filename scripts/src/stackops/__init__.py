"""Operations of the stack: everything that touches secrets and data."""

__version__ = "0.1.0"
