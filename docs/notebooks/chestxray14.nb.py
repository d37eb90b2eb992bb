# %% [markdown]
# # ChestX-ray14 on Kaggle and Colab
#
# Train on a part of the NIH's 112,120 X-rays, or on all. On Kaggle add the data set
# `nih-chest-xrays/data` to the notebook ("Add input") and switch on the internet and a GPU; on
# Colab put the NIH folder into your Drive and mount it. Without the data the notebook draws
# SIMULATED images in the same layout, so that you can try it. A part takes about two minutes on
# two CPU cores.

# %%
import importlib.util
import shutil
import subprocess
import sys

gpu = shutil.which("nvidia-smi") is not None
if importlib.util.find_spec("charm_jax") is None:
    package = "charm-jax[cuda,lite]" if gpu else "charm-jax[lite]"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# ## Find the data

# %% tags=["parameters"]
PART = 150  # images of the official training list, half as many of the test list; 0 for all
CONFIG = "effv2s" if gpu else "lite0:small"

# %%
import os
import random
from pathlib import Path

places = [
    os.environ.get("CHARM_DATA", ""),
    "/kaggle/input/datasets/organizations/nih-chest-xrays/data",
    "/kaggle/input/datasets/nih-chest-xrays/data",
    "/kaggle/input/nih-chest-xrays/data",
    "/kaggle/input/data",
    "/content/drive/MyDrive/nih_chest_xray14",
]
found = [Path(place) for place in places if place and any(Path(place).glob("Data_Entry_2017*"))]
if not found:
    draw = "charm-jax phantom --out simulated --train_images 420 --test_images 310 --image_size 64"
    subprocess.run([sys.executable, "-m", *draw.replace("-", "_", 1).split()], check=True)
nih = found[0] if found else Path("simulated")
print(f"{nih}: {'the NIH data' if found else 'SIMULATED'}")

# %% [markdown]
# ## Take a part
#
# A folder with the table, both official lists and links to some images is a data set, too;
# `data.missing=skip` leaves out the images that are absent.

# %%
folder = nih
if PART:
    folder = Path("part")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for pattern in ("Data_Entry_2017*", "*_list.txt", "SIMULATED.txt"):
        for file in nih.glob(pattern):
            shutil.copy(file, folder)
    images = {path.name: path for path in nih.glob("images*/**/*.png")}
    for listed, count in (("train_val_list.txt", PART), ("test_list.txt", PART // 2)):
        present = sorted(images.keys() & (nih / listed).read_text().split())
        for name in random.Random(0).sample(present, min(count, len(present))):
            link = folder / "images" / name
            if not link.is_symlink():
                link.symlink_to(images[name].resolve())

# %% [markdown]
# ## Train
#
# On a GPU the whole set is worth preparing first: `charm-jax prepare nih_chest_xray14 --source ...
# --out prepared` writes it at 224 pixels, 5.6 GB, and `--config.data.dir=prepared` reads it. Kaggle
# keeps what lies in `/kaggle/working`; a run that was cut off goes on with the same command.

# %%
DATA = (
    f"--config.data.source=nih_chest_xray14 --config.data.dir={folder} --config.data.missing=skip"
)
RUN = f"--config {CONFIG} --config.name=nih --config.model.init_from=imagenet"
SHORT = (
    "--config.data.image_size=64 --config.stages.bce.frozen_epochs=3 "
    "--config.stages.bce.epochs=2 --config.stages.focal.epochs=1"
)
# !charm-jax train {RUN} {DATA} {SHORT}

# %% [markdown]
# These are few images, small ones, and few epochs, to see that all works. For a result leave out
# `{SHORT}` and set `PART = 0`; [the tutorial](../tutorials/chestxray14.md) tells disk,
# hours and what each output means.

# %%
# !charm-jax eval --run nih {DATA}

# %%
import charm_jax

model = charm_jax.load("runs/nih")
model.predict(sorted((folder / "images").glob("*.png"))[:3]).to_frame().round(3).T
