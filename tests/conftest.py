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
