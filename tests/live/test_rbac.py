"""AUTHORIZATION=rbac: MLflow's own permissions for each experiment and model, behind the door."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

from kit.people import add, bearer, token_of
from kit.rights import right
from kit.routes import PARAMETER
from kit.stack import Stack, poll
from stackops.users import ROLES
from stackserver.serve import auth_environment

DENIED = "has no permission for this. Whoever has MANAGE on the object, or an admin, can grant it"
REFUSAL = (MlflowException, requests.HTTPError)  # the second by artifacts
API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PEOPLE = {"alice": "writer", "bob": "writer", "rita": "reader", "carol": "approver"}

ASK_INSIDE = """
import json, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
def status(method, path, headers):
    request = urllib.request.Request("http://mlflow:5000" + path, method=method, headers=headers)
    if method != "GET":
        request.data = b"{}"
        request.add_header("Content-Type", "application/json")
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([status(*each) for each in asked]))
"""


# Inside the server's container: the routes of MLflow with its auth app.
LIST_ROUTES = """
import json
from stackserver import permissions
from stackserver.settings import read_settings
app, _ = permissions.create_app(read_settings())
import mlflow.server
routes = [[method, rule.rule] for rule in mlflow.server.app.url_map.iter_rules() for method in rule.methods]
routes += [[method.upper(), path] for path, methods in app.openapi()["paths"].items() for method in methods]
print(json.dumps(routes))
"""


@dataclass(frozen=True)
class Work:
    """What alice has made: an experiment, a run with an artifact, a model with a version."""

    experiment: str
    experiment_id: str
    run_id: str
    model: str


@pytest.fixture(scope="module")
def own(stack: Stack, make_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """A stack of the module's own, of the session's images, with this process's client logged in."""
    made = make_stack("rbac", AUTHORIZATION="rbac")
    made.verb("up", "--no-build")
    with made.logged_in():
        yield made
    made.compose("down", "--volumes")


@pytest.fixture(scope="module")
def tokens(own: Stack) -> dict[str, str]:
    return {name: add(own, name, role) for name, role in PEOPLE.items()}


@pytest.fixture
def as_user(
    own: Stack, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., MlflowClient]:
    """Return a function that makes MLflow's client of this process a user; nobody named is the admin."""

    def become(name: str = "admin") -> MlflowClient:
        password = own.password if name == "admin" else tokens[name]
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return MlflowClient(tracking_uri=own.url)

    return become


@pytest.fixture
def permissions(own: Stack, as_user: Callable[..., MlflowClient]) -> AuthServiceClient:
    """MLflow's own client of permissions; it asks as whoever the process is."""
    return AuthServiceClient(own.url)


def session(own: Stack, token: str) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.headers.update(bearer(token))
    return made


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def work(as_user: Callable[..., MlflowClient]) -> Work:
    alice = as_user("alice")
    experiment = unique("alice's")
    experiment_id = alice.create_experiment(experiment)
    run = alice.create_run(experiment_id).info
    alice.log_metric(run.run_id, "acc", 0.5)
    alice.log_text(run.run_id, "hers", "a.txt")
    model = unique("model")
    alice.create_registered_model(model)
    alice.create_model_version(model, f"{run.artifact_uri}/model", run.run_id)
    return Work(experiment, experiment_id, run.run_id, model)


def writes_of(client: MlflowClient, work: Work) -> dict[str, Callable[[], Any]]:
    """What needs EDIT on alice's work."""
    return {
        "create_run": lambda: client.create_run(work.experiment_id),
        "log_metric": lambda: client.log_metric(work.run_id, "acc", 0.9),
        "log_param": lambda: client.log_param(work.run_id, uuid.uuid4().hex, 1),
        "log_batch": lambda: client.log_batch(work.run_id, tags=[mlflow.entities.RunTag("t", "v")]),
        "log_text": lambda: client.log_text(work.run_id, "another's", f"{uuid.uuid4().hex}.txt"),
        "experiment_tag": lambda: client.set_experiment_tag(work.experiment_id, "t", "v"),
        "model": lambda: client.update_registered_model(work.model, "described"),
        "version": lambda: client.create_model_version(
            work.model, f"mlflow-artifacts:/{work.experiment_id}/{work.run_id}/artifacts/model", work.run_id
        ),
        "alias": lambda: client.set_registered_model_alias(work.model, "champion", "1"),
    }


