"""MLflow's users are the door's: rows, accounts and tables, in a real PostgreSQL."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier
from types import SimpleNamespace

import pgserver
import psycopg2
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException

from stackserver import permissions_schema
from stackserver.errors import RefusedError
from stackserver.identity import Person
from stackserver.permissions import REMEMBERED_SECONDS, DoorStore, mark_of, remembering_runs
from stackserver.settings import Settings, read_settings

ADA = Person("ada", "writer", "1f")
BOB = Person("bob", "writer", "2e")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The folder of the socket of a PostgreSQL of the test's own."""
    made = pgserver.get_server(tempfile.mkdtemp(prefix="pg"))
    made.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")  # nothing here outlives the test
    yield made.get_uri().split("host=")[1]
    made.cleanup()


@pytest.fixture
def make_database(server: str) -> Callable[[str], None]:
    """Return a function that makes an empty database."""

    def make(name: str) -> None:
        with closing(psycopg2.connect(host=server, user="postgres", dbname="postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
                cursor.execute(f'CREATE DATABASE "{name}"')

    return make


@pytest.fixture
def settings(server: str) -> Settings:
    """Settings whose database of permissions is not there yet."""
    uri = f"postgresql://postgres@/records?host={server}"
    return read_settings({"DATABASE_URI": uri, "AUTHORIZATION": "rbac", "MLFLOW_THREADS": "8"})


@pytest.fixture
def store(settings: Settings, make_database: Callable[[str], None]) -> Iterator[DoorStore]:
    """A store with empty tables."""
    make_database("records_auth")
    permissions_schema.upgrade_permissions(settings)
    made = open_store(settings)
    yield made
    made.engine.dispose()


def open_store(settings: Settings, clock: Callable[[], float] = time.monotonic) -> DoorStore:
    made = DoorStore(settings.permission_connections, clock)
    made.init_db(settings.permissions_uri)
    return made


@pytest.fixture(autouse=True)
def no_password_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(*_: object) -> None:
        raise AssertionError("a password was hashed")

    for name in ("generate_password_hash", "check_password_hash"):
        monkeypatch.setattr(f"mlflow.server.auth.sqlalchemy_store.{name}", hashed)


def users_of(store: DoorStore) -> dict[str, tuple[int, bool]]:
    return {user.username: (user.id, user.is_admin) for user in store.list_users()}


def may_edit(store: DoorStore, name: str) -> bool:
    """Return whether a user was granted EDIT on experiment 7."""
    grants = store.list_grants(store.get_user(name).id, "default", {"experiment"})
    return ("experiment", "7", "EDIT") in [tuple(grant) for grant in grants]


def grant(store: DoorStore, name: str) -> None:
    store.grant_user_resource_permission(name, "experiment", "7", "EDIT")


class Queries:
    """Counts the statements of a store."""

    def __init__(self, store: DoorStore) -> None:
        self.count = 0
        sqlalchemy.event.listen(store.engine, "before_cursor_execute", self._note)

    def _note(self, *_: object) -> None:
        self.count += 1


def test_no_connection_is_opened_before_the_workers_fork(settings: Settings) -> None:
    store = open_store(settings)
    assert store.engine.pool.checkedin() + store.engine.pool.checkedout() == 0
    assert store.engine.pool.size() + store.engine.pool._max_overflow == settings.permission_connections == 8


def test_a_person_becomes_a_user_at_first_sight_and_costs_nothing_after_it(store: DoorStore) -> None:
    assert not store.knows(ADA)
    store.remember(ADA)
    assert store.knows(ADA)
    assert users_of(store) == {"ada": (1, False)}
    queries = Queries(store)
    assert store.get_user("ada").username == "ada"
    assert store.knows(ADA)
    assert queries.count == 0
    store.remember(ADA)
    assert queries.count == 1


def test_many_workers_at_once_make_one_row(settings: Settings, store: DoorStore) -> None:
    stores = [store, *(open_store(settings) for _ in range(7))]
    start = Barrier(len(stores))

    def first_sight(each: DoorStore) -> int:
        start.wait()
        each.remember(BOB)
        return each.get_user("bob").id

    with ThreadPoolExecutor(len(stores)) as pool:
        ids = set(pool.map(first_sight, stores))
    for each in stores[1:]:
        each.engine.dispose()
    assert len(ids) == 1
    assert list(users_of(store)) == ["bob"]


def test_the_role_at_the_door_decides_who_is_an_admin(store: DoorStore) -> None:
    store.remember(ADA)
    grant(store, "ada")
    for role, is_admin in (("admin", True), ("approver", False), ("admin", True), ("reader", False)):
        person = replace(ADA, role=role)
        assert not store.knows(person)
        store.remember(person)
        assert store.get_user("ada").is_admin == is_admin
        assert users_of(store) == {"ada": (1, is_admin)}
    assert may_edit(store, "ada")


def test_a_later_account_of_the_name_has_nothing_of_the_earlier_ones(store: DoorStore) -> None:
    store.remember(ADA)
    grant(store, "ada")
    later = replace(ADA, account="9c")
    assert not store.knows(later)
    store.remember(later)
    assert not may_edit(store, "ada")
    assert users_of(store) == {"ada~1": (1, False), "ada": (2, False)}
    # A restore of the secrets brings the earlier account back, with what it had.
    store.remember(ADA)
    assert may_edit(store, "ada")
    assert users_of(store) == {"ada": (1, False), "ada~2": (2, False)}


def test_an_account_without_an_id_is_no_account_with_one(store: DoorStore) -> None:
    store.remember(replace(ADA, account=""))
    grant(store, "ada")
    store.remember(replace(ADA, account=""))
    assert may_edit(store, "ada")
    store.remember(ADA)
    assert not may_edit(store, "ada")


def test_a_user_of_another_mlflow_server_is_taken_over_and_the_password_forgotten(store: DoorStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "INSERT INTO users (username, password_hash, is_admin) VALUES ('ada', 'scrypt:1$2$3', true)"
            )
        )
    grant(store, "ada")
    store.remember(ADA)
    assert may_edit(store, "ada")
    assert users_of(store) == {"ada": (1, False)}
    assert super(DoorStore, store).get_user("ada").password_hash == mark_of(ADA)


def test_a_row_is_looked_at_again_after_a_while(settings: Settings, store: DoorStore) -> None:
    now = [0.0]
    own = open_store(settings, lambda: now[0])
    own.remember(ADA)
    now[0] = REMEMBERED_SECONDS - 1
    assert own.knows(ADA)
    now[0] = REMEMBERED_SECONDS + 1
    assert not own.knows(ADA)
    queries = Queries(own)
    own.get_user("ada")
    assert queries.count == 1
    own.engine.dispose()


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (lambda store: store.create_user("eve", "a password that is long"), "./stack user add eve"),
        (
            lambda store: store.create_user("eve", password="long enough", is_admin=True),
            "./stack user add eve",
        ),
        (lambda store: store.update_user("ada", password="another long one"), "./stack user passwd ada"),
        (lambda store: store.update_user("ada", is_admin=True), "./stack user role ada admin"),
        (lambda store: store.update_user("ada", is_admin=False), "./stack user role ada writer"),
        (lambda store: store.delete_user("ada"), "./stack user remove ada"),
        (lambda store: store.authenticate_user("ada", "anything"), "./stack user passwd ada"),
    ],
)
def test_no_second_set_of_logins_can_be_made(
    store: DoorStore, call: Callable[[DoorStore], None], way: str
) -> None:
    store.remember(ADA)
    before = users_of(store)
    with pytest.raises(MlflowException) as refusal:
        call(store)
    assert way in refusal.value.message
    assert refusal.value.get_http_status_code() == 400
    assert users_of(store) == before


