"""Retention: what may go, what must stay, and how it goes. See docs/retention.md."""
