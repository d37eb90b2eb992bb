"""Predict chest X-rays with an exported model: Pillow, NumPy and onnxruntime alone.

    python predict_onnx.py demo.onnx chest.png more.jpg

Research software, not a medical device.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

program, *files = sys.argv[1:]
with open(f"{program}.json", encoding="utf-8") as file:
    about = json.load(file)
session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
side = about["image_size"]
for path in files:
    with Image.open(path) as image:
        grey = image.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    [scores] = session.run(["scores"], {"images": np.array(grey)[None]})
    print(path)
    for column in np.argsort(-scores[0]):
        name, score = about["findings"][column], scores[0, column]
        limit = about["thresholds"][name]
        found = " reported" if limit is not None and score >= limit else ""
        print(f"  {name:<20} {score:.6f}{found}")
