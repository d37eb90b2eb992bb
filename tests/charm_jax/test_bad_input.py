"""Bad input gets one sentence and exit code 2."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from running import SMALL, copy_data, read, train

from charm_jax import __main__ as charm
from charm_jax.eval import __main__ as eval_command
from charm_jax.memory import __main__ as memory_command
from charm_jax.train import __main__ as train_command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    {}
    return config
"""


def test_a_changed_config_is_refused_with_the_difference(finished, refused):
    arguments = [*SMALL, "--config.model.momentum=0.9"]
    words = ("model.momentum: 0.99 -> 0.9", "--config.resume=force")
    refused(train_command.main, arguments, *words, cwd=finished[0])


def test_a_second_process_on_the_same_run_is_refused(finished, tmp_path, refused):
    copy_data(finished, tmp_path)
    (tmp_path / "runs/demo").mkdir(parents=True)
    with FileLock(tmp_path / "runs/demo/lock"):
        refused(train_command.main, SMALL, "Another process", "runs/demo", cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.data.imge_size=64"], ["config.data.imge_size", "config.data.image_size"]),
        (["--config.modle.momentum=1"], ["config.modle", "config.model"]),
        (["--config.data.image_size=big"], ["image_size is 'big': set it to a whole number"]),
        (["--config.seed=1.5"], ["config.seed is '1.5': set it to a whole number"]),
        (["--dryrun"], ["dryrun", "dry_run"]),
        (["--estimate"], ["--estimate trains nothing: give --dry_run"]),
        (["--config", "configs/none.py"], ["configs/none.py"]),
        (["--config.model.backbone=resnet5"], ["resnet5", "config.model.backbone"]),
        (["--config.model.rarity=norm"], ["config.model.rarity", "norm_inlier"]),
        (["--config.model.rarity_threshold=-0.5"], ["config.model.rarity_threshold"]),
        (["--config.stages.bce.loss=mse"], ["config.stages.bce.loss", "logit_adjusted"]),
        (
            ["--config.stages.bce.sampling=class_aware", "--config.data.equal_sets"],
            ["config.stages.bce.sampling", "config.data.equal_sets"],
        ),
        (["--config.stages.bce.class_weights=inverse"], ["config.stages.bce.class_weights"]),
        (
            ["--config.stages.focal.loss=ldam", "--config.refit=plain"],
            ["config.refit is 'plain'", "stage focal", "config.refit=none"],
        ),
        (["--config.stages.bce.frozen_epochs=-1"], ["config.stages.bce.frozen_epochs", "0"]),
        (["--config.stages.bce.lr_spread=0"], ["config.stages.bce.lr_spread", "above 0"]),
        (["--config.stages.bce.clip_norm=-1"], ["config.stages.bce.clip_norm", "0 for none"]),
        (["--config.stages.bce.accumulate=0"], ["config.stages.bce.accumulate", "1"]),
        (["--config.model.average=1"], ["config.model.average", "below 1"]),
        (["--config.preset=notbook"], ["config.preset", "'notebook'"]),
        (["--config.data.split=oficial"], ["oficial", "official"]),
        (["--config.data.source=nih"], ["config.data.source", "nih_chest_xray14"]),
        (["--config.data.source=csv"], ["config.data.source", "csv_folder"]),
        (["--config.stages.bce.batch_size=5000"], ["config.stages.bce.batch_size", "5000"]),
        (["--config.model.init_from=none.safetensors"], ["There is no weight file none"]),
        (["--config.model.init_from=imagenet"], ["no ImageNet weights for efficientnet_v2_nano"]),
        (["--config.data.dir=data/phantom/test_list.txt", "--config=demo"], ["is a file", "name"]),
        (["--config.runs_dir=/sys/runs"], ["/sys/runs", "cannot be made", "runs_dir"]),
        (["--config.runs_dir=/proc/runs"], ["/proc/runs", "cannot be made"]),
        (["--config.runs_dir=data/phantom/phantom.json"], ["phantom.json", "cannot be made"]),
        (["--config.name="], ["config.name", "folder"]),
        (["--config.name=.."], ["config.name", "folder"]),
        (["--config.name=a/b"], ["config.name", "a/b"]),
        (["--config.name.foo=1"], ["config.name is a value", "foo"]),
        (["--config.model.init_from="], ["config.model.init_from", "empty"]),
        (["--config.seed=-1"], ["config.seed", "-1"]),
        (["--config.data.split_seed=-1"], ["config.data.split_seed"]),
        (["--config.data=3"], ["config.data is a group"]),
        (["--config.stages.bce=1"], ["config.stages.bce is a group"]),
        (["-config.sed=7"], ["config.sed", "config.seed"]),
        (["--config="], ["There is no config file ''", "--config=list"]),
        (["--config"], ["--config needs a value", "config file"]),
        (["--config", "effv2"], ["no config 'effv2'", "did you mean 'effv2s'"]),
        (["--config", "zzz"], ["no config 'zzz'", "choose one of demo, effv2s, lite0"]),
        (["--config", "demo:small"], ["demo.py is no config", "get_config"]),
        (["--config", "effv2s:resnet5"], ["config.model.backbone", "did you mean 'resnet50'"]),
        (["--config.xyz=1"], ["no key config.xyz: --help lists the keys"]),
        (["--lr=1"], ["no option --lr: did you mean --config.stages.bce.peak_lr or"]),
        (["--frobnicate"], ["no option --frobnicate: --help lists the options"]),
        (["--dry_run=maybe"], ["--dry_run is 'maybe': set it to True or False"]),
        (["--config.data.resident", "true"], ["Unexpected argument 'true': write --switch"]),
        (["-q", "-v"], ["-q and -v exclude each other"]),
        (["--config.model.momentum=nan"], ["config.model.momentum", "from 0 to 1"]),
        (["--config.data.processes=-1"], ["config.data.processes", "0 or more"]),
        (["--config.data.image_size=0"], ["config.data.image_size", "32"]),
        (["--config.data.missing=ignore"], ["config.data.missing", "skip"]),
        (["extra"], ["Unexpected argument 'extra': options start with --."]),
        (["--", "--dry_run"], ["Unexpected argument '--dry_run'"]),
    ],
)
def test_bad_input_gets_one_sentence(finished, refused, arguments, words):
    arguments = [*SMALL, "--config.name=other", *arguments]
    refused(train_command.main, arguments, *words, cwd=finished[0])
    assert not (finished[0] / "runs/other").exists()


