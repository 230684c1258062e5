"""A CLIP trained by the shortest loop one would write by hand: PyTorch, torchvision, open_clip's model."""

import csv
import json
import os
import sys
from pathlib import Path

import open_clip
import torch
from peers import small_tokenizer_of
from PIL import Image
from slices import Stamped
from torchvision import transforms

_, folder, table, batch_size, workers = sys.argv
preprocess = json.loads(Path(folder, "open_clip_config.json").read_text())["preprocess_cfg"]
model = open_clip.create_model(f"local-dir:{folder}", output_dict=True)
tokenize = small_tokenizer_of(folder)
bicubic = transforms.InterpolationMode.BICUBIC
transform = transforms.Compose(
    [
        transforms.RandomResizedCrop(model.visual.image_size, scale=(0.9, 1.0), interpolation=bicubic),
        transforms.ToTensor(),
        transforms.Normalize(preprocess["mean"], preprocess["std"]),
    ]
)


class Pairs(torch.utils.data.Dataset):
    rows = list(csv.reader(Path(table).read_text().splitlines()))[1:]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        path, caption = self.rows[index]
        return transform(Image.open(path).convert("RGB")), tokenize([caption])[0]


loader = torch.utils.data.DataLoader(
    Pairs(), int(batch_size), shuffle=True, num_workers=int(workers), drop_last=True
)
loss = open_clip.ClipLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
model.train()
for images, texts in Stamped(loader, os.environ["STAMPS"]):
    optimizer.zero_grad()
    loss(**model(images, texts)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
