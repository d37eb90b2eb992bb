import csv

from PIL import Image

from data_pipelines.phantom.__main__ import main


def _rows(directory):
    with open(directory / "Data_Entry_2017_v2020.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_contact_sheet_shows_every_finding(tmp_path):
    assert main(["--contact_sheet", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "L" and sheet.width == 8 * 128 and sheet.height > 8 * 128


def test_the_command_writes_a_set_and_says_what_is_wrong(tmp_path, capsys):
    command = ["--out", str(tmp_path / "set"), "--train_images", "40", "--test_images", "30"]
    command += ["--image_size", "16", "--min_test_positives", "1", "--min_train_positives", "1"]
    assert main(command) == 0
    assert len(_rows(tmp_path / "set")) == 70
    assert main([*command, "--seed", "1"]) == 2
    assert "name a new or empty folder" in capsys.readouterr().err