def removals_of(client: MlflowClient, work: Work) -> dict[str, Callable[[], Any]]:
    """What needs MANAGE on alice's work."""
    return {
        "run": lambda: client.delete_run(work.run_id),
        "model": lambda: client.delete_registered_model(work.model),
        "experiment": lambda: client.delete_experiment(work.experiment_id),
    }


def reads_of(client: MlflowClient, work: Work) -> None:
    assert client.get_run(work.run_id).data.metrics["acc"] == 0.5
    assert client.get_registered_model(work.model).name == work.model
    assert work.run_id in {run.info.run_id for run in client.search_runs([work.experiment_id])}
    assert mlflow.artifacts.load_text(f"runs:/{work.run_id}/a.txt") == "hers"


def test_who_makes_an_experiment_or_model_manages_it_and_others_read(
    as_user: Callable[..., MlflowClient], work: Work
) -> None:
    bob = as_user("bob")
    reads_of(bob, work)
    for what, write in {**writes_of(bob, work), **removals_of(bob, work)}.items():
        with pytest.raises(REFUSAL, match=f"bob {DENIED}"):
            pytest.fail(f"{what}: {write()}")
    alice = as_user("alice")
    reads_of(alice, work)
    for action in [*writes_of(alice, work).values(), *removals_of(alice, work).values()]:
        action()


def test_an_admin_grants_for_an_experiment_or_a_model_and_takes_back(
    as_user: Callable[..., MlflowClient], permissions: AuthServiceClient, work: Work
) -> None:
    as_user()
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "EDIT")
    bob = as_user("bob")
    of_models = {"model", "version", "alias"}
    for what, write in writes_of(bob, work).items():
        if what not in of_models:
            write()
            continue
        with pytest.raises(MlflowException, match=DENIED):
            write()
    as_user()
    permissions.grant_user_permission("bob", "registered_model", work.model, "EDIT")
    bob = as_user("bob")
    for write in writes_of(bob, work).values():
        write()
    for removal in removals_of(bob, work).values():
        with pytest.raises(MlflowException, match=DENIED):
            removal()
    with pytest.raises(MlflowException, match=DENIED):  # EDIT is not MANAGE
        permissions.grant_user_permission("carol", "experiment", work.experiment_id, "EDIT")
    as_user()
    permissions.revoke_user_permission("bob", "experiment", work.experiment_id)
    bob = as_user("bob")
    with pytest.raises(MlflowException, match=DENIED):
        bob.log_metric(work.run_id, "acc", 0.9)
    as_user("alice")
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "MANAGE")
    as_user("bob").delete_experiment(work.experiment_id)


def test_a_role_of_mlflow_gives_many_people_many_objects(
    own: Stack, as_user: Callable[..., MlflowClient], permissions: AuthServiceClient, work: Work
) -> None:
    as_user()
    role = permissions.create_role("default", unique("team"))
    permissions.add_role_permission(role.id, "experiment", "*", "EDIT")
    as_user("carol").search_experiments()  # seen once, so that MLflow has the user
    as_user()
    permissions.assign_role("carol", role.id)
    carol = as_user("carol")
    carol.log_metric(work.run_id, "by-carol", 1.0)
    carol.create_run("0")
    as_user()
    permissions.delete_role(role.id)
    carol = as_user("carol")
    with pytest.raises(MlflowException, match=DENIED):
        carol.log_metric(work.run_id, "by-carol", 2.0)


