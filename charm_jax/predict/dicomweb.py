"""Fetch X-rays from a DICOMweb server (QIDO-RS, WADO-RS), and store results there (STOW-RS)."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client import URI, DICOMwebClient, URIType
from pydicom.errors import InvalidDicomError

from data_pipelines.errors import InputError
from data_pipelines.images.decoders import quiet_decoders

_MODALITIES = ("CR", "DX", "RG")  # X-rays; captures of earlier results are OT, reports SR
_AS_STORED = (("application/dicom", "*"),)  # in any transfer syntax
_EXAMPLE = "give a study or a series, such as http://127.0.0.1:8042/dicom-web/studies/1.2.3"


class DicomWeb:
    """Hold the connection to a study or series; user and password come from ``~/.netrc``."""

    def __init__(self, url: str):
        """Parse the URL, without connecting.

        Raises:
            InputError: it is not that of a study or series, or has a password.
        """
        try:
            if "@" in urlsplit(url).netloc:
                raise InputError("--dicomweb has a user or password: write these to ~/.netrc.")
            self._uri = URI.from_string(url)
        except ValueError:
            raise InputError(f"--dicomweb is {url!r}: {_EXAMPLE}.") from None
        if self._uri.type not in (URIType.STUDY, URIType.SERIES):
            raise InputError(f"--dicomweb is {url!r}: {_EXAMPLE}.")
        self._client = DICOMwebClient(self._uri.base_url)
        self._client.set_http_retry_params(retry=False)  # it would log tracebacks for half a minute

    def fetch(self, folder: Path) -> dict[Path, str]:
        """Write the X-rays of the study or series to files; return the URL of each.

        Of a study, the series of the modalities CR, DX and RG count.

        Raises:
            InputError: the server fails, or has no X-ray there.
        """
        quiet_decoders()
        study, urls = self._uri.study_instance_uid, {}
        with self._errors():
            for series in self._series():
                found = self._client.iter_series(study, series, media_types=_AS_STORED)
                for dataset in found:
                    uid = dataset.SOPInstanceUID
                    name = uid if uid.is_valid else len(urls)  # it may be a path
                    path = folder / f"{name}.dcm"
                    dataset.save_as(path, enforce_file_format=True)
                    urls[path] = (
                        f"{self._uri.base_url}/studies/{study}/series/{series}/instances/{uid}"
                    )
        if not urls:
            raise InputError(
                f"{self._uri} has no X-ray ({', '.join(_MODALITIES)}): name another study, or a "
                "series."
            )
        return urls

    def store(self, files: Mapping[str, str]) -> dict[str, str]:
        """Send DICOM files to the study; return the instance UID of each by its key.

        Raises:
            InputError: the server fails, or refuses one.
        """
        datasets = {key: pydicom.dcmread(file) for key, file in files.items()}
        with self._errors():
            answer = self._client.store_instances(
                list(datasets.values()), self._uri.study_instance_uid
            )
        if failed := answer.get("FailedSOPSequence"):
            codes = ", ".join(sorted({f"{item.FailureReason:04X}" for item in failed}))
            raise InputError(
                f"{self._uri.base_url} refused {len(failed)} of {len(datasets)} results "
                f"(failure reason {codes}): see its log."
            )
        return {key: str(dataset.SOPInstanceUID) for key, dataset in datasets.items()}

    def _series(self) -> list[str]:
        if self._uri.type is URIType.SERIES:
            return [self._uri.series_instance_uid]
        found = self._client.search_for_series(self._uri.study_instance_uid)
        datasets = [pydicom.Dataset.from_json(item) for item in found]
        return [d.SeriesInstanceUID for d in datasets if d.get("Modality") in _MODALITIES]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what the server and its answers may cause as one sentence."""
        try:
            yield
        except requests.RequestException as error:
            reason = type(error).__name__
            if error.response is not None:
                reason = f"{error.response.status_code} {error.response.reason}"
            raise InputError(
                f"The DICOMweb server {self._uri.base_url} does not work ({reason}): check the URL "
                "and whether it runs."
            ) from error
        except (ValueError, AttributeError, KeyError, InvalidDicomError) as error:
            raise InputError(
                f"The DICOMweb server {self._uri.base_url} answers otherwise than the standard "
                f"says ({error}): check the URL."
            ) from error
