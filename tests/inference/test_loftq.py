"The adapter of LoftQ fits the base of few bits that it was made for, and no other."
import pytest
import torch
from transformers import AutoTokenizer

import llmft.inference.load
from llmft.config.config import load_config, save_config
from llmft.core import UserError
from llmft.export.merge import merge_adapter
from llmft.inference.load import load_run
from llmft.model.adapters import add_adapter, save_trained
from llmft.model.base import load_base
from tests.small import small_config, small_run


def loftq_run(folder):
    config = small_config(folder, adapter='qlora', load_in_4bit=True, peft_init_lora_weights='loftq', lora_r=8)
    (folder/'run'/'adapter').mkdir(parents=True)
    save_trained(add_adapter(load_base(config), config), folder/'run'/'adapter')
    AutoTokenizer.from_pretrained(config.base_model).save_pretrained(folder/'run'/'adapter')
    save_config(config, folder/'run'/'config_completed.yml')
    return folder/'run', config


def scores(model):
    with torch.no_grad(): return model(torch.arange(40)[None]).logits.float()


def test_the_rounding_is_counted_once(tmp_path, monkeypatch):
    "An adapter that was not trained is near the original model: nearer than its few bits, or than itself on it."
    run, config = loftq_run(tmp_path)
    plain = scores(load_base(load_config(config, adapter='lora', load_in_4bit=False, peft_init_lora_weights=None)))
    def distance(model): return float((scores(model) - plain).norm()/plain.norm())
    once = distance(load_run(run).model)
    assert once < distance(load_base(config))
    merged = merge_adapter(run, tmp_path/'merged', 'float32', say=None)
    assert abs(distance(load_run(merged).model) - once) < .01
    with pytest.raises(UserError, match='LoftQ'): load_run(run, quantized=False)
    with pytest.raises(UserError, match='LoftQ'): merge_adapter(run, tmp_path/'m', dequantized=False)
    monkeypatch.setattr(llmft.inference.load, '_check_bits', lambda *args: None)
    assert distance(load_run(run, quantized=False).model) > 1.5*once # what would be answered otherwise


def test_beside_a_run_on_original_weights(tmp_path):
    run, _ = loftq_run(tmp_path)
    (tmp_path/'other').mkdir()
    other = small_run(tmp_path/'other', base_model=str(tmp_path/'model'))
    with pytest.raises(UserError, match='does not fit the original weights'): load_run(other, also={'loftq': run})