def shown_to(person: requests.Session, own: Stack, work: Work) -> dict[str, Any]:
    """Return what a person is shown of alice's work: by each way a 403, or whether it is there."""
    query = "query ($id: String) {mlflowGetExperiment(input: {experimentId: $id}) {experiment {name}}}"
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": work.experiment_id}}
    ways = [
        ("POST", f"{API}/experiments/search", {"max_results": 1000}, work.experiment),
        ("POST", f"{API}/runs/search", {"experiment_ids": [work.experiment_id]}, work.run_id),
        ("POST", "/api/3.0/mlflow/traces/search", {"locations": [location]}, "trace_id"),
        ("GET", f"{API}/registered-models/search?max_results=1000", None, work.model),
        ("GET", f"{API}/model-versions/search?filter=name='{work.model}'", None, work.model),
        ("POST", "/graphql", {"query": query, "variables": {"id": work.experiment_id}}, work.experiment),
        ("GET", f"{API}/experiments/get?experiment_id={work.experiment_id}", None, work.experiment),
        ("GET", f"{API}/runs/get?run_id={work.run_id}", None, work.run_id),
        ("GET", f"{API}/metrics/get-history?metric_key=acc&run_id={work.run_id}", None, "timestamp"),
        ("GET", f"{API}/registered-models/get?name={work.model}", None, work.model),
        ("GET", f"{API}/artifacts/list?run_id={work.run_id}", None, "a.txt"),
        ("GET", f"{ARTIFACTS}?path={work.experiment_id}/{work.run_id}/artifacts", None, "a.txt"),
        ("GET", f"{ARTIFACTS}/{work.experiment_id}/{work.run_id}/artifacts/a.txt", None, "hers"),
        ("GET", f"/get-artifact?run_uuid={work.run_id}&path=a.txt", None, "hers"),
        ("GET", f"/view/runs/{work.run_id}/a.txt", None, "hers"),
    ]
    found: dict[str, Any] = {}
    for method, path, body, word in ways:
        answer = person.request(method, own.url + path, json=body, timeout=30)
        assert answer.status_code in {200, 403}, (path, answer.status_code, answer.text[:300])
        found[f"{method} {path}"] = 403 if answer.status_code == 403 else word in answer.text
    return found


def test_what_is_denied_is_in_no_list_and_behind_no_address(
    own: Stack,
    tokens: dict[str, str],
    as_user: Callable[..., MlflowClient],
    permissions: AuthServiceClient,
    work: Work,
) -> None:
    alice = as_user("alice")
    mlflow.set_experiment(experiment_id=work.experiment_id)
    with mlflow.start_span("hers"):
        pass
    mlflow.flush_trace_async_logging()
    poll(lambda: alice.search_traces(locations=[work.experiment_id]), seconds=30, what="the trace is there")
    bob = session(own, tokens["bob"])
    assert set(shown_to(bob, own, work).values()) == {True}
    as_user()
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "DENY")
    permissions.grant_user_permission("bob", "registered_model", work.model, "DENY")
    found = shown_to(bob, own, work)
    # By each way a 403, or an answer without it; before this, and to others after it, each way shows it.
    assert set(found.values()) <= {403, False}, found
    artifact = f"{own.url}{ARTIFACTS}/{work.experiment_id}/{work.run_id}/artifacts/a.txt"
    for method in ("GET", "HEAD"):
        assert bob.request(method, artifact, timeout=30).status_code == 403, method
    assert set(shown_to(session(own, tokens["rita"]), own, work).values()) == {True}


def test_a_reader_reads_and_no_grant_makes_a_writer_of_one(
    own: Stack, as_user: Callable[..., MlflowClient], permissions: AuthServiceClient, work: Work
) -> None:
    rita = as_user("rita")
    reads_of(rita, work)
    as_user()
    permissions.grant_user_permission("rita", "experiment", work.experiment_id, "MANAGE")
    rita = as_user("rita")
    for write in (*writes_of(rita, work).values(), *removals_of(rita, work).values()):
        with pytest.raises(REFUSAL, match="rita has the role reader; this needs the role writer"):
            write()


