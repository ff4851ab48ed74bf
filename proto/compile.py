"""Compile caffe.proto into the descriptors that caffe2torch reads at run time, or check that they are fresh.

    python proto/compile.py           write caffe2torch/prototxt/caffe_schema.binpb
    python proto/compile.py --check   exit 1 when that file is not what caffe.proto says

Only this needs protoc, which grpcio-tools (extra ``dev``) carries; running caffe2torch does not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "caffe.proto"
COMPILED = HERE.parent / "caffe2torch" / "prototxt" / "caffe_schema.binpb"


def compile_schema(source: Path) -> bytes:
    """Give protoc's serialized ``FileDescriptorSet`` for one .proto file; exits with protoc's own message on errors."""
    try:
        from grpc_tools import protoc
    except ImportError:
        sys.exit("protoc is missing: install the extra 'dev' (grpcio-tools)")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "schema.binpb"
        status = protoc.main(["protoc", f"-I{source.parent}", f"--descriptor_set_out={target}", str(source)])
        if status != 0:
            sys.exit(f"protoc refused {source.name}")
        return target.read_bytes()


def is_stale(compiled: Path, fresh: bytes) -> bool:
    """Say whether a compiled file says something else than fresh descriptors, whatever protoc's version wrote it."""
    if not compiled.is_file():
        return True
    old, new = descriptor_pb2.FileDescriptorSet(), descriptor_pb2.FileDescriptorSet.FromString(fresh)
    try:
        old.ParseFromString(compiled.read_bytes())
    except Exception:  # each protobuf runtime raises its own kind of DecodeError
        return True
    return old != new


def main(arguments: list[str], source: Path = SOURCE, compiled: Path = COMPILED) -> int:
    """Compile, or with ``--check`` compare; the exit status."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    fresh = compile_schema(source)
    if arguments:
        if is_stale(compiled, fresh):
            print(f"{compiled.name} is stale: {source.name} says something else; run 'make proto'", file=sys.stderr)
            return 1
        return 0
    compiled.write_bytes(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
