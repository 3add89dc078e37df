"""Which build of the workflows runs a run: Temporal's worker deployments, pinned, where a deployment has a name.

A run stays with the build that began it, so a build may change the workflows without patches, and the old one's workers
stay until its runs have ended. Core workers alone have builds: activities of agents are bound by `schemas`, and each of
their steps is found in the journal by whichever build goes on.
"""

import logging
from typing import Final

from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

from coatcheck.settings import Settings
from workers.temporal import BUILD_ID

PROMOTE: Final = "temporal worker deployment set-current-version --deployment-name {name} --build-id {build}"

_log = logging.getLogger(__name__)


def build_id(settings: Settings) -> str:
    """This build's name: what is set, such as an image's tag, or the package's version."""
    return settings.build_id or BUILD_ID


def deployment_config(settings: Settings) -> WorkerDeploymentConfig | None:
    """How a core worker takes part in its deployment; `None` where the deployment has no name."""
    if settings.deployment is None:
        return None
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment, build_id(settings)),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.PINNED,
    )


async def ensure_current_build(client: Client, settings: Settings) -> None:
    """Make the first build of a deployment its current one; later builds wait to be made so by whoever deploys them.

    Without a current build no run would ever begin. Idempotent; of several that are first, the server takes one.

    Raises:
        RPCError: Temporal does not answer.
    """
    if settings.deployment is None:
        return
    name, build = settings.deployment, build_id(settings)
    token = b""
    try:
        request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=name)
        found = await client.workflow_service.describe_worker_deployment(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
    else:
        token = found.conflict_token
        current = found.worker_deployment_info.routing_config.current_deployment_version.build_id
        if current == build:
            return
        if current:
            command = PROMOTE.format(name=name, build=build)
            _log.info("build %s is not the current one of %s, which is %s: `%s`", build, name, current, command)
            return
    try:
        await client.workflow_service.set_worker_deployment_current_version(
            SetWorkerDeploymentCurrentVersionRequest(
                namespace=client.namespace,
                deployment_name=name,
                build_id=build,
                conflict_token=token,
                identity=client.identity,
                allow_no_pollers=True,
            )
        )
    except RPCError as error:
        if error.status is not RPCStatusCode.FAILED_PRECONDITION:
            raise
        _log.info("another build of %s was first", name)
    else:
        _log.info("build %s is the current one of %s", build, name)