def test_no_route_changes_anything_for_a_reader(own: Stack, tokens: dict[str, str]) -> None:
    settings = {**auth_environment(), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test"}
    given = [word for name, value in settings.items() for word in ("-e", f"{name}={value}")]
    done = own.compose("exec", "-T", *given, "mlflow", "python", "-W", "ignore", "-c", LIST_ROUTES)
    routes = {
        (method, PARAMETER.sub("dummy", path)) for method, path in json.loads(done.stdout.splitlines()[-1])
    }
    assert len(routes) > 450
    rita = session(own, tokens["rita"])
    wrong = {}
    for method, path in sorted(routes):
        needed = right(method, path, rbac=True) or ROLES[-1]
        if needed == ROLES[0] or path == "/health":  # the latter is open to strangers
            continue
        answer = rita.request(method, own.url + path, timeout=30, allow_redirects=False)
        refused = method == "HEAD" or f"this needs the role {needed}" in answer.text
        if answer.status_code != 403 or not refused:
            wrong[method, path] = (answer.status_code, answer.text[:200])
    assert wrong == {}


def test_another_ones_artifacts_are_neither_replaced_nor_deleted(
    own: Stack, tokens: dict[str, str], work: Work
) -> None:
    bob = session(own, tokens["bob"])
    run = f"{own.url}{ARTIFACTS}/{work.experiment_id}/{work.run_id}"
    for size in (0, 10, 50 << 20):  # a refusal in the middle of an upload arrives, too
        answer = bob.put(f"{run}/artifacts/a.txt", data=b"x" * size, timeout=120)
        assert (answer.status_code, DENIED in answer.text) == (403, True), size
    for path in (f"{run}/artifacts/a.txt", run, f"{own.url}{ARTIFACTS}/{work.experiment_id}"):
        assert bob.delete(path, timeout=30).status_code == 403
    alice = session(own, tokens["alice"])
    assert alice.get(f"{run}/artifacts/a.txt", timeout=30).text == "hers"
    assert alice.delete(run, timeout=30).status_code == 200


def assert_asked(own: Stack, user: str, request_line: str, ports: list[str]) -> None:
    """Wait until nginx has asked these ports for a user's last request that begins so, by its log.

    A refused upload has its line only when nginx no longer waits for the rest of it, maybe after others.
    """

    def last() -> bool:
        said = own.compose("logs", "--no-log-prefix", "--tail", "200", "nginx").stdout
        asked = re.compile(rf' {user} \[[^]]*\] "{re.escape(request_line)}')
        line = next((line for line in reversed(said.splitlines()) if asked.search(line)), "")
        found = re.findall(r":(\d+)", line.partition("mlflow=")[2])
        assert found == ports
        return True

    poll(last, seconds=20, what=f"{request_line} was asked of {ports}")


def test_mlflow_decides_about_each_artifact_and_nginx_moves_it(
    own: Stack,
    tokens: dict[str, str],
    as_user: Callable[..., MlflowClient],
    permissions: AuthServiceClient,
    work: Work,
) -> None:
    alice, bob = session(own, tokens["alice"]), session(own, tokens["bob"])
    run = f"{own.url}{ARTIFACTS}/{work.experiment_id}/{work.run_id}/artifacts"
    name, body = unique("new") + ".bin", b"x" * (3 << 20)
    for size in (0, 10, 50 << 20):
        refused = bob.put(f"{run}/{name}", data=b"y" * size, timeout=120)
        assert (refused.status_code, DENIED in refused.text) == (403, True), size
    assert alice.get(f"{run}/{name}", timeout=30).status_code == 404
    assert alice.put(f"{run}/{name}", data=body, timeout=60).status_code == 200
    assert_asked(own, "alice", f"PUT {ARTIFACTS}/{work.experiment_id}/", ["9000"])
    ways = {f"{run}/{name}": ARTIFACTS, f"{own.url}/get-artifact?run_uuid={work.run_id}&path={name}": "/get-"}
    for way, path in ways.items():
        assert bob.get(way, timeout=30).content == body
        assert_asked(own, "bob", f"GET {path}", ["5000", "9000"])
        part = bob.get(way, headers={"Range": "bytes=0-2"}, timeout=30)
        assert (part.status_code, part.content) == (206, b"xxx")
        head = bob.head(way, timeout=30)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(len(body)))
    as_user()
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "DENY")
    ways |= {f"{run}/{name}?": ARTIFACTS, f"{run}/%C3%A9.bin": ARTIFACTS}  # not plain: MLflow's alone
    for way, path in ways.items():
        for method in ("GET", "HEAD"):
            refused = bob.request(method, way, timeout=30)
            assert refused.status_code == 403, (method, way)
            assert "X-Artifact-Path" not in refused.headers
            assert_asked(own, "bob", f"{method} {path}", ["5000"])
    assert alice.put(f"{run}/{name}", data=b"again", timeout=60).status_code == 200
    # What is written over is MLflow's to tell.
    assert_asked(own, "alice", f"PUT {ARTIFACTS}/{work.experiment_id}/", ["5000"])
    assert alice.get(f"{run}/{name}", timeout=30).text == "again"