def test_a_mark_is_a_hash_of_no_password() -> None:
    from werkzeug.security import check_password_hash

    for person in (ADA, replace(ADA, account="")):
        assert not check_password_hash(mark_of(person), "")
        assert not check_password_hash(mark_of(person), mark_of(person))


def test_a_database_that_is_away_is_an_error_and_nobody_is_known(
    settings: Settings, store: DoorStore
) -> None:
    gone = DoorStore(1)
    gone.init_db(settings.permissions_uri.replace("records", "nowhere"))
    with pytest.raises(MlflowException):
        gone.remember(ADA)
    assert not gone.knows(ADA)


def test_no_connection_is_held_while_another_is_taken(settings: Settings, store: DoorStore) -> None:
    """With one connection in the pool, whoever wanted a second would wait for ever."""
    narrow = DoorStore(1)
    narrow.init_db(settings.permissions_uri)
    narrow.engine.pool._timeout = 2
    narrow.remember(ADA)
    narrow.remember(BOB)
    for name in ("ada", "bob"):
        grant(narrow, name)
        narrow.grant_user_permission(name, "registered_model", "model", "MANAGE")
    narrow.rename_grants_for_resource("registered_model", "model", "renamed", workspace_scoped=True)
    narrow.delete_grants_for_resource("registered_model", "renamed", workspace_scoped=True)
    narrow.revoke_user_resource_permission("bob", "experiment", "7")
    role = narrow.create_role("team", "default")
    narrow.update_role(role.id, description="of a test")
    permission = narrow.add_role_permission(role.id, "experiment", "*", "READ")
    narrow.update_role_permission(permission.id, "EDIT")
    user_id = narrow.get_user("bob").id
    narrow.assign_role_to_user(user_id, role.id)
    assert [each.name for each in narrow.list_user_roles(user_id)][-1] == "team"
    assert len(narrow.list_users_with_roles()) == 2
    assert len(narrow.list_role_users(role.id)) == 1
    assert not narrow.is_workspace_admin(user_id, "default")
    assert narrow.list_workspace_admin_workspaces(user_id) == set()
    assert narrow.user_has_any_role_in_workspace(user_id, "default")
    narrow.unassign_role_from_user(user_id, role.id)
    narrow.remove_role_permission(permission.id)
    narrow.delete_role(role.id)
    narrow.remember(replace(BOB, account="3d"))
    assert may_edit(narrow, "ada")
    narrow.engine.dispose()


