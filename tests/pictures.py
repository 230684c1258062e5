"""Four pictures with captions and labels, for tests of how models compare."""

import torch

TEXTS = ["a red circle", "a blue star", "two green hearts"]


def four_images():
    """uint8 ``[4, 3, 32, 32]``."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)


def rows_of(clip, images):
    """Rows of the images and of ``TEXTS``."""
    with torch.no_grad():
        return clip.encode_image(clip.normalize(images)), clip.encode_text(clip.tokenize(TEXTS))


class Pictures:
    name, classes, templates = "pictures", ["circle", "star"], ["a {}", "one {}"]

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def examples(self, indices):
        return [
            {"image": self.images[i].permute(1, 2, 0).numpy(), "captions": [TEXTS[i % 3]], "label": i % 2}
            for i in indices
        ]

    def fingerprint(self):
        return "pictures"
