"""What dask-cloudprovider has in an account: ``python -m tests.clusters.ecs_account URL`` prints its names, one a line."""

from __future__ import annotations

import sys

import boto3

__all__: list[str] = []


def main() -> None:
    """Ask the interface."""
    ecs, iam, ec2 = (boto3.client(one, endpoint_url=sys.argv[1]) for one in ("ecs", "iam", "ec2"))
    clusters = ecs.describe_clusters(clusters=ecs.list_clusters()["clusterArns"])["clusters"]
    names = [
        # one that was deleted is still known for a while
        *(one["clusterName"] for one in clusters if one["status"] != "INACTIVE"),
        *ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"],
        *(one["RoleName"] for one in iam.list_roles()["Roles"]),
        *(one["GroupName"] for one in ec2.describe_security_groups()["SecurityGroups"]),
    ]
    print("\n".join(one for one in names if "dask" in one))


if __name__ == "__main__":
    main()
