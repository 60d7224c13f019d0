import gc, sys
import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('slow'): item.add_marker(pytest.mark.timeout(0))
    gpu = [item for item in items if item.get_closest_marker('gpu')]
    if not gpu: return
    import torch
    if torch.cuda.is_available(): return
    for item in gpu: item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


_imported = 0 # modules when the garbage was last looked through


def freeze_what_was_imported():
    "Nothing that was imported is ever garbage; to look through it, as each run does four times, takes half a second."
    global _imported
    gc.collect()
    gc.freeze()
    _imported = len(sys.modules)


def pytest_collection_finish(): freeze_what_was_imported()


def pytest_runtest_logfinish():
    if len(sys.modules) > _imported + 200: freeze_what_was_imported() # the first run imports TRL, for example
