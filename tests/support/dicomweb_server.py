"""A DICOMweb server on loopback, as small as the tests need."""

import contextlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pydicom

_BOUNDARY = b"part"


class Server(ThreadingHTTPServer):
    """Hold instances; `refused` is how it fails at storing: a status, or 0."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.instances, self.refused = [], 0
        self.url = f"http://127.0.0.1:{self.server_port}/dicom-web"


@contextlib.contextmanager
def serving():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        study, series, one = re.fullmatch(
            r"/dicom-web/studies/([\d.]+)(/series)?/?([\d.]*)", self.path
        ).groups()
        found = [d for d in self.server.instances if d.StudyInstanceUID == study]
        if not one:
            assert series
            rows = {d.SeriesInstanceUID: d for d in found}
            tags = ("SeriesInstanceUID", "Modality")
            answer = [
                {f"{d[key].tag:08X}": {"vr": d[key].VR, "Value": [d[key].value]} for key in tags}
                for d in rows.values()
            ]
            return self._answer(200, "application/dicom+json", json.dumps(answer).encode())
        parts = b""
        for dataset in found:
            if dataset.SeriesInstanceUID == one:
                parts += b"--" + _BOUNDARY + b"\r\nContent-Type: application/dicom\r\n\r\n"
                parts += _encoded(dataset) + b"\r\n"
        kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY.decode()}'
        return self._answer(200, kind, parts + b"--" + _BOUNDARY + b"--")

    def do_POST(self):
        boundary = re.search(r'boundary="(.+)"', self.headers["Content-Type"])[1].encode()
        parts = self._body().split(b"--" + boundary)[1:-1]
        bodies = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
        stored = [pydicom.dcmread(io.BytesIO(body)) for body in bodies]
        answer = pydicom.Dataset()
        if not self.server.refused:
            self.server.instances += stored
        if self.server.refused == 202:
            failed = pydicom.Dataset()
            failed.FailureReason = 0x0110
            answer.FailedSOPSequence = [failed]
        body = json.dumps(answer.to_json_dict()).encode()
        return self._answer(self.server.refused or 200, "application/dicom+json", body)

    def _body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _encoded(dataset):
    with io.BytesIO() as buffer:
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()