# What is remembered of runs.


def test_the_experiment_of_a_run_is_asked_for_once_and_anything_else_always() -> None:
    asked = []

    def fetch_or_none(get: Callable[[str], object], resource_id: str) -> object:
        asked.append((get.__name__, resource_id))
        return get(resource_id)

    def get_run(run_id: str) -> object:
        return (
            None if run_id == "gone" else SimpleNamespace(info=SimpleNamespace(experiment_id=f"of {run_id}"))
        )

    def get_logged_model(model_id: str) -> object:
        return model_id

    fetch = remembering_runs(fetch_or_none)
    for _ in range(2):
        assert fetch(get_run, "one").info.experiment_id == "of one"
        assert fetch(get_run, "gone") is None
        assert fetch(get_logged_model, "m") == "m"
    assert asked == [
        *(("get_run", "one"), ("get_run", "gone"), ("get_logged_model", "m")),
        *(("get_run", "gone"), ("get_logged_model", "m")),
    ]


def test_mlflow_still_asks_a_run_for_nothing_but_its_experiment() -> None:
    import inspect

    import mlflow.server.auth as mlflow_auth

    source = inspect.getsource(mlflow_auth)
    assert source.count("_fetch_or_none(_get_tracking_store().get_run,") == 1
    requirement = inspect.getsource(mlflow_auth._run_requirement)
    assert set(re.findall(r"\brun\.[\w.]+", requirement)) == {"run.info.experiment_id"}


# The tables.


def revision(settings: Settings) -> str | None:
    with closing(permissions_schema.connect_to_permissions(settings)) as connection:
        return permissions_schema.revision_of(connection)


def test_tables_are_made_once_and_then_left_alone(
    settings: Settings, make_database: Callable[[str], None]
) -> None:
    make_database("records_auth")
    head = permissions_schema.revisions()[-1]
    permissions_schema.check_permissions(settings)
    assert revision(settings) is None
    with pytest.raises(RuntimeError, match="this MLflow needs"):
        permissions_schema.check_permissions_ready(settings)
    assert permissions_schema.upgrade_permissions(settings) == (None, head)
    assert permissions_schema.upgrade_permissions(settings) == (head, head)
    permissions_schema.check_permissions(settings)
    permissions_schema.check_permissions_ready(settings)


@pytest.mark.parametrize("number", range(len(permissions_schema.revisions()) - 1))
def test_every_older_schema_is_refused_at_a_start_and_brought_forward_by_an_upgrade(
    settings: Settings, make_database: Callable[[str], None], number: int
) -> None:
    from mlflow.server.auth.db.utils import migrate

    make_database("records_auth")
    older = permissions_schema.revisions()[number]
    engine = sqlalchemy.create_engine(settings.permissions_uri)
    migrate(engine, older)
    insert = "INSERT INTO users (username, password_hash, is_admin) VALUES ('ada', 'account ada 1f', false)"
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(insert))
        if number < 4:  # until e5f6a7b8c9d0 moved them to roles
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO experiment_permissions (experiment_id, user_id, permission)"
                    " VALUES ('7', 1, 'EDIT')"
                )
            )
    engine.dispose()
    with pytest.raises(RefusedError, match=f"the older schema {older}") as refusal:
        permissions_schema.check_permissions(settings)
    assert refusal.value.fix == "./stack upgrade"
    head = permissions_schema.revisions()[-1]
    assert permissions_schema.upgrade_permissions(settings) == (older, head)
    store = open_store(settings)
    assert list(users_of(store)) == ["ada"]
    assert may_edit(store, "ada") == (number < 4)
    store.engine.dispose()


def test_a_newer_schema_is_refused(settings: Settings, store: DoorStore) -> None:
    with store.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE alembic_version_auth SET version_num = 'later'"))
    for refused in (permissions_schema.check_permissions, permissions_schema.upgrade_permissions):
        with pytest.raises(RefusedError, match="a newer MLflow"):
            refused(settings)


def test_a_database_of_something_else_is_refused(
    settings: Settings, make_database: Callable[[str], None]
) -> None:
    make_database("records_auth")
    engine = sqlalchemy.create_engine(settings.permissions_uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE users (name text)"))
    engine.dispose()
    for refused in (permissions_schema.check_permissions, permissions_schema.upgrade_permissions):
        with pytest.raises(RefusedError, match="tables of something else") as refusal:
            refused(settings)
    assert "give the stack an empty database records_auth" in refusal.value.fix


def test_a_missing_database_is_refused_with_the_statement_that_makes_it(settings: Settings) -> None:
    lost = replace(settings, database_uri=settings.database_uri.replace("records", "lost"))
    with pytest.raises(RefusedError, match="keeps permissions in the database lost_auth") as refusal:
        permissions_schema.check_permissions(lost)
    assert refusal.value.fix.endswith('CREATE DATABASE "lost_auth" OWNER "postgres"')
