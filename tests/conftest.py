import os

# Before torch is loaded: workers share the cores, and what they start does.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session", params=[2, 4])
def processes(request, tmp_path_factory):
    """What each of 2 and of 4 gloo processes found, see ``worlds.run``; they start once for all tests."""
    import worlds

    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(worlds.run, (request.param, str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="session")
def micro():
    """A randomly initialised micro CLIP; tests that change it work on a copy."""
    from clipx.models.loading import load

    torch.manual_seed(0)
    return load("micro").eval()


@pytest.fixture(scope="session")
def micro_resnet(micro):
    """The micro CLIP with a ResNet for an image tower; tests that change it work on a copy."""
    import copy

    import open_clip

    from clipx.models.clip import CLIP

    config = copy.deepcopy(micro.model_cfg)
    config["vision_cfg"] = {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "head_width": 16,
        "patch_size": None,
    }
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**config)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some training, so that blocks count
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return CLIP(model, micro.tokenizer, config, dict(micro.preprocess_cfg), "micro-resnet").eval()
