"""RagTune: wires settings, stores and stages; one method per verb."""

from __future__ import annotations