def test_traces_go_into_experiments_that_one_may_edit(own: Stack, tokens: dict[str, str], work: Work) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add()
    span.trace_id, span.span_id, span.name = uuid.uuid4().bytes, uuid.uuid4().bytes[:8], "from outside"
    span.start_time_unix_nano = span.end_time_unix_nano = 1_760_000_000_000_000_000
    headers = {"x-mlflow-experiment-id": work.experiment_id, "Content-Type": "application/x-protobuf"}

    def send_as(name: str) -> int:
        answer = session(own, tokens[name]).post(
            f"{own.url}/v1/traces", headers=headers, data=request.SerializeToString(), timeout=30
        )
        return answer.status_code

    assert send_as("bob") == 403
    assert send_as("alice") == 200


# Who it is.


def ask_inside(own: Stack, *asked: tuple[str, str, dict[str, str]]) -> list[int]:
    """Ask MLflow's container from another one, past the door; return the status of each answer."""
    done = own.compose("exec", "-T", "cron", "python3", "-c", ASK_INSIDE, given=json.dumps(asked))
    return json.loads(done.stdout)


def test_past_the_door_nobody_is_anybody(own: Stack) -> None:
    admin = {"X-Forwarded-User": "admin", "X-Forwarded-Role": "admin", "X-Forwarded-Account": ""}
    pretended = [
        {},
        admin,
        {**admin, "X-Stack-Door": ""},
        {**admin, "X-Stack-Door": "0" * 64},
        {"Authorization": "Basic YWRtaW46cGFzc3dvcmQxMjM0"},
    ]
    routes = [
        *(
            ("GET", "/"),
            ("GET", "/version"),
            ("GET", "/health"),
            ("POST", "/graphql"),
            ("POST", "/v1/traces"),
        ),
        *(("GET", f"{API}/experiments/get?experiment_id=0"), ("POST", f"{API}/runs/search")),
        *(("GET", f"{ARTIFACTS}/0/x"), ("PUT", f"{ARTIFACTS}/0/x"), ("GET", f"{API}/users/current")),
        *(("POST", "/gateway/mlflow/v1/chat/completions"), ("POST", "/ajax-api/3.0/jobs/search")),
        *(("GET", "/api/3.0/mlflow/server-info"), ("GET", "/static-files/index.html"), ("GET", "/metrics")),
        *(("GET", "/api/3.0/mlflow/mcp-servers"), ("POST", f"{API}/users/create")),
    ]
    asked = [(*route, headers) for route in routes for headers in pretended]
    assert set(ask_inside(own, *asked)) == {401}
    assert ask_inside(own, ("GET", "/stack/ready", {})) == [200]


