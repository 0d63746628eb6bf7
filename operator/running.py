"""One replica from its start to its end: it waits for the lease, then watches and works until it loses that."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from kubeadm_registry.errors import ConnectionFailed, Error
from kubeadm_registry.operator import way
from kubeadm_registry.operator.clients import KIND as CLIENT_NODES
from kubeadm_registry.operator.figures import Figures
from kubeadm_registry.operator.leadership import Leadership, Lost
from kubeadm_registry.operator.objects import Objects
from kubeadm_registry.operator.pages import Pages
from kubeadm_registry.operator.replacing import KIND
from kubeadm_registry.operator.rounds import CLUSTERS, PLANS, POLICIES, Rounds
from kubeadm_registry.operator.settings import Settings
from kubeadm_registry.operator.watching import watch
from kubeadm_registry.operator.work import Worker
from kubeadm_registry.upkeep.api import PATIENCE

#: The exit code of a replica that does not lead any more. The kubelet starts it again, and it waits.
EXIT_LOST = 6
log = logging.getLogger("kubeadm_registry.operator")


async def run(settings: Settings) -> None:
    """Be a replica until the process is asked to end. Raises Error. When the lease is lost, the process ends."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    figures = Figures()
    leadership = Leadership(settings.api(patience=0), settings.namespace, settings.name, settings.times)
    pages = Pages(settings.port, figures, leadership, lambda: leadership.in_touch)
    await pages.start()
    try:
        holding = asyncio.ensure_future(leadership.hold(lambda: _lead(settings, figures, leadership, ending)))
        asked = asyncio.ensure_future(ending.wait())
        await asyncio.wait({holding, asked}, return_when=asyncio.FIRST_COMPLETED)
        if holding.done() or leadership.epoch >= 0:
            await holding
    except Lost as error:
        log.error("%s: %s", error.what, error)
        sys.stderr.flush()
        os._exit(EXIT_LOST)  # at once: to end tasks and threads in order would take time in which another one leads
    finally:
        await pages.stop()


def _from_a_thread(loop: asyncio.AbstractEventLoop, *workers: Worker) -> None:
    for each in workers:
        loop.call_soon_threadsafe(each.wake)


async def _lead(settings: Settings, figures: Figures, leadership: Leadership, ending: asyncio.Event) -> None:
    """What the leader does until *ending*. Returns with no write under way."""
    objects = Objects(settings.api(patience=PATIENCE), leadership, settings.times)
    for plural in (CLUSTERS, POLICIES, PLANS):
        objects.list(plural)  # kopf would never watch a kind whose definition comes later
    rounds = Rounds(
        settings.name, objects, (settings.api(patience=PATIENCE), settings.api(patience=PATIENCE)),
        lambda: way.read(settings.files), figures, leadership.as_caller,
    )  # fmt: skip
    health = Worker("health", rounds.health, settings.health, figures)
    images = Worker("images", rounds.images, settings.images, figures, partial(rounds.failed, "ImagesMissing"))
    plans = Worker("plans", rounds.plans, settings.plans, figures, rounds.plans_failed)
    approvals = Worker("approvals", rounds.approvals, settings.plans, figures)
    space = Worker("space", rounds.space, settings.space, figures)
    replacement = Worker("replacement", rounds.replacement, settings.replacement, figures, partial(rounds.failed, KIND))
    certificates = Worker("certificates", rounds.certificates, settings.certificates, figures)
    clients = Worker("clients", rounds.clients, settings.clients, figures, partial(rounds.failed, CLIENT_NODES))
    loop = asyncio.get_running_loop()
    rounds.wake_space = partial(_from_a_thread, loop, space)
    rounds.wake_health = partial(_from_a_thread, loop, health)
    rounds.wake_plans = partial(_from_a_thread, loop, plans)

    wakes = {
        CLUSTERS: partial(_from_a_thread, loop, health, images, plans, replacement),
        POLICIES: partial(_from_a_thread, loop, plans),
        PLANS: partial(_from_a_thread, loop, approvals),
    }
    kinds = (health, images, plans, approvals, space, replacement, certificates, clients)
    workers = [asyncio.ensure_future(each.run()) for each in kinds]
    watching = loop.run_in_executor(ThreadPoolExecutor(1, "kopf"), watch, settings, wakes)
    asked = asyncio.ensure_future(ending.wait())
    tasks: set[asyncio.Future[Any]] = {asked, watching, *workers}
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for each in done - {asked}:
        await each  # raises what ended it
        raise Error("the watch of the API server ended", code="WatchEnded")
    log.info("%s ends", settings.name)
    for worker in workers:
        worker.cancel()  # what its thread is doing ends with the next write, and is of no interest
    await asyncio.to_thread(objects.stop)
    with suppress(ConnectionFailed):
        await asyncio.to_thread(leadership.release)
