# %% [markdown]
# # Explain and forget
#
# See which stored cases a prediction leaned on and where the network looked, then remove a patient
# from the memory bank. It takes about two minutes on two CPU cores, on SIMULATED images. Run it in
# an empty folder, or in that of the [quick start](quick_start.nb.py), whose run it uses.

# %%
import importlib.util
import shutil
import subprocess
import sys

if importlib.util.find_spec("charm_jax") is None:  # as on Kaggle and Colab
    package = "charm-jax[cuda]" if shutil.which("nvidia-smi") else "charm-jax"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %% [markdown]
# A run that is finished is left as it is.

# %%
SHORT = (
    "--config.data.phantom.train_images=1200 --config.data.phantom.test_images=400 "
    "--config.stages.bce.epochs=6 --config.stages.focal.epochs=3"
)
# !charm-jax train {SHORT}

# %% [markdown]
# ## The evidence of a prediction

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import charm_jax

model = charm_jax.load("runs/demo")
names = Path("data/phantom/test_list.txt").read_text().split()[:40]
files = [f"data/phantom/images/{name}" for name in names]
out = model.predict(files)
row, column = np.unravel_index(np.nanargmax(out.probs), out.probs.shape)
finding = model.pathologies[column]
print(f"{names[row]}: {finding} {out.probs[row, column]:.3f}")

# %% [markdown]
# Each stored case that was read comes with its labels, its similarity and its share in the vote on
# every finding. The ten most similar are listed. (With `preset=published` it is the share in the
# logit, and all cases are listed.)

# %%
evidence = pd.DataFrame(out.evidence[row])
evidence["share"] = [shares[finding] for shares in evidence["contributions"]]
evidence[["case", "patient", "labels", "cosine", "share"]]

# %%
shown = evidence.head(3)
figure, axes = plt.subplots(1, 1 + len(shown), figsize=(12, 3.6))
titles = ["the image", *shown["case"]]
for axis, title, name in zip(axes, titles, [names[row], *shown["case"]], strict=True):
    axis.imshow(Image.open(f"data/phantom/images/{name}"), cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## Where the network looked
#
# Grad-CAM shows the pixels that speak for a finding.

# %%
heat = model.grad_cam(files[row], finding)[0]
image = Image.open(files[row])
figure, axis = plt.subplots(figsize=(4, 4))
base = axis.imshow(image, cmap="gray")
axis.imshow(heat, "inferno", alpha=0.4, interpolation="bilinear", extent=base.get_extent())
axis.set_title(finding)
axis.set_axis_off()

# %% [markdown]
# ## Forget a patient
#
# `forget` returns another classifier; the first stays as it is. The weights are the same: what they
# learned of the patient stays in them.

# %%
patient = evidence["patient"].iloc[0]
without = model.memory.forget(patients=[patient])
print(f"patient {patient}: {len(model.memory)} stored cases, then {len(without.memory)}")

again = without.predict(files[row])
assert patient not in {case["patient"] for case in again.evidence[0]}
pd.DataFrame({"before": out.probs[row], "after": again.probs[0]}, index=model.pathologies).round(4)

# %% [markdown]
# `charm-jax memory demo forget --patients ... --label without` does the same for good: it keeps
# the new bank beside the run, with its own calibration, and prints what changes on the validation
# images.
