import os

import numpy as np
from dicom_files import make_dicom, save
from PIL import Image

from data_pipelines.sources.dicom_tags import read_tags


def test_view_sex_and_age_are_read_where_a_file_tells_them(tmp_path):
    tags = {"ViewPosition": "PA", "PatientSex": "F", "PatientAge": "044Y"}
    whole = save(make_dicom(**tags), tmp_path / "whole.dcm")
    empty = save(make_dicom(), tmp_path / "empty.dicom")
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(whole.read_bytes()[:140])
    os.mkfifo(tmp_path / "pipe.dcm")
    other = tmp_path / "other.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(other)
    views, sexes, ages = read_tags(
        {0: whole, 1: empty, 2: tmp_path / "pipe.dcm", 3: damaged, 4: other}, 5
    )
    assert views.tolist() == ["PA", "", "", "", ""]
    assert sexes.tolist() == ["F", "", "", "", ""]
    assert ages.tolist() == [44, -1, -1, -1, -1]
