"""X-rays come from a DICOMweb server on loopback, and results go there."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import make_dicom, save
from dicom_results_data import HEATS, LIMITS, RECORD
from dicomweb_client import DICOMwebClient
from dicomweb_server import serving

from charm_jax.predict.dicom_results import DicomResults
from charm_jax.predict.dicomweb import DicomWeb
from data_pipelines.errors import InputError

STUDY = "1.2.840.1"
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def instance(series, number, modality, **tags):
    tags |= {"StudyInstanceUID": STUDY, "SeriesInstanceUID": f"{STUDY}.{series}"}
    tags |= {"SOPInstanceUID": f"{STUDY}.{series}.{number}", "Modality": modality}
    return make_dicom(GREY, PatientID="1", PatientName="A^B", **tags)


@pytest.fixture
def server():
    with serving() as server:
        server.instances += [
            instance(1, 1, "CR"),
            instance(1, 2, "CR"),
            instance(2, 1, "DX"),
            instance(3, 1, "OT"),
        ]
        yield server


def test_a_study_gives_its_x_rays(server, tmp_path):
    study = f"{server.url}/studies/{STUDY}"
    urls = DicomWeb(study).fetch(tmp_path)
    assert {*urls} == {*tmp_path.iterdir()}
    assert sorted(urls.values()) == [
        f"{study}/series/{STUDY}.{series}/instances/{STUDY}.{series}.{number}"
        for series, number in ((1, 1), (1, 2), (2, 1))
    ]
    assert {pydicom.dcmread(path).Modality for path in urls} == {"CR", "DX"}


def test_a_series_gives_all_of_it(server, tmp_path):
    [path] = DicomWeb(f"{server.url}/studies/{STUDY}/series/{STUDY}.3").fetch(tmp_path)
    assert np.array_equal(pydicom.dcmread(path).pixel_array, GREY)


def test_compressed_pixels_stay_so(server, tmp_path):
    server.instances.append(instance(4, 1, "CR"))
    server.instances[-1].compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    [path] = DicomWeb(f"{server.url}/studies/{STUDY}/series/{STUDY}.4").fetch(tmp_path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == pydicom.uid.RLELossless


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_instance_uid_is_no_path(server, tmp_path):
    server.instances.append(instance(4, 1, "CR"))
    server.instances[-1]["SOPInstanceUID"]._value = "../../outside"
    [path] = DicomWeb(f"{server.url}/studies/{STUDY}/series/{STUDY}.4").fetch(tmp_path)
    assert path == tmp_path / "0.dcm"


def test_results_are_stored_in_the_study(server, tmp_path):
    dataset = instance(901, 1, "SR")
    dataset.PixelData = bytes(2_000_000)  # sent in pieces
    path = save(dataset, tmp_path / "a.dcm")
    stored = DicomWeb(f"{server.url}/studies/{STUDY}").store({"report": str(path)})
    assert stored == {"report": f"{STUDY}.901.1"}
    assert server.instances[-1].PixelData == dataset.PixelData


@pytest.mark.parametrize(("status", "words"), [(202, "reason 0110"), (409, "409 Conflict")])
def test_refused_results_are_an_error(server, tmp_path, status, words):
    server.refused = status
    path = save(instance(901, 1, "SR"), tmp_path / "a.dcm")
    with pytest.raises(InputError, match=words):
        DicomWeb(f"{server.url}/studies/{STUDY}").store({"report": str(path)})


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/dicom-web", "give a study or a series"),
        ("/studies/1.2", "give a study or a series"),
        ("http://[/studies/1.2", "give a study or a series"),
        ("http://me:secret@127.0.0.1/studies/1.2", "~/.netrc"),
        ("http://127.0.0.1:1/dicom-web/studies/1.2", r"does not work \(ConnectionError\)"),
    ],
)
def test_a_bad_url_gets_one_sentence(tmp_path, url, words):
    with pytest.raises(InputError, match=words) as error:
        DicomWeb(url).fetch(tmp_path)
    assert "secret" not in str(error.value)


def test_a_study_without_x_rays_is_refused(server, tmp_path):
    server.instances[:] = [instance(3, 1, "OT")]
    with pytest.raises(InputError, match="has no X-ray"):
        DicomWeb(f"{server.url}/studies/{STUDY}").fetch(tmp_path)


@pytest.fixture
def orthanc(tmp_path):
    """The URL of an Orthanc with its DICOMweb plugin, on a free port."""
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if not (shutil.which("Orthanc") and plugin.exists()):
        pytest.skip("needs the Debian packages orthanc and orthanc-dicomweb")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "Plugins": [str(plugin)],
        "DicomServerEnabled": False,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "RegisteredUsers": {"charm": "secret"},
        "AuthenticationEnabled": True,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    process = subprocess.Popen(["Orthanc", tmp_path / "orthanc.json"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_orthanc_gives_x_rays_and_keeps_results(orthanc, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    web = DicomWeb(f"{orthanc}/studies/{STUDY}")
    given = [instance(1, 1, "CR"), instance(1, 2, "CR"), instance(3, 1, "OT")]
    given[1].compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    files = {str(n): str(save(d, tmp_path / f"{n}.dcm")) for n, d in enumerate(given)}
    with pytest.raises(InputError, match="401 Unauthorized"):
        web.store(files)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login charm password secret\n")
    assert [*web.store(files)] == ["0", "1", "2"]
    (tmp_path / "in").mkdir()
    urls = web.fetch(tmp_path / "in")
    read = {path.stem: pydicom.dcmread(path) for path in urls}
    assert sorted(read) == [f"{STUDY}.1.1", f"{STUDY}.1.2"]
    assert all(np.array_equal(dataset.pixel_array, GREY) for dataset in read.values())

    results = DicomResults(tmp_path / "out", LIMITS, "ab" * 32, "container")
    for path in urls:
        web.store(results.write(path, RECORD, HEATS))
    found = DICOMwebClient(orthanc).search_for_series(STUDY)
    modalities = [series["00080060"]["Value"][0] for series in found]
    assert sorted(modalities) == ["CR", "OT", "OT", "OT", "SR", "SR"]
    assert sorted(web.fetch(tmp_path / "in")) == sorted(urls)  # a second run takes no result
