"""How is the snapshotter asked over gRPC?  Translation only.

A failure is one of gRPC's status codes and a sentence (containerd: errdefs/grpc.go); what nobody foresaw is
logged, and INTERNAL.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from pyoverlay.containers.snapshotter import snapshot
from pyoverlay.containers.snapshotter.mounts import Mount
from pyoverlay.containers.snapshotter.protocol import mount_pb2, snapshots_pb2
from pyoverlay.containers.snapshotter.snapshot import Information, Kind
from pyoverlay.containers.snapshotter.snapshotter import Snapshotter

log = logging.getLogger(__name__)

NAME: Final = "containerd.services.snapshots.v1.Snapshots"
_BATCH: Final = 100
_SECOND: Final = 10**9
_CODES: Final[dict[type[Exception], grpc.StatusCode]] = {
    snapshot.SnapshotNotFoundError: grpc.StatusCode.NOT_FOUND,
    snapshot.SnapshotExistsError: grpc.StatusCode.ALREADY_EXISTS,
    snapshot.SnapshotStateError: grpc.StatusCode.FAILED_PRECONDITION,
    snapshot.SnapshotArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    snapshot.SnapshotError: grpc.StatusCode.UNKNOWN,
}

_CREATING: Final = (snapshots_pb2.PrepareSnapshotRequest, snapshots_pb2.ViewSnapshotRequest)

_Request = TypeVar("_Request", bound=Message)


class Service:
    """The methods of ``containerd.services.snapshots.v1.Snapshots``, one a method here."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        """Answer for this snapshotter."""
        self._snapshotter = snapshotter

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Return what a gRPC server hands requests to."""
        unary: dict[str, tuple[type[Message], Callable[[Any], Message]]] = {
            "Prepare": (snapshots_pb2.PrepareSnapshotRequest, self._prepare),
            "View": (snapshots_pb2.ViewSnapshotRequest, self._view),
            "Mounts": (snapshots_pb2.MountsRequest, self._mounts),
            "Commit": (snapshots_pb2.CommitSnapshotRequest, self._commit),
            "Remove": (snapshots_pb2.RemoveSnapshotRequest, self._remove),
            "Stat": (snapshots_pb2.StatSnapshotRequest, self._stat),
            "Update": (snapshots_pb2.UpdateSnapshotRequest, self._update),
            "Usage": (snapshots_pb2.UsageRequest, self._usage),
            "Cleanup": (snapshots_pb2.CleanupRequest, self._cleanup),
        }
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._acknowledged(_guarded(name, answer)),
                request_deserializer=request.FromString,
                response_serializer=_serialize,
            )
            for name, (request, answer) in unary.items()
        }
        handlers["List"] = grpc.unary_stream_rpc_method_handler(
            _guarded_stream("List", self._list),
            request_deserializer=snapshots_pb2.ListSnapshotsRequest.FromString,
            response_serializer=_serialize,
        )
        return grpc.method_handlers_generic_handler(NAME, handlers)

    def _acknowledged(
        self, call: Callable[[Any, grpc.ServicerContext], Message]
    ) -> Callable[[Any, grpc.ServicerContext], Message]:
        """Note when the answer that a snapshot was created or committed was given, or that it can't be."""

        def answer(request: Message, context: grpc.ServicerContext) -> Message:
            response = call(request, context)
            name = _made(request)
            if name is not None and not context.add_callback(lambda: self._snapshotter.acknowledge(name)):
                # Cancelled, or too late: nobody listens.
                self._snapshotter.doubt(name)
            return response

        return answer

    def _prepare(self, request: snapshots_pb2.PrepareSnapshotRequest) -> Message:
        mount = self._snapshotter.create(Kind.ACTIVE, request.key, request.parent, dict(request.labels))
        return snapshots_pb2.PrepareSnapshotResponse(mounts=[_mount(mount)])

    def _view(self, request: snapshots_pb2.ViewSnapshotRequest) -> Message:
        mount = self._snapshotter.create(Kind.VIEW, request.key, request.parent, dict(request.labels))
        return snapshots_pb2.ViewSnapshotResponse(mounts=[_mount(mount)])

    def _mounts(self, request: snapshots_pb2.MountsRequest) -> Message:
        return snapshots_pb2.MountsResponse(mounts=[_mount(self._snapshotter.mount(request.key))])

    def _commit(self, request: snapshots_pb2.CommitSnapshotRequest) -> Message:
        self._snapshotter.commit(request.key, request.name, dict(request.labels))
        return Empty()

    def _remove(self, request: snapshots_pb2.RemoveSnapshotRequest) -> Message:
        self._snapshotter.remove(request.key)
        return Empty()

    def _stat(self, request: snapshots_pb2.StatSnapshotRequest) -> Message:
        return snapshots_pb2.StatSnapshotResponse(
            info=_information(self._snapshotter.information(request.key))
        )

    def _update(self, request: snapshots_pb2.UpdateSnapshotRequest) -> Message:
        asked = request.info
        updated = self._snapshotter.update(asked.name, dict(asked.labels), request.update_mask.paths)
        return snapshots_pb2.UpdateSnapshotResponse(info=_information(updated))

    def _list(self, request: snapshots_pb2.ListSnapshotsRequest) -> Iterator[Message]:
        found = iter(self._snapshotter.list_information(request.filters))
        while batch := list(itertools.islice(found, _BATCH)):
            yield snapshots_pb2.ListSnapshotsResponse(info=map(_information, batch))

    def _usage(self, request: snapshots_pb2.UsageRequest) -> Message:
        usage = self._snapshotter.usage(request.key)
        return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def _cleanup(self, _request: snapshots_pb2.CleanupRequest) -> Message:
        self._snapshotter.clean_up()
        return Empty()


