"""MLflow's own permissions behind the stack's door (AUTHORIZATION=rbac).

MLflow's auth app decides what a user may do with each experiment and registered model. Its
users are the door's: a row of MLflow's table `users` is made when a person is first seen, and
follows the person's role and account. Where MLflow keeps the hash of a password stands whose
row it is, which no password fits.

Only server processes import this module: it makes MLflow's part of permissions, which reads
its settings from the file that serve.py writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import mlflow.server.auth as mlflow_auth
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.server.auth.db.models import SqlUser
from mlflow.server.auth.entities import User
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.db.utils import _get_managed_session_maker
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from stackserver.identity import Person
from stackserver.settings import Settings

REMEMBERED_SECONDS = 60.0
"""After this a row is looked at again: somebody may have put another database into its place."""
REMEMBERED_PERSONS = 10_000
REMEMBERED_RUNS = 100_000
POOL_RECYCLE_SECONDS = 3600
MARK = "account "
"""How the place of a password's hash begins in a row that belongs to an account of the stack.

werkzeug's check_password_hash wants three parts with a `$` between them; it says no to anything
else without hashing.
"""


def mark_of(person: Person) -> str:
    """Return what stands in the row of a person in the place of a password's hash."""
    return f"{MARK}{person.name} {person.account}"


class DoorStore(SqlAlchemyStore):
    """MLflow's store of users and permissions, for users who log in at the door.

    It neither makes nor migrates tables (prepare.py does), has a pool of connections of its own
    size, and answers for the persons it has just seen without a query: MLflow asks for the
    sender's row two to four times a request.
    """

    def __init__(self, connections: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._connections = connections
        self._clock = clock
        self._seen: dict[str, tuple[Person, User, float]] = {}

    def init_db(self, db_uri: str, read_db_uri: str | None = None) -> None:  # noqa: ARG002  MLflow's signature
        """Make the pool of connections; none is opened yet, so that worker processes share none."""
        self.db_uri = db_uri
        self.db_type = "postgresql"
        self.read_engine = None
        self.engine = sqlalchemy.create_engine(
            db_uri,
            pool_pre_ping=True,
            pool_size=self._connections,
            max_overflow=0,
            pool_recycle=POOL_RECYCLE_SECONDS,
        )
        self.ManagedSessionMaker = _get_managed_session_maker(sessionmaker(bind=self.engine), self.db_type)

    def knows(self, person: Person) -> bool:
        """Return whether the person's row was looked at a short while ago, and is right."""
        seen = self._seen.get(person.name)
        return seen is not None and seen[0] == person and self._clock() < seen[2]

    def remember(self, person: Person) -> None:
        """Make the person's row right. Raise MlflowException if the database does not answer."""
        with self.ManagedSessionMaker(read_only=False) as session:
            row = session.scalar(select(SqlUser).where(SqlUser.username == person.name))
            if row is None or (row.password_hash, row.is_admin) != (mark_of(person), person.is_admin):
                row = _write_row(session, person)
            user = row.to_mlflow_entity()
        if len(self._seen) >= REMEMBERED_PERSONS:
            self._seen.clear()
        self._seen[person.name] = (person, user, self._clock() + REMEMBERED_SECONDS)

    def get_user(self, username: str) -> User:
        """Return a user, without a query for one who was just seen."""
        seen = self._seen.get(username)
        return seen[1] if seen and self._clock() < seen[2] else super().get_user(username)

    def authenticate_user(self, username: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the door has done it. MLflow would check a password here, by a slow hash."""
        _refuse(f"passwords are changed by ./stack user passwd {username}")

    def create_user(self, username: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the password would open nothing."""
        _refuse(f"users are made by ./stack user add {username}")

    def update_user(
        self,
        username: str,
        password: str | None = None,
        is_admin: bool | None = None,
    ) -> NoReturn:
        """Refuse: the password would open nothing, and the role at the door decides who is an admin."""
        if password is not None:
            _refuse(f"passwords are changed by ./stack user passwd {username}")
        _refuse(f"admins are made by ./stack user role {username} {'admin' if is_admin else 'writer'}")

    def delete_user(self, username: str) -> NoReturn:
        """Refuse: the door would still be open."""
        _refuse(f"users are removed by ./stack user remove {username}")


def _refuse(what: str) -> NoReturn:
    raise MlflowException(f"Logins are the stack's, not MLflow's: {what}. Nothing was changed.", BAD_REQUEST)


def _write_row(session: Session, person: Person) -> SqlUser:
    """Make or correct the row of a person and return it; of several at once each finds the first one's.

    The row of an earlier account of the same name steps aside with its permissions ("ada~7"):
    they are that account's. It comes back if that account does, by a restore of the secrets. A row
    that no account has had (the database of another MLflow server) is taken over.
    """
    lock = text("SELECT pg_advisory_xact_lock(hashtext('stack users'), hashtext(:name))")
    session.execute(lock, {"name": person.name})
    session.expire_all()
    mark = mark_of(person)
    named = session.scalar(select(SqlUser).where(SqlUser.username == person.name))
    own = session.scalar(select(SqlUser).where(SqlUser.password_hash == mark))
    if named is not None and named is not own and (own or named.password_hash.startswith(MARK)):
        named.username = f"{person.name}~{named.id}"
        session.flush()
        named = None
    row = own or named or SqlUser()
    row.username, row.password_hash, row.is_admin = person.name, mark, person.is_admin
    session.add(row)
    session.flush()
    return row


Fetch = Callable[[str], Any]


def remembering_runs(fetch_or_none: Callable[[Fetch, str], Any]) -> Callable[[Fetch, str], Any]:
    """Return MLflow's `_fetch_or_none` with the experiment of each run remembered.

    Before each log_metric MLflow loads the run with all its metrics, params and tags, to learn its
    experiment (_run_requirement): 10 statements more, and slower with each metric. A run never
    moves to another experiment, and its id is never used again. What is not there is asked for again.
    """
    places: dict[str, str] = {}

    def fetch(get: Fetch, resource_id: str) -> Any:
        if getattr(get, "__name__", "") != "get_run":
            return fetch_or_none(get, resource_id)
        experiment_id = places.get(resource_id)
        if experiment_id is not None:
            return SimpleNamespace(info=SimpleNamespace(experiment_id=experiment_id))
        run = fetch_or_none(get, resource_id)
        if run is not None:
            if len(places) >= REMEMBERED_RUNS:
                places.clear()
            places[resource_id] = run.info.experiment_id
        return run

    return fetch


def create_app(settings: Settings) -> tuple[Any, DoorStore]:
    """Return MLflow's application with its auth app, which asks the door's store; and that store."""
    store = DoorStore(settings.permission_connections)
    mlflow_auth.store = store
    mlflow_auth._fetch_or_none = remembering_runs(mlflow_auth._fetch_or_none)
    return mlflow_auth.create_app(), store
