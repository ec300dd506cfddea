"""Give a person an account on the tracking server, or another role: ``python deploy/users.py NAME ROLE``.

Run it as an admin, with MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment.
It asks for the password of a new account.

==========  ==========================================================================================
reader      sees everything and takes models home
writer      trains: writes runs and registers versions, which the gate judges, but nobody is promoted
promoter    also promotes and rolls back, and so does the gate after a training of theirs
admin       may do everything, and gives roles
==========  ==========================================================================================
"""

from __future__ import annotations

import getpass
import os
import sys

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client

EXPERIMENT, MODEL, PROMOTIONS = "mitoflow", "mitoflow", "mitoflow-promotions"

#: What a role may, on the experiment, on the registered model, and on the log of who was promoted. MLflow asks for
#: MANAGE where an alias is taken away, as the challenger's is when it becomes the champion.
ROLES = {
    "reader": ("READ", "READ", "READ"),
    "writer": ("EDIT", "EDIT", "READ"),
    "promoter": ("EDIT", "MANAGE", "EDIT"),
    "admin": ("MANAGE", "MANAGE", "MANAGE"),
}


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[2] not in ROLES:
        sys.exit(f"usage: python deploy/users.py NAME {'|'.join(ROLES)}")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        sys.exit("users.py: MLFLOW_TRACKING_URI: found nothing, expected the address of the server; export it")
    try:
        give(*sys.argv[1:])
    except MlflowException as error:
        sys.exit(f"users.py: {' '.join(str(error).split())[:300]}")


def give(name: str, role: str) -> None:
    """Make the account where it is missing, and let it do what its role may and nothing else."""
    server = os.environ["MLFLOW_TRACKING_URI"]
    accounts = get_app_client("basic-auth", tracking_uri=server)
    resources = shared(MlflowClient(server))
    try:
        accounts.get_user(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        accounts.create_user(name, getpass.getpass(f"Password of {name} (12 characters or more): "))
    for (kind, which), permission in zip(resources, ROLES[role], strict=True):
        accounts.grant_user_permission(name, kind, which, permission)
    accounts.update_user_admin(name, role == "admin")
    print(f"{name} is {role}")


def shared(client: MlflowClient) -> list[tuple[str, str]]:
    """Return what is shared, and make it where it is missing: whoever makes something may do everything with it."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    for model in (MODEL, PROMOTIONS):
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    return [("experiment", number), ("registered_model", MODEL), ("registered_model", PROMOTIONS)]


if __name__ == "__main__":
    main()