def _made(request: Message) -> str | None:
    """Return the name of the snapshot that there is when a request was seen to."""
    if isinstance(request, _CREATING):
        return request.key
    return request.name if isinstance(request, snapshots_pb2.CommitSnapshotRequest) else None


def _guarded(
    name: str, answer: Callable[[_Request], Message]
) -> Callable[[_Request, grpc.ServicerContext], Message]:
    def call(request: _Request, context: grpc.ServicerContext) -> Message:
        try:
            return answer(request)
        except Exception as failure:  # noqa: BLE001  # the boundary: whatever it is, the caller is told
            _fail(name, context, failure)

    return call


def _guarded_stream(
    name: str, answer: Callable[[_Request], Iterator[Message]]
) -> Callable[[_Request, grpc.ServicerContext], Iterator[Message]]:
    def call(request: _Request, context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            yield from answer(request)
        except Exception as failure:  # noqa: BLE001  # as above
            _fail(name, context, failure)

    return call


def _fail(name: str, context: grpc.ServicerContext, failure: Exception) -> NoReturn:
    code = _CODES.get(type(failure))
    if code is None:
        log.error("%s failed", name, exc_info=failure)
        context.abort(grpc.StatusCode.INTERNAL, f"pyoverlay: {name} failed: {failure}")
    if code is grpc.StatusCode.UNKNOWN:
        log.error("%s: %s", name, failure)
    context.abort(code, f"pyoverlay: {failure}")


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(type=mount.kind, source=mount.source, options=mount.options)


def _information(information: Information) -> snapshots_pb2.Info:
    message = snapshots_pb2.Info(
        name=information.name,
        parent=information.parent,
        kind=snapshots_pb2.Kind.Name(information.kind),
        labels=information.labels,
    )
    for timestamp, nanoseconds in (
        (message.created_at, information.created),
        (message.updated_at, information.updated),
    ):
        timestamp.seconds, timestamp.nanos = divmod(nanoseconds, _SECOND)
    return message
