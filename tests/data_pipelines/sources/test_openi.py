import os
import tarfile

import pytest

from data_pipelines import sources
from data_pipelines.errors import InputError
from data_pipelines.sources.openi import TERMS

# Report, images, coded terms.
REPORTS = {
    "CXR1": (["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"], ["normal"]),
    "CXR2": (["CXR2_IM-0652-1001"], ["Opacity/lung/base/left", "Thickening/pleura/apex"]),
    "CXR3": (["CXR3_IM-1384-1001"], ["No Indexing"]),
    "CXR4": ([], ["normal"]),
}
HEADERS = """imageid,Rows,View Position
CXR1_1_IM-0001-3001,2000,PA
CXR1_1_IM-0001-4001,2000,LATERAL
CXR2_IM-0652-1001,2000,AP
CXR3_IM-1384-1001,2000,PA
"""
IMAGES = ["CXR1_1_IM-0001-3001.png", "CXR2_IM-0652-1001.png", "CXR3_IM-1384-1001.png"]


def xml(uid, images, terms):
    major = "".join(f"<major>{term}</major>" for term in terms)
    nodes = "".join(f'<parentImage id="{image}"/>' for image in images)
    return f'<eCitation><uId id="{uid}"/><MeSH>{major}</MeSH>{nodes}</eCitation>'


@pytest.fixture
def folder(tmp_path):
    reports = tmp_path / "ecgen-radiology"
    reports.mkdir()
    for uid, (images, terms) in REPORTS.items():
        (reports / f"{uid[3:]}.xml").write_text(xml(uid, images, terms))
    (tmp_path / "nlmcxr_dicom_metadata.csv").write_text(HEADERS)
    (tmp_path / "NLMCXR_png").mkdir()
    (tmp_path / "NLMCXR_png" / IMAGES[0]).touch()
    return tmp_path


@pytest.fixture
def kaggle(tmp_path):
    (tmp_path / "indiana_projections.csv").write_text(
        "uid,filename,projection\n"
        "1,1_1_IM-0001-4001.dcm.png,Frontal\n"
        "1,1_1_IM-0001-3001.dcm.png,Lateral\n"
        "2,2_IM-0652-1001.dcm.png,Frontal\n"
    )
    (tmp_path / "indiana_reports.csv").write_text(
        "uid,MeSH,Problems\n1,normal,normal\n2,Cardiomegaly/borderline;Mass/lung,Cardiomegaly\n"
    )
    (tmp_path / "2_IM-0652-1001.dcm.png").touch()
    return tmp_path


def positives(table, row):
    return {n for n, value in zip(table.findings, table.labels[row], strict=True) if value == 1}


def test_frontal_images_of_the_reports_are_read(folder):
    table = sources.load("openi", folder)
    assert table.images.tolist() == IMAGES
    assert table.views.tolist() == ["PA", "AP", "PA"]
    assert table.patient_names == ("CXR1", "CXR2", "CXR3")
    assert table.present.tolist() == [True, False, False]
    assert table.warnings[0].startswith("1 of the 4 images")
    assert len(sources.load("openi", folder, views="all").images) == 4


def test_findings_are_coded_terms_and_those_below_them(folder):
    table = sources.load("openi", folder)
    assert positives(table, 1) == {"Lung Opacity", "Pleural_Thickening"}
    assert table.labels[0].tolist() == [0] * len(TERMS)
    assert table.labels[2].tolist() == [-1] * len(TERMS)


def test_without_views_all_images_are_read_and_a_warning_says_so(folder):
    (folder / "nlmcxr_dicom_metadata.csv").unlink()
    table = sources.load("openi", folder)
    assert len(table.images) == 4
    assert "lateral images count, too" in table.warnings[0]


def test_a_pipe_is_no_report(folder):
    os.mkfifo(folder / "ecgen-radiology/5.xml")
    assert sources.load("openi", folder).images.tolist() == IMAGES


def test_reports_may_be_in_their_archive(folder):
    with tarfile.open(folder / "NLMCXR_reports.tgz", "w:gz") as archive:
        archive.add(folder / "ecgen-radiology", "ecgen-radiology")
    for path in (folder / "ecgen-radiology").iterdir():
        path.unlink()
    assert sources.load("openi", folder).images.tolist() == IMAGES
    (folder / "NLMCXR_reports.tgz").write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"reports of .*NLMCXR_reports\.tgz cannot be read"):
        sources.load("openi", folder)


def test_the_tables_of_kaggle_are_read(kaggle):
    table = sources.load("openi", kaggle)
    assert table.images.tolist() == ["CXR1_1_IM-0001-4001.png", "CXR2_IM-0652-1001.png"]
    assert table.present.tolist() == [False, True]
    assert positives(table, 0) == set()
    assert positives(table, 1) == {"Cardiomegaly", "Mass"}


def test_wrong_input_is_one_sentence(folder, tmp_path):
    with pytest.raises(InputError, match="does not exist: download the set from"):
        sources.load("openi", tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no indiana_projections\.csv, no NLMCXR_reports\.tgz"):
        sources.load("openi", tmp_path / "empty")
    (folder / "nlmcxr_dicom_metadata.csv").write_text(
        HEADERS.replace("PA", "LL").replace("AP", "LL")
    )
    with pytest.raises(InputError, match="has no frontal view among its 4 images"):
        sources.load("openi", folder)
    (folder / "ecgen-radiology/1.xml").write_text("<eCitation>")
    with pytest.raises(InputError, match="cannot be read"):
        sources.load("openi", folder)
