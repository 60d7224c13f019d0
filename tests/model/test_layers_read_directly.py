"Layers whose weights the code of a model reads without calling them: they stay in 16 bits and get no adapter."
import pytest, torch
from tests.model.architectures import hf_config_of, save_model, weights_error
from llmft.config.config import load_config
from llmft.memory.plan import plan_memory
from llmft.model.adapters import add_adapter, model_notes
from llmft.model.architectures import empty_model, layers_read_directly
from llmft.model.base import load_base, load_hf_config
from llmft.model.targets import linear_module_names

NAMES = {'mamba': {'dt_proj', 'out_proj', 'x_proj'}, 'jamba': {'dt_proj'}, 'bamba': {'out_proj'},
         'falcon_h1': {'out_proj'}, 'llama': set(), 'lfm2': set(), 'qwen3_next': set(), 'bloom': set()}


@pytest.mark.parametrize('kind', NAMES)
def test_which_they_are(kind):
    model = empty_model(hf_config_of(kind))
    assert {name.split('.')[-1] for name in layers_read_directly(model)} == NAMES[kind]
    assert not NAMES[kind] & {*linear_module_names(model)}


@pytest.mark.parametrize('bits', [4, 8])
@pytest.mark.parametrize('kind', ['mamba', 'jamba', 'bamba'])
def test_they_stay_in_16_bits(kind, bits, tmp_path):
    config = load_config(dict(
        base_model=str(save_model(kind, tmp_path)), datasets=[dict(path='x.jsonl')], adapter='lora', lora_r=4,
        bf16=False, sequence_len=64, sample_packing=False, micro_batch_size=1, **{f'load_in_{bits}bit': True}))
    model, hf_config = load_base(config), load_hf_config(config)
    kept = layers_read_directly(model)
    assert kept and not [name for name, m in kept.items() if 'bit' in type(m).__name__]
    assert [name for name, m in model.named_modules() if 'bit' in type(m).__name__]
    assert weights_error(config, hf_config) < .01
    note = next(note for note in model_notes(model, config, hf_config) if 'stay in 16 bits' in note)
    assert note.startswith(', '.join(sorted(NAMES[kind]))) and note in plan_memory(config, 'CPU').notes
    tuned = add_adapter(model, config)
    adapted = [name for name, m in tuned.named_modules() if hasattr(m, 'lora_A')]
    assert adapted and not [name for name in adapted if name.endswith(tuple(kept))]


def test_mamba_trains_in_4_bits(tmp_path):
    config = load_config(dict(
        base_model=str(save_model('mamba', tmp_path)), datasets=[dict(path='x.jsonl')], adapter='qlora', lora_r=4,
        bf16=False, sequence_len=64, sample_packing=False))
    tuned, ids = add_adapter(load_base(config), config).train(), torch.arange(20)[None]
    tuned(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    gradients = {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}
    assert gradients and all(gradient is not None for gradient in gradients.values())
