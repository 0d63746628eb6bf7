"""``/metrics``, and what the kubelet asks: ``/healthz`` and ``/readyz``.

They are served by the loop that does everything else, so an answer says that it runs. No thread is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Leadership


class Pages:
    """Serves the pages on *port* of every address; *ready* says whether this replica can lead."""

    def __init__(self, port: int, figures: Figures, leadership: Leadership, ready: Callable[[], bool]) -> None:
        self._port = port
        self._figures = figures
        self._leadership = leadership
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        application = web.Application()
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/readyz", self._readiness)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, port=self._port).start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _request: web.Request) -> web.Response:
        ready = self._ready()
        return web.Response(text="ok\n" if ready else "the API server does not answer\n", status=200 if ready else 503)

    async def _metrics(self, _request: web.Request) -> web.Response:
        self._figures.set("leader", self._leadership.leads)
        self._figures.set("lease_epoch", max(0, self._leadership.epoch))
        return web.Response(text=self._figures.text(), content_type="text/plain", charset="utf-8")
