"""The peer's training of one epoch from image files: DataLoader, PIL, augmentation, steps.

    python benchmarks/peer_epoch.py LIST.csv --side 64 --batch 32 --net efficientnet_v2_nano

Prints a line a step. LIST.csv holds a path and the labels of an image in each row.
"""

import argparse
import csv

import numpy as np
import torch
from peer import Peer
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(torch.utils.data.Dataset):
    """Grey images, flipped and turned at random, normalised in three channels."""

    def __init__(self, path: str, side: int):
        with open(path, encoding="utf-8") as file:
            self.rows = list(csv.reader(file))
        self.side = side
        self.mean, self.std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        path, *labels = self.rows[i]
        image = Image.open(path).convert("L").resize((self.side, self.side), Image.BILINEAR)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
        if torch.rand(()) < 0.5:
            image = image.rotate(float(torch.empty(()).uniform_(-10, 10)), Image.BILINEAR)
        grey = torch.from_numpy(np.asarray(image, np.float32) / 255)
        return (grey - self.mean) / self.std, torch.tensor([float(v) for v in labels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list")
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--net", required=True)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    loader = torch.utils.data.DataLoader(
        Images(args.list, args.side),
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
    )
    peer = Peer(args.net)
    for step, (images, labels) in enumerate(loader, start=1):
        loss = peer.train_step(*peer.to_device(images, labels))
        print(step, loss.item(), flush=True)


if __name__ == "__main__":
    main()