def test_headers_of_a_client_make_nobody_of_it(own: Stack, tokens: dict[str, str]) -> None:
    rita = session(own, tokens["rita"])
    rita.headers.update({"X-Forwarded-User": "admin", "X-Forwarded-Role": "admin", "X-Stack-Door": "0" * 64})
    found = rita.get(f"{own.url}/ajax-api/2.0/mlflow/users/current", timeout=30).json()
    assert (found["user"]["username"], found["user"]["is_admin"]) == ("rita", False)
    assert found["is_basic_auth"] is False


def test_a_role_at_the_door_counts_within_seconds(own: Stack, as_user: Callable[..., MlflowClient]) -> None:
    rose = session(own, add(own, "rose", "reader"))

    def current() -> dict[str, Any]:
        answer = rose.get(f"{own.url}/ajax-api/2.0/mlflow/users/current", timeout=30)
        return answer.json()["user"]

    assert current()["is_admin"] is False
    own.verb("user", "role", "rose", "admin")
    poll(lambda: current()["is_admin"], seconds=20, what="rose is an admin to MLflow")
    assert rose.get(f"{own.url}{API}/webhooks", timeout=30).status_code == 200
    own.verb("user", "role", "rose", "writer")
    poll(lambda: not current()["is_admin"], seconds=20, what="rose is none any more")
    assert rose.get(f"{own.url}{API}/webhooks", timeout=30).status_code == 403


def test_a_later_user_of_the_name_inherits_nothing(
    own: Stack,
    as_user: Callable[..., MlflowClient],
    permissions: AuthServiceClient,
    tokens: dict[str, str],
    work: Work,
) -> None:
    def log() -> int:
        body = {"run_id": work.run_id, "key": "m", "value": 1, "timestamp": 1}
        return dave.post(f"{own.url}{API}/runs/log-metric", json=body, timeout=30).status_code

    dave = session(own, add(own, "dave", "writer"))
    assert log() == 403
    as_user()
    permissions.grant_user_permission("dave", "experiment", work.experiment_id, "EDIT")
    assert log() == 200
    own.verb("user", "remove", "dave")
    poll(lambda: log() == 401, seconds=20, what="dave is out")
    dave = session(own, add(own, "dave", "writer"))
    poll(lambda: log() != 401, seconds=20, what="dave is in again")
    assert log() == 403


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (lambda asking: asking.create_user("eve", "a password that is long"), "./stack user add eve"),
        (
            lambda asking: asking.update_user_password("bob", "a password that is long"),
            "./stack user passwd bob",
        ),
        (lambda asking: asking.update_user_admin("bob", True), "./stack user role bob admin"),
        (lambda asking: asking.delete_user("bob"), "./stack user remove bob"),
    ],
)
def test_mlflow_makes_no_second_set_of_logins(
    as_user: Callable[..., MlflowClient],
    permissions: AuthServiceClient,
    call: Callable[[AuthServiceClient], None],
    way: str,
) -> None:
    as_user("bob").search_experiments()
    as_user()
    with pytest.raises(MlflowException, match=way):
        call(permissions)
    as_user("bob")
    with pytest.raises(MlflowException, match="this needs the role admin"):
        call(permissions)


# Keys, records, backups.


