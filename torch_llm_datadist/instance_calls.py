"""What every group of ``LLMDataDist``'s calls begins with: the instance is initialised."""

from __future__ import annotations

from .running import Running


class InstanceCalls:
    _cluster_id: int
    _running: Running | None

    def _initialised(self) -> Running:
        running = self._running
        if running is None:
            raise RuntimeError("llm datadist is not initialized")
        running.native.require_not_forked("LLMDataDist")
        return running
