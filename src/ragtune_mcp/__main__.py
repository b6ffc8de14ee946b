"""`python -m ragtune_mcp` is the same as the command `ragtune-mcp`."""

from __future__ import annotations

from ragtune_mcp.cli import main

if __name__ == "__main__":
    main()
