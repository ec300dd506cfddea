"""Give a user an account on the tracking server, or another role: ``python deploy/users.py NAME ROLE``.

Run it as an admin, with MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment.
It asks for the password of a new account. In the place of a role, ``password`` changes the password, and ``remove``
takes the account away. A role other than admin holds for the registered model that ``params.yaml`` in the working
directory names (``registry.model``, by default ``mitoflow``), and for the experiment: that of MLFLOW_EXPERIMENT_NAME,
by default ``mitoflow``.

==========  ==========================================================================================
reader      sees everything and takes models home
writer      trains: writes runs and registers versions, which the gate judges, but may not promote
promoter    also promotes and rolls back, and so does the gate after a training of theirs
admin       may do everything, and gives roles
==========  ==========================================================================================
"""

from __future__ import annotations

import getpass
import os
import sys
import warnings

try:
    warnings.filterwarnings("ignore", module="mlflow.server")  # what Starlette will change one day
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    from mitoflow import errors
    from mitoflow.tracking import promotion_log, registered_model, runs, store
except ImportError as error:
    remedy = "in the environment of the checkout, pip install -r deploy/requirements.txt"
    print(f"users.py: found {error}, expected mitoflow and MLflow's accounts; {remedy}", file=sys.stderr)
    sys.exit(2)

#: What a role may, on the experiment, on the registered model, and on the log of who was promoted. MLflow asks for
#: MANAGE where an alias is taken away, as the challenger's is when it becomes the champion.
ROLES = {
    "reader": ("READ", "READ", "READ"),
    "writer": ("EDIT", "EDIT", "READ"),
    "promoter": ("EDIT", "MANAGE", "EDIT"),
    "admin": ("MANAGE", "MANAGE", "MANAGE"),
}


def main() -> None:
    wanted = [*ROLES, "password", "remove"]
    if len(sys.argv) != 3 or sys.argv[2] not in wanted:
        found, remedy = " ".join(sys.argv[1:]) or "nothing", "say who, and which role"
        raise errors.InputError("users.py", found, f"NAME {'|'.join(wanted)}", remedy)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        raise errors.InputError("MLFLOW_TRACKING_URI", "nothing", "the address of the server", "export it")
    server, (name, what) = os.environ["MLFLOW_TRACKING_URI"], sys.argv[1:]
    try:
        client, accounts = store.client(server), AuthServiceClient(server)
        if what == "remove":
            accounts.delete_user(name)
        elif what == "password":
            accounts.update_user_password(name, ask(name))
        else:
            give(accounts, client, name, what)
    except store.ERRORS as error:
        if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            expected = "a name and a password that the server takes"
            raise errors.InputError(name, store.reason(error), expected, "run it again with others") from None
        raise store.as_user_error(server, error) from None
    print(f"{name}: {what}")


def ask(name: str) -> str:
    return getpass.getpass(f"Password of {name} (12 characters or more): ")


def give(accounts: AuthServiceClient, client: MlflowClient, name: str, role: str) -> None:
    """Make the account where it is missing, and let it do with the `shared` resources what its role may."""
    resources = shared(client)
    try:
        accounts.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        accounts.create_user(name, ask(name))
    for (kind, which), permission in zip(resources, ROLES[role], strict=True):
        grant(accounts, name, kind, which, permission)
    accounts.update_user_admin(name, role == "admin")


def grant(accounts: AuthServiceClient, name: str, kind: str, which: str, permission: str) -> None:
    """Give a user a permission in place of any that they have for this resource."""
    try:
        accounts.grant_user_permission(name, kind, which, permission)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        accounts.revoke_user_permission(name, kind, which)
        accounts.grant_user_permission(name, kind, which, permission)


def shared(client: MlflowClient) -> list[tuple[str, str]]:
    """Return the experiment, the registered model and its log of promotions, and create what is missing.

    The creator of a resource has all rights to it, so an admin creates them before others do.
    """
    title, name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or runs.EXPERIMENT, registered_model.name()
    experiment = client.get_experiment_by_name(title)
    number = experiment.experiment_id if experiment else client.create_experiment(title)
    models = (registered_model.create(client, name), promotion_log.create(client, name))
    return [("experiment", number), *(("registered_model", model) for model in models)]


if __name__ == "__main__":
    errors.run_as_command(main)
