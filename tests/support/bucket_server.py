"""A server on this machine that speaks S3."""

import re
import urllib.request
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIAFROMTHEURI", "sEcReTfRoMtHeUrI"


class BucketServer:
    """With one empty bucket, ``bucket``; knows the access keys of the requests it got."""

    def __init__(self) -> None:
        self._moto = ThreadedMotoServer("127.0.0.1", port=0)
        self._moto.start()
        self._app = self._moto._server.app
        self._moto._server.app = self._note
        _, self.port = self._moto.get_host_and_port()
        self.keys: set[str] = set()
        # What it holds is kept by the process, not by the server.
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/reset", data=b"")
        self.s3 = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        self.s3.create_bucket(Bucket="bucket")
        self.keys.clear()

    def __enter__(self) -> "BucketServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._moto.stop()

    def empty(self) -> None:
        for name in self.s3.list_objects_v2(Bucket="bucket").get("Contents", []):
            self.s3.delete_object(Bucket="bucket", Key=name["Key"])
        self.keys.clear()

    def names(self) -> list[str]:
        """Of all there is, whole; without the marks of folders."""
        found = self.s3.list_objects_v2(Bucket="bucket").get("Contents", [])
        return [item["Key"] for item in found if not item["Key"].endswith("/")]

    def objects(self) -> dict[str, bytes]:
        """All there is, by its whole name; nobody may be writing."""
        return {
            name: self.s3.get_object(Bucket="bucket", Key=name)["Body"].read()
            for name in self.names()
        }

    def uri(self, prefix: str = "prefix", *, keys: str = f"{KEY}:{SECRET}@") -> str:
        where = f"s3://{keys}bucket/{prefix}".rstrip("/")
        return f"{where}?endpoint_override=127.0.0.1:{self.port}&scheme=http"

    def _note(self, environ: dict[str, Any], start_response: Any) -> Any:
        named = re.search(r"Credential=([^/]*)/", environ.get("HTTP_AUTHORIZATION", ""))
        self.keys.add(named[1] if named else "")
        return self._app(environ, start_response)
