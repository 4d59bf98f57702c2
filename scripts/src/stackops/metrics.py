"""Prometheus metrics of jobs and of the continuous backup, read from /backups/state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stackops import state
from stackops.settings import Settings


def next_run(schedule: str, now: datetime) -> datetime | None:
    """Return when a schedule fires next, in the time zone of `now`; None for one that is off."""
    return next(CronSim(schedule, now)) if schedule else None


def local_now() -> datetime:
    """Return the present moment in the zone TZ, which knows when summer time begins and ends."""
    try:
        return datetime.now(ZoneInfo(os.environ.get("TZ") or "UTC"))
    except (ZoneInfoNotFoundError, ValueError):
        return datetime.now().astimezone()


class StateCollector(Collector):
    """Gauges from the state files; the names are in docs/backup.md and docs/retention.md."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge as the files are now."""
        yield from self._jobs()
        yield from self._cleanup()
        yield from self._loops()
        yield from self._certificate()

    def _jobs(self) -> Iterator[Metric]:
        ok = GaugeMetricFamily("stack_job_ok", "1 if the last run ended well", labels=["job"])
        success = GaugeMetricFamily(
            "stack_job_last_success_timestamp_seconds", "End of the last good run", labels=["job"]
        )
        seconds = GaugeMetricFamily("stack_job_duration_seconds", "Length of the last run", labels=["job"])
        following = GaugeMetricFamily(
            "stack_job_next_run_timestamp_seconds", "When the schedule fires next", labels=["job"]
        )
        storage = GaugeMetricFamily("stack_storage_bytes", "Artifacts in the bucket at the last inventory")
        objects = GaugeMetricFamily("stack_storage_objects", "Objects in the bucket at the last inventory")
        experiments = GaugeMetricFamily(
            "stack_experiment_storage_bytes", "Artifacts of the largest experiments", labels=["experiment"]
        )
        damaged = GaugeMetricFamily(
            "stack_records_without_objects",
            "Models and versions whose objects the last inventory did not find",
        )
        missing = GaugeMetricFamily("stack_drill_missing_objects", "Objects that the last drill did not find")
        for job, result in state.results(self._settings.backups).items():
            ok.add_metric([job], float(result.ok))
            seconds.add_metric([job], result.seconds)
            if result.last_success:
                success.add_metric([job], result.last_success)
            if "missing_objects" in result.facts:
                missing.add_metric([], result.facts["missing_objects"])
            if job == "usage" and result.facts:
                storage.add_metric([], result.facts["bytes"])
                objects.add_metric([], result.facts["objects"])
                damaged.add_metric([], result.facts["without_objects"])
                for name, size in result.facts["experiments"].items():
                    experiments.add_metric([name], size)
        for job, schedule in self._settings.schedules.items():
            if job == "offsite" and not self._settings.offsite_repository:
                continue
            moment = next_run(schedule, local_now())
            if moment:
                following.add_metric([job], moment.timestamp())
        yield from (ok, success, seconds, following, missing, storage, objects, experiments, damaged)

    def _cleanup(self) -> Iterator[Metric]:
        found = state.read_json(state.cleanup_path(self._settings.backups))
        if found is None:  # no batch and no inventory yet
            return
        yield GaugeMetricFamily(
            "stack_cleanup_waiting", "1 if a batch waits for approval", float(found["waiting"] is not None)
        )
        yield GaugeMetricFamily(
            "stack_cleanup_deleted_runs",
            "Runs that batches deleted and that can be brought back",
            found["deleted_runs"],
        )
        yield GaugeMetricFamily(
            "stack_cleanup_purged_runs", "Runs of batches that are gone for good", found["purged_runs"]
        )
        yield GaugeMetricFamily(
            "stack_cleanup_doomed_prefixes",
            "Runs, models and traces without a record whose objects are still to be deleted",
            found["doomed_prefixes"],
        )

    def _loops(self) -> Iterator[Metric]:
        ok = GaugeMetricFamily(
            "stack_backup_ok", "1 if this part of the continuous backup works", labels=["part"]
        )
        success = GaugeMetricFamily(
            "stack_backup_last_success_timestamp_seconds", "When it last worked", labels=["part"]
        )
        lag = GaugeMetricFamily("stack_backup_lag_bytes", "Log written and not yet in the backup volume")
        kept = GaugeMetricFamily("stack_backup_kept_log_bytes", "Log that PostgreSQL keeps for the backup")
        for part, value in state.continuous(self._settings.backups).items():
            if "at" not in value:  # not begun
                continue
            ok.add_metric([part], float(value["ok"]))
            if value.get("last_success"):
                success.add_metric([part], value["last_success"])
            if "lag_bytes" in value:
                lag.add_metric([], value["lag_bytes"])
                kept.add_metric([], value["kept_bytes"])
        yield from (ok, success, lag, kept)

    def _certificate(self) -> Iterator[Metric]:
        found = state.read_json(self._settings.acme / "state" / "certificate.json")
        if found is None:  # another TLS_MODE, or not asked for yet
            return
        yield GaugeMetricFamily(
            "stack_certificate_ok",
            "1 if the last look at the ACME certificate ended well",
            float(found["ok"]),
        )
        if "ends" in found["facts"]:
            yield GaugeMetricFamily(
                "stack_certificate_end_timestamp_seconds",
                "When the ACME certificate at the door ends",
                found["facts"]["ends"],
            )


def registry(settings: Settings) -> CollectorRegistry:
    """Return a registry with the gauges of a stack."""
    made = CollectorRegistry(auto_describe=False)
    made.register(StateCollector(settings))
    return made
