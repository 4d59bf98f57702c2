"""What the shipped Compose file makes of each container, seen by docker inspect."""

from __future__ import annotations

import json
import subprocess

import pytest
import requests

from kit.stack import ROOT, Stack
from stackserver import indexes

LONG_RUNNING = ("postgres", "minio", "mlflow", "fastpath", "auth", "nginx", "backup", "cron")
ONE_SHOTS = ("secrets", "prepare")


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_a_service_runs_without_any_privilege(stack: Stack, service: str) -> None:
    facts = stack.inspect(stack.container(service))
    host = facts["HostConfig"]
    assert facts["Config"]["User"] not in {"", "0", "root", "0:0"}
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Privileged"] is False
    assert host["Memory"] > 0
    assert 0 < host["PidsLimit"] <= 1100
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}
    assert facts["State"]["Health"]["Status"] == "healthy"
    status = stack.compose("exec", "-T", service, "cat", "/proc/self/status").stdout
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_the_one_shots_end_well_and_only_secrets_runs_as_root_without_network(stack: Stack) -> None:
    facts = {name: stack.inspect(stack.container(name)) for name in ONE_SHOTS}
    assert {name: fact["State"]["ExitCode"] for name, fact in facts.items()} == {"secrets": 0, "prepare": 0}
    assert facts["secrets"]["HostConfig"]["NetworkMode"] == "none"
    assert set(facts["secrets"]["HostConfig"]["CapAdd"]) == {"CHOWN", "FOWNER", "DAC_OVERRIDE"}
    assert facts["prepare"]["Config"]["User"] == "10007:10007"


def test_only_nginx_publishes_a_port_and_only_on_the_loopback_address(stack: Stack) -> None:
    published = {}
    for service in LONG_RUNNING:
        ports = stack.inspect(stack.container(service))["NetworkSettings"]["Ports"]
        published[service] = [binding for bindings in ports.values() for binding in bindings or []]
    assert published.pop("nginx") == [{"HostIp": "127.0.0.1", "HostPort": str(stack.port)}]
    assert not any(published.values())


@pytest.mark.parametrize(
    ("service", "own"),
    [
        ("postgres", "postgres backup"),
        ("minio", "minio"),
        ("mlflow", "mlflow"),
        ("auth", "auth"),
        ("fastpath", "fastpath"),
        # The same user as PostgreSQL: restored files must belong to it.
        ("backup", "postgres backup"),
        ("cron", "postgres backup"),
    ],
)
def test_a_service_reads_its_own_secrets_and_nobody_elses(stack: Stack, service: str, own: str) -> None:
    script = (
        "for folder in source postgres backup minio mlflow auth prepare fastpath; do "
        "ls /secrets/$folder >/dev/null 2>&1 && echo $folder; done; true"
    )
    assert stack.compose("exec", "-T", service, "sh", "-c", script).stdout.split() == own.split()


def test_postgresql_has_checksums_and_sizes_that_follow_its_memory(stack: Stack) -> None:
    assert stack.psql("SHOW data_checksums") == "on"
    assert stack.psql("SHOW server_version_num").startswith("17")
    assert stack.psql("SHOW shared_buffers") == "256MB"  # a quarter of 1g
    assert stack.psql("SHOW max_connections") == "500"
    superusers = "SELECT rolname FROM pg_roles WHERE rolsuper"
    assert stack.psql(superusers) == "postgres"


def test_big_tables_are_vacuumed_early(stack: Stack) -> None:
    query = "SELECT array_to_string(reloptions, ',') FROM pg_class WHERE oid = 'public.{}'::regclass"
    for table in ("metrics", "params", "tags", "latest_metrics", "spans"):
        assert "autovacuum_vacuum_scale_factor=0.01" in stack.psql(query.format(table))


def test_pages_of_runs_have_their_indexes(stack: Stack) -> None:
    valid = stack.psql(
        "SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid WHERE indisvalid"
    )
    assert set(indexes.INDEXES) <= set(valid.split())


