"""How does a test ask containerd what the kubelet asks it?  By the container runtime interface, runtime.v1.

Of each message there are only the fields that a pod on the host's network needs; the numbers are those of
Kubernetes' ``cri-api/pkg/apis/runtime/v1/api.proto``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.mount.command import LIMIT_SECONDS

_PACKAGE = "runtime.v1"
_NODE = 2  # NamespaceMode.NODE: the host's
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
    "NamespaceOption": {"network": (1, "int32")},
    "LinuxSandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
    "LinuxPodSandboxConfig": {"security_context": (2, "LinuxSandboxSecurityContext")},
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "log_directory": (3, "string"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "ContainerMetadata": {"name": (1, "string")},
    "ImageSpec": {"image": (1, "string")},
    "LinuxContainerSecurityContext": {"namespace_options": (3, "NamespaceOption")},
    "LinuxContainerConfig": {"security_context": (2, "LinuxContainerSecurityContext")},
    "ContainerConfig": {
        "metadata": (1, "ContainerMetadata"),
        "image": (2, "ImageSpec"),
        "command": (3, "repeated string"),
        "linux": (15, "LinuxContainerConfig"),
    },
    "CreateContainerRequest": {
        "pod_sandbox_id": (1, "string"),
        "config": (2, "ContainerConfig"),
        "sandbox_config": (3, "PodSandboxConfig"),
    },
    "CreateContainerResponse": {"container_id": (1, "string")},
    "StartContainerRequest": {"container_id": (1, "string")},
    "ExecSyncRequest": {
        "container_id": (1, "string"),
        "cmd": (2, "repeated string"),
        "timeout": (3, "int64"),
    },
    "ExecSyncResponse": {"stdout": (1, "bytes"), "stderr": (2, "bytes"), "exit_code": (3, "int32")},
    "UInt64Value": {"value": (1, "uint64")},
    "FilesystemIdentifier": {"mountpoint": (1, "string")},
    "FilesystemUsage": {
        "timestamp": (1, "int64"),
        "fs_id": (2, "FilesystemIdentifier"),
        "used_bytes": (3, "UInt64Value"),
        "inodes_used": (4, "UInt64Value"),
    },
    "ContainerStats": {"writable_layer": (4, "FilesystemUsage")},
    "ContainerStatsRequest": {"container_id": (1, "string")},
    "ContainerStatsResponse": {"stats": (1, "ContainerStats")},
    "ImageFsInfoRequest": {},
    "ImageFsInfoResponse": {"image_filesystems": (1, "repeated FilesystemUsage")},
    "Image": {"id": (1, "string")},
    "ImageStatusRequest": {"image": (1, "ImageSpec")},
    "ImageStatusResponse": {"image": (1, "Image")},
    "RemoveImageRequest": {"image": (1, "ImageSpec")},
    "Empty": {},
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="tests/cri.proto", package=_PACKAGE, syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for label, (number, kind) in fields.items():
            *repeated, kind = kind.split()
            added = message.field.add(name=label, number=number)
            added.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in _MESSAGES:
                added.type, added.type_name = field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                added.type = field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()


class Kubelet:
    """Asks containerd as the kubelet does."""

    def __init__(self, address: Path, base: Path) -> None:
        """Ask the containerd at `address`; pods' logs go below `base`."""
        self._channel = grpc.insecure_channel(f"unix:{address}")
        self._base = base

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def _ask(self, method: str, response: str = "Empty", service: str = "Runtime", **fields: Any) -> Any:  # noqa: ANN401
        call = self._channel.unary_unary(
            f"/{_PACKAGE}.{service}Service/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=_CLASSES[response].FromString,
        )
        return call(_CLASSES[f"{method}Request"](**fields), timeout=LIMIT_SECONDS)

    def _pod(self, name: str) -> dict[str, Any]:
        return {
            "metadata": {"name": name, "uid": name, "namespace": "default"},
            "log_directory": str(self._base),
            "linux": {"security_context": {"namespace_options": {"network": _NODE}}},
        }

    def run_pod(self, name: str) -> str:
        """Start a pod without containers on the host's network; return its id."""
        return str(self._ask("RunPodSandbox", "RunPodSandboxResponse", config=self._pod(name)).pod_sandbox_id)

    def remove_pod(self, identity: str) -> None:
        """Stop and remove a pod with its containers."""
        self._ask("StopPodSandbox", pod_sandbox_id=identity)
        self._ask("RemovePodSandbox", pod_sandbox_id=identity)

    def run_container(self, pod: str, pod_name: str, image: str, command: Sequence[str]) -> str:
        """Start a container in a pod; return its id."""
        container = self._ask(
            "CreateContainer",
            "CreateContainerResponse",
            pod_sandbox_id=pod,
            config={
                "metadata": {"name": "container"},
                "image": {"image": image},
                "command": command,
                "linux": {"security_context": {"namespace_options": {"network": _NODE}}},
            },
            sandbox_config=self._pod(pod_name),
        ).container_id
        self._ask("StartContainer", container_id=container)
        return str(container)

    def execute(self, container: str, script: str) -> str:
        """What a shell script prints in a container.  Raises AssertionError when it fails."""
        answer = self._ask(
            "ExecSync",
            "ExecSyncResponse",
            container_id=container,
            cmd=["/bin/sh", "-ec", script],
            timeout=LIMIT_SECONDS,
        )
        assert answer.exit_code == 0, answer.stderr
        return bytes(answer.stdout).decode()

    def usage(self, container: str) -> tuple[int, int]:
        """Bytes and inodes of what a container has written, as the kubelet counts them against its limit."""
        layer = self._ask(
            "ContainerStats", "ContainerStatsResponse", container_id=container
        ).stats.writable_layer
        return layer.used_bytes.value, layer.inodes_used.value

    def disk_of_images(self) -> Path:
        """The directory by which the kubelet finds the disk that images are on."""
        (disk,) = self._ask("ImageFsInfo", "ImageFsInfoResponse", service="Image").image_filesystems
        return Path(disk.fs_id.mountpoint)

    def has_image(self, image: str) -> bool:
        """Whether there is an image, or else the kubelet would have it pulled."""
        answer = self._ask("ImageStatus", "ImageStatusResponse", service="Image", image={"image": image})
        return bool(answer.image.id)

    def remove_image(self, image: str) -> None:
        """Remove an image, as the kubelet does when the disk gets full."""
        self._ask("RemoveImage", service="Image", image={"image": image})