def test_the_key_of_the_door_is_in_no_log_and_for_nginx_alone(own: Stack) -> None:
    done = own.compose(
        *("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "secrets", "/secrets/nginx/door_key")
    )
    key = done.stdout.strip()
    assert len(key) == 64
    assert key not in own.compose("logs", "--no-color").stdout
    assert key not in own.verb("audit", "--json", "--since", "1d").stdout
    assert key not in own.verb("audit", "--requests", "--json", "--since", "1d").stdout
    exec_nginx = ("exec", "-T", "--user", "65534:65534", "nginx", "cat", "/tmp/nginx/door.conf")
    assert own.compose(*exec_nginx, check=False).returncode != 0
    assert key in own.compose("exec", "-T", "nginx", "cat", "/tmp/nginx/door.conf").stdout


def test_a_new_key_of_the_door_refuses_nobody(own: Stack, tokens: dict[str, str]) -> None:
    alice = session(own, tokens["alice"])

    def key_of_nginx() -> str:
        return own.compose("exec", "-T", "nginx", "cat", "/tmp/nginx/door.conf").stdout

    before = key_of_nginx()
    statuses = []

    def ask() -> None:
        path = f"{own.url}{API}/experiments/get?experiment_id=0"
        statuses.append(alice.get(path, timeout=30).status_code)

    ask()
    own.verb("rotate", "door")

    def changed() -> bool:
        ask()
        return key_of_nginx() != before

    poll(changed, seconds=60, what="nginx has the new key")
    for _ in range(10):
        ask()
    assert set(statuses) == {200}


def test_the_audit_log_says_who_granted_what(
    own: Stack, as_user: Callable[..., MlflowClient], permissions: AuthServiceClient, work: Work
) -> None:
    as_user("bob").search_experiments()
    as_user("alice")
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "EDIT")
    as_user()
    role = permissions.create_role("default", unique("audited"))
    permissions.assign_role("bob", role.id)
    as_user("bob")
    with pytest.raises(MlflowException, match=DENIED):
        permissions.grant_user_permission("bob", "experiment", work.experiment_id, "MANAGE")
    done = own.verb("audit", "--json", "--since", "1h", "--words", "bob")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    told = [
        (line["user"], line["event"], line["status"], line["objects"]) for line in lines if "status" in line
    ]
    objects = {"username": "bob", "resource_type": "experiment", "resource_id": work.experiment_id}
    granting = "POST /users/permissions/grant"
    assert ("alice", granting, 200, {**objects, "permission": "EDIT"}) in told
    assert ("bob", granting, 403, {**objects, "permission": "MANAGE"}) in told
    assert ("admin", "POST /roles/assign", 200, {"username": "bob", "role_id": role.id}) in told


def test_nobody_comes_in_by_an_outage_of_the_database(own: Stack, tokens: dict[str, str]) -> None:
    carol = session(own, token_of(own, "carol", "outage"))
    path = f"{own.url}{API}/experiments/get?experiment_id=0"
    assert carol.get(path, timeout=30).status_code == 200
    own.compose("stop", "postgres")
    try:
        fresh = session(own, add(own, "frank", "writer"))
        assert {person.get(path, timeout=60).status_code for person in (carol, fresh)} == {503}
    finally:
        own.compose("start", "postgres")
    own.wait_ready()
    poll(lambda: fresh.get(path, timeout=30).status_code == 200, seconds=60, what="frank comes in")


@pytest.mark.long
def test_a_backup_brings_permissions_back(
    own: Stack, as_user: Callable[..., MlflowClient], permissions: AuthServiceClient, work: Work
) -> None:
    as_user("bob").search_experiments()
    as_user()
    permissions.grant_user_permission("bob", "experiment", work.experiment_id, "EDIT")
    own.verb("backup", "run")
    taken = own.sets()[-1]["set"]
    permissions.revoke_user_permission("bob", "experiment", work.experiment_id)
    bob = as_user("bob")
    with pytest.raises(MlflowException, match=DENIED):
        bob.log_metric(work.run_id, "m", 1.0)
    own.verb("restore", "--replace", "--yes", "--set", taken)
    as_user("bob").log_metric(work.run_id, "m", 2.0)
