import gc
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('slow'): item.add_marker(pytest.mark.timeout(0))
    gpu = [item for item in items if item.get_closest_marker('gpu')]
    if not gpu: return
    import torch
    if torch.cuda.is_available(): return
    for item in gpu: item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


def pytest_collection_finish():
    "Nothing that was imported is ever garbage; to look through it, as each run does twice, takes half a second."
    gc.collect()
    gc.freeze()
