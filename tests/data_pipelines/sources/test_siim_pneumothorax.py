import pydicom
import pytest
from dicom_files import make_dicom, save

from data_pipelines import sources
from data_pipelines.errors import InputError

NAME = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875201.850819"
MASKS = f"""ImageId, EncodedPixels
{NAME.format(6904)},-1
{NAME.format(13666)},557374 2 1015 8
{NAME.format(13666)},514175 10 1008 29
{NAME.format(11028)}, -1
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-rle.csv").write_text(MASKS)
    path = tmp_path / "dicom-images-train/1.2/1.3" / f"{NAME.format(6904)}.dcm"
    path.parent.mkdir(parents=True)
    with pydicom.config.disable_value_validation():  # real files have ages without a unit, too
        save(make_dicom(ViewPosition="PA", PatientSex="F", PatientAge="31"), path)
    return tmp_path


def test_an_image_with_a_mask_has_pneumothorax(folder):
    table = sources.load("siim_pneumothorax", folder)
    assert table.images.tolist() == [f"{NAME.format(n)}.dcm" for n in (11028, 13666, 6904)]
    assert table.findings == ("Pneumothorax",)
    assert table.labels[:, 0].tolist() == [0, 1, 0]
    assert table.present.tolist() == [False, False, True]
    assert (table.views[2], table.sexes[2], table.ages[2]) == ("PA", "F", 31)


def test_patients_are_unknown_and_the_origin_of_the_images_is_told(folder):
    table = sources.load("siim_pneumothorax", folder)
    assert not table.patients_known
    assert "those of ChestX-ray14 under other names" in table.warnings[0]


def test_the_table_of_the_second_stage_is_read_by_its_name(folder):
    (folder / "train-rle.csv").rename(folder / "stage_2_train.csv")
    assert len(sources.load("siim_pneumothorax", folder).images) == 3


def test_a_table_of_another_set_is_named_with_its_source(folder):
    with pytest.raises(InputError, match=r"is one of siim_pneumothorax, not of rsna_pneumonia"):
        sources.load("rsna_pneumonia", folder)
    (folder / "train-rle.csv").write_text("ImageId,Mask\na,-1\n")
    with pytest.raises(InputError, match="has no column 'EncodedPixels'"):
        sources.load("siim_pneumothorax", folder)