NIH = ["Data_Entry_2017.csv", "images/00000001_000.png", ".hidden"]
TRAIN = [
    (["train", "--config.data.dir=nih"], ["--config.data.dir=nih needs --config"]),
    (["train", "--config.data.dir=typo"], ["--config.data.dir=typo needs --config"]),
    (["train", "--config=demo", "--config.data.dir=nih"], ["nih holds other files", "a new or"]),
    (["train", "--config=demo", "--config.data.dir=nih/images"], ["images holds other files"]),
    (["train", "--config=demo", "--config.data.dir=hidden"], ["hidden holds other files"]),
]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        *TRAIN,
        *(([*arguments, "--dry_run"], words) for arguments, words in TRAIN),
        (["phantom", "--out=nih"], ["nih holds other files"]),
        (["phantom", "--out=nih/Data_Entry_2017.csv"], ["csv is a file: name a folder"]),
        (["prepare", "phantom", "--source=nih", "--out=made"], ["csv has no column"]),
        (["prepare", "phantom", "--source=typo", "--out=made"], ["typo does not exist"]),
        (["inspect", "typo", "--source=phantom"], ["typo does not exist"]),
    ],
)
def test_no_command_draws_images_where_others_may_lie(
    tmp_path, monkeypatch, capsys, arguments, words
):
    files = [*(f"nih/{name}" for name in NIH), "hidden/.DS_Store"]
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["charm-jax", *arguments])
    with pytest.raises(SystemExit) as leaving:
        charm.main()
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == sorted(files)


@pytest.mark.parametrize("arguments", [["eval"], ["memory", "demo", "list"]])
def test_only_training_draws_images(finished, refused, arguments):
    main = {"eval": eval_command, "memory": memory_command}[arguments[0]].main
    arguments = [*arguments[1:], "--config.data.dir=moved"]
    words = ("no simulated images in moved", "charm-jax phantom --out moved --image_size 32")
    refused(main, arguments, *words, cwd=finished[0])
    assert not (finished[0] / "moved").exists()


def test_missing_data_says_where_to_get_them_and_how_to_run_without(tmp_path, refused):
    arguments = ["--config", str(CONFIGS / "effv2s.py")]
    words = ("data/nih_chest_xray14", "https://", "charm-jax train")
    refused(train_command.main, arguments, *words, cwd=tmp_path)


def test_evaluation_without_a_run_says_what_to_do(tmp_path, refused):
    refused(eval_command.main, [], "charm-jax train", cwd=tmp_path)


def test_evaluation_of_an_unknown_run_names_the_nearest(finished, refused):
    refused(eval_command.main, ["--run", "dmo"], "'dmo'", "'demo'", cwd=finished[0])


def test_evaluation_with_another_architecture_is_refused(finished, tmp_path, refused):
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    path = folder / "runs/demo/config.json"
    config = read(path)
    config["model"]["backbone"] = "efficientnet_v2_s"
    path.write_text(json.dumps(config))
    refused(eval_command.main, [], "another architecture", cwd=folder)


def test_a_run_may_not_be_evaluated_as_another_network(finished, refused):
    arguments = ["--config.model.retrieval_k=9"]
    refused(eval_command.main, arguments, "config.model.retrieval_k", cwd=finished[0])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "get_config"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("def get_config():\n    return None", "NoneType"),
        ("def get_config(variant):\n    return variant", "variant"),
        (CONFIG.format("config.seeed = 1"), "config.seed"),
        (CONFIG.format("config.seed = None"), "config.seed"),
        (CONFIG.format("config.seed = True"), "config.seed"),
        (CONFIG.format("config.model = 3"), "config.model"),
    ],
)
def test_a_bad_config_file_gets_one_sentence(tmp_path, refused, text, word):
    path = tmp_path / "mine.py"
    path.write_text(text)
    refused(train_command.main, ["--config", str(path)], "mine.py", word, cwd=tmp_path)


def test_a_test_part_that_was_trained_on_is_refused(finished, refused):
    arguments = ["--config.data.split=patient"]
    words = ("config.data.split=patient", "trained or validated on", "runs/demo")
    refused(eval_command.main, arguments, *words, cwd=finished[0])


def test_a_truncated_image_stops_the_run_and_is_named(finished, tmp_path):
    copy_data(finished, tmp_path)
    name = sorted((tmp_path / "data/phantom/images").iterdir())[0]
    name.write_bytes(name.read_bytes()[:100])
    stopped = train(cwd=tmp_path)
    assert stopped.returncode == 2
    assert name.name in stopped.stderr


def test_an_unknown_checkpoint_with_slashes_is_refused(finished, refused):
    arguments = ["--checkpoint", "bce/foo/24"]
    refused(eval_command.main, arguments, "'bce/foo/24'", cwd=finished[0])
