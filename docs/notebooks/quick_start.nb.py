# %% [markdown]
# # Quick start
#
# Train a small network on SIMULATED X-rays, evaluate it and use it from Python. It takes about two
# minutes on two CPU cores and needs no data. Run it in an empty folder.
#
# **Research software, not a medical device.** Scores on simulated images say nothing about X-rays.

# %%
import importlib.util
import shutil
import subprocess
import sys

if importlib.util.find_spec("charm_jax") is None:  # as on Kaggle and Colab
    package = "charm-jax[cuda]" if shutil.which("nvidia-smi") else "charm-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# If Colab asks for a restart after the installation, restart and go on here.
#
# ## Train
#
# The command draws the images, trains two stages and leaves the folder `runs/demo`. `SHORT` makes
# it shorter than the demo; without it the command is the demo.

# %%
SHORT = (
    "--config.data.phantom.train_images=1200 --config.data.phantom.test_images=400 "
    "--config.stages.bce.epochs=6 --config.stages.focal.epochs=3"
)
# !charm-jax train {SHORT}

# %% [markdown]
# ## Evaluate
#
# The table has AUROC and average precision of each finding on the test images, with intervals over
# patients. `runs/demo/eval/test/report.html` is the same as a page with figures.

# %%
# !charm-jax eval

# %% [markdown]
# ## Predict

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import charm_jax

model = charm_jax.load("runs/demo")
names = Path("data/phantom/test_list.txt").read_text().split()[:4]
files = [f"data/phantom/images/{name}" for name in names]
out = model.predict(files)
out.to_frame().round(3).T

# %% [markdown]
# `probs` are calibrated. `positive` compares them with the thresholds that were chosen on
# validation; it is masked for a finding without one.

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3.6))
for axis, file, probs in zip(axes, files, out.probs, strict=True):
    axis.imshow(Image.open(file), cmap="gray")
    axis.set_title(f"{model.pathologies[probs.argmax()]} {probs.max():.2f}")
    axis.axis("off")

# %% [markdown]
# Arrays serve as well as files: uint8 `[n, height, width]` of any size.

# %%
import numpy as np

images = np.stack([np.asarray(Image.open(file).convert("L")) for file in files])
np.abs(model.predict(images).logits - out.logits).max()
