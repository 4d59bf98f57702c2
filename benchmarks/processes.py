"""Processor time and memory of groups of processes: the containers of a server, and Docker's proxies.

By processes and not by cgroups: these are the same on every engine and kernel that the stack runs
on. A process that has ended is in the time of its parent, once that has waited for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import psutil

Groups = Mapping[str, Iterable[int]]
"""The first process of each container, by the name of the group."""


def cpu_seconds(process_id: int) -> float:
    """Return the processor time of a process, of all below it, and of those of them that have ended."""
    return sum(sum(times[:4]) for times in _times(process_id))


def _times(process_id: int) -> Iterable[tuple[float, ...]]:
    try:
        first = psutil.Process(process_id)
        processes = [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            yield process.cpu_times()  # user, system, and those of children that have ended
        except psutil.NoSuchProcess:
            continue


def seconds_by_group(groups: Groups) -> dict[str, float]:
    """Return the processor time that each group has used so far, in seconds."""
    return {name: sum(cpu_seconds(one) for one in members) for name, members in groups.items()}


def per_request_ms(
    before: Mapping[str, float], after: Mapping[str, float], requests: int
) -> dict[str, float]:
    """Return each group's milliseconds a request between two readings; nothing without a request.

    A group that was started anew in between has less than before, which says nothing: it is left out.
    """
    if requests <= 0:
        return {}
    spent = {name: after[name] - before[name] for name in before if name in after}
    return {name: seconds * 1000 / requests for name, seconds in spent.items() if seconds >= 0}


def memory_mb(groups: Groups) -> dict[str, float]:
    """Return the memory of each group in MB, shared pages divided among those who share them (PSS)."""
    found = dict.fromkeys(groups, 0.0)
    for name, members in groups.items():
        for member in members:
            try:
                first = psutil.Process(member)
                for process in (first, *first.children(recursive=True)):
                    found[name] += process.memory_full_info().pss / 1e6
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return found


def proxies_of(port: int) -> list[int]:
    """Return Docker's processes that carry the connections to a published port of this machine.

    Those to 127.0.0.1 go through one (not so where the engine has its userland proxy switched off).
    """
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["name"] == "docker-proxy" and _follows(words, "-host-port", str(port)):
            found.append(process.pid)
    return found


def _follows(words: list[str], option: str, value: str) -> bool:
    return any(pair == (option, value) for pair in pairwise(words))
