"""ragtune-mcp: retrieval that improves with every rating."""

__version__ = "0.1.0"