def test_the_schema_of_the_stack_belongs_to_its_own_role(stack: Stack) -> None:
    owner = "SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'stackops'"
    assert stack.psql(owner) == "stackops"
    assert stack.psql("SELECT count(*) FROM stackops.key_fingerprints") == "2"
    foreign_keys = (
        "SELECT count(*) FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace "
        "JOIN pg_class referred ON referred.oid = c.confrelid "
        "WHERE n.nspname = 'stackops' AND c.contype = 'f' AND referred.relnamespace <> n.oid"
    )
    assert stack.psql(foreign_keys) == "0"  # among its own tables it may have some: retention's journal


def test_the_servers_storage_key_can_use_its_bucket_and_nothing_else(stack: Stack) -> None:
    script = """
import boto3, botocore
s3 = boto3.client("s3", endpoint_url="http://minio:9000")
s3.put_object(Bucket="mlflow", Key=".stack/test", Body=b"x")
s3.delete_object(Bucket="mlflow", Key=".stack/test")
for call in (lambda: s3.create_bucket(Bucket="another"), lambda: s3.delete_bucket(Bucket="mlflow"),
             lambda: s3.put_bucket_policy(Bucket="mlflow", Policy="{}")):
    try:
        call()
        print("ALLOWED")
    except botocore.exceptions.ClientError as error:
        print(error.response["Error"]["Code"])
"""
    assert (
        stack.compose("exec", "-T", "mlflow", "python", "-c", script).stdout.split() == ["AccessDenied"] * 3
    )


def test_status_says_that_all_is_well_and_in_which_versions(stack: Stack) -> None:
    status = json.loads(stack.verb("status", "--json", "--versions").stdout)
    assert status["ok"] is True
    assert status["url"] == stack.url
    assert {entry["service"] for entry in status["services"]} == {*LONG_RUNNING, *ONE_SHOTS}
    assert status["backup"]["problems"] == []
    assert status["backup"]["jobs"]["backup"]["next"].endswith("01:00+00:00")
    assert status["versions"]["mlflow"] == "3.17.2"
    assert status["versions"]["postgresql"].startswith("17.")
    text = stack.verb("status").stdout
    assert all(name in text for name in LONG_RUNNING)


def test_metrics_count_requests_and_say_what_is_ready(stack: Stack) -> None:
    assert stack.get("/api/2.0/mlflow/experiments/search?max_results=1").status_code == 200
    lines = stack.verb("metrics").stdout.splitlines()
    assert 'stack_ready{dependency="database"} 1' in lines
    assert 'stack_ready{dependency="storage"} 1' in lines
    assert "mlflow_fastpath_on 1.0" in lines
    assert "mlflow_fastpath_unexpected_total 0.0" in lines
    assert 'stack_backup_ok{part="log"} 1.0' in lines
    assert 'stack_backup_ok{part="objects"} 1.0' in lines
    assert any(line.startswith('stack_job_next_run_timestamp_seconds{job="drill"}') for line in lines)
    counted = [line for line in lines if line.startswith('stack_http_requests_total{family="experiments"')]
    assert counted
    assert not [line for line in lines if "/api/" in line]


def test_env_makes_a_shell_ready(stack: Stack) -> None:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    script = 'eval "$(./stack env)"; printf "%s\\n" ' + " ".join(f'"${name}"' for name in names)
    shell = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env=stack.environment, capture_output=True, text=True, check=True
    )
    uri, name, token = shell.stdout.splitlines()
    assert uri == stack.verb("url").stdout.strip() == stack.url
    assert requests.get(f"{uri}/version", auth=(name, token), timeout=10).status_code == 200


def test_a_second_up_or_a_plain_compose_up_changes_nothing_that_runs(stack: Stack) -> None:
    before = {service: stack.container(service) for service in LONG_RUNNING}
    stack.verb("up")
    stack.compose("up", "--detach", "--wait")
    assert {service: stack.container(service) for service in LONG_RUNNING} == before
