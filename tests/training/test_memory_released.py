"Where memory runs out: one message, and the same command works again; a run that has ended holds nothing."
import gc, weakref
from pathlib import Path

import pytest

import llmft.training.train as train
from llmft.core import UserError
from llmft.inference.load import load_run
from llmft.model.adapters import import_peft
from tests.small import small_config, small_run

ERRORS = [MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB'),
          RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")]
PLACES = {'load': 'load_base', 'step': '_train', 'end': 'finish_run', 'trainer': 'make_trainer'}


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('error', ERRORS, ids=['machine', 'GPU', 'torch'])
def test_out_of_memory(place, error, tmp_path, monkeypatch):
    config = small_config(tmp_path, test_datasets=None)
    def fail(*_, **__): raise error
    with monkeypatch.context() as patched:
        patched.setattr(train, PLACES[place], fail)
        with pytest.raises(UserError) as e: train.finetune(config, say=None)
    message = str(e.value)
    for part in ('Memory ran out while training', 'The plan: ', '`micro_batch_size`'): assert part in message
    assert 'Traceback' not in message
    if place != 'load' or error is not ERRORS[0]: return
    assert train.finetune(config, say=None).last('step') == 1


def test_the_same_command_works_again(tmp_path, monkeypatch):
    config = small_config(tmp_path, test_datasets=None)
    def fail(*_, **__): raise MemoryError
    with monkeypatch.context() as patched:
        patched.setattr(train, '_train', fail)
        with pytest.raises(UserError): train.finetune(config, say=None)
    assert not Path(config.output_dir).exists()
    assert train.finetune(config, say=None).last('step') == 1


def test_checkpoints_stay(tmp_path, monkeypatch):
    config = small_config(tmp_path, test_datasets=None, max_steps=2, save_steps=1)
    def fail(*_, **__): raise MemoryError
    with monkeypatch.context() as patched:
        patched.setattr(train, 'finish_run', fail)
        with pytest.raises(UserError): train.finetune(config, say=None)
    run = train.finetune(config, resume=True, say=None)
    assert (run.path/'adapter'/'adapter_model.safetensors').is_file()


@pytest.mark.parametrize('fails', [False, True])
def test_nothing_is_held(fails, tmp_path, monkeypatch):
    held, make = [], train.make_trainer
    def watch(*args, **kwargs):
        trainer = make(*args, **kwargs)
        held.extend(map(weakref.ref, (trainer, trainer.model, trainer.model.get_base_model())))
        return trainer
    monkeypatch.setattr(train, 'make_trainer', watch)
    if fails: monkeypatch.setattr(train, 'finish_run', lambda *_: 1/0)
    error = None
    try: train.finetune(small_config(tmp_path, test_datasets=None), say=None)
    except ZeroDivisionError as e: error = e # as a notebook keeps the last one
    gc.collect()
    assert held and [ref() for ref in held] == [None] * 3
    assert (error is not None) == fails


def test_opening_a_run_out_of_memory(tmp_path, monkeypatch):
    run = small_run(tmp_path)
    def fail(*_, **__): raise MemoryError
    monkeypatch.setattr('llmft.model.base.load_base', fail)
    with pytest.raises(UserError, match='Memory ran out while opening'): load_run(run)


def test_an_old_torchao_does_no_harm(tmp_path, monkeypatch):
    metadata = 'Name: torchao\nVersion: 0.10.0\n'
    for name, text in {'torchao/__init__.py': '', 'torchao-0.10.0.dist-info/METADATA': metadata}.items():
        (tmp_path/'site'/name).parent.mkdir(parents=True)
        (tmp_path/'site'/name).write_text(text)
    import peft.import_utils as utils
    from peft.tuners.lora import torchao
    from peft.utils import quantization_utils
    ask = utils.is_torchao_available
    for module in (utils, torchao, quantization_utils): monkeypatch.setattr(module, 'is_torchao_available', ask)
    ask.cache_clear()
    monkeypatch.syspath_prepend(tmp_path/'site')
    with pytest.raises(ImportError, match='incompatible version of torchao'): utils.is_torchao_available()
    import_peft()
    assert utils.is_torchao_available() is False
    load_run(small_run(tmp_path/'run'))
