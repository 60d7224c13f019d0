"Files that hold the keys of Axolotl's examples: which load and go on, and what is said where not."
import json
from pathlib import Path

import pytest
import yaml

from llmft import prompt_formats
from llmft.config.axolotl import find_key
from llmft.config.config import load_config
from llmft.core import UserError
from llmft.prompts.chat import resolve_chat_template

ROOT = Path(__file__).parent.parent.parent
FILE = yaml.safe_load((ROOT/'tests/data/axolotl_examples.yml').read_text(encoding='utf-8'))
REFUSED = { # the example, and what its message must name
    'gemma4 in nvfp4': ['dsv4_fp4_grouped_mode', 'Take the 16-bit copy'],
    'gemma3n': ['optimizer: muon', '`adamw_torch`'],
    'qwen3 in nvfp4': ['nvfp4_merge_aware', 'Take the 16-bit copy'], 'deepseek v4': ['dsv4_fp4_grouped_mode'],
    'relora': ['relora_steps', 'Use plain `adapter: lora` or `qlora`'], 'gptq': ['gptq', '16-bit copy'],
    'packed in order': ['sample_packing_sequentially', '`curriculum_sampling` without packing']}


def example(name):
    given = dict(FILE['examples'][name])
    without = str(given.pop('without', '')).split()
    return {key: value for key, value in FILE['usual'].items() if key not in without} | given


@pytest.mark.parametrize('name', sorted({*FILE['examples']} - {*REFUSED}))
def test_loads_and_goes_on(name, tmp_path):
    (tmp_path/'a.yml').write_text(yaml.safe_dump(example(name), sort_keys=False))
    config = load_config(tmp_path/'a.yml')
    for source in config.datasets: assert source.type in prompt_formats()
    resolve_chat_template(config, 'the own one of the tokenizer')
    for key, value in example(name).items(): # nothing is passed over in silence
        if value in (None, False) or key in config.model_fields_set: continue
        assert any(key in note for note in config.notes) or find_key(key).message.startswith('becomes'), key


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_what_to_do(name, tmp_path):
    (tmp_path/'a.yml').write_text(yaml.safe_dump(example(name), sort_keys=False))
    with pytest.raises(UserError) as e: load_config(tmp_path/'a.yml')
    for part in REFUSED[name]: assert part in str(e.value)
    assert all(line.startswith(f'{tmp_path}/a.yml:') for line in str(e.value).splitlines())


def test_nine_of_ten_load():
    "A file with two refused keys is counted twice, so no more than these are refused."
    page = json.loads((ROOT/'nbs/reference/axolotl.ipynb').read_text(encoding='utf-8'))
    cell = next(c for c in page['cells'] if 'FILES = ' in ''.join(c['source']))
    names = {}
    exec(''.join(cell['source']), names)
    refused = {key: n for key, n in names['SWITCHED_ON'].items() 
        if find_key(key).status == 'unsupported' and key != 'unfrozen_parameters'} # said beside an adapter
    n_refused = sum(refused.values()) + sum(names['VALUES_REFUSED'].values())
    assert n_refused <= 0.1 * names['N_FILES'], refused
